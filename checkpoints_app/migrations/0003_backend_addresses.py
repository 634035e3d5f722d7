from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('checkpoints_app', '0002_search_and_retention'),
    ]

    operations = [
        migrations.AlterField(
            model_name='checkpoint',
            name='backend',
            field=models.CharField(default='database', help_text='Where its chunks lie: an address that `backends.at` reads.', max_length=500),
        ),
    ]

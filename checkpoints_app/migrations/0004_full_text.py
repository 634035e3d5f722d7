import django.db.models.deletion
from django.db import migrations, models

MESSAGES = "checkpoints_app_messagetext"
CHECKPOINTS = "checkpoints_app_checkpoint"

# An index over the text in the table itself, so that the text is not kept twice: the triggers are
# those of https://www.sqlite.org/fts5.html#external_content_tables. Words are kept as they are
# written but for their case, as PostgreSQL's `simple` configuration does.
SQLITE = [
    f"""
    CREATE VIRTUAL TABLE {MESSAGES}_words USING fts5(
        text, content='{MESSAGES}', content_rowid='id', tokenize='unicode61 remove_diacritics 0'
    )
    """,
    f"""
    CREATE TRIGGER {MESSAGES}_inserted AFTER INSERT ON {MESSAGES} BEGIN
        INSERT INTO {MESSAGES}_words (rowid, text) VALUES (new.id, new.text);
    END
    """,
    f"""
    CREATE TRIGGER {MESSAGES}_deleted AFTER DELETE ON {MESSAGES} BEGIN
        INSERT INTO {MESSAGES}_words ({MESSAGES}_words, rowid, text)
        VALUES ('delete', old.id, old.text);
    END
    """,
    f"""
    CREATE TRIGGER {MESSAGES}_updated AFTER UPDATE OF id, text ON {MESSAGES} BEGIN
        INSERT INTO {MESSAGES}_words ({MESSAGES}_words, rowid, text)
        VALUES ('delete', old.id, old.text);
        INSERT INTO {MESSAGES}_words (rowid, text) VALUES (new.id, new.text);
    END
    """,
    f"""
    CREATE INDEX checkpoint_tagged ON {CHECKPOINTS} (created_at DESC, id DESC) WHERE tags <> '[]'
    """,
]
SQLITE_BACK = ["DROP INDEX checkpoint_tagged", f"DROP TABLE {MESSAGES}_words"]

# PostgreSQL's parser takes `sales.csv` for a host and `a/b` for a path. Without the signs in between
# both databases see the same words. `translate` is immutable whatever the locale is.
SIGNS = r"""!"#$%&''()*+,-./:;<=>?@[\]^_`{|}~"""
POSTGRESQL = [
    f"""
    ALTER TABLE {MESSAGES} ADD COLUMN words tsvector GENERATED ALWAYS AS (
        to_tsvector('simple', translate(text, '{SIGNS}', '{" " * (len(SIGNS) - 1)}'))
    ) STORED
    """,
    f"CREATE INDEX {MESSAGES}_words ON {MESSAGES} USING gin (words)",
    f"CREATE INDEX checkpoint_tagged ON {CHECKPOINTS} USING gin (tags jsonb_path_ops)",
]
POSTGRESQL_BACK = [
    "DROP INDEX checkpoint_tagged",
    f"DROP INDEX {MESSAGES}_words",
    f"ALTER TABLE {MESSAGES} DROP COLUMN words",
]


def forwards(apps, schema_editor):
    _execute(schema_editor, {"sqlite": SQLITE, "postgresql": POSTGRESQL})


def backwards(apps, schema_editor):
    _execute(schema_editor, {"sqlite": SQLITE_BACK, "postgresql": POSTGRESQL_BACK})


def _execute(schema_editor, statements):
    for statement in statements.get(schema_editor.connection.vendor, []):
        schema_editor.execute(statement, params=None)


class Migration(migrations.Migration):

    dependencies = [
        ('checkpoints_app', '0003_backend_addresses'),
    ]

    operations = [
        migrations.CreateModel(
            name='MessageText',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('author', models.CharField(max_length=100)),
                ('text', models.TextField()),
                ('checkpoint', models.ForeignKey(on_delete=django.db.models.deletion.DB_CASCADE, related_name='message_texts', to='checkpoints_app.checkpoint')),
            ],
        ),
        migrations.AddIndex(
            model_name='checkpoint',
            index=models.Index(fields=['workflow', '-created_at', '-id'], name='checkpoint_by_workflow'),
        ),
        migrations.AddIndex(
            model_name='checkpoint',
            index=models.Index(fields=['status', '-created_at', '-id'], name='checkpoint_by_status'),
        ),
        migrations.AddIndex(
            model_name='checkpoint',
            index=models.Index(fields=['agent', '-created_at', '-id'], name='checkpoint_by_agent'),
        ),
        migrations.AddIndex(
            model_name='checkpoint',
            index=models.Index(fields=['team', '-created_at', '-id'], name='checkpoint_by_team'),
        ),
        migrations.AddIndex(
            model_name='checkpoint',
            index=models.Index(condition=models.Q(('is_pinned', True)), fields=['-created_at', '-id'], name='checkpoint_pinned'),
        ),
        migrations.CreateModel(
            name='MessageWords',
            fields=[
                ('message', models.OneToOneField(db_column='rowid', on_delete=django.db.models.deletion.DO_NOTHING, primary_key=True, related_name='+', serialize=False, to='checkpoints_app.messagetext')),
            ],
            options={
                'db_table': 'checkpoints_app_messagetext_words',
                'managed': False,
            },
        ),
        migrations.RunPython(forwards, backwards, elidable=False),
    ]

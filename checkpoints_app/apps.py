from __future__ import annotations

from django.apps import AppConfig


class CheckpointsConfig(AppConfig):
    name = "checkpoints_app"
    verbose_name = "Checkpoints"
    default_auto_field = "django.db.models.BigAutoField"

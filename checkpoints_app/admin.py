from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.db.models import Model, QuerySet
from django.http import HttpRequest

from .models import AuditEvent, Checkpoint

if TYPE_CHECKING:
    Base = admin.ModelAdmin[Model]
else:
    Base = admin.ModelAdmin


class ReadOnlyAdmin(Base):
    """For rows that are only ever added to, by the code that knows how."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(Checkpoint)
class CheckpointAdmin(ReadOnlyAdmin):
    list_display = [
        "id",
        "run_id",
        "position",
        "round",
        "phase",
        "agent",
        "source",
        "size_bytes",
        "new_bytes",
        "created_at",
    ]
    list_filter = ["source", "phase", "agent", "created_at"]
    search_fields = ["=id", "=run_id", "workflow_name", "agent"]
    ordering = ["-created_at"]
    exclude = ["manifest", "digest", "parent"]
    readonly_fields = ["parent_id"]
    show_full_result_count = False

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).defer("manifest", "digest")


@admin.register(AuditEvent)
class AuditEventAdmin(ReadOnlyAdmin):
    list_display = ["created_at", "actor_name", "verb", "target_type", "target_id", "origin"]
    list_filter = ["verb", "origin", "target_type", "created_at"]
    search_fields = ["actor_name", "verb", "target_id", "instruction"]
    date_hierarchy = "created_at"
    ordering = ["-created_at", "-id"]
    show_full_result_count = False

"""What happened, read-only: history is changed by forking it, and never by hand."""

from __future__ import annotations

from django.contrib import admin

from checkpoints_app.admin import ReadOnlyAdmin

from .models import Approval, Attachment, Event, ModelCall, Run, Workflow


@admin.register(Workflow)
class WorkflowAdmin(ReadOnlyAdmin):
    list_display = ["title", "workflow_id", "owner", "created_at"]
    list_filter = ["created_at", "owner"]
    list_select_related = ["owner"]
    search_fields = ["task", "workflow_id", "owner__username", "id"]
    date_hierarchy = "created_at"


@admin.register(Run)
class RunAdmin(ReadOnlyAdmin):
    list_display = ["title", "number", "status", "rounds", "model_calls", "cost_usd", "created_at"]
    list_filter = ["status", "mode", "created_at"]
    list_select_related = ["workflow"]
    search_fields = ["id", "instruction", "workflow__task", "workflow__workflow_id", "error"]
    date_hierarchy = "created_at"


@admin.register(Event)
class EventAdmin(ReadOnlyAdmin):
    list_display = ["run_id", "sequence", "kind", "round", "agent", "checkpoint_id", "created_at"]
    list_filter = ["kind", "created_at"]
    search_fields = ["run__id", "agent", "checkpoint_id"]
    ordering = ["-id"]


@admin.register(ModelCall)
class ModelCallAdmin(ReadOnlyAdmin):
    list_display = ["run_id", "agent", "model", "input_tokens", "output_tokens", "cost_usd"]
    list_filter = ["model", "agent", "created_at"]
    search_fields = ["run__id", "agent", "model"]
    ordering = ["-id"]


@admin.register(Approval)
class ApprovalAdmin(ReadOnlyAdmin):
    list_display = ["run_id", "subject", "agent", "decision", "answered_by", "answered_at"]
    list_filter = ["subject", "decision", "created_at"]
    list_select_related = ["answered_by"]
    search_fields = ["run__id", "agent", "text", "comment", "digest"]


@admin.register(Attachment)
class AttachmentAdmin(ReadOnlyAdmin):
    list_display = ["name", "kind", "size_bytes", "workflow", "created_at"]
    list_filter = ["kind", "created_at"]
    list_select_related = ["workflow"]
    search_fields = ["name", "sha256", "workflow__id"]

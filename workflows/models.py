from __future__ import annotations

import hashlib
import secrets
import uuid
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.db.models.functions import Coalesce
from django.urls import reverse
from django.utils import timezone

from .events import EventKind

if TYPE_CHECKING:
    from django.contrib.auth.models import AbstractUser, AnonymousUser


class WorkflowQuerySet(models.QuerySet["Workflow"]):
    def visible_to(self, user: AbstractUser | AnonymousUser) -> WorkflowQuerySet:
        """Workflows belong to their owner; staff may see all; anybody else sees none."""
        if not user.is_authenticated:
            return self.none()
        return self if user.is_staff else self.filter(owner_id=user.pk)


class Workflow(models.Model):
    """One task given to a team, and the whole tree of runs that grew out of it."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    workflow_id = models.CharField(
        max_length=100, help_text="The user's own name for it, unique among their workflows."
    )
    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="workflows"
    )
    task = models.TextField()
    team = models.JSONField(help_text="The team as it was at the start. Holds no keys.")
    created_at = models.DateTimeField(default=timezone.now, db_index=True)

    objects = WorkflowQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at"]
        constraints = [
            models.UniqueConstraint(
                fields=["owner", "workflow_id"], name="workflow_id_unique_per_owner"
            )
        ]

    def __str__(self) -> str:
        return self.title

    def get_absolute_url(self) -> str:
        return reverse("workflow", args=[self.id])

    @property
    def title(self) -> str:
        """The task's first line, at most 80 characters."""
        line = self.task.strip().partition("\n")[0]
        return line if len(line) <= 80 else f"{line[:79]}…"


class Run(models.Model):
    """One line of execution in a workflow: the first one, or a fork."""

    class Status(models.TextChoices):
        QUEUED = "queued", "Queued"  # waits for a worker
        RUNNING = "running", "Running"  # a worker holds the lease
        WAITING = "waiting", "Waiting"  # a person must answer; holds no worker
        PAUSED = "paused", "Paused"  # stopped at a boundary; goes on when resumed
        COMPLETED = "completed", "Completed"  # has its final answer
        FAILED = "failed", "Failed"  # stopped by an error; can be resumed or forked
        CANCELLED = "cancelled", "Cancelled"  # stopped by a person

    class Mode(models.TextChoices):
        STEER = "steer", "Steer: go on with the instruction"
        REPLAN = "replan", "Replan: make a new plan first"

    ACTIVE = (Status.QUEUED, Status.RUNNING, Status.WAITING)
    RESUMABLE = (Status.FAILED, Status.CANCELLED, Status.PAUSED)

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    workflow = models.ForeignKey(Workflow, on_delete=models.PROTECT, related_name="runs")
    number = models.PositiveIntegerField(help_text="1 for the first run; forks count on from it.")
    parent = models.ForeignKey(
        "self", null=True, blank=True, on_delete=models.PROTECT, related_name="forks"
    )
    forked_from = models.UUIDField(null=True, blank=True, help_text="The checkpoint it grew from.")
    forked_round = models.PositiveIntegerField(default=0, help_text="The round it grew from.")
    instruction = models.TextField(blank=True)
    mode = models.CharField(max_length=10, blank=True, choices=Mode)
    max_rounds = models.PositiveIntegerField(
        help_text="Counted along the whole line, forks included."
    )

    status = models.CharField(max_length=10, choices=Status, default=Status.QUEUED, db_index=True)
    attempt = models.PositiveIntegerField(
        default=0, help_text="The fencing token: raised by each claim, checked by each write."
    )
    worker = models.CharField(max_length=100, blank=True)
    lease_expires_at = models.DateTimeField(null=True, blank=True)
    cancel_requested_by = models.CharField(
        max_length=150, blank=True, help_text="Whoever asked to stop it; empty when nobody did."
    )
    replies = models.JSONField(
        default=dict, blank=True, help_text="Answers to deliver with the next start, by request id."
    )

    last_sequence = models.PositiveIntegerField(default=0)
    rounds = models.PositiveIntegerField(default=0)
    model_calls = models.PositiveIntegerField(default=0)
    input_tokens = models.PositiveBigIntegerField(default=0)
    output_tokens = models.PositiveBigIntegerField(default=0)
    cost_usd = models.DecimalField(max_digits=14, decimal_places=6, default=Decimal(0))
    answer = models.TextField(blank=True)
    error = models.TextField(blank=True)
    created_at = models.DateTimeField(default=timezone.now, db_index=True)
    started_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["workflow", "number"]
        constraints = [
            models.UniqueConstraint(fields=["workflow", "number"], name="run_number_unique")
        ]
        indexes = [models.Index(fields=["status", "lease_expires_at"], name="run_claimable")]

    def __str__(self) -> str:
        return self.title

    def get_absolute_url(self) -> str:
        return reverse("run", args=[self.id])

    @property
    def title(self) -> str:
        """What tells this run from its siblings: a fork's instruction, or the task."""
        text = self.instruction or self.workflow.task
        line = text.strip().partition("\n")[0]
        return line if len(line) <= 80 else f"{line[:79]}…"

    @property
    def is_active(self) -> bool:
        return self.status in self.ACTIVE

    @property
    def is_cancel_requested(self) -> bool:
        return bool(self.cancel_requested_by)

    @property
    def is_resumable(self) -> bool:
        return self.status in self.RESUMABLE

    @property
    def duration(self) -> timedelta | None:
        if self.started_at is None:
            return None
        return (self.finished_at or timezone.now()) - self.started_at

    @staticmethod
    def claimable(now: datetime, *, abandoned_by: str = "") -> Q:
        """Runs that a worker may take: queued, or left by a worker that went silent.

        `abandoned_by` names a worker known to be dead, whose runs need not wait for the lease.
        """
        taken = Q(status=Run.Status.RUNNING)
        free = Q(lease_expires_at__lt=now) | Q(lease_expires_at=None)
        if abandoned_by:
            free |= Q(worker=abandoned_by)
        return Q(status=Run.Status.QUEUED) | (taken & free)

    def claim(self, *, worker: str, abandoned_by: str = "") -> bool:
        """Take the run for `worker`, raising the fencing token. False when another was faster."""
        now = timezone.now()
        won = Run.objects.filter(
            Run.claimable(now, abandoned_by=abandoned_by), id=self.id, attempt=self.attempt
        ).update(
            status=Run.Status.RUNNING,
            attempt=self.attempt + 1,
            worker=worker,
            lease_expires_at=now + timedelta(seconds=settings.LEASE_SECONDS),
            started_at=Coalesce("started_at", now),
            finished_at=None,
            error="",
        )
        if won:
            # Not the whole row: that would forget the workflow, which the runner reads off-thread.
            self.refresh_from_db(fields=["status", "attempt", "worker", "replies", "started_at"])
        return won == 1


class Event(models.Model):
    """One thing that happened in a run: append-only, numbered by `sequence` without gaps."""

    run = models.ForeignKey(Run, on_delete=models.PROTECT, related_name="events")
    sequence = models.PositiveIntegerField()
    kind = models.CharField(max_length=20, choices=[(kind.value, kind.value) for kind in EventKind])
    key = models.CharField(  # noqa: DJ001 - null, so that events without a key are not unique
        max_length=200,
        null=True,
        help_text="Names what happened: an attempt that repeats a superstep adds nothing twice.",
    )
    round = models.PositiveIntegerField(default=0)
    agent = models.CharField(max_length=100, blank=True)
    checkpoint_id = models.UUIDField(null=True, blank=True)
    data = models.JSONField(default=dict)
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering = ["run", "sequence"]
        constraints = [
            models.UniqueConstraint(fields=["run", "sequence"], name="event_sequence_unique"),
            models.UniqueConstraint(fields=["run", "key"], name="event_key_unique"),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.sequence}"


class ModelCall(models.Model):
    """One finished request to a model: its cost, and its answer, so that no crash pays it again."""

    run = models.ForeignKey(Run, on_delete=models.PROTECT, related_name="calls")
    superstep = models.PositiveIntegerField()
    agent = models.CharField(max_length=100)
    request_hash = models.CharField(max_length=64)
    ordinal = models.PositiveIntegerField(
        help_text="The n-th identical request of this agent in this superstep, from 0."
    )
    attempt = models.PositiveIntegerField()
    model = models.CharField(max_length=200, blank=True)
    input_tokens = models.PositiveIntegerField(default=0)
    output_tokens = models.PositiveIntegerField(default=0)
    cost_usd = models.DecimalField(max_digits=14, decimal_places=6, null=True)
    duration_ms = models.PositiveIntegerField(default=0)
    response = models.JSONField()
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering = ["run", "id"]
        constraints = [
            models.UniqueConstraint(
                fields=["run", "superstep", "agent", "request_hash", "ordinal"],
                name="model_call_unique",
            )
        ]

    def __str__(self) -> str:
        return f"{self.agent} in superstep {self.superstep}"


class Approval(models.Model):
    """A person's answer that a run waits for: a plan, or a tool call with its exact arguments."""

    class Subject(models.TextChoices):
        PLAN = "plan", "Plan"
        TOOL_CALL = "tool_call", "Tool call"

    class Decision(models.TextChoices):
        APPROVE = "approve", "Approve"
        REVISE = "revise", "Revise"  # a plan, with words
        REJECT = "reject", "Reject"  # a tool call

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    run = models.ForeignKey(Run, on_delete=models.PROTECT, related_name="approvals")
    request_id = models.CharField(max_length=100)
    subject = models.CharField(max_length=10, choices=Subject)
    agent = models.CharField(max_length=100, blank=True)
    text = models.TextField(blank=True)
    arguments = models.JSONField(default=dict, blank=True)
    digest = models.CharField(max_length=64, help_text="SHA-256 of exactly what is approved.")
    decision = models.CharField(max_length=10, blank=True, choices=Decision)
    comment = models.TextField(blank=True)
    answered_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )
    created_at = models.DateTimeField(default=timezone.now)
    answered_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-created_at"]
        constraints = [
            models.UniqueConstraint(fields=["run", "request_id"], name="approval_request_unique")
        ]

    def __str__(self) -> str:
        return f"{self.get_subject_display()} for {self.agent or 'manager'}"


class Attachment(models.Model):
    """A file given with the task. Its bytes lie in the attachment folder under their SHA-256."""

    class Kind(models.TextChoices):
        TABLE = "table", "Table"  # CSV, TSV, JSON, JSON Lines, Parquet, XLSX: read with SQL
        TEXT = "text", "Text"  # text, Markdown, PDF text: searched and read

    workflow = models.ForeignKey(Workflow, on_delete=models.PROTECT, related_name="attachments")
    name = models.CharField(max_length=255)
    kind = models.CharField(max_length=10, choices=Kind)
    sha256 = models.CharField(max_length=64)
    size_bytes = models.PositiveBigIntegerField()
    summary = models.JSONField(
        default=dict,
        blank=True,
        help_text="Tables with columns and row counts, or characters of text.",
    )
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering = ["workflow", "name"]
        constraints = [
            models.UniqueConstraint(fields=["workflow", "name"], name="attachment_name_unique")
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def path(self) -> str:
        return str(settings.ATTACHMENT_DIR / self.sha256[:2] / self.sha256)


class LoginLink(models.Model):
    """A one-time way in for the first admin. Only the token's SHA-256 is kept."""

    digest = models.CharField(max_length=64, unique=True)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+")
    expires_at = models.DateTimeField()
    used_at = models.DateTimeField(null=True, blank=True)
    created_at = models.DateTimeField(default=timezone.now)

    def __str__(self) -> str:
        return f"Login link for {self.user}"

    @classmethod
    def issue(cls, user: Any) -> str:
        """Return a fresh token for `user`; earlier unused links of theirs stop working."""
        token = secrets.token_urlsafe(32)
        cls.objects.filter(user=user, used_at=None).delete()
        cls.objects.create(
            digest=cls.digest_of(token),
            user=user,
            expires_at=timezone.now() + timedelta(hours=settings.LOGIN_LINK_HOURS),
        )
        return token

    @classmethod
    def consume(cls, token: str) -> LoginLink | None:
        """Use up the link and return it, or None when it is unknown, used or expired."""
        now = timezone.now()
        digest = cls.digest_of(token)
        won = cls.objects.filter(digest=digest, used_at=None, expires_at__gt=now).update(
            used_at=now
        )
        return cls.objects.select_related("user").get(digest=digest) if won else None

    @staticmethod
    def digest_of(token: str) -> str:
        return hashlib.sha256(token.encode()).hexdigest()

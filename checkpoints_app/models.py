from __future__ import annotations

import uuid

from django.conf import settings
from django.db import models
from django.utils import timezone


class Checkpoint(models.Model):
    """The whole state of a run at a superstep boundary: immutable, with one parent.

    The row is the index entry; the state itself lies in chunks that `manifest` leads to.
    """

    class Source(models.TextChoices):
        INPUT = "input", "Input"  # the entry, before anything ran
        LOOP = "loop", "Loop"  # the end of a superstep
        FORK = "fork", "Fork"  # derived from another checkpoint with a new instruction
        IMPORT = "import", "Import"  # came in a bundle

    class Phase(models.TextChoices):
        ENTRY = "entry", "Entry"  # the task is there, nothing ran
        MANAGER_DECIDED = "manager_decided", "Manager decided"  # an agent is about to be asked
        AGENT_REPLIED = "agent_replied", "Agent replied"  # the manager is about to read the reply
        AWAITING_HUMAN = (
            "awaiting_human",
            "Awaiting a person",
        )  # a plan or a tool call is in question
        ANSWERED = "answered", "Answered"  # the person's answer is there, nothing followed yet
        FINAL = "final", "Final"  # the run has its answer, or reached a limit
        RUNNING = "running", "Running"  # anything else with messages under way
        IDLE = "idle", "Idle"  # anything else with none

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    run_id = models.CharField(max_length=64, help_text="The run, known here by its id alone.")
    position = models.PositiveIntegerField(help_text="Order within the run, from 0.")
    # Without a constraint: an ancestor may expire or stay behind on export, and the lineage of what
    # is kept must not be rewritten for it. `parent_id` may name a checkpoint that is not here.
    parent = models.ForeignKey(
        "self",
        null=True,
        blank=True,
        on_delete=models.DO_NOTHING,
        db_constraint=False,
        related_name="children",
    )
    source = models.CharField(max_length=10, choices=Source)
    phase = models.CharField(max_length=20, choices=Phase)
    superstep = models.PositiveIntegerField(
        help_text="The engine's count. Forks start again from 0, so it orders nothing."
    )
    round = models.PositiveIntegerField(
        default=0, help_text="The round it belongs to; 0 before the first decision."
    )
    agent = models.CharField(
        max_length=100, blank=True, help_text="Who replied, is about to be asked, or waits."
    )
    workflow_name = models.CharField(max_length=200)
    manifest = models.BinaryField(help_text="Envelope byte, then the top of the state, compressed.")
    digest = models.BinaryField(
        max_length=32, help_text="SHA-256 of the manifest: equal digests, equal states."
    )
    size_bytes = models.PositiveBigIntegerField(
        help_text="The whole state, neither shared nor compressed."
    )
    new_bytes = models.PositiveBigIntegerField(help_text="What this save added to the store.")
    created_at = models.DateTimeField(default=timezone.now)

    # What people and the runner say about it. The state itself never changes; these may.
    backend = models.CharField(
        max_length=500,
        default="database",
        help_text="Where its chunks lie: an address that `backends.at` reads.",
    )
    workflow = models.CharField(
        max_length=64, blank=True, db_index=True, help_text="The tree of runs that it belongs to."
    )
    status = models.CharField(max_length=20, blank=True, help_text="The run's, when it was saved.")
    team = models.CharField(max_length=100, blank=True)
    cost_usd = models.DecimalField(
        max_digits=14, decimal_places=6, default=0, help_text="Spent along the line up to here."
    )
    name = models.CharField(max_length=200, blank=True)
    note = models.TextField(blank=True)
    tags = models.JSONField(default=list, blank=True, help_text="Sorted, each once.")
    is_pinned = models.BooleanField(default=False, help_text="Kept by every retention.")
    is_read_only = models.BooleanField(
        default=False, help_text="Imported under a foreign signature: shown, not run."
    )

    class Meta:
        ordering = ["run_id", "position"]
        constraints = [
            models.UniqueConstraint(
                fields=["run_id", "position"], name="checkpoint_position_unique"
            )
        ]
        # Each ends like the first: whatever is filtered by, a page of the newest is read in order.
        indexes = [
            models.Index(fields=["-created_at", "-id"], name="checkpoint_newest"),
            models.Index(fields=["workflow", "-created_at", "-id"], name="checkpoint_by_workflow"),
            models.Index(fields=["status", "-created_at", "-id"], name="checkpoint_by_status"),
            models.Index(fields=["agent", "-created_at", "-id"], name="checkpoint_by_agent"),
            models.Index(fields=["team", "-created_at", "-id"], name="checkpoint_by_team"),
            models.Index(
                fields=["-created_at", "-id"],
                condition=models.Q(is_pinned=True),
                name="checkpoint_pinned",
            ),
        ]

    def __str__(self) -> str:
        return str(self.id)[:8]


class Chunk(models.Model):
    """A piece of state, stored once under the hash of its content. `chunks.py` has the format."""

    digest = models.BinaryField(primary_key=True, max_length=32)
    data = models.BinaryField(help_text="Envelope byte, then the content, compressed.")

    def __str__(self) -> str:
        return bytes(self.digest).hex()


class MessageText(models.Model):
    """A message as the search sees it, at the first kept checkpoint of the line that holds it.

    `fulltext.py` has the index over it, which only its migration knows: on SQLite a virtual table
    kept up by triggers, on PostgreSQL a generated column. A later migration that rebuilds this
    table on SQLite must make the triggers again.
    """

    checkpoint = models.ForeignKey(
        Checkpoint, on_delete=models.DB_CASCADE, related_name="message_texts"
    )
    author = models.CharField(max_length=100)
    text = models.TextField()

    def __str__(self) -> str:
        return f"{self.author}: {self.text[:40]}"


class MessageWords(models.Model):
    """SQLite's word index over `MessageText`: a virtual table, which gives its rows in order."""

    message = models.OneToOneField(
        MessageText,
        primary_key=True,
        db_column="rowid",
        on_delete=models.DO_NOTHING,
        related_name="+",
    )

    class Meta:
        managed = False
        db_table = "checkpoints_app_messagetext_words"

    def __str__(self) -> str:
        return str(self.pk)


class AuditEvent(models.Model):
    """Who did what, on what, with which words, when and from where. Only ever added to."""

    class Origin(models.TextChoices):
        WEB = "web", "Web page"
        TERMINAL = "terminal", "Terminal"
        SYSTEM = "system", "The system itself"

    actor = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )
    actor_name = models.CharField(max_length=150, help_text="As it was then; outlives the account.")
    verb = models.CharField(max_length=50, db_index=True)
    target_type = models.CharField(max_length=50, blank=True)
    target_id = models.CharField(max_length=64, blank=True, db_index=True)
    instruction = models.TextField(blank=True)
    details = models.JSONField(default=dict, blank=True)
    origin = models.CharField(max_length=10, choices=Origin)
    address = models.GenericIPAddressField(null=True, blank=True)
    created_at = models.DateTimeField(default=timezone.now, db_index=True)

    class Meta:
        ordering = ["-created_at", "-id"]

    def __str__(self) -> str:
        return f"{self.actor_name} {self.verb} {self.target_id}"

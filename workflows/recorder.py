"""The pen of the worker that holds a run: every row it writes is fenced, numbered and announced.

Row before ring: watchers are told after the commit, and read the truth from the database.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import F
from django.utils import timezone

from checkpoints_app.models import Checkpoint

from . import live
from .events import FINAL_KINDS, EventKind, clean
from .models import Approval, Event, ModelCall, Run


class Fenced(Exception):
    """Another worker took the run over. This one must stop writing at once."""


@dataclass(frozen=True, kw_only=True)
class CallKey:
    """What makes a model call the same call when a superstep is repeated after a crash."""

    superstep: int
    agent: str
    request_hash: str
    ordinal: int

    def __str__(self) -> str:
        return f"{self.superstep}:{self.agent}:{self.request_hash[:16]}:{self.ordinal}"


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What one model call took. `cost_usd` is None when the model's price is not known."""

    model: str
    input_tokens: int
    output_tokens: int
    cost_usd: Decimal | None
    duration_ms: int


class Recorder:
    """Writes one run's events, journal and state for the holder of `attempt`.

    Methods block on the database, so call them off the event loop. Each is one transaction and
    raises `Fenced` when `attempt` is no longer the run's.
    """

    def __init__(self, run_id: UUID, attempt: int) -> None:
        self.run_id = run_id
        self.attempt = attempt
        self.round = 0

    def append(
        self,
        kind: EventKind,
        *,
        key: str | None = None,
        agent: str = "",
        checkpoint_id: UUID | None = None,
        changes: dict[str, Any] | None = None,
        **data: Any,
    ) -> bool:
        """Add an event and make `changes` to the run's row with it.

        Returns False, adding nothing, when an event of that `key` is there already: an earlier
        attempt got so far before it was lost.
        """
        with transaction.atomic():
            self._hold(**(changes or {}))
            if key and Event.objects.filter(run_id=self.run_id, key=key).exists():
                return False
            add_event(
                self.run_id,
                kind,
                key=key,
                round=self.round,
                agent=agent,
                checkpoint_id=checkpoint_id,
                **data,
            )
        return True

    def renew(self, **changes: Any) -> None:
        """Change the run's own row without an event."""
        with transaction.atomic():
            self._hold(**changes)

    def start_round(self, number: int) -> None:
        """Count the events that follow to round `number`."""
        self.round = number
        self.renew(rounds=number)

    def finished_call(self, key: CallKey) -> dict[str, Any] | None:
        """The journalled response to `key`, or None when that call was never finished."""
        call = ModelCall.objects.filter(run_id=self.run_id, **vars(key)).only("response").first()
        return call.response if call else None

    def answer_told(self) -> dict[str, Any] | None:
        """The data of the run's newest answer, or None when it has given none."""
        answers = Event.objects.filter(run_id=self.run_id, kind=EventKind.ANSWER)
        return answers.order_by("-sequence").values_list("data", flat=True).first()

    def record_call(self, key: CallKey, usage: Usage, response: dict[str, Any]) -> None:
        """Journal a finished call, count its cost and tell of it, all or nothing."""
        with transaction.atomic():
            self._hold(
                model_calls=F("model_calls") + 1,
                input_tokens=F("input_tokens") + usage.input_tokens,
                output_tokens=F("output_tokens") + usage.output_tokens,
                cost_usd=F("cost_usd") + (usage.cost_usd or Decimal(0)),
            )
            ModelCall.objects.create(
                run_id=self.run_id,
                attempt=self.attempt,
                response=response,
                **vars(key),
                **vars(usage),
            )
            add_event(
                self.run_id,
                EventKind.MODEL_CALL,
                key=f"model_call:{key}",
                round=self.round,
                agent=key.agent,
                model=usage.model,
                input_tokens=usage.input_tokens,
                output_tokens=usage.output_tokens,
                cost_usd=None if usage.cost_usd is None else str(usage.cost_usd),
                duration_ms=usage.duration_ms,
            )

    def wait_for(self, approvals: list[Approval]) -> None:
        """Put the run to rest until people have answered. It holds no worker meanwhile.

        A run that somebody asked to cancel in the meantime is cancelled instead.
        """
        with transaction.atomic():
            self._hold()
            if by := self.cancel_requested_by():
                self.finish(Run.Status.CANCELLED, EventKind.CANCELLED, by=by)
                return
            self._hold(status=Run.Status.WAITING, worker="", lease_expires_at=None)
            self._mark_newest_checkpoint(Run.Status.WAITING)
            for approval in approvals:
                known, _ = Approval.objects.get_or_create(
                    run_id=self.run_id,
                    request_id=approval.request_id,
                    defaults={
                        "subject": approval.subject,
                        "agent": approval.agent,
                        "text": approval.text,
                        "arguments": approval.arguments,
                        "digest": approval.digest,
                    },
                )
                # Also for a question asked before: whoever resumed the run wants to see it again.
                if not known.decision:
                    add_event(
                        self.run_id,
                        EventKind.WAITING,
                        round=self.round,
                        agent=known.agent,
                        approval=str(known.id),
                        subject=known.subject,
                        text=known.text,
                        arguments=known.arguments,
                        digest=known.digest,
                    )

    def finish(self, status: Run.Status, kind: EventKind, *, error: str = "", **data: Any) -> None:
        """Set the run's final status, once, and say so. `error` also goes into the run's row."""
        if error:
            error = data["error"] = clean({"error": error})["error"]
        with transaction.atomic():
            self.append(
                kind,
                changes={
                    "status": status,
                    "error": error,
                    "finished_at": timezone.now(),
                    "worker": "",
                    "lease_expires_at": None,
                    "cancel_requested_by": "",
                },
                **data,
            )
            self._mark_newest_checkpoint(status)

    def cancel_requested_by(self) -> str:
        """Who asked to cancel the run; empty when nobody did."""
        return Run.objects.values_list("cancel_requested_by", flat=True).get(id=self.run_id)

    def starts_without_progress(self) -> int:
        """How often the run was taken up since it last saved a checkpoint or came to rest."""
        events = Event.objects.filter(run_id=self.run_id)
        progress = events.filter(kind__in=[EventKind.CHECKPOINT, *FINAL_KINDS]).order_by("sequence")
        since = progress.values_list("sequence", flat=True).last() or 0
        return events.filter(kind=EventKind.STARTED, sequence__gt=since).count()

    def hand_on(self, reason: str) -> None:
        """Give the run back to the queue: another attempt goes on from its last checkpoint."""
        self.append(
            EventKind.RETRYING,
            changes={"status": Run.Status.QUEUED, "worker": "", "lease_expires_at": None},
            reason=reason,
        )

    def _mark_newest_checkpoint(self, status: Run.Status) -> None:
        """So that checkpoints can be found by how the run came to rest there."""
        newest = Checkpoint.objects.filter(run_id=str(self.run_id)).order_by("-position")
        Checkpoint.objects.filter(id__in=newest.values("id")[:1]).update(status=status)

    def _hold(self, **changes: Any) -> None:
        """Change the run's row if this attempt still owns it, and lock the row until commit."""
        changes.setdefault("attempt", self.attempt)
        held = Run.objects.filter(
            id=self.run_id, attempt=self.attempt, status=Run.Status.RUNNING
        ).update(**changes)
        if not held:
            raise Fenced(f"Attempt {self.attempt} no longer owns run {self.run_id}.")


def add_event(
    run_id: UUID,
    kind: EventKind,
    *,
    key: str | None = None,
    round: int = 0,
    agent: str = "",
    checkpoint_id: UUID | None = None,
    **data: Any,
) -> Event:
    """Add the run's next event and ring after the commit. Call it inside a transaction.

    The counter's UPDATE locks the run's row, so numbers have no gaps and no doubles.
    """
    Run.objects.filter(id=run_id).update(last_sequence=F("last_sequence") + 1)
    event = Event.objects.create(
        run_id=run_id,
        sequence=Run.objects.values_list("last_sequence", flat=True).get(id=run_id),
        kind=kind,
        key=key,
        round=round,
        agent=agent,
        checkpoint_id=checkpoint_id,
        data=clean(data),
    )
    transaction.on_commit(partial(live.ring, run_id))
    return event

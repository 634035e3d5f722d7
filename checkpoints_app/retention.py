"""What may go, and what never does: deleting old checkpoints, and sweeping chunks nothing needs.

A checkpoint is *held*, and no policy deletes it, when it is pinned, is the newest of its run, came
in under a foreign signature, is the parent of another run's checkpoint (a fork stands on it) or of
one in mid-turn (which is forked from where the turn began), or when a registered function says so.

No sweep takes a chunk that a save relies on, whatever runs beside it:

1. A save looks for its chunks, puts the missing ones and commits its row in one transaction, under
   the shared side of the lock in `locks.py`. What it does not look for are the chunks of the run's
   newest checkpoint, whose row it reads under the lock.
2. A sweep deletes in transactions of their own, under the exclusive side. Inside each, before
   deleting, it walks every row that it has not walked yet.
3. So at the moment of deleting, a save has committed, and its row was walked; or it has failed, and
   has no row; or it has not looked yet, and will find the chunk missing and put it again.

Rows and chunks never change, so what was walked once stays true; a row deleted meanwhile keeps its
chunks until the next sweep. Nothing depends on clocks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from itertools import batched, chain, islice
from typing import Any, Protocol
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import Exists, OuterRef, Q, QuerySet, Sum
from django.db.models.functions import Length
from django.utils import timezone

from . import audit, backends, locks, store
from .audit import Actor
from .backends.base import Backend
from .disk_set import DiskSet
from .errors import CheckpointError
from .models import AuditEvent, Checkpoint
from .walk import Walk

type Holds = Callable[[Collection[UUID]], Collection[UUID]]
type Policies = Callable[[], Iterable[tuple[str, Policy]]]

ROWS = 500
"""Checkpoints handled at a time."""
CHUNKS = 5_000
"""Chunks deleted under one lock."""
NAMED = 1_000
"""Checkpoints that a report names. The audit trail has all of them."""
MID_TURN = (Checkpoint.Phase.ANSWERED, Checkpoint.Phase.AWAITING_HUMAN)

_holds: list[Holds] = []
_policies: list[Policies] = []


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How long checkpoints are kept. None sets no limit; held ones are kept beyond any."""

    max_age_days: int | None = None
    max_count: int | None = None
    """In each run, the newest ones."""
    max_total_bytes: int | None = None
    """Of all checkpoints that the policy applies to, as stored, what they share counted once."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and value < 1:
                raise CheckpointError(f"{name} is {value}. Set it to 1 or more, or leave it out.")

    @property
    def limits(self) -> dict[str, int]:
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """What a policy looks at."""

    id: UUID
    run_id: str
    created_at: datetime
    is_held: bool


@dataclass(frozen=True, kw_only=True)
class Swept:
    """Chunks that nothing referred to."""

    chunks: int = 0
    freed_bytes: int = 0
    skipped: Mapping[str, str] = field(default_factory=dict)
    """Storage types that were left alone, and why."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What went, or would go."""

    checkpoints: int
    kept: int
    named: tuple[dict[str, Any], ...]
    """The first NAMED of them, oldest first: id, run, position, round, created_at."""
    swept: Swept
    freed_bytes: int
    """Index rows and chunks together, leftovers of earlier times included."""


class _HasCleanUp(Protocol):
    @property
    def cleanup_after_days(self) -> int: ...


def register_holds(holds: Holds) -> Holds:
    """Let `holds` say which of some checkpoints must stay, since something outside needs them.

    It is asked inside the transaction that would delete them, their rows locked: whoever begins to
    need a checkpoint locks its row too, and looks whether it is still there.
    """
    _holds.append(holds)
    return holds


def register_policies(policies: Policies) -> Policies:
    """Let `policies` name workflows and their own policies for the daily clean-up."""
    _policies.append(policies)
    return policies


def policy_of(checkpointing: _HasCleanUp) -> Policy:
    """The policy in a team file's section `checkpointing`. 0 days: no limit."""
    return Policy(max_age_days=checkpointing.cleanup_after_days or None)


def site_policy() -> Policy:
    """The policy for all checkpoints, from the setting CHECKPOINT_RETENTION."""
    return Policy(**getattr(settings, "CHECKPOINT_RETENTION", {}))


def clean_up(
    *,
    actor: Actor = audit.SYSTEM,
    dry_run: bool = False,
    is_stopping: Callable[[], bool] = bool,
) -> Report:
    """What runs about once a day: the site's policy for all, and each workflow's own."""
    return prune(
        site_policy(),
        by_workflow=chain.from_iterable(policies() for policies in _policies),
        actor=actor,
        dry_run=dry_run,
        is_stopping=is_stopping,
    )


def prune(
    policy: Policy,
    *,
    by_workflow: Iterable[tuple[str, Policy]] = (),
    dry_run: bool = False,
    actor: Actor,
    is_stopping: Callable[[], bool] = bool,
) -> Report:
    """Delete what `policy` lets go of anywhere, and what a workflow's own policy lets go of in it.

    Then sweeps the chunks that nothing needs any more. Deletes in batches, each audited in its own
    transaction, and looks again at what is held inside it: what was pinned or forked meanwhile
    stays. Ends early, at a batch, when `is_stopping`. With `dry_run` nothing changes. Memory does
    not grow with the number of checkpoints.
    """
    now = timezone.now()
    with DiskSet() as doomed:
        places = _places()
        for workflow, own in by_workflow:
            _doom(doomed, _Kept(doomed, workflow=workflow), own, now)
        _doom(doomed, _Kept(doomed), policy, now)
        named = tuple(_named(islice(doomed.newest_first(), NAMED)))
        if dry_run:
            count, freed_bytes = len(doomed), _manifest_bytes(doomed)
            swept = _sweep(places, without=doomed, dry_run=True, is_stopping=is_stopping)
        else:
            count, freed_bytes = _delete_all(doomed, policy, actor, is_stopping)
            swept = _sweep(places, actor=actor, is_stopping=is_stopping)
    return Report(
        checkpoints=count,
        kept=Checkpoint.objects.count() - (count if dry_run else 0),
        named=named,
        swept=swept,
        freed_bytes=freed_bytes + swept.freed_bytes,
    )


def sweep(*, actor: Actor = audit.SYSTEM, dry_run: bool = False) -> Swept:
    """Delete the chunks that no checkpoint refers to. Safe beside running writers.

    Raises StoreBusy when saves leave it no moment.
    """
    return _sweep(_places(), actor=actor, dry_run=dry_run)


def expired(
    rows: Iterable[Row],
    policy: Policy,
    now: datetime,
    *,
    weigh: Callable[[Row], int] = lambda row: 0,
) -> Iterator[UUID]:
    """The ids that `policy` lets go of, newest first. Held rows never are.

    `rows` come newest first, and can be iterated several times. For `max_total_bytes`, `weigh`
    tells what a row adds to those it was asked for before: held ones first, then newest first.
    """
    room_bytes = policy.max_total_bytes
    if room_bytes is not None:
        room_bytes -= sum(weigh(row) for row in rows if row.is_held)
    oldest = None if policy.max_age_days is None else now - timedelta(days=policy.max_age_days)
    counts: defaultdict[str, int] = defaultdict(int)
    for row in rows:
        counts[row.run_id] += 1
        if row.is_held:
            continue
        is_old = oldest is not None and row.created_at < oldest
        if is_old or (policy.max_count is not None and counts[row.run_id] > policy.max_count):
            yield row.id
        elif room_bytes is not None:
            # Once it is too much, all that is older goes: no holes for the sake of a few bytes.
            room_bytes = room_bytes - weigh(row) if room_bytes >= 0 else room_bytes
            if room_bytes < 0:
                yield row.id


class _Kept:
    """The rows of all checkpoints, or of one workflow, that are not doomed yet; newest first."""

    def __init__(self, doomed: DiskSet, *, workflow: str | None = None) -> None:
        self.doomed = doomed
        everything = Checkpoint.objects.all()
        self.scope = everything if workflow is None else everything.filter(workflow=workflow)

    def __iter__(self) -> Iterator[Row]:
        rows = _with_holds(self.scope).order_by("-created_at", "-id")
        found = rows.values_list("id", "run_id", "created_at", "is_held").iterator(ROWS)
        for batch in batched(found, ROWS):
            free = set(self.doomed.missing([row[0].bytes for row in batch]))
            held = _held_outside([id for id, _, _, is_held in batch if not is_held])
            for id, run_id, created_at, is_held in batch:
                if id.bytes in free:
                    is_held = is_held or id in held
                    yield Row(id=id, run_id=run_id, created_at=created_at, is_held=is_held)


def _with_holds(
    rows: QuerySet[Checkpoint],
) -> QuerySet[Any, Any]:  # annotated, which no type can say
    newer = Checkpoint.objects.filter(run_id=OuterRef("run_id"), position__gt=OuterRef("position"))
    standing_on_it = Checkpoint.objects.filter(parent_id=OuterRef("pk")).filter(
        ~Q(run_id=OuterRef("run_id")) | Q(phase__in=MID_TURN)
    )
    return rows.annotate(
        is_held=Q(is_pinned=True) | Q(is_read_only=True) | ~Exists(newer) | Exists(standing_on_it)
    )


def _held_outside(ids: Collection[UUID]) -> set[UUID]:
    return {id for holds in _holds for id in holds(ids)} if ids else set()


def _doom(doomed: DiskSet, kept: _Kept, policy: Policy, now: datetime) -> None:
    if not policy.limits:
        return
    with Walk() as walk:
        gone = expired(
            kept, policy, now, weigh=lambda row: walk.add(Checkpoint.objects.filter(pk=row.id))
        )
        for batch in batched(gone, ROWS):
            doomed.add([id.bytes for id in batch])


def _delete_all(
    doomed: DiskSet, policy: Policy, actor: Actor, is_stopping: Callable[[], bool]
) -> tuple[int, int]:
    """How many went, and the bytes of their rows. Oldest first, so that what is left is whole."""
    count = freed_bytes = 0
    for batch in batched(doomed.newest_first(), ROWS):
        if is_stopping():
            break
        deleted, size_bytes = _delete([UUID(bytes=id) for id in batch], policy, actor)
        count += deleted
        freed_bytes += size_bytes
    return count, freed_bytes


def _delete(ids: list[UUID], policy: Policy, actor: Actor) -> tuple[int, int]:
    with transaction.atomic():
        rows = Checkpoint.objects.filter(pk__in=ids)
        locked = list(rows.select_for_update().order_by("pk").values_list("pk", flat=True))
        # Asked only now, in a query of its own: whoever needed one of them first has committed.
        free = set(_with_holds(rows).filter(is_held=False).values_list("pk", flat=True))
        gone = sorted(free - _held_outside(locked))
        size_bytes = rows.filter(pk__in=gone).aggregate(sum=Sum(Length("manifest")))["sum"] or 0
        if gone:
            store.delete(gone)
            audit.record(
                actor,
                "checkpoints.prune",
                policy=policy.limits,
                count=len(gone),
                ids=[str(id) for id in gone],
            )
    return len(gone), size_bytes


def _named(ids: Iterator[bytes]) -> Iterator[dict[str, Any]]:
    for batch in batched(ids, ROWS):
        wanted = [UUID(bytes=id) for id in batch]
        fields = ("id", "run_id", "position", "round", "created_at")
        found = {row["id"]: row for row in Checkpoint.objects.filter(pk__in=wanted).values(*fields)}
        for id in wanted:
            if id in found:
                row = found[id]
                yield {**row, "id": str(id), "created_at": row["created_at"].isoformat()}


def _manifest_bytes(ids: DiskSet) -> int:
    total = 0
    for batch in batched(ids.newest_first(), ROWS):
        rows = Checkpoint.objects.filter(pk__in=[UUID(bytes=id) for id in batch])
        total += rows.aggregate(sum=Sum(Length("manifest")))["sum"] or 0
    return total


def _places() -> dict[str, list[Backend]]:
    """The backends in use, and those that checkpoints were moved away from, by storage type.

    No others: a place that only the settings name may belong to another site's database.
    """
    addresses = Checkpoint.objects.order_by().values_list("backend", flat=True).distinct()
    copies = AuditEvent.objects.filter(verb="checkpoints.copy").order_by()
    left = copies.values_list("details__source", flat=True).distinct()
    places: defaultdict[str, list[Backend]] = defaultdict(list)
    for address in {backends.DATABASE, *addresses, *left}:
        found = places[address.partition(":")[0]]
        if (backend := backends.at(address)) not in found:
            found.append(backend)
    return dict(places)


def _sweep(
    places: Mapping[str, list[Backend]],
    *,
    actor: Actor = audit.SYSTEM,
    without: DiskSet | None = None,
    dry_run: bool = False,
    is_stopping: Callable[[], bool] = bool,
) -> Swept:
    count = freed_bytes = 0
    skipped = {}
    for storage_type, found in places.items():
        sweeper = _Sweeper(storage_type, actor, without=without, dry_run=dry_run)
        try:
            for backend in found:
                sweeper.sweep(backend, is_stopping)
        except CheckpointError as error:
            skipped[storage_type] = str(error)
        count += sweeper.count
        freed_bytes += sweeper.freed_bytes
    return Swept(chunks=count, freed_bytes=freed_bytes, skipped=skipped)


class _Sweeper:
    """Sweeps the places of one storage type.

    Rows of the whole type are walked for each place, since two addresses may lead to one place.
    """

    def __init__(
        self, storage_type: str, actor: Actor, *, without: DiskSet | None, dry_run: bool
    ) -> None:
        self.storage_type = storage_type
        self.actor = actor
        self.without = without
        self.dry_run = dry_run
        self.count = self.freed_bytes = 0
        self.rows = Checkpoint.objects.filter(
            Q(backend=storage_type) | Q(backend__startswith=f"{storage_type}:")
        )

    def sweep(self, backend: Backend, is_stopping: Callable[[], bool]) -> None:
        with Walk() as walk, DiskSet() as candidates:
            walk.catch_up(self.rows, without=self.without)
            for batch in batched(backend.digests(), ROWS):
                candidates.add(walk.reached.missing(batch))
            for batch in batched(candidates.newest_first(), CHUNKS):
                if is_stopping():
                    return
                self._take(backend, walk, batch)

    def _take(self, backend: Backend, walk: Walk, candidates: Collection[bytes]) -> None:
        # Read before the lock, to hold it for a shorter time.
        sizes = {
            digest: len(data)
            for batch in batched(candidates, ROWS)
            for digest, data in backend.get(batch).items()
        }
        with nullcontext() if self.dry_run else locks.sweeping():
            walk.catch_up(self.rows, without=self.without)
            gone = walk.reached.missing(sizes)
            if gone and not self.dry_run:
                backend.delete(gone)
                audit.record(self.actor, "chunks.sweep", storage=self.storage_type, count=len(gone))
        self.count += len(gone)
        self.freed_bytes += sum(sizes[digest] for digest in gone)

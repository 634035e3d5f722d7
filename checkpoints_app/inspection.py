"""Whether everything kept can still be read, and what it takes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import batched
from typing import Any
from uuid import UUID

from django.db.models import Count, Max, Sum
from django.db.models.functions import Length

from . import backends, chunks, fulltext, search, store
from .backends.base import Backend, Usage
from .disk_set import DiskSet
from .errors import CheckpointCorrupt, CheckpointError
from .models import Checkpoint

BATCH = 500
MAX_NAMED = 100
"""Damaged checkpoints that are named. All are counted."""


@dataclass(frozen=True, kw_only=True)
class Damage:
    checkpoint_id: UUID
    reason: str


@dataclass(frozen=True, kw_only=True)
class Verification:
    checkpoints: int
    chunks: int
    """Those that the checkpoints need, each counted once for each backend."""
    missing: int
    corrupt: int
    """Chunks that are there, but fail their check or cannot be read."""
    damaged: int
    """Checkpoints that cannot be read, for these or other reasons."""
    named: tuple[Damage, ...]
    unreferenced: int | None
    """Chunks that no checkpoint needs; None when only some checkpoints were verified. Harmless:
    pruning sweeps them. Saves under way meanwhile make it inexact."""

    @property
    def is_ok(self) -> bool:
        return self.damaged == 0


def verify(checkpoint_ids: Collection[UUID | str] | None = None) -> Verification:
    """Read every chunk that the checkpoints need, all of them or the given ones, once each.

    Memory does not grow with their number; a temporary file holds the digests seen so far. Only
    when something is wrong are the checkpoints loaded one by one, to name those it concerns.
    Raises CheckpointNotFound for a given id that is not there.
    """

    def entries() -> Iterable[Checkpoint]:
        return search.oldest_first() if checkpoint_ids is None else map(store.entry_of, ids)

    ids = list(checkpoint_ids or ())
    with ExitStack() as stack:
        inspection = _Inspection(stack)
        for entry in entries():
            inspection.visit(entry)
        unreferenced = inspection.unreferenced() if checkpoint_ids is None else None
        # One that was pruned while it was read is not damaged: look at what is there now.
        damages = _damages(entries()) if inspection.is_suspicious else _Damages()
        return Verification(
            checkpoints=inspection.checkpoints,
            chunks=sum(map(len, inspection.seen.values())),
            missing=sum(inspection.missing.values()) if damages.count else 0,
            corrupt=inspection.corrupt if damages.count else 0,
            damaged=damages.count,
            named=tuple(damages.named),
            unreferenced=unreferenced,
        )


@dataclass
class _Inspection:
    stack: ExitStack
    checkpoints: int = 0
    corrupt: int = 0
    is_suspicious: bool = False
    seen: dict[str, DiskSet] = field(default_factory=dict)
    missing: dict[str, int] = field(default_factory=dict)

    def visit(self, entry: Checkpoint) -> None:
        self.checkpoints += 1
        try:
            backend = backends.at(entry.backend)
            manifest = chunks.verified(bytes(entry.digest), bytes(entry.manifest))
            wanted = chunks.manifest_references(manifest)
        except CheckpointError:
            self.is_suspicious = True
            return
        if entry.backend not in self.seen:
            self.seen[entry.backend] = self.stack.enter_context(DiskSet())
            self.missing[entry.backend] = 0
        while wanted:
            new = self.seen[entry.backend].add(wanted)
            wanted = set()
            for batch in batched(new, BATCH):
                wanted |= self.read(entry.backend, backend, batch)

    def read(self, address: str, backend: Backend, digests: tuple[bytes, ...]) -> set[bytes]:
        """Check some chunks, and return the digests that they refer to."""
        found = backend.get(digests)
        self.missing[address] += len(digests) - len(found)
        wanted: set[bytes] = set()
        for digest, stored in found.items():
            try:
                wanted |= chunks.references(chunks.verified(digest, stored))
            except CheckpointCorrupt:
                self.corrupt += 1
        self.is_suspicious |= len(found) < len(digests) or self.corrupt > 0
        return wanted

    def unreferenced(self) -> int:
        there = {address: len(seen) - self.missing[address] for address, seen in self.seen.items()}
        return sum(
            max(0, backends.at(address).usage().chunks - there.get(address, 0))
            for address in {backends.DATABASE, *there}
        )


@dataclass
class _Damages:
    count: int = 0
    named: list[Damage] = field(default_factory=list)


def _damages(entries: Iterable[Checkpoint]) -> _Damages:
    damages = _Damages()
    for entry in entries:
        try:
            store.load_entry(entry)
        except CheckpointError as error:
            if Checkpoint.objects.filter(pk=entry.pk).exists():
                damages.count += 1
                if len(damages.named) < MAX_NAMED:
                    damages.named.append(Damage(checkpoint_id=entry.pk, reason=str(error)))
    return damages


@dataclass(frozen=True, kw_only=True)
class Share:
    """A part of the checkpoints: those of one backend, workflow or run."""

    name: str
    checkpoints: int
    size_bytes: int
    """Their states, neither shared nor compressed."""
    new_bytes: int
    """What their saves added to the store."""


@dataclass(frozen=True, kw_only=True)
class Stats:
    checkpoints: int
    size_bytes: int
    stored_bytes: int
    """Chunks of all backends and manifests, without what a database adds around them."""
    backends: Mapping[str, Usage]
    search_index: Mapping[str, int]
    by_backend: tuple[Share, ...]
    by_workflow: tuple[Share, ...]
    by_run: tuple[Share, ...]

    @property
    def sharing_ratio(self) -> float | None:
        """How many times larger the states are than what is stored for them; None for no bytes."""
        return self.size_bytes / self.stored_bytes if self.stored_bytes else None


def stats(*, limit: int = 20) -> Stats:
    """What is kept, and for whom: the `limit` workflows and runs that added most, largest first."""
    total = Checkpoint.objects.aggregate(
        checkpoints=Count("pk"), size_bytes=Sum("size_bytes"), manifests=Sum(Length("manifest"))
    )
    addresses = Checkpoint.objects.order_by().values_list("backend", flat=True).distinct()
    usage = {address: backends.at(address).usage() for address in {backends.DATABASE, *addresses}}
    return Stats(
        checkpoints=total["checkpoints"],
        size_bytes=total["size_bytes"] or 0,
        stored_bytes=sum(part.size_bytes for part in usage.values()) + (total["manifests"] or 0),
        backends=dict(sorted(usage.items())),
        search_index=fulltext.size_bytes(),
        by_backend=_shares("backend", len(usage)),
        by_workflow=_shares("workflow", limit),
        by_run=_shares("run_id", limit),
    )


def _shares(field: str, limit: int) -> tuple[Share, ...]:
    rows: Any = Checkpoint.objects.order_by().values(field)
    rows = rows.annotate(
        checkpoints=Count("pk"),
        size=Sum("size_bytes"),
        new=Sum("new_bytes"),
        latest=Max("created_at"),
    ).order_by("-new", "-latest", field)
    return tuple(
        Share(
            name=row[field],
            checkpoints=row["checkpoints"],
            size_bytes=row["size"],
            new_bytes=row["new"],
        )
        for row in rows[:limit]
    )

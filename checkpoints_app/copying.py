"""Moving checkpoints from one backend to another, beside running writers and interruptible."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import batched, islice
from uuid import UUID

from . import audit, backends, chunks, locks
from .errors import BackendUnavailable, CheckpointCorrupt
from .models import Checkpoint

BATCH = 100
"""Checkpoints that move in one transaction."""
MAX_FAILURES = 50
"""Reasons for failures that are kept; all failures are counted."""


@dataclass(kw_only=True)
class Report:
    """What one run of `copy` did."""

    checkpoints: int = 0
    """Whose chunks are now at the target."""
    chunks: int = 0
    """Copied: the others were there already."""
    size_bytes: int = 0
    failed: int = 0
    """Checkpoints that stay where they were, since a chunk of theirs is missing or damaged."""
    failures: dict[UUID, str] = field(default_factory=dict)
    """The reasons, for the first MAX_FAILURES of them."""

    def add_failures(self, failures: Mapping[UUID, str]) -> None:
        self.failed += len(failures)
        room = MAX_FAILURES - len(self.failures)
        self.failures.update(islice(failures.items(), room))


def copy(source: str, target: str, *, actor: audit.Actor) -> Report:
    """Bring the chunks of all checkpoints at `source` to `target`, then let the rows name it.

    Both are addresses. Every chunk is read back from the target and verified before a row changes,
    and a row changes only when all its chunks are there, so a checkpoint loads at any moment. What
    was moved stays moved when it is interrupted; another call does the rest, and what running
    writers added. The source keeps its chunks, until a sweep finds that nothing refers to them.

    Raises BackendUnavailable when one of the two cannot be used.
    """
    if source == target:
        raise BackendUnavailable(f"{source} is named twice. Name two different backends.")
    if not backends.at(target).is_durable:
        raise BackendUnavailable(
            f"What lies in {target} is lost when the process ends. Choose another target."
        )
    copier = _Copier(source, target)
    for batch in batched(_ids_at(source), BATCH):
        copier.move(batch, actor)
    return copier.report


def _ids_at(address: str) -> Iterator[UUID]:
    """The checkpoints there, by id; those that move meanwhile are not missed, and none is twice."""
    rows = Checkpoint.objects.filter(backend=address).order_by("pk").values_list("pk", flat=True)
    last: UUID | None = None
    while page := list((rows if last is None else rows.filter(pk__gt=last))[:BATCH]):
        yield from page
        last = page[-1]


class _Copier:
    def __init__(self, source: str, target: str) -> None:
        self.source_address, self.target_address = source, target
        self.source, self.target = backends.at(source), backends.at(target)
        self.report = Report()

    def move(self, ids: Collection[UUID], actor: audit.Actor) -> None:
        """Copy what the checkpoints need, then move their rows in one transaction."""
        is_moved = False
        while not is_moved:  # again when a sweep took what no row at the target referred to yet
            digests: set[bytes] = set()
            failures = {entry.pk: self._copy_state(entry, digests) for entry in self._entries(ids)}
            whole = [id for id, failure in failures.items() if not failure]
            is_moved = self._move_rows(whole, digests, actor)
        self.report.add_failures({id: failure for id, failure in failures.items() if failure})

    def _move_rows(self, ids: list[UUID], digests: set[bytes], actor: audit.Actor) -> bool:
        with locks.saving():
            if self.target.missing(digests):
                return False
            rows = Checkpoint.objects.filter(pk__in=ids, backend=self.source_address)
            if moved := rows.update(backend=self.target_address):
                audit.record(
                    actor,
                    "checkpoints.copy",
                    moved_from=self.source_address,
                    moved_to=self.target_address,
                    checkpoints=moved,
                )
        self.report.checkpoints += moved
        return True

    def _entries(self, ids: Collection[UUID]) -> Iterator[Checkpoint]:
        rows = Checkpoint.objects.filter(pk__in=ids, backend=self.source_address)
        yield from rows.only("pk", "manifest", "digest")

    def _copy_state(self, entry: Checkpoint, digests: set[bytes]) -> str:
        """Copy what `entry` needs beyond `digests`, and add it to them. Returns why it can't be."""
        try:
            manifest = chunks.verified(bytes(entry.digest), bytes(entry.manifest))
            digests |= self._copy_tree(chunks.manifest_references(manifest), digests)
        except CheckpointCorrupt as error:
            return str(error)
        return ""

    def _copy_tree(self, roots: set[bytes], known: set[bytes]) -> set[bytes]:
        """Copy the chunks and all that they lead to, level by level, up to `known` ones."""
        copied: set[bytes] = set()
        wanted = roots - known
        while wanted:
            contents = self._copy_level(wanted)
            copied |= wanted
            referred = (chunks.references(content) for content in contents.values())
            wanted = set().union(*referred) - copied - known
        return copied

    def _copy_level(self, digests: set[bytes]) -> dict[bytes, bytes]:
        self._carry(self.target.missing(digests))
        return _verified(digests, self.target.get(digests), self.target_address)

    def _carry(self, digests: set[bytes]) -> None:
        if not digests:
            return
        stored = self.source.get(digests)
        _verified(digests, stored, self.source_address)
        self.target.put(stored)
        self.report.chunks += len(stored)
        self.report.size_bytes += sum(map(len, stored.values()))


def _verified(
    digests: set[bytes], stored: Mapping[bytes, bytes], address: str
) -> dict[bytes, bytes]:
    if missing := digests - stored.keys():
        raise CheckpointCorrupt(
            f"{len(missing)} chunks are missing in {address}, such as {min(missing).hex()[:16]}."
        )
    return {digest: chunks.verified(digest, data) for digest, data in stored.items()}

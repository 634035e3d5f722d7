"""Saving and loading checkpoints: the only code that touches the index and the chunks together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Set
from uuid import UUID

from django.db import IntegrityError, transaction

from . import chunks, codec
from .backends.base import Backend
from .backends.database import DatabaseBackend
from .chunks import Split
from .codec import JSON
from .errors import CheckpointConflict, CheckpointCorrupt, CheckpointNotFound
from .models import Checkpoint

type OnSave = Callable[[Checkpoint], None]

backend: Backend = DatabaseBackend()


def save(
    entry: Checkpoint,
    split: Split,
    *,
    known: Set[bytes] = frozenset(),
    on_save: OnSave | None = None,
) -> Checkpoint:
    """Write the state and its index entry, and return the entry as the run's newest checkpoint.

    `entry` is unsaved and names id, run, parent, source and phase; the store fills in the rest.
    `known` are digests that need not be looked for: those of a checkpoint that is still kept.

    1. Chunks that are not there yet, 2. the row, 3. `on_save(entry)`: one transaction, so whatever
    `on_save` raises leaves no row behind. Raises CheckpointConflict when another writer added to
    the run meanwhile, or when the id exists: checkpoints are never updated.
    """
    with transaction.atomic():
        new_bytes = _put_missing(split, known)
        entry.manifest = chunks.seal(split.manifest)
        entry.digest = split.digest
        entry.size_bytes = split.size_bytes
        entry.new_bytes = new_bytes + len(entry.manifest)
        entry.position = _next_position(entry.run_id)
        try:
            entry.save(force_insert=True)
        except IntegrityError as error:
            raise CheckpointConflict(
                f"Checkpoint {entry.pk} could not become number {entry.position} of run "
                f"{entry.run_id}: another writer was faster, or the id exists. "
                "Reload the run and try again."
            ) from error
        if on_save is not None:
            on_save(entry)
    return entry


def load(checkpoint_id: UUID | str) -> JSON:
    """Return the state as typed JSON, every chunk verified against its hash.

    Costs one query per 500 chunks and per level of the tree. Raises CheckpointNotFound if there is
    no such row, CheckpointCorrupt if a chunk is missing or fails its check.
    """
    return load_entry(entry_of(checkpoint_id))


def load_entry(entry: Checkpoint) -> JSON:
    """`load` for a row that is already at hand."""
    try:
        manifest = chunks.verified(bytes(entry.digest), bytes(entry.manifest))
        return chunks.join(manifest, _fetch)
    except CheckpointCorrupt as error:
        parent = f" Fork from its parent {entry.parent_id}." if entry.parent_id else ""
        raise CheckpointCorrupt(f"Checkpoint {entry.pk} cannot be read. {error}{parent}") from error


def state(checkpoint_id: UUID | str) -> JSON:
    """Return the state as ordinary JSON for pages: no object of the engine is built.

    Raises as `load` does.
    """
    return codec.plain(load(checkpoint_id))


def entry_of(checkpoint_id: UUID | str) -> Checkpoint:
    """The index row. Raises CheckpointNotFound, for an id that is no UUID too."""
    try:
        return Checkpoint.objects.get(pk=UUID(str(checkpoint_id)))
    except (Checkpoint.DoesNotExist, ValueError) as error:
        raise CheckpointNotFound(
            f"There is no checkpoint {str(checkpoint_id)[:64]!r}. It may have expired: choose "
            "another one of the same run."
        ) from error


def delete(checkpoint_ids: Collection[UUID]) -> int:
    """Remove index rows and return how many there were.

    Their chunks stay, since other checkpoints may share them; so do children, whose parent is then
    gone. Which checkpoints may go is for the caller to know.
    """
    return Checkpoint.objects.filter(pk__in=checkpoint_ids).delete()[0]


def _put_missing(split: Split, known: Set[bytes]) -> int:
    candidates = split.chunks.keys() - known
    missing = backend.missing(candidates) if candidates else candidates
    sealed = {digest: chunks.seal(chunks.content_of(split.chunks[digest])) for digest in missing}
    if sealed:
        backend.put(sealed)
    return sum(map(len, sealed.values()))


def _next_position(run_id: str) -> int:
    rows = Checkpoint.objects.filter(run_id=run_id).order_by("-position")
    last = rows.values_list("position", flat=True).first()
    return 0 if last is None else last + 1


def _fetch(digests: Collection[bytes]) -> dict[bytes, bytes]:
    found = backend.get(digests)
    return {digest: chunks.verified(digest, stored) for digest, stored in found.items()}

"""Saving and loading checkpoints: the only code that touches the index and the chunks together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Set
from functools import partial
from uuid import UUID

from django.db import IntegrityError, connection, transaction
from django.db.models import QuerySet

from . import backends, chunks, codec, fulltext, locks, messages
from .backends.base import Backend
from .chunks import Split
from .codec import JSON
from .errors import CheckpointConflict, CheckpointCorrupt, CheckpointError, CheckpointNotFound
from .models import Checkpoint

type OnSave = Callable[[Checkpoint], None]

_FIELDS = Checkpoint._meta.concrete_fields
_INSERT = "INSERT INTO checkpoints_app_checkpoint ({}) VALUES ({})".format(  # noqa: S608
    ", ".join(str(field.column) for field in _FIELDS), ", ".join(["%s"] * len(_FIELDS))
)
_NEWEST = (
    "SELECT id, position, backend FROM checkpoints_app_checkpoint "
    "WHERE run_id = %s ORDER BY position DESC LIMIT 1"
)


def save(
    entry: Checkpoint,
    split: Split,
    *,
    added: Collection[bytes] | None = None,
    said: set[bytes] | None = None,
    on_save: OnSave | None = None,
) -> Checkpoint:
    """Write the state and its index entry, and return the entry as the run's newest checkpoint.

    `entry` is unsaved and names id, run, parent, source, phase and, unless its chunks go to the
    database, the backend; the store fills in the rest.
    `added` are the digests that the parent's state does not need; None: nobody knows. The others
    need not be looked for while the parent is the run's newest checkpoint: it is still kept, so no
    sweep took its chunks.
    `said` is what `said_at` the parent, and grows by what this save adds; None: it is looked up.

    1. Chunks that are not there yet, 2. the row, 3. `on_save(entry)`: one transaction, so whatever
    `on_save` raises leaves no row behind. Raises CheckpointConflict when another writer added to
    the run meanwhile, or when the id exists: checkpoints are never updated.
    """
    backend = backends.at(entry.backend)
    every = split.chunks.keys()
    added = every if added is None else added
    # Elsewhere than in the database they go first: no service keeps others from writing rows.
    new_bytes = 0 if backend.is_transactional else _put_missing(backend, split, added)
    with locks.saving():
        newest_id, position, place = _newest(entry.run_id)
        is_known = newest_id is not None and (newest_id, place) == (entry.parent_id, entry.backend)
        # For all backends: since the first look a sweep may have come. In here none can.
        new_bytes += _put_missing(backend, split, added if is_known else every)
        entry.manifest = chunks.seal(split.manifest)
        entry.digest = split.digest
        entry.size_bytes = split.size_bytes
        entry.new_bytes = new_bytes + len(entry.manifest)
        entry.position = position + 1
        try:
            _insert(entry)
        except IntegrityError as error:
            raise CheckpointConflict(
                f"Checkpoint {entry.pk} could not become number {entry.position} of run "
                f"{entry.run_id}: another writer was faster, or the id exists. "
                "Reload the run and try again."
            ) from error
        new = _index_messages(entry, split, added, said)
        if on_save is not None:
            on_save(entry)
    if said is not None:
        said |= new
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
        return chunks.join(manifest, partial(_fetch, backends.at(entry.backend)))
    except CheckpointCorrupt as error:
        parent = f" Fork from its parent {entry.parent_id}." if entry.parent_id else ""
        raise CheckpointCorrupt(f"Checkpoint {entry.pk} cannot be read. {error}{parent}") from error


def state(checkpoint_id: UUID | str) -> JSON:
    """Return the state as ordinary JSON for pages: no object of the engine is built.

    Raises as `load` does.
    """
    return codec.plain(load(checkpoint_id))


def said_at(checkpoint_id: UUID | None) -> set[bytes]:
    """Digests of the messages in a checkpoint's state; none where it is unknown or unreadable.

    Costs a load, and nothing when no messages are indexed.
    """
    if checkpoint_id is None or not fulltext.is_enabled():
        return set()
    try:
        return set(messages.in_state(load(checkpoint_id)))
    except CheckpointError:
        return set()


def entry_of(checkpoint_id: UUID | str, rows: QuerySet[Checkpoint] | None = None) -> Checkpoint:
    """The index row, out of `rows` where given: locked ones, or without the manifest.

    Raises CheckpointNotFound, for an id that is no UUID too.
    """
    try:
        return (Checkpoint.objects.all() if rows is None else rows).get(pk=UUID(str(checkpoint_id)))
    except (Checkpoint.DoesNotExist, ValueError) as error:
        raise CheckpointNotFound(
            f"There is no checkpoint {str(checkpoint_id)[:64]!r}. It may have expired: choose "
            "another one of the same run."
        ) from error


def delete(checkpoint_ids: Collection[UUID]) -> int:
    """Remove index rows and return how many there were.

    Their chunks stay, since other checkpoints may share them; so do children, whose parent is then
    gone. Their messages stay searchable where a kept descendant holds them. Which checkpoints may
    go is for the caller to know.
    """
    with transaction.atomic():
        fulltext.hand_down(checkpoint_ids)
        return Checkpoint.objects.filter(pk__in=checkpoint_ids).delete()[0]


def _index_messages(
    entry: Checkpoint, split: Split, added: Collection[bytes], said: set[bytes] | None
) -> Set[bytes]:
    """Make what the checkpoint adds to its line searchable, and return the digests of that."""
    if not fulltext.is_enabled():
        return frozenset()
    found = messages.in_new_chunks(split, added)
    new = found.keys() - (said_at(entry.parent_id) if said is None else said)
    fulltext.add(entry.pk, (message for digest, message in found.items() if digest in new))
    return new


def _put_missing(backend: Backend, split: Split, candidates: Collection[bytes]) -> int:
    return backend.add(
        candidates, lambda digest: chunks.seal(chunks.content_of(split.chunks[digest]))
    )


def _insert(entry: Checkpoint) -> None:
    # In SQL, like the other statements of a save: the ORM takes longer than the database.
    values = [
        field.get_db_prep_save(getattr(entry, field.attname), connection) for field in _FIELDS
    ]
    with connection.cursor() as cursor:
        cursor.execute(_INSERT, values)
    entry._state.adding, entry._state.db = False, connection.alias


def _newest(run_id: str) -> tuple[UUID | None, int, str]:
    """Id, position and backend of the run's newest checkpoint; position -1 when it has none."""
    with connection.cursor() as cursor:
        cursor.execute(_NEWEST, [run_id])
        found = cursor.fetchone()
    return (None, -1, "") if found is None else (UUID(str(found[0])), found[1], found[2])


def _fetch(backend: Backend, digests: Collection[bytes]) -> dict[bytes, bytes]:
    found = backend.get(digests)
    return {digest: chunks.verified(digest, stored) for digest, stored in found.items()}

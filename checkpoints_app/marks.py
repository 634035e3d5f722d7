"""What people say about a checkpoint: name, note, tags, pin. The state itself never changes."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Any
from uuid import UUID

from django.db import transaction

from . import audit, store
from .audit import Actor
from .errors import InvalidMark
from .models import Checkpoint

MAX_TAGS = 20
MAX_TAG_LENGTH = 40
MAX_NAME_LENGTH = 200
MAX_NOTE_LENGTH = 10_000
_TAG = re.compile(rf"[^\W_][\w.:/-]{{0,{MAX_TAG_LENGTH - 1}}}")


def pin(checkpoint_id: UUID | str, *, actor: Actor) -> Checkpoint:
    """Keep the checkpoint in every retention. Pinning twice is harmless."""
    return _change(checkpoint_id, "checkpoint.pin", actor, is_pinned=True)


def unpin(checkpoint_id: UUID | str, *, actor: Actor) -> Checkpoint:
    """Let retention decide about the checkpoint again."""
    return _change(checkpoint_id, "checkpoint.unpin", actor, is_pinned=False)


def rename(checkpoint_id: UUID | str, name: str, *, actor: Actor) -> Checkpoint:
    """Give the checkpoint a name of one line; an empty one takes it away."""
    return _change(checkpoint_id, "checkpoint.rename", actor, name=_line(name))


def annotate(checkpoint_id: UUID | str, note: str, *, actor: Actor) -> Checkpoint:
    """Put a note on the checkpoint in place of the one it has; an empty one takes it away."""
    note = note.strip()
    if len(note) > MAX_NOTE_LENGTH or "\x00" in note:
        raise InvalidMark(f"A note is text of at most {MAX_NOTE_LENGTH} characters. Shorten it.")
    return _change(checkpoint_id, "checkpoint.annotate", actor, note=note)


def tag(
    checkpoint_id: UUID | str,
    *,
    add: Iterable[str] = (),
    remove: Collection[str] = (),
    actor: Actor,
) -> Checkpoint:
    """Add and remove tags; they are kept in lower case, sorted, each once.

    Removing one that is not there is harmless. Raises InvalidMark for a tag that is too long or has
    other characters than letters, digits and `_ . : / -`, and for more than MAX_TAGS.
    """
    added, removed = {_tag(text) for text in add}, {text.strip().lower() for text in remove}
    with transaction.atomic():
        entry = _locked(checkpoint_id)
        tags = sorted((set(entry.tags) | added) - removed)
        if len(tags) > MAX_TAGS:
            raise InvalidMark(
                f"Checkpoint {entry.pk} would have {len(tags)} tags. "
                f"Remove some: {MAX_TAGS} are the most."
            )
        return _change(entry.pk, "checkpoint.tag", actor, tags=tags)


def _change(checkpoint_id: UUID | str, verb: str, actor: Actor, **fields: Any) -> Checkpoint:
    """Set the fields and record it; changing nothing is no event."""
    with transaction.atomic():
        entry = _locked(checkpoint_id)
        if any(getattr(entry, field) != value for field, value in fields.items()):
            Checkpoint.objects.filter(pk=entry.pk).update(**fields)
            for field, value in fields.items():
                setattr(entry, field, value)
            audit.record(actor, verb, entry, **fields)
    return entry


def _locked(checkpoint_id: UUID | str) -> Checkpoint:
    """The row as it is now, held until commit: two people may mark it at once."""
    return store.entry_of(checkpoint_id, Checkpoint.objects.select_for_update().defer("manifest"))


def _tag(text: str) -> str:
    tag = text.strip().lower()
    if not _TAG.fullmatch(tag):
        raise InvalidMark(
            f"{text[:80]!r} is no tag. Use 1 to {MAX_TAG_LENGTH} letters, digits and _ . : / - "
            "without spaces, a letter or digit first."
        )
    return tag


def _line(name: str) -> str:
    line = " ".join(name.split())
    if len(line) > MAX_NAME_LENGTH or not line.isprintable():
        raise InvalidMark(
            f"A name is one line of at most {MAX_NAME_LENGTH} characters. "
            "Put what does not fit into the note."
        )
    return line

"""Full text of messages, in the database itself: FTS5 on SQLite, `tsvector` on PostgreSQL.

Both see a text as words of letters and digits; case does not matter, nothing is stemmed, and signs
only part words. A query is words that must all occur, `"phrases in quotes"`, and beginnings of
words with a star: `"net revenue" emea fore*`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import batched
from typing import Any, NamedTuple
from uuid import UUID

from django.conf import settings
from django.db import connection, transaction
from django.db.models import F, Lookup, QuerySet

from .errors import InvalidSearch
from .messages import Message
from .models import Checkpoint, MessageText, MessageWords

MAX_TEXT_LENGTH = 100_000
"""Characters of one message that are indexed. PostgreSQL refuses a `tsvector` of a megabyte."""
MAX_QUERY_LENGTH = 500
SNIPPET_LENGTH = 160
BATCH = 500

_WORD = re.compile(r"[^\W_]+")
_UNIT = re.compile(r'"([^"]*)"?|([^\s"]+)')
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_TABLE = MessageText._meta.db_table
_CHECKPOINT = MessageText._meta.get_field("checkpoint")
# In SQL, since it is part of every save.
_INSERT = (
    "INSERT INTO checkpoints_app_messagetext (checkpoint_id, author, text) VALUES (%s, %s, %s)"
)


@dataclass(frozen=True, kw_only=True)
class Phrase:
    """Words that follow each other; the last may be the beginning of one."""

    words: tuple[str, ...]
    is_prefix: bool


class Fragment(NamedTuple):
    """A piece of a snippet. Text, never HTML: how a match is shown is the reader's choice."""

    text: str
    is_match: bool


def is_enabled() -> bool:
    """Whether saves index their messages: `CHECKPOINT_SEARCH_INDEX`, on unless it is False."""
    is_wanted = getattr(settings, "CHECKPOINT_SEARCH_INDEX", True)
    return bool(is_wanted) and connection.vendor in {"sqlite", "postgresql"}


def add(checkpoint_id: UUID, messages: Iterable[Message]) -> None:
    """Index messages as first said at the checkpoint. Call it in the transaction of its row."""
    key = _CHECKPOINT.get_db_prep_save(checkpoint_id, connection)
    rows = (
        (key, _clean(message.author)[:100], _clean(message.text[:MAX_TEXT_LENGTH]))
        for message in messages
    )
    with connection.cursor() as cursor:
        for batch in batched(rows, BATCH):
            cursor.executemany(_INSERT, batch)


def hand_down(checkpoint_ids: Collection[UUID]) -> None:
    """Give the messages of checkpoints about to be deleted to the nearest ones kept after them.

    Those contain them too, so a line stays searchable however much of its past expires. Where no
    descendant is kept the rows stay, and go with their checkpoint. Call it before the deletion, in
    its transaction.
    """
    heirs = _heirs(set(checkpoint_ids))
    for checkpoint_id, (first, *others) in heirs.items():
        rows = MessageText.objects.filter(checkpoint_id=checkpoint_id).order_by("id")
        copies = [Message(**row) for row in rows.values("author", "text")] if others else []
        for other in others:
            add(other, copies)
        rows.order_by().update(checkpoint_id=first)


def _heirs(going: set[UUID]) -> dict[UUID, list[UUID]]:
    """For each of `going` that has any: its nearest descendants that stay."""
    children = _children(going)
    found = {}
    for checkpoint in children.keys() & going:
        stack, heirs = children[checkpoint][::-1], []
        while stack:
            child = stack.pop()
            if child in going:
                stack.extend(reversed(children.get(child, [])))
            else:
                heirs.append(child)
        if heirs:
            found[checkpoint] = heirs
    return found


def _children(parents: set[UUID]) -> dict[UUID, list[UUID]]:
    """The children of `parents`; where those went earlier, what is left of the run after them."""
    children = defaultdict[UUID, list[UUID]](list)
    for batch in batched(sorted(parents), BATCH):
        here = Checkpoint.objects.filter(pk__in=batch).values_list("id", "run_id", "position")
        places = {id: (run_id, position) for id, run_id, position in here}
        ends = dict(places)
        rows = Checkpoint.objects.filter(parent_id__in=batch).order_by("created_at", "id")
        for child, parent, run_id in rows.values_list("id", "parent_id", "run_id"):
            children[parent].append(child)
            if parent in places and places[parent][0] == run_id:
                ends.pop(parent, None)
        for end, (run_id, position) in ends.items():
            if orphan := _next_orphan(run_id, position):
                children[end].append(orphan)
    return children


def _next_orphan(run_id: str, position: int) -> UUID | None:
    later = Checkpoint.objects.filter(run_id=run_id, position__gt=position).order_by("position")
    found = later.values_list("id", "parent_id").first()
    if found is None:
        return None
    checkpoint, parent = found
    is_orphan = parent is not None and not Checkpoint.objects.filter(pk=parent).exists()
    return checkpoint if is_orphan else None


def repair() -> None:
    """Make SQLite's word index anew out of the texts, should the two ever differ."""
    if connection.vendor == "sqlite":
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(f"INSERT INTO {_TABLE}_words ({_TABLE}_words) VALUES ('rebuild')")  # noqa: S608


def parse(query: str) -> list[Phrase]:
    """What a person asks for. Raises InvalidSearch for no words or too many characters."""
    if len(query) > MAX_QUERY_LENGTH:
        raise InvalidSearch(
            f"The text to search for has {len(query)} characters. "
            f"Use at most {MAX_QUERY_LENGTH}: a few telling words."
        )
    phrases = []
    for quoted, plain in _UNIT.findall(query):
        unit = quoted or plain
        if words := tuple(_WORD.findall(unit)):
            phrases.append(Phrase(words=words, is_prefix=unit.endswith("*")))
    if not phrases:
        raise InvalidSearch("The text to search for has no words. Give at least one.")
    return phrases


def matching(phrases: Iterable[Phrase]) -> QuerySet[MessageWords] | QuerySet[MessageText]:
    """Rows whose text holds every phrase, found by the words; their keys are the messages' own.

    On SQLite they are the index's, with the row of the text as `message`: a page of the latest
    matches then costs a page, since the index itself gives them in that order.
    """
    model = MessageWords if connection.vendor == "sqlite" else MessageText
    return model._default_manager.filter(_Matches(F("pk"), tuple(phrases)))


class _Matches(Lookup):
    """The condition in the words of each database. The query is bound, never spliced."""

    lookup_name = "matches"
    prepare_rhs = False

    def as_sqlite(self, compiler: Any, connection: Any) -> tuple[str, tuple[str]]:
        query = " AND ".join(map(_fts5, self.rhs))
        return f"{compiler.quote_name(self.lhs.alias)}.{_TABLE}_words MATCH %s", (query,)

    def as_postgresql(self, compiler: Any, connection: Any) -> tuple[str, tuple[str]]:
        query = " & ".join(map(_tsquery, self.rhs))
        words = f"{compiler.quote_name(self.lhs.alias)}.words"
        return f"{words} @@ to_tsquery('simple', %s)", (query,)


def _fts5(phrase: Phrase) -> str:
    return f'"{" ".join(phrase.words)}"{" *" if phrase.is_prefix else ""}'


def _tsquery(phrase: Phrase) -> str:
    return f"({' <-> '.join(phrase.words)}{':*' if phrase.is_prefix else ''})"


def snippet(text: str, phrases: Iterable[Phrase]) -> list[Fragment]:
    """About SNIPPET_LENGTH characters around the first match, in one line, matches apart."""
    pattern = re.compile("|".join(map(_pattern, phrases)), re.IGNORECASE)
    first = pattern.search(text)
    start, end = _window(text, first.start() if first else 0)
    fragments, position = [Fragment("…", False)] if start else [], start
    for match in pattern.finditer(text, start, end):
        fragments.append(Fragment(text[position : match.start()], False))
        fragments.append(Fragment(match[0], True))
        position = match.end()
    fragments.append(Fragment(text[position:end] + ("…" if end < len(text) else ""), False))
    lines = (Fragment(re.sub(r"\s+", " ", part), is_match) for part, is_match in fragments)
    return [fragment for fragment in lines if fragment.text]


def _pattern(phrase: Phrase) -> str:
    end = "" if phrase.is_prefix else r"(?![^\W_])"
    return r"(?<![^\W_])" + r"[\W_]+".join(map(re.escape, phrase.words)) + end


def _window(text: str, match: int) -> tuple[int, int]:
    """A third of the snippet before the match, cut between words where there is a space."""
    start = max(0, match - SNIPPET_LENGTH // 3)
    end = min(len(text), start + SNIPPET_LENGTH)
    if start:
        start = text.find(" ", start, match) + 1 or start
    if end < len(text):
        end = max(text.rfind(" ", match + SNIPPET_LENGTH // 3, end), 0) or end
    return start, end


def _clean(text: str) -> str:
    """What every database takes: no NUL, no lone surrogate; other control characters go too."""
    text = text if text.isascii() else text.encode("utf-8", "replace").decode()
    return _CONTROL.sub(" ", text)


def size_bytes() -> Mapping[str, int]:
    """What the index takes: rows, and bytes with everything that belongs to it."""
    with connection.cursor() as cursor:
        cursor.execute(_SIZE[connection.vendor])
        (size,) = cursor.fetchone()
    return {"messages": MessageText.objects.count(), "size_bytes": int(size or 0)}


_SIZE = {
    "sqlite": f"SELECT SUM(LENGTH(CAST(text AS BLOB))) + "  # noqa: S608
    f"(SELECT SUM(LENGTH(block)) FROM {_TABLE}_words_data) FROM {_TABLE}",
    "postgresql": f"SELECT pg_total_relation_size('{_TABLE}')",
}

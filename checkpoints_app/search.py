"""Finding checkpoints: filters over the index rows and full text of messages, page by page."""

from __future__ import annotations

import base64
import binascii
import json
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import Lookup, Q, QuerySet
from django.utils import timezone
from django.utils.dateparse import parse_date, parse_datetime

from . import fulltext, lineage, messages, store
from .errors import CheckpointError, InvalidSearch
from .fulltext import Fragment
from .models import Checkpoint, MessageText

MAX_LIMIT = 500
MAX_VALUE_LENGTH = 200
BATCH = 200
_LINES_REMEMBERED = 64

type Lookups = dict[str, Any]
"""Names of ORM lookups on `Checkpoint` and the values they are bound to."""


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A checkpoint; when text was searched for, with the message that was found there."""

    checkpoint: Checkpoint
    """Without its manifest."""
    author: str = ""
    snippet: tuple[Fragment, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Page:
    hits: tuple[Hit, ...]
    next: str
    """Where the next page starts, as `after` takes it; empty at the end."""


@dataclass(frozen=True, kw_only=True)
class Filter:
    meaning: str
    read: Callable[[str], Lookups]
    """Takes the value as a person writes it. Raises ValueError with what it should have been."""


def search(
    filters: Mapping[str, str | list[str]] | None = None,
    *,
    text: str = "",
    after: str = "",
    limit: int = 50,
) -> Page:
    """One page of checkpoints, newest first; with `text` one of messages, latest indexed first.

    `filters` are keys of FILTERS with their values as text; several values of one key must all
    hold. The cost of a page does not grow with the pages before it. Raises InvalidSearch for
    unknown keys, and for values, texts and pages without meaning.
    """
    if not 1 <= limit <= MAX_LIMIT:
        raise InvalidSearch(f"A page has 1 to {MAX_LIMIT} entries, not {limit}.")
    wanted = _lookups(filters or {})
    if text:
        return _page_of_messages(wanted, text, after, limit)
    return _page_of_checkpoints(wanted, after, limit)


def _page_of_checkpoints(wanted: list[Lookups], after: str, limit: int) -> Page:
    conditions = [Q(**lookups) for lookups in wanted]
    if after:
        created_at, id = _place(after, lambda at, id: (datetime.fromisoformat(at), UUID(id)))
        # Not `created_at < … or (created_at = … and …)`: that hides the range from the index.
        conditions += [Q(created_at__lte=created_at), Q(created_at__lt=created_at) | Q(id__lt=id)]
    rows = Checkpoint.objects.filter(*conditions).order_by("-created_at", "-id")
    found = list(rows.defer("manifest", "digest")[: limit + 1])
    return Page(
        hits=tuple(Hit(checkpoint=checkpoint) for checkpoint in found[:limit]),
        next=_cursor(found[limit - 1].created_at.isoformat(), found[limit - 1].id)
        if len(found) > limit
        else "",
    )


def _page_of_messages(wanted: list[Lookups], text: str, after: str, limit: int) -> Page:
    phrases = fulltext.parse(text)
    rows: QuerySet[Any] = fulltext.matching(phrases)
    to_checkpoint = "checkpoint" if rows.model is MessageText else "message__checkpoint"
    conditions = [
        Q(**{f"{to_checkpoint}__{name}": value for name, value in lookups.items()})
        for lookups in wanted
    ]
    if after:
        conditions.append(Q(pk__lt=_place(after, lambda kind, id: int(id))))
    rows = rows.filter(*conditions).order_by("-pk").select_related(to_checkpoint)
    rows = rows.defer(f"{to_checkpoint}__manifest", f"{to_checkpoint}__digest")
    found = [row if isinstance(row, MessageText) else row.message for row in rows[: limit + 1]]
    return Page(
        hits=tuple(
            Hit(
                checkpoint=message.checkpoint,
                author=message.author,
                snippet=tuple(fulltext.snippet(message.text, phrases)),
            )
            for message in found[:limit]
        ),
        next=_cursor("message", found[limit - 1].pk) if len(found) > limit else "",
    )


def _cursor(*place: object) -> str:
    return base64.urlsafe_b64encode("|".join(map(str, place)).encode()).decode().rstrip("=")


def _place[T](cursor: str, read: Callable[[str, str], T]) -> T:
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        first, second = text.decode("ascii").split("|")
        place = read(first, second)
        if isinstance(place, tuple):
            timezone.localtime(place[0])  # a time without an offset compares with nothing
        return place
    except (binascii.Error, ValueError, OverflowError) as error:
        raise InvalidSearch(
            "This is not where a page of this search starts. Begin again with the first page."
        ) from error


def _lookups(filters: Mapping[str, str | list[str]]) -> list[Lookups]:
    found = []
    for key, values in filters.items():
        if key not in FILTERS:
            raise InvalidSearch(f"There is no filter {key[:40]!r}. Choose {', '.join(FILTERS)}.")
        for value in [values] if isinstance(values, str) else values:
            found.append(_read(key, value.strip()))
    return found


def _read(key: str, value: str) -> Lookups:
    try:
        if not value or len(value) > MAX_VALUE_LENGTH or "\x00" in value:
            raise ValueError(f"1 to {MAX_VALUE_LENGTH} characters")
        return FILTERS[key].read(value)
    except (ValueError, InvalidOperation, OverflowError) as error:
        raise InvalidSearch(
            f"{value[:40]!r} does not fit the filter {key}: give {error}."
        ) from error


def _exactly(field: str) -> Callable[[str], Lookups]:
    return lambda value: {field: value}


def _one_of(field: str, choices: list[str]) -> Callable[[str], Lookups]:
    def read(value: str) -> Lookups:
        if value not in choices:
            raise ValueError(f"one of {', '.join(choices)}")
        return {field: value}

    return read


def _range(field: str, number: Callable[[str], Any], example: str) -> Callable[[str], Lookups]:
    """`3`, or `3..5`, `3..` and `..5` with both ends included."""

    def read(value: str) -> Lookups:
        low, dots, high = value.partition("..")
        try:
            if not dots:
                return {field: number(value)}
            ends = {f"{field}__gte": low, f"{field}__lte": high}
            return {name: number(end) for name, end in ends.items() if end}
        except (ValueError, InvalidOperation) as error:
            raise ValueError(f"a number or a range, such as {example}") from error

    return read


def _round_number(text: str) -> int:
    if not text.isdecimal() or len(text) > 9:
        raise ValueError(text)
    return int(text)


def _money(text: str) -> Decimal:
    amount = Decimal(text)
    if not amount.is_finite() or not 0 <= amount < 10**8:
        raise ValueError(text)
    return amount


def _moment(text: str, *, is_end: bool) -> datetime:
    """A date means its first moment, as an end its last; no offset means the site's time zone."""
    moment = parse_datetime(text) if len(text) > 10 else None
    if moment is None:
        date = parse_date(text)
        if date is None:
            raise ValueError("a date or a time, such as 2026-11-23 or 2026-11-23T14:30")
        moment = datetime.combine(date, time.min)
        if is_end:
            moment += timedelta(days=1) - timedelta(microseconds=1)
    return moment if timezone.is_aware(moment) else timezone.make_aware(moment)


def _yes_or_no(field: str) -> Callable[[str], Lookups]:
    answers = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}

    def read(value: str) -> Lookups:
        if value.lower() not in answers:
            raise ValueError("yes or no")
        return {field: answers[value.lower()]}

    return read


FILTERS: dict[str, Filter] = {
    "workflow": Filter(meaning="id of a workflow", read=_exactly("workflow")),
    "run": Filter(meaning="id of a run", read=_exactly("run_id")),
    "status": Filter(
        meaning="the run's status at the checkpoint: the last one has the status the run rests in",
        read=_exactly("status"),
    ),
    "phase": Filter(
        meaning=f"where in its round: {', '.join(Checkpoint.Phase.values)}",
        read=_one_of("phase", Checkpoint.Phase.values),
    ),
    "source": Filter(
        meaning=f"how it came about: {', '.join(Checkpoint.Source.values)}",
        read=_one_of("source", Checkpoint.Source.values),
    ),
    "agent": Filter(meaning="name of the agent that replied or is asked", read=_exactly("agent")),
    "team": Filter(meaning="names of the team's agents, as shown", read=_exactly("team")),
    "round": Filter(
        meaning="a round or a range: 3, 3..5, 3.., ..5",
        read=_range("round", _round_number, "3 or 3..5"),
    ),
    "cost": Filter(
        meaning="US dollars spent up to it, or a range: 0.5..2, 1..",
        read=_range("cost_usd", _money, "0.5..2 or 1.."),
    ),
    "since": Filter(
        meaning="first day or moment, such as 2026-11-23 or 2026-11-23T14:30",
        read=lambda value: {"created_at__gte": _moment(value, is_end=False)},
    ),
    "until": Filter(
        meaning="last day or moment, included",
        read=lambda value: {"created_at__lte": _moment(value, is_end=True)},
    ),
    "tag": Filter(meaning="a tag that it has", read=lambda value: {"tags__has_tag": value.lower()}),
    "name": Filter(
        meaning="what its name begins with", read=lambda value: {"name__istartswith": value}
    ),
    "pinned": Filter(meaning="yes or no", read=_yes_or_no("is_pinned")),
}
"""Everything that can be filtered by. Values are bound by the ORM, never spliced into SQL."""


class HasTag(Lookup):
    """`tags__has_tag=…`, since SQLite has no containment. Both forms let the index on tags work."""

    lookup_name = "has_tag"
    prepare_rhs = False

    def as_sqlite(self, compiler: Any, connection: Any) -> tuple[str, list[Any]]:
        tags, parameters = self.process_lhs(compiler, connection)
        has_it = f"EXISTS (SELECT 1 FROM json_each({tags}) WHERE value = %s)"  # noqa: S608
        return f"({tags} <> '[]' AND {has_it})", [*parameters, *parameters, self.rhs]

    def as_postgresql(self, compiler: Any, connection: Any) -> tuple[str, list[Any]]:
        tags, parameters = self.process_lhs(compiler, connection)
        return f"{tags} @> %s::jsonb", [*parameters, json.dumps([self.rhs])]


Checkpoint._meta.get_field("tags").register_lookup(HasTag)


def tree_of(workflow: str) -> list[lineage.Place[UUID]]:
    """The tree of one workflow, with lanes, out of ids alone: no state is read."""
    rows = Checkpoint.objects.filter(workflow=workflow).order_by("created_at", "position")
    return lineage.tree(lineage.parents_of(rows.values_list("id", "parent_id")))


def reindex() -> tuple[int, list[UUID]]:
    """Rebuild the full text of all messages out of the states.

    Safe beside running writers and to interrupt: each checkpoint is one transaction, oldest first,
    so that later messages have higher ids. Memory stays constant. Returns how many checkpoints were
    indexed, and those whose state cannot be read, which keep what they had. Raises InvalidSearch
    where the index is off.
    """
    if not fulltext.is_enabled():
        raise InvalidSearch(
            "The search index is off. Unset FLEET_SEARCH_INDEX_OFF (CHECKPOINT_SEARCH_INDEX in "
            "your own settings), or use SQLite or PostgreSQL."
        )
    fulltext.repair()
    lines = _Lines()
    indexed, unreadable = 0, []
    for entry in oldest_first():
        try:
            lines.index(entry)
            indexed += 1
        except CheckpointError:
            unreadable.append(entry.pk)
    return indexed, unreadable


def index(entries: Iterable[Checkpoint]) -> None:
    """Make checkpoints searchable that were not saved by a run. Parents come before children."""
    lines = _Lines()
    for entry in entries:
        lines.index(entry)


def oldest_first() -> Iterator[Checkpoint]:
    """Every checkpoint, read in batches, so that no read stays open while the caller works.

    One that is deleted meanwhile may still come; one that is added meanwhile comes.
    """
    rows = Checkpoint.objects.order_by("created_at", "id")
    batch = list(rows[:BATCH])
    while batch:
        yield from batch
        last = batch[-1]
        later = Q(created_at__gt=last.created_at) | Q(id__gt=last.pk)
        batch = list(rows.filter(later, created_at__gte=last.created_at)[:BATCH])


class _Lines:
    """What was said up to the checkpoints indexed last: the parent of the next is mostly there."""

    def __init__(self) -> None:
        self.said: OrderedDict[UUID, frozenset[bytes]] = OrderedDict()

    def index(self, entry: Checkpoint) -> None:
        found = messages.in_state(store.load_entry(entry))
        before = self.at(self.base_of(entry))
        with transaction.atomic():
            MessageText.objects.filter(checkpoint_id=entry.pk).delete()
            if Checkpoint.objects.filter(pk=entry.pk).exists():
                new = (found[digest] for digest in found if digest not in before)
                fulltext.add(entry.pk, new)
        self.said[entry.pk] = frozenset(found)
        if len(self.said) > _LINES_REMEMBERED:
            self.said.popitem(last=False)

    def base_of(self, entry: Checkpoint) -> UUID | None:
        """What its messages are new against: its parent, or what is left of the run before it."""
        parent_id = entry.parent_id
        if parent_id is None or parent_id in self.said:
            return parent_id
        if Checkpoint.objects.filter(pk=parent_id).exists():
            return parent_id
        earlier = Checkpoint.objects.filter(run_id=entry.run_id, position__lt=entry.position)
        return earlier.order_by("-position").values_list("id", flat=True).first()

    def at(self, id: UUID | None) -> frozenset[bytes]:
        return (self.said.get(id) if id else None) or frozenset(store.said_at(id))

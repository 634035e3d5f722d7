"""What differs between two states, as plain JSON: conversation, plan, ledger, limits, the rest.

Everything that differs is either listed or counted in `left_out`: nothing is passed over. The order
is that of the states, so the same two states always give the same difference.
"""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Literal, NamedTuple

from . import messages
from .messages import Message

MAX_CHANGES = 200
"""Entries listed in one section. The rest is counted."""
MAX_WORDS = 2_000
MAX_ITEMS = 1_000
"""Words of a text and items of a list, equal ends apart, up to which the two are aligned: difflib
takes the square of it at worst. Longer texts are shown whole, longer lists compared in order."""
MAX_VALUE_LENGTH = 400
"""Characters shown of one value in the sections that go by path."""

_ORCHESTRATOR = ("state", "_executor_state", "magentic_orchestrator")
_CONTEXT = (*_ORCHESTRATOR, "magentic_context")
_SECTIONS: dict[str, tuple[tuple[str, ...], ...]] = {
    "plan": (
        (*_CONTEXT, "task"),
        (*_ORCHESTRATOR, "task_ledger"),
        (*_ORCHESTRATOR, "manager_state"),
    ),
    "ledger": ((*_ORCHESTRATOR, "progress_ledger"),),
    "limits": (
        (*_CONTEXT, "round_count"),
        (*_CONTEXT, "stall_count"),
        (*_CONTEXT, "reset_count"),
        (*_ORCHESTRATOR, "round_index"),
        (*_ORCHESTRATOR, "terminated"),
    ),
}
"""Where Magentic keeps what a person looks for first. Other workflows have it all under `other`."""
_WAYS_IN = {path[:n] for paths in _SECTIONS.values() for path in paths for n in range(len(path))}
_USAGE = "usage_details"
_KEY = re.compile(r"[A-Za-z_]\w*")
_SPACES = re.compile(r"(\s+)")
_MISSING = object()

type Path = tuple[str | int, ...]
type Kind = Literal["added", "removed", "changed"]


class Words(NamedTuple):
    """A run of words that both texts have, or only the second, or only the first."""

    kind: Literal["same", "added", "removed"]
    text: str


@dataclass(frozen=True, kw_only=True)
class Change:
    """One value that differs, at its JSON path, such as `$.state.notes[3]`."""

    path: str
    kind: Kind
    before: Any = None
    after: Any = None
    words: tuple[Words, ...] = ()
    """For a text that changed: the two texts, woven together."""


@dataclass(frozen=True, kw_only=True)
class MessageChange:
    """A message that only one state has, or one in the place of another by the same author."""

    kind: Kind
    author: str
    text: str
    words: tuple[Words, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Section:
    """What differs in one part. The counts cover all of it, `left_out` what is not listed."""

    changes: tuple[Any, ...]
    counts: dict[str, int]

    @property
    def left_out(self) -> int:
        return sum(self.counts.values()) - len(self.changes)


@dataclass(frozen=True, kw_only=True)
class Diff:
    """From the first state to the second. `conversation` has MessageChanges, the rest Changes."""

    conversation: Section
    plan: Section
    ledger: Section
    limits: Section
    usage: Section
    other: Section

    @property
    def is_empty(self) -> bool:
        return not any(sum(section.counts.values()) for section in vars(self).values())


def compare(first: Any, second: Any) -> Diff:
    """The difference of two states as `store.state` returns them.

    In the conversation a message counts once, however many agents keep a copy; the copies are in
    `other`, by path. `usage` sums up what the states themselves hold, by kind of token.
    """
    sections = {name: _Collector() for name in (*_SECTIONS, "other")}
    for path, before, after in _leaves(first, second, ()):
        sections[_section_of(path)].add(path, before, after)
    return Diff(
        conversation=_conversation(first, second),
        usage=_usage(first, second),
        **{name: collector.section() for name, collector in sections.items()},
    )


@dataclass
class _Collector:
    """Counts everything, keeps the first of it, and looks closely only at what it keeps."""

    changes: list[Any] = field(default_factory=list)
    counts: Counter[Kind] = field(default_factory=Counter)

    def add(self, path: Path, before: Any, after: Any) -> None:
        kind: Kind = (
            "added" if before is _MISSING else "removed" if after is _MISSING else "changed"
        )
        self.counts[kind] += 1
        if len(self.changes) < MAX_CHANGES:
            self.changes.append(_change(path, kind, before, after))

    def add_message(self, kind: Kind, *messages: Message) -> None:
        self.counts[kind] += 1
        if len(self.changes) < MAX_CHANGES:
            self.changes.append(_message_change(kind, messages))

    def section(self) -> Section:
        kinds: tuple[Kind, ...] = ("added", "removed", "changed")
        counts: dict[str, int] = {kind: self.counts[kind] for kind in kinds}
        return Section(changes=tuple(self.changes), counts=counts)


def _leaves(first: Any, second: Any, path: Path) -> Iterator[tuple[Path, Any, Any]]:
    """Each smallest part that differs: its path, the value before and the value after.

    A part that one side lacks comes whole, unless a section of its own lies in it.
    """
    if path in _WAYS_IN:
        first, second = _opened(first, second)
    if isinstance(first, dict) and isinstance(second, dict):
        for key in (*first, *(key for key in second if key not in first)):
            yield from _leaves(first.get(key, _MISSING), second.get(key, _MISSING), (*path, key))
    elif isinstance(first, list) and isinstance(second, list):
        yield from _list_leaves(first, second, path)
    elif first is _MISSING or second is _MISSING or _print(first) != _print(second):
        yield path, first, second


def _opened(first: Any, second: Any) -> tuple[Any, Any]:
    """An empty object for a missing one, so that the sections in the other come apart."""
    if first is _MISSING and isinstance(second, dict) and second:
        return {}, second
    if second is _MISSING and isinstance(first, dict) and first:
        return first, {}
    return first, second


def _list_leaves(first: list[Any], second: list[Any], path: Path) -> Iterator[Any]:
    """Items aligned, so that one insertion is one difference. Where items stand for others, they
    are compared in order. An added item has its index in the second list, others in the first."""
    for a, b in _aligned([_print(item) for item in first], [_print(item) for item in second]):
        paired = min(len(a), len(b))
        for i, j in zip(a, b, strict=False):
            yield from _leaves(first[i], second[j], (*path, i))
        yield from (((*path, i), first[i], _MISSING) for i in a[paired:])
        yield from (((*path, j), _MISSING, second[j]) for j in b[paired:])


def _aligned(first: list[str], second: list[str]) -> Iterator[tuple[range, range]]:
    """The stretches that differ, in order: where they are in the first and in the second."""
    start, ends = _equal_ends(first, second)
    a = first[start : len(first) - ends]
    b = second[start : len(second) - ends]
    if not (a and b) or len(a) + len(b) > MAX_ITEMS:
        yield range(start, start + len(a)), range(start, start + len(b))
        return
    # difflib prefers one side where it has a choice; always the same one, whichever comes first.
    is_swapped = b < a
    matcher = difflib.SequenceMatcher(None, *((b, a) if is_swapped else (a, b)), autojunk=False)
    for tag, a1, a2, b1, b2 in matcher.get_opcodes():
        if tag != "equal":
            found = range(start + a1, start + a2), range(start + b1, start + b2)
            yield found[::-1] if is_swapped else found


def _equal_ends(first: list[str], second: list[str]) -> tuple[int, int]:
    shorter = min(len(first), len(second))
    start = next((n for n in range(shorter) if first[n] != second[n]), shorter)
    room = shorter - start
    ends = next((n for n in range(room) if first[-1 - n] != second[-1 - n]), room)
    return start, ends


def _print(value: Any) -> str:
    """Equal for equal JSON only: in Python, True is 1 and 1 is 1.0."""
    return json.dumps(value, sort_keys=True)


def _section_of(path: Path) -> str:
    for name, prefixes in _SECTIONS.items():
        if any(path[: len(prefix)] == prefix for prefix in prefixes):
            return name
    return "other"


def _change(path: Path, kind: Kind, before: Any, after: Any) -> Change:
    is_text = isinstance(before, str) and isinstance(after, str)
    return Change(
        path=_text_of(path),
        kind=kind,
        before=_shown(before),
        after=_shown(after),
        words=words(before, after) if is_text else (),
    )


def _text_of(path: Path) -> str:
    """JSONPath, as RFC 9535 has it."""
    parts = (
        f".{part}" if isinstance(part, str) and _KEY.fullmatch(part) else f"[{json.dumps(part)}]"
        for part in path
    )
    return "$" + "".join(parts)


def _shown(value: Any) -> Any:
    """Short values as they are; a long text or container as the beginning of its text."""
    if value is _MISSING:
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return value if len(text) <= MAX_VALUE_LENGTH else f"{text[:MAX_VALUE_LENGTH]}…"


def words(first: str, second: str) -> tuple[Words, ...]:
    """The two texts woven together: leave out what was added to get the first, what was removed to
    get the second. Empty when they are too long to be compared by words."""
    a, b = _split(first), _split(second)
    if len(a) + len(b) > 2 * MAX_WORDS:
        return ()
    woven: list[Words] = []
    for tag, a1, a2, b1, b2 in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if tag == "equal":
            woven.append(Words("same", "".join(a[a1:a2])))
            continue
        if a2 > a1:
            woven.append(Words("removed", "".join(a[a1:a2])))
        if b2 > b1:
            woven.append(Words("added", "".join(b[b1:b2])))
    return tuple(woven)


def _split(text: str) -> list[str]:
    return [part for part in _SPACES.split(text) if part]


def _conversation(first: Any, second: Any) -> Section:
    a, b = _messages(first), _messages(second)
    collector = _Collector()
    stretches = _aligned([m.digest.hex() for m in a], [m.digest.hex() for m in b])
    for before, after in stretches:
        for i, j in zip_longest(before, after):
            old = None if i is None else a[i]
            new = None if j is None else b[j]
            if old and new and old.author != new.author:
                collector.add_message("removed", old)
                collector.add_message("added", new)
            elif old and new:
                collector.add_message("changed", old, new)
            elif message := old or new:
                collector.add_message("added" if new else "removed", message)
    return collector.section()


def _messages(state: Any) -> list[Message]:
    """As they were said: what is in flight comes after what the agents already keep."""
    if isinstance(state, dict) and "state" in state:
        state = {"state": state["state"], **state}
    return list(messages.in_state(state).values())


def _message_change(kind: Kind, messages: tuple[Message, ...]) -> MessageChange:
    first, last = messages[0], messages[-1]
    return MessageChange(
        kind=kind,
        author=last.author,
        text=last.text,
        words=words(first.text, last.text) if kind == "changed" else (),
    )


def _usage(first: Any, second: Any) -> Section:
    a, b = _tokens(first), _tokens(second)
    collector = _Collector()
    for name in sorted(a.keys() | b.keys()):
        if a.get(name) != b.get(name):
            collector.add((name,), a.get(name, _MISSING), b.get(name, _MISSING))
    return collector.section()


def _tokens(state: Any) -> Counter[str]:
    """The sums of all token counts in a state."""
    total: Counter[str] = Counter()
    stack = [state]
    while stack:
        value = stack.pop()
        if isinstance(value, list):
            stack.extend(value)
        elif isinstance(value, dict):
            usage = value.get(_USAGE)
            if isinstance(usage, dict):
                total.update({k: n for k, n in usage.items() if type(n) is int})
            stack.extend(item for key, item in value.items() if key != _USAGE)
    return total

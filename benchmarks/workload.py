"""What every system stores: a conversation of one 2 KB message a round, and a 500 B ledger.

Deterministic. The texts come out of the interpreter's documentation, so they compress like text.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pydoc_data.topics import topics

AGENTS = ("researcher", "coder", "analyst", "reader")
MESSAGE_BYTES = 2_048
TOOL_RESULTS = 0.3
"""The share of messages that are a tool's JSON rather than prose."""


@dataclass(frozen=True, kw_only=True)
class Round:
    author: str
    text: str
    ledger: dict[str, dict[str, object]]


def rounds(count: int, *, seed: int = 7) -> list[Round]:
    """The first `count` rounds; a longer workload begins with a shorter one."""
    prose = Prose(seed)
    pick = random.Random(seed + 1)
    return [
        Round(
            author=AGENTS[number % len(AGENTS)],
            text=_tool_result(prose, pick) if pick.random() < TOOL_RESULTS else prose.text(),
            ledger=_ledger(prose, next_agent=AGENTS[(number + 1) % len(AGENTS)]),
        )
        for number in range(count)
    ]


class Prose:
    """English-like text: each word follows a pair of words as it does somewhere in the source."""

    def __init__(self, seed: int) -> None:
        words = [word for name in sorted(topics) for word in topics[name].split()]
        self._next: dict[tuple[str, str], list[str]] = {}
        for first, second, third in zip(words, words[1:], words[2:], strict=False):
            self._next.setdefault((first, second), []).append(third)
        self._pairs = list(self._next)
        self._pick = random.Random(seed)

    def text(self, length: int = MESSAGE_BYTES) -> str:
        words: list[str] = []
        room = length
        first, second = self._pick.choice(self._pairs)
        while room > 0:
            choices = self._next.get((first, second)) or [self._pick.choice(self._pairs)[0]]
            first, second = second, self._pick.choice(choices)
            words.append(second)
            room -= len(second) + 1
        return " ".join(words)[:length]


def _tool_result(prose: Prose, pick: random.Random) -> str:
    rows: list[dict[str, object]] = []
    while len(json.dumps(rows)) < MESSAGE_BYTES - 200:
        rows.append(
            {
                "id": pick.randrange(10**9),
                "title": prose.text(40),
                "score": round(pick.random(), 6),
                "url": f"https://example.org/{pick.randrange(16**8):08x}",
                "tags": prose.text(24).split(),
            }
        )
    result = {"tool": "search", "query": prose.text(60), "results": rows}
    return json.dumps(result, indent=1)[:MESSAGE_BYTES]


def _ledger(prose: Prose, *, next_agent: str) -> dict[str, dict[str, object]]:
    return {
        "is_request_satisfied": {"reason": prose.text(50), "answer": False},
        "is_in_loop": {"reason": prose.text(40), "answer": False},
        "is_progress_being_made": {"reason": prose.text(40), "answer": True},
        "next_speaker": {"reason": prose.text(30), "answer": next_agent},
        "instruction_or_question": {"reason": prose.text(30), "answer": prose.text(50)},
    }

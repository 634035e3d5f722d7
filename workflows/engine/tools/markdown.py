"""Markdown tables: what the tools write, and what the offline team reads back."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

NULL = "NULL"


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table as it was written: every cell is text."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: tuple[bool, ...]


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, numeric: Sequence[bool]) -> str:
    """A pipe table; numeric columns are right-aligned. Every cell stays on its line."""
    return "\n".join(
        (
            _line([_escaped(column) for column in columns]),
            _line(["---:" if is_numeric else "---" for is_numeric in numeric]),
            *(_line([_escaped(cell) for cell in row]) for row in rows),
        )
    )


def parse(text: str) -> Table | None:
    """The first pipe table in `text`; None without one."""
    lines = text.split("\n")
    for place, line in enumerate(lines[1:], 1):
        if re.fullmatch(r"\|(?: *:?-{3,}:? *\|)+", line.strip()):
            return Table(
                columns=tuple(_cells(lines[place - 1])),
                rows=tuple(tuple(_cells(row)) for row in _table_lines(lines[place + 1 :])),
                numeric=tuple(cell.endswith(":") for cell in _cells(line)),
            )
    return None


def _table_lines(lines: Sequence[str]) -> Iterator[str]:
    return takewhile(lambda line: line.startswith("|"), lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(cell: str) -> str:
    return re.sub(r"\s*[\r\n]+\s*", " ", cell).replace("\\", "\\\\").replace("|", "\\|")


def _cells(line: str) -> list[str]:
    parts = re.findall(r"((?:[^|\\]|\\.)*)\|", line.strip().removeprefix("|"))
    return [re.sub(r"\\(.)", r"\1", part.strip()) for part in parts]

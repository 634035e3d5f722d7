"""`Workspace`: what the agents of one run can see of the files attached to its workflow."""

# ruff: noqa: S608 - every name in a query went through `quoted`, every value through `literal`

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from workflows.attachments import Described, in_order
from workflows.reader import LINES_TABLE, Reader, ReaderError, Rows, literal, quoted

from . import markdown, python

NO_FILES = "No file is attached to this task, so there is nothing to read or to query."
MAX_CALLS = 2
"""Tool calls at once in one run; more wait."""
MAX_ROWS = 200
"""Rows of one answer to a model."""
MAX_CHARACTERS = 16_000
"""Of one answer to a model."""
MAX_CELL_CHARACTERS = 300
MAX_LISTED_VALUES = 12
EXAMPLES = 3
MAX_VALUES_CHARACTERS = 500
MAX_PROFILED_COLUMNS = 60
MAX_HITS = 40

_NUMERIC = re.compile(r"(U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?|DOUBLE|FLOAT|DECIMAL.*)")
_COMPARABLE = re.compile(rf"{_NUMERIC.pattern}|VARCHAR|BOOLEAN|DATE|TIME|TIMESTAMP.*|UUID|ENUM.*")


class AttachedFile(Described, Protocol):
    """A `Described` file whose bytes lie at `path`: an `Attachment` row is one."""

    @property
    def path(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class _Column:
    name: str
    type: str

    @property
    def sql(self) -> str:
        return quoted(self.name)


class Workspace:
    """The attached files, opened when a tool first needs them. Close it when the run ends.

    Every method answers with text for a model, whatever happens: a wrong query is an answer too.
    """

    def __init__(self, attachments: Iterable[AttachedFile]) -> None:
        files = in_order(attachments)
        self._reader = Reader([(file.name, Path(file.path)) for file in files])
        self._texts = [file.name for file in files if file.kind == "text"]
        self._has_files = bool(files)
        # Of its own: a tool may take long, and the loop's pool writes everybody's rows.
        self._threads = ThreadPoolExecutor(MAX_CALLS, thread_name_prefix="tools")
        self._is_closed = False

    def close(self) -> None:
        """Stop whatever is running over the files. May be called twice, and from any thread."""
        self._is_closed = True
        self._reader.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def list_tables(self) -> str:
        return await self._over_files(self._list_tables)

    async def query_tables(self, sql: str) -> str:
        return await self._over_files(lambda: _as_markdown(self._reader.query(sql, limit=MAX_ROWS)))

    async def run_python(self, code: str) -> str:
        return await self._answer(lambda: python.run(code, query=self._rows_for_python))

    async def search_text(self, words: str) -> str:
        return await self._over_files(lambda: self._search_text(words))

    async def read_text(self, name: str, start_line: int, lines: int) -> str:
        return await self._over_files(lambda: self._read_text(name, start_line, lines))

    async def _over_files(self, work: Callable[[], str]) -> str:
        return await self._answer(work) if self._has_files else NO_FILES

    async def _answer(self, work: Callable[[], str]) -> str:
        """Do `work` in a thread. A cancelled run does not wait for it, and ends its query."""
        if self._is_closed:
            return "Error: the run has ended, so its files are closed."
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, work)
        except ReaderError as error:
            return f"Error: {error}"
        except asyncio.CancelledError:
            self._reader.interrupt()
            raise

    def _list_tables(self) -> str:
        tables = self._select(
            "SELECT table_name, estimated_size FROM duckdb_tables() "
            f"WHERE table_name != '{LINES_TABLE}' ORDER BY table_oid"
        )
        parts = [self._profile(name) for (name, _) in tables.rows]
        if self._texts:
            parts.append(
                f"Texts, as lines in {LINES_TABLE} (document, line, text): {self._text_list()}"
            )
        return _cut("\n\n".join(parts))

    def _profile(self, table: str) -> str:
        described = self._select(f"DESCRIBE {quoted(table)}")
        columns = [_Column(name=row[0], type=row[1]) for row in described.rows]
        profiled = columns[:MAX_PROFILED_COLUMNS]
        facts = self._select(f"SELECT {', '.join(_facts(profiled))} FROM {quoted(table)}").rows[0]
        rows = []
        for place, column in enumerate(profiled):
            missing, distinct, low, high = facts[1 + 4 * place : 5 + 4 * place]
            few = distinct <= MAX_LISTED_VALUES
            # Of what is nearly an identifier, a few examples are enough.
            limit = MAX_LISTED_VALUES if few or distinct * 2 <= facts[0] else EXAMPLES
            is_listed = column.type == "VARCHAR" or (few and _COMPARABLE.fullmatch(column.type))
            values = self._values(table, column, distinct, limit) if is_listed else ""
            cells = (str(missing), str(distinct), _shown(low), _shown(high), values)
            rows.append([column.name, column.type, *cells])
        text = markdown.table(
            ("column", "type", "missing", "distinct", "min", "max", "values"),
            rows,
            numeric=(False, False, True, True, False, False, False),
        )
        rest = len(columns) - len(profiled)
        note = f"\n\n{rest} more columns are not shown." if rest else ""
        return f"### Table {table}: {facts[0]:,} rows\n\n{text}{note}"

    def _values(self, table: str, column: _Column, distinct: int, limit: int) -> str:
        """The most frequent values as JSON strings, each with its count; "…" for those left."""
        found = self._select(
            f"SELECT CAST({column.sql} AS VARCHAR), count(*) FROM {quoted(table)} "
            f"WHERE {column.sql} IS NOT NULL GROUP BY ALL ORDER BY 2 DESC, 1 LIMIT {limit}"
        ).rows
        listed: list[str] = []
        for value, count in found:
            entry = f"{json.dumps(value, ensure_ascii=False)} ({count})"
            if sum(map(len, listed)) + len(entry) <= MAX_VALUES_CHARACTERS:
                listed.append(entry)
        return ", ".join([*listed, "…"] if len(listed) < distinct else listed)

    def _search_text(self, words: str) -> str:
        terms = re.findall(r"\w+", words.lower())[:20]
        if not self._texts:
            return "No text is attached. Use query_tables for the tables."
        if not terms:
            return "Error: name at least one word to search for."
        score = " + ".join(
            f"CAST(contains(lower(text), {literal(term)}) AS INTEGER)"
            for term in dict.fromkeys(terms)
        )
        found = self._select(
            f"SELECT document, line, text, {score} AS hits FROM {LINES_TABLE} WHERE hits > 0 "
            f"ORDER BY hits DESC, document, line LIMIT {MAX_HITS + 1}"
        ).rows
        if not found:
            return f"No line holds any of: {', '.join(dict.fromkeys(terms))}."
        text = markdown.table(
            ("document", "line", "text"),
            [[_shown(cell) for cell in row[:3]] for row in found[:MAX_HITS]],
            numeric=(False, True, False),
        )
        note = f"\n\nOnly the best {MAX_HITS} lines are shown." if len(found) > MAX_HITS else ""
        return f"{text}{note}"

    def _read_text(self, name: str, start_line: int, lines: int) -> str:
        if name not in self._texts:
            return (
                f"Error: there is no text named {name!r}. There is: {self._text_list() or 'none'}."
            )
        start, count = max(1, start_line), min(max(1, lines), MAX_ROWS)
        found = self._select(
            f"SELECT line, text FROM {LINES_TABLE} WHERE document = {literal(name)} "
            f"AND line BETWEEN {start} AND {start + count - 1} ORDER BY line, rowid"
        ).rows
        if not found:
            return f"{name} has no line {start}: it ends before."
        return _cut("\n".join(f"{line}: {text}" for line, text in found))

    def _text_list(self) -> str:
        return ", ".join(self._texts)

    def _select(self, sql: str) -> Rows:
        return self._reader.query(sql, limit=python.MAX_ROWS)

    def _rows_for_python(self, sql: str) -> list[dict[str, Any]]:
        if not self._has_files:
            raise ReaderError(NO_FILES)
        found = self._select(sql)
        if found.is_truncated:
            raise ReaderError(
                f"The query gives more than {len(found.rows):,} rows. Filter or aggregate in SQL."
            )
        return [
            {
                column: float(value) if kind.startswith("DECIMAL") and value is not None else value
                for column, kind, value in zip(found.columns, found.types, row, strict=True)
            }
            for row in found.rows
        ]


def _facts(columns: Sequence[_Column]) -> list[str]:
    """One aggregate each: the rows, then missing, distinct, min and max of every column."""
    facts = ["count(*)"]
    for column in columns:
        facts.append(f"count(*) - count({column.sql})")
        if _COMPARABLE.fullmatch(column.type):
            facts.append(f"count(DISTINCT {column.sql})")
            facts.extend(f"CAST({f}({column.sql}) AS VARCHAR)" for f in ("min", "max"))
        else:
            facts.extend((f"count({column.sql})", "NULL", "NULL"))
    return facts


def _as_markdown(found: Rows) -> str:
    numeric = [bool(_NUMERIC.fullmatch(kind)) for kind in found.types]
    if not found.rows:
        return f"The query gives no rows. Its columns: {', '.join(found.columns)}."
    rows = [[_shown(cell) for cell in row] for row in found.rows]
    text = markdown.table(found.columns, rows, numeric=numeric)
    if len(text) > MAX_CHARACTERS:
        rows = rows[: max(1, len(rows) * MAX_CHARACTERS // len(text))]
        text = _cut(markdown.table(found.columns, rows, numeric=numeric))
    if found.is_truncated or len(rows) < len(found.rows):
        text += (
            f"\n\nOnly the first {len(rows)} rows are shown. Filter or aggregate to see the rest."
        )
    return text


def _shown(value: Any) -> str:
    if value is None:
        return markdown.NULL
    if isinstance(value, float):
        # 15 digits are what a double holds for sure: 0.1 + 0.2 reads 0.3.
        return f"{value:.15g}" if abs(value) < 1e15 else f"{value:.0f}"
    text = str(value)
    return text if len(text) <= MAX_CELL_CHARACTERS else f"{text[:MAX_CELL_CHARACTERS]}…"


def _cut(text: str) -> str:
    if len(text) <= MAX_CHARACTERS:
        return text
    kept = text[:MAX_CHARACTERS].rpartition("\n")[0] or text[:MAX_CHARACTERS]
    return f"{kept}\n\nThe rest is cut: ask for less at a time."

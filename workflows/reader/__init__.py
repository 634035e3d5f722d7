"""`Reader`: attached files opened in a process of their own, where they can do no harm.

A crafted PDF, a zip bomb or one constant in a query can take all memory of the process that reads
it (`SELECT unnest(range(1000000000))` takes 20 GB in DuckDB whatever its memory limit says). So
files are parsed and queries run in a child with hard limits on memory and time. It holds no secret,
and once the files are loaded it may open no other. This module is the parent's side; `__main__` is
the child's.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

LOAD_SECONDS = 120.0
QUERY_SECONDS = 20.0
LINES_TABLE = "document_lines"
"""The table with the lines of all text files: `document`, `line` (from 1), `text`."""

_ANSWER_LIMIT_BYTES = 64 * 1024 * 1024
_ROOT = Path(__file__).resolve().parent.parent.parent


class ReaderError(Exception):
    """The files or the query can't be read. The text says why, for people and for models."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What a query gave. Values are JSON: numbers, text, booleans, None; dates as ISO text.

    `is_truncated` says that there were more rows than the limit asked for.
    """

    columns: tuple[str, ...]
    types: tuple[str, ...]
    rows: list[list[Any]]
    is_truncated: bool


class Reader:
    """Files, loaded once when first needed, and queries over them. Safe to share between threads.

    When the child is stopped by a limit, the next call starts another and loads the files again.
    """

    def __init__(self, files: Sequence[tuple[str, Path]]) -> None:
        """`files` are (name, path). Nothing is opened yet."""
        self._files = [{"name": name, "path": str(path)} for name, path in files]
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._summaries: list[dict[str, Any]] = []
        self._is_closed = False

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def summaries(self) -> list[dict[str, Any]]:
        """One per file, in order: `{"kind": "table", "tables": […]}` or `{"kind": "text", …}`.

        Raises `ReaderError` when a file can't be read.
        """
        with self._lock:
            self._load()
            return self._summaries

    def query(self, sql: str, *, limit: int, seconds: float = QUERY_SECONDS) -> Rows:
        """Run one read-only statement and return at most `limit` rows. Raises `ReaderError`."""
        with self._lock:
            self._load()
            answer = self._ask({"do": "query", "sql": sql, "limit": limit}, seconds)
        return Rows(
            columns=tuple(answer["columns"]),
            types=tuple(answer["types"]),
            rows=answer["rows"],
            is_truncated=answer["is_truncated"],
        )

    def interrupt(self) -> None:
        """Stop what another thread is waiting for: its call raises `ReaderError`.

        Calls that come later are not disturbed: they start another child.
        """
        if (child := self._child) is not None:
            child.kill()
            child.wait()

    def close(self) -> None:
        """Stop the child, also in the middle of a query. Later calls raise `ReaderError`."""
        self._is_closed = True
        self.interrupt()
        with self._lock:
            self._forget()

    def _load(self) -> None:
        if self._is_closed:
            raise ReaderError("The attached files are closed, because this run has ended.")
        if self._child is not None and self._child.poll() is None:
            return
        self._forget()
        self._child = _start()
        try:
            self._summaries = self._ask({"do": "load", "files": self._files}, LOAD_SECONDS)
        except ReaderError:
            self._forget()
            raise

    def _ask(self, request: dict[str, Any], seconds: float) -> Any:
        child = self._child
        assert child is not None  # noqa: S101 - `_load` started it
        assert child.stdin is not None  # noqa: S101 - both are pipes
        assert child.stdout is not None  # noqa: S101
        overdue = threading.Event()
        watchdog = threading.Timer(seconds, _end, (child, overdue))
        watchdog.start()
        try:
            answer = _exchange(child.stdin, child.stdout, {**request, "seconds": seconds})
        finally:
            watchdog.cancel()
        if answer is None:
            self._forget()
            raise ReaderError(_why_it_ended(request["do"], seconds, overdue.is_set()))
        if "error" in answer:
            raise ReaderError(answer["error"])
        return answer["result"]

    def _forget(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe:
                # What could not be written to a killed child is tried once more on closing.
                with suppress(BrokenPipeError):
                    pipe.close()


def quoted(name: str) -> str:
    """`name` as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """`text` as an SQL string."""
    return "'" + text.replace("'", "''") + "'"


def distinct(name: str, taken: set[str]) -> str:
    """`name`, or `name_2`, `name_3`… when it is taken; names differ by more than their case.

    The result is added to `taken`. Files in the same order always get the same names.
    """
    candidate, count = name, 1
    while candidate.casefold() in taken:
        count += 1
        candidate = f"{name}_{count}"
    taken.add(candidate.casefold())
    return candidate


def table_names(summaries: Iterable[dict[str, Any]]) -> list[list[str]]:
    """The names under which the tables of each file can be queried when opened together."""
    taken = {LINES_TABLE}
    return [
        [distinct(table["name"], taken) for table in summary.get("tables", ())]
        for summary in summaries
    ]


def _start() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-E", "-s", "-m", "workflows.reader"],
        cwd=_ROOT,
        env={"LANG": "C.UTF-8"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def _exchange(
    stdin: IO[bytes], stdout: IO[bytes], request: dict[str, Any]
) -> dict[str, Any] | None:
    """The child's answer, or None when it ended without one."""
    try:
        stdin.write(json.dumps(request).encode() + b"\n")
        stdin.flush()
        line = stdout.readline(_ANSWER_LIMIT_BYTES)
        answer: dict[str, Any] = json.loads(line)
    except (OSError, ValueError):
        return None
    return answer


def _end(child: subprocess.Popen[bytes], overdue: threading.Event) -> None:
    overdue.set()
    child.kill()


def _why_it_ended(request: str, seconds: float, is_overdue: bool) -> str:
    what = "The query" if request == "query" else "Reading the file"
    if is_overdue:
        return (
            f"{what} was stopped after {seconds:g} seconds. "
            "Ask for less: filter earlier, aggregate, or join fewer rows."
        )
    return f"{what} was stopped, because it needed too much memory or the run was ended."

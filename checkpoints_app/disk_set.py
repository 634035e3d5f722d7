from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator
from itertools import batched
from types import TracebackType

_BATCH = 500
_CACHE_KILOBYTES = 16 * 1024


class DiskSet:
    """A set of byte strings in a temporary file: its memory does not grow with what it holds.

    The file has no name and is gone when the set is closed, or the process ends. For one thread.
    """

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.execute(f"PRAGMA cache_size = -{_CACHE_KILOBYTES}")
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("CREATE TABLE items (n INTEGER PRIMARY KEY, item BLOB UNIQUE)")

    def add(self, items: Collection[bytes]) -> list[bytes]:
        """Put `items` in, and return those that were not there yet, each once."""
        new = self.missing(items)
        self._database.executemany("INSERT INTO items (item) VALUES (?)", ((item,) for item in new))
        return new

    def missing(self, items: Collection[bytes]) -> list[bytes]:
        """Those of `items` that are not in the set, each once, in their order."""
        absent: list[bytes] = []
        for batch in batched(dict.fromkeys(items), _BATCH):
            marks = ", ".join("?" * len(batch))
            query = f"SELECT item FROM items WHERE item IN ({marks})"  # noqa: S608 - only "?"
            found = {item for (item,) in self._database.execute(query, batch)}
            absent.extend(item for item in batch if item not in found)
        return absent

    def newest_first(self) -> Iterator[bytes]:
        """The items, the last one added first. Adding meanwhile is fine, and not seen."""
        (last,) = self._database.execute("SELECT coalesce(max(n), 0) FROM items").fetchone()
        while True:
            query = "SELECT n, item FROM items WHERE n <= ? ORDER BY n DESC LIMIT ?"
            rows = self._database.execute(query, (last, _BATCH)).fetchall()
            if not rows:
                return
            yield from (item for _, item in rows)
            last = rows[-1][0] - 1

    def in_order(self) -> Iterator[bytes]:
        """The items, sorted. Add none meanwhile."""
        for (item,) in self._database.execute("SELECT item FROM items ORDER BY item"):
            yield item

    def __len__(self) -> int:
        (count,) = self._database.execute("SELECT count(*) FROM items").fetchone()
        return int(count)

    def __enter__(self) -> DiskSet:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._database.close()

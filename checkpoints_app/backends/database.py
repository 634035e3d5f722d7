"""Chunks in Django's database: they commit, or vanish, together with the index row."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import batched
from typing import Any

from django.db import connection, transaction
from django.db.models import Count, Sum
from django.db.models.functions import Length

from checkpoints_app.models import Chunk

from .base import Backend, Usage

BATCH = 500
"""Digests in one query: SQLite allowed 999 parameters before 3.32."""
FEW = 50
"""Chunks that a save of the run's next checkpoint may add: more, and it is some first save."""
# In SQL, like the index row: through the ORM a save and a load take several times as long.
_PUT = "INSERT INTO checkpoints_app_chunk (digest, data) VALUES (%s, %s) ON CONFLICT DO NOTHING"
_ADD = (
    "INSERT INTO checkpoints_app_chunk (digest, data) VALUES {} "
    "ON CONFLICT DO NOTHING RETURNING digest"
)
_SELECT = "SELECT {} FROM checkpoints_app_chunk WHERE digest IN ({})"


class DatabaseBackend(Backend):
    is_durable = True
    is_shared = True
    is_transactional = True

    def missing(self, digests: Collection[bytes]) -> set[bytes]:
        return set(digests) - {bytes(digest) for (digest,) in _select("digest", digests)}

    def add(self, digests: Collection[bytes], stored: Callable[[bytes], bytes]) -> int:
        if not 0 < len(digests) <= FEW:
            return super().add(digests, stored)
        # Nearly all of them are new, so one statement that says which were does it all.
        chunks = {digest: stored(digest) for digest in sorted(digests)}
        rows = ", ".join(["(%s, %s)"] * len(chunks))
        with connection.cursor() as cursor:
            cursor.execute(_ADD.format(rows), [part for row in chunks.items() for part in row])
            return sum(len(chunks[bytes(digest)]) for (digest,) in cursor.fetchall())

    def put(self, chunks: Mapping[bytes, bytes]) -> None:
        # In one order everywhere: two writers of the same new chunks must not wait for each other.
        with transaction.atomic(savepoint=False), connection.cursor() as cursor:
            cursor.executemany(_PUT, sorted(chunks.items()))

    def get(self, digests: Collection[bytes]) -> dict[bytes, bytes]:
        return {bytes(digest): bytes(data) for digest, data in _select("digest, data", digests)}

    def delete(self, digests: Collection[bytes]) -> int:
        batches = batched(digests, BATCH)
        return sum(int(Chunk.objects.filter(digest__in=batch).delete()[0]) for batch in batches)

    def digests(self) -> Iterator[bytes]:
        yield from map(bytes, Chunk.objects.values_list("digest", flat=True).iterator(BATCH))

    def usage(self) -> Usage:
        total = Chunk.objects.aggregate(chunks=Count("pk"), size_bytes=Sum(Length("data")))
        return Usage(chunks=total["chunks"], size_bytes=total["size_bytes"] or 0)


def _select(columns: str, digests: Collection[bytes]) -> Iterator[tuple[Any, ...]]:
    for batch in batched(digests, BATCH):
        marks = ", ".join(["%s"] * len(batch))
        with connection.cursor() as cursor:
            cursor.execute(_SELECT.format(columns, marks), batch)
            yield from cursor.fetchall()

"""Chunks in Django's database: they commit, or vanish, together with the index row."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import batched

from django.db.models import Count, Sum
from django.db.models.functions import Length

from checkpoints_app.models import Chunk

from .base import Backend, Usage

BATCH = 500
"""Digests in one query: SQLite allowed 999 parameters before 3.32."""


class DatabaseBackend(Backend):
    is_durable = True
    is_shared = True

    def missing(self, digests: Collection[bytes]) -> set[bytes]:
        found = {
            bytes(digest)
            for batch in batched(digests, BATCH)
            for digest in Chunk.objects.filter(digest__in=batch).values_list("digest", flat=True)
        }
        return set(digests) - found

    def put(self, chunks: Mapping[bytes, bytes]) -> None:
        # In one order everywhere: two writers of the same new chunks must not wait for each other.
        rows = [Chunk(digest=digest, data=chunks[digest]) for digest in sorted(chunks)]
        Chunk.objects.bulk_create(rows, batch_size=BATCH // 2, ignore_conflicts=True)

    def get(self, digests: Collection[bytes]) -> dict[bytes, bytes]:
        return dict(self._rows(digests))

    def delete(self, digests: Collection[bytes]) -> int:
        batches = batched(digests, BATCH)
        return sum(int(Chunk.objects.filter(digest__in=batch).delete()[0]) for batch in batches)

    def usage(self) -> Usage:
        total = Chunk.objects.aggregate(chunks=Count("pk"), size_bytes=Sum(Length("data")))
        return Usage(chunks=total["chunks"], size_bytes=total["size_bytes"] or 0)

    @staticmethod
    def _rows(digests: Collection[bytes]) -> Iterator[tuple[bytes, bytes]]:
        for batch in batched(digests, BATCH):
            rows = Chunk.objects.filter(digest__in=batch).values_list("digest", "data")
            yield from ((bytes(digest), bytes(data)) for digest, data in rows)

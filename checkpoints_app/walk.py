from __future__ import annotations

from collections import defaultdict
from itertools import batched

from django.db.models import QuerySet

from . import backends, chunks
from .backends.base import Backend
from .disk_set import DiskSet
from .errors import CheckpointCorrupt
from .models import Checkpoint

ROWS = 500
"""Rows, or chunks, read at a time."""


class Walk:
    """Walks checkpoints down to their last chunk, each chunk once.

    Reads the chunks without checking their hashes. Raises CheckpointCorrupt when one is missing or
    cannot be read, since what lies below it is then unknown. Memory stays constant.
    """

    def __init__(self) -> None:
        self.states = DiskSet()
        """The digests of the states that were walked."""
        self.reached = DiskSet()
        """The digests of their chunks."""

    def __enter__(self) -> Walk:
        return self

    def __exit__(self, *error: object) -> None:
        self.states.__exit__(None, None, None)
        self.reached.__exit__(None, None, None)

    def catch_up(self, rows: QuerySet[Checkpoint], *, without: DiskSet | None = None) -> None:
        """Walk those of `rows` that were not walked yet, `without` those with certain ids."""
        pairs = rows.order_by().values_list("pk", "digest").iterator(ROWS)
        for batch in batched(pairs, ROWS):
            free = without.missing([id.bytes for id, _ in batch]) if without else None
            # By digest, which names the whole state: an id may go and come back with another one.
            ids = {bytes(d): id for id, d in batch if free is None or id.bytes in free}
            for part in batched(self.states.missing(ids), ROWS // 10):
                self.add(Checkpoint.objects.filter(pk__in=[ids[digest] for digest in part]))

    def add(self, rows: QuerySet[Checkpoint]) -> int:
        """Walk a few rows at once, and return the bytes that they add to those walked before.

        Bytes as stored: the manifests, and the chunks that were not reached yet.
        """
        wanted: defaultdict[str, set[bytes]] = defaultdict(set)
        total = 0
        fields = ("pk", "backend", "digest", "manifest")
        for id, address, digest, manifest in rows.values_list(*fields):
            self.states.add([bytes(digest)])
            total += len(manifest)
            try:
                content = chunks.unseal(bytes(manifest))
                wanted[address] |= chunks.manifest_references(content)
            except CheckpointCorrupt as error:
                raise CheckpointCorrupt(f"Checkpoint {id} cannot be read. {error}") from error
        return total + sum(self._reach(backends.at(a), found) for a, found in wanted.items())

    def _reach(self, backend: Backend, wanted: set[bytes]) -> int:
        total = 0
        while wanted:
            below: set[bytes] = set()
            for batch in batched(self.reached.add(wanted), ROWS):
                found = backend.get(batch)
                total += sum(map(len, found.values()))
                if backend.is_durable and len(found) < len(batch):
                    lost = min(set(batch) - found.keys())
                    raise CheckpointCorrupt(f"Chunk {lost.hex()[:16]} is missing.")
                for stored in found.values():
                    below |= chunks.references(chunks.unseal(stored))
            wanted = below
        return total

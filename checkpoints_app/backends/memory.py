"""Chunks in this process: for trials and tests. They are gone when it ends, the index rows stay."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping

from .base import Backend, Usage


class MemoryBackend(Backend):
    is_durable = False
    is_shared = False

    def __init__(self) -> None:
        self._chunks: dict[bytes, bytes] = {}
        self._lock = threading.Lock()

    def missing(self, digests: Collection[bytes]) -> set[bytes]:
        with self._lock:
            return set(digests) - self._chunks.keys()

    def put(self, chunks: Mapping[bytes, bytes]) -> None:
        with self._lock:
            self._chunks.update(chunks)

    def get(self, digests: Collection[bytes]) -> dict[bytes, bytes]:
        with self._lock:
            return {digest: self._chunks[digest] for digest in digests if digest in self._chunks}

    def delete(self, digests: Collection[bytes]) -> int:
        with self._lock:
            return sum(self._chunks.pop(digest, None) is not None for digest in set(digests))

    def digests(self) -> Iterator[bytes]:
        with self._lock:
            digests = list(self._chunks)
        yield from digests

    def usage(self) -> Usage:
        with self._lock:
            return Usage(chunks=len(self._chunks), size_bytes=sum(map(len, self._chunks.values())))

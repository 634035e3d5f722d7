"""Chunks in Redis, one string each. As durable as the server is told to be."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from itertools import batched
from typing import Any
from urllib.parse import urlsplit

from redis import Redis, RedisError
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from checkpoints_app.errors import BackendUnavailable

from .base import Backend, Usage

PREFIX = b"fleet:chunk:"
BATCH = 500
"""Chunks in one round trip."""
TIMEOUT_SECONDS = 20


class RedisBackend(Backend):
    """Durable and shared, on a server that writes its data to disk and evicts nothing.

    A server that may evict any key is refused at the first `put`: it would lose checkpoints without
    a word.
    """

    is_durable = True
    is_shared = True

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._place = parts.netloc.rpartition("@")[2] or parts.path  # without the password
        self._evicts_nothing = False
        try:
            self._client = Redis.from_url(
                url,
                socket_timeout=TIMEOUT_SECONDS,
                socket_connect_timeout=TIMEOUT_SECONDS,
                retry=Retry(ExponentialBackoff(cap=1, base=0.05), retries=3),
            )
        except ValueError as error:
            raise BackendUnavailable(
                "The address of Redis cannot be used. Write redis://HOST:PORT/NUMBER, or rediss:// "
                "for an encrypted connection."
            ) from error

    def missing(self, digests: Collection[bytes]) -> set[bytes]:
        missing: set[bytes] = set()
        for batch in batched(digests, BATCH):
            with self._explaining(), self._client.pipeline(transaction=False) as pipeline:
                for digest in batch:
                    pipeline.exists(_key(digest))
                is_there = pipeline.execute()
            missing.update(d for d, found in zip(batch, is_there, strict=True) if not found)
        return missing

    def put(self, chunks: Mapping[bytes, bytes]) -> None:
        self._refuse_eviction()
        for batch in batched(chunks.items(), BATCH):
            with self._explaining():
                self._client.mset({_key(digest): data for digest, data in batch})

    def get(self, digests: Collection[bytes]) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        for batch in batched(digests, BATCH):
            with self._explaining():
                data = self._client.mget([_key(digest) for digest in batch])
            # Typed as text too, for clients that decode; ours doesn't.
            pairs: Any = zip(batch, data, strict=True)
            found.update((digest, item) for digest, item in pairs if item is not None)
        return found

    def delete(self, digests: Collection[bytes]) -> int:
        deleted = 0
        for batch in batched(digests, BATCH):
            with self._explaining():
                deleted += self._client.unlink(*map(_key, batch))
        return deleted

    def digests(self) -> Iterator[bytes]:
        with self._explaining():
            for key in self._client.scan_iter(PREFIX + b"*", count=BATCH):
                yield bytes.fromhex(key[len(PREFIX) :].decode())

    def usage(self) -> Usage:
        chunks = size_bytes = 0
        with self._explaining():
            for batch in batched(self._client.scan_iter(PREFIX + b"*", count=BATCH), BATCH):
                with self._client.pipeline(transaction=False) as pipeline:
                    for key in batch:
                        pipeline.strlen(key)
                    sizes = pipeline.execute()
                chunks += len(sizes)
                size_bytes += sum(sizes)
        return Usage(chunks=chunks, size_bytes=size_bytes)

    def _refuse_eviction(self) -> None:
        if self._evicts_nothing:
            return
        with self._explaining():
            memory = self._client.info("memory")
        policy = str(memory.get("maxmemory_policy", ""))
        if memory.get("maxmemory") and policy.startswith("allkeys"):
            raise BackendUnavailable(
                f"Redis at {self._place} evicts keys when its memory is full ({policy}), which "
                "would lose checkpoints. Set its maxmemory-policy to noeviction."
            )
        self._evicts_nothing = True

    @contextlib.contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except RedisError as error:
            raise BackendUnavailable(
                f"Redis at {self._place} did not do its part: {error} "
                "Start it, or correct FLEET_REDIS_URL, then try again."
            ) from error


def _key(digest: bytes) -> bytes:
    return PREFIX + digest.hex().encode()

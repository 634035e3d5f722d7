"""Chunks in Azure Cosmos DB, API for NoSQL: one item each, named and partitioned by its digest."""

from __future__ import annotations

import base64
import contextlib
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import batched
from typing import Any

from azure.core.exceptions import AzureError
from azure.cosmos import ContainerProxy, CosmosClient, PartitionKey
from azure.cosmos.exceptions import CosmosResourceNotFoundError

from checkpoints_app.errors import BackendUnavailable

from .base import Backend, Usage

DATABASE, CONTAINER = "agenticfleet", "chunks"
BATCH = 100
"""Items named in one query."""
PART_BYTES = 1_400_000
"""Bytes of a chunk in one item: in base64, and with the item's own fields, below the 2 MB that an
item may have (https://learn.microsoft.com/azure/cosmos-db/concepts-limits)."""
CONNECTIONS = 8
"""Requests under way at once."""
_ONLY_IDS = {"indexingMode": "consistent", "includedPaths": [], "excludedPaths": [{"path": "/*"}]}
"""Cosmos indexes every field unless told not to, which would be most of a write's price."""


class CosmosBackend(Backend):
    """Durable and shared. Connects at the first use, and makes database and container if absent.

    A chunk larger than an item may be is cut into parts `<digest>-1`, `<digest>-2`, …; they are
    written before the item `<digest>`, and without it the chunk is not there.
    """

    is_durable = True
    is_shared = True

    def __init__(self, connection_string: str) -> None:
        """Takes the account's connection string; `Database=…;Container=…;` in it are optional."""
        fields = dict(field.split("=", 1) for field in connection_string.split(";") if "=" in field)
        try:
            self._endpoint, self._key = fields["AccountEndpoint"], fields["AccountKey"]
        except KeyError as error:
            raise BackendUnavailable(
                f"The connection string of Cosmos DB has no {error.args[0]}. Copy the whole "
                "string from the account's page Keys into FLEET_COSMOS_CONNECTION."
            ) from error
        self._names = fields.get("Database", DATABASE), fields.get("Container", CONTAINER)
        self._opened: ContainerProxy | None = None
        self._lock = threading.Lock()

    def missing(self, digests: Collection[bytes]) -> set[bytes]:
        found = {bytes.fromhex(item["id"]) for item in self._heads("c.id", digests)}
        return set(digests) - found

    def put(self, chunks: Mapping[bytes, bytes]) -> None:
        parts = [part for digest, data in chunks.items() for part in _tail_items(digest, data)]
        heads = [_head_item(digest, data) for digest, data in chunks.items()]
        self._each(lambda container, item: container.upsert_item(item), parts)
        self._each(lambda container, item: container.upsert_item(item), heads)

    def get(self, digests: Collection[bytes]) -> dict[bytes, bytes]:
        heads = self._read(digest.hex() for digest in digests)
        tails = self._read(name for head in heads.values() for name in _tail_names(head))
        return {
            bytes.fromhex(name): b"".join(map(_data, [head, *map(tails.get, _tail_names(head))]))
            for name, head in heads.items()
            if all(tail in tails for tail in _tail_names(head))
        }

    def delete(self, digests: Collection[bytes]) -> int:
        heads = list(self._heads("c.id, c.parts", digests))
        deleted = self._each(_delete, [head["id"] for head in heads])
        self._each(_delete, [name for head in heads for name in _tail_names(head)])
        return sum(deleted)

    def digests(self) -> Iterator[bytes]:
        for item in self._query("SELECT c.id FROM c WHERE IS_DEFINED(c.size_bytes)"):
            yield bytes.fromhex(item["id"])

    def usage(self) -> Usage:
        chunks = size_bytes = 0
        for item in self._query("SELECT c.size_bytes FROM c WHERE IS_DEFINED(c.size_bytes)"):
            chunks += 1
            size_bytes += item["size_bytes"]
        return Usage(chunks=chunks, size_bytes=size_bytes)

    def _heads(self, fields: str, digests: Collection[bytes]) -> Iterator[dict[str, Any]]:
        for batch in batched(digests, BATCH):
            names = {f"@{number}": digest.hex() for number, digest in enumerate(batch)}
            yield from self._query(
                f"SELECT {fields} FROM c WHERE c.id IN ({', '.join(names)})",  # noqa: S608
                [{"name": name, "value": value} for name, value in names.items()],
            )

    def _query(
        self, query: str, parameters: list[dict[str, Any]] | None = None
    ) -> Iterator[dict[str, Any]]:
        with self._explaining():
            yield from self._container().query_items(
                query, parameters=parameters, enable_cross_partition_query=True
            )

    def _read(self, names: Iterable[str]) -> dict[str, dict[str, Any]]:
        wanted = [(name, name) for name in names]
        with self._explaining():
            items = self._container().read_items(wanted, max_concurrency=CONNECTIONS)
        return {item["id"]: item for item in items}

    def _each[Item, Done](
        self, work: Callable[[ContainerProxy, Item], Done], items: Collection[Item]
    ) -> list[Done]:
        if not items:
            return []
        with self._explaining(), ThreadPoolExecutor(CONNECTIONS) as pool:
            container = self._container()
            return list(pool.map(lambda item: work(container, item), items))

    def _container(self) -> ContainerProxy:
        with self._lock:
            if self._opened is None:
                self._opened = self._open()
            return self._opened

    def _open(self) -> ContainerProxy:
        database_name, container_name = self._names
        client = CosmosClient(self._endpoint, self._key, retry_write=3)
        database = client.create_database_if_not_exists(database_name)
        return database.create_container_if_not_exists(
            container_name, PartitionKey("/id"), indexing_policy=_ONLY_IDS
        )

    @contextlib.contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except AzureError as error:
            raise BackendUnavailable(
                f"Cosmos DB at {self._endpoint} did not do its part: {error.message} "
                "Check the account and FLEET_COSMOS_CONNECTION, then try again."
            ) from error


def _head_item(digest: bytes, data: bytes) -> dict[str, Any]:
    parts = max(1, -(-len(data) // PART_BYTES))
    return _item(digest.hex(), data[:PART_BYTES]) | {"parts": parts, "size_bytes": len(data)}


def _tail_items(digest: bytes, data: bytes) -> Iterator[dict[str, Any]]:
    for number, start in enumerate(range(PART_BYTES, len(data), PART_BYTES), start=1):
        yield _item(f"{digest.hex()}-{number}", data[start : start + PART_BYTES])


def _tail_names(head: Mapping[str, Any]) -> list[str]:
    return [f"{head['id']}-{number}" for number in range(1, head["parts"])]


def _item(name: str, data: bytes) -> dict[str, Any]:
    return {"id": name, "data": base64.b64encode(data).decode()}


def _data(item: Any) -> bytes:
    return base64.b64decode(item["data"])


def _delete(container: ContainerProxy, name: str) -> bool:
    try:
        container.delete_item(name, partition_key=name)
    except CosmosResourceNotFoundError:
        return False
    return True

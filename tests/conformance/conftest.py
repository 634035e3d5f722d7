"""Every backend, empty, for each test of the suite."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from redis import Redis

from checkpoints_app import backends
from checkpoints_app.backends.base import Backend
from tests.cosmos_server import CosmosServer

SHARED = [storage_type for storage_type in backends.TYPES if storage_type != "memory"]


@pytest.fixture(params=backends.TYPES)
def address(request: pytest.FixtureRequest) -> str:
    """The address by which checkpoints name the backend."""
    return request.getfixturevalue(f"{request.param}_address")


@pytest.fixture(params=SHARED)
def shared_address(request: pytest.FixtureRequest) -> str:
    """Only those that other processes see, which are those that outlive a process."""
    return request.getfixturevalue(f"{request.param}_address")


@pytest.fixture
def backend(address: str) -> Backend:
    return backends.at(address)


@pytest.fixture
def database_address() -> str:
    return "database"


@pytest.fixture
def file_address(tmp_path: Any) -> str:
    return f"file:{tmp_path}/chunks"


@pytest.fixture
def memory_address() -> str:
    backends._open.cache_clear()
    return "memory"


@pytest.fixture
def redis_address(redis_url: str, settings: Any) -> Iterator[str]:
    settings.CHECKPOINT_LOCATIONS = {"redis": redis_url}
    with Redis.from_url(redis_url) as client:
        client.flushdb()
        yield "redis"


@pytest.fixture
def cosmos_address(cosmos: CosmosServer, settings: Any) -> str:
    settings.CHECKPOINT_LOCATIONS = {"cosmos": cosmos.connection_string}
    cosmos.clear()
    return "cosmos"

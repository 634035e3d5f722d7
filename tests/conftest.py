from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from asgiref.sync import sync_to_async
from django.db import connections

from tests.cosmos_server import CosmosServer
from tests.model_server import ModelServer

MODEL_VARIABLES = (
    "OPENAI_BASE_URL",
    "OPENAI_API_KEY",
    "OPENAI_CHAT_COMPLETION_MODEL",
    "OPENAI_MODEL",
)
DATABASE_FIXTURES = {"db", "transactional_db", "django_db_reset_sequences", "live_server"}


def pytest_configure(config: pytest.Config) -> None:
    # A developer's own model must neither be called by the tests nor paid for.
    for name in MODEL_VARIABLES:
        os.environ.pop(name, None)
    config.addinivalue_line(
        "markers", "database: uses the database; runs again on PostgreSQL where there is one"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if item.get_closest_marker("django_db") or fixtures & DATABASE_FIXTURES:
            item.add_marker("database")


@pytest.fixture
def model_server() -> Iterator[ModelServer]:
    """A running model server of this test's own. `.url` is what OPENAI_BASE_URL would be."""
    with ModelServer() as server:
        yield server


@pytest.fixture
def configured_model(model_server: ModelServer, monkeypatch: pytest.MonkeyPatch) -> ModelServer:
    """The model server, with the environment pointing to it."""
    monkeypatch.setenv("OPENAI_BASE_URL", model_server.url)
    monkeypatch.setenv("OPENAI_MODEL", "test-model")
    return model_server


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis server that tests may fill and empty; without one the test is skipped."""
    if url := os.environ.get("FLEET_TEST_REDIS_URL"):
        yield url
        return
    program = shutil.which("redis-server")
    if not program:
        pytest.skip("Redis is missing. Install it: sudo apt-get install -y redis-server")
    folder = tmp_path_factory.mktemp("redis")
    options = ["--port", "0", "--save", "", "--appendonly", "no", "--dir", str(folder)]
    command = [program, *options, "--unixsocket", str(folder / "socket")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert any("ready to accept connections" in line.lower() for line in server.stdout)
            yield f"unix://{folder}/socket"
        finally:
            server.terminate()


@pytest.fixture(scope="session")
def cosmos() -> Iterator[CosmosServer]:
    with CosmosServer() as server:
        yield server


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser's path; without one the test is skipped."""
    path = os.environ.get("FLEET_TEST_CHROMIUM") or shutil.which("chromium")
    if not path:
        pytest.skip("Chromium is missing. Install it: sudo apt-get install -y chromium")
    return path


@pytest.fixture
async def database_threads() -> AsyncIterator[None]:
    """For asynchronous tests: close the connections that other threads opened, one each."""
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(max_workers=1))
    yield
    await sync_to_async(connections.close_all, thread_sensitive=False)()
    await sync_to_async(connections.close_all)()

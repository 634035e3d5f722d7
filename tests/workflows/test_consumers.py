from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import uuid4

import pytest
from channels.db import database_sync_to_async
from channels.testing import WebsocketCommunicator
from django.conf import settings
from django.contrib.auth.models import User
from django.test import Client

from fleet_site.asgi import application
from tests.factories import make_event, make_run, make_user, make_workflow
from workflows import consumers, live
from workflows.models import Run

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("database_threads"),
]

type Connect = Callable[..., Awaitable[WebsocketCommunicator]]

NEVER = 1_000.0
SOON = 0.01

add_event = database_sync_to_async(make_event)


@pytest.fixture
def owner() -> User:
    return make_user()


@pytest.fixture
def run(owner: User) -> Run:
    """A run with three events."""
    run = make_run(make_workflow(owner), status=Run.Status.RUNNING)
    for _ in range(3):
        make_event(run)
    return run


@pytest.fixture(autouse=True)
def _no_timers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but a ring wakes anybody, unless a test says so."""
    monkeypatch.setattr(live, "POLL_SECONDS", NEVER)
    monkeypatch.setattr(consumers, "RECHECK_SECONDS", NEVER)


@pytest.fixture
def session(owner: User) -> str:
    return log_in(owner)


@pytest.fixture
async def connect(
    run: Run, session: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Connect]:
    """Opens sockets to the run, each through the whole application, and closes them at the end."""
    monkeypatch.setattr(live, "_server_loop", asyncio.get_running_loop())
    opened = []

    async def connect(cookie: str = session, *, to: Any = run.id) -> WebsocketCommunicator:
        headers = [
            (b"origin", settings.SOCKET_ORIGINS[0].encode()),
            (b"cookie", f"{settings.SESSION_COOKIE_NAME}={cookie}".encode()),
        ]
        socket = WebsocketCommunicator(application, f"/ws/runs/{to}/", headers=headers)
        accepted, _ = await socket.connect(timeout=10)
        assert accepted
        opened.append(socket)
        return socket

    yield connect
    for socket in opened:
        await socket.disconnect()


def log_in(user: User) -> str:
    client = Client()
    client.force_login(user)
    return client.cookies[settings.SESSION_COOKIE_NAME].value


async def sequences(socket: WebsocketCommunicator, count: int) -> list[int]:
    """The numbers of the next `count` fragments."""
    return [sequence_of(await socket.receive_from(timeout=10)) for _ in range(count)]


def sequence_of(fragment: str) -> int:
    found = re.match(r'<div data-sequence="(\d+)"', fragment)
    assert found, fragment
    return int(found[1])


async def closing_code(socket: WebsocketCommunicator) -> int:
    message = await socket.receive_output(timeout=10)
    assert message["type"] == "websocket.close"
    return int(message["code"])


async def test_it_sends_what_follows_the_cursor(connect: Connect) -> None:
    socket = await connect()

    await socket.send_json_to({"after": 1})

    assert await sequences(socket, 2) == [2, 3]


async def test_it_sends_news_when_the_doorbell_rings(connect: Connect, run: Run) -> None:
    socket = await connect()
    await socket.send_json_to({"after": 2})
    await sequences(socket, 1)

    await add_event(run)
    live.ring(run.id)

    assert await sequences(socket, 1) == [4]


async def test_it_finds_news_when_the_ring_is_lost(
    connect: Connect, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "POLL_SECONDS", SOON)
    socket = await connect()
    await socket.send_json_to({"after": 3})

    await add_event(run)

    assert await sequences(socket, 1) == [4]


async def test_it_sends_each_event_once_when_rings_are_doubled(connect: Connect, run: Run) -> None:
    socket = await connect()
    await socket.send_json_to({"after": 3})

    for _ in range(3):
        await add_event(run)
        live.ring(run.id)
        live.ring(run.id)

    assert await sequences(socket, 3) == [4, 5, 6]


async def test_it_waits_for_a_page_that_does_not_acknowledge(
    connect: Connect, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumers, "WINDOW", 2)
    socket = await connect()
    await socket.send_json_to({"after": 0})

    assert await sequences(socket, 2) == [1, 2]
    assert await socket.receive_nothing()
    await socket.send_json_to({"ack": 2})

    assert await sequences(socket, 1) == [3]


async def test_it_catches_up_in_several_reads(
    connect: Connect, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "BATCH", 2)
    await add_event(run)
    await add_event(run)
    socket = await connect()

    await socket.send_json_to({"after": 0})

    assert await sequences(socket, 5) == [1, 2, 3, 4, 5]


async def test_it_serves_pages_at_different_places(connect: Connect) -> None:
    ahead, behind = await connect(), await connect()
    await ahead.send_json_to({"after": 2})
    await sequences(ahead, 1)

    await behind.send_json_to({"after": 0})

    assert await sequences(behind, 3) == [1, 2, 3]


async def test_it_shows_what_is_being_written(connect: Connect, run: Run) -> None:
    socket = await connect()
    await socket.send_json_to({"after": 2})
    await sequences(socket, 1)

    live.stream(run.id, agent="coder", text="EMEA <b>leads</b>")

    html = await socket.receive_from(timeout=10)
    assert "EMEA &lt;b&gt;leads&lt;/b&gt;" in html
    assert 'aria-busy="true"' in html


async def test_it_clears_the_stream_with_the_whole_message(connect: Connect) -> None:
    socket = await connect()

    await socket.send_json_to({"after": 2})

    html = await socket.receive_from(timeout=10)
    assert 'id="stream"' in html
    assert 'aria-busy="false"' in html


async def test_it_limits_streams_that_a_page_does_not_acknowledge(
    connect: Connect, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumers, "STREAM_WINDOW", 1)
    socket = await connect()
    await socket.send_json_to({"after": 2})
    await sequences(socket, 1)
    live.stream(run.id, agent="coder", text="one")
    assert "one" in await socket.receive_from(timeout=10)

    live.stream(run.id, agent="coder", text="two")
    assert await socket.receive_nothing()
    live.stream(run.id, agent="coder", text="three")
    assert await socket.receive_nothing()
    await socket.send_json_to({"ack": 3})

    assert "three" in await socket.receive_from(timeout=10)


async def test_it_refuses_the_anonymous(connect: Connect) -> None:
    assert await closing_code(await connect("")) == 4401


async def test_it_refuses_a_stranger(connect: Connect) -> None:
    stranger = await database_sync_to_async(lambda: log_in(make_user()))()

    assert await closing_code(await connect(stranger)) == 4404


async def test_it_knows_no_such_run(connect: Connect) -> None:
    assert await closing_code(await connect(to=uuid4())) == 4404


@pytest.mark.parametrize(
    "message",
    [
        "{}",
        "not json",
        "[1]",
        '{"after": -1}',
        '{"after": true}',
        '{"after": "1"}',
        '{"after": 99}',
        '{"ack": 1}',
        '{"after": 1' + " " * 200 + "}",
    ],
)
async def test_it_refuses_a_bad_cursor(connect: Connect, message: str) -> None:
    socket = await connect()

    await socket.send_to(text_data=message)

    assert await closing_code(socket) == 4400


async def test_it_refuses_a_second_cursor(connect: Connect) -> None:
    socket = await connect()
    await socket.send_json_to({"after": 3})

    await socket.send_json_to({"after": 0})

    assert await closing_code(socket) == 4400


async def test_it_ends_when_the_user_logs_out(
    connect: Connect, run: Run, owner: User, session: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumers, "RECHECK_SECONDS", SOON)
    socket = await connect()
    await socket.send_json_to({"after": 3})

    client = Client(headers={"cookie": f"{settings.SESSION_COOKIE_NAME}={session}"})
    await database_sync_to_async(client.post)("/logout/")

    assert await closing_code(socket) == 4401


async def test_it_ends_when_the_workflow_is_taken_away(
    connect: Connect, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumers, "RECHECK_SECONDS", SOON)
    socket = await connect()
    await socket.send_json_to({"after": 3})

    workflow = run.workflow
    workflow.owner = await database_sync_to_async(make_user)()
    await database_sync_to_async(workflow.save)()

    assert await closing_code(socket) == 4404

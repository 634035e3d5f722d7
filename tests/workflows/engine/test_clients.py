from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from agent_framework import Agent as FrameworkAgent
from agent_framework import Message, tool
from agent_framework.orchestrations import MagenticBuilder

from tests.model_server import ModelServer
from workflows.engine import clients
from workflows.engine.clients import (
    ModelNotConfigured,
    chat_options,
    close_client,
    is_offline,
    make_client,
    model_label,
)
from workflows.engine.offline import OfflineClient
from workflows.team import Agent

KEY = "sk-test-0123456789abcdefghij"


def make_agent(**overrides: Any) -> Agent:
    return Agent(**{"name": "coder"} | overrides)


@asynccontextmanager
async def connected(agent: Agent) -> AsyncIterator[Any]:
    client = make_client(agent)
    try:
        yield client
    finally:
        await close_client(client)


async def ask(agent: Agent, text: str = "Hello") -> Any:
    async with connected(agent) as client:
        return await client.get_response([Message("user", [text])], options=chat_options(agent))


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK's own pause between two tries, made short."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.001)


# Which client an agent gets


def test_it_works_offline_when_nothing_is_configured() -> None:
    agent = make_agent()

    assert is_offline(agent)
    assert model_label(agent) == "offline-rules"
    assert isinstance(make_client(agent), OfflineClient)


def test_it_works_offline_on_request_beside_a_configured_model(
    configured_model: ModelServer,
) -> None:
    agent = make_agent(model="offline")

    assert is_offline(agent)
    assert isinstance(make_client(agent), OfflineClient)


async def test_it_uses_the_server_and_model_of_the_environment(
    configured_model: ModelServer,
) -> None:
    answer = await ask(make_agent())

    assert answer.text == "Reply to: Hello"
    assert configured_model.requests[0].body["model"] == "test-model"


async def test_it_prefers_the_agents_own_server_and_model(
    model_server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("OPENAI_MODEL", "another")

    await ask(make_agent(base_url=model_server.url, model="mine"))

    assert model_server.requests[0].body["model"] == "mine"


async def test_it_prefers_the_variable_made_for_chat_completions(
    configured_model: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_CHAT_COMPLETION_MODEL", "first")

    await ask(make_agent())

    assert configured_model.requests[0].body["model"] == "first"


def test_it_names_the_model_in_its_label(configured_model: ModelServer) -> None:
    assert model_label(make_agent()) == "test-model"
    assert not is_offline(make_agent())


# Keys


async def test_it_sends_the_key_of_the_environment(
    configured_model: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    await ask(make_agent())

    assert configured_model.requests[0].authorization == f"Bearer {KEY}"


async def test_it_needs_no_key_for_a_local_server(configured_model: ModelServer) -> None:
    await ask(make_agent())

    assert configured_model.requests[0].authorization == "Bearer no-key-needed"


async def test_it_keeps_the_environments_key_from_an_agents_own_server(
    model_server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    await ask(make_agent(base_url=model_server.url, model="mine"))

    assert KEY not in model_server.requests[0].authorization


async def test_it_takes_the_key_from_the_variable_that_the_agent_names(
    model_server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)

    await ask(make_agent(base_url=model_server.url, model="mine", api_key_env="MY_KEY"))

    assert model_server.requests[0].authorization == f"Bearer {KEY}"


async def test_it_shows_the_key_nowhere(
    configured_model: ModelServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    configured_model.fail(status=401)

    async with connected(make_agent()) as client:
        with pytest.raises(Exception, match="401") as caught:
            await client.get_response([Message("user", ["Hello"])])
        shown = repr(client) + str(client.to_dict()) + repr(caught.value)

    assert KEY not in shown
    assert KEY not in caplog.text


# Half a configuration


def test_it_refuses_a_key_without_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    with pytest.raises(ModelNotConfigured, match="Set OPENAI_MODEL"):
        make_client(make_agent())


def test_it_refuses_a_server_without_a_model(model_server: ModelServer) -> None:
    with pytest.raises(ModelNotConfigured, match="Agent coder has a server or a key, but no model"):
        make_client(make_agent(base_url=model_server.url))


def test_it_refuses_a_model_without_a_server() -> None:
    with pytest.raises(ModelNotConfigured, match="OPENAI_API_KEY for OpenAI, or OPENAI_BASE_URL"):
        make_client(make_agent(model="gpt-5"))


def test_it_refuses_a_variable_that_is_not_set(model_server: ModelServer) -> None:
    agent = make_agent(base_url=model_server.url, model="mine", api_key_env="NOT_SET_ANYWHERE")

    with pytest.raises(ModelNotConfigured, match="NOT_SET_ANYWHERE, which is not set"):
        make_client(agent)


# Options


def test_it_passes_the_temperature_on(configured_model: ModelServer) -> None:
    assert chat_options(make_agent(temperature=0.2)) == {"temperature": 0.2}


def test_it_asks_openai_itself_to_store_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    assert chat_options(make_agent(model="gpt-5")) == {"store": False}


# The wire


async def test_it_streams_text_and_usage(configured_model: ModelServer) -> None:
    async with connected(make_agent()) as client:
        stream = client.get_response([Message("user", ["One two three"])], stream=True)
        pieces = [update.text async for update in stream]
        whole = await stream.get_final_response()

    assert len([piece for piece in pieces if piece]) > 3
    assert whole.text == "Reply to: One two three"
    assert whole.usage_details["output_token_count"] > 0


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_it_calls_tools_with_arguments_that_arrive_in_pieces(
    configured_model: ModelServer, is_streamed: bool
) -> None:
    configured_model.tool = ("add", {"first": 20, "second": 22})

    @tool(approval_mode="never_require")
    def add(first: int, second: int) -> int:
        """Add two numbers."""
        return first + second

    async with connected(make_agent()) as client:
        answer = client.get_response(
            [Message("user", ["Add them"])], stream=is_streamed, options={"tools": [add]}
        )
        text = (await (answer.get_final_response() if is_streamed else answer)).text

    assert text == "Reply to: 42"
    assert len(configured_model.requests) == 2


async def test_it_outlasts_a_busy_server(configured_model: ModelServer) -> None:
    configured_model.fail(5, status=429, retry_after="0")

    answer = await ask(make_agent())

    assert answer.text == "Reply to: Hello"
    assert len(configured_model.requests) == 6


async def test_it_gives_up_on_a_server_that_stays_broken(configured_model: ModelServer) -> None:
    configured_model.fail(50, status=503)

    with pytest.raises(Exception, match="503"):
        await ask(make_agent())

    assert len(configured_model.requests) == 1 + clients.MAX_RETRIES


async def test_it_gives_up_on_a_server_that_never_answers(
    configured_model: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "READ_TIMEOUT_SECONDS", 0.05)
    monkeypatch.setattr(clients, "MAX_RETRIES", 1)
    configured_model.hang(2)

    with pytest.raises(Exception, match="timed out"):
        await ask(make_agent())

    assert len(configured_model.requests) == 2


async def test_it_notices_a_stream_that_breaks_off(configured_model: ModelServer) -> None:
    configured_model.cut()

    async with connected(make_agent()) as client:
        stream = client.get_response([Message("user", ["One two three"])], stream=True)
        with pytest.raises(Exception, match="Connection error"):
            await stream.get_final_response()

    assert len(configured_model.requests) == 1


async def test_it_stops_the_request_when_cancelled(configured_model: ModelServer) -> None:
    configured_model.hang()
    request = asyncio.ensure_future(ask(make_agent()))
    await asyncio.to_thread(configured_model.wait_for_requests)

    request.cancel()

    with pytest.raises(asyncio.CancelledError):
        await request


# The server as a Magentic team


async def run_team(**overrides: Any) -> str:
    client = make_client(make_agent())
    workflow = MagenticBuilder(
        participants=[
            FrameworkAgent(client, name=name, description=name, instructions=f"You are {name}.")
            for name in ("researcher", "coder")
        ],
        manager_agent=FrameworkAgent(client, name="manager"),
        max_round_count=8,
        **overrides,
    ).build()
    events = workflow.run("Count to three", stream=True)
    outputs = [event.data.text async for event in events if event.type == "output"]
    await close_client(client)
    return outputs[-1]


async def test_it_plays_a_team_for_as_many_rounds_as_told(configured_model: ModelServer) -> None:
    configured_model.rounds = 3

    answer = await run_team()

    assert answer == "FINAL ANSWER for: Count to three"
    assert configured_model.count("ledger") == 4
    assert configured_model.count("worker") == 3


async def test_it_plays_a_stall(configured_model: ModelServer) -> None:
    configured_model.stalled_from = 1

    await run_team(max_stall_count=1, max_reset_count=1)

    assert configured_model.count("plan_update") == 1


async def test_it_breaks_a_ledger_and_nothing_else(configured_model: ModelServer) -> None:
    configured_model.break_ledger()

    answer = await run_team()

    assert answer == "FINAL ANSWER for: Count to three"
    assert configured_model.count("ledger") == 5

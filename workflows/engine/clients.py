"""An agent's model: any OpenAI-compatible server, or the offline planner when none is configured.

The environment is read when a client is made, so a key never lies in a team, a row or a log:
`OPENAI_BASE_URL`, `OPENAI_API_KEY`, and `OPENAI_CHAT_COMPLETION_MODEL` or `OPENAI_MODEL`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from workflows.pricing import OFFLINE
from workflows.team import OFFLINE_MODEL, Agent

if TYPE_CHECKING:
    from agent_framework import SupportsChatGetResponse

CONNECT_TIMEOUT_SECONDS = 10.0
# Between two pieces of an answer: a local model on a small machine reads a long prompt for minutes.
READ_TIMEOUT_SECONDS = 300.0
# With the SDK's backoff this outlasts half a minute of "429 Too Many Requests".
MAX_RETRIES = 6

_NO_KEY = "no-key-needed"


class ModelNotConfigured(Exception):
    """A model is configured by half: the message says what is missing and how to add it."""


@dataclass(frozen=True, kw_only=True)
class _Server:
    """Where an agent's requests go. An empty `base_url` is OpenAI's own."""

    model: str
    base_url: str
    api_key: str = field(repr=False)


def make_client(agent: Agent) -> SupportsChatGetResponse[Any]:
    """Return a new chat client for the agent; close it with `close_client`.

    Raises `ModelNotConfigured` when a server, a key or a model is named and the rest is missing.
    """
    server = _server(agent)
    if server is None:
        from .offline import OfflineClient

        return OfflineClient(agent.name)
    return _connect(server)


async def close_client(client: SupportsChatGetResponse[Any]) -> None:
    """Close the client's connections. The offline planner has none."""
    connection = getattr(client, "client", None)
    if connection is not None:
        await connection.close()


def chat_options(agent: Agent) -> dict[str, Any]:
    """Options for every request of the agent.

    `store` is refused to OpenAI's own service, so that no history of a run stays there; other
    servers keep none, and some reject the key.
    """
    options: dict[str, Any] = {}
    if agent.temperature is not None:
        options["temperature"] = agent.temperature
    if not is_offline(agent) and not _base_url(agent):
        options["store"] = False
    return options


def is_offline(agent: Agent) -> bool:
    """Whether the rule-based planner does this agent's work: no language model takes part."""
    if agent.model == OFFLINE_MODEL:
        return True
    return not (_model(agent) or _base_url(agent) or _names_a_key(agent))


def model_label(agent: Agent) -> str:
    """The model's name for pages and reports."""
    return OFFLINE if is_offline(agent) else _model(agent) or "no model set"


def _server(agent: Agent) -> _Server | None:
    if is_offline(agent):
        return None
    if not (model := _model(agent)):
        raise ModelNotConfigured(
            f"Agent {agent.name} has a server or a key, but no model. Set OPENAI_MODEL, or "
            f"`model` for {agent.name} in the team file."
        )
    return _Server(model=model, base_url=_base_url(agent), api_key=_api_key(agent, model))


def _api_key(agent: Agent, model: str) -> str:
    if agent.api_key_env:
        if key := os.environ.get(agent.api_key_env):
            return key
        raise ModelNotConfigured(
            f"Agent {agent.name} takes its key from {agent.api_key_env}, which is not set. "
            f"Set it, or remove `api_key_env` from the team file."
        )
    # An agent's own server never gets the key that was meant for another one.
    key = "" if agent.base_url else os.environ.get("OPENAI_API_KEY", "")
    if key or _base_url(agent):
        return key or _NO_KEY
    raise ModelNotConfigured(
        f"Agent {agent.name} uses the model {model}, but nothing says where it is. Set "
        f"OPENAI_API_KEY for OpenAI, or OPENAI_BASE_URL for another server; or set "
        f"`model: {OFFLINE_MODEL}` to work without a model."
    )


def _model(agent: Agent) -> str:
    return (
        agent.model
        or os.environ.get("OPENAI_CHAT_COMPLETION_MODEL", "")
        or os.environ.get("OPENAI_MODEL", "")
    )


def _base_url(agent: Agent) -> str:
    return agent.base_url or os.environ.get("OPENAI_BASE_URL", "")


def _names_a_key(agent: Agent) -> bool:
    return bool(agent.api_key_env or os.environ.get("OPENAI_API_KEY"))


def _connect(server: _Server) -> SupportsChatGetResponse[Any]:
    # Imported late: pages ask for labels alone, and the two take a second to load.
    from agent_framework.openai import OpenAIChatCompletionClient
    from openai import AsyncOpenAI, Timeout

    connection = AsyncOpenAI(
        api_key=server.api_key,
        base_url=server.base_url or "https://api.openai.com/v1",
        max_retries=MAX_RETRIES,
        timeout=Timeout(READ_TIMEOUT_SECONDS, connect=CONNECT_TIMEOUT_SECONDS),
    )
    return OpenAIChatCompletionClient(model=server.model, async_client=connection)

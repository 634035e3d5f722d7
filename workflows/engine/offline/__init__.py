"""The offline team: rules in place of a language model, over the same tools and the same files.

A client is a pure function of the messages it is given: it keeps nothing and draws nothing by lot.
So a run that is resumed or forked goes on exactly as it would have.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from typing import Any

from agent_framework import (
    BaseChatClient,
    ChatMiddlewareLayer,
    ChatResponse,
    ChatResponseUpdate,
    Content,
    FunctionInvocationLayer,
    Message,
    ResponseStream,
    UsageDetails,
)
from agent_framework.observability import ChatTelemetryLayer

from workflows.pricing import OFFLINE

from . import conversation, manager, worker

DELAY_SECONDS = 0.02
"""Between two pieces of an answer, so that people can see it being written."""

_NOTHING_USED = UsageDetails(input_token_count=0, output_token_count=0, total_token_count=0)


class _Rules(BaseChatClient[Any]):
    OTEL_PROVIDER_NAME = OFFLINE

    def __init__(
        self, agent_name: str, *, delay_seconds: float, max_rounds: int, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.agent_name = agent_name
        self.delay_seconds = delay_seconds
        self.max_rounds = max_rounds
        self.model = OFFLINE

    def _inner_get_response(
        self,
        *,
        messages: Sequence[Message],
        stream: bool,
        options: Mapping[str, Any],
        **kwargs: Any,
    ) -> Awaitable[ChatResponse[Any]] | ResponseStream[ChatResponseUpdate, ChatResponse[Any]]:
        if stream:
            return self._build_response_stream(self._pieces(messages, options))
        return self._whole(messages, options)

    async def _whole(
        self, messages: Sequence[Message], options: Mapping[str, Any]
    ) -> ChatResponse[Any]:
        contents = self._contents(messages, options)
        return ChatResponse(
            messages=[Message("assistant", contents)],
            response_id=_response_id(self.agent_name, messages),
            model=OFFLINE,
            usage_details=_NOTHING_USED,
            finish_reason="stop",
        )

    async def _pieces(
        self, messages: Sequence[Message], options: Mapping[str, Any]
    ) -> AsyncIterator[ChatResponseUpdate]:
        identity = _response_id(self.agent_name, messages)
        for content in self._contents(messages, options):
            for piece in _split(content):
                yield _update(piece, identity)
                if self.delay_seconds:
                    await asyncio.sleep(self.delay_seconds)
        yield _update(Content.from_usage(_NOTHING_USED), identity)

    def _contents(self, messages: Sequence[Message], options: Mapping[str, Any]) -> list[Content]:
        said = [message for message in messages if message.role != "system"]
        if prompt := conversation.recognise(said):
            text = manager.speak(said, prompt, max_rounds=self.max_rounds)
            return [Content.from_text(text)]
        tools = {getattr(tool, "name", "") for tool in options.get("tools") or ()}
        return worker.act(self.agent_name, said, tools)


class OfflineClient(
    FunctionInvocationLayer[Any], ChatMiddlewareLayer[Any], ChatTelemetryLayer[Any], _Rules
):
    """A chat client without a model. It plays the manager or an agent, whichever is spoken to."""

    def __init__(
        self,
        agent_name: str,
        *,
        delay_seconds: float = DELAY_SECONDS,
        max_rounds: int = 12,
        **kwargs: Any,
    ) -> None:
        """`max_rounds` is what the manager fits its steps into, by taking several in one round."""
        super().__init__(
            agent_name=agent_name, delay_seconds=delay_seconds, max_rounds=max_rounds, **kwargs
        )


def _response_id(agent: str, messages: Sequence[Message]) -> str:
    said = json.dumps([agent, *(message.to_dict() for message in messages)], default=str)
    return f"offline_{hashlib.sha256(said.encode()).hexdigest()[:24]}"


def _split(content: Content) -> list[Content]:
    """A text in pieces of a line or a few words; anything else whole."""
    if content.type != "text" or not content.text:
        return [content]
    return [Content.from_text(piece) for piece in re.findall(r"(?:\S+\s*){1,8}|\s+", content.text)]


def _update(content: Content, identity: str) -> ChatResponseUpdate:
    return ChatResponseUpdate(
        role="assistant",
        contents=[content],
        response_id=identity,
        message_id=identity,
        model=OFFLINE,
    )

"""Every model call passes here: journalled, metered, replayed after a crash, halted on failure."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from agent_framework import (
    ChatContext,
    ChatMiddleware,
    ChatResponse,
    ChatResponseUpdate,
    Content,
    Message,
    ResponseStream,
)

from checkpoints_app.threads import in_thread
from workflows.events import EventKind, printable
from workflows.pricing import cost_usd
from workflows.recorder import CallKey, Recorder, Usage
from workflows.team import Price


class Journal:
    """The model calls of one attempt at a run.

    A finished call is stored before the engine sees its answer, so an attempt that repeats a
    superstep gets the stored answer and pays nothing. The first failed call stops all later ones:
    Agent Framework answers a failed call of the manager by wiping the conversation and planning
    anew, and only a second failure makes it stop with its state intact.
    """

    def __init__(self, recorder: Recorder, prices: Mapping[str, Price]) -> None:
        self.recorder = recorder
        self.prices = prices
        self.superstep = 0
        self.failure: Exception | None = None
        self._seen: Counter[tuple[int, str, str]] = Counter()

    def middleware(self, agent: str, *, is_manager: bool = False) -> ChatMiddleware:
        """The chat middleware for one agent. The manager's texts show as plan and decision."""
        return _JournalMiddleware(self, agent, tells_messages=not is_manager)

    def next_key(self, agent: str, messages: Sequence[Message]) -> CallKey:
        """Name the call about to be made. Each identical request of a superstep counts one up."""
        digest = _request_hash(messages)
        ordinal = self._seen[self.superstep, agent, digest]
        self._seen[self.superstep, agent, digest] += 1
        return CallKey(superstep=self.superstep, agent=agent, request_hash=digest, ordinal=ordinal)


class _JournalMiddleware(ChatMiddleware):
    def __init__(self, journal: Journal, agent: str, *, tells_messages: bool) -> None:
        self.journal = journal
        self.agent = agent
        self.tells_messages = tells_messages

    async def process(self, context: ChatContext, call_next: Callable[[], Awaitable[None]]) -> None:
        if self.journal.failure:
            raise self.journal.failure
        try:
            await self._answer(context, call_next)
        except Exception as error:
            # A failure while a stream is read surfaces in the agent's own executor and fails the
            # run there. Everything else, a failed write of ours too, must stop all later calls.
            self.journal.failure = error
            raise

    async def _answer(self, context: ChatContext, call_next: Callable[[], Awaitable[None]]) -> None:
        key = self.journal.next_key(self.agent, context.messages)
        stored = await in_thread(self.journal.recorder.finished_call, key)
        if stored is not None:
            response: ChatResponse[Any] = ChatResponse.from_dict(stored)
            await self._tell(key, response)
            context.result = _as_stream(response) if context.stream else response
            return
        await self._call(context, call_next, key)

    async def _call(
        self, context: ChatContext, call_next: Callable[[], Awaitable[None]], key: CallKey
    ) -> None:
        started = time.monotonic()

        async def keep(response: ChatResponse[Any]) -> None:
            duration_ms = round((time.monotonic() - started) * 1000)
            await in_thread(
                self.journal.recorder.record_call,
                key,
                self._usage(response, duration_ms),
                json.loads(json.dumps(response.to_dict(), default=str)),
            )
            await self._tell(key, response)

        if context.stream:
            context.stream_transform_hooks.append(_storable_update)
            context.stream_result_hooks.append(keep)
            await call_next()
            return
        await call_next()
        if not isinstance(context.result, ChatResponse):
            raise TypeError(f"The model client of {self.agent} returned no response.")
        for message in context.result.messages:
            _make_storable(message.contents)
        await keep(context.result)

    async def _tell(self, key: CallKey, response: ChatResponse[Any]) -> None:
        """Add the events of what the agent said and which tools it called, once each."""
        if not self.tells_messages:
            return
        append = self.journal.recorder.append
        if response.text.strip():
            await in_thread(
                append,
                EventKind.MESSAGE,
                key=f"message:{key}",
                agent=self.agent,
                text=response.text,
            )
        calls = [
            content
            for message in response.messages
            for content in message.contents
            if content.type == "function_call"
        ]
        for index, call in enumerate(calls):
            await in_thread(
                append,
                EventKind.TOOL_CALL,
                key=f"tool_call:{key}:{index}",
                agent=self.agent,
                call_id=call.call_id,
                tool=call.name,
                arguments=_arguments(call.arguments),
            )

    def _usage(self, response: ChatResponse[Any], duration_ms: int) -> Usage:
        details = response.usage_details or {}
        model = (response.model or "")[:200]
        input_tokens = int(details.get("input_token_count") or 0)
        output_tokens = int(details.get("output_token_count") or 0)
        return Usage(
            model=model,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            cost_usd=cost_usd(
                model,
                input_tokens=input_tokens,
                output_tokens=output_tokens,
                on=datetime.now(UTC).date(),
                prices=self.journal.prices,
            ),
            duration_ms=duration_ms,
        )


def _storable_update(update: ChatResponseUpdate) -> ChatResponseUpdate:
    _make_storable(update.contents)
    return update


def _make_storable(contents: Iterable[Content]) -> None:
    """Replace what no database, page or request can hold, before the engine sees the answer."""
    for content in contents:
        if content.text:
            content.text = printable(content.text)
        if isinstance(content.arguments, str):
            content.arguments = printable(content.arguments)


def _arguments(arguments: Any) -> Any:
    """Tool arguments as an object; what is not JSON stays the string that the model wrote."""
    if isinstance(arguments, str):
        try:
            return json.loads(arguments)
        except ValueError:
            return arguments
    return dict(arguments or {})


def _as_stream(
    response: ChatResponse[Any],
) -> ResponseStream[ChatResponseUpdate, ChatResponse[Any]]:
    """Play a stored response as the stream that the engine expects."""

    async def updates() -> AsyncIterator[ChatResponseUpdate]:
        for message in response.messages:
            yield ChatResponseUpdate(
                role=message.role,  # type: ignore[arg-type]
                contents=message.contents,
                author_name=message.author_name,
                message_id=message.message_id,
                response_id=response.response_id,
                model=response.model,
            )

    return ResponseStream(updates(), finalizer=ChatResponse.from_updates)


def _request_hash(messages: Sequence[Message]) -> str:
    """SHA-256 over what the model would see; message ids differ between attempts and stay out."""
    seen = [
        [
            message.role,
            message.author_name,
            [
                [
                    content.type,
                    content.text,
                    getattr(content, "call_id", None),
                    getattr(content, "name", None),
                    getattr(content, "arguments", None),
                    getattr(content, "result", None),
                ]
                for content in message.contents
            ],
        ]
        for message in messages
    ]
    return hashlib.sha256(json.dumps(seen, default=str).encode()).hexdigest()

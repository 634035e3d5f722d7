"""A chat client that answers at once: what is measured around it is everything but the model."""

from __future__ import annotations

import json
import random
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from pydoc_data.topics import topics
from typing import Any

from agent_framework import (
    BaseChatClient,
    ChatMiddlewareLayer,
    ChatResponse,
    ChatResponseUpdate,
    Content,
    FunctionInvocationLayer,
    Message,
)
from agent_framework.observability import ChatTelemetryLayer

AGENTS = ("researcher", "coder", "analyst")
_WORDS = sorted({word for text in topics.values() for word in re.findall(r"[A-Za-z]{2,12}", text)})


def prose(size_bytes: int, seed: int) -> str:
    """Text out of the interpreter's documentation, so that it compresses as text does."""
    pick = random.Random(seed)
    words: list[str] = []
    length = 0
    while length < size_bytes:
        word = _WORDS[int(len(_WORDS) * pick.random() ** 2.2)]
        words.append(word)
        length += len(word) + 1
    return " ".join(words)[:size_bytes]


class _Instant(BaseChatClient):
    OTEL_PROVIDER_NAME = "instant"

    def __init__(self, *, rounds: int, reply_bytes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rounds = rounds
        self.reply_bytes = reply_bytes

    def _inner_get_response(
        self, *, messages: Sequence[Message], stream: bool, options: Mapping[str, Any], **_: Any
    ) -> Any:
        text = self._reply(messages)

        async def whole() -> ChatResponse:
            return ChatResponse(messages=[Message("assistant", [text])], model="instant")

        async def pieces() -> AsyncIterator[ChatResponseUpdate]:
            yield ChatResponseUpdate(
                role="assistant", contents=[Content.from_text(text)], model="instant"
            )

        return self._build_response_stream(pieces()) if stream else whole()

    def _reply(self, messages: Sequence[Message]) -> str:
        asked = messages[-1].text
        done = sum(m.role == "assistant" and m.author_name in AGENTS for m in messages)
        if "pure JSON format" in asked:
            return _ledger(done, is_satisfied=done >= self.rounds)
        if "pre-survey" in asked or "devise a short bullet-point plan" in asked:
            return "- one agent after the other"
        if "We have completed the task." in asked:
            return "Done."
        return prose(self.reply_bytes, seed=int(re.findall(r"\d+", asked)[0]))


class InstantClient(FunctionInvocationLayer, ChatMiddlewareLayer, ChatTelemetryLayer, _Instant):
    """Plays manager and agents for `rounds` rounds of `reply_bytes` each."""


def _ledger(done: int, *, is_satisfied: bool) -> str:
    def item(answer: Any) -> dict[str, Any]:
        return {"reason": f"{done} rounds done", "answer": answer}

    return json.dumps(
        {
            "is_request_satisfied": item(is_satisfied),
            "is_in_loop": item(False),
            "is_progress_being_made": item(True),
            "next_speaker": item(AGENTS[done % len(AGENTS)]),
            "instruction_or_question": item(f"Step {done + 1}: do your part."),
        }
    )

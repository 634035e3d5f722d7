"""A model that plays a whole Magentic team, and the workflow around it: the only fake here."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from agent_framework import (
    Agent,
    BaseChatClient,
    ChatMiddlewareLayer,
    ChatResponse,
    ChatResponseUpdate,
    Content,
    FunctionInvocationLayer,
    Message,
    Workflow,
    tool,
)
from agent_framework.observability import ChatTelemetryLayer
from agent_framework_orchestrations import MagenticBuilder

AGENTS = ("researcher", "coder", "analyst")


@dataclass
class Script:
    """What the team does: `rounds` replies in turn, of `reply_bytes` each."""

    rounds: int = 3
    reply_bytes: int = 0
    tool_user: str | None = None
    """The agent that calls the tool once in each of its turns."""
    stalls: int = 0
    """Decisions that report no progress, before the team gets going."""
    calls: list[str] = field(default_factory=list)

    def answer(self, who: str, messages: Sequence[Message]) -> Content:
        self.calls.append(who)
        last = messages[-1].text
        if "pure JSON format" in last:
            return Content.from_text(self._ledger(messages))
        if who == "manager":
            return Content.from_text(f"The manager's text on: {last[:60]}")
        if who == self.tool_user and messages[-1].role != "tool":
            arguments = json.dumps({"a": 2, "b": 3})
            return Content.from_function_call("call-1", "add", arguments=arguments)
        text = f"{who} says ünïcode {len(self.calls)}. "
        return Content.from_text(text + _prose(self.reply_bytes, seed=len(self.calls)))

    def _ledger(self, messages: Sequence[Message]) -> str:
        done = sum(message.author_name in AGENTS for message in messages)
        is_stalled = self.stalls > 0
        self.stalls -= is_stalled
        return json.dumps(
            {
                "is_request_satisfied": {"reason": "r", "answer": done >= self.rounds},
                "is_in_loop": {"reason": "r", "answer": False},
                "is_progress_being_made": {"reason": "r", "answer": not is_stalled},
                "next_speaker": {"reason": "r", "answer": AGENTS[done % len(AGENTS)]},
                "instruction_or_question": {"reason": "r", "answer": f"Do step {done + 1}."},
            }
        )


def _prose(size: int, seed: int) -> str:
    words = (f"word{(seed * 7919 + i * 104729) % 5003}" for i in range(size // 9))
    return " ".join(words)


class _Client(BaseChatClient):
    OTEL_PROVIDER_NAME = "fake"

    def __init__(self, who: str, script: Script, **options: Any) -> None:
        super().__init__(**options)
        self.who, self.script = who, script

    def _inner_get_response(
        self,
        *,
        messages: Sequence[Message],
        stream: bool,
        options: Mapping[str, Any],
        **kwargs: Any,
    ) -> Any:
        # What a provider's client leaves behind: objects that no checkpoint can hold.
        leftovers = {"raw_representation": SimpleNamespace(id="x", socket=object())}
        usage = {"input_token_count": 3, "output_token_count": 5, "total_token_count": 8}

        async def whole() -> ChatResponse:
            content = self.script.answer(self.who, messages)
            return ChatResponse(
                messages=[Message("assistant", [content], **leftovers)],
                model="fake",
                usage_details=usage,
                additional_properties={"logprobs": SimpleNamespace()},
                **leftovers,
            )

        async def parts() -> AsyncIterator[ChatResponseUpdate]:
            content = self.script.answer(self.who, messages)
            for item in (content, Content.from_usage(usage)):
                yield ChatResponseUpdate(
                    role="assistant",
                    contents=[item],
                    message_id=f"message-{len(self.script.calls)}",
                    model="fake",
                    additional_properties={"logprobs": SimpleNamespace()},
                    **leftovers,
                )

        return self._build_response_stream(parts()) if stream else whole()


class FakeChatClient(FunctionInvocationLayer, ChatMiddlewareLayer, ChatTelemetryLayer, _Client):
    """The layers that the framework's own clients have."""

    def __init__(self, who: str, script: Script, **options: Any) -> None:
        super().__init__(who=who, script=script, **options)


@tool(approval_mode="always_require", name="add")
def add_with_approval(a: int, b: int) -> int:
    """Add two integers."""
    return a + b


@tool(approval_mode="never_require", name="add")
def add(a: int, b: int) -> int:
    """Add two integers."""
    return a + b


def team(
    script: Script, storage: Any = None, *, tool: Any = add, name: str = "team", **options: Any
) -> Workflow:
    """The workflow of a manager and three agents; one of them may use `tool`."""
    agents = [
        Agent(
            FakeChatClient(who, script),
            name=who,
            description=f"The {who}",
            tools=[tool] if script.tool_user == who else None,
        )
        for who in AGENTS
    ]
    return MagenticBuilder(
        participants=agents,
        manager_agent=Agent(FakeChatClient("manager", script), name="manager"),
        name=name,
        checkpoint_storage=storage,
        max_round_count=100_000,
        intermediate_output_from="all_other",
        **options,
    ).build()


async def drive(workflow: Workflow, **options: Any) -> tuple[list[str], dict[str, Any]]:
    """Run to the end or the next question. Returns the outputs, and open requests by id."""
    outputs: list[str] = []
    requests: dict[str, Any] = {}
    async for event in workflow.run(stream=True, **options):
        if event.type == "output":
            outputs.append(event.data.text)
        if event.type == "request_info":
            requests[event.request_id] = event.data
    return outputs, requests

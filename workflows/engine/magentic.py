"""A team as an Agent Framework Magentic workflow, and the framework's events as ours.

What this file relies on in the framework, and `tests/workflows/engine/test_magentic.py` checks: one
superstep is half a round; a checkpoint is saved before `superstep_completed`; a failed save is
logged and swallowed; a run stops after 100 supersteps along its lineage unless told otherwise.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from agent_framework import (
    Agent,
    CheckpointStorage,
    Content,
    FunctionTool,
    Message,
    Workflow,
    WorkflowEvent,
)
from agent_framework.orchestrations import (
    MagenticBuilder,
    MagenticPlanReviewRequest,
    MagenticPlanReviewResponse,
    MagenticProgressLedger,
)

from checkpoints_app.adapters.agent_framework import DjangoCheckpointStorage, spare_copies
from workflows import team as teams

from .clients import chat_options, close_client, make_client
from .journal import Journal

NO_SUPERSTEP_LIMIT = 1_000_000
"""The framework's own cap of 100 supersteps hides behind our limit of rounds, so it is lifted."""


class CheckpointNotSaved(Exception):
    """The state could not be stored, so the run stops before it does anything it might lose."""


@dataclass(frozen=True, kw_only=True)
class Planned:
    """The manager wrote facts and plan."""

    text: str
    is_replan: bool


@dataclass(frozen=True, kw_only=True)
class Decided:
    """The manager filled in its progress ledger."""

    is_satisfied: bool
    is_in_loop: bool
    is_progressing: bool
    next_agent: str
    instruction: str
    reasons: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class RoundStarted:
    """An agent was asked; `number` counts along the whole line of the run, from 1."""

    number: int


@dataclass(frozen=True, kw_only=True)
class Wrote:
    """An agent wrote some more; `text` is the new piece only."""

    agent: str
    text: str


@dataclass(frozen=True, kw_only=True)
class ToolReturned:
    agent: str
    call_id: str
    tool: str
    result: str
    is_error: bool


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The run needs a person's answer: a plan (`text`) or a tool call (`tool` and `arguments`)."""

    request_id: str
    subject: str
    agent: str
    text: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Answered:
    """The final answer. `is_synthesised` is False for the framework's canned text at a limit."""

    text: str
    is_synthesised: bool


@dataclass(frozen=True, kw_only=True)
class SuperstepStarted:
    number: int


@dataclass(frozen=True, kw_only=True)
class SuperstepCompleted:
    number: int


EngineEvent = (
    Planned
    | Decided
    | RoundStarted
    | Wrote
    | ToolReturned
    | Asked
    | Answered
    | SuperstepStarted
    | SuperstepCompleted
)


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where to begin: with a task, or at a checkpoint with people's answers by request id."""

    task: str = ""
    checkpoint_id: str | None = None
    replies: Mapping[str, Mapping[str, str]] | None = None


class Engine:
    """One Magentic workflow, good for one attempt at one run."""

    def __init__(
        self,
        team: teams.Team,
        *,
        name: str,
        task: str,
        tools: Mapping[str, list[FunctionTool]],
        journal: Journal,
        storage: CheckpointStorage | None,
        max_rounds: int,
    ) -> None:
        self.journal = journal
        self.storage = storage
        self.needs_plan_review = team.plan_review
        self._tool_names: dict[str, str] = {}
        self._clients = {agent.name: make_client(agent) for agent in (team.manager, *team.agents)}
        self._workflow = self._build(team, name=name, task=task, tools=tools, max_rounds=max_rounds)

    async def close(self) -> None:
        """Close the connections to the model servers."""
        for client in self._clients.values():
            await close_client(client)

    async def events(self, start: Start) -> AsyncGenerator[EngineEvent]:
        """Run from `start` until the answer, a question for a person, or an exception.

        Raises `CheckpointNotSaved` when storing failed, else whatever stopped the engine.
        """
        arguments: Mapping[str, Any] | None = await self._arguments(start)
        while arguments is not None:
            approved = {}
            async for event in self._stream(arguments):
                if self._approves_itself(event):
                    approved[event.request_id] = MagenticPlanReviewResponse.approve()
                    continue
                for ours in self._translate(event):
                    yield ours
            # Nobody asked to review plans: such a request comes from a fork that replans.
            arguments = {"responses": approved} if approved else None

    def _build(
        self,
        team: teams.Team,
        *,
        name: str,
        task: str,
        tools: Mapping[str, list[FunctionTool]],
        max_rounds: int,
    ) -> Workflow:
        participants = [
            Agent(
                self._clients[agent.name],
                name=agent.name,
                description=_description(agent),
                # The framework shows workers neither task nor plan, only the manager's words.
                instructions=f"{agent.instructions}\n\nThe task of the whole team:\n{task}",
                tools=tools[agent.name] or None,
                middleware=[self.journal.middleware(agent.name)],
                default_options=chat_options(agent),
            )
            for agent in team.agents
        ]
        manager = Agent(
            self._clients[teams.MANAGER],
            name=teams.MANAGER,
            description=team.manager.description,
            instructions=team.manager.instructions,
            middleware=[self.journal.middleware(teams.MANAGER, is_manager=True)],
            default_options=chat_options(team.manager),
        )
        workflow = MagenticBuilder(
            participants=participants,
            manager_agent=manager,
            name=name,
            checkpoint_storage=self.storage,
            enable_plan_review=team.plan_review,
            max_round_count=max_rounds,
            max_stall_count=team.limits.max_stalls,
            max_reset_count=team.limits.max_resets,
            intermediate_output_from="all_other",
        ).build()
        workflow._runner._max_iterations = NO_SUPERSTEP_LIMIT
        if isinstance(self.storage, DjangoCheckpointStorage):
            spare_copies(workflow)
        return workflow

    async def _stream(self, arguments: Mapping[str, Any]) -> AsyncIterator[WorkflowEvent[Any]]:
        async for event in self._workflow.run(stream=True, **arguments):
            if event.type == "superstep_started":
                self.journal.superstep = event.iteration or 0
                self._check_saved(None)
            elif event.type == "superstep_completed":
                self._check_saved(event.iteration)
            yield event

    def _check_saved(self, superstep: int | None) -> None:
        """Raise when the framework swallowed a failed save; `superstep` has just finished."""
        status: Any = self.storage
        if status is None:
            return
        if status.error is not None:
            raise CheckpointNotSaved(str(status.error)) from status.error
        saved = status.last_saved
        if superstep is not None and (saved is None or saved.superstep != superstep):
            raise CheckpointNotSaved(f"Superstep {superstep} left no checkpoint.")

    async def _arguments(self, start: Start) -> dict[str, Any]:
        if start.checkpoint_id is None:
            return {"message": start.task}
        arguments: dict[str, Any] = {"checkpoint_id": start.checkpoint_id}
        if start.replies and self.storage is not None:
            checkpoint = await self.storage.load(start.checkpoint_id)
            pending = checkpoint.pending_request_info_events
            # A reply that was delivered before a crash is no longer pending and must not go twice.
            replies = {
                request: _response(pending[request].data, reply)
                for request, reply in start.replies.items()
                if request in pending
            }
            if replies:
                arguments["responses"] = replies
        return arguments

    def _approves_itself(self, event: WorkflowEvent[Any]) -> bool:
        return (
            event.type == "request_info"
            and isinstance(event.data, MagenticPlanReviewRequest)
            and not self.needs_plan_review
        )

    def _translate(self, event: WorkflowEvent[Any]) -> Iterable[EngineEvent]:
        match event.type:
            case "superstep_started":
                yield SuperstepStarted(number=event.iteration or 0)
            case "superstep_completed":
                yield SuperstepCompleted(number=event.iteration or 0)
            case "magentic_orchestrator":
                yield _manager_event(event.data)
            case "group_chat" if hasattr(event.data, "round_index"):
                if type(event.data).__name__ == "GroupChatRequestSentEvent":
                    yield RoundStarted(number=event.data.round_index)
            case "intermediate":
                yield from self._agent_events(event.executor_id or "", event.data.contents)
            case "output":
                text = "".join(c.text or "" for c in event.data.contents if c.type == "text")
                yield Answered(text=text, is_synthesised=not is_limit_text(text))
            case "request_info":
                yield _asked(event)

    def _agent_events(self, agent: str, contents: Iterable[Content]) -> Iterable[EngineEvent]:
        for content in contents:
            if content.type == "text" and content.text:
                yield Wrote(agent=agent, text=content.text)
            elif content.type == "function_call" and content.call_id and content.name:
                self._tool_names[content.call_id] = content.name
            elif content.type == "function_result":
                call_id, result = content.call_id or "", _result_text(content)
                yield ToolReturned(
                    agent=agent,
                    call_id=call_id,
                    tool=self._tool_names.get(call_id, ""),
                    result=result,
                    # Our tools never raise: they tell the model, in a text that begins so.
                    is_error=bool(content.exception) or result.startswith("Error"),
                )


def is_limit_text(text: str) -> bool:
    """Whether this is what the framework says at its limit of rounds or resets."""
    return text.startswith("Workflow terminated due to reaching maximum ")


def _description(agent: teams.Agent) -> str:
    """What the manager reads about an agent: it chooses better when it knows who has which tool."""
    tools = f" Tools: {', '.join(agent.tools)}." if agent.tools else ""
    return f"{agent.description}{tools}"


def _manager_event(data: Any) -> EngineEvent:
    content = data.content
    if isinstance(content, MagenticProgressLedger):
        return Decided(
            is_satisfied=content.is_request_satisfied.answer is True,
            is_in_loop=content.is_in_loop.answer is True,
            is_progressing=content.is_progress_being_made.answer is True,
            next_agent=str(content.next_speaker.answer),
            instruction=str(content.instruction_or_question.answer),
            reasons={
                "satisfied": content.is_request_satisfied.reason,
                "in_loop": content.is_in_loop.reason,
                "progressing": content.is_progress_being_made.reason,
                "next_agent": content.next_speaker.reason,
                "instruction": content.instruction_or_question.reason,
            },
        )
    return Planned(text=content.text, is_replan=data.event_type.value == "replanned")


def _asked(event: WorkflowEvent[Any]) -> Asked:
    data = event.data
    if isinstance(data, MagenticPlanReviewRequest):
        return Asked(
            request_id=event.request_id,
            subject="plan",
            agent=teams.MANAGER,
            text=data.plan.text,
            arguments={},
        )
    call = data.function_call
    return Asked(
        request_id=event.request_id,
        subject="tool_call",
        agent=event.source_executor_id,
        text=call.name,
        arguments=call.parse_arguments() or {},
    )


def _response(request: Any, reply: Mapping[str, str]) -> Any:
    """A person's stored answer as what the framework wants to hear."""
    approved = reply["decision"] == "approve"
    if not isinstance(request, MagenticPlanReviewRequest):
        return request.to_function_approval_response(approved=approved)
    if approved:
        return MagenticPlanReviewResponse.approve()
    return MagenticPlanReviewResponse.revise(Message("user", [reply["text"]], author_name="user"))


def _result_text(content: Content) -> str:
    if content.exception:
        return str(content.exception)
    if isinstance(content.result, str):
        return content.result
    return "\n".join(str(getattr(item, "text", item)) for item in content.result or [])

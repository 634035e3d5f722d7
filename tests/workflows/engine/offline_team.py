"""Real Magentic runs of the offline team over real files, for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent_framework import (
    Agent,
    InMemoryCheckpointStorage,
    Workflow,
    WorkflowCheckpoint,
)
from agent_framework.orchestrations import (
    MagenticBuilder,
    MagenticPlanReviewRequest,
    MagenticPlanReviewResponse,
)

from workflows import attachments
from workflows.engine import fork
from workflows.engine.offline import OfflineClient
from workflows.engine.tools import Workspace, build_tools
from workflows.reader import Reader

# No name tells what an agent does: only the tools in its description do.
TEAM: Mapping[str, tuple[str, Sequence[str]]] = {
    "ada": ("Looks things up.", ("list_tables", "search_text", "read_text")),
    "bo": ("Computes.", ("query_tables", "run_python")),
    "cy": ("Checks.", ("query_tables", "list_tables")),
}


@dataclass(frozen=True)
class Attached:
    name: str
    kind: str
    path: str
    summary: dict[str, Any]


@dataclass
class Outcome:
    """What came of a run."""

    answer: str = ""
    plans: list[str] = field(default_factory=list)
    speakers: list[str] = field(default_factory=list)
    instructions: list[str] = field(default_factory=list)
    checkpoints: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    @property
    def rounds(self) -> int:
        return len(self.speakers)

    def after_round(self, number: int) -> str:
        """The checkpoint after the reply in the n-th round; a round is two supersteps."""
        return self.checkpoints[2 * number - 1]


def attach(*paths: Path) -> list[Attached]:
    files = []
    for path in paths:
        with Reader([(path.name, path)]) as reader:
            summary = reader.summaries()[0]
        files.append(Attached(path.name, summary["kind"], str(path), summary))
    return files


class Room:
    """One workflow: its files, its team and its checkpoints."""

    def __init__(
        self,
        *paths: Path,
        team: Mapping[str, tuple[str, Sequence[str]]] = TEAM,
        max_rounds: int = 12,
        needs_approval: frozenset[str] = frozenset(),
        approves: bool = True,
    ) -> None:
        self.files = attach(*paths)
        self.team = team
        self.max_rounds = max_rounds
        self.needs_approval = needs_approval
        self.approves = approves
        self.storage = InMemoryCheckpointStorage()

    async def run(self, task: str) -> Outcome:
        text = "\n\n".join(part for part in (task, attachments.describe(self.files)) if part)
        return await self._drive(message=text)

    async def fork(
        self, checkpoint_id: str, instruction: str, *, mode: fork.Mode = "steer", answer: str = ""
    ) -> Outcome:
        derived = fork.derive(
            await self.storage.load(checkpoint_id),
            instruction,
            mode=mode,
            workflow_name="test",
            final_answer=answer,
            load=_no_turn_is_half_done,
        )
        await self.storage.save(derived.checkpoint)
        replies = {
            request: MagenticPlanReviewResponse.revise(reply["text"])
            for request, reply in derived.replies.items()
        }
        start: dict[str, Any] = {"checkpoint_id": derived.checkpoint.checkpoint_id}
        return await self._drive(**start, **({"responses": replies} if replies else {}))

    async def resume(self, checkpoint_id: str) -> Outcome:
        return await self._drive(checkpoint_id=checkpoint_id)

    async def _drive(self, **start: Any) -> Outcome:
        workspace, outcome = Workspace(self.files), Outcome()
        workflow = self._build(workspace)
        try:
            while start:
                start = await _events(workflow, start, outcome, approves=self.approves)
        finally:
            workspace.close()
        return outcome

    def _build(self, workspace: Workspace) -> Workflow:
        agents = [
            Agent(
                OfflineClient(name, delay_seconds=0),
                name=name,
                description=f"{about} Tools: {', '.join(tools)}.",
                instructions="Do as you are told.",
                tools=build_tools(tools, workspace, needs_approval=self.needs_approval),
            )
            for name, (about, tools) in self.team.items()
        ]
        return MagenticBuilder(
            participants=agents,
            manager_agent=Agent(OfflineClient("manager", delay_seconds=0), name="manager"),
            name="test",
            checkpoint_storage=self.storage,
            max_round_count=self.max_rounds,
            intermediate_output_from="all_other",
        ).build()


def _no_turn_is_half_done(checkpoint_id: str) -> WorkflowCheckpoint:
    raise LookupError(checkpoint_id)


async def _events(
    workflow: Workflow, start: dict[str, Any], outcome: Outcome, *, approves: bool
) -> dict[str, Any]:
    """Collect the events; what is returned goes on where a plan or a call waits for approval."""
    approvals: dict[str, Any] = {}
    async for event in workflow.run(stream=True, **start):
        if event.type == "superstep_completed":
            outcome.checkpoints.append(workflow.get_last_checkpoint_id() or "")
        elif event.type == "output":
            outcome.answer += event.data.text
        elif event.type == "request_info" and isinstance(event.data, MagenticPlanReviewRequest):
            approvals[event.request_id] = event.data.approve()
        elif event.type == "request_info":
            outcome.asked.append(event.data.function_call.name)
            answer = event.data.to_function_approval_response(approved=approves)
            approvals[event.request_id] = answer
        elif event.type == "magentic_orchestrator":
            _note(event.data.content, outcome)
    return {"responses": approvals} if approvals else {}


def _note(content: Any, outcome: Outcome) -> None:
    if not hasattr(content, "next_speaker"):
        outcome.plans.append(content.text)
    elif not content.is_request_satisfied.answer:
        outcome.speakers.append(content.next_speaker.answer)
        outcome.instructions.append(content.instruction_or_question.answer)

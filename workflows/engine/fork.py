"""A new instruction in an old state: derive the checkpoint from which a fork starts.

Agent Framework refuses a message together with a checkpoint, so the instruction is put where the
engine would have found a user's words had they been there: in the history, in the agents' inboxes
and in the task (a stall reset wipes the history; the task survives it and stands in every prompt of
the manager). Nothing here calls a model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal
from uuid import uuid4

from agent_framework import (
    INTERNAL_SOURCE_ID,
    AgentExecutorRequest,
    AgentExecutorResponse,
    Message,
    WorkflowCheckpoint,
    WorkflowEvent,
    WorkflowMessage,
)
from agent_framework.orchestrations import (
    MagenticPlanReviewRequest,
    MagenticPlanReviewResponse,
    MagenticProgressLedger,
)
from agent_framework_orchestrations._base_group_chat_orchestrator import GroupChatResponseMessage

from checkpoints_app.adapters.agent_framework import phase

ORCHESTRATOR = "magentic_orchestrator"
MANAGER_AUTHOR = "magentic_manager"

Mode = Literal["steer", "replan"]


class CannotFork(Exception):
    """This checkpoint holds nothing that an instruction could be given to."""


@dataclass(frozen=True, kw_only=True)
class Derived:
    """The fork's first checkpoint, and the answers to deliver to it by request id."""

    checkpoint: WorkflowCheckpoint
    replies: dict[str, dict[str, str]]


def derive(
    checkpoint: WorkflowCheckpoint,
    instruction: str,
    *,
    mode: Mode,
    workflow_name: str,
    final_answer: str = "",
    load: Callable[[str], WorkflowCheckpoint],
) -> Derived:
    """Return the state of `checkpoint` with `instruction` in it.

    Takes ownership of `checkpoint`: pass a freshly loaded one. In mode `steer` the manager decides
    anew with the instruction before it; in mode `replan` it makes a new plan first. `final_answer`
    is the old answer when the run had finished, which its checkpoint does not hold. `load` is asked
    for earlier checkpoints when an agent's turn is half done: the turn is then taken back.
    Raises `CannotFork` when nothing is in flight and nothing is finished.
    """
    origin_id = checkpoint.checkpoint_id
    while _is_amid_a_turn(checkpoint):
        checkpoint = _parent(checkpoint, load)
    fork = WorkflowCheckpoint(
        workflow_name=workflow_name,
        graph_signature_hash=checkpoint.graph_signature_hash,
        previous_checkpoint_id=origin_id,
        messages=checkpoint.messages,
        state=checkpoint.state,
        pending_request_info_events=checkpoint.pending_request_info_events,
        iteration_count=checkpoint.iteration_count,
        metadata=checkpoint.metadata,
    )
    replies = _instruct(fork, instruction, mode=mode, final_answer=final_answer)
    # The engine asks only whether there are keys: an empty list would cost an idle superstep.
    fork.messages = {source: found for source, found in fork.messages.items() if found}
    return Derived(checkpoint=fork, replies=replies)


def _instruct(
    fork: WorkflowCheckpoint, instruction: str, *, mode: Mode, final_answer: str
) -> dict[str, dict[str, str]]:
    message = Message("user", [f"NEW INSTRUCTION from the user: {instruction}"], author_name="user")
    where = phase(fork)
    if where == "entry":
        _add_to_task_in_flight(fork, message.text)
        return {}
    _amend_task(fork, instruction)
    if request_id := _plan_request(fork):
        return {request_id: {"decision": "revise", "text": message.text}}

    if where == "final":
        _reopen(fork, final_answer)
    elif where == "manager_decided":
        _withdraw_decision(fork)
    elif where != "agent_replied":
        raise CannotFork(
            f"Checkpoint {fork.previous_checkpoint_id} has nothing in flight. Fork from its parent."
        )
    if mode == "replan":
        return _ask_for_new_plan(fork, message)
    if where == "agent_replied":
        _ride_on_reply(fork, message)
    else:
        _speak_to_manager(fork, message)
    return {}


def _orchestrator(fork: WorkflowCheckpoint) -> dict[str, Any]:
    state: dict[str, Any] = fork.state["_executor_state"][ORCHESTRATOR]
    return state


def _context(fork: WorkflowCheckpoint) -> dict[str, Any]:
    context: dict[str, Any] = _orchestrator(fork)["magentic_context"]
    return context


def _plan_request(checkpoint: WorkflowCheckpoint) -> str | None:
    for request_id, event in checkpoint.pending_request_info_events.items():
        if isinstance(event.data, MagenticPlanReviewRequest):
            return request_id
    return None


def _is_amid_a_turn(checkpoint: WorkflowCheckpoint) -> bool:
    """Whether a person's answer is on its way, or an agent waits for one about a tool call."""
    where = phase(checkpoint)
    return where == "answered" or (where == "awaiting_human" and _plan_request(checkpoint) is None)


def _parent(
    checkpoint: WorkflowCheckpoint, load: Callable[[str], WorkflowCheckpoint]
) -> WorkflowCheckpoint:
    if checkpoint.previous_checkpoint_id is None:
        raise CannotFork(
            f"Checkpoint {checkpoint.checkpoint_id} waits for an approval and has no parent to go "
            "back to. Answer the approval, then fork."
        )
    return load(checkpoint.previous_checkpoint_id)


def _add_to_task_in_flight(fork: WorkflowCheckpoint, text: str) -> None:
    """Nothing ran yet: the task itself still waits to be delivered."""
    for messages in fork.messages.values():
        for message in messages:
            if isinstance(message.data, str):
                message.data = f"{message.data}\n\n{text}"
            elif isinstance(message.data, Message):
                message.data.contents.extend(Message("user", [f"\n\n{text}"]).contents)


def _amend_task(fork: WorkflowCheckpoint, instruction: str) -> None:
    context = _context(fork)
    context["task"] = (
        f"{context['task']}\n\n"
        f"[Instruction added by the user after round {context['round_count']}; it overrides the "
        f"above where they conflict]\n{instruction}"
    )


def _reopen(fork: WorkflowCheckpoint, final_answer: str) -> None:
    _orchestrator(fork)["terminated"] = False
    if final_answer:
        answer = Message("assistant", [final_answer], author_name=MANAGER_AUTHOR)
        _context(fork)["chat_history"].append(answer.to_dict())


def _withdraw_decision(fork: WorkflowCheckpoint) -> None:
    """Take back the request that is on its way to an agent, and the round it opened."""
    for source, messages in fork.messages.items():
        fork.messages[source] = [
            message
            for message in messages
            if not (isinstance(message.data, AgentExecutorRequest) and message.data.should_respond)
        ]
    orchestrator, context = _orchestrator(fork), _context(fork)
    history = context["chat_history"]
    if history and history[-1].get("author_name") == MANAGER_AUTHOR:
        history.pop()
    context["round_count"] = max(0, context["round_count"] - 1)
    orchestrator["round_index"] = max(0, orchestrator["round_index"] - 1)


def _ride_on_reply(fork: WorkflowCheckpoint, message: Message) -> None:
    """Put the instruction behind the agent's reply, which has not reached the manager yet.

    The orchestrator itself then appends both to its history, tells the other agents, and decides.
    """
    for source, messages in fork.messages.items():
        for in_flight in messages:
            if isinstance(in_flight.data, AgentExecutorResponse):
                response = in_flight.data.agent_response
                response.messages = [*response.messages, message]
                fork.state["_executor_state"][source].setdefault("cache", []).append(message)
                return
    raise CannotFork(
        f"Checkpoint {fork.previous_checkpoint_id} holds a reply that is not an agent's."
    )


def _speak_to_manager(fork: WorkflowCheckpoint, message: Message) -> None:
    """Send the instruction to the orchestrator as if a participant had said it."""
    source = INTERNAL_SOURCE_ID(ORCHESTRATOR)
    fork.messages.setdefault(source, []).append(
        WorkflowMessage(GroupChatResponseMessage(message), source_id=source, target_id=ORCHESTRATOR)
    )


def _ask_for_new_plan(fork: WorkflowCheckpoint, message: Message) -> dict[str, dict[str, str]]:
    """Plant a plan review, answered with a revision: the manager replans with its whole history."""
    _settle_reply(fork)
    _broadcast(fork, [message])
    orchestrator = _orchestrator(fork)
    progress = orchestrator.get("progress_ledger")
    request = MagenticPlanReviewRequest(
        plan=Message.from_dict(orchestrator["task_ledger"]),
        current_progress=MagenticProgressLedger.from_dict(progress) if progress else None,
        is_stalled=False,
    )
    request_id = str(uuid4())
    fork.pending_request_info_events = {
        request_id: WorkflowEvent.request_info(
            request_id, ORCHESTRATOR, request, MagenticPlanReviewResponse
        )
    }
    return {request_id: {"decision": "revise", "text": message.text}}


def _settle_reply(fork: WorkflowCheckpoint) -> None:
    """Do what the orchestrator would have done with a reply in flight: keep it, tell the others."""
    for source, messages in list(fork.messages.items()):
        replies = [m for m in messages if isinstance(m.data, AgentExecutorResponse)]
        fork.messages[source] = [m for m in messages if m not in replies]
        for reply in replies:
            said = list(reply.data.agent_response.messages)
            _context(fork)["chat_history"].extend(message.to_dict() for message in said)
            _broadcast(fork, said, skip=source)


def _broadcast(fork: WorkflowCheckpoint, said: list[Message], *, skip: str = "") -> None:
    inbox = fork.messages.setdefault(ORCHESTRATOR, [])
    for participant in _context(fork)["participant_descriptions"]:
        if participant != skip:
            inbox.append(
                WorkflowMessage(
                    AgentExecutorRequest(list(said), should_respond=False),
                    source_id=ORCHESTRATOR,
                    target_id=participant,
                )
            )

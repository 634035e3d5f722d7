"""Rows for tests, by plain functions that take overrides. Each leaves what a real run leaves."""

from __future__ import annotations

import itertools
import uuid
from typing import Any

from django.contrib.auth.models import User

from checkpoints_app.models import Checkpoint
from workflows.events import EventKind
from workflows.models import Approval, Event, ModelCall, Run, Workflow

_numbers = itertools.count(1)

TEAM = {
    "manager": {"name": "manager"},
    "agents": [{"name": name} for name in ("researcher", "coder", "analyst")],
    "limits": {"max_rounds": 8},
}


def make_user(**fields: Any) -> User:
    fields.setdefault("username", f"user{next(_numbers)}")
    return User.objects.create_user(**fields)


def make_workflow(owner: User | None = None, **fields: Any) -> Workflow:
    fields.setdefault("workflow_id", f"workflow-{next(_numbers)}")
    fields.setdefault("task", "Analyze sales data")
    fields.setdefault("team", TEAM)
    return Workflow.objects.create(owner=owner or make_user(), **fields)


def make_run(workflow: Workflow | None = None, **fields: Any) -> Run:
    workflow = workflow or make_workflow()
    fields.setdefault("number", workflow.runs.count() + 1)
    fields.setdefault("max_rounds", 8)
    return Run.objects.create(workflow=workflow, **fields)


def make_event(
    run: Run,
    kind: EventKind = EventKind.MESSAGE,
    *,
    data: dict[str, Any] | None = None,
    **fields: Any,
) -> Event:
    """The run's next event. Without `data`, what its kind usually carries."""
    run.refresh_from_db(fields=["last_sequence"])
    run.last_sequence += 1
    run.save(update_fields=["last_sequence"])
    return Event.objects.create(
        run=run,
        sequence=run.last_sequence,
        kind=kind,
        data=_USUAL.get(kind, {}) if data is None else data,
        **fields,
    )


def make_checkpoint(
    run: Run, *, phase: str = "agent_replied", round: int = 1, agent: str = "coder", **fields: Any
) -> Checkpoint:
    """A checkpoint row and the event that tells of it."""
    position = Checkpoint.objects.filter(run_id=str(run.id)).count()
    values: dict[str, Any] = {
        "source": Checkpoint.Source.LOOP,
        "superstep": position,
        "workflow_name": "workflow",
        "manifest": b"",
        "size_bytes": 10,
        "new_bytes": 10,
        **fields,
    }
    saved = Checkpoint.objects.create(
        run_id=str(run.id), position=position, phase=phase, round=round, agent=agent, **values
    )
    make_event(
        run,
        EventKind.CHECKPOINT,
        round=round,
        agent=agent,
        checkpoint_id=saved.id,
        data={
            "phase": phase,
            "superstep": position,
            "source": values["source"],
            "new_bytes": values["new_bytes"],
        },
    )
    return saved


def make_fork(checkpoint: Checkpoint, instruction: str, **fields: Any) -> Run:
    """A run that grew from `checkpoint`, with the event that says so."""
    parent = Run.objects.get(id=checkpoint.run_id)
    fork = make_run(
        parent.workflow,
        parent=parent,
        forked_from=checkpoint.id,
        forked_round=checkpoint.round,
        instruction=instruction,
        **{"mode": Run.Mode.STEER, **fields},
    )
    make_event(
        fork,
        EventKind.QUEUED,
        data={
            "task": fork.workflow.task,
            "instruction": instruction,
            "mode": fork.mode,
            "forked_from": str(checkpoint.id),
        },
    )
    return fork


def make_call(run: Run, **fields: Any) -> ModelCall:
    values = {"superstep": 1, "agent": "coder", "request_hash": "h", "attempt": 1, **fields}
    return ModelCall.objects.create(run=run, ordinal=run.calls.count(), response={}, **values)


def make_approval(run: Run, **fields: Any) -> Approval:
    fields.setdefault("request_id", str(uuid.uuid4()))
    fields.setdefault("subject", Approval.Subject.PLAN)
    fields.setdefault("text", "1. Count the rows")
    return Approval.objects.create(run=run, digest="d" * 64, **fields)


_USUAL: dict[EventKind, dict[str, Any]] = {
    EventKind.QUEUED: {
        "task": "Analyze sales data",
        "instruction": "",
        "mode": "",
        "forked_from": None,
        "files": ["sales.csv"],
    },
    EventKind.STARTED: {
        "attempt": 1,
        "offline": True,
        "models": {"manager": "offline-rules", "coder": "offline-rules"},
        "from_checkpoint": None,
    },
    EventKind.PLAN: {"text": "- Look at the table\n- Compute totals", "is_replan": False},
    EventKind.DECISION: {
        "is_satisfied": False,
        "is_in_loop": False,
        "is_progressing": True,
        "next_agent": "coder",
        "instruction": "Compute revenue per region.",
        "reasons": {
            "satisfied": "No figure was computed yet.",
            "in_loop": "Each step was new.",
            "progressing": "The table is known.",
            "next_agent": "The coder can query tables.",
            "instruction": "Totals come first.",
        },
    },
    EventKind.TOOL_CALL: {
        "call_id": "call-1",
        "tool": "query_tables",
        "arguments": {"sql": "SELECT region, sum(revenue) FROM sales GROUP BY region"},
    },
    EventKind.TOOL_RESULT: {
        "call_id": "call-1",
        "tool": "query_tables",
        "result": "region | revenue\nEMEA | 1200",
        "is_error": False,
    },
    EventKind.MESSAGE: {"text": "EMEA leads."},
    EventKind.MODEL_CALL: {
        "model": "test-model",
        "input_tokens": 1200,
        "output_tokens": 300,
        "cost_usd": "0.0123",
        "duration_ms": 1400,
        "is_replayed": False,
    },
    EventKind.ANSWER: {"text": "# Report\n\nEMEA leads.", "is_synthesised": True},
    EventKind.COMPLETED: {
        "rounds": 3,
        "model_calls": 8,
        "input_tokens": 9000,
        "output_tokens": 2000,
        "cost_usd": "0.1",
    },
    EventKind.FAILED: {"error": "The model service refused the key. Check OPENAI_API_KEY."},
    EventKind.CANCELLED: {"by": "ada"},
    EventKind.RETRYING: {"reason": "The server stopped."},
    EventKind.PAUSED: {"reason": "The time limit was reached."},
    EventKind.ANSWERED: {"approval": "", "decision": "approve", "text": "", "by": "ada"},
    EventKind.WAITING: {
        "approval": "",
        "subject": "plan",
        "text": "1. Count the rows",
        "arguments": {},
        "digest": "d" * 64,
    },
}

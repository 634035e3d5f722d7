"""Running workflows in tests: the real dispatcher, the real engine, a model server on the wire."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.models import User

from checkpoints_app import store
from checkpoints_app.audit import Actor
from checkpoints_app.models import AuditEvent, Checkpoint
from tests.model_server import ModelServer
from workflows import services
from workflows.dispatch.embedded import EmbeddedDispatcher
from workflows.models import Event, Run
from workflows.team import Team

PATIENCE_SECONDS = 60


def make_actor(username: str = "olivia") -> Actor:
    user, _ = User.objects.get_or_create(username=username)
    return Actor(user=user, origin=AuditEvent.Origin.TERMINAL)


def make_team(server: ModelServer | None = None, **overrides: Any) -> Team:
    """Manager, researcher and coder on `server`, or offline without one."""
    model = {"model": "test-model", "base_url": server.url} if server else {"model": "offline"}
    team = {
        "manager": {"name": "manager", "description": "Leads.", "instructions": "Lead.", **model},
        "agents": [
            {
                "name": "researcher",
                "description": "Finds facts.",
                "instructions": "You are the researcher.",
                "tools": ["list_tables", "search_text", "read_text"],
                **model,
            },
            {
                "name": "coder",
                "description": "Computes.",
                "instructions": "You are the coder.",
                "tools": ["query_tables", "run_python"],
                **model,
            },
        ],
        "limits": {"max_rounds": 12, "max_stalls": 1, "max_resets": 2, "timeout_seconds": 60},
    }
    return Team.model_validate({**team, **overrides})


def start(team: Team, task: str = "Count the sheep.", **arguments: Any) -> Run:
    arguments.setdefault("actor", make_actor())
    return services.start(task=task, team=team, **arguments)


def start_and_finish(team: Team, task: str = "Count the sheep.", **arguments: Any) -> Run:
    return finish(start(team, task, **arguments))


def fork_and_finish(checkpoint: Checkpoint, instruction: str, **arguments: Any) -> Run:
    arguments.setdefault("actor", make_actor())
    return finish(services.fork(checkpoint, instruction=instruction, **arguments))


def finish(*runs: Run) -> Run:
    """Execute the runs, all at once, until each rests; returns the first, read afresh."""
    with dispatching(concurrency=len(runs)):
        for run in runs:
            wait_until(lambda run=run: is_at_rest(run))
    for run in runs:
        run.refresh_from_db()
    return runs[0]


@contextmanager
def dispatching(*, worker: str = "test", concurrency: int = 1) -> Iterator[EmbeddedDispatcher]:
    dispatcher = EmbeddedDispatcher(worker=worker, concurrency=concurrency)
    dispatcher.start()
    try:
        yield dispatcher
    finally:
        dispatcher.stop(PATIENCE_SECONDS)


def is_at_rest(run: Run) -> bool:
    run.refresh_from_db()
    return run.status == Run.Status.WAITING or not run.is_active


def wait_until(condition: Callable[[], Any], *, seconds: float = PATIENCE_SECONDS) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return found


def waiting_events(run: Run) -> int:
    return Event.objects.filter(run=run, kind="waiting").count()


def checkpoints(run: Run) -> list[Checkpoint]:
    return list(Checkpoint.objects.filter(run_id=str(run.id)).order_by("position"))


def checkpoint_at(run: Run, *, round: int, phase: str = "agent_replied") -> Checkpoint:
    return Checkpoint.objects.get(run_id=str(run.id), round=round, phase=phase)


def kinds(run: Run) -> list[str]:
    return list(Event.objects.filter(run=run).order_by("sequence").values_list("kind", flat=True))


def fingerprint(run: Run) -> str:
    """Changes when anything of the run changes: its row, its events, a byte of its states."""
    rows = [
        Run.objects.filter(id=run.id).values().get(),
        *Event.objects.filter(run=run).order_by("sequence").values(),
        *Checkpoint.objects.filter(run_id=str(run.id)).order_by("position").values(),
        *(store.state(checkpoint.id) for checkpoint in checkpoints(run)),
    ]
    return hashlib.sha256(json.dumps(rows, default=_as_text, sort_keys=True).encode()).hexdigest()


def _as_text(value: Any) -> str:
    return bytes(value).hex() if isinstance(value, bytes | memoryview) else str(value)


def other_user(username: str = "stranger") -> Any:
    return get_user_model().objects.create_user(username)

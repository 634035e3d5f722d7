"""Give the team a task, or fork a checkpoint, and follow the run in the terminal."""

from __future__ import annotations

import json
import os
import sys
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import UUID

from django.contrib.auth import get_user_model
from django.core.management import BaseCommand, CommandError, call_command

from checkpoints_app.audit import Actor
from checkpoints_app.models import AuditEvent, Checkpoint
from workflows import services
from workflows.dispatch.embedded import EmbeddedDispatcher
from workflows.events import EventKind
from workflows.models import Event, Run

POLL_SECONDS = 0.1
INTERRUPTED = 130


class Command(BaseCommand):
    help = (
        "Run the team on TASK and print the rounds as they come. With --from, go on from a "
        "checkpoint with a new instruction instead. Needs no server; exit code 0 only when the run "
        "completed."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("task", nargs="?", default="", metavar="TASK")
        parser.add_argument(
            "--file", action="append", default=[], metavar="F", help="attach a file"
        )
        parser.add_argument("--from", dest="checkpoint", metavar="CHECKPOINT", help="its id")
        parser.add_argument("--instruction", default="", help="what the fork should do differently")
        parser.add_argument("--mode", choices=Run.Mode.values, default=Run.Mode.STEER)
        parser.add_argument("--max-rounds", type=int, help="rounds that this run may take")
        parser.add_argument("--user", help="whose workflow it is; the first admin when left out")
        parser.add_argument("--json", action="store_true", help="one JSON object a line")

    def handle(self, *args: Any, **options: Any) -> None:
        call_command("migrate", verbosity=0, interactive=False)
        actor = _actor(options["user"])
        try:
            run = _fork(options, actor) if options["checkpoint"] else _start(options, actor)
        except services.ServiceError as error:
            raise CommandError(str(error)) from error
        status = self._follow(run, actor, as_json=options["json"])
        if status != Run.Status.COMPLETED:
            sys.exit(INTERRUPTED if status == Run.Status.CANCELLED else 1)

    def _follow(self, run: Run, actor: Actor, *, as_json: bool) -> str:
        """Print the run's events until it rests, and return the status in which it does.

        A server beside us may be faster in claiming the run; the events come from the database, so
        it makes no difference who executes it.
        """
        dispatcher = EmbeddedDispatcher(
            worker=f"terminal-{os.getpid()}", concurrency=1, only=run.id
        )
        dispatcher.start()
        printer = _JsonLines(self.stdout) if as_json else _Lines(self.stdout)
        try:
            for event in _events(run):
                printer.event(event)
        except KeyboardInterrupt:
            services.cancel(run, actor=actor)
            for event in _events(run, after=printer.sequence):
                printer.event(event)
        finally:
            dispatcher.stop()
        run.refresh_from_db()
        printer.result(run)
        return run.status


def _actor(username: str | None) -> Actor:
    if username is None:
        return Actor(user=services.first_admin(), origin=AuditEvent.Origin.TERMINAL)
    user = get_user_model().objects.filter(username=username, is_active=True).first()
    if user is None:
        raise CommandError(f"There is no active user {username!r}.")
    return Actor(user=user, origin=AuditEvent.Origin.TERMINAL)


def _start(options: dict[str, Any], actor: Actor) -> Run:
    if options["instruction"]:
        raise CommandError("--instruction goes with --from CHECKPOINT.")
    status = services.team_status()
    if status.team is None:
        raise CommandError("\n".join(str(problem) for problem in status.problems))
    with ExitStack() as opened:
        try:
            files = [
                (Path(name).name, opened.enter_context(open(name, "rb")))
                for name in options["file"]
            ]
        except OSError as error:
            raise CommandError(f"{error.filename}: {error.strerror}.") from error
        return services.start(
            task=options["task"],
            team=status.team,
            actor=actor,
            files=files,
            max_rounds=options["max_rounds"],
        )


def _fork(options: dict[str, Any], actor: Actor) -> Run:
    if options["task"] or options["file"]:
        raise CommandError("With --from, say what to do in --instruction; the task and files stay.")
    return services.fork(
        _checkpoint(options["checkpoint"]),
        instruction=options["instruction"],
        mode=options["mode"],
        actor=actor,
        max_rounds=options["max_rounds"],
    )


def _checkpoint(text: str) -> Checkpoint:
    try:
        return Checkpoint.objects.defer("manifest").get(id=UUID(text))
    except (ValueError, Checkpoint.DoesNotExist) as error:
        raise CommandError(f"There is no checkpoint {text!r}.") from error


def _events(run: Run, *, after: int = 0) -> Iterator[Event]:
    """The run's events after a sequence number as they are written, until the run rests."""
    while True:
        # The status is read first: what is written later is found in the next turn.
        status = Run.objects.values_list("status", flat=True).get(id=run.id)
        for event in Event.objects.filter(run=run, sequence__gt=after).order_by("sequence"):
            after = event.sequence
            yield event
        if status not in Run.ACTIVE or status == Run.Status.WAITING:
            return
        time.sleep(POLL_SECONDS)


class _JsonLines:
    """Each event as one line of JSON, and the result as the last."""

    def __init__(self, out: Any) -> None:
        self.out = out
        self.sequence = 0

    def event(self, event: Event) -> None:
        self.sequence = event.sequence
        self._line(
            {
                **event.data,
                "type": event.kind,
                "run": str(event.run_id),
                "sequence": event.sequence,
                "round": event.round,
                "agent": event.agent,
                "checkpoint": str(event.checkpoint_id) if event.checkpoint_id else None,
                "at": event.created_at.isoformat(),
            }
        )

    def result(self, run: Run) -> None:
        self._line(
            {
                "type": "result",
                "status": run.status,
                "workflow": str(run.workflow_id),
                "run": str(run.id),
                "answer": run.answer,
                "error": run.error,
                "rounds": run.rounds,
                "model_calls": run.model_calls,
                "tokens": {"input": run.input_tokens, "output": run.output_tokens},
                "cost_usd": str(run.cost_usd),
                "checkpoints": [
                    {
                        "id": str(checkpoint.id),
                        "parent": str(checkpoint.parent_id) if checkpoint.parent_id else None,
                        "round": checkpoint.round,
                        "phase": checkpoint.phase,
                        "source": checkpoint.source,
                    }
                    for checkpoint in _checkpoints(run)
                ],
            }
        )

    def _line(self, value: dict[str, Any]) -> None:
        self.out.write(json.dumps(value, ensure_ascii=False))
        self.out.flush()


class _Lines:
    """The run as a person reads it: one paragraph an event, the answer at the end."""

    def __init__(self, out: Any) -> None:
        self.out = out
        self.sequence = 0

    def event(self, event: Event) -> None:
        self.sequence = event.sequence
        if text := _sentence(event):
            self.out.write(text)
            self.out.flush()

    def result(self, run: Run) -> None:
        if run.answer:
            self.out.write(f"\n{run.answer}\n")
        cost = f"{run.model_calls} model calls, ${run.cost_usd:.4f}"
        self.out.write(
            f"{run.get_status_display()} after {run.rounds} rounds ({cost}). Run {run.id}"
        )
        if run.status == Run.Status.WAITING:
            self.out.write("The run waits for an answer. Give it in the dashboard: make run")
        if last := list(_checkpoints(run))[-1:]:
            self.out.write(
                "Go on from here with other words: "
                f'python manage.py run --from {last[0].id} --instruction "…"'
            )


def _sentence(event: Event) -> str:
    data = event.data
    match event.kind:
        case EventKind.STARTED if data["offline"]:
            return "No model is configured: the built-in rules drive the tools, no language model."
        case EventKind.PLAN:
            return f"\nPlan\n{data['text']}"
        case EventKind.DECISION if data["is_satisfied"]:
            return "\nThe manager is satisfied and writes the answer."
        case EventKind.DECISION:
            return f"\nRound {event.round} · manager → {data['next_agent']}: {data['instruction']}"
        case EventKind.TOOL_CALL:
            return f"  {event.agent} calls {data['tool']} {_brief(data['arguments'])}"
        case EventKind.TOOL_RESULT:
            return f"  {data['tool']} {'failed' if data['is_error'] else 'answered'}"
        case EventKind.MESSAGE:
            return f"{event.agent}: {data['text']}"
        case EventKind.CHECKPOINT if data["phase"] in {"entry", "agent_replied", "final"}:
            return f"  checkpoint {event.checkpoint_id} ({data['phase'].replace('_', ' ')})"
        case EventKind.WAITING:
            return f"\nWaiting for approval of {data['subject'].replace('_', ' ')}: {data['text']}"
        case EventKind.RETRYING | EventKind.PAUSED:
            return str(data["reason"])
        case EventKind.FAILED:
            return f"\n{data['error']}"
    return ""


def _brief(arguments: Any) -> str:
    text = json.dumps(arguments, ensure_ascii=False)
    return text if len(text) <= 100 else f"{text[:99]}…"


def _checkpoints(run: Run) -> Any:
    return Checkpoint.objects.filter(run_id=str(run.id)).defer("manifest").order_by("position")

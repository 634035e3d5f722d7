"""Drives one claimed run to its next rest: answer, question, failure, or a stop from outside."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable
from contextlib import aclosing
from decimal import Decimal
from enum import Enum
from functools import cached_property
from typing import Any, Literal, cast

from django.conf import settings
from django.db import transaction

from checkpoints_app.adapters import agent_framework as adapter
from checkpoints_app.models import Checkpoint
from checkpoints_app.threads import in_thread

from . import attachments, live
from .engine import clients, failures, fork, magentic
from .engine.journal import Journal
from .engine.tools import Workspace, build_tools, needing_approval
from .events import EventKind, clean, redact
from .models import Approval, Run
from .recorder import Fenced, Recorder
from .team import MANAGER, Agent, Team

logger = logging.getLogger(__name__)

STREAM_INTERVAL_SECONDS = 0.1
STREAM_CHARACTERS = 4_000
MAX_STARTS = 5
"""Attempts without a new checkpoint. A run that kills its worker must not do so for ever."""


class Stop(Enum):
    """Why a run's task is being cancelled from outside."""

    CANCEL = "cancel"  # a person asked for it
    SHUTDOWN = "shutdown"  # this process ends; the run goes on elsewhere or later
    FENCED = "fenced"  # another worker owns the run now


class OutOfTime(Exception):
    """The attempt reached the team's limit of seconds."""


class Execution:
    """One attempt at a run. `stop` may be called from the same event loop at any time."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.recorder = Recorder(run.id, run.attempt)
        self._stop: Stop | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> asyncio.Task[None]:
        self._task = asyncio.create_task(self._to_rest(), name=f"run {self.run.id}")
        return self._task

    def stop(self, reason: Stop) -> None:
        """End the attempt now: the model call in flight is abandoned, finished steps stay."""
        if self._task and self._stop is None:
            self._stop = reason
            self._task.cancel()

    async def _to_rest(self) -> None:
        """Drive the run and leave its row in the state that says why it rests. Never raises."""
        try:
            await self._drive()
        except Fenced:
            logger.warning("Run %s was taken over; attempt %s ends.", self.run.id, self.run.attempt)
        except asyncio.CancelledError:
            await self._settle_stop()
        except OutOfTime as error:
            await self._finish(Run.Status.PAUSED, EventKind.PAUSED, reason=str(error))
        except Exception as error:
            text = failures.explain(error)
            logger.error("Run %s failed: %s", self.run.id, redact(text))
            logger.debug("Run %s failed.", self.run.id, exc_info=True)
            await self._finish(Run.Status.FAILED, EventKind.FAILED, error=text)
        finally:
            live.stream(self.run.id, agent="", text="")

    async def _settle_stop(self) -> None:
        if self._stop is Stop.CANCEL:
            await self._guarded(self._cancel)
        elif self._stop is not Stop.FENCED:
            reason = "The server stopped. The run goes on from its last checkpoint."
            await self._guarded(self.recorder.hand_on, reason)

    def _cancel(self) -> None:
        by = self.recorder.cancel_requested_by()
        self.recorder.finish(Run.Status.CANCELLED, EventKind.CANCELLED, by=by)

    async def _finish(self, status: Run.Status, kind: EventKind, **data: Any) -> None:
        await self._guarded(self.recorder.finish, status, kind, **data)

    async def _guarded(self, write: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """The last write of an attempt. Should it fail, the lease runs out and others take over."""
        try:
            await asyncio.shield(in_thread(write, *args, **kwargs))
        except Fenced:
            logger.warning("Run %s was taken over before its end was written.", self.run.id)
        except Exception:
            logger.exception("The end of run %s could not be written.", self.run.id)

    @property
    def team(self) -> Team:
        return Team.model_validate(self.run.workflow.team)

    async def _drive(self) -> None:
        team = self.team
        files = await in_thread(lambda: list(self.run.workflow.attachments.all()))
        workspace = Workspace(files)
        try:
            async with asyncio.timeout(team.limits.timeout_seconds) as limit:
                await self._with_workspace(team, workspace, attachments.describe(files))
        except TimeoutError as error:
            if not limit.expired():
                raise  # somebody else's time ran out
            raise OutOfTime(
                f"The limit of {team.limits.timeout_seconds} s for one attempt was reached. "
                "Resume to go on from the last checkpoint."
            ) from error
        finally:
            await asyncio.shield(asyncio.to_thread(workspace.close))

    async def _with_workspace(self, team: Team, workspace: Workspace, files: str) -> None:
        task = "\n\n".join(part for part in (self.run.workflow.task, files) if part)
        storage = self._storage(team)
        if storage:
            await in_thread(self._derive_fork, storage.backend)
        latest = await in_thread(self._latest_checkpoint)
        self.recorder.round = latest.round if latest else 0
        await in_thread(self._tell_start, team, latest)
        journal = Journal(self.recorder, team.prices)
        engine = magentic.Engine(
            team,
            name=f"workflow-{self.run.workflow_id}",
            task=task,
            tools={agent.name: _tools_of(agent, team, workspace) for agent in team.agents},
            journal=journal,
            storage=storage,
            max_rounds=self.run.max_rounds,
        )
        start = magentic.Start(
            task=task,
            checkpoint_id=str(latest.id) if latest else None,
            replies=self.run.replies,
        )
        try:
            await _Narrator(self.recorder).tell(engine, start)
        finally:
            await engine.close()

    def _storage(self, team: Team) -> adapter.DjangoCheckpointStorage | None:
        kept = team.checkpointing
        return adapter.create_checkpoint_storage(
            self.run.id,
            enabled=kept.enabled,
            storage_type=kept.storage_type,
            storage_path=kept.location(settings.DATA_DIR),
            describe=self._describe,
            on_save=self._tell_checkpoint,
        )

    def _describe(self) -> adapter.Description:
        """What a checkpoint saved now can be found by."""
        spent = Run.objects.values_list("cost_usd", flat=True).get(id=self.run.id)
        return {
            "workflow": str(self.run.workflow_id),
            "status": Run.Status.RUNNING,
            "team": ", ".join(agent.name for agent in self.team.agents)[:100],
            "cost_usd": self._cost_before_usd + spent,
        }

    @cached_property
    def _cost_before_usd(self) -> Decimal:
        """What the line had cost where this run grew from it."""
        if self.run.forked_from is None:
            return Decimal(0)
        origin = Checkpoint.objects.filter(id=self.run.forked_from)
        return origin.values_list("cost_usd", flat=True).first() or Decimal(0)

    def _tell_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Runs inside the save's transaction, so a worker that lost its run can save nothing."""
        self.recorder.append(
            EventKind.CHECKPOINT,
            key=f"checkpoint:{checkpoint.id}",
            agent=checkpoint.agent,
            checkpoint_id=checkpoint.id,
            phase=checkpoint.phase,
            superstep=checkpoint.superstep,
            source=checkpoint.source,
            new_bytes=checkpoint.new_bytes,
        )

    def _latest_checkpoint(self) -> Checkpoint | None:
        found = Checkpoint.objects.filter(run_id=str(self.run.id)).defer("manifest")
        return found.order_by("position").last()

    def _derive_fork(self, backend: str) -> None:
        """Save the fork's first checkpoint, once: a later attempt finds it there."""
        if self.run.forked_from is None or self._latest_checkpoint():
            return
        origin = Checkpoint.objects.defer("manifest").get(id=self.run.forked_from)
        finished = origin.phase == "final" and Run.objects.filter(id=origin.run_id).first()
        derived = fork.derive(
            adapter.load_checkpoint(origin.id),
            self.run.instruction,
            mode=cast(Literal["steer", "replan"], self.run.mode),
            workflow_name=f"workflow-{self.run.workflow_id}",
            final_answer=finished.answer if finished else "",
            load=adapter.load_checkpoint,
        )
        self.recorder.round = origin.round
        with transaction.atomic():
            adapter.save_checkpoint(
                derived.checkpoint,
                run_id=self.run.id,
                source=Checkpoint.Source.FORK,
                backend=backend,
                describe=self._describe,
                on_save=self._tell_checkpoint,
            )
            self.recorder.renew(replies=derived.replies)
        self.run.replies = derived.replies

    def _tell_start(self, team: Team, latest: Checkpoint | None) -> None:
        if self.recorder.starts_without_progress() >= MAX_STARTS:
            raise failures.NoProgress(
                f"{MAX_STARTS} attempts in a row ended before the next checkpoint was saved. The "
                "process may have been killed, for lack of memory for example."
            )
        everyone = (team.manager, *team.agents)
        self.recorder.append(
            EventKind.STARTED,
            attempt=self.run.attempt,
            offline=all(clients.is_offline(agent) for agent in everyone),
            models={agent.name: clients.model_label(agent) for agent in everyone},
            from_checkpoint=str(latest.id) if latest else None,
        )


class _Narrator:
    """Turns the engine's events into the run's rows and its live stream."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.superstep = 0
        self.asked: list[Approval] = []
        self.answer: dict[str, Any] | None = None
        self._written: dict[str, str] = {}
        self._streamed_at = 0.0
        self._counts: Counter[str] = Counter()

    async def tell(self, engine: magentic.Engine, start: magentic.Start) -> None:
        async with aclosing(engine.events(start)) as events:
            async for event in events:
                await self._tell(event)
        await self._end()

    async def _tell(self, event: magentic.EngineEvent) -> None:
        match event:
            case magentic.Wrote():
                self._stream(event)
            case magentic.SuperstepStarted():
                self.superstep = event.number
                self._counts.clear()
            case magentic.SuperstepCompleted():
                self._written.clear()
            case magentic.RoundStarted():
                await in_thread(self.recorder.start_round, event.number)
            case magentic.Planned():
                await self._append(
                    EventKind.PLAN,
                    agent=MANAGER,
                    text=event.text,
                    is_replan=event.is_replan,
                )
            case magentic.Decided():
                await self._decided(event)
            case magentic.ToolReturned():
                self._written.pop(event.agent, None)
                # A tool that runs again may give another result: that is news, the same is not.
                digest = hashlib.sha256(event.result.encode()).hexdigest()[:16]
                await self._append(
                    EventKind.TOOL_RESULT, f"{event.call_id}:{digest}", **vars(event)
                )
            case magentic.Asked():
                self.asked.append(_approval(event))
            case magentic.Answered():
                self.answer = vars(event)
                await self._append(EventKind.ANSWER, agent=MANAGER, **vars(event))

    async def _decided(self, event: magentic.Decided) -> None:
        # A decision that asks an agent opens the next round; the engine names it just afterwards.
        if not event.is_satisfied:
            await in_thread(self.recorder.start_round, self.recorder.round + 1)
        await self._append(EventKind.DECISION, agent=MANAGER, **vars(event))

    async def _append(self, kind: EventKind, what: str = "", **data: Any) -> None:
        """Add an event under a name that a repeated superstep gives it again."""
        name = f"{kind}:{self.superstep}:{what}"
        self._counts[name] += 1
        key = f"{name}:{self._counts[name]}"
        await in_thread(self.recorder.append, kind, key=key, **data)

    def _stream(self, event: magentic.Wrote) -> None:
        """Show what is being written, at most ten times a second.

        The whole text each time, so that a lost or doubled ring does no harm.
        """
        text = self._written[event.agent] = self._written.get(event.agent, "") + event.text
        now = asyncio.get_running_loop().time()
        if now - self._streamed_at >= STREAM_INTERVAL_SECONDS:
            self._streamed_at = now
            live.stream(self.recorder.run_id, agent=event.agent, text=text[-STREAM_CHARACTERS:])

    async def _end(self) -> None:
        if self.asked:
            await in_thread(self.recorder.wait_for, self.asked)
            return
        # A crash may lie between the answer and the run's last word: then only the event has it.
        answer = self.answer or await in_thread(self.recorder.answer_told)
        if answer is None:
            raise failures.EngineStopped("The engine stopped without an answer.")
        if not answer["is_synthesised"]:
            raise failures.LimitReached(answer["text"])
        await in_thread(self._complete, answer["text"])

    def _complete(self, answer: str) -> None:
        with transaction.atomic():
            self.recorder.renew(answer=clean({"answer": answer})["answer"])
            run = Run.objects.get(id=self.recorder.run_id)
            self.recorder.finish(
                Run.Status.COMPLETED,
                EventKind.COMPLETED,
                rounds=run.rounds,
                model_calls=run.model_calls,
                input_tokens=run.input_tokens,
                output_tokens=run.output_tokens,
                cost_usd=str(run.cost_usd),
            )


def _tools_of(agent: Agent, team: Team, workspace: Workspace) -> list[Any]:
    return build_tools(
        agent.tools, workspace, needs_approval=needing_approval(team.human_in_the_loop)
    )


def _approval(asked: magentic.Asked) -> Approval:
    exact = json.dumps([asked.subject, asked.text, asked.arguments], sort_keys=True, default=str)
    shown = clean({"text": asked.text, "arguments": dict(asked.arguments)})
    return Approval(
        request_id=asked.request_id,
        subject=asked.subject,
        agent=asked.agent,
        text=shown["text"],
        arguments=shown["arguments"],
        digest=hashlib.sha256(exact.encode()).hexdigest(),
    )

"""The verbs: what a person can do with workflows.

Each checks that the actor may, changes the rows, and is audited in the same transaction. Repeating
one does no harm.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any
from uuid import UUID

from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.models import AbstractBaseUser
from django.db import IntegrityError, transaction
from django.db.models import Max
from django.utils import timezone

from checkpoints_app import audit
from checkpoints_app.audit import Actor
from checkpoints_app.models import Checkpoint

from . import attachments, dispatch
from .events import EventKind, printable
from .models import Approval, Attachment, Run, Workflow
from .recorder import add_event
from .team import Problem, Team, TeamError, load_team


class ServiceError(Exception):
    """What the person asked for can't be done. The text says why and what to do instead."""


class NotAllowed(ServiceError):
    """This workflow belongs to somebody else."""


MAX_ROUNDS_LIMIT = 1_000


@dataclass(frozen=True, kw_only=True)
class TeamStatus:
    """The configured team, or what is wrong with its file."""

    team: Team | None
    problems: Sequence[Problem] = ()
    is_offline: bool = True
    models: Mapping[str, str] = field(default_factory=dict)


def team_status() -> TeamStatus:
    """Read the team file afresh, so that an edit shows without a restart."""
    from .engine import clients
    from .engine.tools import TOOLS

    try:
        team = load_team(settings.TEAM_FILE, known_tools=TOOLS)
    except TeamError as error:
        return TeamStatus(team=None, problems=error.problems)
    everyone = (team.manager, *team.agents)
    return TeamStatus(
        team=team,
        is_offline=all(clients.is_offline(agent) for agent in everyone),
        models={agent.name: clients.model_label(agent) for agent in everyone},
    )


def start(
    *,
    task: str,
    team: Team,
    actor: Actor,
    files: Sequence[tuple[str, IO[bytes]]] = (),
    workflow_id: str = "",
    max_rounds: int | None = None,
    submission: UUID | None = None,
) -> Run:
    """Give `task` to `team` and return the first run, queued.

    `files` are (name, open binary file). `submission` names this very request: repeating it returns
    the same run. Raises `ServiceError` for an empty task, a refused file or a taken `workflow_id`.
    """
    owner = _person(actor)
    task, workflow_id = _words(task), _words(workflow_id)
    if submission and (run := _submitted(submission, actor)):
        if run.workflow.task == task:
            return run
        submission = None  # the form was gone back to and changed: that is another request
    if not task:
        raise ServiceError("Say what the team should do: the task is empty.")
    rounds = _checked_rounds(max_rounds or team.limits.max_rounds)
    stored = _store_files(files)
    identity = submission or uuid.uuid4()
    try:
        with transaction.atomic():
            workflow = Workflow.objects.create(
                id=identity,
                workflow_id=workflow_id or identity.hex[:12],
                owner_id=owner.pk,
                task=task,
                team=team.model_dump(mode="json"),
            )
            Attachment.objects.bulk_create(
                Attachment(
                    workflow=workflow,
                    name=file.name,
                    kind=file.kind,
                    sha256=file.sha256,
                    size_bytes=file.size_bytes,
                    summary=file.summary,
                )
                for file in stored
            )
            run = Run.objects.create(workflow=workflow, number=1, max_rounds=rounds)
            add_event(
                run.id,
                EventKind.QUEUED,
                task=workflow.task,
                instruction="",
                mode="",
                forked_from=None,
                files=[file.name for file in stored],
            )
            audit.record(
                actor,
                "workflow.start",
                workflow,
                instruction=workflow.task,
                run=str(run.id),
                files={file.name: file.sha256 for file in stored},
            )
            transaction.on_commit(dispatch.wake)
    except IntegrityError as error:
        if submission and (run := _submitted(submission, actor)):
            return run  # the same form, sent twice at once
        raise ServiceError(
            f"You already have a workflow named {workflow_id!r}. Choose another name."
        ) from error
    return run


def fork(
    checkpoint: Checkpoint,
    *,
    instruction: str,
    mode: str = Run.Mode.STEER,
    actor: Actor,
    max_rounds: int | None = None,
    submission: UUID | None = None,
) -> Run:
    """Grow a new run from `checkpoint` with `instruction`. The old run stays as it was.

    `max_rounds` is how many rounds the fork may add; without it, as many as the team may take.
    """
    parent = _run_of(checkpoint)
    _check_may(actor, parent.workflow)
    instruction = _words(instruction)
    if not instruction:
        raise ServiceError("Say what should be done differently: the instruction is empty.")
    if mode not in Run.Mode.values:
        raise ServiceError(f"There is no mode {mode!r}. Use one of: {', '.join(Run.Mode.values)}.")
    team = Team.model_validate(parent.workflow.team)
    rounds = checkpoint.round + _checked_rounds(max_rounds or team.limits.max_rounds)
    with transaction.atomic():
        # Locks the workflow's row, so that two forks at once get two numbers.
        workflow = Workflow.objects.select_for_update().get(id=parent.workflow_id)
        if submission and (run := workflow.runs.filter(id=submission).first()):
            if (run.forked_from, run.instruction, run.mode) == (checkpoint.id, instruction, mode):
                return run
            submission = None  # the form was gone back to and changed: that is another request
        last = workflow.runs.aggregate(last=Max("number"))["last"]
        run = Run.objects.create(
            id=submission or uuid.uuid4(),
            workflow=workflow,
            number=last + 1,
            parent=parent,
            forked_from=checkpoint.id,
            forked_round=checkpoint.round,
            instruction=instruction,
            mode=mode,
            max_rounds=rounds,
            rounds=checkpoint.round,
        )
        add_event(
            run.id,
            EventKind.QUEUED,
            round=checkpoint.round,
            task=workflow.task,
            instruction=run.instruction,
            mode=mode,
            forked_from=str(checkpoint.id),
        )
        audit.record(
            actor,
            "run.fork",
            run,
            instruction=run.instruction,
            checkpoint=str(checkpoint.id),
            parent=str(parent.id),
            mode=mode,
        )
        transaction.on_commit(dispatch.wake)
    return run


def resume(run: Run, *, actor: Actor) -> Run:
    """Let the same run go on from its latest checkpoint. A run under way is left alone."""
    _check_may(actor, run.workflow)
    with transaction.atomic():
        resumed = Run.objects.filter(id=run.id, status__in=Run.RESUMABLE).update(
            status=Run.Status.QUEUED, finished_at=None, error="", cancel_requested_by=""
        )
        if resumed:
            add_event(run.id, EventKind.RETRYING, reason=f"Resumed by {actor.name}.")
            audit.record(actor, "run.resume", run)
            transaction.on_commit(dispatch.wake)
    run.refresh_from_db()
    if run.status == Run.Status.COMPLETED:
        raise ServiceError(
            "This run has finished, so there is nothing to resume. "
            "Fork its final answer with a new instruction instead."
        )
    return run


def cancel(run: Run, *, actor: Actor) -> Run:
    """Stop a run that is under way. What it has saved stays and can be resumed or forked."""
    _check_may(actor, run.workflow)
    with transaction.atomic():
        asked = Run.objects.filter(
            id=run.id, status=Run.Status.RUNNING, cancel_requested_by=""
        ).update(cancel_requested_by=actor.name)
        # Without a worker there is nobody to ask: it ends here.
        resting = (Run.Status.QUEUED, Run.Status.WAITING)
        ended = not asked and Run.objects.filter(id=run.id, status__in=resting).update(
            status=Run.Status.CANCELLED, finished_at=timezone.now()
        )
        if ended:
            add_event(run.id, EventKind.CANCELLED, by=actor.name)
        if asked or ended:
            audit.record(actor, "run.cancel", run)
            transaction.on_commit(dispatch.wake)
    run.refresh_from_db()
    return run


def answer(approval: Approval, *, decision: str, comment: str = "", actor: Actor) -> Approval:
    """Record a person's answer; when it was the last one missing, the run is queued again.

    Raises `ServiceError` when somebody else was faster, or when the answer does not fit.
    """
    _check_may(actor, approval.run.workflow)
    comment = _words(comment)
    _check_decision(approval, decision, comment)
    with transaction.atomic():
        # The run's row first: somebody may be cancelling it at this moment.
        run = Run.objects.select_for_update().get(id=approval.run_id)
        won = run.status == Run.Status.WAITING and Approval.objects.filter(
            id=approval.id, decision=""
        ).update(
            decision=decision,
            comment=comment,
            answered_by_id=_person(actor).pk,
            answered_at=timezone.now(),
        )
        if won:
            _deliver(run, approval, decision, comment, actor)
    approval.refresh_from_db()
    if not won and not _is_same_answer(approval, decision, actor):
        raise ServiceError(_too_late(approval))
    return approval


def _deliver(run: Run, approval: Approval, decision: str, comment: str, actor: Actor) -> None:
    reply = {"decision": decision, "text": comment}
    run.replies = {**run.replies, approval.request_id: reply}
    is_last = not run.approvals.filter(decision="").exists()
    if is_last:
        run.status = Run.Status.QUEUED
    run.save(update_fields=["replies", "status"])
    add_event(
        run.id,
        EventKind.ANSWERED,
        round=run.rounds,
        approval=str(approval.id),
        decision=decision,
        text=comment,
        by=actor.name,
    )
    audit.record(
        actor,
        f"approval.{decision}",
        approval,
        instruction=comment,
        run=str(run.id),
        digest=approval.digest,
    )
    if is_last:
        transaction.on_commit(dispatch.wake)


def first_admin() -> AbstractBaseUser:
    """The first active superuser, made without a usable password when there is none."""
    users: Any = get_user_model().objects
    admin: AbstractBaseUser | None = (
        users.filter(is_superuser=True, is_active=True).order_by("pk").first()
    )
    if admin is None:
        taken = set(users.filter(username__startswith="admin").values_list("username", flat=True))
        others = (f"admin{number}" for number in itertools.count(2))
        name = next(name for name in itertools.chain(["admin"], others) if name not in taken)
        with transaction.atomic():
            admin = users.create_superuser(name, password=None)
            audit.record(audit.SYSTEM, "user.create", admin, username=name)
    return admin


def _words(text: str) -> str:
    return printable(text).strip()


def _submitted(submission: UUID, actor: Actor) -> Run | None:
    """The run that an earlier submission of the same form started."""
    runs = Run.objects.select_related("workflow")
    run = runs.filter(workflow_id=submission, number=1).first()
    if run:
        _check_may(actor, run.workflow)
    return run


def _person(actor: Actor) -> AbstractBaseUser:
    if actor.user is None:
        raise NotAllowed("Only a person can do this.")
    return actor.user


def _check_may(actor: Actor, workflow: Workflow) -> None:
    user: Any = _person(actor)
    if not (user.is_active and (user.is_staff or workflow.owner_id == user.pk)):
        raise NotAllowed("This workflow belongs to somebody else.")


def _checked_rounds(rounds: int) -> int:
    if not 1 <= rounds <= MAX_ROUNDS_LIMIT:
        raise ServiceError(f"The number of rounds must be between 1 and {MAX_ROUNDS_LIMIT}.")
    return rounds


def _store_files(files: Sequence[tuple[str, IO[bytes]]]) -> list[attachments.StoredFile]:
    try:
        attachments.check([name for name, _ in files])
        return [attachments.store(file, name=name) for name, file in files]
    except attachments.AttachmentRefused as error:
        raise ServiceError(str(error)) from error


def _run_of(checkpoint: Checkpoint) -> Run:
    run = Run.objects.select_related("workflow").filter(id=checkpoint.run_id).first()
    if run is None:
        raise ServiceError(f"Checkpoint {checkpoint.id} belongs to no run of this site.")
    return run


def _check_decision(approval: Approval, decision: str, comment: str) -> None:
    fitting = {
        Approval.Subject.PLAN: (Approval.Decision.APPROVE, Approval.Decision.REVISE),
        Approval.Subject.TOOL_CALL: (Approval.Decision.APPROVE, Approval.Decision.REJECT),
    }[Approval.Subject(approval.subject)]
    if decision not in fitting:
        raise ServiceError(f"Answer with one of: {', '.join(fitting)}.")
    if decision == Approval.Decision.REVISE and not comment:
        raise ServiceError("Say what the plan should do differently.")


def _is_same_answer(approval: Approval, decision: str, actor: Actor) -> bool:
    return approval.decision == decision and approval.answered_by_id == _person(actor).pk


def _too_late(approval: Approval) -> str:
    if approval.decision:
        who = approval.answered_by
        return f"{who} has already answered: {approval.get_decision_display()}."
    return "This run no longer waits for an answer."

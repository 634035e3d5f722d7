from __future__ import annotations

import io
import uuid

import pytest
from django.contrib.auth.models import User

from checkpoints_app.audit import SYSTEM, Actor
from checkpoints_app.models import AuditEvent, Checkpoint
from tests.running import make_actor, make_team, start
from workflows import services
from workflows.models import Approval, Attachment, Event, Run, Workflow
from workflows.services import NotAllowed, ServiceError

pytestmark = pytest.mark.django_db


@pytest.fixture
def run() -> Run:
    return start(make_team())


@pytest.fixture
def checkpoint(run: Run) -> Checkpoint:
    return Checkpoint.objects.create(
        run_id=str(run.id),
        position=0,
        source="loop",
        phase="agent_replied",
        superstep=6,
        round=3,
        workflow_name="test",
        manifest=b"",
        size_bytes=0,
        new_bytes=0,
    )


def test_start_queues_the_first_run(run: Run) -> None:
    assert (run.status, run.number, run.max_rounds) == (Run.Status.QUEUED, 1, 12)
    assert [event.kind for event in run.events.all()] == ["queued"]


def test_start_keeps_the_team_without_keys(run: Run) -> None:
    assert run.workflow.team["agents"][0]["name"] == "researcher"
    assert "api_key" not in run.workflow.team["manager"]


def test_start_is_audited(run: Run) -> None:
    entry = AuditEvent.objects.get(verb="workflow.start")

    assert entry.actor_name == "olivia"
    assert entry.target_id == str(run.workflow_id)
    assert entry.instruction == "Count the sheep."
    assert entry.origin == AuditEvent.Origin.TERMINAL


def test_start_refuses_an_empty_task() -> None:
    with pytest.raises(ServiceError, match="task is empty"):
        start(make_team(), "  \n ")

    assert not Workflow.objects.exists()


def test_start_refuses_a_bad_file_and_leaves_nothing() -> None:
    with pytest.raises(ServiceError, match=r"virus\.exe"):
        start(make_team(), files=[("virus.exe", io.BytesIO(b"MZ"))])

    assert not Workflow.objects.exists()


def test_start_keeps_files_once_per_content() -> None:
    files = [("a.csv", io.BytesIO(b"x,y\n1,2\n")), ("b.csv", io.BytesIO(b"x,y\n1,2\n"))]

    start(make_team(), files=files)

    assert Attachment.objects.count() == 2
    assert Attachment.objects.values("sha256").distinct().count() == 1


@pytest.mark.parametrize("rounds", [-1, 1001])
def test_start_refuses_an_absurd_number_of_rounds(rounds: int) -> None:
    with pytest.raises(ServiceError, match="between 1 and 1000"):
        start(make_team(), max_rounds=rounds)


def test_start_does_nothing_a_second_time() -> None:
    submission = uuid.uuid4()

    first = start(make_team(), submission=submission)
    second = start(make_team(), submission=submission)

    assert first == second
    assert AuditEvent.objects.filter(verb="workflow.start").count() == 1


def test_start_shows_nobody_the_run_of_another() -> None:
    submission = uuid.uuid4()
    start(make_team(), submission=submission)

    with pytest.raises(NotAllowed):
        start(make_team(), submission=submission, actor=make_actor("stranger"))


def test_start_refuses_a_name_taken_before() -> None:
    start(make_team(), workflow_id="quarterly")

    with pytest.raises(ServiceError, match="quarterly"):
        start(make_team(), workflow_id="quarterly")


def test_start_lets_two_people_use_one_name() -> None:
    start(make_team(), workflow_id="quarterly")
    start(make_team(), workflow_id="quarterly", actor=make_actor("other"))

    assert Workflow.objects.filter(workflow_id="quarterly").count() == 2


def test_start_needs_a_person() -> None:
    with pytest.raises(NotAllowed):
        start(make_team(), actor=SYSTEM)


def test_fork_grows_a_new_run(run: Run, checkpoint: Checkpoint) -> None:
    fork = services.fork(checkpoint, instruction=" Focus on EMEA ", actor=make_actor())

    assert (fork.number, fork.parent, fork.forked_from) == (2, run, checkpoint.id)
    assert (fork.instruction, fork.mode, fork.forked_round) == ("Focus on EMEA", "steer", 3)


def test_fork_may_add_as_many_rounds_as_the_team_takes(checkpoint: Checkpoint) -> None:
    fork = services.fork(checkpoint, instruction="More", actor=make_actor())

    assert fork.max_rounds == 3 + 12


def test_fork_is_audited_with_its_instruction(checkpoint: Checkpoint) -> None:
    fork = services.fork(checkpoint, instruction="Focus on EMEA", actor=make_actor())

    entry = AuditEvent.objects.get(verb="run.fork")
    assert (entry.target_id, entry.instruction) == (str(fork.id), "Focus on EMEA")
    assert entry.details["checkpoint"] == str(checkpoint.id)


def test_fork_does_nothing_a_second_time(checkpoint: Checkpoint) -> None:
    submission = uuid.uuid4()

    first, second = (
        services.fork(checkpoint, instruction="X", actor=make_actor(), submission=submission)
        for _ in range(2)
    )

    assert first == second
    assert Run.objects.count() == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"instruction": " "}, "instruction is empty"),
        ({"instruction": "X", "mode": "rewind"}, "no mode 'rewind'"),
        ({"instruction": "X", "max_rounds": 5000}, "between 1 and 1000"),
    ],
)
def test_fork_refuses_what_makes_no_sense(
    checkpoint: Checkpoint, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(ServiceError, match=message):
        services.fork(checkpoint, actor=make_actor(), **arguments)

    assert Run.objects.count() == 1


def test_fork_is_not_for_strangers(checkpoint: Checkpoint) -> None:
    with pytest.raises(NotAllowed):
        services.fork(checkpoint, instruction="X", actor=make_actor("stranger"))


def test_fork_is_open_to_staff(checkpoint: Checkpoint) -> None:
    staff = User.objects.create_user("sam", is_staff=True)

    fork = services.fork(
        checkpoint, instruction="X", actor=Actor(user=staff, origin=AuditEvent.Origin.WEB)
    )

    assert fork.workflow.owner.username == "olivia"


def test_fork_refuses_a_checkpoint_of_no_run(checkpoint: Checkpoint) -> None:
    checkpoint.run_id = str(uuid.uuid4())

    with pytest.raises(ServiceError, match="belongs to no run"):
        services.fork(checkpoint, instruction="X", actor=make_actor())


@pytest.mark.parametrize("status", ["failed", "cancelled", "paused"])
def test_resume_queues_a_stopped_run_again(run: Run, status: str) -> None:
    Run.objects.filter(id=run.id).update(status=status, error="It broke.")

    services.resume(run, actor=make_actor())

    assert (run.status, run.error) == (Run.Status.QUEUED, "")
    assert AuditEvent.objects.filter(verb="run.resume").count() == 1


def test_resume_leaves_a_run_under_way_alone(run: Run) -> None:
    Run.objects.filter(id=run.id).update(status="running")

    services.resume(run, actor=make_actor())

    assert run.status == Run.Status.RUNNING
    assert not AuditEvent.objects.filter(verb="run.resume").exists()


def test_resume_offers_a_fork_instead_of_a_finished_run(run: Run) -> None:
    Run.objects.filter(id=run.id).update(status="completed")

    with pytest.raises(ServiceError, match="Fork"):
        services.resume(run, actor=make_actor())


def test_cancel_ends_a_run_without_a_worker_at_once(run: Run) -> None:
    services.cancel(run, actor=make_actor())

    assert run.status == Run.Status.CANCELLED
    assert run.events.last().kind == "cancelled"


def test_cancel_asks_the_worker_of_a_running_run(run: Run) -> None:
    Run.objects.filter(id=run.id).update(status="running")

    services.cancel(run, actor=make_actor())
    services.cancel(run, actor=make_actor())

    assert (run.status, run.cancel_requested_by) == (Run.Status.RUNNING, "olivia")
    assert AuditEvent.objects.filter(verb="run.cancel").count() == 1


def test_cancel_does_nothing_to_a_finished_run(run: Run) -> None:
    Run.objects.filter(id=run.id).update(status="completed")

    services.cancel(run, actor=make_actor())

    assert run.status == Run.Status.COMPLETED
    assert not AuditEvent.objects.filter(verb="run.cancel").exists()


@pytest.mark.parametrize("verb", [services.cancel, services.resume])
def test_a_stranger_changes_no_run(run: Run, verb: object) -> None:
    with pytest.raises(NotAllowed):
        verb(run, actor=make_actor("stranger"))


@pytest.fixture
def approval(run: Run) -> Approval:
    Run.objects.filter(id=run.id).update(status="waiting")
    run.refresh_from_db()
    return Approval.objects.create(run=run, request_id="r1", subject="plan", digest="d")


def test_answer_records_who_and_queues_the_run(approval: Approval) -> None:
    services.answer(approval, decision="approve", actor=make_actor())

    run = Run.objects.get(id=approval.run_id)
    assert approval.answered_by.username == "olivia"
    assert (run.status, run.replies) == ("queued", {"r1": {"decision": "approve", "text": ""}})
    assert AuditEvent.objects.get(verb="approval.approve").details["digest"] == "d"


def test_answer_waits_for_every_approval(approval: Approval) -> None:
    Approval.objects.create(run=approval.run, request_id="r2", subject="plan", digest="d")

    services.answer(approval, decision="approve", actor=make_actor())

    assert Run.objects.get(id=approval.run_id).status == Run.Status.WAITING


def test_answer_tells_the_second_who_was_first(approval: Approval) -> None:
    services.answer(approval, decision="approve", actor=make_actor())
    staff = User.objects.create_user("sam", is_staff=True)

    with pytest.raises(ServiceError, match="olivia has already answered: Approve"):
        services.answer(
            approval,
            decision="revise",
            comment="No.",
            actor=Actor(user=staff, origin=AuditEvent.Origin.WEB),
        )


@pytest.mark.parametrize(("decision", "comment"), [("reject", "x"), ("revise", " "), ("", "")])
def test_answer_refuses_what_does_not_fit_a_plan(
    approval: Approval, decision: str, comment: str
) -> None:
    with pytest.raises(ServiceError):
        services.answer(approval, decision=decision, comment=comment, actor=make_actor())

    assert Run.objects.get(id=approval.run_id).status == Run.Status.WAITING


def test_event_rows_are_numbered_by_services_too(run: Run) -> None:
    services.cancel(run, actor=make_actor())
    services.resume(run, actor=make_actor())

    assert [e.sequence for e in Event.objects.filter(run=run)] == [1, 2, 3]


def test_first_admin_is_made_once_without_a_password() -> None:
    first, second = services.first_admin(), services.first_admin()

    assert first == second
    assert not first.has_usable_password()
    assert AuditEvent.objects.filter(verb="user.create").count() == 1


def test_a_form_that_was_changed_is_another_request() -> None:
    submission = uuid.uuid4()

    first = start(make_team(), "Count the sheep.", submission=submission)
    second = start(make_team(), "Count the goats.", submission=submission)

    assert first != second
    assert second.workflow.task == "Count the goats."


def test_a_fork_form_that_was_changed_is_another_request(checkpoint: Checkpoint) -> None:
    submission = uuid.uuid4()

    first, second = (
        services.fork(checkpoint, instruction=text, actor=make_actor(), submission=submission)
        for text in ("Focus on EMEA", "Focus on APAC")
    )

    assert (first.instruction, second.instruction) == ("Focus on EMEA", "Focus on APAC")


def test_an_answer_does_not_revive_a_cancelled_run(approval: Approval) -> None:
    services.cancel(approval.run, actor=make_actor())

    with pytest.raises(ServiceError, match="no longer waits"):
        services.answer(approval, decision="approve", actor=make_actor())

    assert Run.objects.get(id=approval.run_id).status == Run.Status.CANCELLED


def test_first_admin_finds_a_free_name() -> None:
    User.objects.create_user("admin", is_active=False)

    assert services.first_admin().get_username() == "admin2"


def test_start_stores_no_character_that_pages_refuse() -> None:
    run = start(make_team(), "Count\x00 the \udcff sheep.")

    assert (
        run.workflow.task == "Count\N{REPLACEMENT CHARACTER} the \N{REPLACEMENT CHARACTER} sheep."
    )

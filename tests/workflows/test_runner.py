from __future__ import annotations

import pytest
from django.db import OperationalError

from checkpoints_app.models import Checkpoint
from tests.model_server import ModelServer
from tests.running import (
    checkpoint_at,
    checkpoints,
    dispatching,
    finish,
    fork_and_finish,
    is_at_rest,
    kinds,
    make_actor,
    make_team,
    start,
    start_and_finish,
    wait_until,
    waiting_events,
)
from workflows import services
from workflows.events import EventKind
from workflows.models import Approval, Event, ModelCall, Run
from workflows.recorder import CallKey, Recorder

pytestmark = pytest.mark.django_db(transaction=True)


def test_it_completes_with_the_answer_of_the_manager(model_server: ModelServer) -> None:
    run = start_and_finish(make_team(model_server))

    assert run.status == Run.Status.COMPLETED
    assert run.answer == "FINAL ANSWER for: Count the sheep."
    assert run.rounds == 3


def test_it_numbers_events_without_gaps(model_server: ModelServer) -> None:
    run = start_and_finish(make_team(model_server))

    sequences = list(Event.objects.filter(run=run).values_list("sequence", flat=True))
    assert sequences == list(range(1, run.last_sequence + 1))


def test_it_tells_each_round_in_order(model_server: ModelServer) -> None:
    model_server.rounds = 1

    run = start_and_finish(make_team(model_server))

    told = [kind for kind in kinds(run) if kind not in {"model_call", "checkpoint"}]
    assert told == ["queued", "started", "plan", "decision", "message", "decision", "answer",
                    "completed"]  # fmt: skip


def test_it_saves_a_checkpoint_at_every_superstep(model_server: ModelServer) -> None:
    run = start_and_finish(make_team(model_server))

    found = [(c.superstep, c.round, c.phase) for c in checkpoints(run)]
    assert found == [
        (0, 0, "entry"),
        (1, 1, "manager_decided"),
        (2, 1, "agent_replied"),
        (3, 2, "manager_decided"),
        (4, 2, "agent_replied"),
        (5, 3, "manager_decided"),
        (6, 3, "agent_replied"),
        (7, 3, "final"),
        (8, 3, "final"),  # the last words reach the agents' inboxes
    ]


def test_it_chains_the_checkpoints(model_server: ModelServer) -> None:
    run = start_and_finish(make_team(model_server))

    chain = checkpoints(run)
    assert [c.parent_id for c in chain] == [None, *(c.id for c in chain[:-1])]


def test_it_counts_calls_tokens_and_cost(model_server: ModelServer) -> None:
    prices = {"test-model": {"input": 2, "output": 10}}

    run = start_and_finish(make_team(model_server, prices=prices))

    calls = ModelCall.objects.filter(run=run)
    assert run.model_calls == len(calls) == len(model_server.requests)
    assert run.input_tokens == sum(call.input_tokens for call in calls) > 0
    assert run.cost_usd == sum(call.cost_usd for call in calls) > 0


def test_it_tells_tool_calls_with_arguments_and_results(model_server: ModelServer) -> None:
    model_server.tool = ("run_python", {"code": "6 * 7"})

    run = start_and_finish(make_team(model_server))

    call = Event.objects.get(run=run, kind="tool_call")
    result = Event.objects.get(run=run, kind="tool_result")
    assert call.data["arguments"] == {"code": "6 * 7"}
    assert "42" in result.data["result"]
    assert call.data["call_id"] == result.data["call_id"]
    assert result.data["tool"] == "run_python"


def test_it_stops_with_a_clear_event_when_a_save_fails(
    model_server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from checkpoints_app.backends import database

    def full(*args: object, **kwargs: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(database.DatabaseBackend, "add", full)

    run = start_and_finish(make_team(model_server))

    assert run.status == Run.Status.FAILED
    assert "No space left on device" in run.error
    assert "resume" in run.error
    assert model_server.requests == []


def test_it_goes_on_from_the_last_checkpoint_after_a_failure(model_server: ModelServer) -> None:
    run = start(make_team(model_server))
    with dispatching():
        wait_until(lambda: model_server.count("worker") == 1)
        model_server.fail(50, status=400)
        wait_until(lambda: is_at_rest(run))
    assert run.status == Run.Status.FAILED
    calls = model_server.requests[:]
    model_server.mishaps.clear()
    services.resume(run, actor=make_actor())

    finish(run)

    assert run.status == Run.Status.COMPLETED
    assert next(r.kind for r in model_server.requests[len(calls) :]) in {"ledger", "worker"}
    assert model_server.count("plan") == 1


def test_it_keeps_the_conversation_when_a_call_of_the_manager_fails(
    model_server: ModelServer,
) -> None:
    run = start(make_team(model_server))
    with dispatching():
        wait_until(lambda: model_server.count("worker") == 2)
        model_server.fail(1, status=400)
        wait_until(lambda: is_at_rest(run))
    services.resume(run, actor=make_actor())

    finish(run)

    assert run.status == Run.Status.COMPLETED
    assert model_server.count("facts_update") == 0
    assert Event.objects.filter(run=run, kind="message").count() == 3


def test_it_says_what_to_do_when_the_key_is_refused(model_server: ModelServer) -> None:
    model_server.fail(1, status=401)

    run = start_and_finish(make_team(model_server))

    assert run.status == Run.Status.FAILED
    assert "OPENAI_API_KEY" in run.error


def test_it_fails_with_the_way_on_when_the_limit_of_rounds_is_reached(
    model_server: ModelServer,
) -> None:
    model_server.rounds = 9

    run = start_and_finish(make_team(model_server), max_rounds=2)

    assert run.status == Run.Status.FAILED
    assert "Fork" in run.error
    assert checkpoint_at(run, round=2)


def test_it_repeats_no_finished_model_call_after_a_crash(model_server: ModelServer) -> None:
    model_server.token_delay_seconds = 0.05
    run = start(make_team(model_server))
    with dispatching(worker="first") as first:
        wait_until(lambda: model_server.count("worker") == 2)
        execution = first._executions[run.id]
        # What a crash leaves: no last word, and a lease that has run out.
        execution._guarded = _say_nothing
    Run.objects.filter(id=run.id).update(lease_expires_at=None)
    model_server.token_delay_seconds = 0

    finish(run)

    asked = [request.text for request in model_server.requests]
    assert run.status == Run.Status.COMPLETED
    assert run.attempt == 2
    assert len(asked) - len(set(asked)) <= 1  # at most the one call in flight


async def _say_nothing(*args: object, **kwargs: object) -> None:
    return


def test_it_finishes_when_only_the_last_word_is_missing(model_server: ModelServer) -> None:
    run = start_and_finish(make_team(model_server))
    before = kinds(run)
    last = checkpoints(run)[-1]
    Event.objects.filter(run=run, sequence__gt=run.last_sequence - 2).delete()
    last.delete()
    Run.objects.filter(id=run.id).update(
        status="queued", answer="", last_sequence=run.last_sequence - 2
    )
    calls = len(model_server.requests)

    finish(run)

    repeated = [kind for kind in kinds(run) if kind != "started"]
    assert repeated == [kind for kind in before if kind != "started"]
    assert run.answer == "FINAL ANSWER for: Count the sheep."
    assert len(model_server.requests) == calls


def test_it_refuses_the_writes_of_a_worker_that_lost_its_run(model_server: ModelServer) -> None:
    model_server.token_delay_seconds = 0.02
    run = start(make_team(model_server))
    with dispatching(worker="slow"):
        wait_until(lambda: model_server.count("worker") == 1)
        Run.objects.filter(id=run.id).update(attempt=99, worker="other")
        stolen = Event.objects.filter(run=run).count()
        wait_until(lambda: run.id not in _held("slow"))

    assert Event.objects.filter(run=run).count() == stolen
    run.refresh_from_db()
    assert run.status == Run.Status.RUNNING


def _held(worker: str) -> set[object]:
    from workflows import dispatch

    owners = [waker.__self__ for waker in dispatch._wakers]
    return {run for owner in owners if owner.worker == worker for run in owner._executions}


def test_it_cancels_a_model_call_in_flight(model_server: ModelServer) -> None:
    model_server.hang()
    run = start(make_team(model_server))
    with dispatching():
        wait_until(lambda: model_server.requests)
        services.cancel(run, actor=make_actor())
        wait_until(lambda: is_at_rest(run))

    assert run.status == Run.Status.CANCELLED
    assert Event.objects.get(run=run, kind="cancelled").data["by"] == "olivia"


def test_it_hands_the_run_on_when_the_server_stops(model_server: ModelServer) -> None:
    model_server.hang()
    run = start(make_team(model_server))
    with dispatching():
        wait_until(lambda: model_server.requests)

    run.refresh_from_db()
    assert run.status == Run.Status.QUEUED
    assert finish(run).status == Run.Status.COMPLETED


def test_it_waits_for_a_plan_to_be_approved(model_server: ModelServer) -> None:
    run = start_and_finish(make_team(model_server, plan_review=True))
    approval = Approval.objects.get(run=run)
    assert run.status == Run.Status.WAITING
    assert approval.subject == Approval.Subject.PLAN

    services.answer(approval, decision="approve", actor=make_actor())
    finish(run)

    assert run.status == Run.Status.COMPLETED


def test_it_makes_a_new_plan_when_one_is_to_be_revised(model_server: ModelServer) -> None:
    run = start_and_finish(make_team(model_server, plan_review=True))
    first = Approval.objects.get(run=run)

    services.answer(first, decision="revise", comment="Only goats.", actor=make_actor())
    finish(run)

    assert run.status == Run.Status.WAITING
    assert run.approvals.count() == 2
    assert any("Only goats." in request.text for request in model_server.requests[-2:])


@pytest.mark.parametrize(("decision", "ran"), [("approve", True), ("reject", False)])
def test_it_asks_before_a_dangerous_tool(
    model_server: ModelServer, decision: str, ran: bool
) -> None:
    model_server.tool = ("run_python", {"code": "6 * 7"})
    care = {"enabled": True, "require_approval_for": ["code_execution"]}
    run = start_and_finish(make_team(model_server, human_in_the_loop=care))
    approval = Approval.objects.get(run=run)
    assert approval.arguments == {"code": "6 * 7"}

    services.answer(approval, decision=decision, actor=make_actor())
    finish(run)

    assert run.status == Run.Status.COMPLETED
    results = [event.data["result"] for event in Event.objects.filter(run=run, kind="tool_result")]
    assert any("42" in result for result in results) is ran


def test_it_gives_the_same_answer_without_checkpoints(model_server: ModelServer) -> None:
    run = start_and_finish(make_team(model_server, checkpointing={"enabled": False}))

    assert run.answer == "FINAL ANSWER for: Count the sheep."
    assert not Checkpoint.objects.exists()


def test_it_redacts_what_looks_like_a_key() -> None:
    run = start(make_team())
    run.claim(worker="test")
    Recorder(run.id, run.attempt).append(EventKind.MESSAGE, text="use sk-abcdefghijklmnopqrstuv")

    assert Event.objects.get(run=run, kind="message").data["text"] == "use [redacted]"


def test_it_keeps_the_conversation_when_the_journal_cannot_be_written(
    model_server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = Recorder.record_call
    failures = ["once"]

    def fail_at_third_decision(self: Recorder, key: CallKey, *args: object) -> None:
        if failures and key.agent == "manager" and model_server.count("ledger") == 3:
            failures.clear()
            raise OperationalError("database is locked")
        written(self, key, *args)

    monkeypatch.setattr(Recorder, "record_call", fail_at_third_decision)
    run = start_and_finish(make_team(model_server))
    assert run.status == Run.Status.FAILED
    services.resume(run, actor=make_actor())

    finish(run)

    assert run.status == Run.Status.COMPLETED
    assert model_server.count("facts_update") == 0


@pytest.mark.parametrize("bad", ["\x00", "\ud83d"])
def test_it_survives_characters_that_nothing_can_store(model_server: ModelServer, bad: str) -> None:
    run = start_and_finish(make_team(model_server), "Count the sheep.")
    model_server.reply_suffix = f" {bad} end"

    odd = start_and_finish(make_team(model_server))

    assert run.status == odd.status == Run.Status.COMPLETED
    said = Event.objects.filter(run=odd, kind="message").first().data["text"]
    assert said.endswith("\N{REPLACEMENT CHARACTER} end")


def test_it_shows_a_question_again_after_a_resume(model_server: ModelServer) -> None:
    run = start_and_finish(make_team(model_server, plan_review=True))
    services.cancel(run, actor=make_actor())
    services.resume(run, actor=make_actor())

    finish(run)

    assert run.status == Run.Status.WAITING
    assert (run.approvals.count(), waiting_events(run)) == (1, 2)


def test_it_is_cancelled_rather_than_asking(model_server: ModelServer) -> None:
    run = start(make_team(model_server, plan_review=True))
    run.claim(worker="test")
    services.cancel(run, actor=make_actor())

    Recorder(run.id, run.attempt).wait_for([Approval(request_id="r", subject="plan", digest="d")])

    run.refresh_from_db()
    assert run.status == Run.Status.CANCELLED
    assert not run.approvals.exists()


def test_it_gives_up_a_run_that_kills_its_worker_again_and_again(
    model_server: ModelServer,
) -> None:
    run = start(make_team(model_server))
    for attempt in range(5):
        run.claim(worker="test")
        Recorder(run.id, run.attempt).append(
            EventKind.STARTED, attempt=attempt, offline=False, models={}, from_checkpoint=None
        )
        Run.objects.filter(id=run.id).update(lease_expires_at=None)
        run.refresh_from_db()

    finish(run)

    assert run.status == Run.Status.FAILED
    assert "5 attempts in a row" in run.error
    assert model_server.requests == []


def test_it_says_no_more_of_an_unknown_error_than_its_cause(
    model_server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Recorder, *args: object) -> None:
        raise RuntimeError("sk-abcdefghijklmnopqrstuv " + "x" * 1_000)

    monkeypatch.setattr(Recorder, "record_call", fail)

    run = start_and_finish(make_team(model_server))

    assert "RuntimeError: [redacted] xxx" in run.error
    assert len(run.error) < 500


def test_it_pauses_when_its_time_is_up(model_server: ModelServer) -> None:
    model_server.hang()
    limits = {"max_rounds": 12, "timeout_seconds": 1}

    run = start_and_finish(make_team(model_server, limits=limits))

    assert run.status == Run.Status.PAUSED
    assert "limit of 1 s" in Event.objects.get(run=run, kind="paused").data["reason"]


def test_it_says_by_what_a_checkpoint_can_be_found(model_server: ModelServer) -> None:
    prices = {"test-model": {"input": 2, "output": 10}}

    run = start_and_finish(make_team(model_server, prices=prices))

    saved = checkpoints(run)
    assert {c.workflow for c in saved} == {str(run.workflow_id)}
    assert {c.team for c in saved} == {"researcher, coder"}
    assert [c.status for c in saved] == ["running"] * (len(saved) - 1) + ["completed"]
    costs = [c.cost_usd for c in saved]
    assert costs == sorted(costs)
    assert costs[-1] == run.cost_usd > costs[0]


def test_it_counts_the_cost_of_a_fork_along_its_line(model_server: ModelServer) -> None:
    prices = {"test-model": {"input": 2, "output": 10}}
    run = start_and_finish(make_team(model_server, prices=prices))
    origin = checkpoint_at(run, round=2)

    fork = fork_and_finish(origin, "Count the goats.")

    first, *_, last = checkpoints(fork)
    assert first.cost_usd == origin.cost_usd > 0
    assert last.cost_usd == origin.cost_usd + fork.cost_usd


def test_it_marks_the_checkpoint_at_which_a_run_failed(model_server: ModelServer) -> None:
    run = start(make_team(model_server))
    with dispatching():
        wait_until(lambda: model_server.count("worker") == 1)
        model_server.fail(50, status=400)
        wait_until(lambda: is_at_rest(run))

    *before, last = checkpoints(run)

    assert last.status == "failed"
    assert {c.status for c in before} <= {"running"}

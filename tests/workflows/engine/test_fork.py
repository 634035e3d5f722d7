from __future__ import annotations

import pytest

from tests.model_server import ModelServer
from tests.running import (
    checkpoint_at,
    checkpoints,
    fingerprint,
    finish,
    fork_and_finish,
    make_actor,
    make_team,
    start_and_finish,
)
from workflows import services
from workflows.models import Approval, Run

pytestmark = pytest.mark.django_db(transaction=True)

MANAGER_KINDS = {"facts", "plan", "facts_update", "plan_update", "ledger", "final"}
EMEA = "Focus on EMEA"


@pytest.fixture
def parent(model_server: ModelServer) -> Run:
    """A finished run of five rounds."""
    model_server.rounds = 5
    return start_and_finish(make_team(model_server))


def test_it_asks_the_model_for_what_comes_after_the_round_alone(
    model_server: ModelServer, parent: Run
) -> None:
    before = len(model_server.requests)

    fork = fork_and_finish(checkpoint_at(parent, round=3), EMEA)

    asked = [request.kind for request in model_server.requests[before:]]
    assert asked == ["ledger", "worker", "ledger", "worker", "ledger", "final"]
    assert fork.model_calls == 6
    assert parent.model_calls == 14


@pytest.mark.parametrize("mode", ["steer", "replan"])
@pytest.mark.parametrize("position", range(12))
def test_it_forks_from_every_checkpoint(
    model_server: ModelServer, parent: Run, position: int, mode: str
) -> None:
    origin = checkpoints(parent)[position]
    before, untouched = len(model_server.requests), fingerprint(parent)
    if origin.phase == "final":
        model_server.rounds = 6

    fork = fork_and_finish(origin, EMEA, mode=mode)

    asked = model_server.requests[before:]
    assert fork.status == Run.Status.COMPLETED
    assert all(
        EMEA in request.text for request in asked if request.kind in MANAGER_KINDS - {"plan"}
    )
    assert fingerprint(parent) == untouched


@pytest.mark.parametrize("position", range(1, 12))
def test_it_makes_a_new_plan_first_when_replanning(
    model_server: ModelServer, parent: Run, position: int
) -> None:
    before = len(model_server.requests)
    origin = checkpoints(parent)[position]
    if origin.phase == "final":
        model_server.rounds = 6

    fork_and_finish(origin, EMEA, mode="replan")

    asked = [request.kind for request in model_server.requests[before:]]
    assert asked[:2] == ["facts_update", "plan_update"]


def test_it_sees_the_instruction_after_a_stall_reset(
    model_server: ModelServer, parent: Run
) -> None:
    origin = checkpoint_at(parent, round=3)
    before = len(model_server.requests)
    model_server.rounds, model_server.stalled_from = 99, 4

    fork_and_finish(origin, EMEA, max_rounds=8)

    asked = [r for r in model_server.requests[before:] if r.kind in MANAGER_KINDS - {"plan_update"}]
    assert "facts_update" in {request.kind for request in asked}
    assert all(EMEA in request.text for request in asked)


def test_it_keeps_two_forks_of_one_checkpoint_apart(model_server: ModelServer, parent: Run) -> None:
    origin = checkpoint_at(parent, round=3)
    before = len(model_server.requests)
    one = services.fork(origin, instruction="Only EMEA", actor=make_actor())
    two = services.fork(origin, instruction="Only APAC", actor=make_actor())

    finish(one, two)

    asked = [request.text for request in model_server.requests[before:]]
    assert {one.status, two.status} == {Run.Status.COMPLETED}
    assert not any("Only EMEA" in text and "Only APAC" in text for text in asked)
    assert one.model_calls == two.model_calls == 6


def test_it_forks_a_fork_with_both_instructions(model_server: ModelServer, parent: Run) -> None:
    first = fork_and_finish(checkpoint_at(parent, round=3), EMEA)
    before = len(model_server.requests)

    second = fork_and_finish(checkpoint_at(first, round=4), "Only product X")

    asked = [r.text for r in model_server.requests[before:] if r.kind in MANAGER_KINDS]
    assert second.status == Run.Status.COMPLETED
    assert all(EMEA in text and "Only product X" in text for text in asked)


def test_it_forks_the_last_checkpoint_of_a_failed_run(model_server: ModelServer) -> None:
    model_server.rounds = 9
    failed = start_and_finish(make_team(model_server), max_rounds=2)
    model_server.rounds = 3

    fork = fork_and_finish(checkpoints(failed)[-1], EMEA)

    assert failed.status == Run.Status.FAILED
    assert fork.status == Run.Status.COMPLETED


@pytest.mark.parametrize("mode", ["steer", "replan"])
def test_it_revises_a_plan_that_waits_for_approval(model_server: ModelServer, mode: str) -> None:
    waiting = start_and_finish(make_team(model_server, plan_review=True))
    untouched = fingerprint(waiting)

    fork = fork_and_finish(checkpoints(waiting)[-1], EMEA, mode=mode)

    assert fork.status == Run.Status.WAITING
    assert EMEA in model_server.requests[-1].text
    assert fingerprint(waiting) == untouched


@pytest.mark.parametrize("mode", ["steer", "replan"])
def test_it_takes_back_a_turn_that_waits_for_a_tool(model_server: ModelServer, mode: str) -> None:
    model_server.tool = ("run_python", {"code": "1"})
    care = {"enabled": True, "require_approval_for": ["code_execution"]}
    waiting = start_and_finish(make_team(model_server, human_in_the_loop=care))
    assert waiting.status == Run.Status.WAITING
    model_server.tool = None

    fork = fork_and_finish(checkpoints(waiting)[-1], EMEA, mode=mode)

    assert fork.status == Run.Status.COMPLETED
    assert fork.rounds == 3


@pytest.mark.parametrize("mode", ["steer", "replan"])
def test_it_goes_back_to_the_question_when_an_answer_was_on_its_way(
    model_server: ModelServer, mode: str
) -> None:
    run = start_and_finish(make_team(model_server, plan_review=True))
    services.answer(Approval.objects.get(run=run), decision="approve", actor=make_actor())
    finish(run)
    answered = next(c for c in checkpoints(run) if c.phase == "answered")

    fork = fork_and_finish(answered, EMEA, mode=mode)

    assert fork.status == Run.Status.WAITING
    assert EMEA in model_server.requests[-1].text


def test_it_records_where_the_fork_came_from(parent: Run) -> None:
    origin = checkpoint_at(parent, round=3)

    fork = fork_and_finish(origin, EMEA)

    first = checkpoints(fork)[0]
    assert (first.source, first.parent_id, first.round) == ("fork", origin.id, 3)
    assert (fork.parent, fork.forked_from, fork.forked_round) == (parent, origin.id, 3)

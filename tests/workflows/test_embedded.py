from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from django.utils import timezone

from tests.model_server import ModelServer
from tests.running import dispatching, finish, is_at_rest, make_team, start, wait_until
from workflows.dispatch.embedded import EmbeddedDispatcher, server_worker
from workflows.models import Run

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def run(model_server: ModelServer) -> Run:
    model_server.rounds = 1
    return start(make_team(model_server))


def test_it_executes_several_runs_at_once(model_server: ModelServer) -> None:
    model_server.hang(3)
    runs = [start(make_team(model_server)) for _ in range(3)]

    with dispatching(concurrency=3):
        wait_until(lambda: len(model_server.requests) == 3)

    assert {Run.objects.get(id=run.id).attempt for run in runs} == {1}


def test_it_takes_no_more_runs_than_it_may(model_server: ModelServer, run: Run) -> None:
    model_server.hang()
    second = start(make_team(model_server))

    with dispatching(concurrency=1):
        wait_until(lambda: model_server.requests)

    second.refresh_from_db()
    assert second.attempt == 0


def test_it_takes_the_oldest_run_first(run: Run, model_server: ModelServer) -> None:
    second = start(make_team(model_server))

    finish(run, second)

    assert run.started_at < second.started_at


def test_it_leaves_a_run_to_the_worker_that_holds_the_lease(run: Run) -> None:
    hold(run, worker="other", seconds=600)

    with dispatching() as dispatcher:
        assert dispatcher._claim_one() is None

    run.refresh_from_db()
    assert (run.worker, run.attempt) == ("other", 1)


def test_it_takes_over_a_run_whose_lease_ran_out(run: Run) -> None:
    hold(run, worker="other", seconds=-1)

    finish(run)

    assert (run.status, run.attempt) == (Run.Status.COMPLETED, 2)


def test_it_takes_up_at_once_what_the_dead_server_left(run: Run) -> None:
    hold(run, worker="server-1", seconds=600)
    dispatcher = EmbeddedDispatcher(worker="server-1", abandoned_by="server-1")

    dispatcher.start()
    wait_until(lambda: is_at_rest(run))
    dispatcher.stop()

    assert (run.status, run.attempt) == (Run.Status.COMPLETED, 2)


def test_it_renews_the_lease_of_its_runs(
    model_server: ModelServer, run: Run, settings: object
) -> None:
    settings.HEARTBEAT_SECONDS = 0
    model_server.hang()
    with dispatching():
        wait_until(lambda: model_server.requests)
        run.refresh_from_db()
        first = run.lease_expires_at

        def is_later() -> bool:
            run.refresh_from_db()
            return run.lease_expires_at > first

        assert wait_until(is_later)


def test_it_goes_on_after_the_database_was_away(run: Run) -> None:
    failed = []

    def fail_once() -> None:
        if not failed:
            failed.append(True)
            raise RuntimeError("the database is away")

    dispatcher = EmbeddedDispatcher(worker="test")
    claim = dispatcher._claim_one
    dispatcher._claim_one = lambda: (fail_once(), claim())[1]
    dispatcher.start()
    wait_until(lambda: is_at_rest(run))
    dispatcher.stop()

    assert failed
    assert run.status == Run.Status.COMPLETED


def test_only_one_of_two_claims_wins(run: Run) -> None:
    same = Run.objects.get(id=run.id)

    assert [run.claim(worker="a"), same.claim(worker="b")] == [True, False]
    assert Run.objects.get(id=run.id).worker == "a"


def hold(run: Run, *, worker: str, seconds: int) -> None:
    """Make the run look as if `worker` had it, with that much of its lease left."""
    expires = timezone.now() + timedelta(seconds=seconds)
    Run.objects.filter(id=run.id).update(
        status="running", attempt=1, worker=worker, lease_expires_at=expires
    )
    run.refresh_from_db()


def test_a_server_keeps_its_name_and_shares_it_with_none(settings: object, tmp_path: Path) -> None:
    settings.DATA_DIR = tmp_path
    first = server_worker()
    again = server_worker()
    settings.DATA_DIR = tmp_path / "other"
    settings.DATA_DIR.mkdir()

    assert first == again != server_worker()

from __future__ import annotations

import json
import re

import pytest

from checkpoints_app import store
from checkpoints_app.adapters import agent_framework as adapter
from checkpoints_app.adapters.agent_framework import DjangoCheckpointStorage, spare_copies
from checkpoints_app.models import Checkpoint

from .fakes import Script, add_with_approval, drive, team

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("database_threads"),
]

RANDOM_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|[0-9a-f]{32}")
TIME = re.compile(r"\d{4}-\d\d-\d\dT[0-9:.+]+")


def states(run_id: str) -> list[str]:
    """The states of a run, with random ids and times replaced by the order of their occurrence."""
    rows = Checkpoint.objects.filter(run_id=run_id).order_by("position").values_list("id")
    return [_normal(json.dumps(store.load(id), sort_keys=True)) for (id,) in rows]


def _normal(text: str) -> str:
    seen: dict[str, str] = {}
    text = RANDOM_ID.sub(lambda found: seen.setdefault(found[0], f"<id {len(seen)}>"), text)
    return TIME.sub("<time>", text)


async def run_both(**script: object) -> None:
    """Run the same script with the stock runner and without its copies."""
    await drive(team(Script(**script), DjangoCheckpointStorage("stock")), message="Analyse")
    workflow = team(Script(**script), DjangoCheckpointStorage("spared"))
    assert spare_copies(workflow)
    await drive(workflow, message="Analyse")


@pytest.mark.parametrize(
    "script", [{"rounds": 6}, {"rounds": 4, "tool_user": "coder"}, {"rounds": 3, "stalls": 5}]
)
async def test_it_saves_what_the_stock_runner_saves(script: dict[str, object]) -> None:
    await run_both(**script)

    from asgiref.sync import sync_to_async

    stock, spared = await sync_to_async(lambda: (states("stock"), states("spared")))()
    assert len(stock) > 6
    assert spared == stock


async def test_it_keeps_an_earlier_state_as_it_was() -> None:
    storage = DjangoCheckpointStorage("run-1")
    workflow = team(Script(rounds=6), storage)
    spare_copies(workflow)
    await drive(workflow, message="Analyse")

    middle = (await storage.list_checkpoint_ids(workflow_name="team"))[4]
    again = team(Script(rounds=6), storage)
    spare_copies(again)
    outputs, _ = await drive(again, checkpoint_id=middle)

    assert outputs


async def test_it_waits_for_approvals_as_before() -> None:
    script = Script(rounds=3, tool_user="coder")
    workflow = team(script, DjangoCheckpointStorage("run-1"), tool=add_with_approval)
    spare_copies(workflow)
    _, requests = await drive(workflow, message="Analyse")

    answers = {
        id: request.to_function_approval_response(approved=True) for id, request in requests.items()
    }
    outputs, _ = await drive(workflow, responses=answers)

    assert outputs


async def test_it_leaves_an_unknown_version_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "version", lambda package: "1.99.0")
    workflow = team(Script(rounds=1), DjangoCheckpointStorage("run-1"))
    before = workflow._runner._save_executor_states

    assert spare_copies(workflow) is False
    assert workflow._runner._save_executor_states == before

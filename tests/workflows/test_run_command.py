from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from checkpoints_app.models import AuditEvent
from tests.model_server import ModelServer
from workflows.models import Run

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def environment(model_server: ModelServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", model_server.url)
    monkeypatch.setenv("OPENAI_MODEL", "test-model")


def run_command(*arguments: str) -> str:
    out = io.StringIO()
    call_command("run", *arguments, stdout=out)
    return out.getvalue()


def json_lines(*arguments: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run_command(*arguments, "--json").splitlines()]


def test_it_prints_rounds_and_answer() -> None:
    printed = run_command("Count the sheep.")

    assert "Round 1 · manager → researcher" in printed
    assert "FINAL ANSWER for: Count the sheep." in printed
    assert "Completed after 3 rounds" in printed


def test_it_prints_one_json_object_a_line() -> None:
    lines = json_lines("Count the sheep.")

    assert [line["sequence"] for line in lines[:-1]] == list(range(1, len(lines)))
    assert {"type", "run", "sequence", "round", "checkpoint"} <= lines[0].keys()
    assert lines[-1]["type"] == "result"


def test_its_result_sums_the_run_up(model_server: ModelServer) -> None:
    result = json_lines("Count the sheep.")[-1]

    assert result["status"] == "completed"
    assert result["rounds"] == 3
    assert result["model_calls"] == len(model_server.requests)
    assert result["tokens"]["input"] > 0
    assert [c["phase"] for c in result["checkpoints"]][-3:-1] == ["agent_replied", "final"]


def test_it_forks_from_a_checkpoint(model_server: ModelServer) -> None:
    result = json_lines("Count the sheep.")[-1]
    origin = next(
        c["id"] for c in result["checkpoints"] if (c["round"], c["phase"]) == (2, "agent_replied")
    )
    before = len(model_server.requests)

    forked = json_lines("--from", origin, "--instruction", "Focus on EMEA")[-1]

    assert forked["workflow"] == result["workflow"]
    assert forked["checkpoints"][0]["parent"] == origin
    assert forked["checkpoints"][0]["source"] == "fork"
    assert forked["model_calls"] == len(model_server.requests) - before == 4


def test_it_attaches_files(tmp_path: Path) -> None:
    file = tmp_path / "sheep.csv"
    file.write_text("name,legs\nDolly,4\n")

    run_command("Count the sheep.", "--file", str(file))

    assert Run.objects.get().workflow.attachments.get().name == "sheep.csv"


def test_it_exits_with_1_when_the_run_fails(model_server: ModelServer) -> None:
    model_server.fail(1, status=401)

    with pytest.raises(SystemExit) as exited:
        run_command("Count the sheep.")

    assert exited.value.code == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([""], "task is empty"),
        (["x", "--file", "/no/such/file.csv"], r"/no/such/file\.csv: No such file"),
        (["--from", "../secrets", "--instruction", "x"], "no checkpoint"),
        (["x", "--instruction", "y"], "goes with --from"),
        (["x", "--from", "y"], "With --from"),
        (["x", "--user", "nobody"], "no active user"),
    ],
)
def test_it_refuses_what_makes_no_sense(arguments: list[str], message: str) -> None:
    with pytest.raises(CommandError, match=message):
        run_command(*arguments)


def test_it_acts_as_the_first_admin_from_the_terminal() -> None:
    run_command("Count the sheep.")

    entry = AuditEvent.objects.get(verb="workflow.start")
    assert (entry.actor_name, entry.origin) == ("admin", AuditEvent.Origin.TERMINAL)

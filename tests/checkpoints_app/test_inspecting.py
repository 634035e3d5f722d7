from __future__ import annotations

import json
from io import StringIO
from typing import Any

import pytest
from django.core.management import call_command

from checkpoints_app.models import Chunk

from .saving import message, save, save_line

pytestmark = pytest.mark.django_db

LONG = "a long text " * 100


def run(*arguments: Any) -> str:
    out = StringIO()
    try:
        call_command("checkpoints", *map(str, arguments), stdout=out)
    except SystemExit as end:
        return f"{out.getvalue()}exit {end.code}"
    return out.getvalue()


def test_it_shows_what_differs_section_by_section():
    first = save([message("Do step 1.")], round=1)
    second = save([message("Do step 2."), message("Done.", author="analyst")], round=2)

    text = run("diff", first.pk, second.pk)

    assert f"from: {first.pk}, round 1" in text
    assert "CONVERSATION  1 added, 1 changed" in text
    assert "~ coder: Do step [-1.-][+2.+]" in text
    assert "+ analyst: Done." in text
    assert "~ $[0].contents[0].text Do step [-1.-][+2.+]" in text


def test_it_says_how_much_it_leaves_out():
    first, second = save({}), save({f"k{n}": n for n in range(300)})

    assert "… and 100 more" in run("diff", first.pk, second.pk)


def test_it_says_that_states_are_equal():
    first, second = save({"a": 1}), save({"a": 1})

    assert "equal" in run("diff", first.pk, second.pk)


def test_it_gives_differences_to_programs():
    first, second = save({"a": 1}), save({"a": 2})

    found = json.loads(run("diff", first.pk, second.pk, "--json"))

    [change] = found["sections"]["other"]["changes"]
    assert (change["path"], change["before"], change["after"]) == ("$.a", 1, 2)
    assert found["is_equal"] is False


def test_it_finds_everything_in_order():
    save_line([message(LONG)], [message(LONG), message("next")])

    assert run("verify").startswith("2 checkpoints and their")
    assert "exit" not in run("verify")


def test_it_fails_and_names_what_is_damaged():
    saved = save([message(LONG)])
    Chunk.objects.all().delete()

    text = run("verify")

    assert f"Checkpoint {saved.pk} cannot be read." in text
    assert text.endswith("exit 1")


def test_it_verifies_the_checkpoint_that_is_named():
    damaged = save([message(LONG)])
    fine = save([])
    Chunk.objects.all().delete()

    assert "1 checkpoints and their 0 chunks" in run("verify", fine.pk)
    assert run("verify", damaged.pk).endswith("exit 1")


def test_it_counts_bytes_by_workflow_and_run():
    save([message(LONG)], workflow="w-1", run_id="r-1")

    text = run("stats")

    assert text.startswith("1 checkpoints,")
    assert "w-1" in text
    assert "r-1" in text
    assert json.loads(run("stats", "--json"))["search_index"]["messages"] == 1

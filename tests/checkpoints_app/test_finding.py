from __future__ import annotations

import json
import uuid
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from checkpoints_app.models import AuditEvent, Checkpoint, Chunk, MessageText

from .saving import message, save, save_line

pytestmark = pytest.mark.django_db


def run(*arguments: Any) -> str:
    out = StringIO()
    call_command("checkpoints", *map(str, arguments), stdout=out)
    return out.getvalue()


def run_json(*arguments: Any) -> Any:
    return json.loads(run(*arguments, "--json"))


def test_it_lists_checkpoints_with_their_marks():
    saved = save(agent="coder", round=3, tags=["good"], name="Best", is_pinned=True)

    text = run("list")

    assert text.startswith("ID")
    assert str(saved.pk) in text
    assert "pinned #good Best" in text


def test_it_lists_page_by_page():
    saved = {str(save().pk) for _ in range(3)}

    first = run_json("list", "--limit", 2)
    second = run_json("list", "--limit", 2, "--after", first["next"])

    assert {row["id"] for row in first["checkpoints"] + second["checkpoints"]} == saved
    assert second["next"] == ""
    assert f"--after {first['next']}" in run("list", "--limit", 2)


def test_it_filters_by_every_option_given():
    one = save(agent="coder", tags=["a", "b"])
    save(agent="coder", tags=["a"])

    found = run_json("list", "--agent", "coder", "--tag", "a", "--tag", "b")

    assert [row["id"] for row in found["checkpoints"]] == [str(one.pk)]


def test_it_says_when_nothing_fits():
    assert run("list", "--agent", "nobody") == "No checkpoint fits.\n"
    assert "end one with *" in run("search", "nothing")


def test_it_refuses_a_value_without_meaning():
    with pytest.raises(CommandError, match="does not fit the filter round"):
        run("list", "--round", "many")


def test_it_searches_messages_and_marks_the_words():
    _, saved = save_line([], [message("EMEA leads.", author="analyst")], round=2)

    assert run("search", "emea") == (
        f"{saved.pk}  round 2 of run run-1\n  analyst: [EMEA] leads.\n"
    )
    [row] = run_json("search", "emea", "--round", "2")["checkpoints"]
    assert row["snippet"][0] == {"text": "EMEA", "is_match": True}


def test_it_shows_a_checkpoint_with_its_messages():
    saved = save([message("EMEA leads.")], note="two\nlines", cost_usd="0.5")

    text = run("show", saved.pk)

    assert "coder:\nEMEA leads." in text
    assert "0.5" in text


def test_it_shows_the_state_when_asked():
    saved = save({"a": [1, (2, 3)]})

    assert "state" not in run_json("show", saved.pk)
    assert run_json("show", saved.pk, "--state")["state"] == {"a": [1, [2, 3]]}


@pytest.mark.parametrize("verb", ["show", "pin", "unpin", "tag"])
def test_it_says_that_a_checkpoint_is_not_there(verb):
    with pytest.raises(CommandError, match="There is no checkpoint"):
        run(verb, uuid.uuid4())


def test_it_marks_a_checkpoint_and_says_from_where():
    saved = save()

    run("pin", saved.pk)
    run("name", saved.pk, "Best")
    run("note", saved.pk, "Try again from here.")
    text = run("tag", saved.pk, "good", "old")
    assert run("tag", saved.pk, "--remove", "old") != text

    kept = Checkpoint.objects.get()
    assert (kept.is_pinned, kept.name, kept.tags) == (True, "Best", ["good"])
    assert text == f"{saved.pk}: Best, good, old, pinned\n"
    assert set(AuditEvent.objects.values_list("origin", flat=True)) == {"terminal"}


def test_it_unpins():
    saved = save(is_pinned=True)

    assert run_json("unpin", saved.pk)["pinned"] is False


def test_it_rebuilds_the_index():
    save([message("alpha")])
    MessageText.objects.all().delete()

    assert run("reindex") == "1 checkpoints indexed.\n"

    assert len(run_json("search", "alpha")["checkpoints"]) == 1


def test_it_fails_when_it_could_not_index_everything():
    saved = save([message("alpha " * 100)])
    Chunk.objects.all().delete()

    with pytest.raises(SystemExit, match="1"):
        run("reindex")

    assert MessageText.objects.filter(checkpoint=saved.pk).exists()

from __future__ import annotations

import uuid

import pytest

from checkpoints_app import marks, store
from checkpoints_app.audit import SYSTEM
from checkpoints_app.errors import CheckpointNotFound, InvalidMark
from checkpoints_app.models import AuditEvent, Checkpoint

from .saving import save

pytestmark = pytest.mark.django_db


def trail() -> list[tuple[str, dict[str, object]]]:
    return list(AuditEvent.objects.order_by("id").values_list("verb", "details"))


def test_it_pins_and_unpins():
    saved = save()

    assert marks.pin(saved.pk, actor=SYSTEM).is_pinned
    assert not marks.unpin(saved.pk, actor=SYSTEM).is_pinned

    assert trail() == [
        ("checkpoint.pin", {"is_pinned": True}),
        ("checkpoint.unpin", {"is_pinned": False}),
    ]


def test_it_records_what_was_marked_and_changes_nothing_else():
    saved = save({"a": 1})

    marks.rename(saved.pk, "Before the fork", actor=SYSTEM)

    assert AuditEvent.objects.get().target_id == str(saved.pk)
    assert store.state(saved.pk) == {"a": 1}


def test_it_records_nothing_when_nothing_changes():
    saved = save()

    for _ in range(2):
        marks.pin(saved.pk, actor=SYSTEM)
        marks.tag(saved.pk, add=["good"], actor=SYSTEM)

    assert [verb for verb, _ in trail()] == ["checkpoint.pin", "checkpoint.tag"]


def test_it_keeps_tags_sorted_in_lower_case_and_each_once():
    saved = save()

    marks.tag(saved.pk, add=["v1.0", "Good", "good "], actor=SYSTEM)
    marks.tag(saved.pk, add=["a/b"], remove=["GOOD", "absent"], actor=SYSTEM)

    assert Checkpoint.objects.get().tags == ["a/b", "v1.0"]


@pytest.mark.parametrize("tag", ["", " ", "a b", "-a", '"a"', "a,b", "a" * 41, "a\nb", "a\x00"])
def test_it_refuses_what_is_no_tag(tag):
    saved = save()

    with pytest.raises(InvalidMark, match="is no tag"):
        marks.tag(saved.pk, add=["fine", tag], actor=SYSTEM)

    assert Checkpoint.objects.get().tags == []


def test_it_refuses_too_many_tags():
    saved = save(tags=[f"t{n}" for n in range(marks.MAX_TAGS)])

    with pytest.raises(InvalidMark, match="21 tags"):
        marks.tag(saved.pk, add=["one-more"], actor=SYSTEM)


def test_it_gives_and_takes_a_name_of_one_line():
    saved = save()

    assert marks.rename(saved.pk, "  two\n words ", actor=SYSTEM).name == "two words"
    assert marks.rename(saved.pk, "", actor=SYSTEM).name == ""


@pytest.mark.parametrize("name", ["a" * 201, "a\x00b", "a\x1bb"])
def test_it_refuses_a_name_that_no_page_could_show(name):
    with pytest.raises(InvalidMark, match="one line"):
        marks.rename(save().pk, name, actor=SYSTEM)


def test_it_keeps_a_note_as_it_is_written():
    saved = save()

    marks.annotate(saved.pk, " first\n\nsecond ", actor=SYSTEM)

    assert Checkpoint.objects.get().note == "first\n\nsecond"


@pytest.mark.parametrize("note", ["a" * 10_001, "a\x00"])
def test_it_refuses_a_note_that_cannot_be_kept(note):
    with pytest.raises(InvalidMark, match="10000 characters"):
        marks.annotate(save().pk, note, actor=SYSTEM)


def test_it_says_when_there_is_nothing_to_mark():
    with pytest.raises(CheckpointNotFound, match="no checkpoint"):
        marks.pin(uuid.uuid4(), actor=SYSTEM)

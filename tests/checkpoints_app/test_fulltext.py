from __future__ import annotations

import contextlib
import uuid

import pytest
from django.db import connection
from hypothesis import given
from hypothesis import strategies as st

from checkpoints_app import chunks, codec, fulltext, store
from checkpoints_app.errors import InvalidSearch
from checkpoints_app.fulltext import Fragment, Phrase
from checkpoints_app.messages import Message
from checkpoints_app.models import Checkpoint, MessageText

from .saving import message, save, save_line


def found(query: str) -> list[str]:
    keys = fulltext.matching(fulltext.parse(query)).values("pk")
    rows = MessageText.objects.filter(pk__in=keys).order_by("id")
    return list(rows.values_list("text", flat=True))


def held_by(*checkpoints: Checkpoint) -> list[list[str]]:
    return [[row.text for row in c.message_texts.order_by("id")] for c in checkpoints]


def test_it_reads_words_phrases_and_beginnings():
    assert fulltext.parse('emea "net revenue" fore* sales.csv') == [
        Phrase(words=("emea",), is_prefix=False),
        Phrase(words=("net", "revenue"), is_prefix=False),
        Phrase(words=("fore",), is_prefix=True),
        Phrase(words=("sales", "csv"), is_prefix=False),
    ]


@pytest.mark.parametrize("query", ["", " ", "***", '""', "-", "_", "w" * 501])
def test_it_refuses_a_query_without_words_or_without_end(query):
    with pytest.raises(InvalidSearch, match="text to search for has"):
        fulltext.parse(query)


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("EMEA", True),
        ("emea revenue", True),
        ("revenue emea", True),
        ('"net revenue"', True),
        ('"revenue net"', False),
        ("reve", False),
        ("reve*", True),
        ('"net reve*"', True),
        ("sales.csv", True),
        ("sales", True),
        ("csv", True),
        ("run_python", True),
        ("python", True),
        ("12.50", True),
        ("größe", True),
        ("GRÖSSE", False),
        ("emea absent", False),
    ],
)
def test_it_finds_the_same_on_every_database(query, expected):
    text = "Net revenue of EMEA in data/sales.csv is 12.50, by run_python; Größe: 3."
    save([message(text)])

    assert found(query) == [text] * expected


@pytest.mark.django_db
@pytest.mark.parametrize(
    "query",
    ['"', 'a"b', "a AND", "NOT a", "a OR b", "text:a", "a^2", "{a b}", "NEAR(a b)", "a' OR 1=1 --",
     "a & ! | b", "<->", "a:*b", "%s a", "a\x00b", "\ud800a", "a) (", "+a", "\\a"],
)  # fmt: skip
def test_it_takes_any_query_for_words(query):
    save([message("a b c")])

    with contextlib.suppress(InvalidSearch):  # nothing but signs, and said so
        assert len(found(query)) <= 1


@pytest.mark.django_db
def test_it_indexes_each_message_once_where_the_line_first_has_it():
    a, b, c = (message(text) for text in ("alpha", "beta", "gamma"))

    line = save_line([a], [a, b], [a, b, c])

    assert held_by(*line) == [["alpha"], ["beta"], ["gamma"]]


@pytest.mark.django_db
def test_it_indexes_only_what_a_fork_adds():
    a, b, c = (message(text) for text in ("alpha", "beta", "gamma"))
    origin, _ = save_line([a], [a, b])

    [fork] = save_line([a, c], parent=origin, run_id="run-2")

    assert held_by(fork) == [["gamma"]]


@pytest.mark.django_db
def test_it_indexes_again_what_another_workflow_says_too():
    save([message("alpha")])
    save([message("alpha")], run_id="run-2")

    assert found("alpha") == ["alpha", "alpha"]


@pytest.mark.django_db
def test_it_indexes_a_message_whose_parent_cannot_be_read():
    [saved] = save_line([message("alpha")])
    Checkpoint.objects.filter(pk=saved.pk).update(manifest=b"\x00broken")

    [child] = save_line([message("alpha")], parent=saved)

    assert held_by(child) == [["alpha"]]


@pytest.mark.django_db
def test_it_indexes_texts_that_a_database_would_refuse():
    save([message("nul \x00 here \ud800 and \x02 there " + "x" * 200_000)])

    [text] = found("here there")
    assert "\x00" not in text
    assert len(text) <= fulltext.MAX_TEXT_LENGTH


@pytest.mark.django_db
def test_it_indexes_nothing_when_it_is_off(settings):
    settings.CHECKPOINT_SEARCH_INDEX = False

    save([message("alpha")])

    assert MessageText.objects.count() == 0


@pytest.mark.django_db
def test_it_leaves_no_words_of_a_save_that_is_refused():
    def refuse(checkpoint):
        raise PermissionError("not the holder")

    split = chunks.Splitter().split(codec.encode([message("alpha")]))
    entry = Checkpoint(run_id="run-1", source="loop", phase="idle", superstep=0)
    said: set[bytes] = set()
    with pytest.raises(PermissionError):
        store.save(entry, split, said=said, on_save=refuse)

    assert (found("alpha"), said) == ([], set())


@pytest.mark.django_db
def test_it_forgets_a_deleted_checkpoint():
    saved = save([message("alpha")])

    store.delete([saved.pk])

    assert (found("alpha"), MessageText.objects.count()) == ([], 0)


@pytest.mark.django_db
def test_it_forgets_a_checkpoint_that_is_deleted_behind_its_back():
    saved = save([message("alpha")])

    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM checkpoints_app_checkpoint")

    assert not Checkpoint.objects.filter(pk=saved.pk).exists()
    assert found("alpha") == []


@pytest.mark.django_db
def test_it_hands_the_words_of_deleted_checkpoints_to_what_is_kept_after_them():
    a, b, c, d = (message(text) for text in ("alpha", "beta", "gamma", "delta"))
    first, second, tip = save_line([a], [a, b], [a, b, c])
    [fork] = save_line([a, b, d], parent=second, run_id="run-2")

    store.delete([first.pk, second.pk])

    assert [sorted(texts) for texts in held_by(tip, fork)] == [
        ["alpha", "beta", "gamma"],
        ["alpha", "beta", "delta"],
    ]
    assert found("alpha") == ["alpha", "alpha"]


@pytest.mark.django_db
def test_it_hands_words_on_where_the_children_went_before():
    a, b, c = (message(text) for text in ("alpha", "beta", "gamma"))
    first, second, tip = save_line([a], [a, b], [a, b, c])

    store.delete([second.pk])
    store.delete([first.pk])

    assert sorted(held_by(tip)[0]) == ["alpha", "beta", "gamma"]


@pytest.mark.django_db
def test_it_hands_nothing_to_a_later_line_of_the_same_run():
    a, b, c = (message(text) for text in ("alpha", "beta", "gamma"))
    origin, abandoned = save_line([a], [a, b])
    [again] = save_line([a, c], parent=origin)
    [anew] = save_line([c])

    store.delete([abandoned.pk, again.pk])

    assert held_by(anew) == [["gamma"]]
    assert found("beta") == []


@pytest.mark.django_db
def test_it_does_not_hand_words_to_another_branch():
    a, b = message("alpha"), message("beta")
    origin, tip = save_line([a], [a, b])
    [fork] = save_line([a], parent=origin, run_id="run-2")

    store.delete([tip.pk])

    assert held_by(origin, fork) == [["alpha"], []]
    assert found("beta") == []


@pytest.mark.django_db
def test_it_repairs_the_word_index():
    saved = save([message("alpha")])
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            cursor.execute(
                "INSERT INTO checkpoints_app_messagetext_words(checkpoints_app_messagetext_words)"
                " VALUES ('delete-all')"
            )

    fulltext.repair()

    assert held_by(saved) == [["alpha"]]
    assert found("alpha") == ["alpha"]


@pytest.mark.django_db
def test_it_tells_what_the_index_takes():
    before = fulltext.size_bytes()["size_bytes"]

    fulltext.add(save().pk, [Message(author="a", text=f"{n} {uuid.uuid4()}") for n in range(500)])

    after = fulltext.size_bytes()
    assert after["messages"] == 500
    assert after["size_bytes"] > before + 500 * 36


def test_it_shows_the_place_of_the_match():
    text = f"{'before ' * 100}the net\nrevenue grew{' after' * 100}"

    fragments = fulltext.snippet(text, fulltext.parse('"net revenue"'))

    assert Fragment("net revenue", True) in fragments
    shown = "".join(fragment.text for fragment in fragments)
    assert shown.startswith("…") and shown.endswith("…")  # noqa: PT018 - one condition
    assert len(shown) <= fulltext.SNIPPET_LENGTH + 2


def test_it_marks_words_not_parts_of_words():
    fragments = fulltext.snippet("art party art", fulltext.parse("art"))

    assert fragments == [
        Fragment("art", True),
        Fragment(" party ", False),
        Fragment("art", True),
    ]


@given(st.text(max_size=400), st.text(alphabet='ab "*_.<>', min_size=1, max_size=20))
def test_it_adds_nothing_to_the_text_but_dots(text, query):
    try:
        phrases = fulltext.parse(query)
    except InvalidSearch:
        return

    shown = "".join(fragment.text for fragment in fulltext.snippet(text, phrases))

    assert "".join(shown.strip("…").split()) in "".join(text.split())

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from checkpoints_app import diff
from checkpoints_app.diff import Change, Words

from .saving import message

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2),
    st.sampled_from([0.0, 1.0, 0.5]),
    st.text(max_size=3),
)
states = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=6), st.dictionaries(st.sampled_from("abc$"), inner, max_size=4)
    ),
    max_leaves=20,
)
messages = st.lists(
    st.builds(message, st.text(max_size=4), author=st.sampled_from(["coder", "analyst"])),
    max_size=8,
)
texts = st.lists(st.sampled_from(["a", "b", "word ", "\n", "  "]), max_size=12).map("".join)


def magentic(**orchestrator: Any) -> dict[str, Any]:
    return {"state": {"_executor_state": {"magentic_orchestrator": orchestrator}}}


def flipped(counts: dict[str, int]) -> dict[str, int]:
    return {
        "added": counts["removed"], "removed": counts["added"], "changed": counts["changed"]
    }  # fmt: skip


def other(first: Any, second: Any) -> tuple[Change, ...]:
    return diff.compare(first, second).other.changes


def rebuilt(first: Any, changes: tuple[Change, ...]) -> Any:
    """`first` with the changes made: paths of dicts alone, whose values are all short."""
    if changes and changes[0].path == "$":
        return changes[0].after
    state = json.loads(json.dumps(first))
    for change in changes:
        *way, last = [json.loads(part) for part in _parts(change.path)]
        place = state
        for key in way:
            place = place[key]
        if change.kind == "removed":
            del place[last]
        else:
            place[last] = change.after
    return state


def _parts(path: str) -> list[str]:
    found = path.removeprefix("$").replace("][", "]\0[").replace("].", "]\0.").replace("[", "\0[")
    parts = [part for chunk in found.split("\0") for part in chunk.split(".") if part]
    return [part[1:-1] if part.startswith("[") else json.dumps(part) for part in parts]


dicts = st.recursive(
    scalars, lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3), max_leaves=12
)


@given(dicts, dicts)
def test_it_reports_every_leaf_that_differs(first, second):
    found = diff.compare(first, second)

    assert json.dumps(rebuilt(first, found.other.changes), sort_keys=True) == json.dumps(
        second, sort_keys=True
    )


@given(states, states)
def test_it_finds_nothing_exactly_when_the_states_are_equal(first, second):
    is_equal = json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True)

    assert diff.compare(first, first).is_empty
    assert diff.compare(first, second).is_empty == is_equal


@given(states, states)
def test_it_counts_the_same_from_either_side(first, second):
    there, back = diff.compare(first, second), diff.compare(second, first)

    assert there.other.counts == flipped(back.other.counts)


@given(messages, messages)
def test_it_counts_the_same_messages_from_either_side(first, second):
    there, back = diff.compare(first, second), diff.compare(second, first)

    assert there.conversation.counts == flipped(back.conversation.counts)


@given(texts, texts)
def test_it_weaves_words_that_come_apart_into_the_two_texts(first, second):
    woven = diff.words(first, second)

    assert "".join(text for kind, text in woven if kind != "added") == first
    assert "".join(text for kind, text in woven if kind != "removed") == second


def test_it_lists_messages_in_the_order_they_were_said():
    history = [message("one"), message("two")]
    in_flight = {"coder": [{"data": message("three")}]}

    found = diff.compare({"state": history[:1]}, {"messages": in_flight, "state": history})

    assert [(c.kind, c.text) for c in found.conversation.changes] == [
        ("added", "two"),
        ("added", "three"),
    ]


def test_it_shows_the_words_that_changed_in_a_message():
    first, second = [message("Do step 1 now.")], [message("Do step 2 now.")]

    [change] = diff.compare(first, second).conversation.changes

    assert change.kind == "changed"
    assert change.words == (
        Words("same", "Do step "),
        Words("removed", "1"),
        Words("added", "2"),
        Words("same", " now."),
    )


def test_it_does_not_take_one_authors_message_for_a_change_of_anothers():
    found = diff.compare([message("a", author="coder")], [message("b", author="analyst")])

    assert found.conversation.counts == {"added": 1, "removed": 1, "changed": 0}


def test_it_counts_copies_of_a_message_once():
    second = {agent: [message("new")] for agent in ("coder", "analyst")}

    found = diff.compare({"coder": [], "analyst": []}, second)

    assert found.conversation.counts["added"] == 1
    assert found.other.counts["added"] == 2


def test_it_sorts_what_magentic_keeps_into_its_sections():
    first = magentic(
        magentic_context={"task": "Count.", "round_count": 1},
        task_ledger=message("old plan"),
        progress_ledger={"next_speaker": {"answer": "coder"}},
    )
    second = magentic(
        magentic_context={"task": "Count all.", "round_count": 2},
        task_ledger=message("new plan"),
        progress_ledger={"next_speaker": {"answer": "analyst"}},
    )

    found = diff.compare(first, second)

    prefix = "$.state._executor_state.magentic_orchestrator"
    assert [change.path for change in found.plan.changes] == [
        f"{prefix}.magentic_context.task",
        f"{prefix}.task_ledger.contents[0].text",
    ]
    assert [change.after for change in found.ledger.changes] == ["analyst"]
    assert [(c.before, c.after) for c in found.limits.changes] == [(1, 2)]
    assert found.other.changes == ()


def test_it_finds_the_sections_in_a_state_that_the_other_lacks():
    second = magentic(
        magentic_context={"task": "t", "stall_count": 0}, progress_ledger={"a": 1}, x=1
    )

    found = diff.compare({}, second)

    counts = {name: section.counts["added"] for name, section in vars(found).items()}
    assert counts == {
        "conversation": 0, "plan": 1, "ledger": 1, "limits": 1, "usage": 0, "other": 1
    }  # fmt: skip


def test_it_sums_up_usage():
    first = [{"usage_details": {"input_token_count": 3}}]
    second = [*first, {"usage_details": {"input_token_count": 4, "output_token_count": 5}}]

    found = diff.compare(first, second).usage

    assert [(c.path, c.before, c.after) for c in found.changes] == [
        ("$.input_token_count", 3, 7),
        ("$.output_token_count", None, 5),
    ]


def test_it_takes_an_insertion_for_one_change():
    items = [f"item {n}" for n in range(100)]

    [change] = other({"list": items}, {"list": [*items[:50], "new", *items[50:]]})

    assert (change.path, change.kind, change.after) == ("$.list[50]", "added", "new")


def test_it_names_keys_that_are_no_words():
    [change] = other({"a.b": {'"': 1}}, {"a.b": {'"': 2}})

    assert change.path == '$["a.b"]["\\""]'


def test_it_tells_true_from_one():
    [change] = other({"a": True}, {"a": 1})

    assert (change.kind, change.before, change.after) == ("changed", True, 1)


def test_it_counts_what_it_does_not_list():
    found = diff.compare({}, {f"k{n}": n for n in range(1000)}).other

    assert (len(found.changes), found.counts["added"]) == (diff.MAX_CHANGES, 1000)
    assert found.left_out == 1000 - diff.MAX_CHANGES


def test_it_shows_the_beginning_of_what_is_long():
    [change] = other({"a": 1}, {"a": ["x" * 5000]})

    assert change.before == 1
    assert change.after.startswith('["xxx')
    assert len(change.after) == diff.MAX_VALUE_LENGTH + 1


def test_it_compares_lists_too_long_to_align_in_order():
    first = [f"a{n}" for n in range(1500)]

    found = diff.compare(first, [f"b{n}" for n in range(1400)]).other

    assert found.counts == {"added": 0, "removed": 100, "changed": 1400}

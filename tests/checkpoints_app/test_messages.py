from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from checkpoints_app import codec, messages
from checkpoints_app.chunks import Splitter

from .saving import message

LONG = "a long text " * 100


def texts(found):
    return [message.text for message in found.values()]


def test_it_reads_messages_wherever_they_are():
    state = {"a": [message("first")], "b": {"c": {"plan": message("second")}}}

    assert texts(messages.in_state(state)) == ["first", "second"]


def test_it_counts_a_message_once_and_takes_the_copy_that_names_its_author():
    copies = [message("Do step 1.", author=""), message("Do step 1.", author="manager")]

    [found] = messages.in_state(copies).values()

    assert (found.author, found.text) == ("manager", "Do step 1.")


def test_it_reads_tool_calls_and_their_results():
    call = {"type": "function_call", "name": "add", "arguments": '{"a": 1}'}
    result = {"type": "function_result", "result": "5", "items": [{"type": "text", "text": "5"}]}

    found = messages.in_state([message("", contents=[call]), message("", contents=[result])])

    assert texts(found) == ['add {"a": 1}', "5"]


def test_it_passes_over_what_says_nothing():
    state = [message("  "), message("", contents=[{"type": "data", "uri": "data:…"}]), {"role": 1}]

    assert messages.in_state(state) == {}


def test_it_reads_a_message_whose_text_and_contents_are_chunks_of_their_own():
    parts = [{"type": "text", "text": f"{n} {LONG}"} for n in range(20)]
    split = Splitter().split(codec.encode({"m": [message("", contents=parts)]}))

    [found] = messages.in_new_chunks(split, split.chunks).values()

    assert found.text == "\n".join(part["text"] for part in parts)


def test_it_finds_what_a_save_adds_without_reading_the_history():
    history = [message(f"{n} {LONG}") for n in range(500)]
    splitter = Splitter()
    splitter.split(codec.encode({"history": history}))

    after = splitter.split(codec.encode({"history": [*history, message("new")]}))

    found = messages.in_new_chunks(after, after.added)
    assert "new" in texts(found)
    assert len(found) < 10


bodies = st.one_of(st.text(max_size=8), st.sampled_from([LONG, "ünïcode " * 40, "\ud800" * 300]))
histories = st.lists(st.builds(message, bodies, author=st.sampled_from(["coder", ""])), max_size=30)


@given(histories, histories)
def test_it_never_misses_a_message_that_a_save_adds(history, added):
    splitter = Splitter()
    splitter.split(codec.encode({"h": history, "agents": {"coder": {"c": history[::2]}}}))
    state = {"h": [*history, *added], "agents": {"coder": {"c": [*history[::2], *added]}}}

    after = splitter.split(codec.encode(state))

    new = messages.in_state(state).keys() - messages.in_state(history).keys()
    assert new <= messages.in_new_chunks(after, after.added).keys()


@given(histories)
def test_it_reads_the_same_out_of_chunks_as_out_of_the_state(history):
    split = Splitter().split(codec.encode({"h": history}))

    assert messages.in_new_chunks(split, split.chunks) == messages.in_state(history)

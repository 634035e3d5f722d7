from __future__ import annotations

import copy
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoints_app import chunks, codec
from checkpoints_app.errors import CheckpointCorrupt, CheckpointError, UnstorableValue

from .values import exact, json_values, values

Ext = msgspec.msgpack.Ext


def split(value: Any, splitter: chunks.Splitter | None = None) -> chunks.Split:
    return (splitter or chunks.Splitter()).split(codec.encode(value))


def join(cut: chunks.Split, **changes: Any) -> Any:
    contents = {digest: chunks.content_of(chunk) for digest, chunk in cut.chunks.items()}
    return codec.decode(chunks.join(cut.manifest, lambda wanted: _pick(contents, wanted)))


def _pick(contents: dict[bytes, bytes], wanted: Any) -> dict[bytes, bytes]:
    return {digest: contents[digest] for digest in wanted if digest in contents}


def messages(count: int) -> list[dict[str, Any]]:
    return [{"role": "user", "number": n, "text": f"{n} " + "word " * 200} for n in range(count)]


@given(values)
def test_it_puts_together_exactly_what_it_cut(value):
    assert exact(join(split(value))) == exact(value)


@given(st.lists(json_values, max_size=8))
def test_it_cuts_the_same_with_and_without_a_memory(states):
    splitter = chunks.Splitter()

    for state in states:
        remembered, fresh = split(state, splitter), split(state)
        assert (remembered.digest, remembered.chunks) == (fresh.digest, fresh.chunks)
        assert remembered.size_bytes == fresh.size_bytes


@given(json_values)
def test_it_addresses_every_chunk_by_the_hash_of_its_content(value):
    cut = split(value)

    for digest, chunk in cut.chunks.items():
        sealed = chunks.seal(chunks.content_of(chunk))
        assert chunks.verified(digest, sealed) == chunks.content_of(chunk)


@given(values, values)
def test_it_gives_equal_digests_to_equal_states_alone(first, second):
    is_equal = exact(codec.encode(first)) == exact(codec.encode(second))

    assert (split(first).digest == split(second).digest) == is_equal


def test_it_adds_little_for_an_appended_message():
    for count in (100, 1000, 4000):
        before, after = (split({"state": {"history": messages(n)}}) for n in (count, count + 1))
        new = after.chunks.keys() - before.chunks.keys()
        assert len(new) <= 8
        assert sum(len(chunks.content_of(after.chunks[d])) for d in new) < 5000


def test_it_keeps_the_manifest_small_whatever_the_history():
    sizes = [len(split({"state": {"history": messages(n)}}).manifest) for n in (30, 300, 3000)]

    assert max(sizes) < 1500


def test_it_keeps_a_long_text_once_wherever_it_occurs():
    text = "the same words " * 100

    cut = split({"state": {"a": [{"x": text}], "b": {"c": {"deep": {"deeper": [text]}}}}})

    assert list(cut.chunks.values()).count(text) == 1


def test_it_counts_the_state_as_if_nothing_were_shared():
    text = "the same words " * 100

    once, twice = split({"a": [text]}), split({"a": [text, text]})

    assert once.size_bytes == len(once.manifest) + len(chunks.content_of(text))
    assert twice.size_bytes == len(twice.manifest) + 2 * len(chunks.content_of(text))


def test_it_shares_the_common_beginning_of_two_histories():
    first, second = messages(500), [*messages(400), {"role": "user", "text": "another turn"}]

    shared = split({"h": first}).chunks.keys() & split({"h": second}).chunks.keys()

    assert len(shared) >= 400


def test_it_notices_what_changed_in_place():
    history = messages(100)
    splitter = chunks.Splitter()
    before = split({"h": history}, splitter)

    history[3]["number"] = True

    after = split({"h": history}, splitter)
    assert after.digest != before.digest
    assert join(after)["h"][3]["number"] is True
    assert join(before)["h"][3]["number"] == 3


def test_it_shares_no_container_between_two_places_of_a_state():
    part = {"list": list(range(1000)), "text": "long " * 100}

    back = join(split({"state": {"a": part, "b": copy.deepcopy(part)}}))
    back["state"]["a"]["list"].append("changed")

    assert back["state"]["b"] == part


@pytest.mark.parametrize(
    "wrap", [lambda v: [v], lambda v: {"k": v}, lambda v: (v,), lambda v: {1: v}]
)
def test_it_cuts_and_joins_the_deepest_value_that_the_codec_takes(wrap):
    value: Any = "core"
    for _ in range(codec.MAX_DEPTH):
        value = wrap(value)

    assert join(split(value)) == value


def test_it_refuses_a_key_that_is_not_unicode():
    with pytest.raises(UnstorableValue, match="key"):
        split({"state": {"\ud800": 1}})


def test_it_detects_a_changed_chunk():
    digest, sealed = chunks.digest_of(b"tone"), chunks.seal(b"tother")

    with pytest.raises(CheckpointCorrupt, match="SHA-256"):
        chunks.verified(digest, sealed)


def test_it_names_missing_chunks():
    cut = split({"text": "long " * 100})

    with pytest.raises(CheckpointCorrupt, match="1 chunks are missing"):
        chunks.join(cut.manifest, lambda wanted: {})


@pytest.mark.parametrize(
    "stored", [b"", b"\x07data", chunks.ZSTD + b"no zstd", chunks.seal(b"t" + b"x" * 999)[:-3]]
)
def test_it_calls_an_envelope_it_did_not_write_corrupt(stored):
    with pytest.raises(CheckpointCorrupt):
        chunks.unseal(stored)


def test_it_refuses_a_chunk_that_claims_to_be_enormous():
    header = b"\x28\xb5\x2f\xfd\xe0" + (1 << 40).to_bytes(8, "little") + b"\x01\x00\x00"

    with pytest.raises(CheckpointCorrupt, match="claims more"):
        chunks.unseal(chunks.ZSTD + header)


def test_it_says_which_format_it_cannot_read():
    with pytest.raises(CheckpointCorrupt, match="format 63, this version reads format 01"):
        chunks.join(b"\x63", lambda wanted: {})


def hostile(node: Any, **contents: bytes) -> Any:
    """Join a crafted manifest whose references are four-letter digests."""
    table = {name.encode(): content for name, content in contents.items()}
    manifest = b"\x01" + msgspec.msgpack.encode(node)
    return chunks.join(manifest, lambda wanted: {d: table[d] for d in wanted if d in table})


@pytest.mark.parametrize(
    ("node", "contents"),
    [
        (Ext(9, b"some"), {"some": b"tx"}),
        (Ext(2, b"some"), {"some": b"n\x90"}),
        ([Ext(2, b"some")], {"some": b"n\x80"}),
        ([Ext(2, b"some")], {"some": b"t\x90"}),
        (Ext(1, b"some"), {"some": b"n\xc1"}),
        (Ext(1, b"some"), {"some": b"t\xff\xff"}),
        (Ext(1, b"some"), {"some": b"n" + b"\x91" * 100_000 + b"\x90"}),
        (Ext(1, b"some"), {"some": b"n\x81\x01\x02"}),
        (Ext(1, b"some"), {"some": b"n\xd6\xff\x00\x00\x00\x00"}),
        (b"bytes", {}),
    ],
)
def test_it_calls_a_crafted_node_corrupt(node, contents):
    with pytest.raises(CheckpointCorrupt):
        hostile(node, **contents)


def test_it_refuses_a_few_chunks_that_unfold_to_the_size_of_a_planet(monkeypatch):
    monkeypatch.setattr(chunks, "MAX_STATE_BYTES", 1_000_000)
    levels = [f"lv{n:02}" for n in range(30)]
    contents = {
        name: b"n" + msgspec.msgpack.encode([Ext(1, child.encode())] * 10)
        for name, child in zip(levels, [*levels[1:], "leaf"], strict=True)
    }

    with pytest.raises(CheckpointCorrupt, match="unfolds"):
        hostile(Ext(1, b"lv00"), **contents, leaf=b"tx")


@given(st.binary(max_size=200))
def test_it_answers_any_bytes_with_documented_errors_alone(data):
    for read in (chunks.unseal, lambda d: chunks.join(b"\x01" + d, lambda wanted: {})):
        try:
            read(data)
        except CheckpointError as error:
            assert str(error)  # noqa: PT017  # succeeding is fine too


def test_it_reads_what_format_1_wrote():
    # Written by the first version. If this fails, stored checkpoints have become unreadable.
    text = "first version " * 20
    manifest = bytes.fromhex(MANIFEST_1)
    contents = {chunks.digest_of(chunks.content_of(text)): chunks.content_of(text)}
    group = bytes.fromhex(GROUP_1)
    contents[chunks.digest_of(group)] = group

    tree = chunks.join(manifest, lambda wanted: _pick(contents, wanted))

    assert codec.decode(tree) == STATE_1(text)


def STATE_1(text: str) -> dict[str, Any]:  # noqa: N802  # a constant that takes the long text
    return {"n": (1, 2.5, None), "$k": True, "list": [{"t": text, "i": i} for i in range(5)]}


GROUP_1 = (
    "6e9482a174c72001559e82cd9395d21b9c0c1cf14e78ed81a0c6c43bc8afabcab5cfb2578337f3eba1690082"
    "a174c72001559e82cd9395d21b9c0c1cf14e78ed81a0c6c43bc8afabcab5cfb2578337f3eba1690182a174c7"
    "2001559e82cd9395d21b9c0c1cf14e78ed81a0c6c43bc8afabcab5cfb2578337f3eba1690282a174c7200155"
    "9e82cd9395d21b9c0c1cf14e78ed81a0c6c43bc8afabcab5cfb2578337f3eba16903"
)
MANIFEST_1 = (
    "0183a16e82a124a57475706c65a56974656d739301cb4004000000000000c0a324246bc3a46c69737492c720"
    "02c994a9d9189cacea88f5bed9b2b13ea6d150cd7ea6a40370aa6409b9cb60cbc382a174c72001559e82cd93"
    "95d21b9c0c1cf14e78ed81a0c6c43bc8afabcab5cfb2578337f3eba16904"
)

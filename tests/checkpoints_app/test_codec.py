from __future__ import annotations

import enum
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoints_app import codec
from checkpoints_app.errors import CheckpointCorrupt, CheckpointError, UnknownType, UnstorableValue

from .values import exact, json_values, keys, scalars, values


@codec.register
@dataclass
class Point:
    x: int
    tags: list[str]


@codec.register
class Colour(enum.Enum):
    RED = "red"


class Stranger:
    pass


@given(values)
def test_it_gives_back_exactly_what_was_encoded(value):
    assert exact(codec.decode(codec.encode(value))) == exact(value)


@given(values)
def test_it_encodes_to_what_json_can_hold(value):
    tree = codec.encode(value)

    assert exact(json.loads(json.dumps(tree))) == exact(tree)


@given(json_values)
def test_it_shares_no_container_with_its_source(value):
    ids = set(_container_ids(value))

    assert ids.isdisjoint(_container_ids(codec.encode(value)))


def _container_ids(value: Any) -> list[int]:
    if isinstance(value, dict):
        return [id(value), *(i for item in value.values() for i in _container_ids(item))]
    if isinstance(value, list):
        return [id(value), *(i for item in value for i in _container_ids(item))]
    return []


@pytest.mark.parametrize(
    "value",
    [
        {"$": "tuple", "items": [1]},
        {"$$": 1, "$": 2, "$x": 3, "": 4},
        {"$": "type", "name": "int"},
        [{"$": "nowhere"}],
    ],
)
def test_it_never_takes_data_for_a_type(value):
    assert codec.decode(codec.encode(value)) == value


@pytest.mark.parametrize("value", [Point(1, ["a"]), Colour.RED, Point, Colour, int, type(None)])
def test_it_rebuilds_registered_values_and_classes(value):
    assert codec.decode(codec.encode([value])) == [value]


def test_it_names_an_unknown_type_and_how_to_register_it():
    with pytest.raises(UnknownType, match=r"test_codec\.Stranger.*codec\.register\(Stranger\)"):
        codec.encode({"deep": [Stranger()]})


def test_it_refuses_an_unknown_class():
    with pytest.raises(UnknownType, match="Stranger"):
        codec.encode(Stranger)


def test_it_refuses_subclasses_that_would_come_back_as_something_else():
    with pytest.raises(UnknownType, match="IntEnum"):
        codec.encode(enum.IntEnum("IntEnum", "A", module=__name__)(1))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_it_refuses_numbers_that_json_lacks(value):
    with pytest.raises(UnstorableValue, match="not a JSON number"):
        codec.encode({"score": value})


def test_it_refuses_a_value_that_contains_itself():
    value: list[Any] = []
    value.append(value)

    with pytest.raises(UnstorableValue, match="contains itself"):
        codec.encode(value)


@pytest.mark.parametrize(
    "wrap", [lambda v: [v], lambda v: {"k": v}, lambda v: (v,), lambda v: {1: v}]
)
def test_it_loads_the_deepest_value_that_it_saves(wrap):
    value: Any = "core"
    for _ in range(codec.MAX_DEPTH):
        value = wrap(value)

    assert codec.decode(codec.encode(value)) == value
    with pytest.raises(UnstorableValue):
        codec.encode(wrap([value]))


def test_it_refuses_a_class_it_cannot_take_apart():
    with pytest.raises(ValueError, match="neither a dataclass nor an enum"):
        codec.register(Stranger)


@pytest.mark.parametrize("name", ["tuple", f"{__name__}.Point"])
def test_it_refuses_a_name_that_is_taken(name):
    with pytest.raises(ValueError, match="taken"):
        codec.register(Stranger, name=name, dump=vars, load=lambda fields: Stranger())


def test_it_shows_pages_plain_json_without_building_anything():
    tree = codec.encode({"p": Point(1, ["a"]), "t": (1, {2: b"x"}), "big": 2**90, "$k": int})

    shown = codec.plain({**tree, "future": {"$": "not.registered", "a": 1}})

    assert shown == {
        "p": {"$type": f"{__name__}.Point", "x": 1, "tags": ["a"]},
        "t": [1, {"2": "eA=="}],
        "big": 2**90,
        "$k": "int",
        "future": {"$type": "not.registered", "a": 1},
    }


def test_it_shows_pages_dates_as_text_and_no_lone_surrogates():
    tree = codec.encode([datetime(2026, 1, 2, tzinfo=UTC), "a\ud800ü"])

    assert codec.plain(tree) == ["2026-01-02T00:00:00+00:00", "a?ü"]


HOSTILE = [
    {"$": "tuple"},
    {"$": "tuple", "items": 5},
    {"$": "set", "items": [[1]]},
    {"$": "dict", "items": [[1, 2, 3]]},
    {"$": "dict", "items": ["ab"]},
    {"$": "int", "value": "0x" + "f" * 10_000 + "g"},
    {"$": "timedelta", "value": "9" * 10_000},
    {"$": "bytes", "value": "***"},
    {"$": "datetime", "value": "yesterday"},
    {"$": "decimal", "value": "many"},
    {"$": 5},
    {"$": None},
    {"$": ["tuple"]},
    {"$": f"{__name__}.Point", "x": 1},
    {"$": f"{__name__}.Point", "x": 1, "tags": [], "more": 1},
    {"$": f"{__name__}.Colour", "value": "green"},
    {"$": f"{__name__}.Colour"},
]


@pytest.mark.parametrize("tree", HOSTILE)
def test_it_calls_what_it_cannot_have_written_corrupt(tree):
    with pytest.raises(CheckpointCorrupt):
        codec.decode(tree)


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "type.mro", "Stranger"])
def test_it_builds_registered_types_alone(name):
    for tree in ({"$": name, "command": "id"}, {"$": "type", "name": name}):
        with pytest.raises(UnknownType, match=name):
            codec.decode(tree)


def test_it_refuses_endless_nesting_of_stored_data():
    tree: Any = []
    for _ in range(100_000):
        tree = [tree]

    with pytest.raises(CheckpointCorrupt, match="nests deeper"):
        codec.decode(tree)
    with pytest.raises(CheckpointCorrupt):
        codec.plain(tree)


names = st.sampled_from(
    ["tuple", "set", "dict", "int", "bytes", "type", "decimal", f"{__name__}.Point", "os.system"]
)
hostile_trees = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(keys, inner, max_size=3),
        st.builds(
            lambda name, fields: {"$": name, **fields},
            names,
            st.dictionaries(st.sampled_from(["items", "value", "name", "x", "tags"]), inner),
        ),
    ),
    max_leaves=15,
)


@given(hostile_trees)
def test_it_answers_hostile_data_with_documented_errors_alone(tree):
    for read in (codec.decode, codec.plain):
        try:
            read(tree)
        except CheckpointError as error:
            assert str(error)  # noqa: PT017  # succeeding is fine too

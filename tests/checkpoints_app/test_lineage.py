from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoints_app import lineage

# 1 ─ 2 ─ 3 ─ 4          7's parent has expired
#      ╰─ 5 ─ 6
TREE = lineage.parents_of([(1, None), (2, 1), (3, 2), (4, 3), (5, 2), (6, 5), (7, 99)])

trees = st.lists(st.integers(min_value=0)).map(
    lambda choices: {n: (choice % n if n else None) for n, choice in enumerate(choices)}
)


def test_it_walks_up_nearest_first():
    assert list(lineage.ancestors(6, TREE)) == [5, 2, 1]


def test_it_takes_an_expired_parent_for_none():
    assert list(lineage.ancestors(7, TREE)) == []


def test_it_lists_children_in_order():
    assert lineage.children_of(TREE) == {1: [2], 2: [3, 5], 3: [4], 5: [6]}


@pytest.mark.parametrize(
    ("first", "second", "common"), [(4, 6, 2), (3, 4, 3), (2, 2, 2), (6, 1, 1), (7, 4, None)]
)
def test_it_finds_where_two_lines_part(first, second, common):
    assert lineage.nearest_common_ancestor(first, second, TREE) == common


def test_it_refuses_a_cycle():
    with pytest.raises(ValueError, match="its own ancestor"):
        list(lineage.ancestors(1, {1: 2, 2: 3, 3: 2}))


@given(trees, st.data())
def test_it_finds_the_last_of_all_common_ancestors(parents, data):
    if not parents:
        return
    first, second = (data.draw(st.sampled_from(sorted(parents))) for _ in range(2))

    found = lineage.nearest_common_ancestor(first, second, parents)

    common = {first, *lineage.ancestors(first, parents)} & {
        second,
        *lineage.ancestors(second, parents),
    }
    assert found == max(common)


@given(trees)
def test_it_puts_every_child_under_its_own_parent(parents):
    children = lineage.children_of(parents)

    assert {c: p for p, cs in children.items() for c in cs} == {
        c: p for c, p in parents.items() if p is not None
    }


def lanes(parents):
    return {place.checkpoint: place.lane for place in lineage.tree(parents)}


def test_it_keeps_a_line_in_its_lane_and_gives_a_branch_the_next():
    assert lanes(TREE) == {1: 0, 2: 0, 3: 0, 4: 0, 5: 1, 6: 1, 7: 0}


def test_it_uses_a_lane_again_when_its_branch_is_over():
    #  1 ─ 2 ─ 4 ─ 6      3 ends before 5 leaves 4
    #   ╰ 3     ╰ 5       (7 goes on with 6)
    parents = {1: None, 2: 1, 3: 1, 4: 2, 6: 4, 5: 4, 7: 6}

    assert lanes(parents) == {1: 0, 2: 0, 3: 1, 4: 0, 6: 0, 5: 1, 7: 0}


def test_it_puts_parents_before_children_whatever_the_clock_says():
    places = lineage.tree({2: 1, 1: None, 3: 2})

    assert [(place.row, place.checkpoint) for place in places] == [(0, 1), (1, 2), (2, 3)]


def test_it_draws_no_cycle():
    with pytest.raises(ValueError, match="2 checkpoints are not below any root"):
        lineage.tree({1: None, 2: 3, 3: 2})


@given(trees)
def test_it_places_each_checkpoint_once_in_the_order_of_creation(parents):
    places = lineage.tree(parents)

    assert [(place.checkpoint, place.parent) for place in places] == list(parents.items())
    assert [place.row for place in places] == list(range(len(parents)))


@given(trees)
def test_it_puts_no_two_lines_into_one_place(parents):
    places = lineage.tree(parents)

    taken = [
        (place.lane, row)
        for place in places
        for row in range(place.row if place.parent is None else place.parent + 1, place.row + 1)
    ]
    assert len(taken) == len(set(taken))


@given(trees)
def test_it_uses_no_more_lanes_than_there_are_branches(parents):
    places = lineage.tree(parents)

    highest = max((place.lane for place in places), default=0)
    assert highest <= sum(len(c) - 1 for c in lineage.children_of(parents).values()) + sum(
        parent is None for parent in parents.values()
    )

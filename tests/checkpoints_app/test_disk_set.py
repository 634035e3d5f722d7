from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoints_app.disk_set import DiskSet

MANY = [n.to_bytes(8) for n in range(1_200)]


def test_it_adds_each_item_once_and_says_which_were_new():
    with DiskSet() as items:
        assert items.add([b"a", b"b", b"a"]) == [b"a", b"b"]
        assert items.add([b"b", b"c"]) == [b"c"]
        assert len(items) == 3


def test_it_knows_more_items_than_one_query_takes():
    with DiskSet() as items:
        items.add(MANY)

        assert items.missing([*MANY, b"x"]) == [b"x"]


def test_it_gives_the_last_ones_first_and_what_is_added_meanwhile_not_at_all():
    with DiskSet() as items:
        items.add(MANY)
        found = items.newest_first()
        first = next(found)
        items.add([b"late"])

        assert [first, *found] == MANY[::-1]


def test_it_is_gone_when_it_is_closed():
    with DiskSet() as items:
        items.add([b"a"])

    with pytest.raises(Exception, match="closed"):
        len(items)


@given(st.lists(st.lists(st.binary(max_size=2))))
def test_it_behaves_as_a_set(batches):
    expected: set[bytes] = set()
    with DiskSet() as items:
        for batch in batches:
            assert set(items.add(batch)) == set(batch) - expected
            expected |= set(batch)
        assert set(items.newest_first()) == expected

from __future__ import annotations

import pytest

from checkpoints_app.backends.base import Usage
from checkpoints_app.backends.database import BATCH, DatabaseBackend

pytestmark = pytest.mark.django_db

MANY = {n.to_bytes(32): b"data %d" % n for n in range(2 * BATCH + 1)}


@pytest.fixture
def backend() -> DatabaseBackend:
    return DatabaseBackend()


def test_it_gives_back_what_was_put(backend):
    backend.put(MANY)

    assert backend.get(MANY) == MANY


def test_it_leaves_out_what_is_missing(backend):
    backend.put({b"a": b"1"})

    assert backend.get([b"a", b"b"]) == {b"a": b"1"}
    assert backend.missing([b"a", b"b"]) == {b"b"}


def test_it_keeps_the_first_of_two_puts(backend):
    backend.put({b"a": b"1"})
    backend.put({b"a": b"1", b"b": b"2"})

    assert backend.usage() == Usage(chunks=2, size_bytes=2)


def test_it_deletes_and_counts(backend):
    backend.put(MANY)

    assert backend.delete([*MANY, b"never there"]) == len(MANY)
    assert backend.usage() == Usage(chunks=0, size_bytes=0)


def test_it_does_nothing_for_nothing(backend):
    backend.put({})

    assert (backend.get([]), backend.missing([]), backend.delete([])) == ({}, set(), 0)

"""What every backend does with bytes."""

from __future__ import annotations

import hashlib
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import connections

from checkpoints_app.backends.base import Backend, Usage

pytestmark = pytest.mark.django_db(transaction=True)


def digest(number: int) -> bytes:
    return hashlib.sha256(b"%d" % number).digest()


def many(first: int = 0, count: int = 250) -> dict[bytes, bytes]:
    return {digest(number): b"data %d" % number for number in range(first, first + count)}


def test_it_gives_back_what_was_put(backend: Backend) -> None:
    backend.put(many())

    assert backend.get(many()) == many()


def test_it_leaves_out_what_is_missing(backend: Backend) -> None:
    backend.put({digest(1): b"1"})

    assert backend.get([digest(1), digest(2)]) == {digest(1): b"1"}
    assert backend.missing([digest(1), digest(2)]) == {digest(2)}


def test_it_keeps_every_byte(backend: Backend) -> None:
    everything = bytes(range(256)) + b"\r\n\x00"
    backend.put({digest(1): everything})

    assert backend.get([digest(1)]) == {digest(1): everything}


@pytest.mark.parametrize("size_bytes", [1_400_000, 1_400_001, 5_000_000])
def test_it_keeps_large_chunks(backend: Backend, size_bytes: int) -> None:
    large = random.Random(size_bytes).randbytes(size_bytes)
    backend.put({digest(1): large, digest(2): b"small"})

    assert backend.get([digest(1), digest(2)]) == {digest(1): large, digest(2): b"small"}
    assert backend.usage() == Usage(chunks=2, size_bytes=size_bytes + 5)
    assert backend.delete([digest(1)]) == 1
    assert backend.usage() == Usage(chunks=1, size_bytes=5)


def test_it_keeps_a_chunk_once(backend: Backend) -> None:
    backend.put({digest(1): b"1"})
    backend.put({digest(1): b"1", digest(2): b"2"})

    assert backend.usage() == Usage(chunks=2, size_bytes=2)


def test_it_deletes_and_counts(backend: Backend) -> None:
    backend.put(many())

    assert backend.delete([*many(count=249), digest(9999)]) == 249
    assert backend.missing(many()) == {digest(n) for n in range(249)}


def test_it_takes_again_what_was_deleted(backend: Backend) -> None:
    backend.put({digest(1): b"1"})
    backend.delete([digest(1)])
    backend.put({digest(1): b"1"})

    assert backend.get([digest(1)]) == {digest(1): b"1"}


def test_it_does_nothing_for_nothing(backend: Backend) -> None:
    backend.put({})

    assert (backend.get([]), backend.missing([]), backend.delete([])) == ({}, set(), 0)
    assert backend.usage() == Usage(chunks=0, size_bytes=0)


def test_it_takes_the_same_chunks_from_several_threads(backend: Backend) -> None:
    def put(first: int) -> None:
        backend.put(many(first, 60))
        connections.close_all()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(put, range(0, 60, 10)))

    assert backend.get(many(0, 110)) == many(0, 110)

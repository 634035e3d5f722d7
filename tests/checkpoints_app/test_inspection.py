from __future__ import annotations

import uuid

import pytest

from checkpoints_app import chunks, inspection, store
from checkpoints_app.errors import CheckpointNotFound
from checkpoints_app.models import Checkpoint, Chunk

from .saving import message, save, save_line

pytestmark = pytest.mark.django_db

LONG = "a long text " * 100


def state_of(name: str) -> dict[str, object]:
    return {
        "shared": LONG,
        "own": f"{name} {LONG}",
        "list": [f"{name} {n} {LONG}" for n in range(9)],
    }


def chunk_of(text: str) -> Chunk:
    return Chunk.objects.get(digest=chunks.digest_of(chunks.content_of(text)))


def test_it_reads_every_chunk_once():
    save(state_of("a"))
    save(state_of("b"))

    found = inspection.verify()

    assert found.is_ok
    assert (found.checkpoints, found.chunks) == (2, Chunk.objects.count())
    assert (found.missing, found.corrupt, found.damaged, found.unreferenced) == (0, 0, 0, 0)


def test_it_names_the_checkpoints_that_a_corrupt_chunk_concerns():
    first, second = save(state_of("a")), save(state_of("b"))
    Chunk.objects.filter(pk=chunk_of(f"a {LONG}").pk).update(data=chunks.seal(b"tother"))

    found = inspection.verify()

    assert (found.corrupt, found.missing, found.damaged) == (1, 0, 1)
    assert [damage.checkpoint_id for damage in found.named] == [first.pk]
    assert "SHA-256" in found.named[0].reason
    assert inspection.verify([second.pk]).is_ok


def test_it_names_all_checkpoints_that_share_a_missing_chunk():
    saved = [save(state_of(name)) for name in "ab"]
    chunk_of(LONG).delete()

    found = inspection.verify()

    assert (found.corrupt, found.missing, found.damaged) == (0, 1, 2)
    assert {damage.checkpoint_id for damage in found.named} == {c.pk for c in saved}


def test_it_finds_a_corrupt_manifest():
    saved = save(state_of("a"))
    Checkpoint.objects.update(manifest=chunks.seal(b"\x01\x80"))

    found = inspection.verify()

    assert [damage.checkpoint_id for damage in found.named] == [saved.pk]


def test_it_counts_chunks_that_belong_to_nothing():
    save(state_of("a"))
    gone = save(state_of("b"))
    store.delete([gone.pk])

    found = inspection.verify()

    assert found.is_ok
    assert found.unreferenced == Chunk.objects.count() - found.chunks > 0


def test_it_verifies_the_given_checkpoints_alone():
    first, _ = save(state_of("a")), save(state_of("b"))
    chunk_of(f"b {LONG}").delete()

    found = inspection.verify([str(first.pk)])

    assert (found.checkpoints, found.damaged, found.unreferenced) == (1, 0, None)


def test_it_says_that_a_given_checkpoint_is_not_there():
    with pytest.raises(CheckpointNotFound):
        inspection.verify([uuid.uuid4()])


def test_it_counts_a_backend_that_cannot_be_opened_as_damage():
    saved = save(state_of("a"))
    Checkpoint.objects.update(backend="nowhere")

    found = inspection.verify()

    assert [damage.checkpoint_id for damage in found.named] == [saved.pk]


def test_it_counts_what_is_kept_and_for_whom():
    save_line([message(LONG)], [message(LONG)], run_id="run-1", workflow="w-1")
    save(state_of("b"), run_id="run-2", workflow="w-2")

    found = inspection.stats()

    assert found.checkpoints == 3
    assert {share.name: share.checkpoints for share in found.by_run} == {"run-1": 2, "run-2": 1}
    assert [share.name for share in found.by_workflow] == ["w-2", "w-1"]
    assert [share.checkpoints for share in found.by_backend] == [3]
    assert sum(share.new_bytes for share in found.by_run) == found.stored_bytes
    assert found.search_index["messages"] == 1


def test_it_tells_how_much_sharing_saves():
    for n in range(5):
        save(state_of("a"), run_id=f"run-{n}")

    found = inspection.stats()

    assert found.sharing_ratio == found.size_bytes / found.stored_bytes > 5


def test_it_counts_nothing_in_an_empty_store():
    found = inspection.stats()

    assert (found.checkpoints, found.stored_bytes, found.sharing_ratio) == (0, 0, None)
    assert inspection.verify().is_ok

from __future__ import annotations

import uuid
from typing import Any

import pytest

from checkpoints_app import backends, chunks, codec, store
from checkpoints_app.errors import CheckpointConflict, CheckpointCorrupt, CheckpointNotFound
from checkpoints_app.models import Checkpoint, Chunk

pytestmark = pytest.mark.django_db

LONG = "a long text " * 100


def save(state: Any, *, run_id: str = "run-1", on_save: Any = None, **fields: Any) -> Checkpoint:
    entry = Checkpoint(
        **{"run_id": run_id, "source": "loop", "phase": "idle", "superstep": 0, **fields}
    )
    return store.save(entry, chunks.Splitter().split(codec.encode(state)), on_save=on_save)


def test_it_loads_what_it_saved():
    saved = save({"text": LONG, "list": [1, (2, 3)]})

    assert codec.decode(store.load(saved.pk)) == {"text": LONG, "list": [1, (2, 3)]}


def test_it_gives_pages_plain_json():
    saved = save({"text": LONG, "list": [1, (2, 3)]})

    assert store.state(str(saved.pk)) == {"text": LONG, "list": [1, [2, 3]]}


def test_it_numbers_checkpoints_within_their_run():
    saved = [save({}, run_id=run) for run in ("run-1", "run-2", "run-1")]

    assert [checkpoint.position for checkpoint in saved] == [0, 0, 1]


def test_it_stores_a_shared_text_once_across_runs():
    first = save({"a": LONG})
    second = save({"b": [LONG]}, run_id="run-2")

    assert Chunk.objects.count() == 1
    assert first.new_bytes > second.new_bytes == len(second.manifest)


def test_it_counts_exactly_the_bytes_that_a_save_adds():
    saved = [save({"state": {"h": [f"{n} {LONG}" for n in range(count)]}}) for count in (9, 9, 12)]

    stored = backends.at("database").usage().size_bytes + sum(len(c.manifest) for c in saved)
    assert sum(checkpoint.new_bytes for checkpoint in saved) == stored


def test_it_gives_equal_states_equal_digests():
    assert save({"a": LONG}).digest == save({"a": LONG}).digest != save({"a": 1}).digest


@pytest.mark.parametrize("missing", [uuid.uuid4(), "../etc/passwd", "", "7"])
def test_it_says_that_a_checkpoint_is_not_there(missing):
    with pytest.raises(CheckpointNotFound, match="no checkpoint"):
        store.load(missing)


def test_it_detects_a_corrupt_chunk_and_names_the_parent():
    parent = save({})
    child = save({"a": LONG}, parent=parent)
    Chunk.objects.update(data=chunks.seal(b"tsomething else"))

    with pytest.raises(CheckpointCorrupt, match=rf"{child.pk} .*SHA-256.*parent {parent.pk}"):
        store.load(child.pk)


def test_it_detects_a_missing_chunk():
    saved = save({"a": LONG})
    Chunk.objects.all().delete()

    with pytest.raises(CheckpointCorrupt, match="missing"):
        store.load(saved.pk)


def test_it_detects_a_corrupt_manifest():
    saved = save({"a": 1})
    Checkpoint.objects.update(manifest=save({"a": 2}, run_id="run-2").manifest)

    with pytest.raises(CheckpointCorrupt, match="SHA-256"):
        store.load(saved.pk)


def test_it_leaves_nothing_behind_when_the_save_is_refused():
    def refuse(checkpoint: Checkpoint) -> None:
        assert Checkpoint.objects.filter(pk=checkpoint.pk).exists()
        raise PermissionError("not the holder")

    with pytest.raises(PermissionError):
        save({"a": LONG}, on_save=refuse)

    assert (Checkpoint.objects.count(), Chunk.objects.count()) == (0, 0)


def test_it_never_updates_a_checkpoint():
    saved = save({"a": 1})

    with pytest.raises(CheckpointConflict, match="the id exists"):
        save({"a": 2}, id=saved.pk)

    assert store.state(saved.pk) == {"a": 1}


def test_it_deletes_rows_and_keeps_what_others_share():
    first, second = save({"a": LONG}), save({"a": LONG, "b": 1})

    assert store.delete([first.pk, uuid.uuid4()]) == 1

    assert store.state(second.pk) == {"a": LONG, "b": 1}


def test_it_keeps_a_child_whose_parent_is_gone():
    parent = save({})
    child = save({"a": 1}, parent=parent)

    store.delete([parent.pk])

    assert Checkpoint.objects.get(pk=child.pk).parent_id == parent.pk

"""What the store does with checkpoints whose chunks lie in any backend."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from agent_framework import WorkflowCheckpoint, WorkflowCheckpointException
from asgiref.sync import sync_to_async
from django.db import connections

from checkpoints_app import backends, store
from checkpoints_app.adapters.agent_framework import DjangoCheckpointStorage
from checkpoints_app.errors import CheckpointCorrupt
from checkpoints_app.models import Checkpoint

from .states import noise, save, split, state_at

pytestmark = pytest.mark.django_db(transaction=True)


def test_it_loads_what_it_saved(address: str) -> None:
    saved = [save(state_at(number), backend=address) for number in range(12)]

    assert [store.state(entry.pk) for entry in saved] == [state_at(number) for number in range(12)]
    assert {entry.backend for entry in Checkpoint.objects.all()} == {address}


def test_it_keeps_a_state_of_ten_megabytes(address: str) -> None:
    state = {"one": noise(6_000_000, seed=1), "many": [noise(4000, seed=n) for n in range(1000)]}

    assert store.state(save(state, backend=address).pk) == state


def test_it_adds_only_what_is_new(address: str) -> None:
    first, again = (save(state_at(30), backend=address, run_id=run) for run in ("run-1", "run-2"))

    assert first.new_bytes > again.new_bytes == len(again.manifest)
    assert backends.at(address).usage().size_bytes == first.new_bytes - len(first.manifest)


def test_it_says_that_a_chunk_is_missing(address: str) -> None:
    saved = save(state_at(3), backend=address)
    backends.at(address).delete([min(split(state_at(3)).chunks)])

    with pytest.raises(CheckpointCorrupt, match=rf"{saved.pk} .*missing"):
        store.load(saved.pk)


def test_it_notices_one_changed_bit(address: str) -> None:
    saved = save(state_at(3), backend=address)
    change_one_bit(address, min(split(state_at(3)).chunks))

    with pytest.raises(CheckpointCorrupt, match=str(saved.pk)):
        store.load(saved.pk)


def change_one_bit(address: str, digest: bytes) -> None:
    backend = backends.at(address)
    (stored,) = backend.get([digest]).values()
    backend.delete([digest])
    backend.put({digest: stored[:-1] + bytes([stored[-1] ^ 1])})


def test_it_deletes_a_checkpoint_and_keeps_what_others_share(address: str) -> None:
    first, second = (save(state_at(number), backend=address) for number in (5, 6))

    assert store.delete([first.pk]) == 1

    assert store.state(second.pk) == state_at(6)


def test_it_leaves_at_worst_chunks_when_a_save_is_refused(address: str) -> None:
    def refuse(entry: Checkpoint) -> None:
        raise PermissionError("not the holder")

    with pytest.raises(PermissionError):
        save(state_at(4), backend=address, on_save=refuse)

    assert not Checkpoint.objects.exists()
    assert store.state(save(state_at(4), backend=address).pk) == state_at(4)


def test_it_takes_saves_from_several_threads(address: str) -> None:
    def save_all(run_id: str) -> None:
        for number in range(8):
            save(state_at(number), backend=address, run_id=run_id)
        connections.close_all()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(save_all, ["run-1", "run-2", "run-3", "run-4"]))

    rows = Checkpoint.objects.all()
    assert len(rows) == 32
    assert [store.state(row.pk) for row in rows] == [state_at(row.position) for row in rows]


@pytest.mark.usefixtures("database_threads")
async def test_it_lists_a_run_in_order_and_finds_the_latest(address: str) -> None:
    storage = DjangoCheckpointStorage("run-1", backend=address)
    saved = [await storage.save(checkpoint(number)) for number in range(6)]
    await DjangoCheckpointStorage("run-2", backend=address).save(checkpoint(7))

    assert await storage.list_checkpoint_ids(workflow_name="team") == saved
    listed = await storage.list_checkpoints(workflow_name="team")
    assert [found.state for found in listed] == [state_at(number) for number in range(6)]
    latest = await storage.get_latest(workflow_name="team")
    assert latest is not None
    assert latest.checkpoint_id == saved[-1]


@pytest.mark.usefixtures("database_threads")
async def test_it_loads_from_where_each_checkpoint_lies(address: str) -> None:
    elsewhere = await DjangoCheckpointStorage("run-1").save(checkpoint(3))
    storage = DjangoCheckpointStorage("run-1", backend=address)
    here = await storage.save(checkpoint(4))

    assert [(await storage.load(id)).state for id in (elsewhere, here)] == [
        state_at(3),
        state_at(4),
    ]


@pytest.mark.usefixtures("database_threads")
async def test_it_forgets_a_deleted_checkpoint(address: str) -> None:
    storage = DjangoCheckpointStorage("run-1", backend=address)
    first, second = [await storage.save(checkpoint(number)) for number in (5, 6)]

    assert await storage.delete(first)

    assert (await storage.load(second)).state == state_at(6)
    with pytest.raises(WorkflowCheckpointException, match="no checkpoint"):
        await storage.load(first)
    assert await sync_to_async(Checkpoint.objects.count)() == 1


def checkpoint(number: int) -> WorkflowCheckpoint:
    return WorkflowCheckpoint(
        workflow_name="team", graph_signature_hash="g", state=state_at(number)
    )

"""Sweeping beside writers in other processes."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from django.db import connections

from checkpoints_app import backends, retention, store
from checkpoints_app.models import AuditEvent, Checkpoint

from . import children
from .lines import save

pytestmark = pytest.mark.django_db(transaction=True)

SECONDS = float(os.environ.get("FLEET_TEST_SECONDS") or 20)


@pytest.mark.parametrize(("place", "seconds"), [("database", SECONDS), ("file", SECONDS / 4)])
def test_two_processes_save_prune_and_sweep_at_once_and_lose_nothing(
    place: str, seconds: float, tmp_path: Path
) -> None:
    address = place if place == "database" else f"{place}:{tmp_path}"
    running = [
        children.start("save_prune_and_sweep", run, address, seconds) for run in ("run-1", "run-2")
    ]
    outputs = [process.communicate()[0].split() for process in running]

    assert [process.returncode for process in running] == [0, 0]
    assert all(int(swept) > 0 for _, swept in outputs)
    assert AuditEvent.objects.filter(verb="checkpoints.prune").count() > 2
    kept = list(Checkpoint.objects.all())
    said = [entry.note.split("\n") for entry in kept]
    assert [store.state(entry.pk)["said"] for entry in kept] == said
    retention.sweep()
    assert [store.state(entry.pk)["said"] for entry in kept] == said
    assert (retention.sweep().chunks, len(list(backends.at(address).digests())) > 0) == (0, True)


def test_a_sweep_waits_for_the_save_under_way() -> None:
    state = {"text": "found, not put " * 99}
    store.delete([save(state).pk])
    sweeping = threading.Thread(target=sweep_in_thread)

    def let_a_sweep_try(entry: Checkpoint) -> None:
        sweeping.start()
        sweeping.join(1)
        assert sweeping.is_alive()

    saved = save(state, on_save=let_a_sweep_try)
    sweeping.join()

    assert store.state(saved.pk) == state


def sweep_in_thread() -> None:
    retention.sweep()
    connections.close_all()

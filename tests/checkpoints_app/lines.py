"""Runs of checkpoints whose states share most of their text, saved by the store itself."""

from __future__ import annotations

import uuid
from typing import Any

from checkpoints_app import chunks, codec, store
from checkpoints_app.models import Checkpoint

LONG = "a long text " * 100


def save(
    state: Any = None, *, run_id: str = "run-1", on_save: Any = None, **fields: Any
) -> Checkpoint:
    """Save `state`, or a state of its own for each call."""
    state = {"text": f"{uuid.uuid4()} {LONG}"} if state is None else state
    values = {"run_id": run_id, "source": "loop", "phase": "idle", "superstep": 0, **fields}
    entry = Checkpoint(workflow_name="team", **values)
    return store.save(entry, chunks.Splitter().split(codec.encode(state)), on_save=on_save)


def save_line(count: int, *, run_id: str = "run-1", **fields: Any) -> list[Checkpoint]:
    """A run of `count` checkpoints: each adds a message to the state of its parent."""
    line: list[Checkpoint] = []
    for number in range(count):
        state = {"said": [f"{run_id} says {n} {LONG}" for n in range(number + 1)], "n": number}
        parent = line[-1] if line else fields.get("parent")
        line.append(save(state, run_id=run_id, **{**fields, "parent": parent}))
    return line

"""Saving in tests, from this process or from another one."""

from __future__ import annotations

import random
from typing import Any

from checkpoints_app import chunks, codec, store
from checkpoints_app.models import Checkpoint


def save(state: Any, *, backend: str, run_id: str = "run-1", on_save: Any = None) -> Checkpoint:
    entry = Checkpoint(run_id=run_id, backend=backend, source="loop", phase="idle", superstep=0)
    return store.save(entry, split(state), on_save=on_save)


def split(state: Any) -> chunks.Split:
    return chunks.Splitter().split(codec.encode(state))


def state_at(number: int) -> dict[str, Any]:
    """What a run might hold after `number` steps: most of it is what it held one step before."""
    return {"history": [noise(400, seed=step) for step in range(number)], "step": number}


def noise(characters: int, *, seed: int) -> str:
    """Text that nothing compresses well."""
    return random.Random(seed).randbytes(characters // 2).hex()

"""Checkpoints of plain states, saved for real: no engine is needed to look for them."""

from __future__ import annotations

from typing import Any

from checkpoints_app import chunks, codec, store
from checkpoints_app.models import Checkpoint


def save(state: Any = None, **fields: Any) -> Checkpoint:
    """A saved checkpoint with whatever index fields are given."""
    values = {"run_id": "run-1", "source": "loop", "phase": "idle", "superstep": 0, **fields}
    tree = codec.encode({} if state is None else state)
    return store.save(Checkpoint(**values), chunks.Splitter().split(tree))


def save_line(*histories: list[Any], parent: Checkpoint | None = None, **fields: Any) -> Any:
    """One checkpoint for each history of messages, each the parent of the next."""
    saved = []
    for history in histories:
        parent = save({"history": history}, parent_id=parent and parent.pk, **fields)
        saved.append(parent)
    return saved


def message(text: str, author: str = "coder", **fields: Any) -> dict[str, Any]:
    """A message in the form that Agent Framework itself serialises to."""
    contents = [{"type": "text", "text": text}]
    return {"type": "message", "role": "assistant", "contents": contents, "author_name": author} | (
        fields
    )

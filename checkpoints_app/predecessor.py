"""Checkpoints of AgenticFleet's first phase: one JSON document each, read and written.

    {"checkpoint_id": uuid, "workflow_id": text, "timestamp": ISO 8601, "current_round": n,
     "stall_count": n, "last_response": text, "context": any, "metadata": {"status", "round",
     "user_input", "error"}}

Such a document knows no parent, no plan and no agents. What comes in can be read, searched and
compared, not run; what can't be known stays empty.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from django.db import transaction

from . import audit, chunks, codec, store
from .audit import Actor
from .bundle import parse
from .codec import JSON
from .errors import BundleRefused, CheckpointConflict, CheckpointError
from .models import Checkpoint

MAX_BYTES = 64 * 1024**2
MAX_DOCUMENTS = 100_000
_STATUS = {"completed": "completed", "failed": "error", "cancelled": "error"}
_PHASE = {"completed": Checkpoint.Phase.FINAL}
_ORCHESTRATOR = "magentic_orchestrator"


@dataclass(frozen=True, kw_only=True)
class Imported:
    checkpoints: int
    already_there: int


@dataclass(frozen=True, kw_only=True)
class _Document:
    """What the store needs to know of a document, and the document itself."""

    id: UUID
    workflow: str
    created_at: datetime
    round: int
    status: str
    body: dict[str, Any]


def document_of(entry: Checkpoint) -> dict[str, Any]:
    """The checkpoint as the predecessor wrote it. One that came from there is given back as it was.

    Raises CheckpointCorrupt when the state cannot be read.
    """
    state: Any = codec.plain(store.load_entry(entry))
    before = _get(state, "metadata", "predecessor")
    if isinstance(before, dict):
        return before
    magentic = _get(state, "state", "_executor_state", _ORCHESTRATOR) or {}
    context = _get(magentic, "magentic_context") or {}
    task = _text(_get(context, "task"))
    said = [_said(message) for message in _get(context, "chat_history") or []]
    is_final = entry.phase == Checkpoint.Phase.FINAL
    return {
        "checkpoint_id": str(entry.pk),
        "workflow_id": entry.workflow or entry.run_id,
        "timestamp": entry.created_at.isoformat(),
        "current_round": entry.round,
        "stall_count": _get(context, "stall_count") or 0,
        "last_response": said[-1]["text"] if said else "",
        "context": {"task": task, "messages": said},
        "metadata": {
            "status": "completed" if is_final else _STATUS.get(entry.status, "in_progress"),
            "round": entry.round,
            "user_input": task,
            "error": None,
        },
    }


def import_documents(files: Iterable[bytes], *, actor: Actor) -> Imported:
    """Bring in documents, each the bytes of a file: all or none, and again without harm.

    Those of one `workflow_id` become one run, in the order of their times, read-only. Raises
    BundleRefused, naming the reason, and CheckpointConflict when an id is taken.
    """
    workflows: defaultdict[str, list[_Document]] = defaultdict(list)
    for number, data in enumerate(files):
        if number >= MAX_DOCUMENTS:
            raise BundleRefused(f"There are more than {MAX_DOCUMENTS} documents. Import fewer.")
        document = _read(data)
        workflows[document.workflow].append(document)
    ids = [document.id for documents in workflows.values() for document in documents]
    if len(set(ids)) < len(ids):
        raise BundleRefused("Two of the documents have the same checkpoint_id.")
    written = 0
    with transaction.atomic():
        for documents in workflows.values():
            written += _import_line(sorted(documents, key=lambda each: (each.created_at, each.id)))
        audit.record(
            actor,
            "checkpoints.import",
            count=written,
            already_there=len(ids) - written,
            format="json",
        )
    return Imported(checkpoints=written, already_there=len(ids) - written)


def _import_line(documents: list[_Document]) -> int:
    known = Checkpoint.objects.in_bulk([document.id for document in documents])
    run_id = documents[0].workflow
    if Checkpoint.objects.filter(run_id=run_id, is_read_only=False).exists():
        raise CheckpointConflict(
            f"Run {run_id} of this site has the workflow_id of a document. Nothing was imported."
        )
    splitter = chunks.Splitter()
    parent: UUID | None = None
    for document in documents:
        split = splitter.split(_tree(document))
        if document.id not in known:
            store.save(_entry(document, parent), split)
        elif bytes(known[document.id].digest) != split.digest:
            raise CheckpointConflict(
                f"Checkpoint {document.id} is here already, with other content. Nothing was "
                "imported."
            )
        parent = document.id
    return len(documents) - len(known)


def _entry(document: _Document, parent: UUID | None) -> Checkpoint:
    return Checkpoint(
        id=document.id,
        run_id=document.workflow,
        workflow=document.workflow,
        parent_id=parent,
        source=Checkpoint.Source.IMPORT,
        phase=_PHASE.get(document.status, Checkpoint.Phase.IDLE),
        superstep=0,
        round=document.round,
        workflow_name=document.workflow,
        status=document.status,
        created_at=document.created_at,
        is_read_only=True,
    )


def _tree(document: _Document) -> JSON:
    """The state in the form of a Magentic one, as plain as the document itself."""
    body = document.body
    context: dict[str, Any] = {
        "task": _text(_get(body, "metadata", "user_input")),
        "chat_history": list(_history(body)),
        "round_count": document.round,
        "stall_count": body.get("stall_count") or 0,
        "reset_count": 0,
        "participant_descriptions": {},
    }
    return codec.encode(
        {
            "graph_signature_hash": "",
            "timestamp": body["timestamp"],
            "version": "1.0",
            "metadata": {"predecessor": body},
            "messages": {},
            "pending_request_info_events": {},
            "state": {"_executor_state": {_ORCHESTRATOR: {"magentic_context": context}}},
        }
    )


def _history(body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    context = body.get("context")
    if isinstance(context, dict):
        context = context.get("messages")
    for message in context if isinstance(context, list) else [context]:
        if text := _text(message):
            author = _get(message, "author") or ""
            yield _message(str(author), str(_get(message, "role") or "assistant"), text)
    if text := _text(body.get("last_response")):
        yield _message("", "assistant", text)


def _message(author: str, role: str, text: str) -> dict[str, Any]:
    """As Agent Framework serialises a message itself."""
    contents = [{"type": "text", "text": text}]
    return {"type": "message", "role": role, "author_name": author, "contents": contents}


def _said(message: Any) -> dict[str, str]:
    return {
        "author": str(_get(message, "author_name") or ""),
        "role": str(_get(message, "role") or ""),
        "text": _text(message),
    }


def _read(data: bytes) -> _Document:
    if len(data) > MAX_BYTES:
        raise BundleRefused(f"A document is larger than {MAX_BYTES} bytes.")
    body = parse(data, "A document")
    try:
        document = _Document(
            id=UUID(body["checkpoint_id"]),
            workflow=_checked(body["workflow_id"]),
            created_at=_moment(body["timestamp"]),
            round=_number(body["current_round"]),
            status=_checked(_get(body, "metadata", "status") or "in_progress")[:20],
            body=body,
        )
        codec.encode(body)
        json.dumps(body, ensure_ascii=False).encode()
    except (KeyError, ValueError, TypeError, AttributeError, CheckpointError) as error:
        name = str(body.get("checkpoint_id"))[:64]
        raise BundleRefused(f"Document {name!r} is no checkpoint: {error!r}") from error
    return document


def _checked(text: Any) -> str:
    if not isinstance(text, str) or not 1 <= len(text) <= 64 or "\0" in text:
        raise ValueError(f"{str(text)[:64]!r} is no name of 1 to 64 characters")
    return text


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**31:
        raise ValueError(f"{str(value)[:20]} is no count")
    return value


def _moment(text: str) -> datetime:
    """The predecessor wrote local times without a zone; they are taken as UTC."""
    moment = datetime.fromisoformat(text)
    if not 1970 <= moment.year <= 9000:
        raise ValueError(f"{text[:40]!r} is no time of our age")
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _text(message: Any) -> str:
    """The words of a message, in any of the forms that occur."""
    if isinstance(message, str):
        return message
    if not isinstance(message, dict):
        return ""
    for key in ("text", "content"):
        if isinstance(message.get(key), str):
            return str(message[key])
    contents = message.get("contents")
    return "".join(_text(each) for each in contents) if isinstance(contents, list) else ""


def _get(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value

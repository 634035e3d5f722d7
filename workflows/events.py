"""The closed vocabulary of run events: what may happen in a run, and the data each kind carries.

Events are append-only rows numbered by `sequence` within their run. `data` is plain JSON. The keys
named here are a contract between the runner, the pages, the terminal and `--json`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

type JSON = dict[str, JSON] | list[JSON] | str | int | float | bool | None

TEXT_LIMIT = 200_000
"""Characters kept of one text in an event. The checkpoint keeps all of it."""


class EventKind(StrEnum):
    """Kinds of event, in the order in which a run usually meets them."""

    QUEUED = "queued"
    """The run was created. `task`, `files`, `instruction`, `mode` ("", "steer", "replan"),
    `forked_from` (a checkpoint's id, or None)."""
    STARTED = "started"
    """A worker began the run or took it up again. `attempt`, `offline` (bool), `models` {agent:
    name}, `from_checkpoint` (id or None)."""
    PLAN = "plan"
    """The manager's facts and plan. `text`, `is_replan`."""
    DECISION = "decision"
    """The manager's progress ledger. `is_satisfied`, `is_in_loop`, `is_progressing`, `next_agent`,
    `instruction`, `reasons` {satisfied, in_loop, progressing, next_agent, instruction}."""
    TOOL_CALL = "tool_call"
    """An agent called a tool. `call_id`, `tool`, `arguments` (an object, or a string when the model
    wrote no JSON)."""
    TOOL_RESULT = "tool_result"
    """What the tool gave back. `call_id`, `tool`, `result` (text), `is_error`."""
    MESSAGE = "message"
    """An agent's whole reply. `text` (Markdown)."""
    MODEL_CALL = "model_call"
    """A finished request to a model. `model`, `input_tokens`, `output_tokens`, `cost_usd` (a
    string, or None when the price is unknown), `duration_ms`."""
    CHECKPOINT = "checkpoint"
    """State was saved; `checkpoint_id` of the row names it. `phase`, `superstep`, `source`,
    `new_bytes`."""
    ANSWER = "answer"
    """The final answer. `text` (Markdown), `is_synthesised` (False for a limit's canned text)."""
    WAITING = "waiting"
    """The run waits for a person. `approval` (id), `subject` ("plan" or "tool_call"), `text`,
    `arguments`, `digest`."""
    ANSWERED = "answered"
    """A person answered. `approval`, `decision` ("approve", "revise", "reject"), `text`, `by`."""
    RETRYING = "retrying"
    """The run goes back to the queue and on from its last checkpoint. `reason`."""
    PAUSED = "paused"
    """`reason`."""
    COMPLETED = "completed"
    """`rounds`, `model_calls`, `input_tokens`, `output_tokens`, `cost_usd`."""
    FAILED = "failed"
    """`error`: what happened and what to do next."""
    CANCELLED = "cancelled"
    """`by`."""


FINAL_KINDS = frozenset(
    {EventKind.PAUSED, EventKind.COMPLETED, EventKind.FAILED, EventKind.CANCELLED}
)
"""After one of these nothing follows until somebody resumes the run."""

_SECRETS = re.compile(
    r"""(?xi)
    \b(?: sk-[A-Za-z0-9_-]{16,}                       # OpenAI and its imitators
      | gh[pousr]_[A-Za-z0-9]{20,}                    # GitHub
      | xox[abprs]-[A-Za-z0-9-]{10,}                  # Slack
      | AKIA[0-9A-Z]{16}                              # AWS key id
      | eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{5,}   # JSON web token
    )
    | (?<=bearer\s)[A-Za-z0-9._~+/-]{16,}=*
    """
)
REDACTED = "[redacted]"

_UNPRINTABLE = re.compile("[\x00\ud800-\udfff]")


def printable(text: str) -> str:
    """`text` without NUL and lone surrogates: models write them, databases and pages refuse."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def redact(value: Any) -> Any:
    """Return `value` with what looks like a credential replaced, in strings at any depth."""
    if isinstance(value, str):
        return _SECRETS.sub(REDACTED, value)
    if isinstance(value, Mapping):
        return {key: redact(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact(item) for item in value]
    return value


def clean(data: Mapping[str, Any]) -> dict[str, Any]:
    """Data fit for a row and a page: secrets redacted, texts printable and cut at `TEXT_LIMIT`."""
    return {key: _shorten(item) for key, item in redact(data).items()}


def _shorten(value: Any) -> Any:
    if isinstance(value, str):
        value = printable(value)
        if len(value) > TEXT_LIMIT:
            return f"{value[:TEXT_LIMIT]}\n… ({len(value) - TEXT_LIMIT:,} characters more)"
        return value
    if isinstance(value, Mapping):
        return {printable(str(key)): _shorten(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_shorten(item) for item in value]
    return value

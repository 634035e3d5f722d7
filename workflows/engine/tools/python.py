"""Python that a model wrote, in an interpreter that has no files, no network and no way to either.

The interpreter is Pydantic's Monty, a subset of Python in a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic_monty import (
    CollectString,
    Monty,
    MontyConversionError,
    MontyCrashedError,
    MontyError,
    MontyRuntimeError,
    MontySyntaxError,
    ResourceLimits,
)

MAX_ROWS = 10_000
"""Rows of one `query`."""
MAX_OUTPUT_CHARACTERS = 16_000

_LIMITS = ResourceLimits(
    max_feed_duration_secs=10.0, max_memory=256 * 1024 * 1024, max_suspensions=100
)


def run(code: str, *, query: Callable[[str], list[dict[str, Any]]]) -> str:
    """Return what the code printed, then the value of its last expression; or its error as text.

    The code may call `query(sql)`, which gives a list of dicts. Blocks until the code ends or is
    stopped by its limits.
    """
    printed = CollectString(4 * MAX_OUTPUT_CHARACTERS)
    try:
        with (
            Monty(min_processes=1, max_processes=1) as pool,
            pool.checkout(limits=_LIMITS, os_policy={"sleep": "zero"}) as session,
        ):
            value = session.feed_run(code, external_lookup={"query": query}, print_callback=printed)
    except MontyError as error:
        return _joined(printed.output, _explained(error))
    return _joined(printed.output, "" if value is None else _cut(_shown(value)))


def _explained(error: MontyError) -> str:
    if isinstance(error, MontyCrashedError):
        return "Error: the interpreter was stopped, because the code needed too much."
    if isinstance(error, MontyConversionError):
        return f"Error: the value can't be handed over ({error}). Print it instead."
    if isinstance(error, MontyRuntimeError | MontySyntaxError):
        return f"Error:\n{error.display()}"
    return f"Error: {error}"


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


def _joined(printed: str, last: str) -> str:
    parts = [part for part in (_cut(printed.rstrip("\n")), last) if part]
    return "\n".join(parts) or "The code ran and gave nothing. Print what you want to see."


def _cut(text: str) -> str:
    if len(text) <= MAX_OUTPUT_CHARACTERS:
        return text
    return f"{text[:MAX_OUTPUT_CHARACTERS]}\n… (the rest of the output is cut)"

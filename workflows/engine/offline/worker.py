"""The agents' side: do exactly what the instruction's blocks say, and report what came of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from agent_framework import Content, Message

from workflows.engine.tools import markdown

from .conversation import Block, blocks, heading, tool_of

NO_BLOCK = (
    "I follow exact instructions: without a language model I can't make my own. Give me a fenced "
    "block with `sql`, `python`, or `json` that names a tool."
)


def act(agent: str, messages: Sequence[Message], tools: Collection[str]) -> list[Content]:
    """Calls of tools for the newest instruction, or the report once their results are there."""
    start = max(
        (place for place, m in enumerate(messages) if m.role == "user" and m.text.strip()),
        default=-1,
    )
    asked = blocks(messages[start].text) if start >= 0 else []
    if not asked:
        return [Content.from_text(NO_BLOCK)]
    results = _results(messages[start + 1 :])
    seed = json.dumps([agent, *([m.role, m.text] for m in messages[: start + 1])])
    calls = {_call_id(seed, place): block for place, block in enumerate(asked)}
    waiting = {
        call_id: block
        for call_id, block in calls.items()
        if call_id not in results and tool_of(block) in tools
    }
    if waiting:
        return [_call(call_id, block) for call_id, block in waiting.items()]
    return [Content.from_text("\n\n".join(_section(b, results.get(c)) for c, b in calls.items()))]


def _call_id(conversation: str, place: int) -> str:
    """The same in every replay of the conversation, and different for every call in it."""
    return f"call_{hashlib.sha256(f'{place} {conversation}'.encode()).hexdigest()[:24]}"


def _call(call_id: str, block: Block) -> Content:
    arguments: dict[str, Any]
    if block.kind == "json":
        arguments = json.loads(block.code)
        arguments.pop("tool")
    else:
        arguments = {"sql" if block.kind == "sql" else "code": block.code}
    return Content.from_function_call(
        call_id=call_id, name=tool_of(block), arguments=json.dumps(arguments, ensure_ascii=False)
    )


def _results(messages: Sequence[Message]) -> dict[str, str]:
    """What the tools gave, by call id."""
    return {
        content.call_id: _result_text(content)
        for message in messages
        for content in message.contents
        if content.type == "function_result" and content.call_id
    }


def _result_text(content: Content) -> str:
    if content.exception:
        return f"Error: {content.exception}"
    if isinstance(content.result, str):
        return content.result
    return "\n".join(str(getattr(item, "text", item)) for item in content.result or [])


def _section(block: Block, result: str | None) -> str:
    if result is None:
        return (
            f"{heading(block)}\n\nError: I do not have the tool {tool_of(block) or 'named here'}."
        )
    return "\n\n".join(part for part in (heading(block), result.strip(), reading(result)) if part)


def reading(result: str) -> str:
    """One sentence on what a table shows; "" when there is nothing to say."""
    table = markdown.parse(result)
    if table is None or len(table.rows) < 2 or result.startswith("###"):
        return ""
    place = next((n for n, column in enumerate(table.columns) if column == "total"), None)
    if place is None:
        return f"{len(table.rows)} rows."
    ranked = [(_number(row[place]), row[0]) for row in table.rows if len(row) > place]
    numbers = [(number, label) for number, label in ranked if number is not None]
    if not numbers:
        return f"{len(table.rows)} rows."
    (high, top), (low, bottom) = max(numbers), min(numbers)
    return f"{len(table.rows)} rows: {top} is highest with {high:,}, {bottom} lowest with {low:,}."


def _number(cell: str) -> Decimal | None:
    try:
        return Decimal(cell)
    except InvalidOperation:
        return None

"""The manager's side: facts, plan, the next step, and when to write the report."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from agent_framework import Message

from . import report
from .analysis import Analysis
from .conversation import Block, Prompt, read, tool_of
from .steps import Step


def speak(messages: Sequence[Message], prompt: Prompt, *, max_rounds: int) -> str:
    """What the manager answers to `prompt`, which ends `messages`."""
    analysis = Analysis(read(messages, prompt))
    match prompt.kind:
        case "facts" | "facts_update":
            return _facts(analysis)
        case "plan" | "plan_update":
            return _plan(analysis)
        case "ledger":
            return _ledger(analysis, max_rounds)
        case _:
            return report.write(analysis)


def _facts(analysis: Analysis) -> str:
    talk = analysis.conversation
    given = [f"- {file.name}: {file.facts}" for file in talk.files] or ["- No file is attached."]
    given += [f"- The user added: {instruction}" for instruction in talk.instructions]
    if analysis.subject and analysis.subject.focus.filters:
        given.append(f"- In focus: {analysis.subject.focus.words}")
    look_up = "- Columns, gaps and values, in the attached files." if talk.files else "- None."
    derive = (
        "- Totals, comparisons, changes over time, outliers and gaps." if talk.files else "- None."
    )
    return (
        "1. GIVEN OR VERIFIED FACTS\n\n{}\n\n2. FACTS TO LOOK UP\n\n{}\n\n"
        "3. FACTS TO DERIVE\n\n{}\n\n4. EDUCATED GUESSES\n\n"
        "- None: the built-in rules plan this, and they do not guess."
    ).format("\n".join(given), look_up, derive)


def _plan(analysis: Analysis) -> str:
    lines = [
        f"- {analysis.agent_for(step, blocks[0])}: {'; '.join(block.title for block in blocks)}"
        for step, blocks in analysis.pending
    ]
    if analysis.tables and analysis.subject is None:
        lines.append("- Then totals, the main figure by group and over time, outliers, and gaps")
    if not lines:
        lines.append("- Nothing is left to compute")
    return "\n".join([*lines, "- manager: write the report from these results"])


def _ledger(analysis: Analysis, max_rounds: int) -> str:
    pending = analysis.pending
    total = len(analysis.steps)
    agent, batch = _next(analysis, max_rounds) if pending else ("", [])
    return json.dumps(
        {
            "is_request_satisfied": _item(not pending, _progress(pending, total)),
            "is_in_loop": _item(False, "No step is ever given twice."),
            "is_progress_being_made": _item(True, "Every round takes a step that was still open."),
            "next_speaker": _item(
                agent or next(iter(analysis.conversation.team), ""),
                f"{agent} has the tool that this step needs." if agent else "Nobody is needed.",
            ),
            "instruction_or_question": _item(
                "\n\n".join(_instruction(blocks) for _, blocks in batch),
                batch[0][0].why if batch else "The report can be written.",
            ),
        },
        ensure_ascii=False,
        indent=2,
    )


def _progress(pending: Sequence[tuple[Step, list[Block]]], total: int) -> str:
    if not pending:
        return "Everything that can be computed from the attached files has been computed."
    return f"{len(pending)} of {total} steps are still open; next: {pending[0][1][0].title}."


def _next(analysis: Analysis, max_rounds: int) -> tuple[str, list[tuple[Step, list[Block]]]]:
    """Who goes next, with what. One step a round, or several when the rounds would not suffice.

    The last round belongs to the report.
    """
    step, blocks = analysis.pending[0]
    agent = analysis.agent_for(step, blocks[0])
    rounds_left = max(1, max_rounds - 1 - analysis.conversation.rounds)
    size = math.ceil(len(analysis.pending) / rounds_left)
    mine = [
        (step, able)
        for step, blocks in analysis.pending
        if (able := [b for b in blocks if agent in analysis.conversation.agents_with(tool_of(b))])
    ]
    return agent, mine[:size]


def _instruction(blocks: Sequence[Block]) -> str:
    parts = []
    for block in blocks:
        verb = {"query_tables": "Run this query.", "run_python": "Run this program."}.get(
            tool_of(block), f"Use {tool_of(block)}."
        )
        parts.append(f"**{block.title}.** {verb}\n\n{block.markdown}")
    return "\n\n".join(parts)


def _item(answer: str | bool, reason: str) -> dict[str, str | bool]:
    return {"reason": reason, "answer": answer}

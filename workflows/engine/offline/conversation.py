"""What the manager is asked, read out of the framework's prompts, and what has been done so far."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from string import Formatter

from agent_framework import Message
from agent_framework_orchestrations import _magentic as framework

from workflows.attachments import HEADING
from workflows.engine.tools import TOOLS

_PROMPTS = {
    "facts": framework.ORCHESTRATOR_TASK_LEDGER_FACTS_PROMPT,
    "plan": framework.ORCHESTRATOR_TASK_LEDGER_PLAN_PROMPT,
    "facts_update": framework.ORCHESTRATOR_TASK_LEDGER_FACTS_UPDATE_PROMPT,
    "plan_update": framework.ORCHESTRATOR_TASK_LEDGER_PLAN_UPDATE_PROMPT,
    "ledger": framework.ORCHESTRATOR_PROGRESS_LEDGER_PROMPT,
    "answer": framework.ORCHESTRATOR_FINAL_ANSWER_PROMPT,
    "whole_plan": framework.ORCHESTRATOR_TASK_LEDGER_FULL_PROMPT,
}
_FILES = re.compile(
    rf"^{HEADING}\n(?P<files>(?:- .*(?:\n|\Z))+)(?:Texts can also be queried: .*(?:\n|\Z))?", re.M
)
# How an instruction stands in the task of a fork, and in its history.
_INSTRUCTION = re.compile(r"\[Instruction added by the user[^\]]*\]|NEW INSTRUCTION from the user:")
_BLOCK = re.compile(
    r"^(?:\*\*(?P<title>[^\n]+?)\.\*\*[^\n]*\n+)?"
    r"(?P<fence>`{3,})(?P<kind>sql|python|json)\n(?P<code>.*?)\n(?P=fence)$",
    re.M | re.S,
)


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One of the framework's prompts to the manager, and what was filled into it."""

    kind: str
    fields: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Block:
    """One thing to do: SQL, Python, or another tool's call as JSON. `key` tells it from others."""

    title: str
    kind: str
    code: str

    @property
    def key(self) -> tuple[str, str]:
        return self.kind, self.code

    @property
    def markdown(self) -> str:
        longest = max((len(run) for run in re.findall(r"`+", self.code)), default=0)
        fence = "`" * max(3, longest + 1)
        return f"{fence}{self.kind}\n{self.code}\n{fence}"


@dataclass(frozen=True, kw_only=True)
class File:
    """A line of the paragraph that tells what is attached. `tables` is empty for a text."""

    name: str
    table: str
    facts: str


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """Everything the manager knows. `results` holds what the agents replied to blocks, by key."""

    task: str
    instructions: tuple[str, ...]
    files: tuple[File, ...]
    team: dict[str, str]
    results: dict[tuple[str, str], str]
    rounds: int

    @property
    def texts(self) -> list[File]:
        return [file for file in self.files if not file.table]

    def agents_with(self, tool: str) -> list[str]:
        """The agents whose description names the tool, in the team's order."""
        return [name for name, about in self.team.items() if re.search(rf"\b{tool}\b", about)]


def recognise(messages: Sequence[Message]) -> Prompt | None:
    """The framework's prompt that these messages end with; None when they speak to an agent."""
    return recognise_text(messages[-1].text) if messages and messages[-1].role == "user" else None


def recognise_text(text: str) -> Prompt | None:
    for kind, pattern in _patterns().items():
        if match := pattern.fullmatch(text.strip()):
            return Prompt(kind=kind, fields=match.groupdict())
    return None


def read(messages: Sequence[Message], prompt: Prompt) -> Conversation:
    """The conversation before `prompt`."""
    prompts = [found for message in messages if (found := _prompt_of(message))]
    fields = {key: value for found in (*prompts, prompt) for key, value in found.fields.items()}
    history = [message for message in messages[:-1] if not _prompt_of(message)]
    request = fields.get("task") or (history[0].text if history else "")
    task, files, amendments = _split(request)
    turns = _turns(history)
    return Conversation(
        task=task,
        instructions=_instructions(request, amendments, history),
        files=files,
        team=_team(fields.get("team", ""), fields.get("names", "")),
        results={key: result for _, results in turns for key, result in results.items()},
        rounds=len(turns),
    )


def blocks(text: str) -> list[Block]:
    """The things to do that an instruction carries."""
    return [
        Block(title=found["title"] or "Result", kind=found["kind"], code=found["code"])
        for found in _BLOCK.finditer(text)
    ]


def heading(block: Block) -> str:
    """The line over the result of a block in an agent's reply."""
    return f"### {block.title}"


@cache
def _patterns() -> dict[str, re.Pattern[str]]:
    return {kind: _pattern(prompt) for kind, prompt in _PROMPTS.items()}


def _pattern(prompt: str) -> re.Pattern[str]:
    """What a prompt looks like once filled in; a field that occurs twice is the same twice."""
    parts: list[str] = []
    seen: set[str] = set()
    for text, field, _, _ in Formatter().parse(prompt.strip()):
        parts.append(re.escape(text))
        if field:
            parts.append(f"(?P={field})" if field in seen else f"(?P<{field}>.*)")
            seen.add(field)
    return re.compile("".join(parts), re.S)


def _prompt_of(message: Message) -> Prompt | None:
    return None if message.role == "system" else recognise_text(message.text)


def _split(request: str) -> tuple[str, tuple[File, ...], str]:
    """The user's own words, the files attached to them, and what was added later."""
    paragraphs = list(_FILES.finditer(request))
    if not paragraphs:
        first = _INSTRUCTION.search(request)
        end = first.start() if first else len(request)
        return request[:end].strip(), (), request[end:]
    found = paragraphs[-1]  # the user's own words may hold the same heading
    files = tuple(_file(line) for line in found["files"].splitlines())
    return request[: found.start()].strip(), files, request[found.end() :]


def _file(line: str) -> File:
    found = re.match(r"- (?P<name>.*?): (?:table (?P<table>\w+)|text), (?P<facts>.*)", line)
    if found is None:
        return File(name=line.removeprefix("- "), table="", facts="")
    return File(name=found["name"], table=found["table"] or "", facts=found["facts"])


def _instructions(request: str, amendments: str, history: Iterable[Message]) -> tuple[str, ...]:
    """What the user said after the task, oldest first, each once.

    A fork says it twice: in the task, which survives a reset, and in the history.
    """
    said = [part.strip() for part in _INSTRUCTION.split(amendments)]
    users = [message.text.strip() for message in history if message.role == "user"]
    later = [_INSTRUCTION.sub("", text).strip() for text in users if not request.startswith(text)]
    return tuple(dict.fromkeys(part for part in (*said, *later) if part))


def _team(block: str, names: str) -> dict[str, str]:
    """Descriptions by name. One may have several lines; `names` tells where the next begins."""
    known = [re.escape(name) for name in names.split(", ") if name]
    name = "|".join(known) or r"[^:\n]+"
    parts = re.split(rf"^- ({name}): ", block, flags=re.M)[1:]
    return dict(zip(parts[::2], (part.strip() for part in parts[1::2]), strict=True))


def _turns(history: Iterable[Message]) -> list[tuple[list[Block], dict[tuple[str, str], str]]]:
    """The manager's instructions in order, each with its agent's results; none when unanswered."""
    turns: list[tuple[list[Block], dict[tuple[str, str], str]]] = []
    for message in history:
        if message.role != "assistant" or not message.text.strip():
            continue
        if message.author_name != framework.MAGENTIC_MANAGER_NAME:
            if turns and not turns[-1][1]:
                turns[-1][1].update(_results(turns[-1][0], message.text))
        elif found := blocks(message.text):
            turns.append((found, {}))
    return turns


def _results(asked: Sequence[Block], reply: str) -> dict[tuple[str, str], str]:
    """The part of the reply under each block's heading, or all of it when it has none."""
    results = {}
    rest = f"\n{reply.strip()}\n"
    for place, block in enumerate(asked):
        rest = rest.partition(f"\n{heading(block)}\n")[2] or rest
        following = asked[place + 1] if place + 1 < len(asked) else None
        part = rest.partition(f"\n{heading(following)}\n")[0] if following else rest
        results[block.key] = part.strip()
    return results


def tool_of(block: Block) -> str:
    """The tool that does what the block says."""
    if block.kind == "json":
        return next((name for name in TOOLS if f'"{name}"' in block.code), "")
    return {"sql": "query_tables", "python": "run_python"}[block.kind]

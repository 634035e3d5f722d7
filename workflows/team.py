"""`Team`: the agents, their models, tools and limits, read from `workflow.yaml`.

Every problem in the file is collected, not only the first, and each names file, line, key and fix.
`docs/reference/team-file.md` describes the keys.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from .events import redact

MAX_FILE_BYTES = 256 * 1024
MANAGER = "manager"
OFFLINE_MODEL = "offline"
"""The value of `model` that asks for the rule-based planner, whatever the environment says."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,39}")
_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]{0,99}")
_RESERVED_NAMES = {MANAGER, "orchestrator", "magentic_manager", "magentic_orchestrator", "user"}

type Operation = Literal[
    "code_execution",
    "file_operations",
    "external_api_calls",
    "sensitive_data_access",
    "web_search",
    "data_analysis",
]
type _Path = tuple[str | int, ...]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing wrong in the team file. `line` counts from 1; 0 stands for the file as a whole."""

    file: str
    line: int
    key: str
    message: str
    fix: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        subject = f"{self.key} " if self.key else ""
        return f"{place}: {subject}{self.message} {self.fix}"


class TeamError(Exception):
    """The team file cannot be used. `problems` holds every reason, in the order of the lines."""

    def __init__(self, problems: Collection[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=lambda problem: problem.line))
        super().__init__("\n".join(map(str, self.problems)))


def _refusal(message: str, fix: str) -> PydanticCustomError:
    return PydanticCustomError("team", "{message}", {"message": message, "fix": fix})


def _check_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise _refusal(
            "is not a name for an agent.",
            "Begin with a letter; use letters, digits, _ and -, at most 40 in all.",
        )
    if name.lower() in _RESERVED_NAMES:
        raise _refusal(
            "is a name that the engine uses itself.",
            "Describe the manager under fleet.manager, and give this agent another name.",
        )
    return name


def _check_tool(tool: str, info: ValidationInfo) -> str:
    known = (info.context or {}).get("known_tools")
    if known is not None and tool not in known:
        raise _refusal(f"names no tool: {redact(tool)!r}.", _suggestion(tool, known))
    return tool


def _check_variable(name: str) -> str:
    if name and not _VARIABLE.fullmatch(name):
        raise _refusal(
            "is not the name of an environment variable.",
            "Put the key itself into a variable such as OPENAI_API_KEY, and write that name here.",
        )
    return name


def _check_base_url(url: str) -> str:
    if not url:
        return url
    try:
        parts = urlsplit(url)
        is_usable = parts.scheme in {"http", "https"} and bool(parts.hostname)
        has_credentials = parts.username is not None or parts.password is not None
    except ValueError:
        is_usable, has_credentials = False, False
    if has_credentials:
        raise _refusal(
            "carries a user name or password.",
            "Put the key into an environment variable and name it in api_key_env.",
        )
    if not is_usable:
        raise _refusal(
            "is not the address of a server.", "Write one such as http://localhost:11434/v1."
        )
    return url


def _check_storage_path(path: str) -> str:
    if "://" in path and "@" in path:
        raise _refusal(
            "carries a user name or password.",
            "Put the whole URL into FLEET_REDIS_URL, and leave this key out.",
        )
    return path


def _review(value: Any) -> Any:
    """`plan_review: true` is short for both of its keys."""
    if isinstance(value, bool):
        return {"enabled": value, "require_human_approval": value}
    if isinstance(value, dict | _PlanReviewSection):
        return value
    raise _refusal("must say whether a person approves each plan.", "Write true or false.")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _empty_section_is_all_defaults(cls, data: Any) -> Any:
        return {} if data is None else data


class Limits(_Section):
    """When a run stops by itself. `max_rounds` counts along the whole line, forks included."""

    max_rounds: StrictInt = Field(default=20, ge=1, le=1000)
    max_stalls: StrictInt = Field(default=3, ge=0, le=100)
    max_resets: StrictInt = Field(default=2, ge=0, le=20)
    timeout_seconds: StrictInt = Field(default=1800, ge=1, le=604_800)


class Checkpointing(_Section):
    enabled: StrictBool = True
    storage_type: Literal["database", "file", "memory", "redis", "cosmos"] = "database"
    storage_path: Annotated[StrictStr, AfterValidator(_check_storage_path)] = "./checkpoints"
    cleanup_after_days: StrictInt = Field(default=30, ge=0, le=36_500)
    auto_resume_on_failure: StrictBool = False

    def location(self, folder: Path) -> str:
        """Where state goes: below `folder`, at a URL, or "" for where the settings have it."""
        if self.storage_type == "file":
            return str(folder / self.storage_path) if self.storage_path else ""
        return self.storage_path if "://" in self.storage_path else ""


class HumanInTheLoop(_Section):
    enabled: StrictBool = False
    approval_timeout_seconds: StrictInt = Field(default=300, ge=1, le=31_536_000)
    auto_reject_on_timeout: StrictBool = False
    require_approval_for: tuple[Operation, ...] = ()
    trusted_operations: tuple[Operation, ...] = ()

    @model_validator(mode="after")
    def _no_operation_is_both(self) -> HumanInTheLoop:
        both = sorted(set(self.require_approval_for) & set(self.trusted_operations))
        if both:
            raise _refusal(
                f"lists {both[0]} both under require_approval_for and under trusted_operations.",
                "Keep it in one of the two.",
            )
        return self

    def needs_approval(self, operation: str) -> bool:
        """Whether a tool that does `operation` must wait for a person."""
        return self.enabled and operation in self.require_approval_for


class Price(_Section):
    """USD per million tokens."""

    input: Decimal = Field(ge=0, le=1_000_000)
    output: Decimal = Field(ge=0, le=1_000_000)


class _AgentKeys(_Section):
    description: StrictStr = Field(default="", max_length=1000)
    model: StrictStr = Field(default="", max_length=200)
    base_url: Annotated[StrictStr, AfterValidator(_check_base_url)] = ""
    api_key_env: Annotated[StrictStr, AfterValidator(_check_variable)] = ""
    temperature: Annotated[float, Field(strict=True, ge=0, le=2)] | None = None
    instructions: StrictStr = Field(default="", max_length=20_000)
    tools: tuple[Annotated[StrictStr, AfterValidator(_check_tool)], ...] = ()


class Agent(_AgentKeys):
    """One member of the team.

    An empty `model` or `base_url` leaves the choice to the environment. `api_key_env` names the
    variable that holds the key, and is never the key.
    """

    name: StrictStr


class Team(_Section):
    """Who works, with what, and for how long. `model_dump(mode="json")` holds no keys."""

    manager: Agent
    agents: tuple[Agent, ...] = Field(min_length=1)
    limits: Limits = Limits()
    checkpointing: Checkpointing = Checkpointing()
    human_in_the_loop: HumanInTheLoop = HumanInTheLoop()
    plan_review: bool = False
    prices: Mapping[str, Price] = {}


class _WorkflowSection(Limits):
    # The predecessor kept these two inside `workflow`; both places are read.
    checkpointing: Checkpointing | None = None
    human_in_the_loop: HumanInTheLoop | None = None


class _OrchestratorSection(_Section):
    """The framework's own names for three of the limits."""

    max_round_count: StrictInt | None = Field(default=None, ge=1, le=1000)
    max_stall_count: StrictInt | None = Field(default=None, ge=0, le=100)
    max_reset_count: StrictInt | None = Field(default=None, ge=0, le=20)

    def limits(self) -> dict[str, int]:
        named = {
            "max_rounds": self.max_round_count,
            "max_stalls": self.max_stall_count,
            "max_resets": self.max_reset_count,
        }
        return {name: value for name, value in named.items() if value is not None}


class _PlanReviewSection(_Section):
    enabled: StrictBool = False
    require_human_approval: StrictBool = True


class _FleetSection(_Section):
    manager: _AgentKeys = _AgentKeys()
    orchestrator: _OrchestratorSection = _OrchestratorSection()
    plan_review: Annotated[_PlanReviewSection, BeforeValidator(_review)] = _PlanReviewSection()


class _TeamFile(_Section):
    """The file's own shape, so that the place of an error in it is the place in the file."""

    workflow: _WorkflowSection = _WorkflowSection()
    checkpointing: Checkpointing | None = None
    human_in_the_loop: HumanInTheLoop | None = None
    fleet: _FleetSection = _FleetSection()
    agents: dict[Annotated[str, AfterValidator(_check_name)], _AgentKeys] = Field(min_length=1)
    prices: dict[str, Price] = {}

    @model_validator(mode="after")
    def _names_differ_in_more_than_case(self) -> _TeamFile:
        seen: dict[str, str] = {}
        for name in self.agents:
            if other := seen.get(name.lower()):
                raise _refusal(
                    f"has two agents of one name: {other} and {name}.", "Rename one of them."
                )
            seen[name.lower()] = name
        return self

    @model_validator(mode="after")
    def _people_are_waited_for_at_checkpoints(self) -> _TeamFile:
        team = self.team()
        asks = team.plan_review or (
            team.human_in_the_loop.enabled and team.human_in_the_loop.require_approval_for
        )
        if asks and not team.checkpointing.enabled:
            raise _refusal(
                "asks people for approval, but checkpointing is off: a run waits at a checkpoint.",
                "Set checkpointing.enabled to true, or ask for no approval.",
            )
        return self

    @model_validator(mode="after")
    def _nothing_is_said_twice(self) -> _TeamFile:
        for name in ("checkpointing", "human_in_the_loop"):
            if getattr(self, name) and getattr(self.workflow, name):
                raise _refusal(
                    f"has {name} both at the top and under workflow.", "Keep one of the two."
                )
        for name in self.fleet.orchestrator.limits():
            if name in self.workflow.model_fields_set:
                raise _refusal(
                    f"sets {name} under workflow and again under fleet.orchestrator.",
                    "Keep the one under workflow.",
                )
        return self

    def team(self) -> Team:
        limits = self.workflow.model_dump(include=set(Limits.model_fields))
        review = self.fleet.plan_review
        return Team(
            manager=_named(MANAGER, self.fleet.manager),
            agents=tuple(_named(name, keys) for name, keys in self.agents.items()),
            limits=Limits(**limits | self.fleet.orchestrator.limits()),
            checkpointing=self.checkpointing or self.workflow.checkpointing or Checkpointing(),
            human_in_the_loop=self.human_in_the_loop
            or self.workflow.human_in_the_loop
            or HumanInTheLoop(),
            plan_review=review.enabled and review.require_human_approval,
            prices=self.prices,
        )


def _named(name: str, keys: _AgentKeys) -> Agent:
    return Agent(name=name, **keys.model_dump())


def load_team(path: Path, *, known_tools: Collection[str] | None = None) -> Team:
    """Read and check the team file. Raises `TeamError` with every problem found.

    `known_tools` are the names that agents may use; None accepts any.
    """
    reader = _Reader(path.name)
    data = reader.read(path)
    if reader.problems and not isinstance(data, dict):
        raise TeamError(reader.problems)
    try:
        file = _TeamFile.model_validate(data, context={"known_tools": known_tools})
    except ValidationError as error:
        reader.problems += [reader.translate(detail) for detail in error.errors()]
    if reader.problems:
        raise TeamError(reader.problems)
    return file.team()


class _RefusingLoader(yaml.SafeLoader):
    """YAML without aliases: a few lines of them can unfold to gigabytes."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not read", problem_mark=mark)
        return super().compose_node(parent, index)


class _Reader:
    """Reads one file into plain data, remembering the line of every key."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[Problem] = []
        self.lines: dict[_Path, int] = {}

    def read(self, path: Path) -> Any:
        """Return the file as plain data, or None after noting why it can't be read."""
        text = self._text(path)
        if text is None:
            return None
        try:
            return self._parse(text)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = mark.line + 1 if mark else 0
            self._note(line, (), f"is not valid YAML: {error.problem}.", "Correct this line.")
        except yaml.YAMLError:
            self._note(0, (), "is not valid YAML.", "Remove characters that are not text.")
        except RecursionError:
            self._note(0, (), "is nested too deeply.", "A team file needs four levels at most.")
        return None

    def translate(self, detail: ErrorDetails) -> Problem:
        """A validation error as a problem with its line and fix."""
        path = tuple(part for part in detail["loc"] if part != "[key]")
        message, fix = _explain(detail, path)
        return Problem(
            file=self.file, line=self._line(path), key=_dotted(path), message=message, fix=fix
        )

    def _text(self, path: Path) -> str | None:
        try:
            with path.open("rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            reason = error.strerror or "cannot be read"
            fix = f"Put a team file at {path}, or name another one in FLEET_TEAM_FILE."
            self._note(0, (), f"cannot be read: {reason}.", fix)
            return None
        if len(content) > MAX_FILE_BYTES:
            fix = f"A team file has at most {MAX_FILE_BYTES // 1024} KB."
            self._note(0, (), "is too large.", fix)
            return None
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            self._note(line, (), "is not UTF-8 text.", "Save the file as UTF-8.")
            return None

    def _parse(self, text: str) -> Any:
        loader = _RefusingLoader(text)
        try:
            root = loader.get_single_node()
            return {} if root is None else self._plain(loader, root, ())
        finally:
            loader.dispose()

    def _plain(self, loader: yaml.SafeLoader, node: yaml.Node, path: _Path) -> Any:
        self.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return dict(self._pairs(loader, node, path))
        if isinstance(node, yaml.SequenceNode):
            return [
                self._plain(loader, item, (*path, index)) for index, item in enumerate(node.value)
            ]
        return self._scalar(loader, node, path)

    def _pairs(
        self, loader: yaml.SafeLoader, node: yaml.MappingNode, path: _Path
    ) -> Iterator[tuple[str, Any]]:
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self._note(line, path, "has a key that is not a word.", "Write plain keys.")
                continue
            key = str(key_node.value)
            inner = (*path, key)
            if inner in self.lines:
                self._note(
                    line,
                    inner,
                    f"is there twice; first in line {self.lines[inner]}.",
                    "Keep one of the two.",
                )
                continue
            self.lines[inner] = line
            yield key, self._plain(loader, value_node, inner)

    def _scalar(self, loader: yaml.SafeLoader, node: yaml.Node, path: _Path) -> Any:
        if redact(node.value) != node.value:
            self._note(
                node.start_mark.line + 1,
                path,
                "looks like a key or password.",
                "Put it into an environment variable and name that in api_key_env; "
                "then replace the key at its provider.",
            )
            return ""
        try:
            value = loader.construct_object(node)
        except ValueError:  # such as the date 2026-13-45
            return node.value
        # YAML makes dates out of text that looks like one; no key here holds a date.
        return node.value if isinstance(value, date | datetime | bytes) else value

    def _line(self, path: _Path) -> int:
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 0) if path else 0

    def _note(self, line: int, path: _Path, message: str, fix: str) -> None:
        self.problems.append(
            Problem(file=self.file, line=line, key=_dotted(path), message=message, fix=fix)
        )


def _explain(detail: ErrorDetails, path: _Path) -> tuple[str, str]:
    """What is wrong, and the fix, in the reader's words rather than the validator's."""
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "team":
        return context["message"], context["fix"]
    if kind == "extra_forbidden":
        return "is not a known key.", _known_keys(path)
    given = _shown(detail["input"])
    if kind not in _EXPLANATIONS:
        return f"cannot be {given}.", f"{detail['msg']}."
    message, fix = _EXPLANATIONS[kind]
    return message.format(given=given, **context), fix.format(**context)


_EXPLANATIONS = {
    "missing": ("is missing.", "Add it."),
    "too_short": ("is empty.", "Describe at least one."),
    "model_type": ("must hold keys of its own.", "Write them below it, indented by two spaces."),
    "dict_type": ("must hold keys of its own.", "Write them below it, indented by two spaces."),
    "tuple_type": ("must be a list.", "Write it as [first, second]."),
    "less_than_equal": ("is too large: {given}.", "Write {le} or less."),
    "greater_than_equal": ("is too small: {given}.", "Write {ge} or more."),
    "string_too_long": ("is too long.", "Write at most {max_length} characters."),
    "literal_error": ("cannot be {given}.", "Choose {expected}."),
    "int_type": ("cannot be {given}.", "Write a whole number without quotes."),
    "float_type": ("cannot be {given}.", "Write a number without quotes."),
    "bool_type": ("cannot be {given}.", "Write true or false without quotes."),
    "string_type": ("cannot be {given}.", "Write text, in quotes if it looks like a number."),
}


def _shown(value: Any) -> str:
    if value is None:
        return "empty"
    if isinstance(value, str | int | float | bool) and len(str(value)) <= 60:
        return repr(value)
    return "this"


def _known_keys(path: _Path) -> str:
    name = str(path[-1])
    if name in {"api_key", "key", "apikey", "token", "password"}:
        return "Put the key into an environment variable and name it in api_key_env."
    return _suggestion(name, _keys_of_section(path[:-1]))


def _keys_of_section(path: _Path) -> Collection[str]:
    kind: Any = _TeamFile
    for part in path:
        if isinstance(kind, type) and issubclass(kind, _Section):
            kind = kind.model_fields[str(part)].annotation
            choices = [choice for choice in get_args(kind) if choice is not NoneType]
            kind = choices[0] if len(choices) == 1 else kind
        else:
            kind = get_args(kind)[-1]  # the value of a mapping: the part is its key
    return tuple(kind.model_fields)


def _suggestion(name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"Did you mean {close[0]}?"
    return f"Known here: {', '.join(sorted(known))}."


def _dotted(path: _Path) -> str:
    """`agents.coder.tools[2]`, as people write it."""
    text = ""
    for part in path:
        text += f"[{part + 1}]" if isinstance(part, int) else f".{redact(part)}"
    return text.removeprefix(".")

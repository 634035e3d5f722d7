from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from workflows.team import MAX_FILE_BYTES, Problem, Team, TeamError, load_team

ROOT = Path(__file__).resolve().parent.parent.parent
TOOLS = {"query_tables", "list_tables", "run_python", "search_text", "read_text"}
AGENTS = "agents:\n  coder:\n    description: Computes.\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "workflow.yaml"


def read(file: Path, text: str, **options: Any) -> Team:
    file.write_text(text)
    return load_team(file, **{"known_tools": TOOLS} | options)


def problems(file: Path, text: str) -> tuple[Problem, ...]:
    with pytest.raises(TeamError) as caught:
        read(file, text)
    return caught.value.problems


def problem(file: Path, text: str) -> str:
    (only,) = problems(file, text)
    return str(only)


# What a good file gives


def test_it_reads_the_projects_own_file() -> None:
    team = load_team(ROOT / "workflow.yaml", known_tools=TOOLS)

    assert [agent.name for agent in team.agents] == ["researcher", "coder", "analyst"]
    assert team.manager.name == "manager"
    assert all(agent.instructions and agent.description for agent in team.agents)


def test_it_comes_back_equal_from_its_json(file: Path) -> None:
    prices = "prices:\n  mine: {input: 0.5, output: 1.5}\n"
    team = read(file, AGENTS + prices)

    assert Team.model_validate(team.model_dump(mode="json")) == team


def test_it_fills_in_defaults_for_what_is_left_out(file: Path) -> None:
    team = read(file, AGENTS)

    assert team.limits.max_rounds == 20
    assert team.checkpointing.enabled
    assert not team.human_in_the_loop.enabled
    assert not team.plan_review


def test_it_takes_an_empty_section_as_left_out(file: Path) -> None:
    team = read(file, "workflow:\nfleet:\n  manager:\n" + AGENTS)

    assert team == read(file, AGENTS)


def test_it_reads_the_two_sections_inside_workflow_as_well(file: Path) -> None:
    team = read(
        file,
        "workflow:\n  checkpointing: {enabled: false}\n"
        "  human_in_the_loop: {enabled: true}\n" + AGENTS,
    )

    assert not team.checkpointing.enabled
    assert team.human_in_the_loop.enabled


@pytest.mark.parametrize(
    "asks",
    [
        "fleet: {plan_review: true}\n",
        "human_in_the_loop: {enabled: true, require_approval_for: [code_execution]}\n",
    ],
)
def test_it_refuses_approvals_without_checkpoints(file: Path, asks: str) -> None:
    said = problem(file, "checkpointing: {enabled: false}\n" + asks + AGENTS)

    assert "a run waits at a checkpoint" in said


def test_it_takes_limits_under_the_frameworks_names(file: Path) -> None:
    team = read(file, "fleet:\n  orchestrator: {max_round_count: 7}\n" + AGENTS)

    assert team.limits.max_rounds == 7


@pytest.mark.parametrize(
    ("written", "is_reviewed"),
    [
        ("true", True),
        ("false", False),
        ("{enabled: true, require_human_approval: true}", True),
        ("{enabled: true, require_human_approval: false}", False),
    ],
)
def test_it_reads_both_forms_of_plan_review(file: Path, written: str, is_reviewed: bool) -> None:
    team = read(file, f"fleet:\n  plan_review: {written}\n" + AGENTS)

    assert team.plan_review is is_reviewed


def test_it_asks_for_approval_of_the_listed_operations_alone(file: Path) -> None:
    rules = "human_in_the_loop: {enabled: true, require_approval_for: [code_execution]}\n"
    rules = read(file, rules + AGENTS).human_in_the_loop

    assert rules.needs_approval("code_execution")
    assert not rules.needs_approval("data_analysis")


# What a wrong file says


def test_it_names_file_line_key_and_fix(file: Path) -> None:
    (found,) = problems(file, "workflow:\n  max_round: 5\n" + AGENTS)

    assert found == Problem(
        file="workflow.yaml",
        line=2,
        key="workflow.max_round",
        message="is not a known key.",
        fix="Did you mean max_rounds?",
    )
    assert str(found) == (
        "workflow.yaml:2: workflow.max_round is not a known key. Did you mean max_rounds?"
    )


def test_it_collects_every_problem_in_the_order_of_the_lines(file: Path) -> None:
    found = problems(
        file,
        "prices:\n  m: {input: -1, output: 1}\n"
        "workflow:\n  max_stalls: many\n  max_stalls: 2\n"
        "agents:\n  coder:\n    tools: [nope]\n",
    )

    assert [item.line for item in found] == [2, 4, 5, 8]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("workflow: {max_rounds: '5'}", "max_rounds cannot be '5'. Write a whole number"),
        ("workflow: {max_rounds: 0}", "max_rounds is too small: 0. Write 1 or more."),
        ("workflow: {max_resets: 99}", "max_resets is too large: 99. Write 20 or less."),
        ("workflow: {timeout_seconds: yes}", "timeout_seconds cannot be True."),
        ("checkpointing: {enabled: 1}", "enabled cannot be 1. Write true or false"),
        ("checkpointing: {storage_type: disk}", "cannot be 'disk'. Choose 'database', 'file', "),
        ("checkpointing: on", "checkpointing must hold keys of its own."),
        ("fleet: {plan_review: maybe}", "fleet.plan_review must say whether"),
        ("fleet: {manager: {temperature: 3}}", "temperature is too large: 3. Write 2.0 or less."),
        ("prices: {m: {input: 1}}", "prices.m.output is missing. Add it."),
        ("prices: {m: {input: .nan, output: 1}}", "prices.m.input cannot be nan."),
        ("other: 1", "other is not a known key. Known here: agents, checkpointing, fleet"),
    ],
)
def test_it_explains_a_wrong_value(file: Path, text: str, expected: str) -> None:
    assert expected in problem(file, f"{text}\n{AGENTS}")


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("{tools: [query_table]}", "tools[1] names no tool: 'query_table'. Did you mean"),
        ("{tools: query_tables}", "tools must be a list. Write it as [first, second]."),
        ("{base_url: localhost}", "base_url is not the address of a server."),
        ("{base_url: 'http://[::1'}", "base_url is not the address of a server."),
        ("{instructions: 5}", "instructions cannot be 5. Write text"),
        ("{modle: x}", "agents.coder.modle is not a known key. Did you mean model?"),
        ("{api_key: x}", "Put the key into an environment variable"),
        ("{api_key_env: my key}", "api_key_env is not the name of an environment variable."),
        ("7", "agents.coder must hold keys of its own."),
    ],
)
def test_it_explains_a_wrong_agent(file: Path, keys: str, expected: str) -> None:
    assert expected in problem(file, f"agents:\n  coder: {keys}\n")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("  coder:\n  coder:\n", "agents.coder is there twice; first in line 2."),
        ("  coder:\n  Coder:\n", "has two agents of one name: coder and Coder."),
        ("  manager:\n", "Describe the manager under fleet.manager"),
        ("  magentic_manager:\n", "is a name that the engine uses itself."),
        ("  two words:\n", "agents.two words is not a name for an agent."),
        ("  {}\n", "agents is empty. Describe at least one."),
    ],
)
def test_it_refuses_names_that_cannot_work(file: Path, names: str, expected: str) -> None:
    assert expected in problem(file, f"agents:\n{names}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("checkpointing: {}\nworkflow: {checkpointing: {}}\n", "both at the top and under"),
        (
            "workflow: {max_rounds: 3}\nfleet: {orchestrator: {max_round_count: 4}}\n",
            "sets max_rounds under workflow and again under fleet.orchestrator.",
        ),
        (
            "human_in_the_loop: {require_approval_for: [web_search],"
            " trusted_operations: [web_search]}\n",
            "lists web_search both under",
        ),
    ],
)
def test_it_refuses_to_be_told_two_things(file: Path, text: str, expected: str) -> None:
    assert expected in problem(file, text + AGENTS)


def test_it_accepts_any_tool_when_it_is_told_none(file: Path) -> None:
    team = read(file, "agents:\n  coder: {tools: [of_tomorrow]}\n", known_tools=None)

    assert team.agents[0].tools == ("of_tomorrow",)


# Secrets


@pytest.mark.parametrize("key", ["api_key_env", "instructions", "model"])
def test_it_refuses_a_key_in_the_file_without_repeating_it(file: Path, key: str) -> None:
    secret = "sk-0123456789abcdefghijklmnop"

    message = problem(file, f"agents:\n  coder:\n    {key}: {secret}\n")

    assert "looks like a key or password" in message
    assert "workflow.yaml:3" in message
    assert secret not in message


def test_it_refuses_a_password_in_an_address(file: Path) -> None:
    message = problem(file, "agents:\n  coder: {base_url: 'https://me:secret@host/v1'}\n")

    assert "carries a user name or password" in message
    assert "secret" not in message


# Files that are no team file


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "agents is missing."),
        ("- 1", "must hold keys of its own."),
        ("a: [", "workflow.yaml:1: is not valid YAML"),
        ("a: 1\n---\nb: 2", "workflow.yaml:2: is not valid YAML"),
        ("? [1, 2]\n: 3\nagents: {coder: }", "has a key that is not a word."),
        ("agents: !!python/name:os.system x", "is not valid YAML"),
        ("a: &x [1]\nb: *x", "workflow.yaml:2: is not valid YAML: aliases (*name) are not read"),
        ("[" * 50_000, "is nested too deeply."),
        ("\x00", "is not valid YAML."),
        ("#" * (MAX_FILE_BYTES + 1), "is too large."),
    ],
)
def test_it_refuses_a_file_that_is_not_one(file: Path, text: str, expected: str) -> None:
    assert expected in problem(file, text)


def test_it_refuses_a_file_that_is_not_text(file: Path) -> None:
    file.write_bytes(b"workflow:\n  \xff\xfe")

    with pytest.raises(TeamError, match=r"workflow.yaml:2: is not UTF-8 text"):
        load_team(file)


def test_it_says_how_to_provide_a_missing_file(file: Path) -> None:
    with pytest.raises(TeamError, match="name another one in FLEET_TEAM_FILE"):
        load_team(file)

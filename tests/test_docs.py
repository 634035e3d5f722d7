"""The documents say what is there, all of it, and their links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.apps import apps
from django.core.management import find_commands

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "docs" / "reference"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
SOURCES = [
    path
    for folder in ("fleet_site", "workflows", "checkpoints_app", "tests", "tools")
    for path in sorted((ROOT / folder).rglob("*.py"))
]


def variables_read() -> set[str]:
    """Names read from the environment, ours and those of the model clients."""
    reading = re.compile(r'(?:environ(?:\.get\(|\[)|getenv\(|_env_\w+\()\s*"([A-Z][A-Z0-9_]+)"')
    return {name for path in SOURCES for name in reading.findall(path.read_text())}


def keys_of_team_file() -> set[str]:
    data = yaml.safe_load((ROOT / "workflow.yaml").read_text())
    agents = data.pop("agents")
    return {*keys_in(data), *(key for agent in agents.values() for key in agent)}


def keys_in(data: dict[str, Any]) -> set[str]:
    inner = [keys_in(value) for value in data.values() if isinstance(value, dict)]
    return set(data).union(*inner)


def commands() -> set[str]:
    ours = [apps.get_app_config(name) for name in ("workflows", "checkpoints_app")]
    return {name for app in ours for name in find_commands(str(Path(app.path) / "management"))}


def links(document: Path) -> list[str]:
    text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
    found = re.findall(r"\]\(([^)\s]+)\)", text)
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def headings(document: Path) -> set[str]:
    """The anchors that the document's headings make."""
    titles = re.findall(r"^#+ (.+)$", document.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_it_documents_every_variable_that_is_read() -> None:
    text = (REFERENCE / "settings.md").read_text()

    assert {name for name in variables_read() if f"`{name}`" not in text} == set()


def test_it_documents_no_variable_that_nothing_reads() -> None:
    documented = set(re.findall(r"^\| `([A-Z_]+)`", (REFERENCE / "settings.md").read_text(), re.M))
    elsewhere = "".join(path.read_text() for path in [*SOURCES, ROOT / ".ci" / "run"])

    assert {name for name in documented if name not in elsewhere} == set()


def test_it_documents_every_command() -> None:
    assert {f"## {name}" for name in commands()} <= set(
        (REFERENCE / "commands.md").read_text().splitlines()
    )


def test_it_documents_every_make_target() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    text = (REFERENCE / "commands.md").read_text()

    assert [target for target in targets if f"`make {target}`" not in text] == ["help"]


def test_it_documents_every_key_of_the_team_file() -> None:
    text = (REFERENCE / "team-file.md").read_text()

    assert {key for key in keys_of_team_file() if key not in text} == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_it_links_to_what_exists(document: Path) -> None:
    broken = []
    for link in links(document):
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        if not target.exists() or (anchor and anchor not in headings(target)):
            broken.append(link)

    assert broken == []

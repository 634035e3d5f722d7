"""Reads every import and enforces the layers of docs/architecture.md."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Imports go down or sideways, never up. A module is listed once, with what lies below it.
LAYERS = {
    4: ["fleet_site"],
    3: [
        "workflows.access",
        "workflows.admin",
        "workflows.apps",
        "workflows.consumers",
        "workflows.forms",
        "workflows.management",
        "workflows.routing",
        "workflows.templatetags",
        "workflows.urls",
        "workflows.views",
        "checkpoints_app.admin",
        "checkpoints_app.apps",
        "checkpoints_app.management",
    ],
    2: [
        "workflows.attachments",
        "workflows.dispatch",
        "workflows.engine",
        "workflows.live",
        "workflows.reader",
        "workflows.recorder",
        "workflows.runner",
        "workflows.services",
        "workflows.transcript",
        "checkpoints_app.adapters",
        "checkpoints_app.archive",
        "checkpoints_app.copying",
        "checkpoints_app.inspection",
        "checkpoints_app.marks",
        "checkpoints_app.predecessor",
        "checkpoints_app.retention",
        "checkpoints_app.search",
        "checkpoints_app.store",
        "checkpoints_app.walk",
    ],
    1: [
        "workflows.migrations",
        "workflows.models",
        "checkpoints_app.audit",
        "checkpoints_app.backends",
        "checkpoints_app.fulltext",
        "checkpoints_app.locks",
        "checkpoints_app.migrations",
        "checkpoints_app.models",
        "checkpoints_app.threads",
    ],
    0: [
        "workflows.events",
        "workflows.markdown",
        "workflows.pricing",
        "workflows.team",
        "checkpoints_app.bundle",
        "checkpoints_app.chunks",
        "checkpoints_app.codec",
        "checkpoints_app.diff",
        "checkpoints_app.disk_set",
        "checkpoints_app.errors",
        "checkpoints_app.lineage",
        "checkpoints_app.messages",
    ],
}
LAYER_OF = {module: layer for layer, modules in LAYERS.items() for module in modules}

# Packages that only these modules, and what lies below them, may import.
CONFINED = {
    "agent_framework": ["workflows.engine", "checkpoints_app.adapters.agent_framework"],
    "agent_framework_openai": ["workflows.engine"],
    "agent_framework_orchestrations": [
        "workflows.engine",
        "checkpoints_app.adapters.agent_framework",
    ],
    "openai": ["workflows.engine"],
    "redis": ["checkpoints_app.backends.redis"],
    "channels_redis": [],
    "azure": ["checkpoints_app.backends.cosmos"],
    "procrastinate": ["workflows.dispatch.procrastinate"],
}
RUNS_WHAT_IT_READS = {
    "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "pickle",
    "pickletools", "shelve",
}  # fmt: skip


class Import(NamedTuple):
    path: Path
    line: int
    importer: str
    imported: str

    def __str__(self) -> str:
        place = f"{self.path.relative_to(ROOT)}:{self.line}"
        return f"{place}: {self.importer} imports {self.imported}"


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def python_files(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


def imports_in(path: Path) -> Iterator[Import]:
    """Every import in the file, those inside functions and for type checkers included."""
    importer = module_name(path)
    package = importer if path.name == "__init__.py" else importer.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        for imported in _imported(node, package):
            yield Import(path, node.lineno, importer, imported)


def _imported(node: ast.AST, package: str) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    above = package.split(".")[: len(package.split(".")) - node.level + 1]
    base = ".".join([*above, node.module or ""]).rstrip(".") if node.level else node.module or ""
    if is_ours(base) and base not in LAYER_OF:  # `from workflows import live`: which one matters
        return [f"{base}.{alias.name}" for alias in node.names]
    return [base]


def is_ours(module: str) -> bool:
    return module.partition(".")[0] in {"workflows", "checkpoints_app", "fleet_site"}


def is_within(module: str, parents: list[str]) -> bool:
    return any(module == parent or module.startswith(f"{parent}.") for parent in parents)


def layer_of(module: str) -> int | None:
    """The layer of the module or of what it lies in; None when no table names it."""
    while module:
        if module in LAYER_OF:
            return LAYER_OF[module]
        module = module.rpartition(".")[0]
    return None


OUR_FILES = [
    path
    for path in python_files("fleet_site", "workflows", "checkpoints_app")
    if module_name(path) not in {"workflows", "checkpoints_app"}
]
OUR_IMPORTS = [found for path in OUR_FILES for found in imports_in(path)]


def test_it_finds_the_imports() -> None:
    assert any(
        (found.importer, found.imported) == ("workflows.models", "workflows.events")
        for found in OUR_IMPORTS
    )


@pytest.mark.parametrize("path", OUR_FILES, ids=module_name)
def test_it_knows_the_layer_of_every_module(path: Path) -> None:
    module = module_name(path)

    assert layer_of(module) is not None, (
        f"{module} is new. Add it to its layer in LAYERS in tests/test_architecture.py, "
        "and to the codemap in docs/architecture.md."
    )


def test_it_lists_no_module_that_is_gone() -> None:
    paths = {module: ROOT / module.replace(".", "/") for module in LAYER_OF}
    gone = [
        m for m, path in paths.items() if not (path.is_dir() or path.with_suffix(".py").exists())
    ]

    assert not gone, f"Remove from LAYERS in tests/test_architecture.py: {gone}"


def test_it_imports_downwards_only() -> None:
    upwards = [
        str(found)
        for found in OUR_IMPORTS
        if is_ours(found.imported) and (layer_of(found.imported) or 0) > layer_of(found.importer)
    ]

    assert not upwards, "\n".join(upwards)


def test_it_keeps_the_checkpoint_app_free_of_the_workflows() -> None:
    wrong = [
        str(found)
        for found in OUR_IMPORTS
        if found.importer.startswith("checkpoints_app") and found.imported.startswith("workflows")
    ]

    assert not wrong, "\n".join(wrong)


def test_it_keeps_the_pure_layer_free_of_frameworks() -> None:
    wrong = [
        str(found)
        for found in OUR_IMPORTS
        if layer_of(found.importer) == 0
        and is_within(found.imported, ["django", "channels", "asgiref", "agent_framework"])
    ]

    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", CONFINED)
def test_it_confines_a_package_to_its_place(package: str) -> None:
    wrong = [
        str(found)
        for found in OUR_IMPORTS
        if is_within(found.imported, [package]) and not is_within(found.importer, CONFINED[package])
    ]

    assert not wrong, "\n".join(wrong)


def test_it_uses_nothing_that_runs_what_it_reads() -> None:
    files = python_files("fleet_site", "workflows", "checkpoints_app", "tests", "tools", "examples")
    wrong = [
        str(found)
        for path in files
        for found in imports_in(path)
        if found.imported.partition(".")[0] in RUNS_WHAT_IT_READS
    ]

    assert not wrong, "\n".join(wrong)

"""The tools that agents may be given, over the files attached to one workflow."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Protocol

from .workspace import Workspace

if TYPE_CHECKING:
    from agent_framework import FunctionTool

__all__ = ["TOOLS", "Tool", "UnknownTool", "Workspace", "build_tools", "needing_approval"]


class Tool(NamedTuple):
    """A tool's category, in the words of `human_in_the_loop`, and what a model is told about it."""

    category: str
    description: str


TOOLS = {
    "list_tables": Tool(
        "data_analysis",
        "List the attached tables: columns with type, missing and distinct values, smallest and "
        "largest value, and the most frequent values of text columns with their counts.",
    ),
    "query_tables": Tool(
        "data_analysis",
        "Run one read-only SQL query (DuckDB) over the attached tables and get a Markdown table. "
        "Put names of columns in double quotes. At most 200 rows come back.",
    ),
    "run_python": Tool(
        "code_execution",
        "Run Python without files or network. `query(sql)` gives the rows of a SQL query as a list "
        "of dicts. Of the libraries only math, datetime, json, re, collections, itertools, random "
        "and decimal can be imported. You get what is printed, then the last expression's value.",
    ),
    "search_text": Tool(
        "file_operations",
        "Find the lines of the attached texts that hold most of the given words. You get each "
        "line with its number.",
    ),
    "read_text": Tool(
        "file_operations",
        "Read lines of an attached text, from a line number on; at most 200 at a time.",
    ),
}


class UnknownTool(ValueError):
    """There is no tool of this name."""


class _NeedsApproval(Protocol):
    def needs_approval(self, operation: str) -> bool: ...


def needing_approval(human_in_the_loop: _NeedsApproval) -> frozenset[str]:
    """The tools that wait for a person, because of what they do."""
    return frozenset(
        name for name, tool in TOOLS.items() if human_in_the_loop.needs_approval(tool.category)
    )


def build_tools(
    names: Sequence[str], workspace: Workspace, *, needs_approval: frozenset[str] = frozenset()
) -> list[FunctionTool]:
    """The named tools over `workspace`, in this order. Raises `UnknownTool`.

    A tool never raises: what goes wrong comes back to the model as text that begins with "Error".
    """
    # Imported late: pages ask for the names alone, and the framework takes a second to load.
    from agent_framework import tool

    for name in names:
        if name not in TOOLS:
            raise UnknownTool(f"There is no tool named {name!r}. There are: {', '.join(TOOLS)}.")
    functions = _functions(workspace)
    return [
        tool(
            functions[name],
            name=name,
            description=TOOLS[name].description,
            approval_mode="always_require" if name in needs_approval else "never_require",
        )
        for name in names
    ]


def _functions(workspace: Workspace) -> dict[str, Callable[..., Coroutine[Any, Any, str]]]:
    async def list_tables() -> str:
        return await workspace.list_tables()

    async def query_tables(sql: Annotated[str, "One SELECT statement."]) -> str:
        return await workspace.query_tables(sql)

    async def run_python(code: Annotated[str, "The program."]) -> str:
        return await workspace.run_python(code)

    async def search_text(words: Annotated[str, "Words to look for, separated by spaces."]) -> str:
        return await workspace.search_text(words)

    async def read_text(
        name: Annotated[str, "The file's name."],
        start_line: Annotated[int, "The first line, from 1."] = 1,
        lines: Annotated[int, "How many lines."] = 100,
    ) -> str:
        return await workspace.read_text(name, start_line, lines)

    functions = (list_tables, query_tables, run_python, search_text, read_text)
    return {function.__name__: function for function in functions}

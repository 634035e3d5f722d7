from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from agent_framework import FunctionTool

from workflows.engine.tools import (
    TOOLS,
    UnknownTool,
    Workspace,
    build_tools,
    markdown,
    needing_approval,
)
from workflows.reader import Reader, ReaderError
from workflows.team import HumanInTheLoop

SALES = 'region,product,revenue\nEMEA,"a|b",10.1\nEMEA,c,0.2\n,c,\n'
NOTES = "# Plan\n\nWhales sing in the North.\nThe north is cold.\n"


@dataclass
class Attached:
    name: str
    kind: str
    path: str
    summary: dict[str, Any]


def attach(folder: Path, name: str, content: str) -> Attached:
    path = folder / f"{len(list(folder.iterdir()))}"
    path.write_text(content)
    with Reader([(name, path)]) as reader:
        summary = reader.summaries()[0]
    return Attached(name=name, kind=summary["kind"], path=str(path), summary=summary)


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    files = [attach(tmp_path, "sales.csv", SALES), attach(tmp_path, "notes.md", NOTES)]
    workspace = Workspace(files)
    yield workspace
    workspace.close()


async def call(workspace: Workspace, tool_name: str, /, **arguments: Any) -> str:
    """Call a tool as the framework does."""
    (built,) = build_tools([tool_name], workspace)
    result = await built.invoke(arguments=arguments)
    return "".join(content.text or "" for content in result)


# --- building ------------------------------------------------------------------------------------


def test_it_builds_the_named_tools_in_order(workspace: Workspace) -> None:
    built = build_tools(["run_python", "list_tables"], workspace)

    assert [tool.name for tool in built] == ["run_python", "list_tables"]
    assert all(isinstance(tool, FunctionTool) for tool in built)


def test_it_has_every_tool_of_the_registry(workspace: Workspace) -> None:
    built = build_tools(list(TOOLS), workspace)

    assert [tool.description for tool in built] == [tool.description for tool in TOOLS.values()]


def test_it_refuses_an_unknown_tool(workspace: Workspace) -> None:
    with pytest.raises(UnknownTool, match=r"no tool named 'rm'.*list_tables"):
        build_tools(["rm"], workspace)


def test_it_asks_before_the_tools_that_need_approval(workspace: Workspace) -> None:
    names = ["run_python", "query_tables"]

    built = build_tools(names, workspace, needs_approval=frozenset({"run_python"}))

    assert [tool.approval_mode for tool in built] == ["always_require", "never_require"]


def test_it_maps_operations_to_tools() -> None:
    rules = HumanInTheLoop(enabled=True, require_approval_for=("code_execution",))

    assert needing_approval(rules) == {"run_python"}
    assert needing_approval(HumanInTheLoop()) == frozenset()


def test_it_tells_the_model_what_the_arguments_are(workspace: Workspace) -> None:
    (built,) = build_tools(["read_text"], workspace)

    assert list(built.parameters()["properties"]) == ["name", "start_line", "lines"]
    assert built.parameters()["required"] == ["name"]


# --- tables --------------------------------------------------------------------------------------


async def test_it_profiles_the_tables(workspace: Workspace) -> None:
    text = await call(workspace, "list_tables")

    table = markdown.parse(text)
    assert text.startswith("### Table sales: 3 rows\n")
    assert table is not None
    assert table.rows == (
        ("region", "VARCHAR", "1", "1", "EMEA", "EMEA", '"EMEA" (2)'),
        ("product", "VARCHAR", "0", "2", "a|b", "c", '"c" (2), "a|b" (1)'),
        ("revenue", "DOUBLE", "1", "2", "0.2", "10.1", '"0.2" (1), "10.1" (1)'),
    )
    assert text.endswith("Texts, as lines in document_lines (document, line, text): notes.md")


async def test_it_answers_a_query_with_a_table(workspace: Workspace) -> None:
    sql = 'SELECT region, sum("revenue") AS total FROM sales GROUP BY 1 ORDER BY 2 NULLS FIRST'

    text = await call(workspace, "query_tables", sql=sql)

    assert text.splitlines() == [
        "| region | total |",
        "| --- | ---: |",
        "| NULL | NULL |",
        "| EMEA | 10.3 |",
    ]


async def test_it_bounds_the_rows_and_says_so(workspace: Workspace) -> None:
    text = await call(workspace, "query_tables", sql="SELECT i FROM range(5000) r(i)")

    assert "Only the first 200 rows are shown" in text
    assert "| 199 |" in text
    assert "| 200 |" not in text


async def test_it_bounds_the_characters(workspace: Workspace) -> None:
    sql = "SELECT repeat('x', 1000000), repeat('y', 290) FROM range(199)"

    text = await call(workspace, "query_tables", sql=sql)

    assert len(text) < 20_000
    assert "rows are shown" in text


async def test_it_names_the_columns_of_an_empty_result(workspace: Workspace) -> None:
    text = await call(workspace, "query_tables", sql="FROM sales WHERE 1 = 0")

    assert text == "The query gives no rows. Its columns: region, product, revenue."


@pytest.mark.parametrize("sql", ["DROP TABLE sales", "SELECT nope FROM sales", "not sql at all"])
async def test_it_answers_a_wrong_query_in_words(workspace: Workspace, sql: str) -> None:
    assert (await call(workspace, "query_tables", sql=sql)).startswith("Error: ")


async def test_it_answers_in_words_when_a_file_is_gone(tmp_path: Path) -> None:
    file = attach(tmp_path, "sales.csv", SALES)
    file.path += ".gone"
    workspace = Workspace([file])

    text = await call(workspace, "query_tables", sql="FROM sales")

    assert text == "Error: sales.csv is no longer stored here. Attach it again."


async def test_it_answers_in_words_without_files() -> None:
    assert "No file is attached" in await call(Workspace([]), "list_tables")


async def test_a_cancelled_run_does_not_wait_for_its_query(workspace: Workspace) -> None:
    endless = "WITH RECURSIVE r AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM r) FROM r WHERE i < 0"
    await workspace.list_tables()
    running = asyncio.create_task(workspace.query_tables(endless))
    done, _ = await asyncio.wait([running], timeout=0.3)

    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    assert not done
    assert "| 3 |" in await workspace.query_tables("SELECT count(*) FROM sales")


async def test_it_opens_nothing_after_it_was_closed(workspace: Workspace) -> None:
    await workspace.list_tables()
    workspace.close()
    workspace.close()

    assert "closed" in await workspace.query_tables("FROM sales")


# --- Python --------------------------------------------------------------------------------------


async def test_it_gives_what_is_printed_and_the_last_value(workspace: Workspace) -> None:
    assert await call(workspace, "run_python", code="print('a')\nprint(2)\n1 + 2") == "a\n2\n3"


async def test_python_can_query_the_tables(workspace: Workspace) -> None:
    code = "rows = query('SELECT revenue FROM sales ORDER BY 1')\n[row['revenue'] for row in rows]"

    assert await call(workspace, "run_python", code=code) == "[0.2, 10.1, None]"


async def test_python_may_not_take_more_rows_than_it_sees(workspace: Workspace) -> None:
    code = "len(query('SELECT 1 FROM range(20000)'))"

    assert "more than 10,000 rows" in await call(workspace, "run_python", code=code)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import os\nos.listdir('/')", "PermissionError"),
        ("import os\nos.system('id')", "AttributeError"),
        ("import os\nos.environ", "not supported"),
        ("open('/etc/passwd').read()", "PermissionError"),
        ("open('x', 'w').write('x')", "PermissionError"),
        ("from pathlib import Path\nPath('/etc/passwd').read_text()", "PermissionError"),
        ("import socket", "ModuleNotFoundError"),
        ("import subprocess", "ModuleNotFoundError"),
        ("__import__('os')", "NameError"),
        ("().__class__.__base__.__subclasses__()", "AttributeError"),
        ("x = [0] * 10**9", "MemoryError"),
        ("10 ** 10 ** 9", "MemoryError"),
        ("x = 'a'\nwhile True: x += x", "MemoryError"),
        ("def f(): return f()\nf()", "RecursionError"),
        ("1 / 0", "ZeroDivisionError"),
        ("def f(:", "SyntaxError"),
        ("query('DROP TABLE sales')", "can be read, not changed"),
        ("query(\"SELECT * FROM read_text('/etc/passwd')\")", "disabled by configuration"),
    ],
)
async def test_python_is_refused_in_words(workspace: Workspace, code: str, reason: str) -> None:
    text = await call(workspace, "run_python", code=code)

    assert "Error" in text
    assert reason in text
    assert "root:" not in text


@pytest.mark.parametrize(
    ("code", "reason"),
    [("while True: pass", "TimeoutError"), ("while True: print('x' * 10000)", "memory limit")],
)
async def test_python_that_never_ends_is_stopped(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, code: str, reason: str
) -> None:
    limits = {"max_feed_duration_secs": 0.2}
    monkeypatch.setattr("workflows.engine.tools.python._LIMITS", limits)

    text = await call(workspace, "run_python", code=code)

    assert reason in text
    assert len(text) < 20_000


async def test_python_does_not_sleep(workspace: Workspace) -> None:
    code = "import time\nfor _ in range(90): time.sleep(10)\n'awake'"

    assert await call(workspace, "run_python", code=code) == "awake"


# --- texts ---------------------------------------------------------------------------------------


async def test_it_finds_the_lines_with_most_of_the_words(workspace: Workspace) -> None:
    table = markdown.parse(await call(workspace, "search_text", words="whales NORTH"))

    assert table is not None
    assert table.rows == (
        ("notes.md", "3", "Whales sing in the North."),
        ("notes.md", "4", "The north is cold."),
    )


@pytest.mark.parametrize(
    ("words", "answer"), [("zebra", "No line holds any of: zebra."), ("!?", "Error: name at least")]
)
async def test_it_says_when_nothing_is_found(workspace: Workspace, words: str, answer: str) -> None:
    assert (await call(workspace, "search_text", words=words)).startswith(answer)


async def test_it_reads_some_lines_of_a_text(workspace: Workspace) -> None:
    text = await call(workspace, "read_text", name="notes.md", start_line=3, lines=1)

    assert text == "3: Whales sing in the North."


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ({"name": "../../etc/passwd"}, "Error: there is no text named '../../etc/passwd'."),
        ({"name": "it's; DROP TABLE x"}, "Error: there is no text named"),
        ({"name": "notes.md", "start_line": 99}, "notes.md has no line 99"),
    ],
)
async def test_it_says_what_can_be_read(
    workspace: Workspace, arguments: dict[str, Any], answer: str
) -> None:
    assert (await call(workspace, "read_text", **arguments)).startswith(answer)


# --- tables in Markdown --------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["plain", "a|b", "\\", "\\|", "a\\|b", "**x**", "`|`", "ü", ""])
def test_a_cell_survives_writing_and_reading(cell: str) -> None:
    text = markdown.table(["a", cell], [["1", cell]], numeric=[True, False])

    table = markdown.parse(f"Before.\n\n{text}\n\nAfter | it.")

    assert table is not None
    assert (table.columns, table.rows, table.numeric) == (
        ("a", cell),
        (("1", cell),),
        (True, False),
    )


def test_a_line_break_does_not_break_a_row() -> None:
    table = markdown.parse(markdown.table(["a"], [["x\r\ny"]], numeric=[False]))

    assert table is not None
    assert table.rows == (("x y",),)


def test_a_text_without_a_table_has_none() -> None:
    assert markdown.parse("a | b\n--- and more") is None


def test_a_reader_error_is_never_raised_through_a_tool(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ReaderError("Nothing works.")

    monkeypatch.setattr(Reader, "query", fail)

    assert asyncio.run(workspace.query_tables("FROM sales")) == "Error: Nothing works."

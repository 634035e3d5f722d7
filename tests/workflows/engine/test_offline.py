from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from agent_framework import Agent, Content, Message, tool
from agent_framework_orchestrations import _magentic as framework

from tests.workflows.engine import sales
from tests.workflows.engine.offline_team import TEAM, Outcome, Room, attach
from workflows import attachments
from workflows.engine.offline import OfflineClient, conversation, worker
from workflows.engine.offline.report import MADE_BY

ORDERS = "\n".join(f"{n},{('north', 'south')[n % 2]},{n}.5" for n in range(1, 41))


def write(folder: Path, name: str, text: str, encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


async def analyse(*paths: Path, task: str = "Analyze this file", **options: Any) -> Outcome:
    outcome = await Room(*paths, **options).run(task)
    assert not outcome.answer.startswith("Workflow terminated")
    assert "could not be computed" not in outcome.answer
    return outcome


# --- files it has never seen ---------------------------------------------------------------------


async def test_it_analyses_decimal_commas_dates_and_odd_encodings(tmp_path: Path) -> None:
    lines = [
        f"{('Köln', 'Malmö')[n % 2]};{1 + n % 28:02}.0{1 + n % 3}.2024;{n},5" for n in range(60)
    ]
    text = "\n".join(["station;measured at;temp °C", *lines])

    outcome = await analyse(write(tmp_path, "weather.csv", text, "latin-1"))

    assert "| Malmö | 30 | 30.5 | 30.5 |" in outcome.answer
    assert "| Köln | 30 | 29.5 | 29.5 |" in outcome.answer
    assert "## Temp °C by month" in outcome.answer


async def test_it_analyses_columns_with_weird_names(tmp_path: Path) -> None:
    header = 'select,"group ""x""",a b,Größe 数,"tic`k","```","pi|pe","*bold*"'
    lines = [f"{n * 10},{'AB'[n % 2]},it's,{n}.25,{'pq'[n % 2]},z,{n % 3},y" for n in range(30)]

    outcome = await analyse(write(tmp_path, "weird.csv", "\n".join([header, *lines])))

    assert "| B | 15 | 2,250 | 51.7 % | 150 |" in outcome.answer
    assert "| Größe 数 | 30 | 442.5 | 14.75 | 14.75 | 0.25 | 29.25 |" in outcome.answer


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name,amount\nBob,12.5\n", "| Bob | 12.5 |"),
        ("comment\n" + "\n".join(f"words {n}" for n in range(40)), "| words 3 |"),
        ("city\n" + "Rome\nOslo\nRome\n" * 10, "| Rome | 20 | 66.7 % |"),
        ("a,b\n" + "x,\ny,\n" * 20, "| b | 40 | 100.0 % |"),
        ("a\tb\n" + "x\t1\n" * 30, "29 rows of 30 repeat another."),
        ("x,y\n" + "\n".join(f"{n * 3},{-n}" for n in range(40)), "| x | 40 | 2,340 | 58.5 |"),
        (
            "year,n\n" + "\n".join(f"{2000 + n % 4},{n * 2}" for n in range(40)),
            "| 2003 | 10 | 420 |",
        ),
        (
            "flag,n\n" + "\n".join(f"{n % 2 == 0},{n * 2}" for n in range(40)),
            "| False | 20 | 800 |",
        ),
        (
            "at,n\n" + "\n".join(f"2024-03-{1 + n % 9:02} 10:00,{n}" for n in range(40)),
            "2024-03-04",
        ),
    ],
    ids=["one row", "prose", "groups", "gaps", "repeats", "numbers", "years", "flags", "days"],
)
async def test_it_analyses_whatever_the_columns_are(
    tmp_path: Path, text: str, expected: str
) -> None:
    assert expected in (await analyse(write(tmp_path, "data.csv", text))).answer


async def test_it_finds_what_a_text_says_about_the_task(tmp_path: Path) -> None:
    notes = "# Alpha\n\nNothing.\n\n## Risks\n\nThe budget may be short.\nSuppliers are late.\n"

    outcome = await analyse(
        write(tmp_path, "notes.md", notes), task="What is said about the budget?"
    )

    assert "> The budget may be short.\n>\n> — notes.md, line 7" in outcome.answer
    assert "- Risks (notes.md, line 5)" in outcome.answer
    assert "Suppliers are late." not in outcome.answer.partition("## Beginning")[0]


async def test_it_says_when_no_line_speaks_of_the_task(tmp_path: Path) -> None:
    path = write(tmp_path, "notes.txt", "Whales sing.\nWhales swim.\n")

    outcome = await analyse(path, task="zebras")

    assert "No line holds any of: zebras." in outcome.answer
    assert "whales (2)" in outcome.answer


async def test_it_works_on_several_files_within_its_rounds(tmp_path: Path) -> None:
    paths = [
        sales.FILE,
        write(tmp_path, "orders.csv", f"id,side,amount\n{ORDERS}"),
        write(tmp_path, "orders.json", json.dumps([{"amount": 1}, {"amount": 2}])),
        write(tmp_path, "notes.md", "# Notes\n\nSales are good.\n"),
    ]

    outcome = await analyse(*paths, task="Analyze the sales")

    assert outcome.rounds < 12
    assert "# Sales\n" in outcome.answer
    assert "- orders: 40 rows, 3 columns" in outcome.answer
    assert "- orders_2: 2 rows, 1 columns" in outcome.answer
    assert "| amount | 40 | 840 |" in outcome.answer
    assert "> Sales are good.\n>\n> — notes.md, line 3" in outcome.answer


async def test_it_looks_at_the_table_that_the_task_names(tmp_path: Path) -> None:
    orders = write(tmp_path, "orders.csv", f"id,side,amount\n{ORDERS}")

    outcome = await analyse(sales.FILE, orders, task="Analyze orders.csv")

    assert "# Orders\n" in outcome.answer


async def test_it_says_what_it_can_do_without_files() -> None:
    outcome = await analyse(task="Write a poem about whales")

    assert outcome.rounds == 0
    assert outcome.answer.startswith(MADE_BY)
    assert "> Write a poem about whales" in outcome.answer
    assert "No file is attached" in outcome.answer


# --- instructions --------------------------------------------------------------------------------


async def test_it_takes_the_focus_out_of_the_task() -> None:
    outcome = await analyse(sales.FILE, task="Analyze sales in APAC")

    assert "# Sales: region = APAC" in outcome.answer


async def test_it_does_not_take_a_word_of_the_task_for_a_value(tmp_path: Path) -> None:
    rows = "\n".join(f"{('Sales', 'Legal')[n % 2]},{n}" for n in range(40))

    outcome = await analyse(
        write(tmp_path, "staff.csv", f"department,cost\n{rows}"), task="Analyze sales data"
    )

    assert "**Scope**: all 40 rows of staff." in outcome.answer


@pytest.mark.parametrize(
    ("instruction", "scope"),
    [
        ("focus on EMEA", "region = EMEA"),
        ("Focus on emea and apac", "region one of APAC, EMEA"),
        ("leave out: everything but not EMEA", "region other than EMEA"),
        ("only Quiet Booth in Germany", "country = Germany"),
        ("what about Chile?", "country = Chile"),  # not among the values that the profile lists
        ("look at 2025", "date in 2025"),
        ("look at Q3 2024", "date in quarter 3 of 2024"),
        ("only 2024-05 please", "date in 2024-05"),
    ],
)
async def test_a_fork_is_about_what_its_instruction_names(instruction: str, scope: str) -> None:
    room = Room(sales.FILE)
    parent = await room.run("Analyze sales data")

    outcome = await room.fork(parent.after_round(3), instruction)

    assert scope in outcome.answer.partition("## Key findings")[0]
    assert outcome.rounds <= 9


async def test_a_fork_looks_first_at_the_columns_that_are_named() -> None:
    room = Room(sales.FILE)
    parent = await room.run("Analyze sales data")

    outcome = await room.fork(parent.after_round(3), "Compare units by segment")

    truth = {
        segment: sum(int(row["units"]) for row in sales.load(segment=segment))
        for segment in ("Enterprise", "Mid-market", "Small business")
    }
    assert "## Units by segment" in outcome.answer
    assert all(f"| {truth[segment]:,} |" in outcome.answer for segment in truth)


async def test_a_fork_does_not_repeat_what_is_done() -> None:
    room = Room(sales.FILE)
    parent = await room.run("Analyze sales data")

    outcome = await room.fork(parent.after_round(3), "Sing about whales")

    assert "“Sing about whales” names no column, value or period" in outcome.answer
    assert not set(outcome.instructions) & set(parent.instructions[:3])
    assert "## Revenue by region" in outcome.answer


async def test_a_fork_of_a_finished_run_starts_over_under_its_focus() -> None:
    room = Room(sales.FILE, max_rounds=40)
    parent = await room.run("Analyze sales data")

    outcome = await room.fork(parent.checkpoints[-1], "focus on LATAM", answer=parent.answer)

    assert "# Sales: region = LATAM" in outcome.answer


async def test_a_later_word_on_a_column_replaces_an_earlier_one() -> None:
    room = Room(sales.FILE, max_rounds=60)
    parent = await room.run("Analyze sales data")
    child = await room.fork(parent.after_round(3), "focus on EMEA")

    outcome = await room.fork(child.after_round(2), "now APAC instead")

    assert "# Sales: region = APAC" in outcome.answer


async def test_it_says_that_no_row_meets_all_conditions() -> None:
    room = Room(sales.FILE)
    parent = await room.run("Analyze sales data")

    outcome = await room.fork(parent.after_round(3), "only EMEA and only Japan")

    assert "No row meets these conditions together" in outcome.answer
    assert outcome.rounds == 1


async def test_the_instruction_reaches_a_new_plan() -> None:
    room = Room(sales.FILE)
    parent = await room.run("Analyze sales data")

    outcome = await room.fork(parent.after_round(3), "focus on EMEA", mode="replan")

    assert "- bo: Revenue by product, region = EMEA" in outcome.plans[-1]
    assert "- The user added: focus on EMEA" in outcome.plans[-1]


# --- the same every time -------------------------------------------------------------------------


async def test_a_resumed_run_goes_on_as_it_would_have() -> None:
    room = Room(sales.FILE)
    whole = await room.run("Analyze sales data")

    rest = await room.resume(whole.after_round(3))

    assert rest.answer == whole.answer
    assert rest.instructions == whole.instructions[3:]


async def test_two_runs_are_alike() -> None:
    first = await Room(sales.FILE).run("Analyze sales data")
    second = await Room(sales.FILE).run("Analyze sales data")

    assert (first.answer, first.instructions) == (second.answer, second.instructions)


# --- limits --------------------------------------------------------------------------------------


async def test_it_takes_several_steps_in_a_round_when_rounds_are_few() -> None:
    room = Room(sales.FILE, max_rounds=12)
    parent = await room.run("Analyze sales data")

    outcome = await room.fork(parent.after_round(7), "focus on EMEA")

    assert "## Data quality" in outcome.answer
    assert "# Sales: region = EMEA" in outcome.answer
    assert outcome.rounds <= 4


async def test_it_works_with_a_single_agent() -> None:
    everything = [name for _, tools in TEAM.values() for name in tools]
    team = {"solo": ("Does it all.", list(dict.fromkeys(everything)))}

    outcome = await analyse(sales.FILE, team=team)

    assert set(outcome.speakers) == {"solo"}
    assert "## Trend of revenue" in outcome.answer


async def test_it_leaves_out_what_nobody_has_the_tool_for() -> None:
    team = {"ada": TEAM["ada"], "cy": TEAM["cy"]}

    outcome = await analyse(sales.FILE, team=team)

    assert "## Revenue by month" in outcome.answer
    assert "Trend of revenue" not in outcome.answer


async def test_it_says_that_the_team_lacks_the_tools() -> None:
    outcome = await Room(sales.FILE, team={"ada": ("Reads.", ["read_text"])}).run("Analyze")

    assert "could not be listed" in outcome.answer
    assert outcome.rounds == 0


async def test_it_reports_a_step_that_went_wrong(tmp_path: Path) -> None:
    path = write(tmp_path, "orders.csv", f"id,side,amount\n{ORDERS}")
    room = Room(path)
    path.unlink()

    outcome = await room.run("Analyze")

    assert "## What could not be computed" in outcome.answer
    assert "no longer stored" in outcome.answer
    assert outcome.rounds == 1


@pytest.mark.parametrize("approves", [True, False])
async def test_it_goes_on_after_a_person_has_answered(approves: bool) -> None:
    room = Room(sales.FILE, needs_approval=frozenset({"run_python"}), approves=approves)

    outcome = await room.run("Analyze sales data")

    assert outcome.asked == ["run_python"]
    assert ("## Trend of revenue" in outcome.answer) is approves
    assert ("- Trend of revenue: Error: " in outcome.answer) is not approves
    assert "## Data quality" in outcome.answer


# --- the client ----------------------------------------------------------------------------------


def ledger_of(request: str, *, team: str = "- ada: Looks. Tools: list_tables") -> Message:
    prompt = framework.ORCHESTRATOR_PROGRESS_LEDGER_PROMPT
    return Message("user", [prompt.format(task=request, team=team, names="ada")])


async def test_it_answers_a_request_for_progress_with_valid_json() -> None:
    request = f"Analyze\n\n{attachments.describe(attach(sales.FILE))}"

    response = await OfflineClient("boss", delay_seconds=0).get_response([ledger_of(request)])

    ledger = json.loads(response.text)
    assert ledger["is_request_satisfied"]["answer"] is False
    assert ledger["next_speaker"]["answer"] == "ada"
    assert conversation.blocks(ledger["instruction_or_question"]["answer"])[0].kind == "json"


async def test_it_uses_no_tokens_and_names_itself() -> None:
    response = await OfflineClient("boss").get_response([ledger_of("Analyze")])

    assert response.model == "offline-rules"
    assert response.usage_details is not None
    assert response.usage_details["total_token_count"] == 0


async def test_it_streams_in_pieces_what_it_gives_at_once() -> None:
    client, asked = OfflineClient("boss", delay_seconds=0), [ledger_of("Analyze")]

    stream = client.get_response(asked, stream=True)
    pieces = [update.text async for update in stream if update.text]

    assert len(pieces) > 5
    assert "".join(pieces) == (await client.get_response(asked)).text


async def test_an_agent_calls_the_tool_and_reports() -> None:
    calls = []

    @tool(approval_mode="never_require")
    def query_tables(sql: str) -> str:
        """Count."""
        calls.append(sql)
        return "| n | total |\n| --- | ---: |\n| a | 2 |\n| b | 3 |"

    agent = Agent(OfflineClient("bo", delay_seconds=0), name="bo", tools=[query_tables])

    reply = await agent.run("**Counts.** Run this query.\n\n```sql\nSELECT 1\n```")

    assert calls == ["SELECT 1"]
    assert reply.text.startswith("### Counts\n\n| n | total |")
    assert reply.text.endswith("2 rows: b is highest with 3, a lowest with 2.")


async def test_an_agent_without_the_tool_says_so() -> None:
    reply = await Agent(OfflineClient("bo"), name="bo").run("```sql\nSELECT 1\n```")

    assert "Error: I do not have the tool query_tables." in reply.text


async def test_an_agent_without_a_block_says_what_it_needs() -> None:
    reply = await Agent(OfflineClient("bo", delay_seconds=0), name="bo").run("Please think hard.")

    assert reply.text == worker.NO_BLOCK


def test_the_same_conversation_gives_the_same_call_ids() -> None:
    asked = [Message("user", ["```sql\nSELECT 1\n```\n\n```sql\nSELECT 2\n```"])]

    def ids(agent: str) -> list[Any]:
        return [call.call_id for call in worker.act(agent, asked, {"query_tables"})]

    assert ids("bo") == ids("bo")
    assert len({*ids("bo"), *ids("cy")}) == 4


def test_a_rejected_call_is_reported_and_not_repeated() -> None:
    asked = [Message("user", ["**Sum.** Run this program.\n\n```python\n1 + 1\n```"])]
    (call,) = worker.act("bo", asked, {"run_python"})
    rejected = "Error: Tool call invocation was rejected by user."
    result = Content.from_function_result(call_id=str(call.call_id), result=rejected)

    (reply,) = worker.act("bo", [*asked, Message("tool", [result])], {"run_python"})

    assert reply.text == f"### Sum\n\n{rejected}"


# --- reading the conversation --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "fields", "kind"),
    [
        (framework.ORCHESTRATOR_TASK_LEDGER_FACTS_PROMPT, {"task": "T"}, "facts"),
        (framework.ORCHESTRATOR_TASK_LEDGER_PLAN_PROMPT, {"team": "- a: b"}, "plan"),
        (
            framework.ORCHESTRATOR_TASK_LEDGER_FACTS_UPDATE_PROMPT,
            {"task": "T", "old_facts": "F"},
            "facts_update",
        ),
        (framework.ORCHESTRATOR_TASK_LEDGER_PLAN_UPDATE_PROMPT, {"team": "x"}, "plan_update"),
        (
            framework.ORCHESTRATOR_PROGRESS_LEDGER_PROMPT,
            {"task": "two\n\nlines {}", "team": "- a: b", "names": "a, b"},
            "ledger",
        ),
        (framework.ORCHESTRATOR_FINAL_ANSWER_PROMPT, {"task": "T"}, "answer"),
    ],
)
def test_it_recognises_the_prompts_of_the_framework(
    prompt: str, fields: dict[str, str], kind: str
) -> None:
    found = conversation.recognise([Message("user", [prompt.format(**fields)])])

    assert found == conversation.Prompt(kind=kind, fields=fields)


def test_it_takes_nothing_else_for_a_prompt() -> None:
    assert (
        conversation.recognise([Message("user", ["Below I will present you a request."])]) is None
    )
    assert conversation.recognise([]) is None


def test_a_block_survives_fences_within_it() -> None:
    block = conversation.Block(title="T", kind="sql", code='SELECT "```" FROM t')

    assert conversation.blocks(f"**T.** Run it.\n\n{block.markdown}") == [block]


def read(request: str, history: list[Message]) -> conversation.Conversation:
    messages = [*history, ledger_of(request)]
    prompt = conversation.recognise(messages)
    assert prompt is not None
    return conversation.read(messages, prompt)


def test_it_reads_an_instruction_once_though_it_is_said_twice() -> None:
    task = "Analyze"
    request = f"{task}\n\n[Instruction added by the user after round 3; it overrides]\nfocus on A"
    said = Message("user", ["NEW INSTRUCTION from the user: focus on A"])

    talk = read(request, [Message("user", [task]), said, Message("user", ["and B"])])

    assert (talk.task, talk.instructions) == ("Analyze", ("focus on A", "and B"))


def test_it_reads_the_instruction_in_the_task_of_a_fork_at_the_entry() -> None:
    files = attachments.describe(attach(sales.FILE))
    request = f"Analyze\n\n{files}\n\nNEW INSTRUCTION from the user: focus on A"

    talk = read(request, [Message("user", [request])])

    assert (talk.task, talk.instructions) == ("Analyze", ("focus on A",))
    assert [file.table for file in talk.files] == ["sales"]


def test_it_reads_no_file_out_of_the_words_of_the_user() -> None:
    request = "Explain this:\nAttached files:\nnone of them"

    assert read(request, [Message("user", [request])]).files == ()

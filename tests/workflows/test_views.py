from __future__ import annotations

import re
import uuid
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from django.utils.html import escape
from pytest_django import DjangoAssertNumQueries, Settings

from checkpoints_app.models import AuditEvent, Checkpoint
from tests.factories import (
    make_approval,
    make_call,
    make_checkpoint,
    make_event,
    make_fork,
    make_run,
    make_user,
    make_workflow,
)
from workflows.events import EventKind
from workflows.models import Approval, LoginLink, Run, Workflow

pytestmark = pytest.mark.django_db

XSS = '<script>alert(1)</script><img src=x onerror="alert(2)">'


@pytest.fixture
def owner() -> User:
    return make_user(username="ada")


@pytest.fixture
def run(owner: User) -> Run:
    """A finished run of three rounds."""
    run = make_run(make_workflow(owner))
    make_event(run, EventKind.QUEUED)
    make_event(run, EventKind.STARTED)
    make_checkpoint(run, phase="entry", round=0, agent="")
    make_event(run, EventKind.PLAN, agent="manager")
    for number in (1, 2, 3):
        make_event(run, EventKind.DECISION, round=number, agent="manager")
        make_checkpoint(run, phase="manager_decided", round=number)
        make_event(run, EventKind.TOOL_CALL, round=number, agent="coder")
        make_event(run, EventKind.TOOL_RESULT, round=number, agent="coder")
        make_event(run, EventKind.MESSAGE, round=number, agent="coder")
        make_event(run, EventKind.MODEL_CALL, round=number, agent="coder")
        make_checkpoint(run, round=number)
    make_event(run, EventKind.ANSWER, round=3, agent="manager")
    make_event(run, EventKind.COMPLETED)
    run.status, run.answer = Run.Status.COMPLETED, "# Report"
    run.save()
    return run


@pytest.fixture
def client(owner: User) -> Client:
    client = Client()
    client.force_login(owner)
    return client


@pytest.fixture
def stranger() -> Client:
    client = Client()
    client.force_login(make_user())
    return client


@pytest.fixture
def anonymous() -> Client:
    return Client()


def checkpoint_of(run: Run, *, round: int, phase: str = "agent_replied") -> Checkpoint:
    return Checkpoint.objects.get(run_id=str(run.id), round=round, phase=phase)


def text_of(response: Any) -> str:
    return str(response.content.decode())


def fork_form(checkpoint: Checkpoint, **fields: Any) -> dict[str, Any]:
    return {
        "submission": str(uuid.uuid4()),
        "checkpoint": str(checkpoint.id),
        "instruction": "Focus on EMEA",
        "mode": "steer",
        "max_rounds": 5,
        **fields,
    }


def start_form(**fields: Any) -> dict[str, Any]:
    return {
        "submission": str(uuid.uuid4()),
        "task": "Count the rows",
        "max_rounds": 4,
        **fields,
    }


# Who may see what


PAGES = ["run", "run_controls", "answer_file"]
VERBS = ["fork_run", "resume_run", "cancel_run"]


@pytest.mark.parametrize("name", PAGES)
def test_it_hides_a_run_from_a_stranger(name: str, run: Run, stranger: Client) -> None:
    assert stranger.get(reverse(name, args=[run.id])).status_code == 404


@pytest.mark.parametrize("name", VERBS)
def test_it_refuses_a_strangers_verb(name: str, run: Run, stranger: Client) -> None:
    assert stranger.post(reverse(name, args=[run.id])).status_code == 404


@pytest.mark.parametrize("name", ["workflow", "branches"])
def test_it_hides_a_workflow_from_a_stranger(name: str, run: Run, stranger: Client) -> None:
    assert stranger.get(reverse(name, args=[run.workflow_id])).status_code == 404


def test_it_refuses_a_strangers_answer(run: Run, stranger: Client) -> None:
    approval = make_approval(run)

    response = stranger.post(reverse("answer_approval", args=[approval.id]))

    assert response.status_code == 404


@pytest.mark.parametrize("name", ["home", "new_workflow", "team"])
def test_it_sends_the_anonymous_to_the_login(name: str, anonymous: Client) -> None:
    response = anonymous.get(reverse(name))

    assert response.headers["Location"] == f"{reverse('login')}?next={reverse(name)}"


@pytest.mark.parametrize("name", [*PAGES, *VERBS])
def test_it_shows_the_anonymous_no_run(name: str, run: Run, anonymous: Client) -> None:
    url = reverse(name, args=[run.id])
    response = anonymous.post(url) if name in VERBS else anonymous.get(url)

    assert response.headers["Location"].startswith(reverse("login"))


@pytest.mark.parametrize("name", VERBS)
def test_it_takes_verbs_by_post_only(name: str, run: Run, client: Client) -> None:
    assert client.get(reverse(name, args=[run.id])).status_code == 405


@pytest.mark.parametrize("name", ["home", "team", "healthz"])
def test_it_shows_pages_by_get_only(name: str, client: Client) -> None:
    assert client.post(reverse(name)).status_code == 405


def test_it_shows_staff_everybodys_runs(run: Run) -> None:
    staff = Client()
    staff.force_login(make_user(is_staff=True))

    assert staff.get(run.get_absolute_url()).status_code == 200


def test_it_needs_a_token_for_a_verb(run: Run, owner: User) -> None:
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(owner)

    response = strict.post(reverse("cancel_run", args=[run.id]))

    assert response.status_code == 403
    assert "This form has expired" in text_of(response)


# The list


def test_it_invites_to_start_with_the_example(client: Client) -> None:
    assert "?example=1" in text_of(client.get(reverse("home")))


def test_it_lists_only_ones_own_workflows(owner: User, client: Client) -> None:
    make_workflow(owner, task="Mine")
    make_workflow(task="Theirs")

    page = text_of(client.get(reverse("home")))

    assert "Mine" in page
    assert "Theirs" not in page


def test_it_lists_everybodys_workflows_for_staff() -> None:
    make_workflow(task="Theirs")
    staff = Client()
    staff.force_login(make_user(is_staff=True))

    assert "Theirs" in text_of(staff.get(reverse("home"), {"owner": "all"}))


def test_it_ignores_the_wish_for_all_of_who_is_not_staff(client: Client) -> None:
    make_workflow(task="Theirs")

    assert "Theirs" not in text_of(client.get(reverse("home"), {"owner": "all"}))


def test_it_shows_the_newest_runs_status(owner: User, client: Client) -> None:
    workflow = make_workflow(owner)
    make_run(workflow, status=Run.Status.COMPLETED)
    make_run(workflow, status=Run.Status.FAILED)

    page = text_of(client.get(reverse("home")))

    assert "pill--failed" in page
    assert "pill--completed" not in page


def test_it_says_when_a_cost_is_unknown(run: Run, client: Client) -> None:
    make_call(run, input_tokens=5, cost_usd=None)

    assert "cost unknown" in text_of(client.get(reverse("home")))


def test_it_pages_without_losing_or_repeating_a_workflow(
    owner: User, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workflows.views.PAGE_SIZE", 2)
    made = [make_workflow(owner).id for _ in range(3)]

    first = client.get(reverse("home"))
    rest = client.get(reverse("home"), {"before": first.context["next_before"]})

    shown = [row["workflow"].id for page in (first, rest) for row in page.context["rows"]]
    assert shown == made[::-1]


@pytest.mark.parametrize("before", ["nonsense", str(uuid.uuid4())])
def test_it_refuses_a_page_that_is_not_there(before: str, client: Client) -> None:
    assert client.get(reverse("home"), {"before": before}).status_code == 404


@pytest.mark.parametrize("workflows", [1, 12])
def test_it_lists_with_a_constant_number_of_queries(
    workflows: int,
    owner: User,
    client: Client,
    django_assert_num_queries: DjangoAssertNumQueries,
) -> None:
    for _ in range(workflows):
        make_run(make_workflow(owner))

    with django_assert_num_queries(5):  # session, user, workflows, runs, unpriced calls
        client.get(reverse("home"))


# Starting


def test_it_fills_in_the_example(client: Client) -> None:
    form = client.get(reverse("new_workflow"), {"example": "1"}).context["form"]

    assert form.initial["task"] == "Analyze sales data"
    assert form.initial["use_example"]


def test_it_says_that_no_model_takes_part(client: Client) -> None:
    assert "no language model takes part" in text_of(client.get(reverse("new_workflow")))


def test_it_starts_a_run_and_goes_to_its_page(client: Client, owner: User) -> None:
    response = client.post(reverse("new_workflow"), start_form(task="Count the sheep"))

    run = Run.objects.get(workflow__owner=owner)
    assert response.headers["Location"] == run.get_absolute_url()
    assert (run.workflow.task, run.max_rounds) == ("Count the sheep", 4)


def test_it_attaches_every_file(client: Client, settings: Settings, tmp_path: Path) -> None:
    settings.ATTACHMENT_DIR = tmp_path
    files = [BytesIO(b"a,b\n1,2\n"), BytesIO(b"hello")]
    files[0].name, files[1].name = "one.csv", "two.txt"  # type: ignore[attr-defined]

    client.post(reverse("new_workflow"), start_form(upload=files))

    attached = Workflow.objects.get().attachments.values_list("name", flat=True)
    assert list(attached) == ["one.csv", "two.txt"]


def test_it_attaches_the_example_file(client: Client, settings: Settings, tmp_path: Path) -> None:
    settings.ATTACHMENT_DIR = tmp_path

    client.post(reverse("new_workflow"), start_form(use_example="on"))

    assert Workflow.objects.get().attachments.get().name == "sales.csv"


def test_it_starts_once_when_pressed_twice(client: Client) -> None:
    form = start_form()

    first, second = (client.post(reverse("new_workflow"), form) for _ in range(2))

    assert first.headers["Location"] == second.headers["Location"]
    assert Run.objects.count() == 1


def test_it_keeps_what_was_typed_when_a_start_is_refused(client: Client) -> None:
    response = client.post(
        reverse("new_workflow"), start_form(task="Count the sheep", max_rounds=0)
    )

    assert response.status_code == 422
    assert "Count the sheep" in text_of(response)
    assert not Run.objects.exists()


def test_it_says_why_a_file_was_refused(client: Client) -> None:
    program = BytesIO(b"MZ")
    program.name = "virus.exe"

    response = client.post(reverse("new_workflow"), start_form(upload=program))

    assert response.status_code == 422
    assert "virus.exe" in text_of(response)
    assert not Run.objects.exists()


def test_it_refuses_to_start_with_a_wrong_team_file(
    client: Client, settings: Settings, tmp_path: Path
) -> None:
    settings.TEAM_FILE = tmp_path / "workflow.yaml"
    settings.TEAM_FILE.write_text("agents:\n  coder:\n    modle: gpt\n")

    response = client.post(reverse("new_workflow"), start_form())

    assert response.status_code == 422
    assert "workflow.yaml:3" in text_of(response)
    assert not Run.objects.exists()


def test_it_shows_what_is_wrong_with_the_team_file(
    client: Client, settings: Settings, tmp_path: Path
) -> None:
    settings.TEAM_FILE = tmp_path / "workflow.yaml"
    settings.TEAM_FILE.write_text("agents:\n  coder:\n    modle: gpt\n")

    page = text_of(client.get(reverse("team")))

    assert "workflow.yaml:3" in page
    assert "modle" in page


def test_it_shows_the_team(client: Client) -> None:
    page = text_of(client.get(reverse("team")))

    assert all(name in page for name in ("manager", "researcher", "coder", "analyst"))
    assert "query_tables" in page


# The run page


def test_it_goes_from_a_workflow_to_its_newest_run(run: Run, client: Client) -> None:
    newest = make_fork(checkpoint_of(run, round=1), "Differently")

    response = client.get(reverse("workflow", args=[run.workflow_id]))

    assert response.headers["Location"] == newest.get_absolute_url()


def test_it_shows_every_event_once_and_in_order(run: Run, client: Client) -> None:
    page = text_of(client.get(run.get_absolute_url()))

    shown = [int(number) for number in re.findall(r'data-sequence="(\d+)"', page)]
    assert shown == list(range(1, run.events.count() + 1))


def test_it_gives_the_socket_the_last_sequence_it_shows(run: Run, client: Client) -> None:
    page = text_of(client.get(run.get_absolute_url()))

    assert f'data-cursor="{run.events.count()}"' in page


def test_it_lists_the_steps_of_the_run(run: Run, client: Client) -> None:
    steps = client.get(run.get_absolute_url()).context["steps"]

    major = [step.label for step in steps if not step.is_minor]
    assert major == ["Start", "Round 1", "Round 2", "Round 3"]


def test_it_aims_at_the_latest_checkpoint(run: Run, client: Client) -> None:
    assert "Fork from round 3" in text_of(client.get(run.get_absolute_url()))


def test_it_aims_at_the_checkpoint_in_the_address(run: Run, client: Client) -> None:
    aim = checkpoint_of(run, round=2)

    page = text_of(client.get(run.get_absolute_url(), {"at": str(aim.id)}))

    assert "Fork from round 2" in page
    assert "Viewing round 2" in page


def test_it_aims_at_a_managers_decision(run: Run, client: Client) -> None:
    aim = checkpoint_of(run, round=2, phase="manager_decided")

    page = text_of(client.get(run.get_absolute_url(), {"at": str(aim.id)}))

    assert "Fork from the decision of round 2" in page


@pytest.mark.parametrize("at", ["nonsense", str(uuid.uuid4())])
def test_it_knows_no_checkpoint_of_another_line(at: str, run: Run, client: Client) -> None:
    assert client.get(run.get_absolute_url(), {"at": at}).status_code == 404


def test_it_tells_a_forks_story_from_the_beginning(run: Run, client: Client) -> None:
    fork = make_fork(checkpoint_of(run, round=1), "Focus on EMEA")

    context = client.get(fork.get_absolute_url()).context

    assert {event.round for event in context["inherited"]} == {0, 1}
    assert [event.kind for event in context["events"]] == ["queued"]


def test_it_names_the_place_a_fork_grew_from(run: Run, client: Client) -> None:
    fork = make_fork(checkpoint_of(run, round=1), "Focus on EMEA")

    page = text_of(client.get(fork.get_absolute_url()))

    assert "Forked from round 1 of" in page
    assert "Focus on EMEA" in page


def test_it_tells_the_story_of_a_fork_of_a_fork(run: Run, client: Client) -> None:
    child = make_fork(checkpoint_of(run, round=2), "First change")
    own = make_checkpoint(child, round=3)
    make_event(child, EventKind.MESSAGE, data={"text": "After the second fork"})
    grandchild = make_fork(own, "Second change")

    page = text_of(client.get(grandchild.get_absolute_url()))

    assert "First change" in page
    assert "After the second fork" not in page


def test_it_marks_the_current_branch(run: Run, client: Client) -> None:
    fork = make_fork(checkpoint_of(run, round=1), "Focus on EMEA")

    page = text_of(client.get(fork.get_absolute_url()))

    assert re.search(rf'class="branch" href="{fork.get_absolute_url()}" aria-current="page"', page)


def test_it_draws_balanced_lists_for_a_deep_tree(run: Run, client: Client) -> None:
    grown = run
    for depth in range(60):
        grown = make_fork(make_checkpoint(grown, round=1), f"Change {depth}")

    page = text_of(client.get(reverse("branches", args=[run.workflow_id]), {"run": run.id}))

    assert page.count("<ol>") == page.count("</ol>") == 61
    assert page.count("<li>") == page.count("</li>") == 61


@pytest.mark.parametrize("rounds", [1, 20])
def test_it_shows_a_run_with_a_constant_number_of_queries(
    rounds: int,
    owner: User,
    client: Client,
    django_assert_num_queries: DjangoAssertNumQueries,
) -> None:
    run = make_run(make_workflow(owner))
    for number in range(rounds):
        make_event(run, EventKind.DECISION, round=number)
        make_event(run, EventKind.MESSAGE, round=number)
        saved = make_checkpoint(run, round=number)
    fork = make_fork(saved, "Go on")

    # session, user, run, all runs, cuts, events, start event, unpriced calls, open approvals
    with django_assert_num_queries(9):
        client.get(fork.get_absolute_url())


@pytest.mark.parametrize("kind", list(EventKind))
def test_it_shows_every_kind_of_event(kind: EventKind, owner: User, client: Client) -> None:
    run = make_run(make_workflow(owner))
    if kind == EventKind.CHECKPOINT:
        make_checkpoint(run)
    else:
        make_event(run, kind, agent="coder")

    page = text_of(client.get(run.get_absolute_url()))

    assert f"event--{kind}" in page


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (EventKind.MESSAGE, {"text": XSS}),
        (EventKind.MESSAGE, {"text": f"`{XSS}` [x](javascript:alert(3)) ![i](http://evil.test/i)"}),
        (EventKind.PLAN, {"text": XSS}),
        (EventKind.ANSWER, {"text": XSS, "is_synthesised": True}),
        (EventKind.TOOL_CALL, {"tool": XSS, "arguments": {XSS: XSS}}),
        (EventKind.TOOL_RESULT, {"tool": XSS, "result": XSS}),
        (EventKind.QUEUED, {"task": XSS, "files": [XSS], "forked_from": None}),
        (EventKind.FAILED, {"error": XSS}),
        (EventKind.DECISION, {"next_agent": XSS, "instruction": XSS, "reasons": {"in_loop": XSS}}),
        (EventKind.WAITING, {"subject": "tool_call", "text": XSS, "arguments": {"a": XSS}}),
        (EventKind.ANSWERED, {"by": XSS, "decision": XSS, "text": XSS}),
    ],
)
def test_it_runs_nothing_that_an_agent_wrote(
    kind: EventKind, data: dict[str, Any], owner: User, client: Client
) -> None:
    run = make_run(make_workflow(owner, task=XSS), instruction=XSS)
    make_event(run, kind, agent=XSS, data=data)

    page = text_of(client.get(run.get_absolute_url()))

    assert "&lt;script&gt;" in page
    assert "<script>alert" not in page
    assert "<img" not in page
    assert "javascript:alert(3)" not in re.findall(r'href="([^"]*)"', page)


def test_it_forbids_inline_scripts_and_styles(run: Run, client: Client) -> None:
    response = client.get(run.get_absolute_url())

    page = text_of(response)
    assert "unsafe" not in response.headers["Content-Security-Policy"]
    assert not re.search(r"<[^>]*\s(style|on\w+)=", page)
    assert not re.search(r"<script(?![^>]*\ssrc=)", page)


def test_it_gives_the_answer_as_markdown(run: Run, client: Client) -> None:
    response = client.get(reverse("answer_file", args=[run.id]))

    assert text_of(response) == "# Report"
    assert response.headers["Content-Type"] == "text/markdown; charset=utf-8"
    assert 'filename="analyze-sales-data.md"' in response.headers["Content-Disposition"]


def test_it_has_no_file_before_the_answer(owner: User, client: Client) -> None:
    run = make_run(make_workflow(owner))

    assert client.get(reverse("answer_file", args=[run.id])).status_code == 404


def test_it_sends_nothing_when_the_tree_looks_the_same(run: Run, client: Client) -> None:
    seen = client.get(run.get_absolute_url()).context["branches_fingerprint"]
    url = reverse("branches", args=[run.workflow_id])

    assert client.get(url, {"run": run.id, "seen": seen}).status_code == 204


def test_it_sends_the_tree_when_a_branch_has_changed(run: Run, client: Client) -> None:
    seen = client.get(run.get_absolute_url()).context["branches_fingerprint"]
    make_fork(checkpoint_of(run, round=1), "Focus on EMEA")
    url = reverse("branches", args=[run.workflow_id])

    assert "Focus on EMEA" in text_of(client.get(url, {"run": run.id, "seen": seen}))


# Verbs


def test_it_forks_and_goes_to_the_new_run(run: Run, client: Client) -> None:
    origin = checkpoint_of(run, round=2)

    response = client.post(reverse("fork_run", args=[run.id]), fork_form(origin))

    fork = Run.objects.get(parent=run)
    assert response.headers["Location"] == fork.get_absolute_url()
    assert (fork.forked_from, fork.instruction) == (origin.id, "Focus on EMEA")


def test_it_forks_an_inherited_checkpoint(run: Run, client: Client) -> None:
    fork = make_fork(checkpoint_of(run, round=2), "First change")
    inherited = checkpoint_of(run, round=1)

    client.post(reverse("fork_run", args=[fork.id]), fork_form(inherited))

    assert Run.objects.get(forked_from=inherited.id).parent == run


def test_it_forks_once_when_pressed_twice(run: Run, client: Client) -> None:
    form = fork_form(checkpoint_of(run, round=2))

    first, second = (client.post(reverse("fork_run", args=[run.id]), form) for _ in range(2))

    assert first.headers["Location"] == second.headers["Location"]
    assert run.forks.count() == 1


def test_it_keeps_the_instruction_when_a_fork_is_refused(run: Run, client: Client) -> None:
    form = fork_form(checkpoint_of(run, round=2), max_rounds=100_000)

    response = client.post(reverse("fork_run", args=[run.id]), form)

    assert response.status_code == 422
    assert "Fork from round 2" in text_of(response)
    assert "Focus on EMEA" in text_of(response)
    assert not run.forks.exists()


@pytest.mark.parametrize("field", ["checkpoint", "instruction", "mode"])
def test_it_refuses_a_fork_without(field: str, run: Run, client: Client) -> None:
    form = {**fork_form(checkpoint_of(run, round=2)), field: ""}

    assert client.post(reverse("fork_run", args=[run.id]), form).status_code == 422
    assert not run.forks.exists()


def test_it_forks_no_checkpoint_of_another_workflow(run: Run, client: Client) -> None:
    foreign = make_checkpoint(make_run())

    response = client.post(reverse("fork_run", args=[run.id]), fork_form(foreign))

    assert response.status_code == 404


def test_it_cancels(owner: User, client: Client) -> None:
    run = make_run(make_workflow(owner))

    client.post(reverse("cancel_run", args=[run.id]))

    run.refresh_from_db()
    assert run.status == Run.Status.CANCELLED


def test_it_resumes(owner: User, client: Client) -> None:
    run = make_run(make_workflow(owner), status=Run.Status.FAILED)

    client.post(reverse("resume_run", args=[run.id]))

    run.refresh_from_db()
    assert run.status == Run.Status.QUEUED


def test_it_says_why_a_finished_run_is_not_resumed(run: Run, client: Client) -> None:
    response = client.post(reverse("resume_run", args=[run.id]), follow=True)

    assert "nothing to resume" in text_of(response)


@pytest.mark.parametrize(
    ("status", "button"),
    [(Run.Status.RUNNING, "Cancel"), (Run.Status.FAILED, "Resume"), (Run.Status.WAITING, "Cancel")],
)
def test_it_offers_what_can_be_done(
    status: Run.Status, button: str, owner: User, client: Client
) -> None:
    run = make_run(make_workflow(owner), status=status)

    page = text_of(client.get(run.get_absolute_url()))

    assert re.search(rf"<button[^>]*>{button}</button>", page)


def test_it_asks_for_the_answer_that_a_run_waits_for(owner: User, client: Client) -> None:
    run = make_run(make_workflow(owner), status=Run.Status.WAITING)
    make_approval(run)

    assert "Approve the plan?" in text_of(client.get(run.get_absolute_url()))


def test_it_shows_exactly_what_a_tool_call_would_do(owner: User, client: Client) -> None:
    run = make_run(make_workflow(owner), status=Run.Status.WAITING)
    make_approval(run, subject="tool_call", agent="coder", arguments={"code": "print('hi')"})

    page = text_of(client.get(run.get_absolute_url()))

    assert "May coder make this call?" in page
    assert escape("print('hi')") in page


def test_it_passes_an_answer_on(owner: User, client: Client) -> None:
    run = make_run(make_workflow(owner), status=Run.Status.WAITING)
    approval = make_approval(run)

    client.post(reverse("answer_approval", args=[approval.id]), {"decision": "approve"})

    approval.refresh_from_db()
    assert (approval.decision, approval.answered_by) == (Approval.Decision.APPROVE, owner)


def test_it_keeps_the_words_when_an_answer_is_refused(owner: User, client: Client) -> None:
    run = make_run(make_workflow(owner), status=Run.Status.WAITING)
    approval = make_approval(run)

    response = client.post(
        reverse("answer_approval", args=[approval.id]),
        {"decision": "reject", "comment": "Count twice"},
    )

    assert response.status_code == 422
    assert "Count twice" in text_of(response)


def test_it_records_who_forked_and_from_where(run: Run, client: Client, owner: User) -> None:
    client.post(
        reverse("fork_run", args=[run.id]),
        fork_form(checkpoint_of(run, round=2)),
        REMOTE_ADDR="192.0.2.7",
    )

    entry = AuditEvent.objects.get(verb="run.fork")
    assert (entry.actor, entry.origin, entry.address) == (owner, "web", "192.0.2.7")


# Logging in


def test_it_logs_in_with_a_password_and_records_it(anonymous: Client, owner: User) -> None:
    owner.set_password("a-good-password-7")
    owner.save()

    response = anonymous.post(
        reverse("login"), {"username": "ada", "password": "a-good-password-7"}
    )

    assert response.headers["Location"] == reverse("home")
    assert AuditEvent.objects.get(verb="user.login").actor == owner


def test_it_records_a_failed_login_without_the_password(anonymous: Client, owner: User) -> None:
    anonymous.post(reverse("login"), {"username": "ada", "password": "wrong-secret"})

    entry = AuditEvent.objects.get(verb="user.login_failed")
    assert entry.details == {"username": "ada"}
    assert entry.actor is None


def test_it_keeps_the_name_after_a_failed_login(anonymous: Client) -> None:
    response = anonymous.post(reverse("login"), {"username": "ada", "password": "wrong"})

    assert 'value="ada"' in text_of(response)


def test_it_records_a_logout(client: Client, owner: User) -> None:
    client.post(reverse("logout"))

    assert AuditEvent.objects.get(verb="user.logout").actor == owner


def test_it_does_not_use_a_login_link_up_by_looking_at_it(anonymous: Client, owner: User) -> None:
    url = reverse("login_link", args=[LoginLink.issue(owner)])

    anonymous.get(url)

    assert LoginLink.objects.get().used_at is None


def test_it_logs_in_by_a_link(anonymous: Client, owner: User) -> None:
    url = reverse("login_link", args=[LoginLink.issue(owner)])

    response = anonymous.post(url)

    assert response.headers["Location"] == reverse("home")
    assert anonymous.get(reverse("home")).status_code == 200


def test_it_refuses_a_second_use_of_a_link(anonymous: Client, owner: User) -> None:
    url = reverse("login_link", args=[LoginLink.issue(owner)])
    Client().post(url)

    response = anonymous.post(url)

    assert response.status_code == 403
    assert "python manage.py login_link" in text_of(response)


def test_it_lets_no_disabled_user_in_by_a_link(anonymous: Client, owner: User) -> None:
    url = reverse("login_link", args=[LoginLink.issue(owner)])
    User.objects.filter(id=owner.id).update(is_active=False)

    assert anonymous.post(url).status_code == 403


def test_it_says_that_it_is_well(anonymous: Client) -> None:
    assert anonymous.get(reverse("healthz")).status_code == 200


def test_it_has_a_page_for_what_is_not_there(client: Client) -> None:
    response = client.get("/nowhere/")

    assert response.status_code == 404
    assert "There is nothing here" in text_of(response)

from __future__ import annotations

import re
import signal

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Server, log_in, sequences
from tests.model_server import ModelServer

pytestmark = pytest.mark.browser

PATIENCE_MS = 60_000


def start_workflow(page: Page, server: Server, task: str) -> None:
    page.goto(f"{server.url}/workflows/new/")
    page.get_by_label("Task").fill(task)
    page.get_by_role("button", name="Start the team").click()
    page.wait_for_url(re.compile("/runs/"))


def wait_for_status(page: Page, status: str) -> None:
    expect(page.locator("#run-status")).to_contain_text(status, timeout=PATIENCE_MS)


def fork_from_round(page: Page, round_number: int, instruction: str) -> None:
    page.locator("#timeline").get_by_text(f"Round {round_number}", exact=True).click()
    composer = page.locator("#composer")
    expect(composer).to_contain_text(f"Fork from round {round_number}")
    composer.locator("textarea").fill(instruction)
    composer.get_by_role("button", name="Fork and run").click()
    expect(page.get_by_role("heading", level=1)).to_have_text(instruction)


def test_it_starts_watches_and_forks_the_example(page: Page, offline_server: Server) -> None:
    log_in(page, offline_server.start())
    page.goto(f"{offline_server.url}/workflows/new/")
    page.get_by_label("Task").fill("Analyze sales data")
    page.get_by_label("Use the example file").check()
    page.get_by_role("button", name="Start the team").click()
    page.wait_for_url(re.compile("/runs/"))
    first = page.url
    wait_for_status(page, "Completed")
    expect(page.locator("body")).to_contain_text("without a language model")

    fork_from_round(page, 3, "Continue the analysis, focus on EMEA")

    wait_for_status(page, "Completed")
    expect(page.locator(".answer").last).to_contain_text("EMEA")
    expect(page.locator("#branches").get_by_role("link")).to_have_count(2)
    page.goto(first)
    wait_for_status(page, "Completed")
    expect(page.locator(".answer")).to_have_count(1)


def test_it_shows_every_event_once_after_a_reload_in_the_middle(
    page: Page, server: Server, model_server: ModelServer
) -> None:
    model_server.token_delay_seconds = 0.05
    log_in(page, server.start())
    start_workflow(page, server, "Count the sheep.")
    expect(page.locator("#transcript")).to_contain_text("Round 2", timeout=PATIENCE_MS)

    page.reload()
    wait_for_status(page, "Completed")

    shown = sequences(page)
    assert shown == list(range(1, len(shown) + 1))


def test_it_streams_what_an_agent_writes(
    page: Page, server: Server, model_server: ModelServer
) -> None:
    model_server.token_delay_seconds = 0.2
    log_in(page, server.start())

    start_workflow(page, server, "Count the sheep.")

    expect(page.locator("#stream")).to_contain_text("Reply to: Step", timeout=PATIENCE_MS)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_it_loses_nothing_when_the_server_dies(
    page: Page,
    server: Server,
    model_server: ModelServer,
    how: signal.Signals,
    expected_errors: list[str],
) -> None:
    # The browser and htmx report a refused connection and a socket's error themselves.
    expected_errors += ["ERR_CONNECTION_REFUSED", "[object Event]", "WebSocket connection"]
    expected_errors += ["htmx:sendError", "htmx:afterRequest", "ERR_EMPTY_RESPONSE"]
    model_server.rounds, model_server.token_delay_seconds = 6, 0.05
    log_in(page, server.start())
    start_workflow(page, server, "Count the sheep.")
    expect(page.locator("#transcript")).to_contain_text("Round 3", timeout=PATIENCE_MS)
    page.evaluate("window.sameDocument = true")

    server.end(how)
    expect(page.locator("[data-connection]")).to_contain_text("Reconnecting")
    server.start()
    wait_for_status(page, "Completed")

    shown = sequences(page)
    assert shown == list(range(1, len(shown) + 1))
    assert page.evaluate("window.sameDocument")
    assert page.locator("#transcript .round").count() == 7


def test_it_stops_a_run(page: Page, server: Server, model_server: ModelServer) -> None:
    model_server.hang()
    log_in(page, server.start())
    start_workflow(page, server, "Count the sheep.")
    wait_for_status(page, "Running")

    page.get_by_role("button", name="Cancel").click()

    wait_for_status(page, "Cancelled")
    expect(page.locator("#transcript")).to_contain_text("Cancelled by admin")


def test_it_lets_a_login_link_in_once(
    page: Page, server: Server, expected_errors: list[str]
) -> None:
    expected_errors += ["status of 403"]
    link = server.start()
    log_in(page, link)
    page.context.clear_cookies()

    page.goto(link)
    page.get_by_role("button").first.click()

    expect(page.locator("body")).to_contain_text("login_link")

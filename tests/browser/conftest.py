"""The real server in a process of its own, and a real Chromium that looks at it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, sync_playwright

from tests.model_server import ModelServer

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"http://\S+/login/link/\S+")


class Server:
    """`manage.py serve` with a data folder of its own. `start` again after `kill` or `stop`."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        self.port = _free_port()
        self.environment = environment
        self.process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> str:
        """Start and return the login link."""
        environment = {
            **os.environ,
            "FLEET_DATA_DIR": str(self.folder),
            "PORT": str(self.port),
            **self.environment,
        }
        with (self.folder / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "manage.py", "serve"],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout
        printed = []
        for line in self.process.stdout:
            printed.append(line)
            if found := LINK.search(line):
                return found[0]
        raise AssertionError(f"The server did not start: {''.join(printed)}")

    def end(self, signal_number: int) -> int:
        """Send the signal and return the exit code."""
        assert self.process
        assert self.process.stdout
        self.process.send_signal(signal_number)
        code = self.process.wait(timeout=20)
        self.process.stdout.close()
        self.process = None
        return code


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def browser(chromium: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield browser
        browser.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    context.set_default_timeout(30_000)
    yield context
    context.close()


@pytest.fixture
def offline_server(tmp_path: Path) -> Iterator[Server]:
    """The dashboard with no model configured."""
    yield from _serving(Server(tmp_path))


@pytest.fixture
def server(tmp_path: Path, model_server: ModelServer) -> Iterator[Server]:
    """The dashboard with every agent on the model server."""
    yield from _serving(
        Server(tmp_path, OPENAI_BASE_URL=model_server.url, OPENAI_MODEL="test-model")
    )


def _serving(server: Server) -> Iterator[Server]:
    yield server
    if server.process:
        server.end(signal.SIGKILL)


@pytest.fixture
def expected_errors() -> list[str]:
    """Parts of console errors that a test provokes on purpose."""
    return []


@pytest.fixture
def page(context: BrowserContext, expected_errors: list[str]) -> Iterator[Page]:
    """A tab that fails the test for any error in its console, policy violations included."""
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if _is_error(message) else None)
    yield page
    faults = [text for text in errors if not any(part in text for part in expected_errors)]
    assert faults == []


def _is_error(message: ConsoleMessage) -> bool:
    return message.type == "error"


def log_in(page: Page, link: str) -> None:
    page.goto(link)
    page.get_by_role("button").first.click()
    page.wait_for_url(re.compile(r"/$"))


def sequences(page: Page) -> list[int]:
    """The sequence numbers of the events on the page, in their order on it."""
    found: list[int] = page.eval_on_selector_all(
        "#transcript [data-sequence]", "items => items.map(item => Number(item.dataset.sequence))"
    )
    return found

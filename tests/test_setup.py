"""What the first two commands promise: `make run` and `make test`, and how they say no."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tools import suite

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 120  # a limit for broken starts, not a promise
STOP_SECONDS = 30  # the promise is 5 s; a loaded machine must not fail the suite


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# The server


class Server:
    """A real server process with its own data folder, and what it printed until it was ready."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process = process
        self.endpoint = ("127.0.0.1", port)
        self.address = f"http://127.0.0.1:{port}"
        self.printed = ""
        for line in process.stdout or ():
            self.printed += line
            if line.startswith("Stop"):
                break

    def stop(self, by: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(by)
        return self.process.wait(STOP_SECONDS)


def environment(folder: Path, **variables: str) -> dict[str, str]:
    ours = {"FLEET_DATA_DIR": str(folder), "PYTHONUNBUFFERED": "1"}
    kept = {name: value for name, value in os.environ.items() if name != "FLEET_DATABASE_URL"}
    return kept | ours | variables


@contextmanager
def serving(folder: Path, **variables: str) -> Iterator[Server]:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "manage.py", "serve"],
        cwd=ROOT,
        env=environment(folder, PORT=str(port), **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        try:
            yield Server(process, port)
        finally:
            process.kill()


def manage(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=ROOT,
        env=environment(folder, **variables),
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
    )


def refusal(result: subprocess.CompletedProcess[str]) -> str:
    """The single line with which a command said no."""
    assert result.returncode == 1, result.stderr
    (line,) = result.stderr.splitlines()
    return line


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One data folder for all: the first server prepares it, as on a user's machine."""
    return tmp_path_factory.mktemp("data")


def test_it_serves_and_prints_a_one_time_link(folder: Path) -> None:
    with serving(folder) as server:
        link = re.search(rf"{server.address}/login/link/\S+/", server.printed)
        assert link, server.printed
        with urllib.request.urlopen(link[0]) as page:  # noqa: S310
            assert page.status == 200
            assert "Server" not in page.headers
        assert str(folder) in server.printed
        assert "a rule-based planner works offline" in server.printed


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT], ids=lambda by: by.name)
def test_it_stops_in_time_with_exit_code_0(folder: Path, by: signal.Signals) -> None:
    with serving(folder) as server, socket.create_connection(server.endpoint) as idle:
        # A kept-alive connection must not hold the server up.
        idle.sendall(b"GET /healthz/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert idle.recv(1024).startswith(b"HTTP/1.1 200")
        assert server.stop(by) == 0, server.printed


def test_it_does_not_collect_the_same_static_files_twice(folder: Path) -> None:
    with serving(folder) as server:
        server.stop()
    manifest = folder / "static" / "staticfiles.json"
    before = manifest.stat().st_mtime_ns

    with serving(folder) as server:
        server.stop()

    assert manifest.stat().st_mtime_ns == before


def test_it_starts_with_a_wrong_team_file_and_shows_why(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("agents:\n  coder:\n    modle: x\n")

    with serving(folder, FLEET_TEAM_FILE=str(file)) as server:
        assert "mine.yaml:3: agents.coder.modle is not a known key." in server.printed


def test_it_names_the_models_that_work(folder: Path) -> None:
    with serving(folder, OPENAI_BASE_URL="http://127.0.0.1:9/v1", OPENAI_MODEL="mine") as server:
        assert "manager: mine" in server.printed


def test_it_prints_no_link_once_the_admin_has_a_password(tmp_path: Path) -> None:
    manage(tmp_path, "migrate", "-v", "0")
    manage(
        tmp_path,
        "createsuperuser",
        "--noinput",
        DJANGO_SUPERUSER_USERNAME="ada",
        DJANGO_SUPERUSER_EMAIL="ada@example.org",
        DJANGO_SUPERUSER_PASSWORD="correct horse battery",
    )

    with serving(tmp_path) as server:
        assert f"Log in as ada at {server.address}/login/" in server.printed
        assert "/login/link/" not in server.printed


def test_it_refuses_a_busy_port_before_it_touches_anything(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]

        line = refusal(manage(tmp_path, "serve", PORT=str(port)))

    assert f"Cannot listen on 127.0.0.1:{port}" in line
    assert f"make run PORT={port + 1}" in line
    assert not (tmp_path / "fleet.sqlite3").exists()


def test_it_refuses_a_second_server_on_one_data_folder(folder: Path) -> None:
    with serving(folder):
        line = refusal(manage(folder, "serve", PORT=str(free_port())))

    assert f"Another server is using {folder}" in line


@pytest.mark.parametrize("port", ["eighty", "-1", "0", "8000.5", "70000"])
def test_it_refuses_a_port_that_is_none(tmp_path: Path, port: str) -> None:
    line = refusal(manage(tmp_path, "serve", PORT=port))

    assert line.startswith(f"Error: PORT is {port!r}. Set it to a whole number from 1 to 65535")


# The environment


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A copy of what making the environment needs, with nothing made yet."""
    for name in ("tools/bootstrap.sh", "pyproject.toml", "uv.lock", ".python-version"):
        target = tmp_path / "clone" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
    return tmp_path / "clone"


@pytest.fixture
def put(tmp_path: Path) -> Callable[[str, str], None]:
    """Puts a shell script on the clone's PATH, beside the few tools that are everywhere."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name in ("dirname", "env", "grep", "head", "mkdir", "sh", "tail"):
        (commands / name).symlink_to(str(shutil.which(name)))

    def put(name: str, script: str) -> None:
        (commands / name).write_text(f"#!/bin/sh\n{script}\n")
        (commands / name).chmod(0o755)

    return put


def bootstrap(clone: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    home = clone.parent / "home"
    home.mkdir()
    return subprocess.run(
        [str(clone / "tools" / "bootstrap.sh")],
        env={"PATH": str(clone.parent / "bin"), "HOME": str(home)} | variables,
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
    )


def test_it_says_which_python_it_needs(clone: Path, put: Callable[[str, str], None]) -> None:
    put("python3", "exit 1")  # too old: the question for its version is answered with no

    line = refusal(bootstrap(clone))

    assert line.startswith("Error: Python 3.12, 3.13 or 3.14 is needed")


def test_it_passes_over_pythons_that_only_pretend(
    clone: Path, put: Callable[[str, str], None]
) -> None:
    put("python3.12", "echo 'python3.12: command not found' >&2; exit 127")
    put("python3", f'exec {sys._base_executable} "$@"')
    put("uv", 'echo "$@" >> called')

    result = bootstrap(clone)

    assert result.returncode == 0, result.stderr
    assert f"--python {sys._base_executable}" in (clone / "called").read_text()


def test_it_says_so_when_the_registry_does_not_answer(
    clone: Path, put: Callable[[str, str], None]
) -> None:
    put("python3", f'exec {sys._base_executable} "$@"')
    nowhere = f"http://127.0.0.1:{free_port()}/simple"

    result = bootstrap(clone, PIP_CONFIG_FILE=os.devnull, PIP_INDEX_URL=nowhere)

    assert refusal(result).startswith("Error: uv could not be installed. The package registry")


def test_it_says_so_when_packages_cannot_be_fetched(
    clone: Path, put: Callable[[str, str], None]
) -> None:
    put("python3", f'exec {sys._base_executable} "$@"')
    put(
        "uv",
        '[ "$1" = --version ] || { echo "error: Failed to fetch: https://..." >&2; exit 2; }',
    )

    line = refusal(bootstrap(clone))

    assert line.startswith("Error: Packages could not be downloaded. The package registry did not")


def test_it_shows_the_reason_of_any_other_failure(
    clone: Path, put: Callable[[str, str], None]
) -> None:
    put("python3", f'exec {sys._base_executable} "$@"')
    put("uv", '[ "$1" = --version ] || { echo "error: No space left on device" >&2; exit 2; }')

    assert "error: No space left on device" in refusal(bootstrap(clone))


def test_it_lists_the_commands() -> None:
    # Without what an outer `make test` hands down: it would announce the folders it enters.
    outer = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    result = subprocess.run(
        ["make"], cwd=ROOT, env=outer, capture_output=True, text=True, check=True
    )

    listed = [line.split()[1] for line in result.stdout.splitlines()]
    assert listed == ["help", "run", "test", "lint", "bench"]


# The closing line


def junit(**counts: int) -> str:
    attributes = " ".join(f'{name}="{count}"' for name, count in counts.items())
    return f"<testsuites><testsuite {attributes}/></testsuites>"


def test_it_counts_errors_as_failures(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(junit(tests=10, failures=1, errors=2, skipped=3))

    assert suite.count(report) == {"passed": 4, "failed": 3, "skipped": 3}


def test_it_counts_a_process_that_died_as_a_failure(tmp_path: Path) -> None:
    assert suite.count(tmp_path / "missing.xml") == {"failed": 1}


@pytest.mark.parametrize(
    ("codes", "counts", "expected"),
    [
        ([0, 0], {"tests": 2}, 0),
        ([0, 5], {"tests": 2}, 0),  # 5: the selection was empty
        ([1, 0], {"tests": 2, "failures": 1}, 1),
        ([0, 4], {"tests": 2}, 1),
    ],
)
def test_it_ends_with_one_line_and_the_right_code(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    codes: list[int],
    counts: dict[str, int],
    expected: int,
) -> None:
    monkeypatch.delenv("FLEET_TEST_DATABASE_URL", raising=False)  # the one that is skipped
    left = iter(codes)

    def pytest_process(selection: str, report: Path, variables: dict[str, str]) -> int:
        report.write_text(junit(**counts))
        return next(left)

    monkeypatch.setattr(suite, "pytest", pytest_process)

    assert suite.run_all(tmp_path) == expected

    closing = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch(r"\d+ passed, \d+ failed, 1 skipped", closing)

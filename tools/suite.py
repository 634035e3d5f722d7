"""Runs the test suite and ends with one line: `N passed, N failed, N skipped`.

Browser tests get a process of their own, because Playwright leaves a running event loop behind.
Where FLEET_TEST_DATABASE_URL names a PostgreSQL server, the tests with a database run on it again.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
HOW_TO_GET_POSTGRESQL = (
    "Install it with `sudo apt-get install -y postgresql`, and name a server in "
    "FLEET_TEST_DATABASE_URL (docs/reference/settings.md)."
)
EXIT_NO_TESTS = 5  # pytest's code when a selection is empty


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="fleet-tests-") as folder:
        return run_all(Path(folder))


def run_all(folder: Path) -> int:
    """Run each part even when one before it failed, and return the exit code for all."""
    parts = {"SQLite": ("not browser", {}), "browser": ("browser", {})}
    codes, totals = [], Counter[str]()
    if url := os.environ.get("FLEET_TEST_DATABASE_URL"):
        parts["PostgreSQL"] = ("database and not browser", {"FLEET_DATABASE_URL": url})
    else:
        say(f"SKIPPED: the tests with a database on PostgreSQL. {HOW_TO_GET_POSTGRESQL}")
        totals["skipped"] += 1
    for name, (selection, variables) in parts.items():
        say(f"\nTests: {name}")
        report = folder / f"{name}.xml"
        environment = {"FLEET_DATA_DIR": str(folder / name)} | variables
        codes.append(pytest(selection, report, environment))
        totals += count(report)
    say(f"{totals['passed']} passed, {totals['failed']} failed, {totals['skipped']} skipped")
    return int(any(code not in {0, EXIT_NO_TESTS} for code in codes) or totals["failed"] > 0)


def pytest(selection: str, report: Path, variables: dict[str, str]) -> int:
    command = [sys.executable, "-m", "pytest", "-q", "-m", selection, f"--junitxml={report}"]
    return subprocess.run(command, cwd=ROOT, env=os.environ | variables, check=False).returncode  # noqa: S603


def count(report: Path) -> Counter[str]:
    """Passed, failed and skipped in a JUnit report; a process that left none has failed once."""
    if not report.exists():
        return Counter(failed=1)
    suite = ElementTree.parse(report).getroot()[0]  # noqa: S314 - written by our own pytest
    failed = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
    skipped = int(suite.get("skipped", 0))
    passed = int(suite.get("tests", 0)) - failed - skipped
    return Counter(passed=passed, failed=failed, skipped=skipped)


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())

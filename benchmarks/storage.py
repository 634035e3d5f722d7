"""What keeping checkpoints costs, against its peers: saves, bytes, loads, memory, searches.

Each system runs in a process of its own and stores the same 1000 rounds. Between two points all
take their turns of a few rounds each, so that whatever else the machine does meets all of them.
PostgreSQL takes part where FLEET_TEST_DATABASE_URL names a server.

Usage: python -m benchmarks.storage
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from benchmarks.results import Figure, keep, print_table
from benchmarks.systems import ROUNDS, SYSTEMS, serve_lines

WINDOWS = {10: (6, 15), 100: (86, 115), 300: (286, 315), ROUNDS: (ROUNDS - 49, ROUNDS)}
"""The rounds around each point whose median counts."""
TURN = 10
"""Rounds that a system saves before it is the next one's turn."""
LISTED = (1_000, 100_000)
NAMES = {
    "ours": "ours",
    "ours-unindexed": "ours, search off",
    "files": "Agent Framework file storage",
    "langgraph": "LangGraph default",
    "langgraph-delta": "LangGraph delta channel",
    "jsonfield": "Django JSONField",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--child", nargs=3, metavar=("SYSTEM", "FOLDER", "URL"))
    options = parser.parse_args()
    if options.child:
        serve_lines(*options.child)
        return
    url = os.environ.get("FLEET_TEST_DATABASE_URL", "")
    if not url:
        print(
            "SKIPPED: PostgreSQL. Name a server on which databases may be made in "
            "FLEET_TEST_DATABASE_URL."
        )
    found = measure(url)
    print_measures(found)
    figures = figures_of(found)
    for database in ("sqlite", "postgresql") if url else ("sqlite",):
        figures |= library_figures(database, url)
    print_table(figures)
    keep(figures)


# --- saves and loads, side by side ---------------------------------------------------------------


@dataclass
class Measured:
    """What one system did: medians in milliseconds by round, and bytes."""

    own_ms: dict[int, float] = field(default_factory=dict)
    whole_ms: dict[int, float] = field(default_factory=dict)
    hashing_ms: dict[int, float] = field(default_factory=dict)
    load_ms: float = 0.0
    weight: dict[str, float] = field(default_factory=dict)

    @property
    def exponent(self) -> float:
        """How a save grows from round 100 to the last: 1 is as the history does, 0 not at all."""
        return math.log(self.own_ms[ROUNDS] / self.own_ms[100]) / math.log(ROUNDS / 100)


class Child:
    """A process with one system, which answers one verb at a time."""

    def __init__(self, system: str, folder: Path, database_url: str) -> None:
        folder.mkdir(parents=True)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.storage", "--child", system, folder, database_url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, verb: str, *arguments: int) -> Any:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(" ".join(map(str, (verb, *arguments))) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"A benchmark process ended with code {self.process.wait()}.")
        return json.loads(answer)

    def end(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


@contextmanager
def child(system: str, folder: Path, database: str, url: str) -> Iterator[Child]:
    """A running system with a database of its own, which is gone afterwards."""
    with ExitStack() as stack:
        database_url = ""
        if database == "postgresql":
            name = f"fleet_benchmark_{system.replace('-', '_')}"
            database_url = stack.enter_context(postgresql(url, name))
        started = Child(system, folder / database / system, database_url)
        stack.callback(started.end)
        yield started


@contextmanager
def postgresql(url: str, name: str) -> Iterator[str]:
    """The URL of a new, empty database."""
    import psycopg

    def execute(statement: str) -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(statement)  # type: ignore[arg-type]

    execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    execute(f"CREATE DATABASE {name}")
    try:
        yield urlunsplit(urlsplit(url)._replace(path=f"/{name}"))
    finally:
        execute(f"DROP DATABASE {name} WITH (FORCE)")


def measure(url: str) -> dict[tuple[str, str], Measured]:
    """Every system on every database, by (system, database)."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        children = {
            (system, database): stack.enter_context(child(system, Path(folder), database, url))
            for database in (["sqlite", "postgresql"] if url else ["sqlite"])
            for system in SYSTEMS
            if not (system == "files" and database == "postgresql")
        }
        found = {key: Measured() for key in children}
        for point, (first, last) in WINDOWS.items():
            for started in children.values():
                started.ask("advance", first - 1)
            measure_window(children, found, point, range(first - 1 + TURN, last + 1, TURN))
        loads: dict[tuple[str, str], list[float]] = {key: [] for key in children}
        for _ in range(5):
            for key, started in children.items():
                loads[key] += started.ask("load")
        for key, started in children.items():
            found[key].load_ms = median(loads[key])
            found[key].weight = started.ask("weigh")
        return found


def measure_window(
    children: dict[tuple[str, str], Child],
    found: dict[tuple[str, str], Measured],
    point: int,
    turns: range,
) -> None:
    timings: dict[tuple[str, str], dict[str, list[float]]] = {key: {} for key in children}
    for end in turns:
        for key, started in children.items():
            for name, values in started.ask("measure", end).items():
                timings[key].setdefault(name, []).extend(values)
    for key, by_name in timings.items():
        for name, values in by_name.items():
            getattr(found[key], name)[point] = median(values)


def print_measures(found: dict[tuple[str, str], Measured]) -> None:
    print(f"\n{ROUNDS} rounds of a 2 KB message and a 500 B ledger; saves and loads in ms, medians")
    print(
        f"{'':46}{'what the store itself does':^32}{'hashing':>9}{'':>9}{'':>10}{'search':>10}\n"
        f"{'system':<46}" + "".join(f"{f'@{point}':>8}" for point in WINDOWS) + f"{'@1000':>9}"
        f"{'load':>9}{'MB':>10}{'index MB':>10}{'memory':>10}{'growth':>8}"
    )
    for (system, database), row in found.items():
        print(
            f"{f'{NAMES[system]}, {database}':<46}"
            + "".join(f"{row.own_ms[point]:>8.2f}" for point in WINDOWS)
            + f"{row.hashing_ms.get(ROUNDS, 0):>9.2f}{row.load_ms:>9.1f}"
            f"{row.weight['bytes'] / 1e6:>10.2f}{row.weight['index_bytes'] / 1e6:>10.2f}"
            f"{row.weight['memory'] / 1e6:>10.1f}{row.exponent:>8.2f}"
        )


def figures_of(found: dict[tuple[str, str], Measured]) -> dict[str, Figure]:
    """The lines of the table that are about saves, loads and bytes."""
    figures: dict[str, Figure] = {}
    files = found["files", "sqlite"]
    for (system, database), ours in found.items():
        if system not in {"ours", "ours-unindexed"}:
            continue
        name = f"storage.{system}.{database}"
        default, delta = found["langgraph", database], found["langgraph-delta", database]
        rivals = [
            (files, "files", 1 / 100, 1 / 3),
            (default, "langgraph", 1 / 20, 1.0),
            (delta, "langgraph-delta", 1.0, None),
            (found["jsonfield", database], "jsonfield", None, None),
        ]
        for rival, key, save_at_most, load_at_most in rivals:
            figures[f"{name}.save_own_ms.1000_rounds.{key}"] = Figure(
                value=ours.own_ms[ROUNDS],
                unit="ms",
                peer=NAMES[key],
                peer_value=rival.own_ms[ROUNDS],
                ratio_at_most=save_at_most,
            )
            figures[f"{name}.load_ms.1000_rounds.{key}"] = Figure(
                value=ours.load_ms,
                unit="ms",
                peer=NAMES[key],
                peer_value=rival.load_ms,
                ratio_at_most=load_at_most,
            )
        figures[f"{name}.save_growth_exponent"] = Figure(
            value=ours.exponent,
            unit="",
            peer=NAMES["langgraph"],
            peer_value=default.exponent,
            at_most=0.2,
        )
        figures[f"{name}.save_hashing_ms.1000_rounds"] = Figure(
            value=ours.hashing_ms[ROUNDS], unit="ms"
        )
        bytes_limits = [(files, "files", 1 / 500), (delta, "langgraph-delta", 1 / 5)]
        for rival, key, at_most in bytes_limits:
            figures[f"{name}.bytes.1000_rounds.{key}"] = Figure(
                value=ours.weight["bytes"],
                unit="B",
                peer=NAMES[key],
                peer_value=rival.weight["bytes"],
                ratio_at_most=at_most,
            )
        figures[f"{name}.search_index_bytes.1000_rounds"] = Figure(
            value=ours.weight["index_bytes"], unit="B"
        )
    return figures


# --- a library of many checkpoints ---------------------------------------------------------------


def library_figures(database: str, url: str) -> dict[str, Figure]:
    """Listing and searching, and what memory the number of checkpoints takes."""
    with (
        tempfile.TemporaryDirectory() as folder,
        child("library", Path(folder), database, url) as library,
    ):
        few, many = (library.ask("fill", rows) or library.ask("listing") for rows in LISTED)
        searching = library.ask("searching")
        memory = library.ask("many_saves")
    name = f"storage.ours.{database}"
    return {
        f"{name}.newest_50_ms.{LISTED[1]}_checkpoints": Figure(
            value=many, unit="ms", peer=f"the same of {LISTED[0]}", peer_value=few, at_most=2
        ),
        f"{name}.search_ms.{LISTED[1]}_checkpoints": Figure(
            value=max(searching.values()), unit="ms", at_most=50
        ),
        f"{name}.listing_growth_exponent": Figure(
            value=math.log(many / few) / math.log(LISTED[1] / LISTED[0]), unit="", at_most=0.1
        ),
        f"{name}.memory_growth.{memory['checkpoints']}_checkpoints": Figure(
            value=memory["bytes"], unit="B", at_most=1e6
        ),
    }


if __name__ == "__main__":
    main()

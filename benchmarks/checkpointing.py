"""What checkpointing costs a real Magentic run: ours, the framework's files, and none at all.

Each system runs in a process of its own, in turns, with a model that answers at once:

    bare        the framework without storage
    files       the framework's FileCheckpointStorage
    store       DjangoCheckpointStorage on SQLite (WAL, synchronous=NORMAL)
    product     a whole run as the dashboard does it: store, events, journal, audit

Usage: python -m benchmarks.checkpointing [--rounds 10 100 300] [--repeat 3]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SYSTEMS = ("bare", "files", "store", "product")
REPLY_BYTES = 2_048
RESULTS = Path(__file__).parent / "results.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, nargs="+", default=[10, 100, 300])
    parser.add_argument("--repeat", type=int, default=3, help="at 100 rounds or fewer; above, once")
    parser.add_argument("--child", choices=SYSTEMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(_measure(options.child, options.rounds[0])))
        return
    figures: dict[str, dict[str, Any]] = {}
    for rounds in options.rounds:
        repeat = options.repeat if rounds <= 100 else 1
        found = _in_turns(rounds, repeat)
        _print_table(rounds, repeat, found)
        figures |= _figures(rounds, found)
    _keep(figures)


# --- one system, in this process -----------------------------------------------------------------


def _measure(system: str, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FLEET_DATA_DIR"] = folder
        os.environ["DJANGO_SETTINGS_MODULE"] = "fleet_site.settings"
        import django

        django.setup()
        from django.core.management import call_command

        if system in {"store", "product"}:
            call_command("migrate", verbosity=0)
        before = _peak_bytes()
        ends = (
            _run_product(rounds)
            if system == "product"
            else asyncio.run(_run_framework(system, rounds, Path(folder)))
        )
        return {
            "ms_per_round": _last_rounds_ms(ends),
            "bytes": _stored_bytes(system, Path(folder)),
            "memory": _peak_bytes() - before,
        }


async def _run_framework(system: str, rounds: int, folder: Path) -> list[float]:
    """Run the stock Magentic workflow; returns when each superstep ended, in seconds."""
    from agent_framework import Agent, FileCheckpointStorage
    from agent_framework.orchestrations import MagenticBuilder

    from benchmarks.instant_model import AGENTS, InstantClient

    storage: Any = None
    if system == "files":
        storage = FileCheckpointStorage(folder / "files")
    elif system == "store":
        from checkpoints_app.adapters.agent_framework import DjangoCheckpointStorage

        storage = DjangoCheckpointStorage("benchmark")

    def client() -> InstantClient:
        return InstantClient(rounds=rounds, reply_bytes=REPLY_BYTES)

    workflow = MagenticBuilder(
        participants=[Agent(client(), name=name, description=name) for name in AGENTS],
        manager_agent=Agent(client(), name="manager"),
        checkpoint_storage=storage,
        max_round_count=rounds + 1,
        intermediate_output_from="all_other",
    ).build()
    workflow._runner._max_iterations = 10 * rounds + 10
    if system == "store":
        from checkpoints_app.adapters.agent_framework import spare_copies

        assert spare_copies(workflow)
    ends = [time.perf_counter()]
    async for event in workflow.run("Measure this.", stream=True):
        if event.type == "superstep_completed":
            ends.append(time.perf_counter())
    assert getattr(storage, "error", None) is None, storage.error
    return ends


def _run_product(rounds: int) -> list[float]:
    """Run a workflow as the dashboard does. Its checkpoints tell when its supersteps ended."""
    from unittest.mock import patch

    from benchmarks.instant_model import InstantClient
    from checkpoints_app.audit import Actor
    from checkpoints_app.models import AuditEvent
    from workflows import services
    from workflows.dispatch.embedded import EmbeddedDispatcher
    from workflows.engine import magentic
    from workflows.models import Event, Run

    team = services.team_status().team
    assert team is not None
    actor = Actor(user=services.first_admin(), origin=AuditEvent.Origin.TERMINAL)
    with patch.object(
        magentic, "make_client", lambda agent: InstantClient(rounds=rounds, reply_bytes=REPLY_BYTES)
    ):
        run = services.start(task="Measure this.", team=team, actor=actor, max_rounds=rounds + 1)
        dispatcher = EmbeddedDispatcher(worker="benchmark", only=run.id, concurrency=1)
        dispatcher.start()
        while run.is_active:
            time.sleep(0.2)
            run.refresh_from_db()
        dispatcher.stop()
    assert run.status == Run.Status.COMPLETED, run.error
    ends = Event.objects.filter(run=run, kind="checkpoint").values_list("created_at", flat=True)
    return [end.timestamp() for end in ends.order_by("sequence")]


def _last_rounds_ms(ends: list[float]) -> float:
    """Median time of the last ten rounds before the final answer; a round is two supersteps."""
    rounds = [later - earlier for earlier, later in zip(ends[:-2], ends[2:], strict=True)]
    return statistics.median(rounds[-21:-1:2]) * 1000


def _stored_bytes(system: str, folder: Path) -> int:
    if system == "bare":
        return 0
    if system == "files":
        return sum(path.stat().st_size for path in (folder / "files").rglob("*") if path.is_file())
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT sum(pgsize) FROM dbstat WHERE name LIKE 'checkpoints_app_%'"
            " OR name LIKE '%checkpoints_app_%'"
            if system == "store"
            else "SELECT sum(pgsize) FROM dbstat"
        )
        return int(cursor.fetchone()[0] or 0)


def _peak_bytes() -> int:
    """Peak resident memory of this process (`VmHWM`)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return 0


# --- all systems, side by side -------------------------------------------------------------------


def _in_turns(rounds: int, repeat: int) -> dict[str, dict[str, float]]:
    found: dict[str, list[dict[str, float]]] = {system: [] for system in SYSTEMS}
    for _ in range(repeat):
        for system in SYSTEMS:
            done = subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "benchmarks.checkpointing",
                    "--child",
                    system,
                    "--rounds",
                    str(rounds),
                ],
                check=True,
                capture_output=True,
                text=True,
            )
            found[system].append(json.loads(done.stdout.splitlines()[-1]))
    return {
        system: {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        for system, runs in found.items()
    }


def _print_table(rounds: int, repeat: int, found: dict[str, dict[str, float]]) -> None:
    bare, files = found["bare"], found["files"]
    print(f"\n{rounds} rounds of {REPLY_BYTES} B replies, median of {repeat}")
    print(
        f"{'system':<10}{'ms/round':>10}{'over bare':>11}{'÷ files':>9}"
        f"{'stored':>12}{'÷ files':>9}{'memory':>10}"
    )
    for system, row in found.items():
        over = row["ms_per_round"] - bare["ms_per_round"]
        files_over = files["ms_per_round"] - bare["ms_per_round"]
        print(
            f"{system:<10}{row['ms_per_round']:>10.1f}{over:>11.1f}{over / files_over:>9.3f}"
            f"{row['bytes'] / 1e6:>9.2f} MB{row['bytes'] / files['bytes']:>9.4f}"
            f"{row['memory'] / 1e6:>7.1f} MB"
        )


def _figures(rounds: int, found: dict[str, dict[str, float]]) -> dict[str, dict[str, Any]]:
    bare, files = found["bare"], found["files"]
    figures = {}
    for system in ("store", "product"):
        row = found[system]
        over = row["ms_per_round"] - bare["ms_per_round"]
        peer_over = files["ms_per_round"] - bare["ms_per_round"]
        for name, value, peer, unit in (
            ("overhead_per_round", over, peer_over, "ms"),
            ("stored_bytes", row["bytes"], files["bytes"], "B"),
            ("memory", row["memory"], files["memory"], "B"),
        ):
            figures[f"checkpointing.{system}.{name}.{rounds}_rounds"] = {
                "value": round(value, 3),
                "unit": unit,
                "peer": {"name": "Agent Framework file storage", "value": round(peer, 3)},
                "ratio": round(value / peer, 5) if peer else None,
            }
    return figures


def _keep(figures: dict[str, dict[str, Any]]) -> None:
    """Merge the figures into `results.json`, beside those of other benchmarks."""
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    known["machine"] = (
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    )
    known["figures"] = {**known.get("figures", {}), **figures}
    RESULTS.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()

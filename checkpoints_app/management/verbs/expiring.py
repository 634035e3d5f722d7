"""Letting old checkpoints go: prune."""

from __future__ import annotations

from argparse import ArgumentParser
from dataclasses import asdict
from typing import Any

from checkpoints_app import retention
from checkpoints_app.errors import CheckpointError
from checkpoints_app.retention import Policy, Report

from .base import Result, Verb
from .finding import TERMINAL, table

SHOWN = 50


class Prune(Verb):
    summary = "Delete checkpoints that a policy lets go of, and the chunks that only they needed."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--max-age-days", type=int, metavar="N", help="keep those younger")
        parser.add_argument("--max-count", type=int, metavar="N", help="keep the newest of a run")
        parser.add_argument(
            "--max-total-bytes", type=int, metavar="N", help="keep the newest that fit"
        )
        parser.add_argument("--workflow", metavar="ID", help="only in this workflow")
        parser.add_argument(
            "--daily", action="store_true", help="what the daily clean-up does, now"
        )
        parser.add_argument("--dry-run", action="store_true", help="only say what would go")

    def run(self, options: dict[str, Any]) -> Result:
        report = self._prune(options)
        swept = {**asdict(report.swept), "skipped": dict(report.swept.skipped)}
        data = {
            "dry_run": options["dry_run"],
            "checkpoints": report.checkpoints,
            "kept": report.kept,
            "freed_bytes": report.freed_bytes,
            "swept": swept,
            "named": list(report.named),
        }
        return Result(data=data, is_ok=not report.swept.skipped)

    def _prune(self, options: dict[str, Any]) -> Report:
        names = ("max_age_days", "max_count", "max_total_bytes")
        policy = Policy(**{name: options[name] for name in names})
        if options["daily"]:
            if policy.limits or options["workflow"]:
                raise CheckpointError("--daily has its own limits. Leave the other options out.")
            return retention.clean_up(actor=TERMINAL, dry_run=options["dry_run"])
        if not policy.limits:
            raise CheckpointError(
                "Say what may go: --max-age-days, --max-count, --max-total-bytes, or --daily."
            )
        if not options["workflow"]:
            return retention.prune(policy, dry_run=options["dry_run"], actor=TERMINAL)
        return retention.prune(
            Policy(),
            by_workflow=[(options["workflow"], policy)],
            dry_run=options["dry_run"],
            actor=TERMINAL,
        )

    def show(self, result: Result) -> str:
        data = result.data
        rows = [
            (row["id"], row["run_id"], str(row["position"]), str(row["round"]), row["created_at"])
            for row in data["named"][:SHOWN]
        ]
        lines = table(("ID", "RUN", "POSITION", "ROUND", "CREATED"), rows) if rows else []
        if (more := data["checkpoints"] - len(rows)) > 0:
            lines = [*lines, f"… and {more} more."]
        did = "would be deleted" if data["dry_run"] else "deleted"
        lines = [
            *lines,
            f"{data['checkpoints']} checkpoints {did}, {data['kept']} kept; "
            f"{data['swept']['chunks']} chunks swept; {data['freed_bytes']:,} bytes freed.",
        ]
        skipped = data["swept"]["skipped"].items()
        return "\n".join([*lines, *(f"Not swept: {place}. {why}" for place, why in skipped)])

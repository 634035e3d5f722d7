from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from checkpoints_app import backends, copying
from checkpoints_app.audit import Actor
from checkpoints_app.models import AuditEvent

from .base import Result, Verb

TERMINAL = Actor(user=None, origin=AuditEvent.Origin.TERMINAL)


class Copy(Verb):
    summary = "Move checkpoints to another backend, such as from database to redis."

    def add_arguments(self, parser: ArgumentParser) -> None:
        types = ", ".join(backends.TYPES)
        for name, what in (("--from", "where they are"), ("--to", "where they go")):
            parser.add_argument(
                name,
                dest=name.strip("-"),
                required=True,
                metavar="BACKEND",
                help=f"{what}: {types}, or a type with a place, such as file:/srv/checkpoints",
            )

    def run(self, options: dict[str, Any]) -> Result:
        source, target = (_address(options[name]) for name in ("from", "to"))
        report = copying.copy(source, target, actor=TERMINAL)
        data = {
            "from": source,
            "to": target,
            "checkpoints": report.checkpoints,
            "chunks": report.chunks,
            "size_bytes": report.size_bytes,
            "failed": report.failed,
            "failures": {str(id): reason for id, reason in report.failures.items()},
        }
        return Result(data=data, is_ok=not report.failed)

    def show(self, result: Result) -> str:
        data = result.data
        lines = [
            f"{data['checkpoints']} checkpoints moved from {data['from']} to {data['to']}: "
            f"{data['chunks']} chunks copied, {data['size_bytes']:,} bytes."
        ]
        if data["checkpoints"]:
            lines.append(f"Their chunks are still in {data['from']}, until they are swept.")
        lines += [f"Stays: {id}. {reason}" for id, reason in data["failures"].items()]
        if data["failed"]:
            lines.append(
                f"{data['failed']} checkpoints could not be moved and stay where they are."
            )
        return "\n".join(lines)


def _address(text: str) -> str:
    """As rows have it, whatever spelling of the place was given."""
    storage_type, _, location = text.partition(":")
    return backends.address_of(storage_type, location)

"""Taking checkpoints out and bringing them in: export, import."""

from __future__ import annotations

import contextlib
import json
from argparse import ArgumentParser
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any
from uuid import UUID

from django.db.models import QuerySet

from checkpoints_app import archive, audit, predecessor
from checkpoints_app.errors import CheckpointError
from checkpoints_app.models import Checkpoint

from .base import Result, Verb
from .finding import TERMINAL

FORMATS = ("bundle", "json")


class Export(Verb):
    summary = "Write checkpoints into one signed bundle, or into JSON documents."

    def add_arguments(self, parser: ArgumentParser) -> None:
        what = parser.add_mutually_exclusive_group(required=True)
        what.add_argument("--checkpoint", metavar="ID", help="this one alone")
        what.add_argument("--run", metavar="ID", help="all of a run")
        what.add_argument("--workflow", metavar="ID", help="all of a workflow, forks included")
        what.add_argument("--all", action="store_true", help="everything")
        what.add_argument(
            "--print-key",
            action="store_true",
            help="print the key that signs, for a site that shall trust this one",
        )
        parser.add_argument("--output", metavar="PATH", help="a new file; for json, a folder")
        parser.add_argument("--format", choices=FORMATS, default=FORMATS[0])

    def run(self, options: dict[str, Any]) -> Result:
        if options["print_key"]:
            audit.record(TERMINAL, "checkpoints.print_key")
            return Result(data={"key": archive.site_key().hex()})
        if not options["output"]:
            raise CheckpointError("Say where to: --output PATH.")
        rows, output = _rows(options), Path(options["output"])
        if options["format"] == "json":
            return Result(data={"path": str(output), "checkpoints": _write_documents(rows, output)})
        with _new_file(output) as file:
            exported = archive.export_bundle(rows, file, actor=TERMINAL)
        return Result(
            data={"path": str(output), "bytes": output.stat().st_size, **asdict(exported)}
        )

    def show(self, result: Result) -> str:
        data = result.data
        if "key" in data and "path" not in data:
            return (
                f"{data['key']}\nWhoever has this key can sign in this site's name. To trust it, "
                "put NAME: and the key into FLEET_TRUSTED_BUNDLE_KEYS of the other site."
            )
        return f"{data['checkpoints']} checkpoints written to {data['path']}."


class Import(Verb):
    summary = "Bring in the checkpoints of a bundle, or of JSON documents: all of them or none."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("path", help="a bundle; for json, a document or a folder of them")
        parser.add_argument("--format", choices=FORMATS, default=FORMATS[0])
        parser.add_argument(
            "--new-ids", action="store_true", help="as a copy, beside what has the same ids"
        )

    def run(self, options: dict[str, Any]) -> Result:
        # Registers the framework's types, where it is installed.
        with contextlib.suppress(ImportError):
            import checkpoints_app.adapters.agent_framework  # noqa: F401
        path = Path(options["path"])
        try:
            if options["format"] == "json":
                return _import_documents(path, new_ids=options["new_ids"])
            with path.open("rb") as file:
                found = archive.import_bundle(file, actor=TERMINAL, new_ids=options["new_ids"])
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
        data = {
            "checkpoints": found.checkpoints,
            "already_there": found.already_there,
            "events": found.events,
            "signed_by": found.signed_by,
            "ids": {str(old): str(new) for old, new in found.ids.items()},
        }
        return Result(data=data)

    def show(self, result: Result) -> str:
        data = result.data
        lines = [
            f"{data['checkpoints']} checkpoints imported, {data['already_there']} were there "
            "already."
        ]
        if not data["signed_by"]:
            lines.append("No trusted key signed them, so they can be read and not run.")
        return "\n".join(lines)


def _rows(options: dict[str, Any]) -> QuerySet[Checkpoint]:
    rows = Checkpoint.objects.all()
    if options["run"]:
        return rows.filter(run_id=options["run"])
    if options["workflow"]:
        return rows.filter(workflow=options["workflow"])
    if options["checkpoint"]:
        try:
            return rows.filter(pk=UUID(options["checkpoint"]))
        except ValueError as error:
            raise CheckpointError(
                f"{options['checkpoint'][:64]!r} is no id of a checkpoint. List them to see theirs."
            ) from error
    return rows


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that is complete, or not there."""
    try:
        file = path.open("xb")
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be written: {error.strerror}. Name a new file."
        ) from error
    try:
        with file:
            yield file
    except BaseException:
        path.unlink()
        raise


def _write_documents(rows: QuerySet[Checkpoint], folder: Path) -> int:
    if not rows.exists():
        raise CheckpointError("There are no such checkpoints. List them to see their ids.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be made: {error.strerror}.") from error
    count = 0
    for row in rows.order_by("pk").iterator(100):
        count += 1
        document = predecessor.document_of(row)
        with _new_file(folder / f"{row.pk}.json") as file:
            file.write(json.dumps(document, indent=2).encode())
    audit.record(TERMINAL, "checkpoints.export", count=count, format="json")
    return count


def _import_documents(path: Path, *, new_ids: bool) -> Result:
    if new_ids:
        raise CheckpointError("JSON documents keep their ids. Leave --new-ids out.")
    paths = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not paths:
        raise CheckpointError(f"There is no .json file in {path}.")
    contents = (_content(each) for each in paths)
    found = predecessor.import_documents(contents, actor=TERMINAL)
    return Result(data={**asdict(found), "signed_by": ""})


def _content(path: Path) -> bytes:
    """No more of it than the largest document may have, and one byte to tell."""
    with path.open("rb") as file:
        return file.read(predecessor.MAX_BYTES + 1)

"""Finding, reading and marking checkpoints: list, search, show, name, note, tag, pin, reindex."""

from __future__ import annotations

from abc import abstractmethod
from argparse import ArgumentParser
from collections.abc import Iterable
from typing import Any

from checkpoints_app import marks, messages, search, store
from checkpoints_app.audit import Actor
from checkpoints_app.fulltext import Fragment
from checkpoints_app.models import AuditEvent, Checkpoint

from .base import Result, Verb

TERMINAL = Actor(user=None, origin=AuditEvent.Origin.TERMINAL)
SHOWN_ROWS = 20


class List(Verb):
    summary = "List checkpoints, newest first."

    def add_arguments(self, parser: ArgumentParser) -> None:
        for name, filter in search.FILTERS.items():
            parser.add_argument(
                f"--{name}", action="append", default=[], metavar="VALUE", help=filter.meaning
            )
        parser.add_argument(
            "--limit", type=int, default=SHOWN_ROWS, help=f"at most {search.MAX_LIMIT} entries"
        )
        parser.add_argument(
            "--after", default="", metavar="CURSOR", help="the next page, as the last one named it"
        )

    def run(self, options: dict[str, Any]) -> Result:
        page = search.search(
            {name: options[name] for name in search.FILTERS if options[name]},
            text=options.get("text", ""),
            after=options["after"],
            limit=options["limit"],
        )
        return Result(data={"checkpoints": [_hit(hit) for hit in page.hits], "next": page.next})

    def show(self, result: Result) -> str:
        rows = result.data["checkpoints"]
        if not rows:
            return "No checkpoint fits."
        header = ("ID", "CREATED", "RUN", "ROUND", "PHASE", "AGENT", "STATUS", "MARKS")
        return _with_next("\n".join(table(header, map(_cells, rows))), result)


class Search(List):
    summary = "Search the text of messages, latest first."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "text", help='words that must all occur; a "phrase in quotes"; a beginning with *'
        )
        super().add_arguments(parser)

    def show(self, result: Result) -> str:
        rows = result.data["checkpoints"]
        if not rows:
            return "No message fits. Words are searched whole: end one with * to find beginnings."
        parts = [
            f"{row['id']}  round {row['round']} of run {row['run']}\n"
            f"  {row['author']}: {_marked(row['snippet'])}"
            for row in rows
        ]
        return _with_next("\n".join(parts), result)


class Show(Verb):
    summary = "Show one checkpoint: what is known about it, and the messages in it."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("checkpoint", help="its id")
        parser.add_argument("--state", action="store_true", help="with --json: the whole state too")

    def run(self, options: dict[str, Any]) -> Result:
        entry = store.entry_of(options["checkpoint"])
        tree = store.state(entry.pk)
        said = messages.in_state(tree).values()
        data = {
            **describe(entry),
            "note": entry.note,
            "superstep": entry.superstep,
            "workflow_name": entry.workflow_name,
            "backend": entry.backend,
            "digest": bytes(entry.digest).hex(),
            "size_bytes": entry.size_bytes,
            "new_bytes": entry.new_bytes,
            "messages": [{"author": message.author, "text": message.text} for message in said],
        }
        return Result(data={**data, "state": tree} if options["state"] else data)

    def show(self, result: Result) -> str:
        hidden = ("messages", "state")
        facts = {key: value for key, value in result.data.items() if key not in hidden}
        width = max(map(len, facts))
        lines = [f"{key:{width}}  {_cell(value)}" for key, value in facts.items()]
        for message in result.data["messages"]:
            lines += ["", f"{message['author']}:", message["text"].strip()]
        return "\n".join(lines)


class Marking(Verb):
    """Changes what is said about one checkpoint, and shows its row."""

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("checkpoint", help="its id")

    def run(self, options: dict[str, Any]) -> Result:
        return Result(data=describe(self.mark(options)))

    @abstractmethod
    def mark(self, options: dict[str, Any]) -> Checkpoint: ...

    def show(self, result: Result) -> str:
        data = result.data
        said = ", ".join(filter(None, (data["name"], *data["tags"]))) or "no name, no tags"
        return f"{data['id']}: {said}{', pinned' if data['pinned'] else ''}"


class Pin(Marking):
    summary = "Keep a checkpoint in every retention."

    def mark(self, options: dict[str, Any]) -> Checkpoint:
        return marks.pin(options["checkpoint"], actor=TERMINAL)


class Unpin(Marking):
    summary = "Let retention decide about a checkpoint again."

    def mark(self, options: dict[str, Any]) -> Checkpoint:
        return marks.unpin(options["checkpoint"], actor=TERMINAL)


class Name(Marking):
    summary = "Give a checkpoint a name, or take it away with an empty one."

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("name", help="one line")

    def mark(self, options: dict[str, Any]) -> Checkpoint:
        return marks.rename(options["checkpoint"], options["name"], actor=TERMINAL)


class Note(Marking):
    summary = "Put a note on a checkpoint in place of the one it has."

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("note", help="text; empty to take it away")

    def mark(self, options: dict[str, Any]) -> Checkpoint:
        return marks.annotate(options["checkpoint"], options["note"], actor=TERMINAL)


class Tag(Marking):
    summary = "Add tags to a checkpoint, or remove them."

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("tags", nargs="*", metavar="TAG", help="a tag to add")
        parser.add_argument("--remove", action="append", default=[], metavar="TAG")

    def mark(self, options: dict[str, Any]) -> Checkpoint:
        return marks.tag(
            options["checkpoint"],
            add=options["tags"],
            remove=options["remove"],
            actor=TERMINAL,
        )


class Reindex(Verb):
    summary = "Rebuild the full text of all messages out of the states."

    def add_arguments(self, parser: ArgumentParser) -> None:
        pass

    def run(self, options: dict[str, Any]) -> Result:
        indexed, unreadable = search.reindex()
        data = {"indexed": indexed, "unreadable": [str(id) for id in unreadable]}
        return Result(data=data, is_ok=not unreadable)

    def show(self, result: Result) -> str:
        lines = [f"{result.data['indexed']} checkpoints indexed."]
        lines += [
            f"{id} cannot be read. `checkpoints verify` says why."
            for id in result.data["unreadable"]
        ]
        return "\n".join(lines)


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a row of a listing has, as plain JSON."""
    return {
        "id": str(checkpoint.pk),
        "parent": str(checkpoint.parent_id) if checkpoint.parent_id else None,
        "workflow": checkpoint.workflow,
        "run": checkpoint.run_id,
        "position": checkpoint.position,
        "round": checkpoint.round,
        "phase": checkpoint.phase,
        "agent": checkpoint.agent,
        "source": checkpoint.source,
        "status": checkpoint.status,
        "team": checkpoint.team,
        "cost_usd": str(checkpoint.cost_usd),
        "created_at": checkpoint.created_at.isoformat(),
        "name": checkpoint.name,
        "tags": checkpoint.tags,
        "pinned": checkpoint.is_pinned,
        "read_only": checkpoint.is_read_only,
    }


def table(header: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> list[str]:
    """Lines with columns as wide as what is in them."""
    cells = [header, *(tuple(map(_cell, row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]


def _hit(hit: search.Hit) -> dict[str, Any]:
    row = describe(hit.checkpoint)
    if hit.snippet:
        row["author"] = hit.author
        row["snippet"] = [
            {"text": fragment.text, "is_match": fragment.is_match} for fragment in hit.snippet
        ]
    return row


def _cells(row: dict[str, Any]) -> tuple[Any, ...]:
    said = " ".join(["pinned"] * row["pinned"] + [f"#{tag}" for tag in row["tags"]] + [row["name"]])
    created = row["created_at"][:19].replace("T", " ")
    keys = ("round", "phase", "agent", "status")
    return row["id"], created, row["run"], *(row[key] for key in keys), said.strip()


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value)
    return "" if value is None else str(value)


def _marked(snippet: list[dict[str, Any]]) -> str:
    fragments = (Fragment(**part) for part in snippet)
    return "".join(f"[{part.text}]" if part.is_match else part.text for part in fragments)


def _with_next(text: str, result: Result) -> str:
    cursor = result.data["next"]
    return f"{text}\nMore: add --after {cursor}" if cursor else text

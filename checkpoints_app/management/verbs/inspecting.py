"""Comparing checkpoints, checking that they can be read, and their sizes: diff, verify, stats."""

from __future__ import annotations

from argparse import ArgumentParser
from dataclasses import asdict
from typing import Any

from checkpoints_app import diff, inspection, store

from .base import Result, Verb
from .finding import describe, table

SIGNS = {"added": "+", "removed": "-", "changed": "~"}
WEAVE = {"same": "{}", "added": "[+{}+]", "removed": "[-{}-]"}


class Diff(Verb):
    summary = "Compare two checkpoints: conversation, plan, ledger, limits, usage, and the rest."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("first", help="id of the checkpoint to compare from")
        parser.add_argument("second", help="id of the checkpoint to compare to")

    def run(self, options: dict[str, Any]) -> Result:
        entries = [store.entry_of(options[name]) for name in ("first", "second")]
        found = diff.compare(*(store.state(entry.pk) for entry in entries))
        sections = {
            name: {**asdict(section), "left_out": section.left_out}
            for name, section in vars(found).items()
        }
        return Result(
            data={
                "first": describe(entries[0]),
                "second": describe(entries[1]),
                "is_equal": found.is_empty,
                "sections": sections,
            }
        )

    def show(self, result: Result) -> str:
        data = result.data
        lines = [
            f"{name}: {row['id']}, round {row['round']}, {row['phase']}, {row['cost_usd']} USD"
            for name, row in (("from", data["first"]), ("to", data["second"]))
        ]
        if data["is_equal"]:
            return "\n".join([*lines, "The two states are equal."])
        for name, section in data["sections"].items():
            if sum(section["counts"].values()):
                lines += ["", _heading(name, section["counts"]), *map(_line, section["changes"])]
                if section["left_out"]:
                    lines.append(f"… and {section['left_out']} more")
        return "\n".join(lines)


def _heading(name: str, counts: dict[str, int]) -> str:
    return f"{name.upper()}  " + ", ".join(f"{n} {kind}" for kind, n in counts.items() if n)


def _line(change: dict[str, Any]) -> str:
    place = change["path"] if "path" in change else f"{change['author']}:"
    return f"{SIGNS[change['kind']]} {place} {_value(change)}"


def _value(change: dict[str, Any]) -> str:
    if change["words"]:
        return "".join(WEAVE[kind].format(text) for kind, text in change["words"])
    if "text" in change:
        return str(change["text"]).strip()
    before, after = change["before"], change["after"]
    values = {"added": f"{after}", "removed": f"{before}", "changed": f"{before} → {after}"}
    return values[change["kind"]]


class Verify(Verb):
    summary = "Read every chunk that checkpoints need, and check it. Exit code 1 when one is bad."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("checkpoints", nargs="*", metavar="CHECKPOINT", help="all without one")

    def run(self, options: dict[str, Any]) -> Result:
        found = inspection.verify(options["checkpoints"] or None)
        data = asdict(found)
        data["named"] = {str(one.checkpoint_id): one.reason for one in found.named}
        return Result(data=data, is_ok=found.is_ok)

    def show(self, result: Result) -> str:
        data = result.data
        lines = [
            f"{data['checkpoints']} checkpoints and their {data['chunks']} chunks read: "
            f"{data['missing']} chunks missing, {data['corrupt']} corrupt, "
            f"{data['damaged']} checkpoints damaged."
        ]
        lines += data["named"].values()
        if data["damaged"] > len(data["named"]):
            lines.append(f"… and {data['damaged'] - len(data['named'])} more")
        if data["unreferenced"]:
            lines.append(
                f"{data['unreferenced']} chunks belong to no checkpoint: `prune` sweeps them."
            )
        return "\n".join(lines)


class Stats(Verb):
    summary = "Count checkpoints and bytes by backend, workflow and run."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--limit", type=int, default=20, help="workflows and runs to list")

    def run(self, options: dict[str, Any]) -> Result:
        found = inspection.stats(limit=max(1, options["limit"]))
        return Result(data={**asdict(found), "sharing_ratio": found.sharing_ratio})

    def show(self, result: Result) -> str:
        data = result.data
        ratio = f", {data['sharing_ratio']:.1f} times smaller" if data["sharing_ratio"] else ""
        index = data["search_index"]
        lines = [
            f"{data['checkpoints']} checkpoints, {data['size_bytes']:,} bytes of state, stored in "
            f"{data['stored_bytes']:,} bytes{ratio}.",
            f"Search index: {index['messages']} messages, {index['size_bytes']:,} bytes.",
        ]
        for name, usage in data["backends"].items():
            lines.append(
                f"Backend {name}: {usage['chunks']} chunks, {usage['size_bytes']:,} bytes."
            )
        for name in ("workflow", "run"):
            header = (name.upper(), "CHECKPOINTS", "STATE BYTES", "ADDED BYTES")
            shares = [tuple(share.values()) for share in data[f"by_{name}"]]
            lines += ["", *table(header, shares)]
        return "\n".join(lines)

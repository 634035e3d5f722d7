"""Files given with a task: checked, summarised, and kept under the SHA-256 of their bytes."""

from __future__ import annotations

import hashlib
import os
import tempfile
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from django.conf import settings

from .reader import LINES_TABLE, Reader, ReaderError, table_names

MAX_NAME_CHARACTERS = 200
_PIECE_BYTES = 1024 * 1024

HEADING = "Attached files:"
"""The first line of `describe`, by which the paragraph is found in a task."""


class AttachmentRefused(ValueError):
    """This file can't be attached. The text says why and what to do instead."""


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """A file in the attachment folder.

    `summary` of a table file is `{"tables": [{"name", "rows", "columns": [{"name", "type"}]}]}`,
    of a text `{"characters", "lines"}`.
    """

    name: str
    kind: str
    sha256: str
    size_bytes: int
    summary: dict[str, Any]


class Described(Protocol):
    """What `describe` reads of a file: a `StoredFile` or an `Attachment` row."""

    name: str
    kind: str
    summary: dict[str, Any]


def check(names: Sequence[str]) -> None:
    """Refuse too many files, and two of one name, before anything is read."""
    if len(names) > settings.ATTACHMENT_MAX_COUNT:
        raise AttachmentRefused(
            f"{len(names)} files are too many: attach at most {settings.ATTACHMENT_MAX_COUNT}."
        )
    seen = set()
    for name in map(_checked_name, names):
        if name.casefold() in seen:
            raise AttachmentRefused(f"Two files are named {name}. Rename one of them.")
        seen.add(name.casefold())


def store(file: IO[bytes], *, name: str) -> StoredFile:
    """Read, check and keep the file; keeping the same bytes twice does nothing twice.

    The bytes are streamed. The file appears in the folder whole or not at all, and only when it
    could be read as what its name says. Raises `AttachmentRefused`.
    """
    name = _checked_name(name)
    settings.ATTACHMENT_DIR.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, draft = tempfile.mkstemp(dir=settings.ATTACHMENT_DIR, prefix=".draft-")
    try:
        with os.fdopen(handle, "wb") as copy:
            sha256, size_bytes = _copy(file, copy, name)
        summary = _summary(Path(draft), name)
        kind = summary.pop("kind")
        _keep(Path(draft), sha256)
    finally:
        Path(draft).unlink(missing_ok=True)
    return StoredFile(name=name, kind=kind, sha256=sha256, size_bytes=size_bytes, summary=summary)


def describe(attachments: Iterable[Described]) -> str:
    """The paragraph that tells the agents what is attached; "" without files.

    Made from the summaries alone. It names the tables as a `Workspace` over the same files does.
    """
    files = in_order(attachments)
    if not files:
        return ""
    names = table_names(file.summary for file in files)
    lines = [HEADING]
    for file, tables in zip(files, names, strict=True):
        if file.kind == "text":
            lines.append(_text_line(file))
        for table, summary in zip(tables, file.summary.get("tables", ()), strict=True):
            lines.append(_table_line(file.name, table, summary))
    if any(file.kind == "text" for file in files):
        lines.append(f"Texts can also be queried: table {LINES_TABLE} (document, line, text).")
    return "\n".join(lines)


def in_order[D: Described](attachments: Iterable[D]) -> list[D]:
    """The order in which files are opened together: it decides which of two tables is `name_2`."""
    return sorted(attachments, key=lambda file: file.name)


def _text_line(file: Described) -> str:
    characters, lines = file.summary["characters"], file.summary["lines"]
    return f"- {file.name}: text, {_count(lines, 'line')}, {_count(characters, 'character')}"


def _table_line(name: str, table: str, summary: dict[str, Any]) -> str:
    columns = ", ".join(f"{_column(c['name'])} {_type(c['type'])}" for c in summary["columns"])
    return f"- {name}: table {table}, {_count(summary['rows'], 'row')}, columns {columns}"


def _column(name: str) -> str:
    """The name as SQL wants it, on one line."""
    return '"' + " ".join(name.split()).replace('"', '""') + '"'


def _type(name: str) -> str:
    """A nested type by its outermost word: its fields would fill the page."""
    return name if name.startswith("DECIMAL") else name.partition("(")[0]


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _checked_name(name: str) -> str:
    name = unicodedata.normalize("NFC", name).strip()
    if not name or name.startswith("."):
        raise AttachmentRefused("A file needs a name, such as sales.csv. Rename it.")
    if len(name) > MAX_NAME_CHARACTERS:
        raise AttachmentRefused(
            f"The name {name[:40]}… is too long: use at most {MAX_NAME_CHARACTERS} characters."
        )
    if any(sign in "/\\" or unicodedata.category(sign).startswith("C") for sign in name):
        shown = "".join(sign if sign.isprintable() else "?" for sign in name)
        raise AttachmentRefused(
            f"The name {shown} holds a path or a control character. Rename the file."
        )
    return name


def _copy(file: IO[bytes], copy: IO[bytes], name: str) -> tuple[str, int]:
    """SHA-256 and size of what was copied."""
    digest, size_bytes = hashlib.sha256(), 0
    while piece := file.read(_PIECE_BYTES):
        size_bytes += len(piece)
        if size_bytes > settings.ATTACHMENT_MAX_BYTES:
            limit = settings.ATTACHMENT_MAX_BYTES / 1024**2
            raise AttachmentRefused(
                f"{name} is larger than {limit:,.0f} MB. Attach only the rows or pages that matter."
            )
        digest.update(piece)
        copy.write(piece)
    if not size_bytes:
        raise AttachmentRefused(f"{name} is empty. Check the file and attach it again.")
    return digest.hexdigest(), size_bytes


def _summary(path: Path, name: str) -> dict[str, Any]:
    with Reader([(name, path)]) as reader:
        try:
            return reader.summaries()[0]
        except ReaderError as error:
            text = str(error)
            raise AttachmentRefused(text if text.startswith(name) else f"{name}: {text}") from error


def _keep(draft: Path, sha256: str) -> None:
    target = settings.ATTACHMENT_DIR / sha256[:2] / sha256
    target.parent.mkdir(exist_ok=True, mode=0o700)
    draft.replace(target)

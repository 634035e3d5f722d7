"""Bundles for tests: true ones, and ones that were tampered with and signed again."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

from checkpoints_app import archive, bundle
from checkpoints_app.audit import SYSTEM
from checkpoints_app.bundle import Limits, Reader, Writer
from checkpoints_app.models import Checkpoint, Chunk

type Entries = dict[str, bytes]

PATHS = ("manifest.json", "checkpoints/{}.json", "chunks/{}", "events/{}.json", "end.json")


def exported() -> bytes:
    """Everything that is stored, as a bundle."""
    file = io.BytesIO()
    archive.export_bundle(Checkpoint.objects.all(), file, actor=SYSTEM)
    return file.getvalue()


def imported(data: bytes, **options: Any) -> archive.Imported:
    return archive.import_bundle(io.BytesIO(data), actor=SYSTEM, **options)


def entries_of(data: bytes) -> Entries:
    """What a bundle holds, by path, without its end."""
    reader = Reader(io.BytesIO(data), limits=Limits())
    found = {PATHS[entry.section].format(entry.name): entry.data for entry in reader}
    del found["end.json"]
    return found


def packed(entries: Entries, *, key: bytes | None = None) -> bytes:
    """A bundle of these entries as they are, signed with the site's own key or another one."""
    file = io.BytesIO()
    writer = Writer(file)
    for path, data in entries.items():
        writer.add(path, data)
    writer.finish(archive.site_key() if key is None else key)
    return file.getvalue()


def changed(data: bytes, change: Callable[[dict[str, Any]], object], *, which: int = 0) -> bytes:
    """The bundle with one of its index rows changed, and signed anew."""
    entries = entries_of(data)
    path = [path for path in entries if path.startswith("checkpoints/")][which]
    document = json.loads(entries[path])
    change(document)
    return packed(entries | {path: bundle.dump(document)})


def forget_everything() -> None:
    Checkpoint.objects.all().delete()
    Chunk.objects.all().delete()

"""Taking checkpoints out as one signed bundle, and bringing them in again, elsewhere or later.

Importing has two passes. The first reads the whole bundle into a temporary database without a name,
and checks all of it; nothing else is written. The second writes rows and chunks in one transaction.
`bundle.py` has the format.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import sqlite3
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import batched
from typing import IO, Any
from uuid import UUID

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import IntegrityError
from django.db.models import QuerySet
from django.utils.crypto import salted_hmac
from django.utils.timezone import is_aware

from . import audit, backends, bundle, chunks, fulltext, locks, search
from .audit import Actor
from .bundle import Entry, Limits, Reader, Writer
from .chunks import Shape
from .codec import MAX_DEPTH
from .errors import BundleRefused, CheckpointConflict, CheckpointCorrupt, CheckpointError
from .models import Checkpoint
from .walk import Walk

type Document = Mapping[str, Any]
type TellEvents = Callable[[Collection[str]], Iterable[Document]]

ROWS = 500
DEPTH = 3 * MAX_DEPTH + 50
"""Levels of a state that any program of ours can have written, and can load."""
_FIELDS = (
    "run_id", "position", "phase", "superstep", "round", "agent", "workflow_name", "workflow",
    "status", "team", "name", "note", "source", "tags", "is_pinned", "is_read_only", "size_bytes",
)  # fmt: skip
_SAME = ("run_id", "position", "phase", "superstep", "round", "agent", "workflow_name")
"""What equal ids must agree on, beside the state. The rest are marks, which people change."""
_events: list[TellEvents] = []


@dataclass(frozen=True, kw_only=True)
class Exported:
    checkpoints: int
    chunks: int
    events: int
    key: str
    """The id of the key that signed it."""


@dataclass(frozen=True, kw_only=True)
class Imported:
    checkpoints: int
    """Written now."""
    already_there: int
    """Of the same id and content: left as they were."""
    events: int
    """Read and checked. They tell a reader what happened; nothing here keeps them."""
    signed_by: str
    """"this site", the name of a trusted key, or "" for neither."""
    ids: Mapping[UUID, UUID] = field(default_factory=dict)
    """From the ids in the bundle to those given here."""

    @property
    def is_trusted(self) -> bool:
        return bool(self.signed_by)


def register_events(tell: TellEvents) -> TellEvents:
    """Let `tell` give the documents that go into a bundle with the runs of these ids."""
    _events.append(tell)
    return tell


def site_key() -> bytes:
    """The key that signs this site's bundles, derived from SECRET_KEY."""
    return _derived(settings.SECRET_KEY)


def export_bundle(rows: QuerySet[Checkpoint], file: IO[bytes], *, actor: Actor) -> Exported:
    """Write the checkpoints in `rows`, their chunks, and their runs' events, to `file`.

    Reads and writes one piece at a time. Audited. Raises CheckpointError when there are none, and
    CheckpointCorrupt when a state cannot be read, or goes while it is being read.
    """
    if not rows.exists():
        raise CheckpointError("There are no such checkpoints. List them to see their ids.")
    writer = Writer(file)
    writer.add_json(bundle.MANIFEST, _manifest())
    with Walk() as walk:
        walk.catch_up(rows)
        count = 0
        for row in rows.order_by("pk").iterator(ROWS):
            writer.add_json(f"checkpoints/{row.pk}.json", _document(row))
            count += 1
        places = rows.order_by().values_list("backend", flat=True).distinct()
        for digest, content in _contents(walk, list(places)):
            writer.add(f"chunks/{digest.hex()}", content)
        chunk_count = len(walk.reached)
    event_count = 0
    for event_count, event in enumerate(_told(rows), start=1):
        writer.add_json(f"events/{event_count:08}.json", event)
    key = site_key()
    writer.finish(key)
    audit.record(actor, "checkpoints.export", count=count, key=bundle.key_id(key))
    return Exported(
        checkpoints=count, chunks=chunk_count, events=event_count, key=bundle.key_id(key)
    )


def import_bundle(
    file: IO[bytes], *, actor: Actor, new_ids: bool = False, limits: Limits | None = None
) -> Imported:
    """Bring in all checkpoints of a bundle, or none.

    Repeating it changes nothing: what is there already, with the same content, is left alone. With
    `new_ids` checkpoints, runs and workflows get ids of their own, and the lineage follows. A
    bundle that neither this site nor a key in FLEET_TRUSTED_BUNDLE_KEYS signed comes in read-only.

    Raises BundleRefused, with the reason, and CheckpointConflict when an id, or a place in a run,
    is taken by something else. Either way nothing was written.
    """
    limits = limits or Limits()
    with _Stage() as stage:
        stage.read(file, limits)
        stage.check()
        with locks.saving():
            imported, written = _Importer(stage, new_ids=new_ids).write()
            audit.record(
                actor,
                "checkpoints.import",
                count=imported.checkpoints,
                already_there=imported.already_there,
                signed_by=imported.signed_by,
                sha256=stage.digest.hex(),
            )
    _index(written)
    return imported


def _derived(secret: str | bytes) -> bytes:
    return salted_hmac("checkpoints_app.bundle", b"", secret=secret, algorithm="sha256").digest()


def _trusted_keys() -> dict[str, tuple[str, bytes]]:
    """Names and keys by the keys' ids."""
    own = [settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS]
    keys = [("this site", _derived(secret)) for secret in own]
    for text in getattr(settings, "FLEET_TRUSTED_BUNDLE_KEYS", ()):
        name, _, digits = text.partition(":")
        try:
            keys.append((name, bytes.fromhex(digits)))
        except ValueError as error:
            raise BundleRefused(
                f"FLEET_TRUSTED_BUNDLE_KEYS has a key {name[:40]!r} that is not NAME:HEX. "
                "Print it on the other site: checkpoints export --print-key."
            ) from error
    return {bundle.key_id(key): (name, key) for name, key in keys}


def _manifest() -> dict[str, Any]:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"kind": bundle.KIND, "format": bundle.FORMAT, "created_at": now}


def _document(row: Checkpoint) -> dict[str, Any]:
    return {
        **{name: getattr(row, name) for name in _FIELDS},
        "parent": str(row.parent_id) if row.parent_id else None,
        "cost_usd": str(row.cost_usd),
        "created_at": row.created_at.isoformat(),
        "digest": bytes(row.digest).hex(),
        "manifest": base64.b64encode(chunks.unseal(bytes(row.manifest))).decode(),
    }


def _contents(walk: Walk, addresses: list[str]) -> Iterator[tuple[bytes, bytes]]:
    for batch in batched(walk.reached.in_order(), ROWS):
        found: dict[bytes, bytes] = {}
        for address in addresses:
            found.update(backends.at(address).get(set(batch) - found.keys()))
        for digest in batch:
            if digest not in found:
                raise CheckpointCorrupt(
                    f"Chunk {digest.hex()[:16]} is gone: its checkpoint expired meanwhile, or the "
                    "store is damaged. Export again, or run checkpoints verify."
                )
            yield digest, chunks.verified(digest, found[digest])


def _told(rows: QuerySet[Checkpoint]) -> Iterator[Document]:
    runs = list(rows.order_by("run_id").values_list("run_id", flat=True).distinct())
    for tell in _events:
        yield from tell(runs)


def _index(ids: Collection[UUID]) -> None:
    """Make the messages searchable, after the fact: `checkpoints reindex` repairs a crash here."""
    if fulltext.is_enabled():
        for batch in batched(ids, ROWS):
            rows = Checkpoint.objects.filter(pk__in=batch).order_by("run_id", "position")
            search.index(rows)


class _Stage:
    """A bundle's content, in a temporary database that goes with the process."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None)
        for statement in (
            "PRAGMA journal_mode = OFF",
            "CREATE TABLE rows (id TEXT PRIMARY KEY, run TEXT, position INTEGER, document TEXT,"
            " UNIQUE (run, position))",
            "CREATE TABLE chunks (digest BLOB PRIMARY KEY, content BLOB,"
            " depth INTEGER, size_bytes INTEGER, is_list INTEGER)",
        ):
            self._database.execute(statement)
        self.parents: dict[UUID, UUID | None] = {}
        self.events = 0
        self.digest = b""
        self.signed_by = ""

    def __enter__(self) -> _Stage:
        return self

    def __exit__(self, *error: object) -> None:
        self._database.close()

    def read(self, file: IO[bytes], limits: Limits) -> None:
        """Take everything in, checking each entry by itself."""
        counts = dict.fromkeys(range(5), 0)
        most = {1: limits.checkpoints, 2: limits.chunks, 3: limits.events}
        takers = [self._take_manifest, self._take_row, self._take_chunk, self._take_event]
        with Reader(file, limits=limits) as reader:
            for entry in reader:
                counts[entry.section] += 1
                if counts[entry.section] > most.get(entry.section, 1):
                    raise BundleRefused(
                        f"The bundle has more than {most[entry.section]} entries of one kind. "
                        "Export fewer checkpoints at a time."
                    )
                if entry.section < len(takers):
                    takers[entry.section](entry)
                else:
                    self._take_end(entry, reader.digest)

    def check(self) -> None:
        """Check what holds between the entries."""
        if not self.parents:
            raise BundleRefused("The bundle holds no checkpoint.")
        _refuse_cycles(self.parents)
        for entry in self.entries():
            self._check_state(entry)
        unused = "SELECT digest FROM chunks WHERE depth IS NULL LIMIT 1"
        if found := self._database.execute(unused).fetchone():
            raise BundleRefused(f"The bundle holds chunk {found[0].hex()[:16]}, which none needs.")

    def entries(self) -> Iterator[Checkpoint]:
        """Unsaved index rows, in the order of their runs. Their manifests are not sealed yet."""
        query = "SELECT id, document FROM rows ORDER BY run, position"
        for id, document in self._database.execute(query):
            yield _entry(UUID(id), json.loads(document))

    def contents(self) -> Iterator[tuple[bytes, bytes]]:
        yield from self._database.execute("SELECT digest, content FROM chunks ORDER BY digest")

    def _take_manifest(self, entry: Entry) -> None:
        manifest = bundle.parse(entry.data, "The manifest")
        if manifest.get("kind") != bundle.KIND:
            raise BundleRefused("This is no bundle of checkpoints.")
        version = manifest.get("format")
        if type(version) is not int or version != bundle.FORMAT:
            raise BundleRefused(
                f"The bundle has format {str(version)[:20]!r}, this version reads "
                f"{bundle.FORMAT}. Upgrade to the version that wrote it."
            )

    def _take_row(self, entry: Entry) -> None:
        document = bundle.parse(entry.data, f"Checkpoint {entry.name}")
        row = _entry(UUID(entry.name), document)
        _check_row(row)
        self.parents[row.pk] = row.parent_id
        values = (entry.name, row.run_id, row.position, entry.data.decode())
        try:
            self._database.execute("INSERT INTO rows VALUES (?, ?, ?, ?)", values)
        except sqlite3.IntegrityError as error:
            raise BundleRefused(
                f"Two checkpoints of run {row.run_id[:64]!r} have position {row.position}."
            ) from error

    def _take_chunk(self, entry: Entry) -> None:
        digest = bytes.fromhex(entry.name)
        if chunks.digest_of(entry.data) != digest:
            raise BundleRefused(f"Chunk {entry.name[:16]} fails its SHA-256 check.")
        self._database.execute(
            "INSERT INTO chunks (digest, content) VALUES (?, ?)", (digest, entry.data)
        )

    def _take_event(self, entry: Entry) -> None:
        bundle.parse(entry.data, f"Event {entry.name}")
        self.events += 1

    def _take_end(self, entry: Entry, digest: bytes) -> None:
        end = bundle.parse(entry.data, "The end of the bundle")
        if end.get("sha256") != digest.hex():
            raise BundleRefused("The bundle fails its SHA-256 check. Copy or export it again.")
        self.digest = digest
        name, key = _trusted_keys().get(str(end.get("key")), ("", b""))
        if not name:
            return
        expected = bundle.sign(key, digest).encode()
        if not hmac.compare_digest(str(end.get("signature")).encode(), expected):
            raise BundleRefused(f"The bundle claims to be signed by {name}, and is not.")
        self.signed_by = name

    def _check_state(self, entry: Checkpoint) -> None:
        manifest = bytes(entry.manifest)
        try:
            self._measure(chunks.manifest_references(manifest))
            shape = chunks.manifest_shape(manifest, self._shape)
        except CheckpointError as error:
            raise BundleRefused(f"Checkpoint {entry.pk} is refused. {error}") from error
        if shape.depth > DEPTH:
            raise BundleRefused(f"Checkpoint {entry.pk} nests deeper than {DEPTH} levels.")

    def _measure(self, digests: Collection[bytes]) -> None:
        """Note the shape of each of these chunks and of all below them, those below first."""
        path: list[tuple[bytes, Iterator[bytes]]] = [(b"", iter(digests))]
        while path:
            digest, below = path[-1]
            new = next((each for each in below if not self._is_measured(each)), None)
            if new is not None:
                if len(path) > DEPTH:
                    raise BundleRefused(f"Its chunks nest deeper than {DEPTH} levels.")
                path.append((new, iter(chunks.references(self._content(new)))))
                continue
            path.pop()
            if digest:
                self._note_shape(digest, chunks.shape(self._content(digest), self._shape))

    def _is_measured(self, digest: bytes) -> bool:
        query = "SELECT depth IS NOT NULL FROM chunks WHERE digest = ?"
        found = self._database.execute(query, (digest,)).fetchone()
        if found is None:
            raise BundleRefused(f"The bundle lacks chunk {digest.hex()[:16]}.")
        return bool(found[0])

    def _content(self, digest: bytes) -> bytes:
        query = "SELECT content FROM chunks WHERE digest = ?"
        (content,) = self._database.execute(query, (digest,)).fetchone()
        return bytes(content)

    def _note_shape(self, digest: bytes, shape: Shape) -> None:
        self._database.execute(
            "UPDATE chunks SET depth = ?, size_bytes = ?, is_list = ? WHERE digest = ?",
            (shape.depth, shape.size_bytes, shape.is_list, digest),
        )

    def _shape(self, digest: bytes) -> Shape:
        query = "SELECT depth, size_bytes, is_list FROM chunks WHERE digest = ?"
        depth, size_bytes, is_list = self._database.execute(query, (digest,)).fetchone()
        return Shape(depth=depth, size_bytes=size_bytes, is_list=bool(is_list))


def _entry(id: UUID, document: Document) -> Checkpoint:
    """The unsaved row that a document describes."""
    extra = document.keys() ^ {*_FIELDS, "parent", "cost_usd", "created_at", "digest", "manifest"}
    if extra:
        raise BundleRefused(f"Checkpoint {id} lacks, or should not have, {min(extra)[:40]!r}.")
    try:
        return Checkpoint(
            id=id,
            parent_id=UUID(document["parent"]) if document["parent"] else None,
            cost_usd=document["cost_usd"],
            created_at=datetime.fromisoformat(document["created_at"]),
            digest=bytes.fromhex(document["digest"]),
            manifest=base64.b64decode(document["manifest"], validate=True),
            new_bytes=0,
            **{name: document[name] for name in _FIELDS},
        )
    except (TypeError, ValueError, AttributeError, binascii.Error) as error:
        raise BundleRefused(
            f"Checkpoint {id} has a field that is no such value: {error}"
        ) from error


def _check_row(entry: Checkpoint) -> None:
    _check_types(entry)
    try:
        entry.clean_fields(exclude=["parent"])
    except ValidationError as error:
        name, problems = next(iter(error.message_dict.items()))
        reason = f"{name}: {problems[0]}"[:200]
        raise BundleRefused(f"Checkpoint {entry.pk} has a bad {reason}") from error
    if not is_aware(entry.created_at) or not 1970 <= entry.created_at.year <= 9000:
        raise BundleRefused(f"Checkpoint {entry.pk} has a time without a zone, or of no age.")
    if chunks.digest_of(bytes(entry.manifest)) != entry.digest:
        raise BundleRefused(f"Checkpoint {entry.pk} fails its SHA-256 check.")


def _check_types(entry: Checkpoint) -> None:
    """What Django would convert, or the database refuse."""
    numbers = ("position", "superstep", "round", "size_bytes")
    texts = (*set(_FIELDS) - {*numbers, "tags", "is_pinned", "is_read_only"}, "cost_usd")
    is_sound = (
        all(type(getattr(entry, name)) is int for name in numbers)
        and all(_is_text(getattr(entry, name)) for name in texts)
        and all(type(getattr(entry, name)) is bool for name in ("is_pinned", "is_read_only"))
        and isinstance(entry.tags, list)
        and all(_is_text(tag) for tag in entry.tags)
    )
    if not is_sound:
        raise BundleRefused(f"Checkpoint {entry.pk} has a field of the wrong type.")


def _is_text(value: object) -> bool:
    return (
        isinstance(value, str)
        and "\0" not in value
        and not any("\ud800" <= character <= "\udfff" for character in value)
    )


def _refuse_cycles(parents: Mapping[UUID, UUID | None]) -> None:
    settled: set[UUID] = set()
    for start in parents:
        line: dict[UUID, None] = {}
        current: UUID | None = start
        while current is not None and current in parents and current not in settled:
            if current in line:
                raise BundleRefused(f"Checkpoint {current} would be its own ancestor.")
            line[current] = None
            current = parents[current]
        settled |= line.keys()


class _Importer:
    """The second pass. Everything was checked; what can still fail is what is here already."""

    def __init__(self, stage: _Stage, *, new_ids: bool) -> None:
        self.stage = stage
        self.is_trusted = bool(stage.signed_by)
        self.ids = {id: uuid.uuid4() if new_ids else id for id in stage.parents}
        self.names: dict[str, str] | None = {} if new_ids else None
        """New names of runs and workflows, when they get some."""

    def write(self) -> tuple[Imported, list[UUID]]:
        written: list[UUID] = []
        there = 0
        new_bytes = 0
        for batch in batched(self.stage.entries(), ROWS):
            entries = [self._here(entry) for entry in batch]
            known = Checkpoint.objects.in_bulk([entry.pk for entry in entries])
            for entry in entries:
                if entry.pk in known:
                    self._check_same(entry, known[entry.pk])
                    there += 1
            new = [entry for entry in entries if entry.pk not in known]
            if new and not written:
                new_bytes = self._put_chunks()
                new[0].new_bytes += new_bytes
            self._insert(new)
            written += [entry.pk for entry in new]
        imported = Imported(
            checkpoints=len(written),
            already_there=there,
            events=self.stage.events,
            signed_by=self.stage.signed_by,
            ids=self.ids,
        )
        return imported, written

    def _here(self, entry: Checkpoint) -> Checkpoint:
        """The entry as this site keeps it."""
        entry.pk = self.ids[entry.pk]
        inside = self.ids.get(entry.parent_id) if entry.parent_id else None
        # Only a trusted bundle may grow from what is here, or was.
        keeps_parent = self.is_trusted and self.names is None
        entry.parent_id = inside or (entry.parent_id if keeps_parent else None)
        entry.run_id = self._name(entry.run_id)
        entry.workflow = self._name(entry.workflow)
        entry.source = Checkpoint.Source.IMPORT
        entry.is_read_only = entry.is_read_only or not self.is_trusted
        entry.is_pinned = entry.is_pinned and self.is_trusted
        entry.manifest = chunks.seal(bytes(entry.manifest))
        entry.new_bytes = len(entry.manifest)
        return entry

    def _name(self, name: str) -> str:
        if self.names is None or not name:
            return name
        return self.names.setdefault(name, str(uuid.uuid4()))

    def _check_same(self, entry: Checkpoint, known: Checkpoint) -> None:
        same = all(getattr(entry, name) == getattr(known, name) for name in _SAME)
        if not same or bytes(known.digest) != entry.digest:
            raise CheckpointConflict(
                f"Checkpoint {entry.pk} is here already, with other content. Nothing was "
                "imported. Import with new ids to have both."
            )
        if known.is_read_only and not entry.is_read_only:
            Checkpoint.objects.filter(pk=known.pk).update(is_read_only=False)

    def _put_chunks(self) -> int:
        backend = backends.at(backends.DATABASE)
        total = 0
        for batch in batched(self.stage.contents(), ROWS):
            missing = backend.missing([digest for digest, _ in batch])
            sealed = {
                digest: chunks.seal(content) for digest, content in batch if digest in missing
            }
            backend.put(sealed)
            total += sum(map(len, sealed.values()))
        return total

    def _insert(self, entries: list[Checkpoint]) -> None:
        if not self.is_trusted:
            self._refuse_to_extend({entry.run_id for entry in entries})
        try:
            Checkpoint.objects.bulk_create(entries)
        except IntegrityError as error:
            raise CheckpointConflict(
                "A run in the bundle has other checkpoints here at the same positions. Nothing "
                "was imported. Import with new ids to have both."
            ) from error

    def _refuse_to_extend(self, runs: set[str]) -> None:
        own = Checkpoint.objects.filter(run_id__in=runs).exclude(pk__in=self.ids.values())
        if (row := own.first()) is not None:
            raise CheckpointConflict(
                f"Run {row.run_id} is here, and the bundle carries no trusted signature, so it "
                "can't add to it. Nothing was imported. Import with new ids."
            )

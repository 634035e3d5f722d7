"""The bundle format: a strict subset of tar, in one zstd frame, read and written as a stream.

    manifest.json            what this is: kind and format version
    checkpoints/<id>.json    an index row each
    chunks/<sha256>          the content of a chunk each
    events/<number>.json     a document each, of the application's own
    end.json                 SHA-256 of every byte before it, and a signature over that

Entries come in this order, and by name within each folder, so a duplicate cannot hide. Headers have
exactly one form, so there are no links, no devices, no extensions and no paths: nothing is ever
unpacked to a name. `docs/reference/bundle-format.md` describes it for other programs.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any, cast

import zstandard

from .errors import BundleRefused

FORMAT = 1
KIND = "agent checkpoints"
MANIFEST, END = "manifest.json", "end.json"

_BLOCK = tarfile.BLOCKSIZE
_ID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_SECTIONS = [
    re.compile(pattern)
    for pattern in (
        re.escape(MANIFEST),
        rf"checkpoints/{_ID}\.json",
        r"chunks/[0-9a-f]{64}",
        r"events/[0-9]{8}\.json",
        re.escape(END),
    )
]
_WINDOW_BYTES = 8 * 1024 * 1024
"""What unpacking may need at once; the writer's level needs no more."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a bundle may demand of the site that reads it."""

    packed_bytes: int = 4 * 1024**3
    unpacked_bytes: int = 16 * 1024**3
    ratio: int = 500
    """Unpacked to packed. Text seldom exceeds 20; what exceeds this is made to fill a disk."""
    free_bytes: int = 64 * 1024**2
    """Up to here the ratio does not matter."""
    checkpoints: int = 100_000
    chunks: int = 2_000_000
    events: int = 1_000_000
    document_bytes: int = 16 * 1024**2
    """One index row, event, or other JSON."""
    chunk_bytes: int = 256 * 1024**2


@dataclass(frozen=True, kw_only=True)
class Entry:
    section: int
    """0 to 4, in the order of the module's list."""
    name: str
    """Without folder and ending."""
    data: bytes


class Writer:
    """Writes entries to `file`, which stays open. They must come in the format's order."""

    def __init__(self, file: IO[bytes]) -> None:
        packer = zstandard.ZstdCompressor(level=9)
        self._packed = packer.stream_writer(file, closefd=False)
        self._hash = hashlib.sha256()

    def add(self, name: str, data: bytes) -> None:
        padding = bytes(-len(data) % _BLOCK)
        for part in (_header(name, len(data)), data, padding):
            self._hash.update(part)
            self._packed.write(part)

    def add_json(self, name: str, document: Any) -> None:
        self.add(name, dump(document))

    def finish(self, key: bytes) -> None:
        """Sign everything written so far, and end the bundle."""
        digest = self._hash.digest()
        self.add_json(
            END, {"sha256": digest.hex(), "key": key_id(key), "signature": sign(key, digest)}
        )
        self._packed.write(bytes(2 * _BLOCK))
        self._packed.close()  # type: ignore[no-untyped-call]


class Reader:
    """Iterates over the entries of a bundle. Raises BundleRefused for whatever is not one."""

    def __init__(self, file: IO[bytes], *, limits: Limits) -> None:
        unpacker = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES)
        self._packed = _Counted(file, limits.packed_bytes)
        self._unpacked = unpacker.stream_reader(cast(IO[bytes], self._packed), closefd=False)
        self._unpacked_bytes = 0
        self._limits = limits
        self._hash = hashlib.sha256()
        self.digest = b""
        """SHA-256 of all before the last entry. Known once that was read."""

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._unpacked.close()  # type: ignore[no-untyped-call]

    def __iter__(self) -> Iterator[Entry]:
        last = (-1, "")
        while last[0] < len(_SECTIONS) - 1:
            header = self._read(_BLOCK)
            path, size = _parse_header(header)
            section = _section_of(path)
            if (section, path) <= last:
                raise BundleRefused(f"The bundle has {path!r} twice, or in the wrong place.")
            if last[0] == -1 and section != 0:
                raise BundleRefused(f"The bundle begins with {path!r}, not with {MANIFEST}.")
            last = (section, path)
            if section == len(_SECTIONS) - 1:
                self.digest = self._hash.digest()
            self._hash.update(header)
            yield Entry(section=section, name=_name_of(path), data=self._content(section, size))
        self._expect_end()

    def _content(self, section: int, size: int) -> bytes:
        most = self._limits.chunk_bytes if section == 2 else self._limits.document_bytes
        if size > most:
            raise BundleRefused(f"The bundle has an entry of {size} bytes. {most} are the most.")
        data = self._read(size)
        padding = self._read(-size % _BLOCK)
        if any(padding):
            raise BundleRefused("The bundle hides bytes between its entries.")
        self._hash.update(data)
        self._hash.update(padding)
        return data

    def _expect_end(self) -> None:
        if any(self._read(2 * _BLOCK)):
            raise BundleRefused("The bundle goes on after its end.")
        try:
            if self._unpacked.read(1):
                raise BundleRefused("The bundle goes on after its end.")
        except zstandard.ZstdError as error:
            raise BundleRefused(f"The bundle is damaged: {error}") from error

    def _read(self, size: int) -> bytes:
        parts = []
        try:
            while size and (part := self._unpacked.read(min(size, _WINDOW_BYTES))):
                parts.append(part)
                size -= len(part)
                self._refuse_bombs(len(part))
        except zstandard.ZstdError as error:
            raise BundleRefused(f"The bundle is damaged, or is none: {error}") from error
        if size:
            raise BundleRefused("The bundle ends too early. Copy or export it again.")
        return b"".join(parts)

    def _refuse_bombs(self, more_bytes: int) -> None:
        self._unpacked_bytes += more_bytes
        most = max(self._limits.free_bytes, self._limits.ratio * self._packed.count)
        if self._unpacked_bytes > min(most, self._limits.unpacked_bytes):
            raise BundleRefused(
                f"The bundle unpacks to more than {self._unpacked_bytes} bytes out of "
                f"{self._packed.count}: it is made to fill the disk, or too large. Export fewer "
                "checkpoints at a time."
            )


class _Counted:
    """A file that counts what is read from it, and refuses to be too long."""

    def __init__(self, file: IO[bytes], most: int) -> None:
        self._file = file
        self._most = most
        self.count = 0

    def read(self, size: int = -1) -> bytes:
        part = self._file.read(size)
        self.count += len(part)
        if self.count > self._most:
            raise BundleRefused(f"The bundle is larger than {self._most} bytes.")
        return part


def dump(document: Any) -> bytes:
    """JSON in one form only, so that equal documents are equal bytes."""
    return json.dumps(
        document, ensure_ascii=True, sort_keys=True, separators=(",", ":"), allow_nan=False
    ).encode()


def parse(data: bytes, what: str) -> dict[str, Any]:
    """The JSON object in `data`. Raises BundleRefused for anything else."""
    try:
        found = json.loads(data.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BundleRefused(f"{what} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise BundleRefused(f"{what} is no JSON object.")
    return found


def sign(key: bytes, digest: bytes) -> str:
    return hmac.new(key, digest, hashlib.sha256).hexdigest()


def key_id(key: bytes) -> str:
    """What a bundle names its key by. It tells nothing about the key."""
    return hashlib.sha256(b"bundle key id\0" + key).hexdigest()[:16]


def _header(path: str, size: int) -> bytes:
    info = tarfile.TarInfo(path)
    info.size = size
    return info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")


def _parse_header(block: bytes) -> tuple[str, int]:
    try:
        info = tarfile.TarInfo.frombuf(block, "ascii", "strict")
    except (tarfile.TarError, ValueError) as error:
        raise BundleRefused(f"The bundle has an entry that cannot be read: {error}") from error
    if info.type != tarfile.REGTYPE or info.linkname:
        raise BundleRefused(f"The bundle has {info.name!r}, which is a link or no plain file.")
    _section_of(info.name)  # before the exact comparison: a bad name is worth naming
    if info.size < 0 or block != _header(info.name, info.size):
        raise BundleRefused(f"The header of {info.name!r} is not of the form that bundles have.")
    return info.name, info.size


def _section_of(path: str) -> int:
    for section, pattern in enumerate(_SECTIONS):
        if pattern.fullmatch(path):
            return section
    raise BundleRefused(f"No bundle has an entry {path[:100]!r}.")


def _name_of(path: str) -> str:
    return path.rpartition("/")[2].partition(".")[0]


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")

"""Chunks as files: `<first two hex digits of the digest>/<the whole digest in hex>`.

A file appears under its name complete and on the disk, or not at all. What a killed writer leaves
lies in `tmp/`, where no reader looks, and goes when the folder is next opened.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from checkpoints_app.errors import BackendUnavailable

from .base import Backend, Usage

LEFTOVER_SECONDS = 3600
"""Age from which a file in `tmp/` has no writer any more."""
_SHARD, _NAME = re.compile(r"[0-9a-f]{2}"), re.compile(r"(?:[0-9a-f]{2})+")


class FileBackend(Backend):
    """Durable, and shared by all processes that see the folder, which the first `put` makes.

    Names are digests in hex, so no digest leads out of the folder. A chunk costs two flushes to the
    disk.
    """

    is_durable = True
    is_shared = True

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._clear_leftovers()

    def missing(self, digests: Collection[bytes]) -> set[bytes]:
        return {digest for digest in digests if not self._path(digest).is_file()}

    def put(self, chunks: Mapping[bytes, bytes]) -> None:
        with self._explaining():
            self._make_shards(chunks)
            for digest, data in chunks.items():
                self._write(self._path(digest), data)
            for shard in self._shards_of(chunks):
                _flush(shard)

    def get(self, digests: Collection[bytes]) -> dict[bytes, bytes]:
        found = {}
        with self._explaining():
            for digest in digests:
                with contextlib.suppress(FileNotFoundError):
                    found[digest] = self._path(digest).read_bytes()
        return found

    def delete(self, digests: Collection[bytes]) -> int:
        deleted = 0
        with self._explaining():
            for digest in digests:
                with contextlib.suppress(FileNotFoundError):
                    self._path(digest).unlink()
                    deleted += 1
        return deleted

    def digests(self) -> Iterator[bytes]:
        with self._explaining():
            yield from (bytes.fromhex(entry.name) for entry in self._entries())

    def usage(self) -> Usage:
        chunks = size_bytes = 0
        with self._explaining():
            for entry in self._entries():
                chunks += 1
                size_bytes += entry.stat().st_size
        return Usage(chunks=chunks, size_bytes=size_bytes)

    def _path(self, digest: bytes) -> Path:
        name = digest.hex()
        return self.folder / name[:2] / name

    def _shards_of(self, digests: Iterable[bytes]) -> set[Path]:
        return {self._path(digest).parent for digest in digests}

    def _make_shards(self, digests: Iterable[bytes]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._tmp.mkdir(exist_ok=True, mode=0o700)
        new = [shard for shard in self._shards_of(digests) if not shard.is_dir()]
        for shard in new:
            shard.mkdir(exist_ok=True, mode=0o700)
        if new:
            _flush(self.folder)

    def _write(self, path: Path, data: bytes) -> None:
        unfinished = self._tmp / f"{path.name}.{secrets.token_hex(8)}"
        try:
            handle = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            unfinished.rename(path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise

    def _entries(self) -> Iterator[os.DirEntry[str]]:
        """The files that are chunks, in the order of their digests; nothing for no folder."""
        for shard in _named(self.folder, _SHARD):
            yield from _named(Path(shard.path), _NAME)

    @property
    def _tmp(self) -> Path:
        return self.folder / "tmp"

    def _clear_leftovers(self) -> None:
        with self._explaining():
            for entry in _named(self._tmp, re.compile(".+")):
                with contextlib.suppress(FileNotFoundError):  # its writer was only slow
                    if entry.stat().st_mtime < time.time() - LEFTOVER_SECONDS:
                        os.unlink(entry.path)

    @contextlib.contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise BackendUnavailable(
                f"Chunks cannot be kept in the folder {self.folder}: {error.strerror or error}. "
                "Free space there, or correct the folder and its permissions, then try again."
            ) from error


def _named(folder: Path, pattern: re.Pattern[str]) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            found = [entry for entry in entries if pattern.fullmatch(entry.name)]
    except FileNotFoundError:
        return []
    return sorted(found, key=lambda entry: entry.name)


def _flush(folder: Path) -> None:
    """Put the names in a folder on the disk: a new file is safe only when its name is."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""Typed JSON ⇄ content-addressed chunks and a small manifest, so that a save costs what changed.

- A long string is a chunk of its own: a message kept by the orchestrator, by two agents and in a
  fork is stored once.
- A long list becomes a hash tree of groups. Where a group ends depends on its content alone, so an
  append adds O(log n) chunks, and equal lists share theirs across rounds, agents and workflows.
- The top levels of the state are cut where they are large: what did not change costs one reference.

A chunk's content is a kind byte and UTF-8 (a text) or MessagePack (a node); its address is the
SHA-256 of the content. Stored, it is an envelope byte and the compressed content. In a node, one
extension type stands for the value in another chunk, a second one for items to splice into a list.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import zstandard

from .codec import FORMAT, JSON
from .errors import CheckpointCorrupt, UnstorableValue

TEXT_LENGTH = 256
"""Characters from which a string is a chunk of its own."""
GROUP_ITEMS = 4
"""The least number of items in a group of a long list. Small: a save rewrites the open groups."""
GROUP_BYTES = 128
"""The least bytes in a group, so that four numbers do not become a chunk."""
NODE_BYTES = 512
"""Bytes from which a container in the top levels is a chunk of its own."""
TOP_LEVELS = 4
MAX_NESTING = 400
"""Levels of typed JSON; the codec's MAX_DEPTH values take at most three each."""
MAX_CONTENT_BYTES = 256 * 1024 * 1024
MAX_STATE_BYTES = 1024 * 1024 * 1024
"""What one state may unfold to. A few chunks that refer to each other can describe far more."""

PLAIN, ZSTD = b"\x00", b"\x01"
"""The envelope byte: how the rest of a stored chunk is packed. Others are free for encryption."""

_TEXT, _NODE = b"t", b"n"
_VALUE, _SPLICE = 1, 2
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode
_Ext = msgspec.msgpack.Ext
_local = threading.local()

type _Texts = dict[str, tuple[bytes, msgspec.msgpack.Ext, int]]
"""For each text its digest, the reference to it, and the bytes of its content."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """A state cut into chunks."""

    manifest: bytes
    """The root: the format version and the top of the state. Its size is bounded."""
    digest: bytes
    """SHA-256 of the manifest, which names the whole state: equal digests, equal states."""
    chunks: dict[bytes, str | bytes]
    """Every chunk the state needs, by digest: the text, or the content of a node."""
    size_bytes: int
    """All chunks and the manifest, each counted as often as it is used: the state unshared."""


class Splitter:
    """Cuts states into chunks, remembering the digests of the last state's texts.

    Only immutable strings are remembered, never containers, so a state that was changed in place
    gives other chunks. Not safe for use from two threads at once.
    """

    def __init__(self) -> None:
        self._texts: _Texts = {}

    def split(self, tree: JSON) -> Split:
        """Cut `tree`, as returned by `codec.encode`. Consumes it: its containers are overwritten.

        Raises UnstorableValue for a key that is not valid Unicode.
        """
        cut = _Cut(self._texts)
        manifest = bytes([FORMAT]) + cut.encoded(cut.value(tree, 0))
        self._texts = cut.texts
        return Split(
            manifest=manifest,
            digest=digest_of(manifest),
            chunks=cut.chunks,
            size_bytes=cut.size_bytes + len(manifest),
        )


def join(manifest: bytes, fetch: Callable[[Collection[bytes]], Mapping[bytes, bytes]]) -> JSON:
    """Put a state together again; no container in it occurs twice.

    `fetch` returns the contents of chunks by digest, already verified, and leaves out what is
    missing; it is called once per level of the tree. Raises CheckpointCorrupt.
    """
    if manifest[:1] != bytes([FORMAT]):
        raise CheckpointCorrupt(
            f"The checkpoint has format {manifest[:1].hex() or 'none'}, this version reads format "
            f"{FORMAT:02x}. Upgrade to the version that wrote it."
        )
    root = _parse(manifest[1:])
    try:
        return _Join(_gather(root, fetch)).value(root, MAX_NESTING)
    except RecursionError as error:
        raise CheckpointCorrupt("The stored state nests too deep to be read.") from error


def digest_of(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def content_of(chunk: str | bytes) -> bytes:
    """The bytes that a chunk's digest is taken of. Lone surrogates survive in texts."""
    return chunk if isinstance(chunk, bytes) else _TEXT + chunk.encode("utf-8", "surrogatepass")


def seal(content: bytes) -> bytes:
    """Content as it is stored: the envelope byte, then the shorter of packed and plain."""
    packed = _compressor().compress(content)
    return ZSTD + packed if len(packed) < len(content) else PLAIN + content


def unseal(stored: bytes) -> bytes:
    """The content of what `seal` returned. Raises CheckpointCorrupt; the digest is not checked."""
    envelope, packed = stored[:1], stored[1:]
    if envelope == PLAIN:
        return packed
    if envelope != ZSTD:
        raise CheckpointCorrupt(f"Unknown envelope {envelope.hex() or '(empty)'}: not our chunk.")
    try:
        if zstandard.frame_content_size(packed) > MAX_CONTENT_BYTES:
            raise CheckpointCorrupt(f"A chunk claims more than {MAX_CONTENT_BYTES} bytes.")
        return _decompressor().decompress(packed, max_output_size=MAX_CONTENT_BYTES)
    except zstandard.ZstdError as error:
        raise CheckpointCorrupt(f"A chunk cannot be unpacked: {error}") from error


def verified(digest: bytes, stored: bytes) -> bytes:
    """The content of a stored chunk, checked against its address. Raises CheckpointCorrupt."""
    content = unseal(stored)
    if digest_of(content) != digest:
        raise CheckpointCorrupt(f"Chunk {digest.hex()[:16]} fails its SHA-256 check.")
    return content


class _Cut:
    """The work of one split."""

    def __init__(self, known: _Texts) -> None:
        self.known = known
        self.texts: _Texts = {}
        self.chunks: dict[bytes, str | bytes] = {}
        self.size_bytes = 0

    def value(self, value: JSON, level: int) -> Any:
        """`value` with its long parts replaced by references, in place where possible."""
        if isinstance(value, str):
            return self.text(value) if len(value) >= TEXT_LENGTH else value
        if isinstance(value, dict):
            self.fields(value, level)
            return self.large(value) if 0 < level < TOP_LEVELS else value
        if isinstance(value, list):
            return self.items([self.value(item, level + 1) for item in value])
        return value

    def fields(self, value: dict[str, Any], level: int) -> None:
        for key, item in value.items():
            kind = type(item)
            if kind is str:
                if len(item) >= TEXT_LENGTH:
                    value[key] = self.text(item)
            elif (kind is dict or kind is list) and item:
                value[key] = self.value(item, level + 1)

    def large(self, value: Any) -> Any:
        encoded = self.encoded(value)
        return self.node(encoded, _VALUE) if len(encoded) >= NODE_BYTES else msgspec.Raw(encoded)

    def items(self, items: list[Any]) -> list[Any]:
        """The list with its complete groups cut out, and groups of those, level by level."""
        tails: list[list[Any]] = []
        while len(items) >= GROUP_ITEMS:
            items, tail = self.grouped(items)
            tails.append(tail)
        for tail in reversed(tails):
            items = items + tail
        return items

    def grouped(self, items: list[Any]) -> tuple[list[Any], list[Any]]:
        groups: list[Any] = []
        group: list[msgspec.Raw] = []
        size = 0
        for item in items:
            encoded = self.encoded(item)
            group.append(msgspec.Raw(encoded))
            size += len(encoded)
            if len(group) >= GROUP_ITEMS and size >= GROUP_BYTES:
                groups.append(self.node(_encode(group), _SPLICE))
                group, size = [], 0
        return groups, group

    def text(self, text: str) -> Any:
        found = self.texts.get(text)
        if found is None:
            found = self.texts[text] = self.known.get(text) or _reference(text)
            self.chunks[found[0]] = text
        _, reference, size_bytes = found
        self.size_bytes += size_bytes
        return reference

    def node(self, encoded: bytes, code: int) -> Any:
        content = _NODE + encoded
        digest = digest_of(content)
        self.chunks[digest] = content
        self.size_bytes += len(content)
        return _Ext(code, digest)

    def encoded(self, value: Any) -> bytes:
        try:
            return _encode(value)
        except UnicodeEncodeError:
            return self.encoded_surrogates(value)

    def encoded_surrogates(self, value: Any) -> bytes:
        """MessagePack has no lone surrogates, a text chunk has: a model's JSON can contain them."""
        try:
            return _encode(self.without_surrogates(value))
        except UnicodeEncodeError as error:
            raise UnstorableValue(
                f"A key of the state is not valid Unicode and cannot be stored: {error}"
            ) from error

    def without_surrogates(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value) if any("\ud800" <= c <= "\udfff" for c in value) else value
        if isinstance(value, dict):
            return {key: self.without_surrogates(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.without_surrogates(item) for item in value]
        return value


class _Join:
    """The work of one join. Each reference is parsed anew, so that nothing mutable is shared."""

    def __init__(self, contents: Mapping[bytes, bytes]) -> None:
        self.contents = contents
        self.texts: dict[bytes, str] = {}
        self.room_bytes = MAX_STATE_BYTES

    def value(self, value: Any, room: int) -> JSON:
        kind = type(value)
        if kind is str or kind is bool or value is None or kind is int or kind is float:
            return value  # type: ignore[no-any-return]
        if room == 0:
            raise CheckpointCorrupt(f"The stored state nests deeper than {MAX_NESTING} levels.")
        if kind is dict:
            return {_key(key): self.value(item, room - 1) for key, item in value.items()}
        if kind is list:
            return list(self.items(value, room - 1))
        if kind is _Ext and value.code == _VALUE:
            return self.referred(bytes(value.data), room - 1)
        raise CheckpointCorrupt(f"A node holds a {kind.__name__}, which is not typed JSON.")

    def items(self, items: list[Any], room: int) -> Iterator[JSON]:
        for item in items:
            if type(item) is _Ext and item.code == _SPLICE:
                yield from self.items(self.spliced(bytes(item.data), room), room - 1)
            else:
                yield self.value(item, room)

    def referred(self, digest: bytes, room: int) -> JSON:
        content = self.take(digest)
        if content[:1] == _NODE:
            return self.value(_parse(content[1:]), room)
        if digest not in self.texts:
            self.texts[digest] = _text(content)
        return self.texts[digest]

    def spliced(self, digest: bytes, room: int) -> list[Any]:
        content = self.take(digest)
        items = _parse(content[1:]) if content[:1] == _NODE else None
        if room == 0 or not isinstance(items, list):
            raise CheckpointCorrupt(f"Chunk {digest.hex()[:16]} is no group of list items.")
        return items

    def take(self, digest: bytes) -> bytes:
        content = self.contents[digest]
        self.room_bytes -= len(content)
        if self.room_bytes < 0:
            raise CheckpointCorrupt(f"The state unfolds to more than {MAX_STATE_BYTES} bytes.")
        return content


def _reference(text: str) -> tuple[bytes, msgspec.msgpack.Ext, int]:
    content = content_of(text)
    digest = digest_of(content)
    return digest, _Ext(_VALUE, digest), len(content)


def _gather(
    root: Any, fetch: Callable[[Collection[bytes]], Mapping[bytes, bytes]]
) -> dict[bytes, bytes]:
    contents: dict[bytes, bytes] = {}
    wanted = set(_references(root))
    while wanted:
        found = fetch(wanted)
        if missing := wanted - found.keys():
            raise CheckpointCorrupt(
                f"{len(missing)} chunks are missing, such as {min(missing).hex()[:16]}."
            )
        contents.update(found)
        nodes = (_parse(content[1:]) for content in found.values() if content[:1] == _NODE)
        wanted = {digest for node in nodes for digest in _references(node)} - contents.keys()
    return contents


def _references(node: Any) -> Iterator[bytes]:
    # With a stack of our own: a node from a hostile bundle may nest as deep as it likes.
    stack = [node]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            stack.extend(value.values())
        elif isinstance(value, list):
            stack.extend(value)
        elif isinstance(value, _Ext):
            yield bytes(value.data)


def _parse(encoded: bytes) -> Any:
    try:
        return _decode(encoded)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, TypeError) as error:
        raise CheckpointCorrupt(f"A node cannot be read: {error}") from error


def _text(content: bytes) -> str:
    try:
        return content[1:].decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise CheckpointCorrupt(f"A text is not UTF-8: {error}") from error


def _key(key: Any) -> str:
    if not isinstance(key, str):
        raise CheckpointCorrupt(f"A node has a key of type {type(key).__name__}.")
    return key


def _compressor() -> zstandard.ZstdCompressor:
    # One per thread: the objects are costly to make and must not be shared between threads.
    if not hasattr(_local, "compressor"):
        _local.compressor = zstandard.ZstdCompressor(level=3, write_checksum=False)
    return _local.compressor  # type: ignore[no-any-return]


def _decompressor() -> zstandard.ZstdDecompressor:
    if not hasattr(_local, "decompressor"):
        _local.decompressor = zstandard.ZstdDecompressor()
    return _local.decompressor  # type: ignore[no-any-return]

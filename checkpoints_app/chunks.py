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
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import zstandard

from .codec import FORMAT, JSON, check_type
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
_decode = msgspec.msgpack.decode
_Ext = msgspec.msgpack.Ext
_SCALARS = frozenset((str, bool, int, float, type(None)))


class _Zstd(threading.local):
    """One of each per thread: they are costly to make and must not be shared between threads."""

    def __init__(self) -> None:
        self.compress = zstandard.ZstdCompressor(level=3, write_checksum=False).compress
        self.decompress = zstandard.ZstdDecompressor().decompress


_zstd = _Zstd()

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
    added: list[bytes]
    """Digests of those that the splitter's last state did not need."""
    size_bytes: int
    """All chunks and the manifest, each counted as often as it is used: the state unshared."""


class Splitter:
    """Cuts states into chunks, remembering the digests of the last state's chunks.

    Only immutable strings are remembered, never containers, so a state that was changed in place
    gives other chunks. Not safe for use from two threads at once.
    """

    def __init__(self) -> None:
        self._texts: _Texts = {}
        self._chunks: dict[bytes, str | bytes] = {}

    def split(self, tree: JSON) -> Split:
        """Cut `tree`, as returned by `codec.encode`. Consumes it: its containers are overwritten.

        Raises UnstorableValue for a key that is not valid Unicode.
        """
        cut = _Cut(self._texts, self._chunks)
        manifest = bytes([FORMAT]) + cut.encoded(cut.value(tree, 0))
        self._texts, self._chunks = cut.texts, cut.chunks
        return Split(
            manifest=manifest,
            digest=digest_of(manifest),
            chunks=cut.chunks,
            added=cut.added,
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
    contents = _gather(_references(manifest[1:]), fetch)
    try:
        return _Join(contents).value(_parse(manifest[1:]), MAX_NESTING)
    except RecursionError as error:
        raise CheckpointCorrupt("The stored state nests too deep to be read.") from error


def references(content: bytes) -> set[bytes]:
    """The digests that a chunk's content refers to directly. Raises CheckpointCorrupt."""
    return _references(content[1:]) if content[:1] == _NODE else set()


def manifest_references(manifest: bytes) -> set[bytes]:
    """`references` of a manifest."""
    return _references(manifest[1:])


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """What a chunk unfolds to."""

    depth: int
    size_bytes: int
    is_list: bool


def shape(content: bytes, below: Callable[[bytes], Shape]) -> Shape:
    """Check a chunk as `join` would, and the types that it names, without unfolding what it needs.

    `below` gives the shapes of those it refers to. Raises CheckpointCorrupt, and UnknownType for a
    type that is not registered.
    """
    if content[:1] == _TEXT:
        _text(content)
        return Shape(depth=0, size_bytes=len(content), is_list=False)
    if content[:1] != _NODE:
        raise CheckpointCorrupt(f"A chunk has the unknown kind {content[:1].hex() or 'none'}.")
    return _shape(content, below)


def manifest_shape(manifest: bytes, below: Callable[[bytes], Shape]) -> Shape:
    """`shape` of a manifest."""
    if manifest[:1] != bytes([FORMAT]):
        raise CheckpointCorrupt(
            f"A checkpoint has format {manifest[:1].hex() or 'none'}, this version reads format "
            f"{FORMAT:02x}. Upgrade to the version that wrote it."
        )
    return _shape(manifest, below)


def digest_of(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def content_of(chunk: str | bytes) -> bytes:
    """The bytes that a chunk's digest is taken of. Lone surrogates survive in texts."""
    return chunk if isinstance(chunk, bytes) else _TEXT + chunk.encode("utf-8", "surrogatepass")


def seal(content: bytes) -> bytes:
    """Content as it is stored: the envelope byte, then the shorter of packed and plain."""
    packed = _zstd.compress(content)
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
        return _zstd.decompress(packed, max_output_size=MAX_CONTENT_BYTES)
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

    def __init__(self, known: _Texts, known_chunks: Collection[bytes]) -> None:
        self.known = known
        self.known_chunks = known_chunks
        self.texts: _Texts = {}
        self.chunks: dict[bytes, str | bytes] = {}
        self.added: list[bytes] = []
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
            self.keep(found[0], text)
        _, reference, size_bytes = found
        self.size_bytes += size_bytes
        return reference

    def node(self, encoded: bytes, code: int) -> Any:
        content = _NODE + encoded
        digest = digest_of(content)
        self.keep(digest, content)
        self.size_bytes += len(content)
        return _Ext(code, digest)

    def keep(self, digest: bytes, chunk: str | bytes) -> None:
        if digest not in self.known_chunks and digest not in self.chunks:
            self.added.append(digest)
        self.chunks[digest] = chunk

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


def _shape(content: bytes, below: Callable[[bytes], Shape]) -> Shape:
    measure = _Measure(below)
    root = _parse(content[1:])
    try:
        depth = measure.depth(root, MAX_NESTING)
    except RecursionError as error:
        raise CheckpointCorrupt("A chunk nests too deep to be read.") from error
    size_bytes = len(content) + measure.size_bytes
    if depth >= MAX_NESTING or size_bytes > MAX_STATE_BYTES:
        raise CheckpointCorrupt(
            f"A state nests {depth} levels deep and unfolds to {size_bytes} bytes. "
            f"{MAX_NESTING} levels and {MAX_STATE_BYTES} bytes are the most."
        )
    return Shape(depth=depth, size_bytes=size_bytes, is_list=isinstance(root, list))


class _Measure:
    """How deep a node unfolds, and how large what it refers to is: `_Join`, but for shapes."""

    def __init__(self, below: Callable[[bytes], Shape]) -> None:
        self.below = below
        self.size_bytes = 0

    def depth(self, value: Any, room: int) -> int:
        kind = type(value)
        if kind in _SCALARS:
            return 0
        if room == 0:
            raise CheckpointCorrupt(f"A chunk nests deeper than {MAX_NESTING} levels.")
        if kind is dict:
            check_type({_key(key): item for key, item in value.items()})
            return 1 + max((self.depth(item, room - 1) for item in value.values()), default=0)
        if kind is list:
            return 1 + max((self.item_depth(item, room - 1) for item in value), default=0)
        if kind is _Ext and value.code == _VALUE:
            return 1 + self.take(bytes(value.data)).depth
        raise CheckpointCorrupt(f"A node holds a {kind.__name__}, which is not typed JSON.")

    def item_depth(self, item: Any, room: int) -> int:
        if type(item) is not _Ext or item.code != _SPLICE:
            return self.depth(item, room)
        group = self.take(bytes(item.data))
        if not group.is_list:
            raise CheckpointCorrupt(
                f"Chunk {bytes(item.data).hex()[:16]} is no group of list items."
            )
        return 1 + group.depth

    def take(self, digest: bytes) -> Shape:
        shape = self.below(digest)
        self.size_bytes += shape.size_bytes
        return shape


class _Join:
    """The work of one join. Each reference is parsed anew, so that nothing mutable is shared."""

    def __init__(self, contents: Mapping[bytes, bytes]) -> None:
        self.contents = contents
        self.texts: dict[bytes, str] = {}
        self.room_bytes = MAX_STATE_BYTES

    def value(self, value: Any, room: int) -> JSON:
        kind = type(value)
        if kind in _SCALARS:
            return value  # type: ignore[no-any-return]
        if room == 0:
            raise CheckpointCorrupt(f"The stored state nests deeper than {MAX_NESTING} levels.")
        if kind is dict:
            # Most values are scalars: a call for each would double the cost of a load.
            return {
                key if type(key) is str else _key(key): item
                if type(item) in _SCALARS
                else self.value(item, room - 1)
                for key, item in value.items()
            }
        if kind is list:
            return self.items(value, room - 1)
        if kind is _Ext and value.code == _VALUE:
            return self.referred(value.data, room - 1)
        raise CheckpointCorrupt(f"A node holds a {kind.__name__}, which is not typed JSON.")

    def items(self, items: list[Any], room: int) -> list[JSON]:
        joined: list[JSON] = []
        for item in items:
            if type(item) is _Ext and item.code == _SPLICE:
                joined += self.items(self.spliced(bytes(item.data), room), room - 1)
            else:
                joined.append(self.value(item, room))
        return joined

    def referred(self, digest: bytes, room: int) -> JSON:
        content = self.take(digest)
        if content[:1] == _NODE:
            return self.value(_parse(content[1:]), room)
        text = self.texts.get(digest)
        if text is None:
            text = self.texts[digest] = _text(content)
        return text

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
    wanted: set[bytes], fetch: Callable[[Collection[bytes]], Mapping[bytes, bytes]]
) -> dict[bytes, bytes]:
    contents: dict[bytes, bytes] = {}
    while wanted:
        found = fetch(wanted)
        if missing := wanted - found.keys():
            raise CheckpointCorrupt(
                f"{len(missing)} chunks are missing, such as {min(missing).hex()[:16]}."
            )
        contents.update(found)
        wanted = set().union(*map(references, found.values())) - contents.keys()
    return contents


def _references(encoded: bytes) -> set[bytes]:
    # Collected while parsing: several times as fast as a walk through what was parsed.
    found: set[bytes] = set()
    _parse(encoded, lambda code, digest: found.add(bytes(digest)))
    return found


def _parse(encoded: bytes, ext_hook: Callable[[int, memoryview], Any] | None = None) -> Any:
    try:
        return _decode(encoded, ext_hook=ext_hook)
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

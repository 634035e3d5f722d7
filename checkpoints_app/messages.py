"""The messages in a state: who said what. Out of a whole state, or out of what a save adds.

A message is any object with a `role` and a list of `contents`, which is how Agent Framework keeps
them, as typed JSON and in its own serialised form alike. One that several agents keep counts once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from .chunks import Split

DIGEST_BYTES = 16
_decode = msgspec.msgpack.Decoder().decode
_Ext = msgspec.msgpack.Ext


@dataclass(frozen=True, kw_only=True)
class Message:
    author: str
    """The agent's name; the role where there is no name; never empty."""
    text: str
    """Texts, tool calls and tool results, one after the other."""

    @property
    def digest(self) -> bytes:
        """The same words are the same message, whoever's copy of the conversation they are in."""
        return hashlib.blake2b(
            self.text.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES
        ).digest()


def in_state(tree: Any) -> dict[bytes, Message]:
    """Every message of a state, plain or typed JSON, by digest, in the order of the state."""
    return _distinct(_walk([tree], {}))


def in_new_chunks(split: Split, added: Iterable[bytes]) -> dict[bytes, Message]:
    """The messages in the manifest and in those chunks of `split` that are `added`.

    A message that a save adds is among them, at a cost of what changed and not of the history. So
    may be some that were there before: those next to what changed.
    """
    nodes = (split.chunks[digest] for digest in added)
    contents = (node for node in nodes if isinstance(node, bytes))
    roots = [_decode(content[1:]) for content in (split.manifest, *contents)]
    return _distinct(_walk(roots, split.chunks))


def _distinct(messages: Iterable[tuple[str, str, str]]) -> dict[bytes, Message]:
    """One for each text. A copy that names its author wins over one that has only a role."""
    found: dict[bytes, Message] = {}
    named: set[bytes] = set()
    for name, role, text in messages:
        message = Message(author=name or role or "unknown", text=text)
        digest = message.digest
        if digest not in found or (name and digest not in named):
            found[digest] = message
        if name:
            named.add(digest)
    return found


def _walk(roots: list[Any], chunks: Mapping[bytes, str | bytes]) -> Iterator[tuple[str, str, str]]:
    """Author, role and text of each message, first to last. References lead into `chunks`, but are
    followed inside messages alone: what else they lead to is unchanged, or a root of its own."""
    stack = roots[::-1]
    while stack:
        value = stack.pop()
        if isinstance(value, list):
            stack.extend(reversed(value))
        elif isinstance(value, dict):
            contents = value.get("contents")
            if "role" in value and isinstance(contents, list):
                text = "\n".join(_texts(contents, chunks))
                if text.strip():
                    yield _string(value.get("author_name")), _string(value["role"]), text
            else:
                stack.extend(reversed(value.values()))


def _texts(contents: list[Any], chunks: Mapping[bytes, str | bytes]) -> Iterator[str]:
    for content in _items(contents, chunks):
        if not isinstance(content, dict):
            continue
        parts = {key: _resolved(content.get(key), chunks) for key in _READ}
        if parts["type"] == "function_call":
            yield f"{_string(parts['name'])} {_string(parts['arguments'])}".strip()
        yield from (parts[key] for key in ("text", "result") if isinstance(parts[key], str))


_READ = ("type", "text", "name", "arguments", "result")
"""Of a content. Its other fields are bytes, identifiers, or what a protocol needs."""


def _items(contents: list[Any], chunks: Mapping[bytes, str | bytes]) -> Iterator[Any]:
    for item in contents:
        found = _resolved(item, chunks)
        if isinstance(found, list):  # a group that stands for several items
            yield from _items(found, chunks)
        else:
            yield found


def _resolved(value: Any, chunks: Mapping[bytes, str | bytes]) -> Any:
    if not isinstance(value, _Ext):
        return value
    chunk = chunks[bytes(value.data)]
    return chunk if isinstance(chunk, str) else _decode(chunk[1:])


def _string(value: Any) -> str:
    return value if isinstance(value, str) else ""

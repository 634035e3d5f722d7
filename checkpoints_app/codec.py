"""Engine objects ⇄ typed JSON, through a table of registered types. Never pickle.

Typed JSON is JSON in which an object with the key `$` stands for a value of the type it names:

    {"$": "tuple", "items": [1, 2]}
    {"$": "af.Message", "role": "user", "contents": [...]}

A key of a user's own dict that begins with `$` gets one more `$`: data can never pass for a type.
Decoding builds the types in this table and nothing else; `plain` builds no object at all.
"""

from __future__ import annotations

import base64
import dataclasses
import enum
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from .errors import CheckpointCorrupt, CheckpointError, UnknownType, UnstorableValue

type JSON = dict[str, JSON] | list[JSON] | str | int | float | bool | None

FORMAT = 1
"""The version of typed JSON and of the chunks it is cut into. Stored with every checkpoint."""

MAX_DEPTH = 100
"""How deep values may nest. The same at save and at load, so that what was saved can be loaded."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Type:
    cls: type
    name: str
    dump: Callable[[Any], Mapping[str, Any]]
    load: Callable[[dict[str, Any]], Any]


_by_class: dict[type, _Type] = {}
_by_name: dict[str, _Type] = {}

# Written as one string. Huge integers go through hexadecimal, which has no limit on digits. A time
# keeps its offset from UTC, not the name of its zone.
_SCALARS: dict[type, tuple[str, Callable[[Any], str], Callable[[str], Any]]] = {
    int: ("int", hex, lambda text: int(text, 16)),
    bytes: (
        "bytes",
        lambda value: base64.b64encode(value).decode(),
        lambda text: base64.b64decode(text, validate=True),
    ),
    datetime: ("datetime", datetime.isoformat, datetime.fromisoformat),
    date: ("date", date.isoformat, date.fromisoformat),
    time: ("time", time.isoformat, time.fromisoformat),
    timedelta: (
        "timedelta",
        lambda value: str(value // timedelta(microseconds=1)),
        lambda text: timedelta(microseconds=int(text)),
    ),
    Decimal: ("decimal", str, Decimal),
    UUID: ("uuid", str, UUID),
}
_SCALAR_LOADERS = {name: load for name, _, load in _SCALARS.values()}
_COLLECTIONS: dict[type, str] = {tuple: "tuple", set: "set", frozenset: "frozenset"}
_COLLECTION_LOADERS = {name: cls for cls, name in _COLLECTIONS.items()}
_CLASSES: dict[str, type] = {
    cls.__name__: cls for cls in (str, int, float, bool, bytes, list, dict, tuple, set, type(None))
}
_PLAIN = frozenset((str, bool, int, float, type(None)))
_RESERVED = {*_SCALAR_LOADERS, *_COLLECTION_LOADERS, "dict", "type"}


def register[T: type](
    cls: T,
    *,
    name: str | None = None,
    dump: Callable[[Any], Mapping[str, Any]] | None = None,
    load: Callable[[dict[str, Any]], Any] | None = None,
) -> T:
    """Let values of exactly this class be stored, under `name` (default: module and class name).

    Dataclasses and enums need nothing more. For others `dump` returns the fields as a mapping with
    string keys, and `load` builds the value from them; fields may hold any storable value. `load`
    runs on stored data: it must do nothing but build. Works as a class decorator. Renaming a class
    later is harmless as long as `name` stays. Raises ValueError when the name is taken.
    """
    name = name or f"{cls.__module__}.{cls.__qualname__}"
    if dump is None or load is None:
        dump, load = _default_functions(cls)
    known = _by_name.get(name)
    if name in _RESERVED or (known is not None and known.cls is not cls):
        raise ValueError(f"The type name {name!r} is taken. Pass another one as name=.")
    _by_class[cls] = _by_name[name] = _Type(cls=cls, name=name, dump=dump, load=load)
    return cls


def check_type(tree: Mapping[str, object]) -> None:
    """Look up the type that one object of typed JSON names. Builds nothing.

    Raises UnknownType for a name that is not registered, CheckpointCorrupt for what is no name.
    """
    if "$" not in tree:
        return
    name = tree["$"]
    if not isinstance(name, str):
        raise CheckpointCorrupt(f"A type is named by a {type(name).__name__}, not by a string.")
    if name not in _RESERVED and name not in _by_name:
        raise _unknown_name(name[:100])
    if name == "type":
        if not isinstance(tree.get("name"), str):
            raise CheckpointCorrupt("A class is stored without its name.")
        _class(str(tree["name"])[:100])


def encode(value: Any) -> JSON:
    """Return `value` as typed JSON that shares no dict or list with it.

    Raises UnknownType for a type that is not registered, UnstorableValue for NaN, infinity and
    nesting (or cycles) deeper than MAX_DEPTH.
    """
    return _encode(value, MAX_DEPTH)


def decode(tree: JSON) -> Any:
    """Build the value that `encode` was given.

    Raises UnknownType for a name that is not registered and CheckpointCorrupt for anything that
    `encode` cannot have written.
    """
    return _decode(tree, MAX_DEPTH)


def plain(tree: JSON) -> JSON:
    """Typed JSON as ordinary JSON for pages: no type is looked up, no object is built.

    Tuples and sets become lists, dates and bytes strings, other objects dicts of their fields with
    `$type`. Lone surrogates, which no page can show, become question marks.
    """
    try:
        return _plain(tree)
    except (RecursionError, TypeError, KeyError, ValueError) as error:
        raise CheckpointCorrupt(f"Not typed JSON: {error}") from error


def _default_functions(
    cls: type,
) -> tuple[Callable[[Any], Mapping[str, Any]], Callable[[dict[str, Any]], Any]]:
    if issubclass(cls, enum.Enum):
        return lambda member: {"value": member.value}, lambda fields: cls(fields["value"])
    if dataclasses.is_dataclass(cls):
        names = [field.name for field in dataclasses.fields(cls) if field.init]
        return lambda value: {n: getattr(value, n) for n in names}, lambda fields: cls(**fields)
    raise ValueError(
        f"{cls.__qualname__} is neither a dataclass nor an enum. Register it with dump= and load=."
    )


def _encode(value: Any, room: int) -> JSON:
    kind = type(value)
    if kind is str or kind is bool or value is None:
        return value  # type: ignore[no-any-return]
    if kind is int and -(2**63) <= value < 2**64:
        return value  # type: ignore[no-any-return]
    if kind is float:
        return _finite(value)
    if room == 0:
        raise UnstorableValue(
            f"The state nests deeper than {MAX_DEPTH} levels, or contains itself. Flatten it."
        )
    if kind is dict:
        return _encode_dict(value, room - 1)
    if kind is list:
        return [_encode(item, room - 1) for item in value]
    known = _by_class.get(kind)
    if known is not None:
        return {"$": known.name, **_encode_fields(known.dump(value), room - 1)}
    return _encode_builtin(value, kind, room - 1)


def _encode_dict(value: dict[Any, Any], room: int) -> JSON:
    for key in value:
        if type(key) is not str:
            items = value.items()
            return {"$": "dict", "items": [[_encode(k, room), _encode(v, room)] for k, v in items]}
    return _encode_fields(value, room)


def _encode_fields(fields: Mapping[str, Any], room: int) -> dict[str, JSON]:
    encoded: dict[str, JSON] = {}
    for key, item in fields.items():
        if key[:1] == "$":
            key = f"${key}"
        # Most leaves are strings: a call for each would double the cost of a save.
        encoded[key] = item if type(item) is str or item is None else _encode(item, room)
    return encoded


def _encode_builtin(value: Any, kind: type, room: int) -> JSON:
    if kind in _SCALARS:
        name, dump, _ = _SCALARS[kind]
        return {"$": name, "value": dump(value)}
    if kind in _COLLECTIONS:
        # A set has no order; sorting gives equal sets equal bytes in every process.
        items: Iterable[Any] = value if kind is tuple else sorted(value, key=repr)
        return {"$": _COLLECTIONS[kind], "items": [_encode(item, room) for item in items]}
    if isinstance(value, type):
        return {"$": "type", "name": _class_name(value)}
    raise _unknown(kind)


def _class_name(cls: type) -> str:
    if _CLASSES.get(cls.__name__) is cls:
        return cls.__name__
    if known := _by_class.get(cls):
        return known.name
    raise _unknown(cls)


def _unknown(cls: type) -> UnknownType:
    name = f"{cls.__module__}.{cls.__qualname__}"
    return UnknownType(
        f"Values of type {name} cannot be stored. Register it once, where it is defined: "
        f"checkpoints_app.codec.register({cls.__qualname__}) for a dataclass or an enum, "
        "with dump= and load= for any other class."
    )


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise UnstorableValue(
            f"{value} is not a JSON number and cannot be stored. Use None, or a string."
        )
    return value


def _decode(tree: JSON, room: int) -> Any:
    kind = type(tree)
    if kind in _PLAIN:
        return tree
    if room == 0:
        raise CheckpointCorrupt(f"The stored state nests deeper than {MAX_DEPTH} levels.")
    if kind is list:
        return [_decode(item, room - 1) for item in tree]  # type: ignore[union-attr]
    if not isinstance(tree, dict):
        raise CheckpointCorrupt(f"The stored state holds a {kind.__name__}, which is not JSON.")
    if "$" in tree:
        return _decode_typed(tree, room - 1)
    return _decode_fields(tree, room - 1)


def _decode_fields(tree: dict[str, JSON], room: int) -> dict[str, Any]:
    return {
        key[1:] if key[:2] == "$$" else key: item if type(item) in _PLAIN else _decode(item, room)
        for key, item in tree.items()
        if key != "$"
    }


def _decode_typed(tree: dict[str, JSON], room: int) -> Any:
    name = tree["$"]
    try:
        name = _string(name)
        if name in _by_name:
            return _by_name[name].load(_decode_fields(tree, room))
        if name in _SCALAR_LOADERS:
            return _SCALAR_LOADERS[name](_string(tree["value"]))
        if name in _COLLECTION_LOADERS:
            return _COLLECTION_LOADERS[name](_decode(item, room) for item in _items(tree))
        if name == "dict":
            return {_decode(key, room): _decode(item, room) for key, item in _pairs(tree)}
        if name == "type":
            return _class(_string(tree["name"]))
        raise _unknown_name(name)
    except CheckpointError:
        raise
    except Exception as error:  # a constructor may raise anything on fields it was not written for
        raise CheckpointCorrupt(f"A stored {name!r} cannot be rebuilt: {error!r}") from error


def _class(name: str) -> type:
    if name in _CLASSES:
        return _CLASSES[name]
    if name in _by_name:
        return _by_name[name].cls
    raise _unknown_name(name)


def _unknown_name(name: str) -> UnknownType:
    return UnknownType(
        f"The checkpoint holds a value of type {name!r}, which is not registered here. Import the "
        "module that registers it before loading, or read the checkpoint as plain JSON."
    )


def _unescape(key: str) -> str:
    return key[1:] if key[:2] == "$$" else key


def _string(value: JSON) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a string, found {type(value).__name__}")
    return value


def _items(tree: dict[str, JSON]) -> list[JSON]:
    items = tree["items"]
    if not isinstance(items, list):
        raise TypeError(f"expected a list of items, found {type(items).__name__}")
    return items


def _pairs(tree: dict[str, JSON]) -> Iterator[tuple[JSON, JSON]]:
    for pair in _items(tree):
        if not isinstance(pair, list) or len(pair) != 2:
            raise TypeError("expected pairs of key and value")
        yield pair[0], pair[1]


def _plain(tree: JSON) -> JSON:
    if isinstance(tree, str):
        return tree if tree.isascii() else tree.encode("utf-8", "replace").decode()
    if isinstance(tree, list):
        return [_plain(item) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if "$" not in tree:
        return {_unescape(key): _plain(item) for key, item in tree.items()}
    return _plain_typed(tree)


def _plain_typed(tree: dict[str, JSON]) -> JSON:
    name = tree["$"]
    if name == "int":
        return int(_string(tree["value"]), 16)
    if name == "type":
        return tree["name"]
    if name in _SCALAR_LOADERS:
        return tree["value"]
    if name in _COLLECTION_LOADERS:
        return [_plain(item) for item in _items(tree)]
    if name == "dict":
        return {str(_plain(key)): _plain(item) for key, item in _pairs(tree)}
    fields = {_unescape(key): _plain(item) for key, item in tree.items() if key != "$"}
    return {"$type": name, **fields}

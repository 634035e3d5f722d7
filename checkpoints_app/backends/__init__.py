"""Where chunks lie. `at` opens the place that a checkpoint's row names.

An address is a type, such as `redis`, for the place that the site's settings give it; or a type and
a location, such as `file:/srv/checkpoints`, for any other. Index rows carry addresses, so a
location with a password in it has no address: it belongs into the settings.
"""

from __future__ import annotations

import os
import threading
from functools import cache
from importlib import import_module
from pathlib import Path
from urllib.parse import urlsplit

from django.conf import settings

from checkpoints_app.errors import BackendUnavailable

from .base import Backend

DATABASE = "database"
TYPES = {
    DATABASE: "database.DatabaseBackend",
    "file": "file.FileBackend",
    "memory": "memory.MemoryBackend",
    "redis": "redis.RedisBackend",
    "cosmos": "cosmos.CosmosBackend",
}
MAX_ADDRESS_LENGTH = 500

_PLACED = {
    "file": "the folder in CHECKPOINT_LOCATIONS['file'], or in storage_path",
    "redis": "a redis:// URL in FLEET_REDIS_URL, or in CHECKPOINT_LOCATIONS['redis']",
    "cosmos": "the connection string in FLEET_COSMOS_CONNECTION, or in "
    "CHECKPOINT_LOCATIONS['cosmos']",
}
"""What to do when one of the types that lie somewhere has no location."""
_lock = threading.Lock()


def at(address: str) -> Backend:
    """The backend at `address`; the same object for all who ask in this process.

    Raises BackendUnavailable for an unknown type, or when the settings give it no location. Nothing
    is contacted yet.
    """
    storage_type, _, location = address.partition(":")
    return create_backend(storage_type, location)


def create_backend(storage_type: str, storage_path_or_url: str = "") -> Backend:
    """The backend of a type, at the given place or, without one, where the settings have it.

    The place is a folder (`file`), a URL (`redis`) or a connection string (`cosmos`); the others
    need none. Errors are those of `at`.
    """
    if storage_type not in TYPES:
        raise BackendUnavailable(
            f"There is no storage of type {storage_type[:64]!r}. Choose {', '.join(TYPES)}."
        )
    if storage_type not in _PLACED:
        return _opened(storage_type, "")
    location = _normal(storage_type, storage_path_or_url) or _site_location(storage_type)
    if not location:
        raise BackendUnavailable(
            f"The storage of type {storage_type} has no place yet. Put {_PLACED[storage_type]}."
        )
    return _opened(storage_type, location)


def address_of(storage_type: str, storage_path_or_url: str = "") -> str:
    """The text by which index rows name the backend that `create_backend` gives.

    Raises as `create_backend` does, and BackendUnavailable for a location that holds a password or
    is longer than MAX_ADDRESS_LENGTH allows.
    """
    create_backend(storage_type, storage_path_or_url)
    location = _normal(storage_type, storage_path_or_url) if storage_type in _PLACED else ""
    if location in ("", _site_location(storage_type)):
        return storage_type
    if storage_type == "cosmos" or (storage_type == "redis" and _has_password(location)):
        raise BackendUnavailable(
            f"This location of {storage_type} may hold a password, which no checkpoint must carry. "
            f"Put {_PLACED[storage_type]}, and leave the location out."
        )
    address = f"{storage_type}:{location}"
    if len(address) > MAX_ADDRESS_LENGTH:
        raise BackendUnavailable(
            f"The location is longer than {MAX_ADDRESS_LENGTH} characters: {location[:80]}… "
            "Choose a shorter one."
        )
    return address


def _site_location(storage_type: str) -> str:
    locations = getattr(settings, "CHECKPOINT_LOCATIONS", {})
    return _normal(storage_type, str(locations.get(storage_type) or ""))


def _normal(storage_type: str, location: str) -> str:
    """One spelling for one folder, whatever the working directory is later."""
    return os.path.abspath(Path(location)) if location and storage_type == "file" else location


def _has_password(url: str) -> bool:
    parts = urlsplit(url)
    return parts.password is not None or "password=" in parts.query


def _opened(storage_type: str, location: str) -> Backend:
    with _lock:  # two threads must not make two memories
        return _open(storage_type, location)


@cache
def _open(storage_type: str, location: str) -> Backend:
    # Imported here, so that only those who use a service need its library.
    module, name = TYPES[storage_type].split(".")
    try:
        backend_class = getattr(import_module(f".{module}", __package__), name)
    except ModuleNotFoundError as error:
        raise BackendUnavailable(
            f"The storage of type {storage_type} needs the package {error.name}. "
            f"Install the extra {storage_type!r} of this product."
        ) from error
    backend: Backend = backend_class(location) if location else backend_class()
    return backend

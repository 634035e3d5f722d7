"""One lock for the whole store: many may save at once, and nobody while chunks are swept.

A save looks for chunks and commits its row under the shared side; a sweep looks at the rows and
deletes chunks under the exclusive side. So a sweep sees the row of every save that relied on a
chunk, and every other save looks after the sweep is done. `docs/decisions/` has the whole argument.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import OperationalError, connection, transaction

from .errors import StoreBusy

_LOCK_ID = 0x0C4E_C270_1275
"""The number of PostgreSQL's advisory lock. Each database counts its own."""
_PATIENCE = "5s"
"""How long a sweep waits for the saves under way. New saves queue behind it meanwhile."""
# SQLite has one writer at a time. A statement that could write makes this transaction the one,
# whatever the site's `transaction_mode`; it changes nothing.
_BEGIN_WRITING = "UPDATE checkpoints_app_chunk SET digest = digest WHERE 0"


@contextmanager
def saving() -> Iterator[None]:
    """A transaction during which no chunk is swept. Others save at the same time.

    Look for chunks inside it, and write the rows that refer to them inside it too.
    """
    with transaction.atomic():
        if connection.vendor == "postgresql":
            _execute("SELECT pg_advisory_xact_lock_shared(%s)", _LOCK_ID)
        else:
            _execute(_BEGIN_WRITING)
        yield


@contextmanager
def sweeping() -> Iterator[None]:
    """A transaction that begins when no save is under way, and lets none begin until it ends.

    Keep it short. Raises StoreBusy when a save under way does not end within seconds.
    """
    with transaction.atomic():
        try:
            _exclude_saves()
        except OperationalError as error:
            raise StoreBusy(
                "A checkpoint is being saved or imported and takes long, so not all chunks were "
                "swept. Nothing is lost: sweep again later."
            ) from error
        yield


def _exclude_saves() -> None:
    if connection.vendor == "postgresql":
        _execute("SELECT set_config('lock_timeout', %s, true)", _PATIENCE)
        _execute("SELECT pg_advisory_xact_lock(%s)", _LOCK_ID)
    else:
        _execute(_BEGIN_WRITING)


def _execute(statement: str, *parameters: int | str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters or None)

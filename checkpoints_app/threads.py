"""Database work off the event loop, on long-lived threads that outlive a database restart."""

from __future__ import annotations

from collections.abc import Callable

from asgiref.sync import sync_to_async
from django.db import connections


async def in_thread[**P, R](function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run `function` on the running loop's own pool of threads, each with its own connection.

    The connection stays open from call to call, and is replaced when the database closed it.
    """

    def work() -> R:
        _keep_usable_connections()
        try:
            return function(*args, **kwargs)
        finally:
            _keep_usable_connections()

    return await sync_to_async(work, thread_sensitive=False)()


def _keep_usable_connections() -> None:
    """What Django does around a request, but for the age: opening one costs more than a write."""
    for connection in connections.all(initialized_only=True):
        connection.close_at = None
        connection.close_if_unusable_or_obsolete()

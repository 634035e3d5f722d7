"""Who executes runs. A dispatcher claims them; the rest of the program only wakes it."""

from __future__ import annotations

from collections.abc import Callable

_wakers: list[Callable[[], None]] = []


def on_wake(wake: Callable[[], None]) -> None:
    """Register a dispatcher of this process."""
    _wakers.append(wake)


def forget(wake: Callable[[], None]) -> None:
    _wakers.remove(wake)


def wake() -> None:
    """Say that a run was queued or is to be cancelled. Without a dispatcher here, others poll."""
    for waker in list(_wakers):
        waker()

"""The doorbell, and the hub that answers it.

A ring tells watching pages that a run has news. It carries no truth; the database does. Losing,
doubling or reordering a ring changes nothing: the hub reads from its cursor on each ring, and on a
timer beside them. There is one hub per run and process: one read and one render per event, shared
by everybody who watches.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol
from uuid import UUID

from asgiref.sync import sync_to_async
from channels.db import database_sync_to_async
from channels.layers import get_channel_layer
from django.template.loader import render_to_string

from .events import EventKind
from .models import Event, Run
from .transcript import CHANGES_CONTROLS, ENDS_STREAM, Step, headline

POLL_SECONDS = 1.0
"""How long a lost ring can delay a page."""

BATCH = 50
"""Events of one read."""

KEPT = 500
"""Rendered events a hub keeps, so that a page that reconnects costs no read and no render."""

logger = logging.getLogger(__name__)

_server_loop: asyncio.AbstractEventLoop | None = None


def serve_from(loop: asyncio.AbstractEventLoop) -> None:
    """Name the event loop on which this process serves sockets.

    Rings from worker threads are handed to it: 9 ms to the page, against 460 ms through
    `async_to_sync`, which starts a loop of its own for each.
    """
    global _server_loop
    _server_loop = loop


def group_of(run_id: UUID | str) -> str:
    """The channel group of everybody who watches the run."""
    return f"run.{run_id}"


def ring(run_id: UUID | str) -> None:
    """Say that the run has new rows. Safe from any thread; never fails, never blocks."""
    _send(run_id, {"type": "run.ring"})


def stream(run_id: UUID | str, *, agent: str, text: str) -> None:
    """Show `text` as what `agent` has written so far. Not stored; the final message replaces it.

    An empty `text` clears the stream.
    """
    _send(run_id, {"type": "run.stream", "agent": agent, "text": text})


def _send(run_id: UUID | str, message: dict[str, Any]) -> None:
    layer = get_channel_layer()
    if layer is None or _server_loop is None or not _server_loop.is_running():
        return  # nobody watches from this process: the poll of the others finds the rows
    _submit(layer.group_send(group_of(run_id), message), _server_loop)


def _submit(send: Coroutine[Any, Any, None], loop: asyncio.AbstractEventLoop) -> None:
    try:
        asyncio.run_coroutine_threadsafe(send, loop)
    except RuntimeError:  # the loop closed between the check and the call
        send.close()
        logger.debug("A doorbell was lost: the server is stopping.")


@dataclass(frozen=True, kw_only=True)
class Fragment:
    """One event as the HTML that puts it into a page."""

    sequence: int
    html: str


class Watcher(Protocol):
    """Who is told by a hub. Both methods must return at once."""

    def wake(self) -> None:
        """New fragments can be had."""

    def show(self, html: str) -> None:
        """`html` replaces the text that is being written; the latest is enough."""


class Hub:
    """What this process knows of a watched run. It lives on the event loop while it is watched."""

    _hubs: ClassVar[dict[UUID, Hub]] = {}

    def __init__(self, run_id: UUID, after: int) -> None:
        self.run_id = run_id
        self._tail = after
        self._kept: dict[int, Fragment] = {}
        self._watchers: set[Watcher] = set()
        self._catching_up = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    @classmethod
    def join(cls, run_id: UUID, watcher: Watcher, *, after: int) -> Hub:
        """The run's hub, with `watcher` among those it tells of events after `after`."""
        hub = cls._hubs.get(run_id)
        if hub is None:
            hub = cls._hubs[run_id] = cls(run_id, after)
            hub._task = asyncio.create_task(hub._serve(), name=f"hub {run_id}")
        hub._watchers.add(watcher)
        return hub

    async def leave(self, watcher: Watcher) -> None:
        """The last one to leave ends the hub and waits until it has left the channel group."""
        self._watchers.discard(watcher)
        if self._watchers or self._task is None:
            return
        self._hubs.pop(self.run_id, None)
        task, self._task = self._task, None
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def after(self, cursor: int, limit: int) -> list[Fragment]:
        """The fragments that follow `cursor`, in order; none when there is no news."""
        if cursor >= self._tail:
            return []
        if cursor + 1 not in self._kept:
            async with self._catching_up:
                if cursor + 1 not in self._kept:
                    self._keep(await _render_after(self.run_id, cursor))
        following = (self._kept.get(cursor + 1 + place) for place in range(limit))
        return list(_until_missing(following))

    async def _serve(self) -> None:
        layer = get_channel_layer()
        assert layer is not None  # noqa: S101  # the settings always name one
        channel = await layer.new_channel("hub")
        # Join before the first read: what is committed in between rings.
        await layer.group_add(group_of(self.run_id), channel)
        try:
            while True:
                await self._serve_until_error(layer, channel)
        finally:
            await layer.group_discard(group_of(self.run_id), channel)

    async def _serve_until_error(self, layer: Any, channel: str) -> None:
        try:
            await self._read()
            read_at = asyncio.get_running_loop().time()
            while True:
                message = await _hear(layer, channel)
                if message and message["type"] == "run.stream":
                    await self._show(message)
                # A stream can hide a lost ring, so the timer does not depend on silence.
                now = asyncio.get_running_loop().time()
                if not message or message["type"] == "run.ring" or now - read_at >= POLL_SECONDS:
                    await self._read()
                    read_at = now
        except Exception:
            logger.exception("Watching run %s was interrupted; it goes on.", self.run_id)
            await asyncio.sleep(POLL_SECONDS)

    async def _read(self) -> None:
        while fragments := await _render_after(self.run_id, self._tail):
            self._keep(fragments)
            self._tail = fragments[-1].sequence
            for watcher in self._watchers:
                watcher.wake()

    async def _show(self, message: dict[str, Any]) -> None:
        html = await sync_to_async(_render_stream, thread_sensitive=False)(message)
        for watcher in self._watchers:
            watcher.show(html)

    def _keep(self, fragments: list[Fragment]) -> None:
        self._kept.update({fragment.sequence: fragment for fragment in fragments})
        for sequence in list(self._kept)[:-KEPT]:
            del self._kept[sequence]


async def _hear(layer: Any, channel: str) -> dict[str, Any] | None:
    """The next message, or None when nothing came for `POLL_SECONDS`."""
    with suppress(TimeoutError):
        async with asyncio.timeout(POLL_SECONDS):
            message: dict[str, Any] = await layer.receive(channel)
            return message
    return None


def _until_missing(fragments: Iterable[Fragment | None]) -> Iterator[Fragment]:
    for fragment in fragments:
        if fragment is None:
            return
        yield fragment


def _render(run_id: UUID, after: int) -> list[Fragment]:
    """The run's next events as fragments. The last carries the state of the page around them."""
    events = list(Event.objects.filter(run=run_id, sequence__gt=after).order_by("sequence")[:BATCH])
    if not events:
        return []
    run = Run.objects.select_related("workflow", "parent__workflow").get(id=run_id)
    for event in events:
        event.run = run
    fragments = [_fragment(event) for event in events[:-1]]
    kinds = {event.kind for event in events}
    changes_controls = not kinds.isdisjoint(CHANGES_CONTROLS)
    around = {"headline": headline(run), "changes_controls": changes_controls}
    return [*fragments, _fragment(events[-1], **around)]


def _fragment(event: Event, **around: Any) -> Fragment:
    context = {
        "event": event,
        "run": event.run,
        "step": Step.of(event) if event.kind == EventKind.CHECKPOINT else None,
        "ends_stream": event.kind in ENDS_STREAM,
        "is_live": True,
    }
    html = render_to_string("workflows/run.html#live", {**context, **around}).strip()
    return Fragment(sequence=event.sequence, html=html)


def _render_stream(message: dict[str, Any]) -> str:
    return render_to_string(
        "workflows/run.html#stream",
        {"agent": message["agent"], "text": message["text"], "is_live": True},
    )


_render_after = database_sync_to_async(_render, thread_sensitive=False)

"""The socket of a run page: cursor in, numbered fragments out. Commands go by POST."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import suppress
from typing import Any
from uuid import UUID

from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncWebsocketConsumer
from django.contrib.auth import get_user
from django.http import HttpRequest

from .live import Fragment, Hub
from .models import Run, Workflow

WINDOW = 64
"""Events in flight that the browser has not acknowledged. Without a limit a page that never reads
makes the server hold everything it was sent: Daphne has no backpressure of its own."""

STREAM_WINDOW = 8
"""Pieces of streaming text in flight. Others are left out: each holds the whole text."""

RECHECK_SECONDS = 15.0
"""Logging out does not close sockets, so the session is looked at again this often."""

BAD_REQUEST, LOGGED_OUT, NOT_FOUND, FAILED = 4400, 4401, 4404, 1011

logger = logging.getLogger(__name__)


class RunConsumer(AsyncWebsocketConsumer):  # type: ignore[misc]  # Channels is not typed
    """One page that watches one run.

    1. The page sends `{"after": 41}` on every open: the last sequence it holds.
    2. It gets events 42… as HTML fragments, in order, and each once per connection.
    3. It sends `{"ack": n}` for what it has applied.

    Refusals come after the handshake is accepted: before it they look like a broken network, and
    the browser would try again for ever.
    """

    hub: Hub | None = None
    pump: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        self.run_id: UUID = self.scope["url_route"]["kwargs"]["run_id"]
        self.news = asyncio.Event()
        self.cursor = self.acknowledged = 0
        self.stream_html = ""
        self.streams_in_flight = 0
        await self.accept()
        if refusal := await _refusal(self.scope, self.run_id):
            await self.close(code=refusal)

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        match _parse(text_data):
            case {"after": int(after)} if self.pump is None and after >= 0:
                await self._begin(after)
            case {"ack": int(sequence)} if self.pump and sequence <= self.cursor:
                self.acknowledged = max(self.acknowledged, sequence)
                self.streams_in_flight = 0
                self.news.set()
            case _:
                await self.close(code=BAD_REQUEST)

    async def disconnect(self, code: int) -> None:
        if self.pump:
            self.pump.cancel()
            await asyncio.gather(self.pump, return_exceptions=True)
        if self.hub:
            await self.hub.leave(self)

    def wake(self) -> None:
        self.news.set()

    def show(self, html: str) -> None:
        self.stream_html = html
        self.news.set()

    async def _begin(self, after: int) -> None:
        # A refused page may still speak before it notices, so the check is made here again.
        refusal = await _refusal(self.scope, self.run_id, after=after)
        if refusal:
            await self.close(code=refusal)
            return
        self.cursor = self.acknowledged = after
        self.hub = Hub.join(self.run_id, self, after=after)
        self.pump = asyncio.create_task(self._pump(self.hub))

    async def _pump(self, hub: Hub) -> None:
        try:
            await self._send_news(hub)
        except Exception:
            logger.exception("The socket of run %s broke.", self.run_id)
            await self.close(code=FAILED)

    async def _send_news(self, hub: Hub) -> None:
        loop = asyncio.get_running_loop()
        checked_at = loop.time()
        while True:
            # Clear before reading: what arrives in between wakes the next turn.
            self.news.clear()
            while fragments := await hub.after(self.cursor, self._room()):
                await self._send(fragments)
            await self._send_stream()
            if loop.time() - checked_at >= RECHECK_SECONDS:
                checked_at = loop.time()
                if refusal := await _refusal(self.scope, self.run_id):
                    await self.close(code=refusal)
                    return
            with suppress(TimeoutError):
                await asyncio.wait_for(self.news.wait(), RECHECK_SECONDS)

    def _room(self) -> int:
        return max(0, WINDOW - (self.cursor - self.acknowledged))

    async def _send(self, fragments: list[Fragment]) -> None:
        for fragment in fragments:
            await self.send(text_data=fragment.html)
            self.cursor = fragment.sequence

    async def _send_stream(self) -> None:
        if self.stream_html and self.streams_in_flight < STREAM_WINDOW:
            html, self.stream_html = self.stream_html, ""
            self.streams_in_flight += 1
            await self.send(text_data=html)


def _parse(text: str | None) -> Any:
    if not text or len(text) > 100:
        return None
    try:
        message = json.loads(text)
    except ValueError:
        return None
    # JSON's true is an int to Python.
    if isinstance(message, dict) and any(isinstance(value, bool) for value in message.values()):
        return None
    return message


def _find_refusal(scope: dict[str, Any], run_id: UUID, *, after: int = 0) -> int | None:
    """The close code for somebody who may not watch the run, read afresh; None for who may.

    A cursor beyond the run's last event cannot come from a page of ours.
    """
    request = HttpRequest()
    session = scope["session"]
    request.session = session.__class__(session.session_key)  # not the one read at the handshake
    user = get_user(request)
    if not user.is_authenticated:
        return LOGGED_OUT
    run = Run.objects.filter(id=run_id, workflow__in=Workflow.objects.visible_to(user)).first()
    if run is None:
        return NOT_FOUND
    return BAD_REQUEST if after > run.last_sequence else None


_refusal = database_sync_to_async(_find_refusal, thread_sensitive=False)

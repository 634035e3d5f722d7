from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from channels.db import database_sync_to_async
from django.template.loader import render_to_string as really_render

from tests.factories import make_checkpoint, make_event, make_run
from workflows import live
from workflows.events import EventKind
from workflows.live import Hub
from workflows.models import Run

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("database_threads"),
]

add_event = database_sync_to_async(make_event)


class Page:
    """A watcher that remembers what it was told."""

    def __init__(self) -> None:
        self.woken = asyncio.Event()
        self.shown: asyncio.Queue[str] = asyncio.Queue()

    def wake(self) -> None:
        self.woken.set()

    def show(self, html: str) -> None:
        self.shown.put_nowait(html)


@pytest.fixture
def run() -> Run:
    run = make_run()
    make_event(run)
    return run


@pytest.fixture
async def _serving(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    monkeypatch.setattr(live, "_server_loop", asyncio.get_running_loop())
    monkeypatch.setattr(live, "POLL_SECONDS", 1_000.0)
    yield
    assert not Hub._hubs, "a test left a hub behind"


@pytest.fixture
def renders(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The templates rendered so far."""
    rendered: list[str] = []

    def count(template: str, context: dict[str, object]) -> str:
        rendered.append(template)
        return really_render(template, context)

    monkeypatch.setattr(live, "render_to_string", count)
    return rendered


@pytest.mark.usefixtures("_serving")
async def test_it_reads_and_renders_once_for_two_watchers(run: Run, renders: list[str]) -> None:
    first, second = Page(), Page()
    hub = Hub.join(run.id, first, after=0)
    Hub.join(run.id, second, after=0)
    await asyncio.wait_for(asyncio.gather(first.woken.wait(), second.woken.wait()), 10)

    fragments = [await hub.after(0, 10), await hub.after(0, 10)]

    assert fragments[0] == fragments[1]
    assert len(renders) == 1
    await hub.leave(first)
    await hub.leave(second)


@pytest.mark.usefixtures("_serving")
async def test_it_reads_old_events_once_for_those_who_are_behind(
    run: Run, renders: list[str]
) -> None:
    await add_event(run)
    page = Page()
    hub = Hub.join(run.id, page, after=1)
    await asyncio.wait_for(page.woken.wait(), 10)

    both = await asyncio.gather(hub.after(0, 10), hub.after(0, 10))

    assert [[fragment.sequence for fragment in each] for each in both] == [[1, 2], [1, 2]]
    assert len(renders) == 3  # one for the newest, two for those behind
    await hub.leave(page)


@pytest.mark.usefixtures("_serving")
async def test_it_gives_no_more_than_asked_for(run: Run) -> None:
    await add_event(run)
    page = Page()
    hub = Hub.join(run.id, page, after=0)
    await asyncio.wait_for(page.woken.wait(), 10)

    assert [fragment.sequence for fragment in await hub.after(0, 1)] == [1]
    await hub.leave(page)


@pytest.mark.usefixtures("_serving")
async def test_it_forgets_the_oldest_fragments(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "KEPT", 2)
    for _ in range(4):
        await add_event(run)
    page = Page()
    hub = Hub.join(run.id, page, after=0)
    await asyncio.wait_for(page.woken.wait(), 10)

    assert list(hub._kept) == [4, 5]
    await hub.leave(page)


@pytest.mark.usefixtures("_serving")
async def test_it_goes_on_after_the_database_failed(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    healthy = live._render_after
    failures = iter([OSError("disk gone")])

    async def fail_once(run_id: object, after: int) -> object:
        for error in failures:
            raise error
        return await healthy(run_id, after)

    monkeypatch.setattr(live, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(live, "_render_after", fail_once)
    page = Page()
    hub = Hub.join(run.id, page, after=0)

    await asyncio.wait_for(page.woken.wait(), 10)

    assert "was interrupted; it goes on" in caplog.text
    await hub.leave(page)


@pytest.mark.usefixtures("_serving")
async def test_it_ends_with_its_last_watcher(run: Run) -> None:
    page = Page()
    hub = Hub.join(run.id, page, after=1)

    await hub.leave(page)

    assert Hub.join(run.id, page, after=1) is not hub
    await Hub._hubs[run.id].leave(page)


@pytest.mark.usefixtures("_serving")
async def test_it_passes_on_what_is_being_written(run: Run) -> None:
    page = Page()
    hub = Hub.join(run.id, page, after=0)
    await asyncio.wait_for(page.woken.wait(), 10)

    live.stream(run.id, agent="coder", text="EMEA")

    assert "EMEA" in await asyncio.wait_for(page.shown.get(), 10)
    await hub.leave(page)


def test_it_rings_into_the_void_without_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_server_loop", None)

    live.ring("0")  # does not raise


def test_it_renews_the_headline_with_the_last_event_of_a_read(run: Run) -> None:
    make_event(run)

    first, last = live._render(run.id, 0)

    assert 'id="run-status"' not in first.html
    assert 'id="run-status"' in last.html


def test_it_adds_a_step_to_the_timeline_with_a_checkpoint(run: Run) -> None:
    make_checkpoint(run, round=7)

    html = live._render(run.id, 1)[0].html

    assert 'hx-swap-oob="beforeend:#timeline"' in html
    assert "Round 7" in html


def test_it_lets_a_page_ask_for_its_controls_when_the_run_ends(run: Run) -> None:
    make_event(run, EventKind.COMPLETED)

    assert "data-renews-controls" in live._render(run.id, 1)[0].html


def test_it_puts_nothing_of_one_reader_into_what_all_share(run: Run) -> None:
    make_event(run, EventKind.COMPLETED)

    assert "csrfmiddlewaretoken" not in live._render(run.id, 0)[-1].html

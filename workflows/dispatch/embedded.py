"""Runs in this very process: a thread with an event loop of its own, beside the web server's."""

from __future__ import annotations

import asyncio
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from uuid import UUID, uuid4

from django.conf import settings
from django.db import connections
from django.utils import timezone

from checkpoints_app.threads import in_thread
from workflows import dispatch
from workflows.models import Run
from workflows.runner import Execution, Stop

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5
DATABASE_THREADS = 4


def server_worker() -> str:
    """The worker's name in the server process: the same after a restart, and no other server's.

    Only one server process may use a data folder, so whatever this name still holds at its start
    was left by an earlier one.
    """
    path = settings.DATA_DIR / "worker"
    if not path.exists():
        path.write_text(f"server-{uuid4().hex[:12]}")
    return str(path.read_text())


class EmbeddedDispatcher:
    """Claims runs and executes up to `concurrency` of them at once.

    `only` restricts it to one run. `abandoned_by` names a dead worker whose runs it takes up
    without waiting for their lease: a restarted server passes its own name.
    """

    def __init__(
        self,
        *,
        worker: str,
        abandoned_by: str = "",
        concurrency: int | None = None,
        only: UUID | None = None,
    ) -> None:
        self.worker = worker
        self.concurrency = concurrency or settings.EMBEDDED_CONCURRENCY
        self._abandoned_by = abandoned_by
        self._only = only
        self._executions: dict[UUID, Execution] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_stopping = False
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._main, name=f"dispatcher {worker}", daemon=True)

    def start(self) -> None:
        """Begin to take runs; returns once the dispatcher can be woken."""
        self._thread.start()
        self._ready.wait()
        dispatch.on_wake(self.wake)

    def wake(self) -> None:
        """Look for work now rather than at the next poll. Safe from any thread."""
        try:
            self._loop.call_soon_threadsafe(self._woken.set)
        except RuntimeError:
            logger.debug("The dispatcher has already ended.")

    def stop(self, timeout_seconds: float = 4.0) -> None:
        """Hand every run on at once and end. A run that does not let go keeps its lease instead."""
        if not self._thread.is_alive():
            return
        dispatch.forget(self.wake)
        self._is_stopping = True
        self.wake()
        self._thread.join(timeout_seconds)
        if self._thread.is_alive():
            logger.warning("Some runs did not stop in time; their leases will run out.")

    def _main(self) -> None:
        with asyncio.Runner() as runner:
            self._loop = runner.get_loop()
            self._woken = asyncio.Event()
            pool = ThreadPoolExecutor(DATABASE_THREADS, thread_name_prefix="runs")
            self._loop.set_default_executor(pool)
            self._ready.set()
            runner.run(self._serve())
            _close_connections(pool)

    async def _serve(self) -> None:
        renewed_at = self._loop.time()
        while not self._is_stopping:
            self._woken.clear()
            try:
                await self._claim_runs()
                await self._obey_requests()
                if self._loop.time() - renewed_at >= settings.HEARTBEAT_SECONDS:
                    renewed_at = self._loop.time()
                    await in_thread(self._renew_leases)
            except Exception:
                # The database may be away for a while; the runs in flight notice it by themselves.
                logger.exception("The dispatcher could not reach the database.")
            await self._sleep()
        for execution in self._executions.values():
            execution.stop(Stop.SHUTDOWN)
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _sleep(self) -> None:
        try:
            async with asyncio.timeout(POLL_SECONDS):
                await self._woken.wait()
        except TimeoutError:
            return

    async def _claim_runs(self) -> None:
        while len(self._executions) < self.concurrency and not self._is_stopping:
            run = await in_thread(self._claim_one)
            if run is None:
                return
            execution = self._executions[run.id] = Execution(run)
            task = execution.start()
            self._tasks.add(task)
            task.add_done_callback(partial(self._forget, run.id))

    def _forget(self, run_id: UUID, task: asyncio.Task[None]) -> None:
        """A finished run leaves a free place, which is filled at once."""
        self._tasks.discard(task)
        self._executions.pop(run_id, None)
        self._woken.set()

    def _claim_one(self) -> Run | None:
        """Take the longest-waiting run that is free, or None."""
        claimable = Run.claimable(timezone.now(), abandoned_by=self._abandoned_by)
        waiting = Run.objects.filter(claimable).exclude(id__in=list(self._executions))
        if self._only:
            waiting = waiting.filter(id=self._only)
        for run in waiting.select_related("workflow").order_by("created_at")[
            : self.concurrency + 1
        ]:
            if run.claim(worker=self.worker, abandoned_by=self._abandoned_by):
                return run
        return None

    async def _obey_requests(self) -> None:
        if not self._executions:
            return
        for run_id, reason in await in_thread(self._requests):
            if execution := self._executions.get(run_id):
                execution.stop(reason)

    def _requests(self) -> list[tuple[UUID, Stop]]:
        """Which of our runs are to stop: cancelled by a person, or owned by another attempt."""
        held = Run.objects.filter(id__in=list(self._executions), status=Run.Status.RUNNING)
        found = []
        for run_id, attempt, cancelled_by in held.values_list(
            "id", "attempt", "cancel_requested_by"
        ):
            execution = self._executions.get(run_id)
            if execution and attempt != execution.run.attempt:
                found.append((run_id, Stop.FENCED))
            elif cancelled_by:
                found.append((run_id, Stop.CANCEL))
        return found

    def _renew_leases(self) -> None:
        until = timezone.now() + timedelta(seconds=settings.LEASE_SECONDS)
        for execution in list(self._executions.values()):
            Run.objects.filter(id=execution.run.id, attempt=execution.run.attempt).filter(
                status=Run.Status.RUNNING
            ).update(lease_expires_at=until)


def _close_connections(pool: ThreadPoolExecutor) -> None:
    """Close the database connection of each thread of `pool`, then the pool."""
    together = threading.Barrier(DATABASE_THREADS)

    def close() -> None:
        together.wait()
        connections.close_all()

    for future in [pool.submit(close) for _ in range(DATABASE_THREADS)]:
        future.result()
    pool.shutdown()

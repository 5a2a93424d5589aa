"""Paid answers, kept so that none is paid twice: the response cache as the event loop uses it."""

import asyncio
from collections.abc import Sequence
import contextlib
import queue
import threading
from typing import Any

from diversity_jax.llm.budget import NOTHING, Amount, BudgetConfig
from diversity_jax.llm.response_cache_file import Commit, Outcome, Reservation, Reserve, ResponseCacheFile

_HEARTBEAT_SECONDS = 10.0
_BATCH = 512

Job = str | Reserve | Commit | None  # a key to find; None closes the file


class ResponseCache:
    """A response cache shared by several processes. Make it inside the event loop that uses it.

    All work on the file happens in one thread, in batches: while one batch is written, the next one gathers.

    Args:
      path: the file, made if missing; None keeps answers in memory only.
      run: under which name this run's spending is added up.
      caps: caps that hold for the run.
      replay: read only; nothing is reserved or written.

    Attributes:
      path: the file's path.
      began_empty: whether it held no answer when it was opened for writing: later ones are found by reserving.
      spent_before: what the run had used up when the file was opened.

    Raises:
      InputError: the file is no cache, damaged, full, or may not be written; also from every method.
    """

    def __init__(self, path: str | None, *, run: str, caps: BudgetConfig, replay: bool = False):
        self._file = ResponseCacheFile(path, run=run, caps=caps, replay=replay)
        self.path, self.began_empty = self._file.path, self._file.began_empty
        self.spent_before = self._file.spent_before
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[tuple[Job, asyncio.Future]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="response cache", daemon=True)
        self._thread.start()

    async def find(self, key: str) -> Outcome | None:
        """The answer under `key`; in replay also the failure under it."""
        return await self._submit(key)

    async def reserve(self, key: str, most: Amount) -> Reservation:
        """Asks to send the call under `key`, which can use up `most`."""
        return await self._submit(Reserve(key, most))

    async def commit(
        self, key: str, spent: Amount, outcome: Outcome | None, *, lost: bool = False, regained: Amount = NOTHING
    ) -> None:
        """Ends the call under `key`, as `Commit` says; returns when the outcome is on disk."""
        await self._submit(Commit(key, spent, outcome, lost, regained))

    async def close(self) -> None:
        """Writes what is waiting and closes the file."""
        await self._submit(None)
        await asyncio.to_thread(self._thread.join)

    def _submit(self, job: Job) -> asyncio.Future:
        future = self._loop.create_future()
        self._jobs.put((job, future))
        return future

    def _work(self) -> None:
        closing = False
        while not closing:
            batch = self._next_batch()
            closing = any(job is None for job, _ in batch)
            results: Sequence[Any]
            try:
                results = self._run([job for job, _ in batch])
                if closing:
                    self._file.close()
            except BaseException as error:
                results = [error] * len(batch)
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._deliver, [future for _, future in batch], results)

    def _deliver(self, futures: Sequence[asyncio.Future], results: Sequence[Any]) -> None:
        for future, result in zip(futures, results, strict=True):
            if future.done():
                continue
            if isinstance(result, BaseException):
                future.set_exception(result)
            else:
                future.set_result(result)

    def _next_batch(self) -> list[tuple[Job, asyncio.Future]]:
        """The jobs that wait, or none after a while, so that the file shows that this process lives."""
        batch = []
        with contextlib.suppress(queue.Empty):
            batch.append(self._jobs.get(timeout=_HEARTBEAT_SECONDS))
            while len(batch) < _BATCH:
                batch.append(self._jobs.get_nowait())
        return batch

    def _run(self, jobs: Sequence[Job]) -> list[Any]:
        keys = [job for job in jobs if isinstance(job, str)]
        reserves = [job for job in jobs if isinstance(job, Reserve)]
        commits = [job for job in jobs if isinstance(job, Commit)]
        outcomes = self._file.find(keys) if keys else {}
        reservations = iter(self._file.apply(reserves, commits) if reserves or commits or not jobs else ())
        return [
            outcomes.get(job) if isinstance(job, str) else next(reservations) if isinstance(job, Reserve) else None
            for job in jobs
        ]

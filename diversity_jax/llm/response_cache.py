"""Paid answers, kept so that none is paid twice: the ledger as the event loop sees it.

All work on the file happens in one thread, in batches: while one batch is being written, the next one gathers.
"""

import asyncio
from collections.abc import Sequence
import contextlib
import queue
import threading

from diversity_jax.llm.budget import NOTHING, Amount, BudgetConfig
from diversity_jax.llm.response_cache_file import Claim, ClaimJob, Entry, Failure, LedgerFile, SettleJob

_HEARTBEAT_SECONDS = 10.0
_BATCH = 512
_DELIVERED_AT_ONCE = 8


class Ledger:
    """A ledger shared by several processes. Make it inside the event loop that uses it.

    Args:
      path: the file, made if missing; None keeps answers in memory only.
      run: under which name this run's spending is added up.
      caps: caps that hold for the run.
      replay: read only; nothing is claimed or written.

    Raises:
      InputError: the file is no ledger, damaged, full, or may not be written; also from every method.
    """

    def __init__(self, path: str | None, *, run: str, caps: BudgetConfig, replay: bool = False):
        self._file = LedgerFile(path, run=run, caps=caps, replay=replay)
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[tuple[str | ClaimJob | SettleJob | None, asyncio.Future]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="ledger", daemon=True)
        self._thread.start()

    @property
    def path(self) -> str:
        """The file's path."""
        return self._file.path

    @property
    def began_empty(self) -> bool:
        """Whether it held no answer when it was opened for writing: what has come since, a claim finds without a look
        before.
        """
        return self._file.began_empty

    @property
    def spent_before(self) -> Amount:
        """What the run had used up when the ledger was opened."""
        return self._file.spent_before

    async def look(self, key: str) -> Entry | Failure | None:
        """The answer under `key`; in replay also the failure under it."""
        return await self._submit(key)

    async def claim(self, key: str, reserve: Amount) -> Claim:
        """Asks to send the call under `key`, which can use up `reserve`."""
        return await self._submit(ClaimJob(key, reserve))

    async def settle(
        self,
        key: str,
        spent: Amount,
        outcome: Entry | Failure | None,
        *,
        lost: bool = False,
        regained: Amount = NOTHING,
    ) -> None:
        """Ends a claim, which used up `spent`, or at most that if it was lost on the way; `regained` is what was
        counted as lost before and is in `spent` now. Returns when the outcome is on disk.
        """
        await self._submit(SettleJob(key, spent, lost, outcome, regained))

    async def close(self) -> None:
        """Writes what is waiting and closes the file."""
        await self._submit(None)
        await asyncio.to_thread(self._thread.join)

    def _submit(self, job: str | ClaimJob | SettleJob | None) -> asyncio.Future:
        future = self._loop.create_future()
        self._jobs.put((job, future))
        return future

    def _work(self):
        stopping = False
        while not stopping:
            batch = self._next_batch()
            stopping = any(job is None for job, _ in batch)
            try:
                results = self._run([job for job, _ in batch])
                if stopping:
                    self._file.close()
            except BaseException as error:
                results = [error] * len(batch)
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._deliver, [future for _, future in batch], results)

    def _deliver(self, futures: Sequence[asyncio.Future], results: Sequence):
        """Hands out results a few at a time: whoever gets one has much to do, and between them answers come in and
        slots are filled.
        """
        for future, result in zip(futures[:_DELIVERED_AT_ONCE], results, strict=False):
            if future.done():
                continue
            if isinstance(result, BaseException):
                future.set_exception(result)
            else:
                future.set_result(result)
        if len(futures) > _DELIVERED_AT_ONCE:
            self._loop.call_soon(self._deliver, futures[_DELIVERED_AT_ONCE:], results[_DELIVERED_AT_ONCE:])

    def _next_batch(self) -> list[tuple[str | ClaimJob | SettleJob | None, asyncio.Future]]:
        batch = []
        with contextlib.suppress(queue.Empty):
            batch.append(self._jobs.get(timeout=_HEARTBEAT_SECONDS))
            while len(batch) < _BATCH:
                batch.append(self._jobs.get_nowait())
        return batch

    def _run(self, jobs: Sequence[str | ClaimJob | SettleJob | None]) -> list:
        looks = [job for job in jobs if isinstance(job, str)]
        claims = [job for job in jobs if isinstance(job, ClaimJob)]
        settles = [job for job in jobs if isinstance(job, SettleJob)]
        found = self._file.find(looks) if looks else {}
        granted = iter(self._file.apply(claims, settles) if claims or settles or not jobs else ())
        return [
            found.get(job) if isinstance(job, str) else next(granted) if isinstance(job, ClaimJob) else None
            for job in jobs
        ]

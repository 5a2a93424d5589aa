"""Calls in batches: those that wait are handed in together, and their answers come within a day at a lower price.

A batch is written into the ledger before it is handed in, and its reservations are its own. So a process that is killed
leaves it running; the next one finds it by its tag, collects it, and pays nothing twice.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
import logging
import re
import time
from typing import Any, TypeVar

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import content_hash
from diversity_jax.llm.budget import Amount, Price, sum_of
from diversity_jax.llm.calls import Call, CallAccounts, RunEnd, outcome_of, used_by
from diversity_jax.llm.cost_forecast import Stats
from diversity_jax.llm.ledger_file import OpenBatch
from diversity_jax.llm.providers.batch import BatchProvider
from diversity_jax.llm.providers.outcomes import Refused, Reply, Transient
from diversity_jax.llm.rate_limit import wait
from diversity_jax.llm.response_cache import Commit
from diversity_jax.llm.types import BatchConfig, Outcome, Request

_logger = logging.getLogger(__name__)
_T = TypeVar("_T")
_ATTEMPTS = 8
_FIRST_PAUSE_SECONDS = 0.5
# How providers say that too much is waiting in batches already: smaller ones, one after the other, may pass.
_TOO_MUCH = re.compile("token.?limit|enqueued|too (many|large)|quota|exceed", re.IGNORECASE)


class StillRunning(InputError):
    """A batch is not answered within the configured wait; the same command collects it later."""


class BatchQueue:
    """The batches of one model.

    Args:
      provider: hands them in; closed with the queue.
      ledger, stats, end: of the engine.
      config: how long to wait, and for what.
      price: of a token in a batch.
      name, model, role: `provider:model`, the model alone, and what it is used as.
      subject: the model at its address, under which the ledger knows its batches.
    """

    def __init__(
        self,
        provider: BatchProvider,
        accounts: CallAccounts,
        stats: Stats,
        end: RunEnd,
        config: BatchConfig,
        price: Price,
        *,
        name: str,
        model: str,
        role: str,
        subject: str,
    ):
        self._provider, self._accounts, self._stats, self._end, self._config = provider, accounts, stats, end, config
        self._price, self._name, self._model, self._role, self._subject = price, name, model, role, subject
        self._waiting: dict[str, Call] = {}
        self._arrived = asyncio.Event()
        self._gathering: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._futures: dict[str, asyncio.Future[Outcome]] = {}
        self._held: set[str] = set()  # keys of batches that an earlier process handed in
        self._delivered: dict[str, Outcome] = {}  # what came of them before it was asked for
        self._most_requests = provider.most_requests
        self._one_at_a_time: asyncio.Lock | None = None
        end.on_end(self._fail_all)

    def take_up(self, batches: list[OpenBatch]) -> None:
        """Goes on with batches that an earlier process handed in."""
        for batch in batches:
            self._held |= set(batch.stages)
            self._start(self._resume(batch))

    def holds(self, key: str) -> bool:
        """Whether the request under `key` is in a batch of an earlier process, and so has been reserved."""
        return key in self._held or key in self._delivered

    async def ask(self, call: Call) -> Outcome:
        """What became of a call.

        Raises:
          Transient: the batch left it out, or the server has to be asked in another way.
          Refused: the server refuses it.
        """
        if call.key in self._delivered:
            return self._delivered.pop(call.key)
        future = self._futures[call.key] = asyncio.get_running_loop().create_future()
        if call.key not in self._held:
            self._waiting[call.key] = call
            self._arrived.set()
            if self._gathering is None:
                self._gathering = self._start(self._gather())
        try:
            return await future
        finally:
            self._futures.pop(call.key, None)
            self._waiting.pop(call.key, None)

    async def close(self) -> None:
        """Stops looking at batches, which go on at the provider."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._provider.close()

    def _start(self, work: Any) -> asyncio.Task[None]:
        task = asyncio.create_task(self._explained(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _explained(self, work: Awaitable[None]) -> None:
        try:
            await work
        except InputError as error:
            self._end.stop(error)

    def _fail_all(self, error: Callable[[], Exception]) -> None:
        for future in self._futures.values():
            if not future.done():
                future.set_exception(error())

    async def _gather(self) -> None:
        """Hands in what waits once nothing more has come for a while."""
        while self._arrived.is_set():
            self._arrived.clear()
            await wait(self._arrived, self._config.gather_seconds)
        calls, self._gathering = list(self._waiting.values()), None
        self._waiting.clear()
        while calls:
            size = self._fitting(calls)
            self._start(self._hand_in(calls[:size]))
            calls = calls[size:]

    def _fitting(self, calls: list[Call]) -> int:
        """How many of the first calls make a batch that the provider takes."""
        left = self._provider.most_bytes
        for number, call in enumerate(calls[: self._most_requests]):
            left -= call.costs.allowed.tokens  # at least a byte of its prompt each
            if left < 0:
                return max(number, 1)
        return min(len(calls), self._most_requests)

    async def _hand_in(self, calls: list[Call]) -> None:
        if self._one_at_a_time is None:
            await self._hand_in_now(calls)
        else:
            async with self._one_at_a_time:
                await self._hand_in_now(calls)

    async def _hand_in_now(self, calls: list[Call]) -> None:
        requests = {call.key: call.request for call in calls}
        stages = {key: request.stage for key, request in requests.items()}
        tag, subject = f"diversity-{content_hash(sorted(requests))[:40]}", self._subject
        tag = await self._accounts.guard(self._accounts.cache.run(lambda file: file.open_batch(tag, subject, stages)))
        for call in calls:
            call.reserved = False  # it is the batch's
        self._stats.attempts += len(calls)
        name = await self._submit(tag, requests)
        _logger.info(
            "%s: batch %s of %s requests handed in; it may take up to 24 h, and this command may be stopped and run "
            "again in the meantime",
            self._role,
            name,
            f"{len(calls):,}",
        )
        await self._follow(tag, name, stages, requests)

    async def _submit(self, tag: str, requests: Mapping[str, Request]) -> str:
        """Hands in a batch once: an attempt whose answer was lost may have arrived."""
        attempt, name = 0, None
        while name is None:
            try:
                name = await self._with_retries(lambda: self._provider.find(tag))
                name = name or await self._provider.submit(tag, requests)
            except Transient as error:
                await self._pause(attempt, error)
                attempt += 1
            except InputError:
                if attempt == 0:  # refused, so that nothing runs
                    await self._accounts.guard(self._accounts.cache.run(lambda file: file.close_batch(tag, [])))
                raise
        await self._accounts.guard(self._accounts.cache.run(lambda file: file.name_batch(tag, name)))
        return name

    async def _resume(self, batch: OpenBatch) -> None:
        name = batch.name or await self._with_retries(lambda: self._provider.find(batch.tag))
        if name is None:  # the process ended before it was handed in
            await self._deliver(batch.tag, batch.stages, {}, Transient("adapted", "was not handed in"))
            return
        _logger.info("%s: going on with batch %s of %s requests", self._role, name, f"{len(batch.stages):,}")
        await self._follow(batch.tag, name, batch.stages, {})

    async def _follow(self, tag: str, name: str, stages: Mapping[str, str], requests: Mapping[str, Request]) -> None:
        """Waits for a batch, and delivers what it brought."""
        began, config = time.monotonic(), self._config
        while (batch := await self._with_retries(lambda: self._provider.poll(name))).state == "running":
            if config.wait_seconds is not None and time.monotonic() - began >= config.wait_seconds:
                raise StillRunning(
                    f"{self._role}: batch {name} is still running ({batch.detail}); run the same command again to "
                    "collect it"
                )
            await asyncio.sleep(config.poll_seconds)
        if batch.state == "done":
            outcomes = await self._with_retries(lambda: self._provider.collect(name, requests))
            await self._deliver(tag, stages, outcomes, Transient("unanswered", f"batch {name} left it out"))
        elif _TOO_MUCH.search(batch.detail) and len(stages) > 1:
            self._most_requests, self._one_at_a_time = len(stages) // 2, self._one_at_a_time or asyncio.Lock()
            smaller = f"smaller ones follow, of {self._most_requests:,} requests"
            _logger.warning("%s: batch %s failed (%s); %s", self._role, name, batch.detail, smaller)
            await self._deliver(tag, stages, {}, Transient("adapted", "smaller batches"))
        else:
            await self._deliver(tag, stages, {}, Transient("unanswered", f"batch {name} failed ({batch.detail})"))

    async def _deliver(
        self, tag: str, stages: Mapping[str, str], outcomes: Mapping[str, Reply | Refused | Transient], rest: Transient
    ) -> None:
        """Stores what a batch brought, and hands it to the calls that wait; `rest` is for those that it left out."""
        commits, results = [], dict[str, Outcome | Exception]()
        for key, stage in stages.items():
            outcome = outcomes.get(key, rest)
            if isinstance(outcome, Reply):
                spent = used_by(outcome, self._price)
                self._accounts.notes.served_by("answered by", [outcome.served_by] if outcome.served_by else [])
                results[key] = outcome_kept = outcome_of(outcome, stage, self._model, spent)
                commits.append(Commit(key, spent, outcome_kept))
            else:
                results[key] = outcome
                commits += [Commit(key, Amount(calls=1), None)] if isinstance(outcome, Refused) else []
        await self._accounts.guard(self._accounts.cache.run(lambda file: file.close_batch(tag, commits)))
        self._stats.spent = self._stats.spent.plus(sum_of(commit.spent for commit in commits))
        self._tell_unanswered(results)
        # Answers first: they say that refusals are not about all calls.
        for key, result in sorted(results.items(), key=lambda item: isinstance(item[1], Exception)):
            future = self._futures.get(key)
            waits = future is not None and not future.done()
            if isinstance(result, Exception):
                if waits:
                    self._futures[key].set_exception(result)
            elif waits:
                self._futures[key].set_result(result)
            elif key in self._held:
                self._delivered[key] = result
            self._held.discard(key)
        self._accounts.freed()

    def _tell_unanswered(self, results: Mapping[str, Outcome | Exception]) -> None:
        left = [result for result in results.values() if isinstance(result, Transient) and result.kind != "adapted"]
        if left:
            what = {
                "wait": "they are handed in again (batch.fallback=live asks them now, at the full price)",
                "live": "they are asked one by one at the full price (batch.fallback=live)",
                "stop": "the run ends (batch.fallback=stop)",
            }[self._config.fallback]
            count = f"{len(left):,} of {len(results):,}"
            _logger.warning("%s: %s requests without an answer (%s); %s", self._role, count, left[0].detail, what)

    async def _with_retries(self, call: Callable[[], Awaitable[_T]]) -> _T:
        """A call of the provider, repeated after passing failures.

        Raises:
          InputError: it keeps failing.
        """
        for attempt in range(_ATTEMPTS):
            try:
                return await call()
            except Transient as error:
                await self._pause(attempt, error)
        raise AssertionError("unreachable: the last pause raises")

    async def _pause(self, attempt: int, error: Transient) -> None:
        if attempt + 1 == _ATTEMPTS:
            raise InputError(f"{self._role}: batch: {error.detail}; run again to go on") from None
        await asyncio.sleep((error.retry_after_seconds or 0) + _FIRST_PAUSE_SECONDS * 2**attempt)

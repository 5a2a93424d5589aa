"""Calls in batches: waiting calls are submitted together, and answered within a day at a lower price.

A batch is written into the cache before it is submitted, and holds its reservations itself. So when a process is
killed the batch keeps running; the next process finds it by its tag, collects it, and pays nothing twice.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
import contextlib
import logging
import re
import time
from typing import Any, TypeVar

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import content_hash
from diversity_jax.llm.budget import Amount, Price, sum_of
from diversity_jax.llm.cache_file import OpenBatch
from diversity_jax.llm.calls import Call, CallAccounts, outcome_of, used_by
from diversity_jax.llm.providers.batch import BatchProvider
from diversity_jax.llm.providers.outcomes import Refused, Reply, Transient
from diversity_jax.llm.rate_limit import wait
from diversity_jax.llm.response_cache import Commit
from diversity_jax.llm.types import BatchConfig, Outcome, Request

_logger = logging.getLogger(__name__)
_T = TypeVar("_T")
_ATTEMPTS = 8
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 600.0
# Providers' words for too much waiting in batches already: smaller ones, one after the other, may be taken.
_TOO_MUCH = re.compile("token.?limit|enqueued|too (many|large)|quota|exceed", re.IGNORECASE)


class StillRunning(InputError):
    """A batch is not answered within `wait_seconds`; the same command collects it later."""


class BatchQueue:
    """The batches of one model.

    Args:
      provider: submits them; closed with the queue.
      accounts: of the engine.
      price: of a token in a batch.
      model, role: the model's name without its provider, and what it is used as.
      subject: the model at its address, under which the cache stores its batches.
    """

    def __init__(
        self,
        provider: BatchProvider,
        accounts: CallAccounts,
        config: BatchConfig,
        price: Price,
        *,
        model: str,
        role: str,
        subject: str,
    ):
        self._provider, self._accounts, self._config, self._price = provider, accounts, config, price
        self._model, self._role, self._subject = model, role, subject
        self._waiting: dict[str, Call] = {}
        self._arrived = asyncio.Event()
        self._gathering: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._futures: dict[str, asyncio.Future[Outcome]] = {}
        self._held: set[str] = set()  # keys in batches of an earlier process
        self._delivered: dict[str, Outcome] = {}  # their outcomes until they are asked for
        self._most_requests = provider.most_requests
        self._one_at_a_time: asyncio.Lock | None = None
        accounts.end.on_end(self._fail_all)

    def take_up(self, batches: list[OpenBatch]) -> None:
        """Resumes batches that an earlier process submitted."""
        for batch in batches:
            self._held |= set(batch.stages)
            self._start(self._resume(batch))

    def holds(self, key: str) -> bool:
        """Whether the request under `key` is in a batch of an earlier process, and so has been reserved."""
        return key in self._held or key in self._delivered

    async def ask(self, call: Call) -> Outcome:
        """Outcome of a call.

        Raises:
          Transient: the batch left it out, or it has to be sent again without a feature.
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
        """Stops polling; the batches keep running at the provider."""
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
            self._accounts.end.stop(error)

    def _fail_all(self, error: Callable[[], Exception]) -> None:
        for future in self._futures.values():
            if not future.done():
                future.set_exception(error())

    async def _gather(self) -> None:
        """Submits the waiting calls once no further one has come for `gather_seconds`."""
        while self._arrived.is_set():
            self._arrived.clear()
            await wait(self._arrived, self._config.gather_seconds)
        calls, self._gathering = list(self._waiting.values()), None
        self._waiting.clear()
        while calls:
            size = self._fitting(calls)
            self._start(self._run_batch(calls[:size]))
            calls = calls[size:]

    def _fitting(self, calls: list[Call]) -> int:
        """How many of the first calls fit into one batch of the provider."""
        left = self._provider.most_bytes
        for number, call in enumerate(calls[: self._most_requests]):
            left -= call.costs.allowed.tokens  # at least the prompt's bytes
            if left < 0:
                return max(number, 1)
        return min(len(calls), self._most_requests)

    async def _run_batch(self, calls: list[Call]) -> None:
        async with self._one_at_a_time or contextlib.nullcontext():
            requests = {call.key: call.request for call in calls}
            stages = {key: request.stage for key, request in requests.items()}
            tag, subject = f"diversity-{content_hash(sorted(requests))[:40]}", self._subject
            tag = await self._accounts.run(lambda file: file.open_batch(tag, subject, stages))
            for call in calls:
                call.reserved = False  # the reservation is the batch's
            self._accounts.stats.attempts += len(calls)
            name = await self._submit(tag, requests)
            advice = "it may take up to 24 h; this command may be stopped and run again in the meantime"
            _logger.info("%s: batch %s of %s requests submitted; %s", self._role, name, f"{len(calls):,}", advice)
            await self._follow(tag, name, stages, requests)

    async def _submit(self, tag: str, requests: Mapping[str, Request]) -> str:
        """Submits a batch once: before every further attempt it is looked for, since one may have arrived."""
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
                    await self._accounts.run(lambda file: file.close_batch(tag, []))
                raise
        await self._accounts.run(lambda file: file.name_batch(tag, name))
        return name

    async def _resume(self, batch: OpenBatch) -> None:
        name = batch.name or await self._with_retries(lambda: self._provider.find(batch.tag))
        if name is None:  # the process ended before it was submitted
            await self._deliver(batch.tag, batch.stages, {}, Transient("adapted", "was not submitted"))
            return
        _logger.info("%s: resuming batch %s of %s requests", self._role, name, f"{len(batch.stages):,}")
        await self._follow(batch.tag, name, batch.stages, {})

    async def _follow(self, tag: str, name: str, stages: Mapping[str, str], requests: Mapping[str, Request]) -> None:
        """Waits for a batch, and delivers its outcomes."""
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
            left_out = Transient("unanswered", f"batch {name} left it out ({batch.detail})")
            await self._deliver(tag, stages, outcomes, left_out)
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
        """Stores a batch's outcomes and passes them to the waiting calls; `rest` goes to those that it left out."""
        commits, results = [], dict[str, Outcome | Exception]()
        for key, stage in stages.items():
            outcome = outcomes.get(key, rest)
            if isinstance(outcome, Reply):
                spent = used_by(outcome, self._price)
                self._accounts.notes.served_by("answered by", [outcome.served_by] if outcome.served_by else [])
                results[key] = stored = outcome_of(outcome, stage, self._model, spent)
                commits.append(Commit(key, spent, stored))
            else:
                is_failure = isinstance(outcome, Transient) and outcome.kind != "adapted"
                results[key] = Transient("unanswered", outcome.detail) if is_failure else outcome
                commits += [Commit(key, Amount(calls=1), None)] if isinstance(outcome, Refused) else []
        await self._accounts.run(lambda file: file.close_batch(tag, commits))
        stats = self._accounts.stats
        stats.spent = stats.spent.plus(sum_of(commit.spent for commit in commits))
        self._warn_of_unanswered(results)
        # Answers first, since they show that refusals are not of all calls.
        for key, result in sorted(results.items(), key=lambda item: isinstance(item[1], Exception)):
            future = self._futures.get(key)
            if future is not None and not future.done():
                if isinstance(result, Exception):
                    future.set_exception(result)
                else:
                    future.set_result(result)
            elif key in self._held and not isinstance(result, Exception):
                self._delivered[key] = result
            self._held.discard(key)
        self._accounts.freed()

    def _warn_of_unanswered(self, results: Mapping[str, Outcome | Exception]) -> None:
        failures = [result for result in results.values() if isinstance(result, Transient)]
        unanswered = [failure for failure in failures if failure.kind == "unanswered"]
        if unanswered:
            what = {
                "wait": "they are submitted again (batch.fallback=live asks them now, at the full price)",
                "live": "they are asked one by one at the full price (batch.fallback=live)",
                "stop": "the run ends (batch.fallback=stop)",
            }[self._config.fallback]
            count = f"{len(unanswered):,} of {len(results):,}"
            _logger.warning("%s: %s requests without an answer (%s); %s", self._role, count, unanswered[0].detail, what)

    async def _with_retries(self, call: Callable[[], Awaitable[_T]]) -> _T:
        """A call of the provider, repeated after transient failures.

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
        asked_for = min(error.retry_after_seconds or 0.0, _LONGEST_PAUSE_SECONDS)
        await asyncio.sleep(asked_for + _FIRST_PAUSE_SECONDS * 2**attempt)

"""The engine: sends hundreds of calls at once to one model, pays for no answer twice, and keeps to a budget's caps."""

import asyncio
from collections.abc import Sequence
import contextlib
import logging
from typing import Any

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import canonical_json
from diversity_jax.llm.batching import BatchQueue
from diversity_jax.llm.budget import NOTHING, Amount, BudgetConfig, price_of
from diversity_jax.llm.calls import Call, CallAccounts, RefusalTracker, RunEnd, ServerNotes
from diversity_jax.llm.cost_forecast import CallProgress, CostForecast, PlannedCalls, Stats, reforecast
from diversity_jax.llm.live_calls import LiveCalls
from diversity_jax.llm.providers.base import Provider, connect
from diversity_jax.llm.providers.batch import open_batches
from diversity_jax.llm.providers.endpoint import Endpoint
from diversity_jax.llm.providers.outcomes import Refused, Transient
from diversity_jax.llm.providers.registry import parse_model
from diversity_jax.llm.rate_limit import PrioritySemaphore, Throttle
from diversity_jax.llm.response_cache import ResponseCache
from diversity_jax.llm.types import (
    CachedFailure,
    CallFailed,
    Completion,
    EndpointConfig,
    EngineConfig,
    Outcome,
    Request,
)

_logger = logging.getLogger(__name__)
# Calls beyond those in flight that may be under way through the cache, so that no slot waits for the disk even when all
# answers come at once. A killed run counts their reservations as spent; under a cap, where that matters, they are few.
_PREFETCH_LEAST, _PREFETCH_SHARE, _PREFETCH_SHARE_CAPPED = 8, 1, 1 / 4
# Requests prepared at once, for each slot: hashing thousands first would delay the first ones.
_ADMITTED_PER_SLOT = 4
# Factor of `max_attempts` for 429s, of which a call may get more: they are how the limit is learnt.
_RATE_LIMITED_FACTOR = 10
# Attempts at a call that is refused access (401, 403, 404, a redirect), which a faulty gateway may do at random.
_ATTEMPTS_TURNED_AWAY = 3
_IDENTIFY_SECONDS = 10.0
_MOST_WAITING = 1_000_000  # calls begun at once where batches gather them
_BATCHES_PER_CALL = 3  # that may leave a request out before the run ends


class Engine:
    """Asks one model; an asynchronous context manager.

        async with Engine("openai:gpt-4o-mini", config=EngineConfig(ledger="runs/a/ledger.sqlite")) as engine:
            completion = await engine.complete(request)

    Any number of calls may be started at once; at most `max_in_flight` are sent.

    Args:
      model: `provider:model`, of the providers in `providers.registry`.
      base_url: address of another server than the provider's, such as `http://127.0.0.1:8000/v1`.
      endpoint: extra headers, query and body fields.
      config: how calls are made.
      budget: the caps.
      role: what the model is used as, `judge` or `generator`; messages begin with it.

    Raises:
      InputError: a bad name, no price, and on entering: no API key, an unusable cache.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        endpoint: EndpointConfig = EndpointConfig(),
        config: EngineConfig = EngineConfig(),
        budget: BudgetConfig = BudgetConfig(),
        role: str = "judge",
    ):
        self.name, self.role, self.config, self.budget = model, role, config, budget
        self.stats = Stats()
        self._base_url, self._endpoint_config = base_url, endpoint
        self._provider_name, self._model = parse_model(model, role)
        self._live_price = price_of(self._provider_name, self._model, base_url, budget)
        self.price = self._live_price.times(config.price_share)
        self.body = endpoint.body_fields()
        self._asked_model = f"{self._model} {canonical_json(self.body)}" if self.body else self._model
        self._endpoint: Endpoint | None = None
        self._provider: Provider | None = None
        self._live: LiveCalls | None = None  # None in replay
        self._batches: BatchQueue | None = None
        self._accounts: CallAccounts | None = None
        self._identifying: asyncio.Task[None] | None = None
        slots = self.most_at_once
        prefetch_share = _PREFETCH_SHARE_CAPPED if budget.capped else _PREFETCH_SHARE
        self._throttle = Throttle(config.max_in_flight, stall_seconds=config.stall_seconds, stalled=self._stalled)
        self._admission_semaphore = PrioritySemaphore(slots * _ADMITTED_PER_SLOT)
        self._prefetch_semaphore = PrioritySemaphore(slots + _PREFETCH_LEAST + int(slots * prefetch_share))
        self._progress = CallProgress(model, config.progress, self.stats, self._throttle, lambda: self.projected)
        self._calls: dict[str, asyncio.Task[Completion]] = {}
        self._end = RunEnd()
        self._end.on_end(self._throttle.stop)
        self._end.on_end(self._prefetch_semaphore.stop)
        self._refusals = RefusalTracker()
        self._first_answer: asyncio.Lock | None = None  # held by each call until one is answered
        self._broken_schemas = 0  # answers that did not fit the schema of their request

    async def __aenter__(self) -> "Engine":
        config = self.config
        if self._accounts is not None:
            raise RuntimeError("an Engine is entered once; make another one")
        if not config.offline_replay:
            self._endpoint = Endpoint(self.name, self._base_url, self.role, self._endpoint_config)
            limits = {"max_in_flight": config.max_in_flight, "deadline_seconds": config.deadline_seconds}
            self._provider = connect("client", self._endpoint, **limits)
        try:
            cache = ResponseCache(config.ledger, run=config.run, caps=self.budget, replay=config.offline_replay)
            await self._begin(cache)
        except BaseException:
            await self._close_provider()
            raise
        self.stats.spent_before = cache.spent_before
        self._progress.start()
        return self

    async def _begin(self, cache: ResponseCache) -> None:
        """Reads what the cache knows of the server, and resumes batches that are under way."""
        endpoint, config = self._endpoint, self.config
        url = endpoint.url if endpoint else self._base_url or ""
        notes = ServerNotes(cache, self.name, url, self.role)
        poll = {"poll_seconds": config.batches.poll_seconds} if config.batch else {}
        self._accounts = CallAccounts(cache, notes, self.budget, self.stats, self._end, self.role, **poll)
        if endpoint is None or self._provider is None:
            return
        endpoint.without, endpoint.learnt = notes.without, notes.learnt
        self._live = LiveCalls(
            self._provider, endpoint, self._accounts, config, self._throttle, self._refusals, self._live_price
        )
        subject = f"{self._provider_name}:{self._asked_model} at {url}"
        under_way = await self._accounts.run(lambda file: file.open_batches(subject))
        if config.batch or under_way:
            names = {"model": self._model, "role": self.role, "subject": subject}
            price, provider = self._live_price.times(config.batches.price_share), open_batches(endpoint)
            self._batches = BatchQueue(provider, self._accounts, config.batches, price, **names)
            self._batches.take_up(under_way)
        self._identifying = asyncio.create_task(self._identify(self._provider, notes))
        dollars_or_tokens = (self.budget.max_dollars, self.budget.max_tokens) != (None, None)
        if dollars_or_tokens and cache.began_empty and not config.batch:
            # The first answer shows whether the server bills thoughts beyond the limit of a request; hundreds in flight
            # could exceed the cap by then.
            self._first_answer = asyncio.Lock()

    async def _identify(self, provider: Provider, notes: ServerNotes) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_IDENTIFY_SECONDS):
                listed = await provider.identify()
                notes.served_by("listed as", [listed] if listed else [])

    async def __aexit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        tasks = [*self._calls.values(), *filter(None, [self._identifying])]
        if self._identifying is not None and kind is None:
            await asyncio.wait([self._identifying], timeout=_IDENTIFY_SECONDS)  # a run from the cache ends at once
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._progress.close()
        if self._batches is not None:
            await self._batches.close()
        try:
            await self._open_accounts.cache.close()
        except InputError:
            if kind is None:  # otherwise the first error is raised
                raise
        finally:
            await self._close_provider()

    async def _close_provider(self) -> None:
        if self._provider is not None:
            await self._provider.close()

    @property
    def _open_accounts(self) -> CallAccounts:
        if self._accounts is None:
            raise RuntimeError("an Engine is used inside `async with`")
        return self._accounts

    def key(self, request: Request) -> str:
        """The key of a request's answer in the cache."""
        return request.key(self._provider_name, self._asked_model)

    @property
    def limit(self) -> int:
        """How many requests may be in flight now."""
        return self._throttle.limit

    @property
    def most_at_once(self) -> int:
        """How many calls to begin at once: all of them where batches gather them."""
        return _MOST_WAITING if self.config.batch else self.config.max_in_flight

    @property
    def calls_left(self) -> int | None:
        """Calls that the cap on them still allows; None without one."""
        most, stats = self.budget.max_calls, self.stats
        return None if most is None else max(most - stats.spent_before.calls - stats.spent.calls, 0)

    @property
    def enforces_schema(self) -> bool:
        """Whether the server enforces the schemas of requests: False once it has refused one, or an answer that did not
        fit its schema was reported.
        """
        # In replay there is no endpoint, but what an earlier process has learnt.
        known = self._endpoint or (self._accounts and self._accounts.notes)
        return not self._broken_schemas and not (known and "json_schema" in known.without)

    def report_broken_schema(self, stage: str) -> None:
        """Notes that an answer did not fit the schema of its request; logs the first."""
        if self.enforces_schema:
            what = f"does not hold answers to their schema (an answer of {stage} broke it); they are checked here"
            _logger.info("%s: %s %s", self.role, self.name, what)
        self._broken_schemas += 1

    def expect(self, calls: int) -> None:
        """Sets how many calls the run will make, for the time left and the total price."""
        self.stats.expected = calls

    def plan(self, planned: Sequence[PlannedCalls]) -> None:
        """Sets what the calls will be, for `projected`."""
        self.stats.planned = tuple(planned)

    @property
    def projected(self) -> CostForecast | None:
        """Forecast of the run's total use from its calls so far; None without a plan."""
        return reforecast(self.stats.planned, self.stats.used, self.price, self.budget) if self.stats.planned else None

    async def answers_other(self, request: Request, other: Request) -> bool:
        """Whether the cache, or a batch of an earlier process, holds an answer to `other` and none to `request`."""
        return not await self._is_held(request) and await self._is_held(other)

    async def _is_held(self, request: Request) -> bool:
        key, accounts = self.key(request), self._open_accounts
        if self._batches is not None and self._batches.holds(key):
            return True
        return not accounts.cache.began_empty and await accounts.guard(accounts.cache.find(key)) is not None

    async def complete(self, request: Request) -> Completion:
        """The answer to `request`, from the cache or the server. Equal requests at the same time share a call.

        Raises:
          CallFailed: this call has no usable answer; see its `reason` and `ends_run`.
          InputError: no call can succeed: a wrong key, an unknown model, an unreachable server, an unusable cache; or
            in replay the answer is missing.
        """
        await self._admission_semaphore.enter(first=request.urgent)
        try:
            key = self.key(request)
            task = self._calls.get(key)
            if task is None:
                task = self._calls[key] = asyncio.create_task(self._answer(key, request))
                task.add_done_callback(lambda done: self._done(key, done))
            return await asyncio.shield(task)
        finally:
            self._admission_semaphore.leave()

    def _done(self, key: str, task: asyncio.Task[Completion]) -> None:
        del self._calls[key]
        self._open_accounts.retrying.pop(key, None)
        self.stats.failed += not task.cancelled() and task.exception() is not None

    async def _answer(self, key: str, request: Request) -> Completion:
        accounts = self._open_accounts
        outcome = None if accounts.cache.began_empty else await accounts.guard(accounts.cache.find(key))
        if outcome is not None:
            return self._completion(outcome, cached=True)
        if self._live is None:
            missing = f"has no answer of {self.name} to this {request.stage} call ({key[:12]})"
            remedy = "replay needs the same corpus, settings and seed, or run without engine.offline_replay"
            raise InputError(f"{self.config.ledger}: {missing}; {remedy}")
        batched = self._batches is not None and (self.config.batch or self._batches.holds(key))
        call = Call(key=key, request=request, costs=accounts.costs_of(request, self.price), batched=batched)
        return await self._ask(call, self._live)

    async def _ask(self, call: Call, live: LiveCalls) -> Completion:
        """Attempts a call until it ends."""
        accounts = self._open_accounts
        attempts, limits = self.config.max_attempts, self.config.max_attempts * _RATE_LIMITED_FACTOR
        while True:
            # Calls that wait for budget may fill this semaphore. Those with priority complete begun work and so free
            # budget; they do not wait for it.
            semaphore = contextlib.nullcontext() if accounts.has_priority(call) else self._prefetch_semaphore
            try:
                async with semaphore:
                    try:
                        return await self._attempt(call, live)
                    finally:
                        if call.reserved:  # the attempt failed, the run ended, or this task was cancelled
                            with contextlib.suppress(InputError):
                                await accounts.commit(call, None)
            except Transient as error:
                failure = error
            live.raise_if_never_reached(call, failure)
            if failure.kind == "unanswered":
                self._fall_back(call, failure)
            elif call.failures >= attempts or call.rate_limits >= limits:
                raise await accounts.fail(call, CallFailed("gave_up", f"every attempt failed; the last: {failure}"))
            accounts.retrying[call.key] = call
            await live.pause(call, failure)

    def _fall_back(self, call: Call, failure: Transient) -> None:
        """Prepares the next attempt at a request that a batch left out, or ends the run."""
        fallback = self.config.batches.fallback
        if fallback == "live":
            call.batched, call.costs = False, self._open_accounts.costs_of(call.request, self._live_price)
        elif fallback == "stop" or call.failures >= _BATCHES_PER_CALL:
            why = f"{call.failures} batches left requests out; the last: {failure.detail}"
            advice = "run again to submit them once more, or with batch.fallback=live to ask them at the full price"
            self._end.stop(InputError(f"{self.role}: {why}; {advice}"))
        self._end.raise_if_ended()

    async def _attempt(self, call: Call, live: LiveCalls) -> Completion:
        """Makes one attempt, of which the outcome is stored before it is returned."""
        if self._first_answer is not None:
            async with self._first_answer:
                if not self._refusals.successes:
                    return await self._attempt_now(call, live)
        return await self._attempt_now(call, live)

    async def _attempt_now(self, call: Call, live: LiveCalls) -> Completion:
        try:
            if call.batched and self._batches is not None:
                return await self._batch_attempt(call, self._batches, live)
            outcome, cached = await live.attempt(call)
            return self._completion(outcome, cached=cached)
        except Refused as error:
            call.spent = Amount(calls=1) if call.reserved else NOTHING
            raise await self._refused(call, error) from None

    async def _batch_attempt(self, call: Call, batches: BatchQueue, live: LiveCalls) -> Completion:
        """Waits for the outcome in a batch, which stores it."""
        response = None if batches.holds(call.key) else await self._open_accounts.reserve(call)
        if response is not None:
            return self._completion(response, cached=True)
        try:
            outcome = await batches.ask(call)
        except Transient as error:
            call.failures += error.kind != "adapted"
            raise
        except Refused as error:
            live.weigh(call, error)
            raise
        self._refusals.successes += 1
        if isinstance(outcome, CachedFailure) and outcome.reason == "interrupted":
            call.failures += 1
            raise Transient("unanswered", outcome.detail)
        return self._completion(outcome, cached=False)

    async def _refused(self, call: Call, error: Refused) -> Exception:
        """The exception for a refused call: `Transient` where it is to be sent again."""
        self._end.raise_if_ended()
        call.denials += 1
        if error.scope in ("access", "key", "model") and call.denials < _ATTEMPTS_TURNED_AWAY and not call.batched:
            return Transient("turned away", error.detail)
        return await self._open_accounts.fail(call, CallFailed(error.reason, error.detail))

    def _completion(self, outcome: Outcome, *, cached: bool) -> Completion:
        counts = {"prompt_tokens": outcome.prompt_tokens, "completion_tokens": outcome.completion_tokens}
        if isinstance(outcome, CachedFailure):
            raise CallFailed(outcome.reason, outcome.detail, cost_usd=outcome.dollars, **counts)
        self.stats.count(outcome, cached=cached)
        return Completion(text=outcome.text, cost_usd=outcome.dollars, cached=cached, model=outcome.model, **counts)

    def _stalled(self, why: str) -> None:
        silence = f"{self.role}: no answer from {self.name} for {self.config.stall_seconds:g} s"
        self._end.stop(CallFailed("stalled", f"{silence}; the last failure: {why}; run again to go on"))

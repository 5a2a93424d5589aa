"""The engine: hundreds of calls in flight, none paid twice, none beyond the cap."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Sequence
import contextlib
from dataclasses import dataclass
import logging
import random
from typing import Any, TypeVar

from diversity_jax.core.errors import InputError
from diversity_jax.llm.budget import NOTHING, Amount, BudgetConfig, CallCosts, Reservation, StageCosts, price_of, sum_of
from diversity_jax.llm.cost_forecast import CostForecast, PlannedCalls, reforecast
from diversity_jax.llm.progress import CallProgress, Stats
from diversity_jax.llm.providers.base import Provider, Rejected, Reply, Transient, open_provider
from diversity_jax.llm.providers.registry import parse_model
from diversity_jax.llm.rate_limit import PrioritySemaphore, Slot, Throttle, wait
from diversity_jax.llm.response_cache import ResponseCache
from diversity_jax.llm.types import (
    CachedFailure,
    CachedResponse,
    CallFailed,
    Completion,
    EngineConfig,
    Outcome,
    Request,
)

_logger = logging.getLogger(__name__)
_T = TypeVar("_T")
# Calls beyond those in flight that may be under way through the cache, so that no slot waits for the disk even when all
# answers come at once. A killed run counts them as used up like those in flight; under a cap, where that matters, they
# are few.
_PREFETCH_LEAST, _PREFETCH_SHARE, _PREFETCH_SHARE_CAPPED = 8, 1, 1 / 4
# Requests prepared at once, in slots: hashing thousands first would keep the first ones from going out.
_ADMITTED_PER_SLOT = 4
_LONGEST_BACKOFF_SECONDS = 30.0
_POLL_SECONDS = 0.2
# A call may be refused with 429 more often than it may fail, because that is how the limit is learnt.
_RATE_LIMITED_FACTOR = 10
_REJECTIONS_BEFORE_GIVING_UP = 3
_ATTEMPTS_TO_REACH_A_SERVER = 3


@dataclass(kw_only=True, eq=False)
class _Call:
    """One request until it is answered or given up.

    Attributes:
      reserved: whether an attempt holds a reservation in the cache.
      spent: what the attempt under way used up; None where it may have used up anything up to `costs.most`.
      failures, rate_limits: attempts that failed, and that met the server's limit.
    """

    key: str
    request: Request
    costs: CallCosts
    reserved: bool = False
    spent: Amount | None = NOTHING
    failures: int = 0
    rate_limits: int = 0


class Engine:
    """Asks one model; an asynchronous context manager.

        async with Engine("openai:gpt-4o-mini", config=EngineConfig(ledger="runs/a/ledger.sqlite")) as engine:
            completion = await engine.complete(request)

    Start as many calls at once as you like: at most `max_in_flight` are sent.

    Args:
      model: `provider:model`, of the providers in `providers.registry`.
      base_url: address of a server of one's own, such as `http://127.0.0.1:8000/v1`.
      config: how calls are made.
      budget: the cap.
      role: what the model is used as, `judge` or `generator`; messages begin with it.

    Raises:
      InputError: a bad name, no price, and on entering: no API key, an unusable ledger.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        config: EngineConfig = EngineConfig(),
        budget: BudgetConfig = BudgetConfig(),
        role: str = "judge",
    ):
        self.name, self.role, self.config, self.budget = model, role, config, budget
        self.stats = Stats()
        self._base_url = base_url
        self._provider_name, self._model = parse_model(model, role)
        self.price = price_of(self._provider_name, self._model, base_url, budget)
        self._provider: Provider | None = None
        self._cache: ResponseCache | None = None
        slots = config.max_in_flight
        prefetch_share = _PREFETCH_SHARE_CAPPED if budget.capped else _PREFETCH_SHARE
        self._throttle = Throttle(slots, stall_seconds=config.stall_seconds, stalled=self._stalled)
        self._admission_semaphore = PrioritySemaphore(slots * _ADMITTED_PER_SLOT)
        self._prefetch_semaphore = PrioritySemaphore(slots + _PREFETCH_LEAST + int(slots * prefetch_share))
        self._budget_lock = PrioritySemaphore(1)
        self._committed, self._stopping = asyncio.Event(), asyncio.Event()
        self._progress = CallProgress(model, config.progress, self.stats, self._throttle, lambda: self.projected)
        self._calls: dict[str, asyncio.Task[Completion]] = {}
        self._retrying: dict[str, _Call] = {}  # those that have failed and are asked again
        self._stage_costs: defaultdict[str, StageCosts] = defaultdict(StageCosts)
        self._ending: Exception | None = None
        self._reached = False  # whether the server has answered anything
        self._rejections = 0
        self._broken_schemas = 0  # answers that broke the schema they were asked in

    async def __aenter__(self) -> "Engine":
        config = self.config
        if self._cache is not None:
            raise RuntimeError("an Engine is entered once; make another one")
        if not config.offline_replay:
            limits: dict[str, Any] = {
                "max_in_flight": config.max_in_flight,
                "deadline_seconds": config.deadline_seconds,
            }
            self._provider = open_provider(self.name, base_url=self._base_url, role=self.role, **limits)
        try:
            self._cache = ResponseCache(config.ledger, run=config.run, caps=self.budget, replay=config.offline_replay)
        except BaseException:
            await self._close_provider()
            raise
        self.stats.spent_before = self._cache.spent_before
        self._progress.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        for task in self._calls.values():
            task.cancel()
        await asyncio.gather(*self._calls.values(), return_exceptions=True)
        await self._progress.close()
        try:
            await self._open_cache.close()
        except InputError:
            if kind is None:  # otherwise the first error is the one to show
                raise
        finally:
            await self._close_provider()

    async def _close_provider(self) -> None:
        if self._provider is not None:
            await self._provider.close()

    @property
    def _open_cache(self) -> ResponseCache:
        if self._cache is None:
            raise RuntimeError("an Engine is used inside `async with`")
        return self._cache

    @property
    def limit(self) -> int:
        """How many requests may be in flight now."""
        return self._throttle.limit

    @property
    def calls_left(self) -> int | None:
        """Calls that the cap on them still allows; None without one."""
        most, stats = self.budget.max_calls, self.stats
        return None if most is None else max(most - stats.spent_before.calls - stats.spent.calls, 0)

    @property
    def enforces_schema(self) -> bool:
        """Whether the server holds answers to the schema of their request, as far as is known: False once it has
        refused schemas, or an answer that was reported has broken one.
        """
        return not self._broken_schemas and (self._provider is None or self._provider.sends_schemas)

    def report_broken_schema(self, stage: str) -> None:
        """Notes that an answer did not fit the schema of its request; the first time this is logged."""
        if self.enforces_schema:
            what = f"does not hold answers to their schema (an answer of {stage} broke it); they are checked here"
            _logger.info("%s: %s %s", self.role, self.name, what)
        self._broken_schemas += 1

    def expect(self, calls: int) -> None:
        """Sets how many calls the run will make, for the time left and the total price."""
        self.stats.expected = calls

    def plan(self, planned: Sequence[PlannedCalls]) -> None:
        """Sets what the calls will be, for a projection that is right from the start."""
        self.stats.planned = tuple(planned)

    @property
    def projected(self) -> CostForecast | None:
        """What the run will use up in all, from what its calls have used so far; None without a plan."""
        return reforecast(self.stats.planned, self.stats.used, self.price, self.budget) if self.stats.planned else None

    async def answers_other(self, request: Request, other: Request) -> bool:
        """Whether the cache holds an answer to `other` and none to `request`."""
        cache = self._open_cache
        if cache.began_empty:
            return False
        keys = [one.key(self._provider_name, self._model) for one in (request, other)]
        if await self._cached(cache.find(keys[0])) is not None:
            return False
        return await self._cached(cache.find(keys[1])) is not None

    async def complete(self, request: Request) -> Completion:
        """The answer to `request`, from the cache or from the server. Equal requests at once share one call.

        Raises:
          CallFailed: this call has no usable answer; see its `reason` and `ends_run`.
          InputError: no call can succeed: a wrong key, an unknown model, an unreachable server, an unusable ledger, in
            replay an answer that is missing.
        """
        await self._admission_semaphore.enter(first=request.urgent)
        try:
            key = request.key(self._provider_name, self._model)
            task = self._calls.get(key)
            if task is None:
                task = self._calls[key] = asyncio.create_task(self._answer(key, request))
                task.add_done_callback(lambda done: self._done(key, done))
            return await asyncio.shield(task)
        finally:
            self._admission_semaphore.leave()

    def _done(self, key: str, task: asyncio.Task[Completion]) -> None:
        del self._calls[key]
        self._retrying.pop(key, None)
        self.stats.failed += not task.cancelled() and task.exception() is not None

    async def _answer(self, key: str, request: Request) -> Completion:
        cache = self._open_cache
        outcome = None if cache.began_empty else await self._cached(cache.find(key))
        if outcome is not None:
            return self._completion(outcome, cached=True)
        if self._provider is None:
            missing = f"has no answer of {self.name} to this {request.stage} call ({key[:12]})"
            remedy = "replay needs the same corpus, settings and seed, or run without engine.offline_replay"
            raise InputError(f"{self.config.ledger}: {missing}; {remedy}")
        costs = CallCosts(request, self.price, self._stage_costs[request.stage])
        return await self._ask(_Call(key=key, request=request, costs=costs), self._provider)

    async def _ask(self, call: _Call, provider: Provider) -> Completion:
        """Attempts a call until it ends."""
        attempts, limits = self.config.max_attempts, self.config.max_attempts * _RATE_LIMITED_FACTOR
        while True:
            # Calls that wait for budget may fill this semaphore; those that complete begun work, and so free budget, go
            # past them.
            semaphore = contextlib.nullcontext() if self._has_priority(call) else self._prefetch_semaphore
            try:
                async with semaphore:
                    try:
                        return await self._attempt(call, provider)
                    finally:
                        if call.reserved:  # the attempt failed, the run ended, or this task was cancelled
                            with contextlib.suppress(InputError):
                                await self._commit(call, None)
            except Transient as error:
                failure = error
            self._raise_if_never_reached(call, failure)
            if call.failures >= attempts or call.rate_limits >= limits:
                raise await self._failed(call, CallFailed("gave_up", f"every attempt failed; the last: {failure}"))
            self._retrying[call.key] = call
            await self._pause(call, failure)

    def _has_priority(self, call: _Call) -> bool:
        return call.request.urgent or call.key in self._retrying

    async def _attempt(self, call: _Call, provider: Provider) -> Completion:
        """Sends a call once, and records how it ended before anyone sees it."""
        response = await self._reserve(call)
        if response is not None:
            return self._completion(response, cached=True)
        slot = await self._throttle.acquire()
        self.stats.attempts += 1
        call.spent = None  # until it is known what this attempt used up
        try:
            reply = await self._send(slot, call.request, provider)
        except Transient as error:
            if not error.billed:
                call.spent = Amount(calls=int(error.kind != "unreachable"))
            call.rate_limits += error.kind == "rate_limited"
            # While the circuit is open no call is answered, and so none uses up its attempts.
            call.failures += not self._throttle.opened and error.kind not in ("rate_limited", "adapted")
            raise
        except (Rejected, InputError) as error:
            call.spent = Amount(calls=1)
            if isinstance(error, InputError):
                raise
            self._raise_if_always_rejected(error)
            raise await self._failed(call, CallFailed("rejected", error.detail)) from None
        except CallFailed as error:
            error.cost_usd = self.price.cost(error.prompt_tokens, error.completion_tokens)
            call.spent = Amount(error.cost_usd, error.prompt_tokens + error.completion_tokens, 1)
            raise await self._failed(call, error) from None
        dollars = self.price.cost(reply.prompt_tokens, reply.completion_tokens)
        call.spent = Amount(dollars, reply.prompt_tokens + reply.completion_tokens, 1)
        response = CachedResponse(stage=call.request.stage, **vars(reply), dollars=dollars, model=self._model)
        await self._commit(call, response)
        return self._completion(response, cached=False)

    async def _send(self, slot: Slot, request: Request, provider: Provider) -> Reply:
        """Sends one attempt, and tells the throttle how it went."""
        throttle, seconds = self._throttle, self.config.deadline_seconds
        try:
            async with asyncio.timeout(seconds):
                reply = await provider.ask(request)
        except (Transient, TimeoutError) as error:
            failure = error if isinstance(error, Transient) else Transient("timeout", f"no answer for {seconds:g} s")
            self._reached = self._reached or failure.kind != "unreachable"
            if failure.kind == "rate_limited":
                throttle.limited(slot, failure.retry_after_seconds)
            elif failure.kind == "adapted":
                throttle.abandoned(slot)
            else:
                throttle.failed(slot, str(failure), unreachable=failure.kind == "unreachable")
            raise failure from None
        except (Rejected, CallFailed):
            self._reached = True
            throttle.answered(slot)
            raise
        except BaseException as error:
            if isinstance(error, InputError):
                self._stop(error)  # before the slot is free for another call that must fail
            throttle.abandoned(slot)
            raise
        self._reached = True
        throttle.answered(slot)
        return reply

    async def _reserve(self, call: _Call) -> Outcome | None:
        """Reserves the most that a call can use up; returns the answer instead if another process has it by now."""
        reservation = await self._reserve_once(call)
        if reservation.state != "over":
            return reservation.response
        # One call at a time, or hundreds would ask again at every call that ends. Calls with priority come first, and
        # keep their turn until there is budget for them.
        priority = self._has_priority(call)
        while True:
            await self._budget_lock.enter(first=priority)
            try:
                while (reservation := await self._reserve_once(call)).state == "over":
                    if reservation.in_flight:
                        await wait(self._committed, _POLL_SECONDS)  # other processes' calls are seen by polling only
                    elif not await self._recount_lost():
                        self._stop(CallFailed("budget", reservation.why(self.budget)))
                    if not priority:
                        break
                else:
                    return reservation.response
            finally:
                self._budget_lock.leave()

    async def _reserve_once(self, call: _Call) -> Reservation:
        while True:
            self._raise_if_ended()
            self._committed.clear()
            reservation = await self._cached(self._open_cache.reserve(call.key, call.costs.most))
            call.reserved = reservation.state == "granted"
            if reservation.state != "held":
                return reservation
            await asyncio.sleep(_POLL_SECONDS)

    async def _recount_lost(self) -> bool:
        """Counts the lost attempts of calls that are still to be asked again by what is known now of their stage;
        whether that frees budget.
        """
        regained = sum_of(call.costs.recount() for call in self._retrying.values())
        if regained == NOTHING:
            return False
        self.stats.spent = self.stats.spent.minus(regained)
        await self._cached(self._open_cache.commit("", NOTHING, None, regained=regained))
        return True

    async def _failed(self, call: _Call, error: CallFailed) -> CallFailed:
        fields = {name: getattr(error, name) for name in ("reason", "detail", "prompt_tokens", "completion_tokens")}
        await self._commit(call, CachedFailure(stage=call.request.stage, dollars=error.cost_usd, **fields))
        return error

    async def _commit(self, call: _Call, outcome: Outcome | None) -> None:
        """Records what an attempt used up, and the call's outcome if it has one."""
        spent, regained, lost = call.spent, NOTHING, call.spent is None
        if spent is None:
            spent = call.costs.lose_attempt()
        elif isinstance(outcome, CachedResponse):
            again, regained = call.costs.answered(outcome.prompt_tokens, outcome.completion_tokens)
            spent = spent.plus(again)
        call.spent, call.reserved = NOTHING, False
        self.stats.spent = self.stats.spent.plus(spent).minus(regained)
        await self._cached(self._open_cache.commit(call.key, spent, outcome, lost=lost, regained=regained))
        self._committed.set()

    async def _cached(self, work: Awaitable[_T]) -> _T:
        """Awaits work of the cache; when that fails the run cannot go on."""
        try:
            return await work
        except InputError as error:
            self._stop(error)
            raise self._end_error() from None

    def _completion(self, outcome: Outcome, *, cached: bool) -> Completion:
        counts = {"prompt_tokens": outcome.prompt_tokens, "completion_tokens": outcome.completion_tokens}
        if isinstance(outcome, CachedFailure):
            raise CallFailed(outcome.reason, outcome.detail, cost_usd=outcome.dollars, **counts)
        self.stats.count(outcome, cached=cached)
        return Completion(text=outcome.text, cost_usd=outcome.dollars, cached=cached, model=outcome.model, **counts)

    async def _pause(self, call: _Call, error: Transient) -> None:
        """Full jitter: up to a bound that doubles, so that calls that failed together do not return together."""
        if error.kind != "adapted":
            doublings = max(call.failures + call.rate_limits - 1, 0)
            bound = min(self.config.backoff_seconds * 2**doublings, _LONGEST_BACKOFF_SECONDS)
            await wait(self._stopping, (error.retry_after_seconds or 0.0) + random.uniform(0, bound))

    def _raise_if_never_reached(self, call: _Call, error: Transient) -> None:
        tried = call.failures >= _ATTEMPTS_TO_REACH_A_SERVER or self._throttle.opened
        if error.kind == "unreachable" and not self._reached and tried:
            why = f"no server answers ({error.detail}); start it, or correct the base URL or the network"
            self._stop(InputError(f"{self.role}: {why}"))
        self._raise_if_ended()

    def _raise_if_always_rejected(self, error: Rejected) -> None:
        """One call may be wrong by itself, too long for instance; when the first ones all are, the settings are."""
        self._rejections += 1
        if not self.stats.done and self._rejections >= _REJECTIONS_BEFORE_GIVING_UP:
            why = f"{self.name} rejects every call ({error.detail}); correct the model's settings"
            self._stop(InputError(f"{self.role}: {why}"))
            self._raise_if_ended()

    def _stalled(self, why: str) -> None:
        silence = f"no answer from {self.name} for {self.config.stall_seconds:g} s"
        self._stop(CallFailed("stalled", f"{silence}; the last failure: {why}; run again to go on"))

    def _stop(self, ending: Exception) -> None:
        """Lets no new call go out; those in flight end by themselves and are recorded."""
        if self._ending is None:
            self._ending = ending
            self._stopping.set()
            self._throttle.stop(self._end_error)
            self._prefetch_semaphore.stop(self._end_error)
            if isinstance(ending, CallFailed):  # an InputError is shown by the program that it ends
                _logger.warning("%s", ending)

    def _end_error(self) -> Exception:
        """A new exception for every call that is refused because the run has ended."""
        ending = self._ending
        return CallFailed(ending.reason, ending.detail) if isinstance(ending, CallFailed) else InputError(str(ending))

    def _raise_if_ended(self) -> None:
        if self._ending is not None:
            raise self._end_error()

"""The engine: hundreds of calls in flight, none paid twice, none beyond the cap."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Sequence
import contextlib
import logging
import random
from typing import Any

from diversity_jax.core.errors import InputError
from diversity_jax.llm.budget import NOTHING, Amount, BudgetConfig, most_it_can_use, price_of
from diversity_jax.llm.call import Call, Costs
from diversity_jax.llm.config import EngineConfig, Stats
from diversity_jax.llm.cost_forecast import CostForecast, PlannedCalls, StageUsage, reforecast
from diversity_jax.llm.patience import Patience
from diversity_jax.llm.progress import Progress
from diversity_jax.llm.providers import open_provider, parse_model
from diversity_jax.llm.providers.base import Answer, Provider, Rejected, Transient
from diversity_jax.llm.rate_limit import Gate, Pass, Throttle, wait
from diversity_jax.llm.response_cache import Ledger
from diversity_jax.llm.response_cache_file import Claim, Entry, Failure
from diversity_jax.llm.types import CallFailed, Completion, Request
from diversity_jax.llm.undisturbed import rare_search

_logger = logging.getLogger(__name__)
# Calls beyond those in flight that may be on their way through the ledger, so that no slot waits for the disk even when
# all answers come at once. A killed run counts them as used up like those in flight; under a cap, where that matters,
# they are few.
_AHEAD_FEWEST, _AHEAD_SHARE, _AHEAD_SHARE_CAPPED = 8, 1, 1 / 4
# Requests looked at at once, in slots: hashing thousands first would keep the first ones from going out.
_AT_THE_DOOR = 4
_LONGEST_BACKOFF_SECONDS = 30.0
_POLL_SECONDS = 0.2
# A call may be turned away with 429 more often than it may fail, because that is how the limit is learnt.
_RATE_LIMITED_FACTOR = 10
_REJECTIONS_BEFORE_GIVING_UP = 3
_ATTEMPTS_TO_REACH_A_SERVER = 3


class Engine:
    """Asks one model; an asynchronous context manager.

        async with Engine("openai:gpt-4o-mini", config=EngineConfig(ledger="runs/a/ledger.sqlite")) as engine:
            completion = await engine.complete(request)

    Start as many calls at once as you like: at most `max_in_flight` are sent.

    Args:
      model: `provider:model`, of the providers `openai`, `gemini`, `google-genai`.
      base_url: address of a server of one's own, such as `http://127.0.0.1:8000/v1`.
      config: how calls are made.
      budget: the cap.

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
    ):
        self.name = model
        self.config = config
        self.budget = budget
        self.stats = Stats()
        self._base_url = base_url
        self._provider_name, self._model = parse_model(model)
        self.price = price_of(self._provider_name, self._model, base_url, budget)
        self._calls: dict[str, asyncio.Task] = {}
        self._again: dict[str, Call] = {}  # those that have failed and are asked again
        self._ending: Exception | None = None
        self._reached = False
        self._rejections = 0
        self._provider: Provider | None = None

    async def __aenter__(self) -> "Engine":
        config = self.config
        if not config.offline_replay:
            self._provider = open_provider(self.name, base_url=self._base_url, threads=config.max_in_flight)
        self._ledger = Ledger(config.ledger, run=config.run, caps=self.budget, replay=config.offline_replay)
        self._throttle = Throttle(config.max_in_flight, stall_seconds=config.stall_seconds, stalled=self._stalled)
        self._door = Gate(config.max_in_flight * _AT_THE_DOOR)
        share = _AHEAD_SHARE_CAPPED if self.budget.capped else _AHEAD_SHARE
        self._ahead = Gate(config.max_in_flight + _AHEAD_FEWEST + int(config.max_in_flight * share))
        self._patience = Patience(config.deadline_seconds)
        self._narrow, self._hurried = (Gate(1), Gate(1)), 0
        self._costs: defaultdict[str, Costs] = defaultdict(Costs)  # by stage
        self._settled = asyncio.Event()
        self._stopping = asyncio.Event()
        self._progress = Progress(self, mode=config.progress)
        rare_search.__enter__()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        rare_search.__exit__()
        for task in self._calls.values():
            task.cancel()
        await asyncio.gather(*self._calls.values(), return_exceptions=True)
        await self._progress.close()
        try:
            await self._ledger.close()
        except InputError:
            if kind is None:  # else what has gone wrong before is the news
                raise
        finally:
            if self._provider is not None:
                await self._provider.close()

    @property
    def in_flight(self) -> int:
        """Requests that have been sent and not answered."""
        return self._throttle.inside

    @property
    def limit(self) -> int:
        """How many requests may be in flight now."""
        return self._throttle.limit

    @property
    def spent_before(self) -> Amount:
        """What this run had used up in earlier processes."""
        return self._ledger.spent_before

    @property
    def calls_left(self) -> int | None:
        """Calls that the cap on them still allows; None without one."""
        most = self.budget.max_calls
        return None if most is None else max(most - self.spent_before.calls - self.stats.spent.calls, 0)

    def expect(self, calls: int) -> None:
        """Says how many calls the run will make, for the time left and the total price."""
        self.stats.expected = calls

    def plan(self, planned: Sequence[PlannedCalls]) -> None:
        """Says what they will be, for a projection that is right from the start."""
        self.stats.planned = tuple(planned)

    @property
    def projected(self) -> CostForecast | None:
        """What the run will use up in all, from what its calls have used so far; None without a plan."""
        return reforecast(self.stats.planned, self.stats.seen, self.price, self.budget) if self.stats.planned else None

    async def complete(self, request: Request) -> Completion:
        """The answer to `request`, from the ledger or from the server. Equal requests at once share one call.

        Raises:
          CallFailed: this call has no usable answer; see its `reason` and `ends_run`.
          InputError: no call can succeed: a wrong key, an unknown model, an unreachable server, an unusable ledger, in
            replay an answer that is missing.
        """
        await self._door.enter(first=request.urgent)
        try:
            key = request.key(self._provider_name, self._model)
            task = self._calls.get(key)
            if task is None:
                task = self._calls[key] = asyncio.create_task(self._answer(key, request))
                task.add_done_callback(lambda done: self._forget(key, done))
            return await asyncio.shield(task)
        finally:
            self._door.leave()

    def _forget(self, key: str, task: asyncio.Task):
        del self._calls[key]
        self._again.pop(key, None)
        self.stats.failed += not task.cancelled() and task.exception() is not None

    async def _answer(self, key: str, request: Request) -> Completion:
        found = None if self._ledger.began_empty else await self._kept(self._ledger.look(key))
        if isinstance(found, Entry):
            return self._completion(found, cached=True)
        if isinstance(found, Failure):
            counts = {
                "prompt_tokens": found.prompt_tokens,
                "completion_tokens": found.completion_tokens,
                "cost_usd": found.dollars,
            }
            raise CallFailed(found.reason, found.detail, **counts)
        if self.config.offline_replay:
            raise InputError(
                f"{self._ledger.path}: has no answer of {self.name} to this {request.stage} call ({key[:12]}); "
                "replay needs the same corpus, settings and seed, or run without engine.offline_replay"
            )
        return await self._ask(Call(key=key, request=request, reserve=most_it_can_use(request, self.price)))

    async def _ask(self, call: Call) -> Completion:
        """Attempts a call until it ends."""
        attempts, limits = self.config.max_attempts, self.config.max_attempts * _RATE_LIMITED_FACTOR
        while True:
            # Who waits for room under the cap may fill this gate; what ends begun work, and so makes room, goes past
            # them.
            gate = contextlib.nullcontext() if self._goes_first(call) else self._ahead
            try:
                async with gate:
                    try:
                        return await self._attempt(call)
                    finally:
                        if call.claimed:  # the attempt failed, the run ended, or this task was cancelled
                            with contextlib.suppress(InputError):
                                await self._settle(call, None)
            except Transient as error:
                failure = error
            self._raise_if_never_reached(call, failure)
            if call.failures >= attempts or call.limits >= limits:
                raise await self._failed(call, CallFailed("gave_up", f"every attempt failed; the last: {failure}"))
            self._again[call.key] = call
            await self._pause(call, failure)

    def _goes_first(self, call: Call) -> bool:
        return call.request.urgent or call.key in self._again

    async def _attempt(self, call: Call) -> Completion:
        """Sends a call once, and writes down how it ended before anyone sees it."""
        entry = await self._claim(call)
        if entry is not None:
            return self._completion(entry, cached=True)
        held = await self._throttle.acquire()
        self.stats.attempts += 1
        call.unrecorded = call.reserve  # until it is known what this attempt used up
        try:
            answer = await self._send(held, call.request)
        except Transient as error:
            call.note(error, counts=not self._throttle.opened)
            raise
        except Rejected as error:
            call.unrecorded = Amount(calls=1)
            self._raise_if_always_rejected(error)
            raise await self._failed(call, CallFailed("rejected", error.detail)) from None
        except CallFailed as error:
            error.cost_usd = self.price.cost(error.prompt_tokens, error.completion_tokens)
            call.unrecorded = Amount(error.cost_usd, error.prompt_tokens + error.completion_tokens, 1)
            raise await self._failed(call, error) from None
        except InputError:
            call.unrecorded = Amount(calls=1)
            raise
        return await self._finish(call, answer)

    async def _send(self, held: Pass, request: Request) -> Answer:
        """Sends one attempt, and tells the throttle how it went."""
        throttle = self._throttle
        try:
            answer = await self._patience.wait(self._provider.ask(request, self.config.deadline_seconds))
        except Transient as error:
            self._reached = self._reached or error.kind != "unreachable"
            if error.kind == "rate_limited":
                throttle.limited(held, error.retry_after_seconds)
            elif error.kind == "adapted":
                throttle.abandoned(held)
            else:
                throttle.failed(held, str(error), unreachable=error.kind == "unreachable")
            raise
        except (Rejected, CallFailed):
            self._reached = True
            throttle.answered(held)
            raise
        except InputError as error:
            self._stop(error)  # before the slot is free for another call that must fail
            throttle.abandoned(held)
            raise
        except BaseException:
            throttle.abandoned(held)
            raise
        self._reached = True
        throttle.answered(held)
        return answer

    async def _claim(self, call: Call) -> Entry | None:
        """Takes a place under the cap; returns the answer instead if another process has it by now."""
        claim = await self._claim_once(call)
        if claim.state != "over":
            return claim.entry
        # One at a time, or hundreds would ask anew at every call that ends. What ends begun work has the room that
        # comes free.
        first = self._goes_first(call)
        self._hurried += first
        try:
            async with self._narrow[first]:
                while True:
                    if not first and self._hurried:
                        await wait(self._stopping, _POLL_SECONDS)
                        self._raise_if_ended()
                        continue
                    if (claim := await self._claim_once(call)).state != "over":
                        return claim.entry
                    if claim.in_flight:
                        await wait(self._settled, _POLL_SECONDS)  # other processes' calls are looked for now and then
                    elif not await self._recount():
                        self._stop(CallFailed("budget", claim.why(self.budget)))
        finally:
            self._hurried -= first

    async def _recount(self) -> bool:
        """Counts lost calls that are still to be asked again by what is known now of their stage; whether that makes
        room.
        """
        regained = NOTHING
        for call in self._again.values():
            regained = regained.plus(call.recount(self._costs[call.request.stage], self.price))
        if regained == NOTHING:
            return False
        self.stats.spent = self.stats.spent.minus(regained)
        await self._kept(self._ledger.settle("", NOTHING, None, regained=regained))
        return True

    async def _claim_once(self, call: Call) -> Claim:
        while True:
            self._raise_if_ended()
            self._settled.clear()
            claim = await self._kept(self._ledger.claim(call.key, call.reserve))
            call.claimed = claim.state == "granted"
            if claim.state != "held":
                return claim
            await asyncio.sleep(_POLL_SECONDS)

    async def _finish(self, call: Call, answer: Answer) -> Completion:
        entry = Entry(
            stage=call.request.stage,
            text=answer.text,
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.completion_tokens,
            dollars=self.price.cost(answer.prompt_tokens, answer.completion_tokens),
            model=self._model,
        )
        call.unrecorded = Amount(entry.dollars, entry.prompt_tokens + entry.completion_tokens, 1)
        await self._settle(call, entry)
        return self._completion(entry, cached=False)

    async def _failed(self, call: Call, error: CallFailed) -> CallFailed:
        counts = {
            "prompt_tokens": error.prompt_tokens,
            "completion_tokens": error.completion_tokens,
            "dollars": error.cost_usd,
        }
        await self._settle(call, Failure(stage=call.request.stage, reason=error.reason, detail=error.detail, **counts))
        return error

    async def _settle(self, call: Call, outcome: Entry | Failure | None):
        spent, lost, regained = call.account(outcome, self.price, self._costs[call.request.stage])
        self.stats.spent = self.stats.spent.plus(spent).minus(regained)
        await self._kept(self._ledger.settle(call.key, spent, outcome, lost=lost, regained=regained))
        self._settled.set()

    async def _kept(self, work: Awaitable) -> Any:
        """Awaits work of the ledger; without one the run cannot go on."""
        try:
            return await work
        except InputError as error:
            self._stop(error)
            raise self._the_end() from None

    def _completion(self, entry: Entry, *, cached: bool) -> Completion:
        stats = self.stats
        stats.done += 1
        stats.cached += cached
        stats.prompt_tokens += entry.prompt_tokens
        stats.completion_tokens += entry.completion_tokens
        stats.cost_usd += entry.dollars
        seen = stats.seen.setdefault(entry.stage, StageUsage())
        seen.calls += 1
        seen.prompt_tokens += entry.prompt_tokens
        seen.completion_tokens += entry.completion_tokens
        return Completion(
            text=entry.text,
            finish_reason="stop",
            prompt_tokens=entry.prompt_tokens,
            completion_tokens=entry.completion_tokens,
            cost_usd=entry.dollars,
            cached=cached,
            model=entry.model,
        )

    async def _pause(self, call: Call, error: Transient):
        """Full jitter: any time up to a bound that doubles, so that calls that failed together do not return
        together.
        """
        if error.kind == "adapted":
            return
        bound = min(
            self.config.backoff_seconds * 2 ** max(call.failures + call.limits - 1, 0), _LONGEST_BACKOFF_SECONDS
        )
        await wait(self._stopping, (error.retry_after_seconds or 0.0) + random.uniform(0, bound))

    def _raise_if_never_reached(self, call: Call, error: Transient):
        tried = call.failures >= _ATTEMPTS_TO_REACH_A_SERVER or self._throttle.opened
        if error.kind == "unreachable" and not self._reached and tried:
            self._stop(
                InputError(
                    f"judge: no server answers ({error.detail}); start it, or correct the base URL or the network"
                )
            )
        self._raise_if_ended()

    def _raise_if_always_rejected(self, error: Rejected):
        """One call may be wrong by itself, too long for instance; when the first ones all are, the settings are."""
        self._rejections += 1
        if not self.stats.done and self._rejections >= _REJECTIONS_BEFORE_GIVING_UP:
            self._stop(
                InputError(f"judge: {self.name} rejects every call ({error.detail}); correct the model's settings")
            )
            self._raise_if_ended()

    def _stalled(self, why: str):
        seconds = f"{self.config.stall_seconds:g} s"
        self._stop(
            CallFailed(
                "stalled", f"no answer from {self.name} for {seconds}; the last failure: {why}; run again to go on"
            )
        )

    def _stop(self, ending: Exception):
        """Lets no new call go out; those in flight end by themselves and are written down."""
        if self._ending is not None:
            return
        self._ending = ending
        self._stopping.set()
        self._throttle.stop(self._the_end)
        self._ahead.stop(self._the_end)
        if isinstance(ending, CallFailed):  # an InputError is shown by whoever ends the program with it
            _logger.warning("%s", ending)

    def _the_end(self) -> Exception:
        """A fresh exception for every call that is turned away."""
        ending = self._ending
        return CallFailed(ending.reason, ending.detail) if isinstance(ending, CallFailed) else InputError(str(ending))

    def _raise_if_ended(self):
        if self._ending is not None:
            raise self._the_end()

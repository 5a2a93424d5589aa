"""State of a run's calls: reservations and spending, refusals, the end of the run, and what is learnt of the server."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
import logging
from typing import TypeVar

from diversity_jax.core.errors import InputError
from diversity_jax.llm.budget import (
    NOTHING,
    Amount,
    BudgetConfig,
    CallCosts,
    Overrun,
    Price,
    Reservation,
    StageCosts,
    sum_of,
)
from diversity_jax.llm.cost_forecast import Stats
from diversity_jax.llm.providers.outcomes import FATAL_REFUSALS, Refused, Reply
from diversity_jax.llm.rate_limit import PrioritySemaphore, wait
from diversity_jax.llm.response_cache import ResponseCache, ResponseCacheFile
from diversity_jax.llm.types import CachedFailure, CachedResponse, CallFailed, Outcome, Request

_logger = logging.getLogger(__name__)
_T = TypeVar("_T")
_POLL_SECONDS = 0.2


class ServerNotes:
    """What runs have learnt of one model at one address, stored in the response cache for later ones.

    Args:
      name: `provider:model`.
      url: address of the model.
      role: what the model is used as; messages begin with it.

    Attributes:
      without: features that the server does not support.
      overrun: by how much its answers have exceeded the limits of their requests.
    """

    def __init__(self, cache: ResponseCache, name: str, url: str, role: str):
        self._cache, self._name, self._role, self._address = cache, name, role, f"{name} at {url}"
        self.without = frozenset(self._values(self._address, "without"))
        self.overrun = Overrun(factor=max([1.0, *map(float, self._values(self._address, "overrun"))]))
        self._warned, self._seen = False, set[tuple[str, str]]()

    def _values(self, subject: str, kind: str) -> list[str]:
        return sorted(value for about, of, value in self._cache.notes if (about, of) == (subject, kind))

    def learnt(self, feature: str) -> None:
        """Records that the server does not support a feature."""
        self._note(self._address, "without", feature)

    def record_overrun(self) -> None:
        self._note(self._address, "overrun", f"{self.overrun.factor:.3g}")

    def served_by(self, kind: str, models: Iterable[str]) -> None:
        """Records the models that a server names in answers (`answered by`) or in its list of models (`listed as`).
        Warns once where the cache has answers of another model, or of another version (fingerprint) of the same model
        and this version is new.
        """
        for model in models:
            if (kind, model) in self._seen:
                continue
            self._seen.add((kind, model))
            self._note(self._name, kind, model)
            before = self._values(self._name, kind)
            others = [was for was in before if was.partition(" ")[0] != model.partition(" ")[0]]
            others = others or [was for was in before if model not in before]
            if others and not self._warned:
                self._warned = True
                what = f"{self._name} is now {kind} {model}; answers in {self._cache.path} are of {others[-1]}"
                advice = "both are used; name another output folder or engine.ledger to ask one model alone"
                _logger.warning("%s: %s: %s", self._role, what, advice)

    def _note(self, subject: str, kind: str, value: str) -> None:
        written = self._cache.run(lambda file: file.note(subject, kind, value))
        written.add_done_callback(asyncio.Future.exception)  # retrieved; a failing cache shows at the next call


# Refusals of these scopes count although an earlier process got answers: a key may have been withdrawn since.
_NEEDS_NEW_SUCCESS = ("key", "model", "settings")


class RefusalTracker:
    """Counts attempts and refusals, to tell a refusal of single calls from one of all calls.

    Attributes:
      successes: calls answered by the server in this process, usable or not.
    """

    def __init__(self) -> None:
        self.successes = 0
        self._sent = 0
        self._in_flight: dict[int, None] = {}  # numbers of attempts, in the order of sending
        self._suspected_at: dict[str, int] = {}  # by scope: attempts sent when `FATAL_REFUSALS` was reached
        self._refused: defaultdict[str, set[str]] = defaultdict(set)  # keys of calls, by scope

    def sent(self) -> int:
        """Notes an attempt; returns its number for `ended`."""
        self._sent += 1
        self._in_flight[self._sent] = None
        return self._sent

    def ended(self, number: int) -> None:
        """Notes that an attempt is over, however it went."""
        self._in_flight.pop(number, None)

    def is_about_all(self, refused: Refused, key: str, *, answered_before: bool) -> bool:
        """Notes a refusal of the call under `key`; whether it shows that no call can succeed.

        That needs `FATAL_REFUSALS` refused calls, no answer, and the end of all attempts sent before the last of them.

        Args:
          answered_before: whether calls of the run were answered in an earlier process.
        """
        if refused.scope == "account":
            return True
        self._refused[refused.scope].add(key)
        if len(self._refused[refused.scope]) < FATAL_REFUSALS[refused.scope]:
            return False
        suspected_at = self._suspected_at.setdefault(refused.scope, self._sent)
        if self.successes or (answered_before and refused.scope not in _NEEDS_NEW_SUCCESS):
            return False
        return next(iter(self._in_flight), suspected_at + 1) > suspected_at

    @property
    def refused(self) -> int:
        """Number of calls that were refused."""
        return len(set[str]().union(*self._refused.values()))


@dataclass(kw_only=True, eq=False)
class Call:
    """One request until it is answered or given up.

    Attributes:
      reserved: whether an attempt holds a reservation in the cache.
      spent: use of the attempt under way; None while it may be anything up to `costs.most`.
      failures, rate_limits, denials: attempts that failed, that got a 429, that were refused for want of access.
      batched: whether it is sent in a batch.
    """

    key: str
    request: Request
    costs: CallCosts
    reserved: bool = False
    spent: Amount | None = NOTHING
    failures: int = 0
    rate_limits: int = 0
    denials: int = 0
    batched: bool = False


def used_by(reply: Reply, price: Price) -> Amount:
    """Use of a reply: its dollars are the larger of its tokens' price and what the server says that it bills."""
    dollars = price.cost(reply.prompt_tokens, reply.completion_tokens, reply.cached_tokens)
    return Amount(max(dollars, reply.billed_dollars), reply.prompt_tokens + reply.completion_tokens, 1)


def outcome_of(reply: Reply, stage: str, model: str, spent: Amount) -> Outcome:
    counts = {"prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.completion_tokens}
    if reply.failure is None:
        return CachedResponse(stage=stage, model=model, text=reply.text, dollars=spent.dollars, **counts)
    reason, detail = reply.failure
    return CachedFailure(stage=stage, reason=reason, detail=detail, dollars=spent.dollars, **counts)


class RunEnd:
    """Whether the run has ended, and why.

    Attributes:
      event: set when it ends.
    """

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self._ending: Exception | None = None
        self._hooks: list[Callable[[Callable[[], Exception]], None]] = []

    def on_end(self, hook: Callable[[Callable[[], Exception]], None]) -> None:
        """Registers `hook`, which is called when the run ends, with a function that makes an exception for one call."""
        self._hooks.append(hook)

    def stop(self, ending: Exception) -> None:
        """Ends the run: no new call is sent; those in flight end by themselves and are recorded."""
        if self._ending is None:
            self._ending = ending
            self.event.set()
            for hook in self._hooks:
                hook(self.error)
            if isinstance(ending, CallFailed):  # an InputError is shown by the program that it ends
                _logger.warning("%s", ending)

    def error(self) -> Exception:
        """A new exception for every call that is refused because the run has ended."""
        ending = self._ending
        if isinstance(ending, CallFailed):
            return CallFailed(ending.reason, ending.detail)
        return type(ending)(str(ending)) if isinstance(ending, InputError) else InputError(str(ending))

    def raise_if_ended(self) -> None:
        """Raises what ended the run, if anything did."""
        if self._ending is not None:
            raise self.error()


class CallAccounts:
    """Reserves the most that calls can use, and records what they used.

    Args:
      cache, notes: the response cache of the run, and what is known of its server.
      budget, stats, end, role: of the engine.
      poll_seconds: interval of looking for budget that other processes free.

    Attributes:
      retrying: calls that have failed and are asked again, by key.
    """

    def __init__(
        self,
        cache: ResponseCache,
        notes: ServerNotes,
        budget: BudgetConfig,
        stats: Stats,
        end: RunEnd,
        role: str,
        poll_seconds: float = _POLL_SECONDS,
    ):
        self.cache, self.notes = cache, notes
        self._budget, self.stats, self.end, self._role = budget, stats, end, role
        self._poll_seconds = poll_seconds
        self._budget_lock = PrioritySemaphore(1)
        self._committed = asyncio.Event()
        self._stage_costs: defaultdict[str, StageCosts] = defaultdict(StageCosts)
        self.retrying: dict[str, Call] = {}

    def costs_of(self, request: Request, price: Price) -> CallCosts:
        return CallCosts(request, price, self._stage_costs[request.stage], self.notes.overrun)

    def has_priority(self, call: Call) -> bool:
        """Whether a call completes begun work."""
        return call.request.urgent or call.key in self.retrying

    async def reserve(self, call: Call) -> Outcome | None:
        """Waits until the most that a call can use is reserved; returns the answer instead where the cache has it."""
        reservation = await self._reserve_once(call)
        if reservation.state != "over":
            return reservation.response
        # One call asks at a time, since otherwise hundreds would at every call that ends. Calls with priority come
        # first, and hold the lock until there is budget for them.
        priority = self.has_priority(call)
        while True:
            await self._budget_lock.enter(first=priority)
            try:
                while (reservation := await self._reserve_once(call)).state == "over":
                    if reservation.in_flight:
                        await wait(self._committed, self._poll_seconds)  # other processes' calls are seen by polling
                    elif not await self._recount_lost():
                        self.end.stop(CallFailed("budget", f"{self._role}: {reservation.why(self._budget)}"))
                    if not priority:
                        break
                else:
                    return reservation.response
            finally:
                self._budget_lock.leave()

    async def _reserve_once(self, call: Call) -> Reservation:
        while True:
            self.end.raise_if_ended()
            self._committed.clear()
            reservation = await self.guard(self.cache.reserve(call.key, call.costs.most))
            call.reserved = reservation.state == "granted"
            if reservation.state != "held":
                return reservation
            await asyncio.sleep(self._poll_seconds)

    async def _recount_lost(self) -> bool:
        """Estimates the lost attempts of calls under `retrying` anew; whether that frees budget."""
        regained = sum_of(call.costs.recount() for call in self.retrying.values())
        if regained == NOTHING:
            return False
        self.stats.spent = self.stats.spent.minus(regained)
        await self.guard(self.cache.commit("", NOTHING, None, regained=regained))
        return True

    async def fail(self, call: Call, error: CallFailed) -> CallFailed:
        """Records a call without a usable answer."""
        fields = {name: getattr(error, name) for name in ("reason", "detail", "prompt_tokens", "completion_tokens")}
        await self.commit(call, CachedFailure(stage=call.request.stage, dollars=error.cost_usd, **fields))
        return error

    async def commit(self, call: Call, outcome: Outcome | None) -> None:
        """Records an attempt's use, and the call's outcome if it has one."""
        spent, regained, lost = call.spent, NOTHING, call.spent is None
        if spent is None:
            spent = call.costs.lose_attempt()
        elif isinstance(outcome, CachedResponse):
            again, regained = call.costs.answered(outcome.prompt_tokens, outcome.completion_tokens)
            spent = spent.plus(again)
        call.spent, call.reserved = NOTHING, False
        self.stats.spent = self.stats.spent.plus(spent).minus(regained)
        await self.guard(self.cache.commit(call.key, spent, outcome, lost=lost, regained=regained))
        self._committed.set()

    async def learn(self, used: Amount, allowed: Amount, served_by: str) -> None:
        """Records what a reply shows of its server: use beyond what the request allowed, and which model answered."""
        self.notes.served_by("answered by", [served_by] if served_by else [])
        grown = self.notes.overrun.learn(used, allowed)
        if grown > 1:
            self.notes.record_overrun()
            await self.run(lambda file: file.scale_reservations(grown))

    def freed(self) -> None:
        """Wakes calls that wait for budget."""
        self._committed.set()

    async def run(self, work: Callable[[ResponseCacheFile], _T]) -> _T:
        """Runs other work on the cache's file; when that fails the run ends."""
        return await self.guard(self.cache.run(work))

    async def guard(self, work: Awaitable[_T]) -> _T:
        """Awaits work of the cache; when that fails the run ends."""
        try:
            return await work
        except InputError as error:
            self.end.stop(error)
            raise self.end.error() from None

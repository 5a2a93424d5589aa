"""Calls between asking and answer: what they reserve, what they use up, and the end of a run for all of them."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
import logging
from typing import TypeVar

from diversity_jax.core.errors import InputError
from diversity_jax.llm.budget import NOTHING, Amount, BudgetConfig, CallCosts, Price, Reservation, StageCosts, sum_of
from diversity_jax.llm.progress import Stats
from diversity_jax.llm.providers.outcomes import Reply
from diversity_jax.llm.rate_limit import PrioritySemaphore, wait
from diversity_jax.llm.response_cache import ResponseCache
from diversity_jax.llm.server_notes import ServerNotes
from diversity_jax.llm.types import CachedFailure, CachedResponse, CallFailed, Outcome, Request

_logger = logging.getLogger(__name__)
_T = TypeVar("_T")
_POLL_SECONDS = 0.2


@dataclass(kw_only=True, eq=False)
class Call:
    """One request until it is answered or given up.

    Attributes:
      reserved: whether an attempt holds a reservation in the cache.
      spent: what the attempt under way used up; None where it may have used up anything up to `costs.most`.
      failures, rate_limits, denials: attempts that failed, that met the server's limit, that were turned away.
      batched: whether it goes out in a batch.
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
    """What a reply has used up: the larger of what its tokens cost and what the server says that it bills."""
    dollars = price.cost(reply.prompt_tokens, reply.completion_tokens, reply.cached_tokens)
    return Amount(max(dollars, reply.billed_dollars), reply.prompt_tokens + reply.completion_tokens, 1)


def outcome_of(reply: Reply, stage: str, model: str, spent: Amount) -> Outcome:
    """How a reply is kept."""
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
        """Calls `hook` when the run ends, with a function that makes an exception for one call."""
        self._hooks.append(hook)

    def stop(self, ending: Exception) -> None:
        """Lets no new call go out; those in flight end by themselves and are recorded."""
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


class CallLedger:
    """Reserves what calls can use up, and records what they did.

    Args:
      cache, notes: the ledger of the run.
      budget, stats, end, role: of the engine.
      poll_seconds: between two looks for budget that other processes free.
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
        self._budget, self._stats, self._end, self._role = budget, stats, end, role
        self._poll_seconds = poll_seconds
        self._budget_lock = PrioritySemaphore(1)
        self._committed = asyncio.Event()
        self._stage_costs: defaultdict[str, StageCosts] = defaultdict(StageCosts)
        self.retrying: dict[str, Call] = {}  # calls that have failed and are asked again

    def costs_of(self, request: Request, price: Price) -> CallCosts:
        """What attempts at a request cost."""
        return CallCosts(request, price, self._stage_costs[request.stage], self.notes.overrun)

    def has_priority(self, call: Call) -> bool:
        """Whether a call completes begun work."""
        return call.request.urgent or call.key in self.retrying

    async def reserve(self, call: Call) -> Outcome | None:
        """Reserves the most that a call can use up; returns the answer instead if another process has it by now."""
        reservation = await self._reserve_once(call)
        if reservation.state != "over":
            return reservation.response
        # One call at a time, or hundreds would ask again at every call that ends. Calls with priority come first, and
        # keep their turn until there is budget for them.
        priority = self.has_priority(call)
        while True:
            await self._budget_lock.enter(first=priority)
            try:
                while (reservation := await self._reserve_once(call)).state == "over":
                    if reservation.in_flight:
                        await wait(self._committed, self._poll_seconds)  # other processes' calls are seen by polling
                    elif not await self._recount_lost():
                        self._end.stop(CallFailed("budget", f"{self._role}: {reservation.why(self._budget)}"))
                    if not priority:
                        break
                else:
                    return reservation.response
            finally:
                self._budget_lock.leave()

    async def _reserve_once(self, call: Call) -> Reservation:
        while True:
            self._end.raise_if_ended()
            self._committed.clear()
            reservation = await self.guard(self.cache.reserve(call.key, call.costs.most))
            call.reserved = reservation.state == "granted"
            if reservation.state != "held":
                return reservation
            await asyncio.sleep(self._poll_seconds)

    async def _recount_lost(self) -> bool:
        """Counts the lost attempts of calls that are still to be asked again by what is known now of their stage;
        whether that frees budget.
        """
        regained = sum_of(call.costs.recount() for call in self.retrying.values())
        if regained == NOTHING:
            return False
        self._stats.spent = self._stats.spent.minus(regained)
        await self.guard(self.cache.commit("", NOTHING, None, regained=regained))
        return True

    async def fail(self, call: Call, error: CallFailed) -> CallFailed:
        """Records a call without a usable answer."""
        fields = {name: getattr(error, name) for name in ("reason", "detail", "prompt_tokens", "completion_tokens")}
        await self.commit(call, CachedFailure(stage=call.request.stage, dollars=error.cost_usd, **fields))
        return error

    async def commit(self, call: Call, outcome: Outcome | None) -> None:
        """Records what an attempt used up, and the call's outcome if it has one."""
        spent, regained, lost = call.spent, NOTHING, call.spent is None
        if spent is None:
            spent = call.costs.lose_attempt()
        elif isinstance(outcome, CachedResponse):
            again, regained = call.costs.answered(outcome.prompt_tokens, outcome.completion_tokens)
            spent = spent.plus(again)
        call.spent, call.reserved = NOTHING, False
        self._stats.spent = self._stats.spent.plus(spent).minus(regained)
        await self.guard(self.cache.commit(call.key, spent, outcome, lost=lost, regained=regained))
        self._committed.set()

    async def learn(self, used: Amount, allowed: Amount, served_by: str) -> None:
        """Keeps what a reply shows of its server: what it used up, what a request allows, and who answered."""
        self.notes.served_by("answered by", [served_by] if served_by else [])
        grown = self.notes.overrun.learn(used, allowed)
        if grown > 1:
            self.notes.keep_overrun()
            await self.guard(self.cache.run(lambda file: file.scale_reservations(grown)))

    def freed(self) -> None:
        """Wakes calls that wait for budget."""
        self._committed.set()

    async def guard(self, work: Awaitable[_T]) -> _T:
        """Awaits work of the cache; when that fails the run cannot go on."""
        try:
            return await work
        except InputError as error:
            self._end.stop(error)
            raise self._end.error() from None

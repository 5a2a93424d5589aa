"""Calls sent one by one: at most as many at once as the server takes, each attempt recorded before anyone sees it."""

import asyncio
import datetime
import random

from diversity_jax.core.errors import InputError
from diversity_jax.llm.budget import Amount, Price
from diversity_jax.llm.calls import Call, CallAccounts, Evidence, RunEnd, outcome_of, used_by
from diversity_jax.llm.cost_forecast import Stats
from diversity_jax.llm.providers.base import Provider
from diversity_jax.llm.providers.endpoint import Endpoint
from diversity_jax.llm.providers.outcomes import Refused, Reply, Transient
from diversity_jax.llm.rate_limit import Slot, Throttle, wait
from diversity_jax.llm.types import CachedFailure, CallFailed, EngineConfig, Outcome

_LONGEST_BACKOFF_SECONDS = 30.0
_LEAST_TOLD_SECONDS = 60.0  # shorter hints beside a quota of a day are of another quota
_ATTEMPTS_TO_REACH_A_SERVER = 3
_FAILURES_OF_A_PROBE = 3


class LiveCalls:
    """Sends calls to a provider.

    Args:
      provider, endpoint: the model.
      ledger, config, stats, end, throttle, evidence: of the engine.
      price: of a token.
    """

    def __init__(
        self,
        provider: Provider,
        endpoint: Endpoint,
        accounts: CallAccounts,
        config: EngineConfig,
        stats: Stats,
        end: RunEnd,
        throttle: Throttle,
        evidence: Evidence,
        price: Price,
    ):
        self._provider, self._endpoint, self._accounts, self._config = provider, endpoint, accounts, config
        self._stats, self._end, self._throttle, self._evidence, self._price = stats, end, throttle, evidence, price
        self._reached = False  # whether the server has answered anything

    async def attempt(self, call: Call) -> tuple[Outcome, bool]:
        """Sends a call once and records how it ended; returns the outcome, and whether another process had it.

        Raises:
          Transient: another attempt may succeed.
          Refused: the server refuses it.
        """
        accounts = self._accounts
        while True:
            most = call.costs.most
            response = await accounts.reserve(call)
            if response is not None:
                return response, True
            slot = await self._throttle.acquire()
            if most == call.costs.most:
                break
            self._throttle.abandoned(slot)  # an answer has cost more than its request allowed; so may this one
            await accounts.commit(call, None)
        self._stats.attempts += 1
        call.spent = None  # until it is known what this attempt used up
        try:
            reply = await self._send(slot, call)
        except Transient as error:
            if not error.billed:
                call.spent = Amount(calls=int(error.kind != "unreachable"))
            call.rate_limits += error.kind == "rate_limited"
            if error.kind not in ("rate_limited", "adapted"):
                call.failures += self._weight_of_failure(slot)
            raise
        call.spent = spent = used_by(reply, self._price)
        await accounts.learn(spent, call.costs.allowed, reply.served_by)
        outcome = outcome_of(reply, call.request.stage, self._endpoint.model, spent)
        again = reply.worth_a_second_try and not call.failures
        if isinstance(outcome, CachedFailure) and (again or outcome.reason == "interrupted"):
            call.failures += 1
            raise Transient("interrupted", outcome.detail)
        await accounts.commit(call, outcome)
        return outcome, False

    def _weight_of_failure(self, slot: Slot) -> int:
        """As how many failures one counts. A server that is down answers no call, and none uses up its attempts; one
        that has answered others is asked by the very calls that always fail, which must not go on for ever.
        """
        if not self._throttle.opened:
            return 1
        return _FAILURES_OF_A_PROBE if slot.probe and self._evidence.successes else 0

    def weigh(self, call: Call, error: Refused) -> None:
        """Ends the run where a refusal shows that no call can succeed."""
        if self._evidence.is_about_all(error, call.key, answered_before=self._stats.cached > 0):
            self._end.stop(self._endpoint.explain(error, self._evidence.refused))

    async def _send(self, slot: Slot, call: Call) -> Reply:
        """Sends one attempt, and tells the throttle how it went."""
        throttle, seconds, number = self._throttle, self._config.deadline_seconds, self._evidence.sent()
        try:
            async with asyncio.timeout(seconds):
                reply = await self._provider.ask(call.request)
        except (Transient, TimeoutError) as error:
            failure = error if isinstance(error, Transient) else Transient("timeout", f"no answer for {seconds:g} s")
            self._reached = self._reached or failure.kind != "unreachable"
            if failure.kind == "rate_limited":
                self._stop_if_used_up(failure)
                throttle.limited(slot, failure.retry_after_seconds)
            elif failure.kind == "adapted":
                throttle.abandoned(slot)
            else:
                unreachable, again = failure.kind == "unreachable", call.key in self._accounts.retrying
                throttle.failed(slot, str(failure), unreachable=unreachable, again=again)
            raise failure from None
        except Refused as error:
            self._reached = True
            self._evidence.ended(number)
            self.weigh(call, error)  # before the slot is free for another call that may have to fail
            throttle.answered(slot)
            raise
        except BaseException as error:
            if isinstance(error, InputError):
                self._end.stop(error)  # before the slot is free for another call that must fail
            throttle.abandoned(slot)
            raise
        finally:
            self._evidence.ended(number)
        self._reached = True
        self._evidence.successes += 1
        throttle.answered(slot)
        return reply

    def _stop_if_used_up(self, failure: Transient) -> None:
        """Ends a run whose quota will not be there again while it waits."""
        seconds = failure.retry_after_seconds
        if not failure.used_up and (seconds or 0.0) <= self._config.stall_seconds:
            return
        when = "on the provider's next day"
        if seconds is not None and seconds > _LEAST_TOLD_SECONDS:
            moment = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)
            when = f"in {seconds:.0f} s, at {moment:%Y-%m-%d %H:%M} UTC"
        what = f"{self._endpoint.name} takes no more requests ({failure.detail})"
        self._end.stop(CallFailed("stalled", f"{self._endpoint.role}: {what}; run again {when} to go on"))

    async def pause(self, call: Call, error: Transient) -> None:
        """Full jitter: up to a bound that doubles, so that calls that failed together do not return together."""
        if error.kind not in ("adapted", "unanswered"):
            doublings = max(call.failures + call.rate_limits - 1, 0)
            bound = min(self._config.backoff_seconds * 2**doublings, _LONGEST_BACKOFF_SECONDS)
            await wait(self._end.event, (error.retry_after_seconds or 0.0) + random.uniform(0, bound))

    def raise_if_never_reached(self, call: Call, error: Transient) -> None:
        tried = call.failures >= _ATTEMPTS_TO_REACH_A_SERVER or self._throttle.opened
        if error.kind == "unreachable" and not self._reached and tried:
            why = f"no server answers ({error.detail}); start it, or correct the base URL or the network"
            self._end.stop(InputError(f"{self._endpoint.role}: {why}"))
        self._end.raise_if_ended()

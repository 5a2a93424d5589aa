"""Calls that are sent singly: as many at once as the server takes, each attempt recorded before its answer is used."""

import asyncio
import datetime
import logging
import random

from diversity_jax.core.errors import InputError
from diversity_jax.llm.budget import Amount, Price
from diversity_jax.llm.calls import Call, CallAccounts, RefusalTracker, outcome_of, used_by
from diversity_jax.llm.providers.base import Provider
from diversity_jax.llm.providers.endpoint import Endpoint
from diversity_jax.llm.providers.outcomes import Refused, Reply, Transient
from diversity_jax.llm.rate_limit import Slot, Throttle, wait
from diversity_jax.llm.types import CachedFailure, CallFailed, EngineConfig, Outcome

_logger = logging.getLogger(__name__)
_LONGEST_BACKOFF_SECONDS = 30.0
_SHORTEST_HINT_SECONDS = 60.0  # shorter hints beside a daily quota are of another quota
_ATTEMPTS_TO_REACH_A_SERVER = 3
_FAILURES_OF_A_PROBE = 3


class LiveCalls:
    """Sends calls to a provider.

    Args:
      provider, endpoint: the model.
      accounts, config, throttle, refusals: of the engine.
      price: of a token.
    """

    def __init__(
        self,
        provider: Provider,
        endpoint: Endpoint,
        accounts: CallAccounts,
        config: EngineConfig,
        throttle: Throttle,
        refusals: RefusalTracker,
        price: Price,
    ):
        self._provider, self._endpoint, self._accounts, self._config = provider, endpoint, accounts, config
        self._stats, self._end, self._throttle = accounts.stats, accounts.end, throttle
        self._refusals, self._price = refusals, price
        self._reached = False  # whether the server has answered anything
        self._silence_announced = False

    async def attempt(self, call: Call) -> tuple[Outcome, bool]:
        """Sends a call once and records how it ended; returns the outcome, and whether it came from another process.

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
            self._throttle.abandoned(slot)  # the bound has grown meanwhile: reserve the larger one
            await accounts.commit(call, None)
        self._stats.attempts += 1
        call.spent = None  # unknown until the attempt ends
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
        """How many failures one failed attempt counts as. While the circuit is open it counts as none, so that calls
        outlast a server that is down; but as several for a probe where the server has answered other calls, since the
        probe may be a call that always fails and would be repeated without end.
        """
        if not self._throttle.opened:
            return 1
        return _FAILURES_OF_A_PROBE if slot.probe and self._refusals.successes else 0

    def weigh(self, call: Call, error: Refused) -> None:
        """Ends the run where a refusal shows that no call can succeed."""
        if self._refusals.is_about_all(error, call.key, answered_before=self._stats.cached > 0):
            self._end.stop(self._endpoint.explain(error, self._refusals.refused))

    async def _send(self, slot: Slot, call: Call) -> Reply:
        """Sends one attempt, and tells the throttle how it went."""
        throttle, seconds, number = self._throttle, self._config.deadline_seconds, self._refusals.sent()
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
                self._announce_silence(failure)
            raise failure from None
        except Refused as error:
            self._reached = True
            self._refusals.ended(number)
            self.weigh(call, error)  # before the slot is free for another call that may have to fail
            throttle.answered(slot)
            raise
        except BaseException as error:
            if isinstance(error, InputError):
                self._end.stop(error)  # before the slot is free for another call that must fail
            throttle.abandoned(slot)
            raise
        finally:
            self._refusals.ended(number)
        self._reached = True
        self._refusals.successes += 1
        throttle.answered(slot)
        return reply

    def _announce_silence(self, failure: Transient) -> None:
        """Logs once that calls fail without an answer, since the run ends only after `stall_seconds` of it."""
        if self._throttle.opened and not self._silence_announced:
            self._silence_announced = True
            what = f"{self._endpoint.name} has answered none of its last calls ({failure})"
            limit = f"one call at a time is tried for {self._config.stall_seconds:g} s (engine.stall_seconds)"
            _logger.warning("%s: %s; %s, then the run stops", self._endpoint.role, what, limit)

    def _stop_if_used_up(self, failure: Transient) -> None:
        """Ends a run whose quota is renewed only after longer than it may stall."""
        seconds = failure.retry_after_seconds
        if not failure.used_up and (seconds or 0.0) <= self._config.stall_seconds:
            return
        when = "on the provider's next day"
        if seconds is not None and seconds > _SHORTEST_HINT_SECONDS:
            moment = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)
            when = f"in {seconds:.0f} s, at {moment:%Y-%m-%d %H:%M} UTC"
        what = f"{self._endpoint.name} takes no more requests ({failure.detail})"
        self._end.stop(CallFailed("stalled", f"{self._endpoint.role}: {what}; run again {when} to go on"))

    async def pause(self, call: Call, error: Transient) -> None:
        """Waits for a random time below a bound that doubles (full jitter), so that failed calls spread out again."""
        if error.kind not in ("adapted", "unanswered"):
            doublings = max(call.failures + call.rate_limits - 1, 0)
            bound = min(self._config.backoff_seconds * 2**doublings, _LONGEST_BACKOFF_SECONDS)
            asked_for = min(error.retry_after_seconds or 0.0, self._config.stall_seconds)
            await wait(self._end.event, asked_for + random.uniform(0, bound))

    def raise_if_never_reached(self, call: Call, error: Transient) -> None:
        tried = call.failures >= _ATTEMPTS_TO_REACH_A_SERVER or self._throttle.opened
        if error.kind == "unreachable" and not self._reached and tried:
            why = f"no server answers ({error.detail}); start it, or correct the base URL or the network"
            self._end.stop(InputError(f"{self._endpoint.role}: {why}"))
        self._end.raise_if_ended()

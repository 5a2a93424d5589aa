"""Limit of calls in flight: additive increase, multiplicative decrease, and a circuit breaker.

The limit does not fall while at most a tenth of a round (as many outcomes as the limit) are 429s: servers send some at
random, and a limit that fell at each would end near one call at a time.
"""

import asyncio
from collections import deque
from collections.abc import Callable
import contextlib
import time
from typing import NamedTuple

_TOLERATED_SHARE = 0.1
_DECREASE = 0.7
_STEEP_DECREASE = 0.5  # where most of a round were 429s
_TRIP_FAILURES = 20
_TRIP_UNREACHABLE = 3
_LEAST_FAILING = 3  # different calls have to fail for the failures to be the server's, where it has answered others
_PROBE_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)


class PrioritySemaphore:
    """Admits a limited number at once: waiters with priority first, then in order of arrival.

    `async with` enters without priority. `inside` is the number admitted now.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.inside = 0
        self._waiting: deque[asyncio.Future] = deque()
        self._closed: Callable[[], Exception] | None = None

    async def enter(self, *, first: bool = False) -> None:
        """Waits for admission, before all others if `first`.

        Raises:
          Exception: the one that `stop` was given.
        """
        if self._closed:
            raise self._closed()
        if not self._waiting and self._has_capacity():
            self._admit()
            return
        future = asyncio.get_running_loop().create_future()
        (self._waiting.appendleft if first else self._waiting.append)(future)
        self._wake()
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self.leave()
            raise

    async def __aenter__(self) -> None:
        await self.enter()

    async def __aexit__(self, *_: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Ends one admission."""
        self.inside -= 1
        self._wake()

    def stop(self, error: Callable[[], Exception]) -> None:
        """Makes `enter` raise what `error` returns, for all waiters and all later calls."""
        self._closed = error
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_exception(error())

    def _has_capacity(self) -> bool:
        return self.inside < self.limit

    def _admit(self) -> None:
        self.inside += 1

    def _wake(self) -> None:
        while self._waiting and self._has_capacity():
            future = self._waiting.popleft()
            if not future.done():
                self._admit()
                future.set_result(None)


class Slot(NamedTuple):
    """The state of the throttle when a call was admitted."""

    era: int  # number of decreases so far: a 429 to a call of an earlier era is ignored
    probe: bool  # whether the circuit was open


class Throttle(PrioritySemaphore):
    """A semaphore that learns the server's limit from its 429s.

    After many failures in a row its circuit opens: one call at a time, the probe, is sent until one is answered.

    `answered`, `limited`, `failed` and `abandoned` end a call and give its slot back.

    Args:
      most: calls in flight at most, and at first.
      stall_seconds: the run is stalled when calls have failed for this long without one answer.
      stalled: called with the last failure when the run is stalled.
    """

    def __init__(self, most: int, *, stall_seconds: float, stalled: Callable[[str], None]) -> None:
        super().__init__(most)
        self.opened = False  # the circuit
        self._most = most
        self._stall_seconds = stall_seconds
        self._stalled = stalled
        self._size = float(most)  # the limit with its fractions
        self._era = 0  # counts decreases
        self._answers = self._refusals = 0  # of this round
        self._limit_reached = False  # in this round
        self._quiet_until = 0.0
        self._wake_timer: asyncio.TimerHandle | None = None
        self._failing_since: float | None = None
        self._ever_answered = False
        self._failures = self._failing_calls = self._unreachable = self._probes = 0  # in a row
        self._probing = False

    async def acquire(self) -> Slot:
        """Waits for a slot."""
        await self.enter()
        return Slot(self._era, self.opened)

    def answered(self, slot: Slot) -> None:
        """The server answered a call in any way."""
        self._failing_since, self._ever_answered = None, True
        self._close()
        self._answers += 1
        self._round()
        self.leave()

    def limited(self, slot: Slot, retry_after_seconds: float | None) -> None:
        """A call got a 429."""
        self._note_failure("429: too many requests")
        self._close()
        if slot.era == self._era:
            self._refusals += 1
            if self._refusals > _TOLERATED_SHARE * max(self.limit, 1 / _TOLERATED_SHARE):
                self._decrease(retry_after_seconds or 0.0)
        self._round()
        self.leave()

    def failed(self, slot: Slot, why: str, *, unreachable: bool, again: bool = False) -> None:
        """A call failed without an answer; `again`: it has failed before, so that it does not count as another call."""
        self._failures += 1
        self._failing_calls += not again
        self._note_failure(why)
        self._unreachable = self._unreachable + 1 if unreachable else 0
        trips = (self._failures >= _TRIP_FAILURES and not self._is_few_calls) or self._unreachable >= _TRIP_UNREACHABLE
        # Once the circuit is open only failures of the probe count, not those of calls sent before.
        if slot.probe if self.opened else trips:
            self._open()
        self.leave()

    def abandoned(self, slot: Slot) -> None:
        """A call ended in a way that shows nothing of the server."""
        if slot.probe:
            self._probing = False
        self.leave()

    def _round(self) -> None:
        if self._answers + self._refusals < self.limit:
            return
        # Only a round that reached the limit shows that the server takes this many.
        if self._answers and self._limit_reached:
            self._size = min(self._size + 1, self._most)
            self.limit = int(self._size)
        self._answers = self._refusals = 0
        self._limit_reached = self.inside >= self.limit

    def _decrease(self, quiet_seconds: float) -> None:
        steep = self._refusals > self._answers
        self._size = max(self._size * (_STEEP_DECREASE if steep else _DECREASE), 1.0)
        self.limit = int(self._size)
        self._era += 1
        self._answers = self._refusals = 0
        self._quiet_until = max(self._quiet_until, time.monotonic() + quiet_seconds)

    def _note_failure(self, why: str) -> None:
        now = time.monotonic()
        if self._failing_since is None:
            self._failing_since = now
            asyncio.get_running_loop().call_later(self._stall_seconds, self._check_stall, now, why)
        elif now - self._failing_since > self._stall_seconds and not self._is_few_calls:
            self._stalled(why)

    @property
    def _is_few_calls(self) -> bool:
        """Whether fewer than `_LEAST_FAILING` calls have failed in a row, and the server has answered others."""
        return self._ever_answered and 0 < self._failing_calls < _LEAST_FAILING

    def _check_stall(self, since: float, why: str) -> None:
        """Stops a run whose probe hangs; not where the circuit is closed, as after a single failed call."""
        if self._failing_since == since and self.opened:
            self._stalled(why)

    def _open(self) -> None:
        self.opened, self._probing = True, False
        pause = _PROBE_SECONDS[min(self._probes, len(_PROBE_SECONDS) - 1)]
        self._probes += 1
        self._quiet_until = time.monotonic() + pause

    def _close(self) -> None:
        self._failures = self._failing_calls = self._unreachable = self._probes = 0
        if self.opened:
            self.opened = self._probing = False
            self._quiet_until = 0.0

    def _admit(self) -> None:
        super()._admit()
        self._limit_reached = self._limit_reached or self.inside >= self.limit
        self._probing = self.opened

    def _has_capacity(self) -> bool:
        pause = self._quiet_until - time.monotonic()
        if pause > 0:
            if self._wake_timer is None or self._wake_timer.when() <= time.monotonic():
                self._wake_timer = asyncio.get_running_loop().call_later(pause, self._wake)
            return False
        return not self._probing if self.opened else self.inside < self.limit


async def wait(event: asyncio.Event, seconds: float) -> None:
    """Waits for an event, but not for longer than `seconds`."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()

"""How many calls may be in flight: additive increase, multiplicative decrease, and a circuit that opens when nothing is
answered.

Stray failures do not slow a run; a server that is full, or gone, does. Up to a tenth of 429s in a round leaves the
limit alone, because a server may send some at random, and a limit that fell at each of them would end near one call at
a time.
"""

import asyncio
from collections import deque
from collections.abc import Callable
import contextlib
from typing import NamedTuple

_TOLERATED_SHARE = 0.1
_DECREASE = 0.7
_STEEP_DECREASE = 0.5  # when most of a round was turned away
_TRIP_FAILURES = 20
_TRIP_UNREACHABLE = 3
_PROBE_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)


class Gate:
    """Lets a limited number through at once, first come first served. `async with` it enters, and leaves in any
    case.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self.inside = 0
        self._waiting: deque[asyncio.Future] = deque()
        self._stopped: Callable[[], Exception] | None = None

    async def enter(self, *, first: bool = False) -> None:
        """Waits for room, before all others if `first`.

        Raises:
          Exception: the one `stop` was given.
        """
        if self._stopped:
            raise self._stopped()
        if not self._waiting and self._room():
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
        """Makes room."""
        self.inside -= 1
        self._wake()

    def stop(self, error: Callable[[], Exception]) -> None:
        """Turns everybody away from now on, with what `error` makes."""
        self._stopped = error
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_exception(error())

    def _room(self) -> bool:
        return self.inside < self.limit

    def _admit(self):
        self.inside += 1

    def _wake(self):
        while self._waiting and self._room():
            future = self._waiting.popleft()
            if not future.done():
                self._admit()
                future.set_result(None)


class Pass(NamedTuple):
    """When a call was let through."""

    era: int  # a 429 to a call sent before the last decrease says nothing new
    probe: bool  # whether the circuit was open


class Throttle(Gate):
    """A gate that learns the server's limit from its 429s, and lets one call at a time probe a server that answers
    nothing.

    Args:
      most: calls in flight at most, and at first.
      stall_seconds: the run is stalled when calls have failed for this long without one answer.
      stalled: called once, with what the failures were, when the run is stalled.
    """

    def __init__(self, most: int, *, stall_seconds: float, stalled: Callable[[str], None]):
        super().__init__(most)
        self.opened = False  # the circuit: open means that no current flows
        self._most = most
        self._stall_seconds = stall_seconds
        self._stalled = stalled
        self._loop = asyncio.get_running_loop()
        self._size = float(most)  # the limit with its fractions
        self._era = 0  # counts decreases
        self._answers = self._refusals = 0  # of this round
        self._full = False  # whether the limit was reached in this round
        self._quiet_until = 0.0
        self._alarm: asyncio.TimerHandle | None = None
        self._failing_since: float | None = None
        self._failures = self._unreachable = self._probes = 0  # in a row
        self._probing = False

    async def acquire(self) -> Pass:
        """Waits for a slot; the pass goes back with how the call ended."""
        await self.enter()
        return Pass(self._era, self.opened)

    def answered(self, held: Pass) -> None:
        """A call came back with an answer of any kind: the server is well."""
        self._failing_since = None
        self._close()
        self._answers += 1
        self._round()
        self.leave()

    def limited(self, held: Pass, retry_after_seconds: float | None) -> None:
        """A call was turned away with a 429."""
        self._note_failure("429: too many requests")
        if retry_after_seconds is not None and retry_after_seconds > self._stall_seconds:
            self._stalled(f"429: too many requests, none wanted for {retry_after_seconds:.0f} s")
        self._close()
        if held.era == self._era:
            self._refusals += 1
            if self._refusals > _TOLERATED_SHARE * max(self.limit, 1 / _TOLERATED_SHARE):
                self._decrease(retry_after_seconds or 0.0)
        self._round()
        self.leave()

    def failed(self, held: Pass, why: str, *, unreachable: bool) -> None:
        """A call came back with nothing of use."""
        self._note_failure(why)
        self._failures += 1
        self._unreachable = self._unreachable + 1 if unreachable else 0
        trips = self._failures >= _TRIP_FAILURES or self._unreachable >= _TRIP_UNREACHABLE
        # Calls that were in flight when the circuit opened say nothing new; only the probe does.
        if held.probe if self.opened else trips:
            self._open()
        self.leave()

    def abandoned(self, held: Pass) -> None:
        """A call was cancelled; it says nothing about the server."""
        if held.probe:
            self._probing = False
        self.leave()

    def _round(self):
        if self._answers + self._refusals < self.limit:
            return
        # Only a full pipe shows that the server takes this many.
        if self._answers and self._full:
            self._size = min(self._size + 1, self._most)
            self.limit = int(self._size)
        self._answers = self._refusals = 0
        self._full = self.inside >= self.limit

    def _decrease(self, quiet_seconds: float):
        steep = self._refusals > self._answers
        self._size = max(self._size * (_STEEP_DECREASE if steep else _DECREASE), 1.0)
        self.limit = int(self._size)
        self._era += 1
        self._answers = self._refusals = 0
        self._quiet_until = max(self._quiet_until, self._loop.time() + quiet_seconds)

    def _note_failure(self, why: str):
        now = self._loop.time()
        if self._failing_since is None:
            self._failing_since = now
            self._loop.call_later(self._stall_seconds, self._check_stall, now, why)
        elif now - self._failing_since > self._stall_seconds:
            self._stalled(why)

    def _check_stall(self, since: float, why: str):
        """Ends a run that hangs in one probe. A single failed call that is never tried again is no stall."""
        if self._failing_since == since and self.opened:
            self._stalled(why)

    def _open(self):
        self.opened, self._probing = True, False
        pause = _PROBE_SECONDS[min(self._probes, len(_PROBE_SECONDS) - 1)]
        self._probes += 1
        self._quiet_until = self._loop.time() + pause

    def _close(self):
        self._failures = self._unreachable = self._probes = 0
        if self.opened:
            self.opened = self._probing = False
            self._quiet_until = 0.0

    def _admit(self):
        super()._admit()
        self._full = self._full or self.inside >= self.limit
        self._probing = self.opened

    def _room(self) -> bool:
        pause = self._quiet_until - self._loop.time()
        if pause > 0:
            if self._alarm is None or self._alarm.cancelled() or self._alarm.when() <= self._loop.time():
                self._alarm = self._loop.call_later(pause, self._wake)
            return False
        return not self._probing if self.opened else self.inside < self.limit


async def wait(event: asyncio.Event, seconds: float) -> None:
    """Waits for an event, but not for longer than `seconds`."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()

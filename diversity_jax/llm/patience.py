"""How long to wait for an answer: as long as asked for, or far longer than the server has needed so far."""

import asyncio
from collections import deque
from collections.abc import Awaitable
from typing import TypeVar

from diversity_jax.llm.providers.base import Transient

T = TypeVar("T")

_SEEN = 200
_ENOUGH_SEEN = 50
_SLOW_SHARE = 0.95
_TIMES = 20
_LEAST_SECONDS = 10.0
_HUNG_IN_A_ROW = 10
_SAME = 0.1  # a deadline that moves by less than this share stays: with hundreds waiting each move takes time


class Patience:
    """Shortens deadlines once it is known how long answers take, those of calls on their way too: a call that hangs
    holds up all that depends on it.

    Args:
      deadline_seconds: the longest to wait; also what is waited until 50 answers have come.
    """

    def __init__(self, deadline_seconds: float):
        self._most = self.seconds = deadline_seconds
        self._taken: deque[float] = deque(maxlen=_SEEN)
        self._answers = self._hung = 0
        self._waiting: dict[asyncio.Timeout, float] = {}

    async def wait(self, answer: Awaitable[T]) -> T:
        """One answer.

        Raises:
          Transient: it did not come in time.
        """
        sent = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self.seconds) as limit:
                self._waiting[limit] = sent
                try:
                    found = await answer
                finally:
                    del self._waiting[limit]
        except TimeoutError:
            self._hung += 1
            if self._hung % _HUNG_IN_A_ROW == 0:  # nothing but these: the server may have grown slow
                self._set(2 * self.seconds)
            raise Transient("timeout", f"no answer for {self.seconds:.0f} s") from None
        self._answered(asyncio.get_running_loop().time() - sent)
        return found

    def _answered(self, seconds: float):
        self._taken.append(seconds)
        self._answers += 1
        self._hung = 0
        if self._answers % _ENOUGH_SEEN == 0:
            slow = sorted(self._taken)[int(_SLOW_SHARE * len(self._taken))]
            self._set(max(_TIMES * slow, _LEAST_SECONDS))

    def _set(self, seconds: float):
        seconds = min(self._most, seconds)
        if abs(seconds - self.seconds) < _SAME * self.seconds:
            return
        self.seconds = seconds
        for limit, sent in self._waiting.items():
            if not limit.expired():
                limit.reschedule(sent + self.seconds)

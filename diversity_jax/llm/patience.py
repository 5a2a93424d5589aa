"""How long to wait for an answer: as long as asked for, or far longer than the server has needed so far."""

from collections import deque

_SEEN = 200
_ENOUGH_SEEN = 50
_SLOW_SHARE = 0.95
_TIMES = 20
_LEAST_SECONDS = 10.0


class Patience:
    """Shortens a deadline once it is known how long answers take, since a call that hangs holds up all that depends on it.

    Args:
      deadline_seconds: the longest to wait; also what is waited until 50 answers have come.
    """

    def __init__(self, deadline_seconds: float):
        self._most = self.seconds = deadline_seconds
        self._taken: deque[float] = deque(maxlen=_SEEN)
        self._answers = 0

    def answered(self, seconds: float) -> None:
        """Takes down how long an answer took."""
        self._taken.append(seconds)
        self._answers += 1
        if self._answers % _ENOUGH_SEEN == 0:
            slow = sorted(self._taken)[int(_SLOW_SHARE * len(self._taken))]
            self.seconds = min(self._most, max(_TIMES * slow, _LEAST_SECONDS))

    def hung(self) -> None:
        """A call was given up: the server may have grown slow, so the next ones get longer."""
        self.seconds = min(self._most, 1.5 * self.seconds)

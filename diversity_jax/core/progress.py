"""A line or a bar for work that takes longer than ten seconds."""

import sys
import time

_LINE_SECONDS = 10.0


class Progress:
    """Counts things done: a bar on a terminal, else a line every ten seconds, on stderr.

    Args:
      name: what is being done.
      total: of how many.
      before: how many were done in an earlier sitting.
    """

    def __init__(self, name: str, total: int, before: int = 0):
        self._name, self._total, self._done, self._before = name, total, before, before
        self._began = self._said = time.monotonic()
        self._terminal = sys.stderr.isatty()

    def add(self, number: int) -> None:
        """`number` more are done."""
        self._done += number
        now = time.monotonic()
        if now - self._said >= (0.2 if self._terminal else _LINE_SECONDS) or (
            self._done >= self._total and self._said > self._began
        ):
            self._said = now
            self._show(now)

    def _show(self, now: float) -> None:
        rate = (self._done - self._before) / max(now - self._began, 1e-9)
        left = (self._total - self._done) / rate if rate else 0.0
        said = f"{self._name}: {self._done:,} of {self._total:,}, {rate:,.1f}/s, {left:,.0f} s left"
        ending = "\n" if not self._terminal or self._done >= self._total else "\r"
        print(f"\033[K{said}" if self._terminal else said, end=ending, file=sys.stderr, flush=True)

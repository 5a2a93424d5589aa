"""How far a preparation is: a bar on a terminal, else a line now and then; nothing for one that is done in ten
seconds.
"""

from collections import deque
import sys
import time
from typing import Any

_LINE_SECONDS = 10.0
_BAR_SECONDS = 0.5
_WINDOW_SECONDS = 30.0


class PreparationProgress:
    """Shows one stage at a time.

    Args:
      name: of the component.
      show: off for silence, as in tests and in workers of a larger program.
    """

    def __init__(self, name: str, *, show: bool = True):
        self._name, self._bar = name, None
        self._is_terminal = sys.stderr.isatty()
        self._show = show
        self._next = time.monotonic() + (_BAR_SECONDS if self._is_terminal else _LINE_SECONDS)
        self.begin("reading", None)

    def __enter__(self) -> "PreparationProgress":
        return self

    def __exit__(self, *error: Any) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begin(self, stage: str, total: float | None) -> None:
        """Starts a stage.

        Args:
          total: how much there is to do, in the unit of `update`'s `done`; None where that is not known.
        """
        self._stage, self._total = stage, total
        self._history: deque[tuple[float, float, int]] = deque([(time.monotonic(), 0.0, 0)])

    def update(self, done: float, tokens: int, documents: int) -> None:
        """Takes figures of this stage, this sitting's tokens and documents among them, and shows them when it is
        time.
        """
        now = time.monotonic()
        self._history.append((now, done, tokens))
        while len(self._history) > 2 and now - self._history[0][0] > _WINDOW_SECONDS:
            self._history.popleft()
        if self._show and now >= self._next:
            self._next = now + (_BAR_SECONDS if self._is_terminal else _LINE_SECONDS)
            self._draw(self.line(documents), done)

    def line(self, documents: int) -> str:
        """The figures in one line."""
        (then, done_then, tokens_then), (now, done, tokens) = self._history[0], self._history[-1]
        seconds = max(now - then, 1e-9)
        rate, speed = (tokens - tokens_then) / seconds, (done - done_then) / seconds
        parts = [f"{tokens:,} tokens", f"{rate:,.0f} tokens/s"]
        if documents:
            parts.insert(1, f"{documents:,} documents")
        if self._total:
            left = _clock(max(self._total - done, 0) / speed) if speed > 0 else "unknown"
            parts += [f"{min(done / self._total, 1):.0%}", f"{left} left"]
        return f"{self._name}: {self._stage}: {', '.join(parts)}"

    def _draw(self, line: str, done: float) -> None:
        if not self._is_terminal:
            print(line, file=sys.stderr, flush=True)
            return
        from rich.console import Console
        from rich.live import Live

        if self._bar is None:
            self._bar = Live(console=Console(stderr=True), auto_refresh=False, transient=True)
            self._bar.start()
        self._bar.update(self._rows(line, done), refresh=True)

    def _rows(self, line: str, done: float) -> Any:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(expand=True)
        grid.add_row(ProgressBar(total=self._total, completed=min(done, self._total or done), pulse=not self._total))
        grid.add_row(Text(line, no_wrap=True))
        return grid


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"

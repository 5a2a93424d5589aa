"""Progress of long work on stderr: a bar on a terminal, otherwise a line every 10 seconds."""

from collections import deque
from collections.abc import Mapping
import sys
import time
from types import MappingProxyType
from typing import Any, Self

MODES = ("auto", "panel", "lines", "off")
PANEL_SECONDS = 0.5
LINE_SECONDS = 10.0  # work that is done sooner prints no line
RATE_WINDOW_SECONDS = 30.0  # short enough to follow a change, long enough that batches do not make the rate jump
_NO_FIGURES: Mapping[str, int | str] = MappingProxyType({})


class ProgressDisplay:
    """Shows how much of some work is done, its rate and the time left; a context manager.

    Attributes:
      interval_seconds: time between two updates.

    Args:
      name: of the work.
      total: amount of work; None where it is not known.
      completed: amount done before this process began, which does not count in the rate.
      unit: what the rate counts: one of the figures given to `update`, otherwise what `completed` counts.
      mode: one of `MODES`: `auto` is `panel` on a terminal and `lines` elsewhere.
    """

    def __init__(
        self, name: str, total: float | None = None, *, completed: float = 0, unit: str = "", mode: str = "auto"
    ):
        self._name, self._unit = name, unit
        self._mode = ("panel" if sys.stderr.isatty() else "lines") if mode == "auto" else mode
        self.interval_seconds = PANEL_SECONDS if self._mode == "panel" else LINE_SECONDS
        self._began = time.monotonic()
        self._next_update = self._began + self.interval_seconds
        self._drawn_at: float | None = None
        self._live: Any = None
        self._title, self._total = name, total
        self._figures: Mapping[str, int | str] = {}
        # (seconds, completed, amount in the rate's unit) at each update inside the window
        self._history: deque[tuple[float, float, float]] = deque()
        self.begin("", total, completed=completed)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def begin(self, stage: str, total: float | None, *, completed: float = 0) -> None:
        """Starts a stage of the work, with a total and a rate of its own."""
        self._title, self._total = f"{self._name}: {stage}" if stage else self._name, total
        self._figures = {}
        self._history = deque([(time.monotonic(), completed, 0 if self._unit else completed)])

    def advance(self, amount: float = 1) -> None:
        """Adds to what is completed."""
        self.update(self._history[-1][1] + amount)

    def update(
        self, completed: float, figures: Mapping[str, int | str] = _NO_FIGURES, *, total: float | None = None
    ) -> None:
        """Records how much of the stage is done, and draws if the last drawing is `interval_seconds` old.

        Args:
          figures: shown instead of the amount completed, by name, in this order.
          total: replaces the stage's total.
        """
        now = time.monotonic()
        self._total = self._total if total is None else total
        amount = figures.get(self._unit, completed)
        self._figures = figures
        self._history.append((now, completed, amount if isinstance(amount, int) else completed))
        while len(self._history) > 2 and now - self._history[1][0] > RATE_WINDOW_SECONDS:  # the window or more is left
            self._history.popleft()
        if self._mode != "off" and now >= self._next_update:
            self._draw()

    def figures(self) -> dict[str, str]:
        """The figures shown, by name: the latest ones, the rate, and the time left where the total is known."""
        (since, completed_then, amount_then), (now, completed, amount) = self._history[0], self._history[-1]
        seconds = max(now - since, 1e-9)
        rate = (amount - amount_then) / seconds
        shown = {name: value if isinstance(value, str) else f"{value:,}" for name, value in self._figures.items()}
        if not self._figures:
            shown["done"] = f"{completed:,}" + ("" if self._total is None else f" of {self._total:,}")
        shown[f"{self._unit}/s" if self._unit else "per second"] = f"{rate:,.1f}" if rate < 1000 else f"{rate:,.0f}"
        if self._total is not None:
            speed = (completed - completed_then) / seconds
            shown["left"] = _clock(max(self._total - completed, 0) / speed) if speed > 0 else "unknown"
        return shown

    def line(self) -> str:
        return f"{self._title}: " + ", ".join(f"{value} {name}" for name, value in self.figures().items())

    def close(self) -> None:
        """Draws the latest figures if any were drawn before, and leaves them on the screen."""
        if self._drawn_at not in (None, self._history[-1][0]):
            self._draw()
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _draw(self) -> None:
        self._drawn_at = self._history[-1][0]
        self._next_update = self._drawn_at + self.interval_seconds
        if self._mode == "lines":
            print(self.line(), file=sys.stderr, flush=True)
            return
        from rich.console import Console
        from rich.live import Live

        if self._live is None:
            self._live = Live(console=Console(stderr=True), auto_refresh=False)
            self._live.start()
        self._live.update(self._panel(), refresh=True)

    def _panel(self) -> Any:
        from rich.columns import Columns
        from rich.panel import Panel
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        now, completed, _ = self._history[-1]
        figures = []
        for name, value in self.figures().items():
            style = "bold red" if name == "failed" and value != "0" else "bold"
            figures.append(Text.assemble((value, style), (f" {name}", "dim"), no_wrap=True))
        grid = Table.grid(expand=True)
        grid.add_row(ProgressBar(total=self._total, completed=completed, pulse=not self._total))
        grid.add_row(Columns(figures, padding=(0, 3)))
        elapsed = _clock(now - self._began)
        return Panel(grid, title=self._title, subtitle=elapsed, title_align="left", subtitle_align="right")


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"

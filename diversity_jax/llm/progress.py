"""What a run of calls looks like while it runs: a live panel on a terminal, else a line now and then."""

import asyncio
from collections import deque
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diversity_jax.llm.engine import Engine

MODES = ("auto", "panel", "lines", "off")
_PANEL_SECONDS = 0.5
_LINE_SECONDS = 10.0
_RATE_WINDOW_SECONDS = 15.0


class Progress:
    """Shows an engine's figures until closed. A run shorter than ten seconds prints no line."""

    def __init__(self, engine: "Engine", *, mode: str):
        self._engine = engine
        self._started = time.monotonic()
        self._history: deque[tuple[float, int]] = deque([(self._started, 0)])
        if mode == "auto":
            mode = "panel" if sys.stderr.isatty() else "lines"
        show = {"panel": self._show_panel, "lines": self._show_lines}.get(mode)
        self._task = asyncio.create_task(show()) if show else None

    async def close(self) -> None:
        """Stops showing; the panel stays on the screen with its last figures."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _show_lines(self):
        while True:
            await asyncio.sleep(_LINE_SECONDS)
            print(self.line(), file=sys.stderr, flush=True)

    async def _show_panel(self):
        from rich.console import Console
        from rich.live import Live

        with Live(self._panel(), console=Console(stderr=True), auto_refresh=False) as live:
            try:
                while True:
                    await asyncio.sleep(_PANEL_SECONDS)
                    live.update(self._panel(), refresh=True)
            finally:
                live.update(self._panel(), refresh=True)

    def figures(self) -> dict[str, str]:
        """The figures, by name, as they are shown."""
        engine, stats = self._engine, self._engine.stats
        now = time.monotonic()
        finished = stats.done + stats.failed
        self._history.append((now, finished))
        while len(self._history) > 2 and now - self._history[0][0] > _RATE_WINDOW_SECONDS:
            self._history.popleft()
        since, before = self._history[0]
        rate = (finished - before) / max(now - since, 1e-9)
        dollars = engine.spent_before.dollars + stats.spent.dollars
        shown = {
            "done": f"{stats.done:,}" + (f" of {stats.expected:,}" if stats.expected else ""),
            "cached": f"{stats.cached:,}",
            "failed": f"{stats.failed:,}",
            "in flight": f"{engine.in_flight:,} of {engine.limit:,}",
            "calls/s": f"{rate:,.1f}",
            "tokens": f"{stats.prompt_tokens + stats.completion_tokens:,}",
            "spent": f"${dollars:,.4f}",
        }
        if stats.expected:
            remaining = max(stats.expected - finished, 0)
            shown["in all"] = self._in_all(dollars, remaining)
            shown["left"] = _clock(remaining / rate) if rate > 0 else "unknown"
        return shown

    def _in_all(self, dollars: float, remaining: int) -> str:
        stats, projected = self._engine.stats, self._engine.projected
        if projected is not None:
            return f"${projected.dollars:,.4f} for {projected.prompt_tokens + projected.completion_tokens:,} tokens"
        fresh = stats.done - stats.cached
        return f"${dollars + remaining * (stats.spent.dollars / fresh if fresh else 0.0):,.4f}"

    def line(self) -> str:
        """The figures in one line."""
        return f"{self._engine.name}: " + ", ".join(f"{value} {name}" for name, value in self.figures().items())

    def _panel(self) -> Any:
        from rich.columns import Columns
        from rich.panel import Panel
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        stats, shown = self._engine.stats, []
        for name, value in self.figures().items():
            style = "bold red" if name == "failed" and stats.failed else "bold"
            shown.append(Text.assemble((value, style), (f" {name}", "dim"), no_wrap=True))
        bar = ProgressBar(total=stats.expected, completed=stats.done + stats.failed, pulse=not stats.expected)
        elapsed = _clock(time.monotonic() - self._started)
        grid = Table.grid(expand=True)
        grid.add_row(bar)
        grid.add_row(Columns(shown, padding=(0, 3)))
        return Panel(
            grid, title=f"asking {self._engine.name}", subtitle=elapsed, title_align="left", subtitle_align="right"
        )


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"

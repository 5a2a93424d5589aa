"""What an engine has done so far, and how that is shown while it runs."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from diversity_jax.core.progress import ProgressDisplay
from diversity_jax.llm.budget import NOTHING, Amount
from diversity_jax.llm.cost_forecast import CostForecast, PlannedCalls, StageUsage
from diversity_jax.llm.rate_limit import Throttle
from diversity_jax.llm.types import CachedResponse


@dataclass(kw_only=True)
class Stats:
    """What the engine has done so far in this process.

    Attributes:
      done: calls with an answer.
      cached: those of them that the response cache answered.
      failed: calls without a usable answer.
      attempts: requests sent.
      prompt_tokens, completion_tokens, cost_usd: of all answers, cached ones included.
      spent: what was newly paid for.
      spent_before: what the run had used up in earlier processes.
      expected: how many calls the run will make, where that is known.
      planned: what they will be, where that is known.
      used: usage of the answered calls by stage, cached ones included.
    """

    done: int = 0
    cached: int = 0
    failed: int = 0
    attempts: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    spent: Amount = NOTHING
    spent_before: Amount = NOTHING
    expected: int | None = None
    planned: Sequence[PlannedCalls] = ()
    used: dict[str, StageUsage] = field(default_factory=dict)

    def count(self, response: CachedResponse, *, cached: bool) -> None:
        """Counts an answer."""
        self.done += 1
        self.cached += cached
        self.cost_usd += response.dollars
        used = self.used.setdefault(response.stage, StageUsage())
        used.calls += 1
        for total in (self, used):
            total.prompt_tokens += response.prompt_tokens
            total.completion_tokens += response.completion_tokens


class CallProgress:
    """Shows an engine's figures from `start` to `close`.

    Args:
      name: `provider:model`.
      mode: as `EngineConfig.progress`.
      stats: read at every update.
      throttle: gives the calls in flight.
      projected: what the run will use up in all; None without a plan.
    """

    def __init__(
        self, name: str, mode: str, stats: Stats, throttle: Throttle, projected: Callable[[], CostForecast | None]
    ):
        self._display = ProgressDisplay(f"asking {name}", unit="calls", mode=mode)
        self._stats, self._throttle, self._projected = stats, throttle, projected
        self._task: asyncio.Task | None = None

    def start(self) -> None:
        """Begins to show the figures, from a task of the running event loop."""
        self._display.begin("", self._stats.expected)
        self._task = asyncio.create_task(self._show())

    async def close(self) -> None:
        """Stops showing; a panel stays on the screen with its last figures."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self.figures()
        self._display.close()

    async def _show(self) -> None:
        while True:
            await asyncio.sleep(self._display.interval_seconds)
            self.figures()

    def figures(self) -> dict[str, str]:
        """The latest figures by name, as they are shown."""
        stats, throttle = self._stats, self._throttle
        finished = stats.done + stats.failed
        dollars = stats.spent_before.dollars + stats.spent.dollars
        shown: dict[str, int | str] = {
            "done": f"{stats.done:,}" + (f" of {stats.expected:,}" if stats.expected else ""),
            "cached": stats.cached,
            "failed": stats.failed,
            "in flight": f"{throttle.inside:,} of {throttle.limit:,}",
            "tokens": stats.prompt_tokens + stats.completion_tokens,
            "spent": f"${dollars:,.4f}",
        }
        if stats.expected and (projected := self._projected()):
            shown["in all"] = f"${projected.dollars:,.4f} for {projected.tokens:,} tokens"
        elif stats.expected:
            mean = stats.spent.dollars / max(stats.done - stats.cached, 1)
            shown["in all"] = f"${dollars + max(stats.expected - finished, 0) * mean:,.4f}"
        self._display.update(finished, shown, total=stats.expected)
        return self._display.figures()

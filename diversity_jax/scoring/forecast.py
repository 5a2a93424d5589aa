"""Forecast of the calls, tokens and dollars of a scoring: before it, after a pilot, and while it runs."""

from collections.abc import Callable, Collection, Sequence
import logging
from pathlib import Path
from typing import Any

from diversity_jax.cluster_agent import (
    Judge,
    JudgeSettings,
    Scorecard,
    ScoringProgress,
    judge_kind,
    open_judge,
    pilot_calls,
    plan_calls,
)
from diversity_jax.cluster_agent.registry import is_paid_embedding
from diversity_jax.core.files import write_json
from diversity_jax.corpus import Corpus
from diversity_jax.llm import CostForecast, PlannedCalls, forecast, parse_model, price_of

log = logging.getLogger(__name__)

_REVISED_AFTER = 50  # groupings, after which their mean use is known to a few per cent


def price_calls(settings: JudgeSettings, planned: Sequence[PlannedCalls]) -> CostForecast:
    """The cost of calls of a language model as judge, at the price of batches where they are sent in batches."""
    price = price_of(*parse_model(settings.judge), settings.judge_base_url, settings.budget)
    return forecast(planned, price.times(settings.engine.price_share), settings.budget)


class ScoringForecast:
    """Expected use of a scoring: assumed before its first call, measured by a pilot, revised during the run.

    Attributes:
      planned: the calls to come; empty for a judge that makes none.
      costs: forecasts by how they were made, `before`, `pilot` and `revised`, the latest last.
    """

    def __init__(self, settings: JudgeSettings, corpora: Sequence[Corpus]):
        self._settings = settings
        self._corpora = corpora
        self.planned = plan_calls(corpora, settings.agent) if judge_kind(settings.judge).is_llm else []
        self.costs = {"before": price_calls(settings, self.planned)} if self.planned else {}

    def __str__(self) -> str:
        if not self.costs:
            judge = self._settings.judge
            cost = "no language model to pay" if is_paid_embedding(judge) else "nothing to pay"
            return f"judge: {judge_kind(judge).label or judge}, {cost}"
        how = {"before": "", "pilot": " after a pilot", "revised": " by the calls so far"}
        name, latest = list(self.costs.items())[-1]
        return f"forecast{how[name]}: {latest} (judge: {self._settings.judge})"

    def run_pilot(self, groupings: int, cache: Path) -> None:
        """Judges the first `groupings` of each corpus, which the run then gets from the response cache."""
        if self.planned:
            judge = open_judge(self._settings, cache)
            planned = pilot_calls(self._corpora, judge, self._settings.agent, groupings)
            self.costs["pilot"] = price_calls(self._settings, planned)

    def watch(self, judge: Judge) -> Callable[[ScoringProgress], None]:
        """Passes the plan to the judge's engine, for its progress display; returns a callback that logs a revised
        forecast once.
        """
        engine = getattr(judge, "engine", None)
        if engine is not None:
            engine.plan(self.planned)

        def look(progress: ScoringProgress) -> None:
            due = progress.done == min(_REVISED_AFTER, progress.total)
            if engine is not None and due and "revised" not in self.costs:
                self.costs["revised"] = engine.projected
                log.info("%s", self)

        return look

    def save(self, path: Path, scorecards: Collection[Scorecard]) -> None:
        """Writes the forecasts and the use of the scorecards."""
        value: dict[str, Any] = {name: cost.to_json() for name, cost in self.costs.items()}
        value["used"] = {
            "calls": sum(scorecard.calls for scorecard in scorecards),
            "prompt_tokens": sum(scorecard.tokens["prompt"] for scorecard in scorecards),
            "completion_tokens": sum(scorecard.tokens["completion"] for scorecard in scorecards),
            "dollars": sum(scorecard.cost_usd for scorecard in scorecards),
        }
        write_json(path, value)

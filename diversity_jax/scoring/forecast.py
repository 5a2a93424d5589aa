"""The forecast of a scoring: what it will use, before it, after a pilot, and while it runs."""

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

_REVISED_AFTER = 50  # groupings; their mean use is then known to a few per cent


class ScoringForecast:
    """What a scoring is expected to use: guessed before its first call, measured by a pilot, revised during the run.

    Attributes:
      planned: the calls to come; empty for a judge that costs nothing.
      costs: forecasts by how they were made, `before`, `pilot` and `revised`, the latest last.
    """

    def __init__(self, settings: JudgeSettings, corpora: Sequence[Corpus]):
        self._settings = settings
        self._corpora = corpora
        self.planned = plan_calls(corpora, settings.agent) if judge_kind(settings.judge).is_llm else []
        self.costs = {"before": self._price(self.planned)} if self.planned else {}

    def _price(self, planned: Sequence[PlannedCalls]) -> CostForecast:
        provider, model = parse_model(self._settings.judge)
        budget = self._settings.budget
        price = price_of(provider, model, self._settings.judge_base_url, budget)
        return forecast(planned, price.times(self._settings.engine.price_share), budget)

    def __str__(self) -> str:
        if not self.costs:
            judge = self._settings.judge
            cost = "no language model to pay" if is_paid_embedding(judge) else "nothing to pay"
            return f"judge: {judge_kind(judge).label or judge}, {cost}"
        how = {"before": "", "pilot": " after a pilot", "revised": " by the calls so far"}
        name, latest = list(self.costs.items())[-1]
        return f"forecast{how[name]}: {latest} (judge: {self._settings.judge})"

    def run_pilot(self, groupings: int, cache: Path) -> None:
        """Judges the first `groupings` of each corpus, which the run itself then takes from the response cache."""
        if self.planned:
            judge = open_judge(self._settings, self._corpora, cache)
            self.costs["pilot"] = self._price(pilot_calls(self._corpora, judge, self._settings.agent, groupings))

    def watch(self, judge: Judge) -> Callable[[ScoringProgress], None]:
        """Lets the judge's progress display project from the plan; the result logs a revised forecast once."""
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
        """Writes the forecasts and what the scorecards used."""
        value: dict[str, Any] = {name: cost.to_json() for name, cost in self.costs.items()}
        value["used"] = {
            "calls": sum(scorecard.calls for scorecard in scorecards),
            "prompt_tokens": sum(scorecard.tokens["prompt"] for scorecard in scorecards),
            "completion_tokens": sum(scorecard.tokens["completion"] for scorecard in scorecards),
            "dollars": sum(scorecard.cost_usd for scorecard in scorecards),
        }
        write_json(path, value)

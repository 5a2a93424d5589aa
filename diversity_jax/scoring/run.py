"""Scoring corpora by the judge that a configuration names; what was scored once is not paid for again."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import logging
from pathlib import Path
from typing import Any, Protocol

from diversity_jax.cluster_agent import (
    AgentConfig,
    Judge,
    LlmJudge,
    OfflineJudge,
    Progress,
    Scorecard,
    pilot_calls,
    plan_calls,
    score_corpora,
    score_key,
)
from diversity_jax.core.files import content_hash, read_json, write_json
from diversity_jax.corpus import Corpus
from diversity_jax.llm import BudgetConfig, CostForecast, Engine, EngineConfig, PlannedCalls, forecast, price_of
from diversity_jax.llm.providers import parse_model

log = logging.getLogger(__name__)

_REVISED_AFTER = 50  # groupings; their mean use is then known to a few per cent


class JudgeSettings(Protocol):
    """The fields of a configuration that say who judges, how, and at what price."""

    judge: str
    judge_base_url: str | None
    agent: AgentConfig
    engine: EngineConfig
    budget: BudgetConfig


def open_judge(settings: JudgeSettings, corpora: Sequence[Corpus], ledger: Path) -> Judge:
    """The judge of a configuration, as one ruler for all `corpora`.

    Args:
      ledger: where paid answers are kept, unless the configuration names another place.

    Raises:
      InputError: an unknown judge, a model without a price, or a missing API key.
    """
    if settings.judge == "offline":
        return OfflineJudge.fit(corpora, seed=settings.agent.seed, max_characters=settings.agent.max_characters)
    engine = settings.engine
    if engine.ledger is None:
        engine = dataclasses.replace(engine, ledger=str(ledger))
    judge = LlmJudge(Engine(settings.judge, base_url=settings.judge_base_url, config=engine, budget=settings.budget))
    Path(engine.ledger).parent.mkdir(parents=True, exist_ok=True)
    return judge


def priced(settings: JudgeSettings, planned: Sequence[PlannedCalls]) -> CostForecast:
    """Planned calls at the price of the judge."""
    return forecast(
        planned, price_of(*parse_model(settings.judge), settings.judge_base_url, settings.budget), settings.budget
    )


def describe_price(settings: JudgeSettings, corpora: Sequence[Corpus]) -> str:
    """What scoring will use up, before the first call: calls, tokens, dollars."""
    if settings.judge == "offline":
        return "judge: offline (no LLM), nothing to pay"
    return f"forecast: {priced(settings, plan_calls(corpora, settings.agent))} (judge: {settings.judge})"


class Outlook:
    """What a scoring is thought to use up: guessed before its first call, measured by a pilot where one is asked for,
    revised on the way.

    Attributes:
      planned: the calls to come; empty for a judge that costs nothing.
      found: forecasts by how they came about, `before`, `pilot` and `revised`.
    """

    def __init__(self, settings: JudgeSettings, corpora: Sequence[Corpus]):
        self._settings = settings
        self._corpora = corpora
        self.planned = [] if settings.judge == "offline" else plan_calls(corpora, settings.agent)
        self.found: dict[str, CostForecast] = {"before": priced(settings, self.planned)} if self.planned else {}

    def __str__(self) -> str:
        if not self.found:
            return "judge: offline (no LLM), nothing to pay"
        how = {"before": "", "pilot": " after a pilot", "revised": " by the calls so far"}
        name, last = list(self.found.items())[-1]
        return f"forecast{how[name]}: {last} (judge: {self._settings.judge})"

    def fly_pilot(self, groupings: int, ledger: Path) -> None:
        """Judges the first `groupings` of each corpus, which the run itself then finds in the ledger."""
        if self.planned:
            judge = open_judge(self._settings, self._corpora, ledger)
            self.found["pilot"] = priced(
                self._settings, pilot_calls(self._corpora, judge, self._settings.agent, groupings)
            )

    def watch(self, judge: Judge) -> Callable[[Progress], None]:
        """Lets the judge's panel project from what calls use, and says once what came out early in the run."""
        engine = getattr(judge, "engine", None)
        if engine is not None:
            engine.plan(self.planned)

        def look(progress: Progress) -> None:
            if (
                engine is not None
                and progress.done == min(_REVISED_AFTER, progress.total)
                and "revised" not in self.found
            ):
                self.found["revised"] = engine.projected
                log.info("%s", self)

        return look

    def save(self, path: Path, cards: Iterable[Scorecard] = ()) -> None:
        """Writes the forecasts and, once there are scorecards, what they used."""
        value: dict[str, Any] = {name: one.to_json() for name, one in self.found.items()}
        if cards := list(cards):
            used = {f"{kind}_tokens": sum(card.tokens[kind] for card in cards) for kind in ("prompt", "completion")}
            value["used"] = {
                "calls": sum(card.calls for card in cards),
                **used,
                "dollars": sum(card.cost_usd for card in cards),
            }
        write_json(path, value)


def score_named(
    settings: JudgeSettings,
    corpora: Mapping[str, Corpus],
    ledger: Path,
    groupings: Mapping[str, Path],
    outlook: Outlook | None = None,
) -> dict[str, Scorecard]:
    """Scores corpora under one ruler, and writes every partition to the files in `groupings`."""
    judge = open_judge(settings, list(corpora.values()), ledger)
    log.info("scoring %s (judge: %s)", ", ".join(corpora), judge.label)
    progress = outlook.watch(judge) if outlook else None
    return score_corpora(corpora, judge, settings.agent, groupings_paths=groupings, progress=progress)


def scorer(settings: JudgeSettings, folder: Path) -> Callable[[Mapping[str, Corpus]], Mapping[str, Scorecard]]:
    """A function that scores a mixture's corpora and keeps the scorecards in `folder`, to be found by the next run."""

    def score(corpora: Mapping[str, Corpus]) -> Mapping[str, Scorecard]:
        if not corpora:
            return {}
        index, ledger = folder / "index.json", folder / "ledger.sqlite"
        judge = open_judge(settings, list(corpora.values()), ledger)
        key = content_hash(
            {name: score_key(corpus.fingerprint(), judge, settings.agent) for name, corpus in corpora.items()}
        )
        if index.exists() and read_json(index) == {"key": key, "names": sorted(corpora)}:
            log.info("scored before: %s (judge: %s)", ", ".join(corpora), judge.label)
            return {name: Scorecard.load(folder / f"{name}.json") for name in corpora}
        log.info(describe_price(settings, list(corpora.values())))
        folder.mkdir(parents=True, exist_ok=True)
        log.info("scoring %s (judge: %s)", ", ".join(corpora), judge.label)
        paths = {name: folder / f"{name}.groupings.jsonl" for name in corpora}
        cards = score_corpora(corpora, judge, settings.agent, groupings_paths=paths)
        for name, card in cards.items():
            card.save(folder / f"{name}.json")
        write_json(index, {"key": key, "names": sorted(corpora)})
        return cards

    return score

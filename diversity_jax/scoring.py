"""Scoring corpora by the judge that a configuration names; what was scored once is not paid for again."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import logging
from pathlib import Path
from typing import Protocol

from diversity_jax.cluster_agent import AgentConfig, Judge, LlmJudge, OfflineJudge, Scorecard, plan_calls, score_corpora, score_key
from diversity_jax.corpus import Corpus
from diversity_jax.llm import BudgetConfig, Engine, EngineConfig, forecast, price_of
from diversity_jax.llm.providers import parse_model
from diversity_jax.storage import content_hash, read_json, write_json

log = logging.getLogger(__name__)


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


def describe_price(settings: JudgeSettings, corpora: Sequence[Corpus]) -> str:
    """What scoring will use up, before the first call: calls, tokens, dollars."""
    if settings.judge == "offline":
        return "judge: offline (no LLM), nothing to pay"
    price = price_of(*parse_model(settings.judge), settings.judge_base_url, settings.budget)
    return f"forecast: {forecast(plan_calls(corpora, settings.agent), price, settings.budget)} (judge: {settings.judge})"


def score_named(
    settings: JudgeSettings, corpora: Mapping[str, Corpus], ledger: Path, groupings: Mapping[str, Path]
) -> dict[str, Scorecard]:
    """Scores corpora under one ruler, and writes every partition to the files in `groupings`."""
    judge = open_judge(settings, list(corpora.values()), ledger)
    log.info("scoring %s (judge: %s)", ", ".join(corpora), judge.label)
    return score_corpora(corpora, judge, settings.agent, groupings_paths=groupings)


def scorer(settings: JudgeSettings, folder: Path) -> Callable[[Mapping[str, Corpus]], Mapping[str, Scorecard]]:
    """A function that scores a mixture's corpora and keeps the scorecards in `folder`, to be found by the next run."""

    def score(corpora: Mapping[str, Corpus]) -> Mapping[str, Scorecard]:
        if not corpora:
            return {}
        index, ledger = folder / "index.json", folder / "ledger.sqlite"
        judge = open_judge(settings, list(corpora.values()), ledger)
        key = content_hash({name: score_key(corpus.fingerprint(), judge, settings.agent) for name, corpus in corpora.items()})
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

"""What a scoring can be asked besides: which of two corpora is more diverse, how far draws spread, whether the judge
drifts with K.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
import logging
from pathlib import Path
from typing import Any

from diversity_jax.cluster_agent import (
    AgentConfig,
    Comparison,
    Draws,
    Judge,
    Scorecard,
    drift,
    score_corpora,
    score_draws,
    score_until_decided,
)
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import write_json
from diversity_jax.corpus import Corpus
from diversity_jax.scoring.config import ScoreConfig
from diversity_jax.scoring.run import open_judge

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DriftCheck:
    """One corpus at two K: the scorecard at the other K, and the comparison, smaller K first."""

    card: Scorecard
    comparison: Comparison
    sizes: tuple[int, int]

    def to_json(self) -> dict[str, Any]:
        """Both K, whether the judge drifts, and the comparison."""
        return {
            "samples_per_grouping": list(self.sizes),
            "drifts": self.comparison.decided,
            "comparison": self.comparison.to_json(),
        }


@dataclass(frozen=True, kw_only=True)
class Checks:
    """What was asked for, by the name of the corpus."""

    draws: Mapping[str, Draws] = field(default_factory=dict)
    drift: Mapping[str, DriftCheck] = field(default_factory=dict)

    def save(self, folders: Mapping[str, Path]) -> None:
        """Writes draws.json, drift.json and the scorecard at the other K to each corpus's folder."""
        for name, draws in self.draws.items():
            write_json(folders[name] / "draws.json", draws.to_json())
        for name, one in self.drift.items():
            write_json(folders[name] / "drift.json", one.to_json())
            one.card.save(folders[name] / "drift" / "scorecard.json")


def score_to_decision(
    config: ScoreConfig, corpora: Mapping[str, Corpus], ledger: Path, groupings: Mapping[str, Path]
) -> tuple[dict[str, Scorecard], Comparison]:
    """Scores two corpora until it is decided which is the more diverse.

    Raises:
      InputError: not two corpora.
    """
    if len(corpora) != 2:
        raise InputError(
            f"config.until_decided: compares two corpora and {len(corpora)} are named; give two, joined by a comma"
        )
    judge = open_judge(config, list(corpora.values()), ledger)
    log.info("scoring %s until decided (judge: %s)", " and ".join(corpora), judge.label)
    paths = [groupings[name] for name in corpora]
    found, *cards = score_until_decided(
        *corpora.values(), judge, config.agent, alpha=config.alpha, looks=config.looks, groupings_paths=paths
    )
    return dict(zip(corpora, cards, strict=True)), found


def run_checks(
    config: ScoreConfig, corpora: Mapping[str, Corpus], cards: Mapping[str, Scorecard], ledger: Path
) -> Checks:
    """Scores the draws and the other K that a configuration asks for; every answer is kept in the ledger as usual."""
    draws = {}
    for name, corpus in corpora.items() if config.draws else ():
        judge = open_judge(config, list(corpora.values()), ledger)
        log.info("%s: scoring %d draws of %s documents", name, config.draws, f"{config.draw_size:,}")
        draws[name] = score_draws(corpus, judge, config.agent, draws=config.draws, draw_size=config.draw_size)
    drifts = _drifts(config, corpora, cards, ledger) if config.drift_samples_per_grouping else {}
    checks = Checks(draws=draws, drift=drifts)
    for line in lines(checks):
        log.info("%s", line)
    return checks


def _drifts(
    config: ScoreConfig, corpora: Mapping[str, Corpus], cards: Mapping[str, Scorecard], ledger: Path
) -> dict[str, DriftCheck]:
    judge: Judge = open_judge(config, list(corpora.values()), ledger)
    other = config.drift_samples_per_grouping
    log.info("scoring %s at K = %d", ", ".join(corpora), other)
    settings: AgentConfig = replace(config.agent, samples_per_grouping=other)
    found = {}
    for name, card in score_corpora(corpora, judge, settings).items():
        small, large = sorted((cards[name], card), key=lambda one: one.series.samples_per_grouping)
        sizes = (small.series.samples_per_grouping, large.series.samples_per_grouping)
        found[name] = DriftCheck(card=card, comparison=drift(small, large, alpha=config.alpha), sizes=sizes)
    return found


def lines(checks: Checks) -> list[str]:
    """What the checks say, one line each."""
    said = []
    for name, draws in checks.draws.items():
        one = draws.effective_clusters
        said.append(
            f"{name}: {one.value:.4g} effective clusters [{one.low:.4g}, {one.high:.4g}] over {len(draws.scorecards)} "
            "draws"
        )
    for name, one in checks.drift.items():
        small, large = one.sizes
        verdict = f"reads otherwise: keep K = {small}" if one.comparison.decided else "no drift seen"
        said.append(f"{name}: K = {small} against K = {large}: ratio {one.comparison.ratio_text}, {verdict}")
    return said

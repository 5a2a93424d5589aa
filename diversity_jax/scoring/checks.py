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
from diversity_jax.core import formats
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import write_json
from diversity_jax.corpus import Corpus
from diversity_jax.report.html import Html, columns, element, joined, table
from diversity_jax.report.page import Section, named
from diversity_jax.report.style import Palette
from diversity_jax.scoring.config import ScoreConfig
from diversity_jax.scoring.run import open_judge

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Drift:
    """One corpus at two K: the scorecard at the other K, and the comparison, smaller K first."""

    card: Scorecard
    found: Comparison
    sizes: tuple[int, int]

    def to_json(self) -> dict[str, Any]:
        """Both K, whether the judge drifts, and the comparison."""
        return {
            "samples_per_grouping": list(self.sizes),
            "drifts": self.found.decided,
            "comparison": self.found.to_json(),
        }


@dataclass(frozen=True, kw_only=True)
class Checks:
    """What was asked for, by the name of the corpus."""

    draws: Mapping[str, Draws] = field(default_factory=dict)
    drift: Mapping[str, Drift] = field(default_factory=dict)

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
) -> dict[str, Drift]:
    judge: Judge = open_judge(config, list(corpora.values()), ledger)
    other = config.drift_samples_per_grouping
    log.info("scoring %s at K = %d", ", ".join(corpora), other)
    settings: AgentConfig = replace(config.agent, samples_per_grouping=other)
    found = {}
    for name, card in score_corpora(corpora, judge, settings).items():
        small, large = sorted((cards[name], card), key=lambda one: one.series.samples_per_grouping)
        sizes = (small.series.samples_per_grouping, large.series.samples_per_grouping)
        found[name] = Drift(card=card, found=drift(small, large, alpha=config.alpha), sizes=sizes)
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
        verdict = f"reads otherwise: keep K = {small}" if one.found.decided else "no drift seen"
        said.append(f"{name}: K = {small} against K = {large}: ratio {_ratio(one.found)}, {verdict}")
    return said


def _ratio(found: Comparison) -> str:
    low = "0" if found.low is None else formats.significant(found.low)
    high = "no upper bound" if found.high is None else formats.significant(found.high)
    return f"{formats.significant(found.ratio)} [{low}, {high}]"


def sections(checks: Checks, palette: Palette) -> list[Section]:
    """The checks as sections of a page; none for what was not asked."""
    return [
        *([_draws_section(checks.draws, palette)] if checks.draws else []),
        *([_drift_section(checks, palette)] if checks.drift else []),
    ]


def _draws_section(draws: Mapping[str, Draws], palette: Palette) -> Section:
    rows: list[tuple[Html | str, ...]] = []
    for name, one in draws.items():
        values = ", ".join(formats.significant(card.effective_clusters.value) for card in one.scorecards)
        figures = (_interval(one.effective_clusters), _interval(one.cluster_score))
        rows.append((named(name, palette), formats.count(len(one.scorecards)), *figures, values))
    titles = columns("Corpus", "#Draws", "#Effective clusters", "#Paper's C / S", "~Effective clusters of each draw")
    intro = (
        "Each draw has documents, criteria and groupings of its own. The interval is that of the mean over draws, "
        "by their spread alone."
    )
    return Section(
        anchor="draws", title="Over independent draws", body=joined(element("p", intro), table(titles, rows))
    )


def _interval(estimate: Any) -> str:
    return (
        f"{formats.significant(estimate.value)} [{formats.significant(estimate.low)}, "
        f"{formats.significant(estimate.high)}]"
    )


def _drift_section(checks: Checks, palette: Palette) -> Section:
    rows = []
    for name, one in checks.drift.items():
        small, large = one.sizes
        verdict = f"drifts: keep K = {small}" if one.found.decided else "no drift seen"
        rows.append((named(name, palette), formats.count(small), formats.count(large), _ratio(one.found), verdict))
    titles = columns("Corpus", "#Smaller K", "#Larger K", "#Ratio of effective clusters", "Verdict")
    intro = (
        "Effective clusters do not depend on K, the samples in a grouping. A judge that reads the same corpus "
        "otherwise when it is shown "
        "more at once has begun to lump or to split; the largest K without drift is the cheapest one to trust."
    )
    return Section(
        anchor="drift", title="Does the judge drift with K", body=joined(element("p", intro), table(titles, rows))
    )

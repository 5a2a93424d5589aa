"""Score how diverse corpora are, under one judge and one set of criteria.

    python -m diversity_jax.score --config configs/score.py --config.corpus=texts.jsonl.gz
    python -m diversity_jax.score --config configs/score.py --config.corpus=a.jsonl,b.jsonl \\
        --config.judge=gemini:gemini-2.5-flash --config.budget.max_dollars=5 --config.dry_run=True
    python -m diversity_jax.score --config configs/metrics.py --config.corpus=a.jsonl,b.jsonl      # baseline metrics, no judge

Writes scorecard.json, groupings.jsonl, forecast.json and report.html to output_dir; with several corpora, the first two
in a folder each,
and comparison.json. More can be asked: `--config.pilot_groupings=30` (a forecast by what this judge uses),
  `--config.until_decided=True`
(of two corpora, stop when it is decided which is more diverse), `--config.draws=10` (independent draws), and
`--config.drift_samples_per_grouping=20` (does the judge read otherwise at that K); see `ScoreConfig`.
"""

from collections.abc import Mapping
import contextlib
import importlib
import logging
from pathlib import Path
import sys
import threading
from typing import TYPE_CHECKING

from diversity_jax.core import cli, run_info
from diversity_jax.core.files import write_json
from diversity_jax.corpus import Corpus, open_corpus
from diversity_jax.scoring.config import ScoreConfig, named_corpora

if TYPE_CHECKING:
    from diversity_jax.cluster_agent import Comparison, Scorecard
    from diversity_jax.metrics import MetricsCard
    from diversity_jax.scoring.run import Outlook

log = logging.getLogger(__name__)
_FIRST_REQUESTS_SECONDS = 0.3  # until they are on their way


def main(config: ScoreConfig) -> None:
    """Forecasts, scores, and writes the page; prints its path last."""
    corpora = open_corpora(config)
    output_dir = Path(config.output_dir)
    folders = {name: output_dir / name if len(corpora) > 1 else output_dir for name in corpora}
    if config.judge == "none":
        return None if config.dry_run else _measure_alone(config, corpora, folders)
    from diversity_jax.scoring.run import Outlook

    outlook = Outlook(config, list(corpora.values()))
    log.info("%s", outlook)
    if config.pilot_groupings and outlook.planned:
        outlook.fly_pilot(config.pilot_groupings, output_dir / "ledger.sqlite")
        log.info("%s", outlook)
    if config.dry_run:
        return print(outlook)
    return _score(config, corpora, folders, outlook)


def _score(config: ScoreConfig, corpora: Mapping[str, Corpus], folders: Mapping[str, Path], outlook: "Outlook") -> None:
    output_dir = Path(config.output_dir)
    ledger = output_dir / "ledger.sqlite"
    groupings = {name: folder / "groupings.jsonl" for name, folder in folders.items()}
    with _loading_what_comes_last(config):
        cards, found = _cards(config, corpora, ledger, groupings, outlook)
    from diversity_jax.cluster_agent import PairComparison, compare_pairs
    from diversity_jax.report.pages import score as score_page
    from diversity_jax.scoring import checks as score_checks

    if found is None:
        differences = compare_pairs(cards, config.alpha)
    else:
        first, second = cards
        differences = [PairComparison(first=first, second=second, comparison=found)]
    outlook.save(output_dir / "forecast.json", cards.values())
    cards, measured = _measured(config, corpora, folders, cards)
    for name, card in cards.items():
        card.save(folders[name] / "scorecard.json")
        log.info("%s: %s", name, _line(card))
        for warning in card.warnings:
            log.warning("%s: %s", name, warning)
    for difference in differences:
        log.info("%s", difference)
    if differences:
        write_json(output_dir / "comparison.json", [difference.to_json() for difference in differences])
    checks = score_checks.run_checks(config, corpora, cards, ledger)
    checks.save(folders)
    run_info.describe(sys.argv, config).save(output_dir)
    print(score_page.write(output_dir, cards, measured, checks, differences))


def _cards(
    config: ScoreConfig, corpora: Mapping[str, Corpus], ledger: Path, groupings: Mapping[str, Path], outlook: "Outlook"
) -> tuple[Mapping[str, "Scorecard"], "Comparison | None"]:
    """The scorecards, and the comparison that ended the scoring where one was to end it."""
    if config.until_decided:
        from diversity_jax.scoring import checks as score_checks

        return score_checks.score_to_decision(config, corpora, ledger, groupings)
    from diversity_jax.scoring.run import score_named

    return score_named(config, corpora, ledger, groupings, outlook), None


@contextlib.contextmanager
def _loading_what_comes_last(config: ScoreConfig):
    """Imports what the page needs while the judge is asked for criteria and this process only waits."""

    def load():
        for name in ("matplotlib.figure", "matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg"):
            importlib.import_module(name)
        importlib.import_module("diversity_jax.report.pages.score")

    timer = threading.Timer(_FIRST_REQUESTS_SECONDS, load)
    if config.judge != "offline":  # which waits for nobody
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _measured(
    config: ScoreConfig, corpora: Mapping[str, Corpus], folders: Mapping[str, Path], cards: Mapping[str, "Scorecard"]
) -> tuple[Mapping[str, "Scorecard"], Mapping[str, "MetricsCard"]]:
    """The scorecards with the baseline metrics that were asked for in them, and those metrics."""
    if not config.metrics:
        return cards, {}
    from diversity_jax.scoring import baseline_metrics

    measured = baseline_metrics.measure_corpora(config, corpora, folders)
    return baseline_metrics.attach(cards, measured), measured


def _measure_alone(config: ScoreConfig, corpora: Mapping[str, Corpus], folders: Mapping[str, Path]) -> None:
    from diversity_jax.report.pages import metrics as metrics_page
    from diversity_jax.scoring import baseline_metrics

    measured = baseline_metrics.measure_corpora(config, corpora, folders)
    run_info.describe(sys.argv, config).save(config.output_dir)
    print(metrics_page.write(config.output_dir, measured))


def _line(card) -> str:
    score = card.effective_clusters
    high = "no upper bound" if score.high is None else f"{score.high:.4g}"
    line = f"{score.value:.4g} effective clusters [{score.low:.4g}, {high}], {card.groupings} groupings"
    line += f", {card.dropped_groupings} dropped" if card.dropped_groupings else ""
    return f"{line}, cluster score {card.cluster_score.value:.3g}, ${card.cost_usd:.2f} (judge: {card.judge})"


def open_corpora(config: ScoreConfig) -> dict[str, Corpus]:
    """The corpora of a configuration by name.

    Raises:
      InputError: none is named, or one cannot be read.
    """
    return {name: open_corpus(corpus) for name, corpus in named_corpora(config).items()}


if __name__ == "__main__":
    cli.run(main, ScoreConfig, __doc__)

"""Score how diverse corpora are, under one judge and one set of criteria.

    python -m diversity_jax.score --config configs/score.py --config.corpus=texts.jsonl.gz
    python -m diversity_jax.score --config configs/score.py --config.corpus=a.jsonl,b.jsonl \\
        --config.judge=gemini:gemini-2.5-flash --config.budget.max_dollars=5 --config.dry_run=True
    python -m diversity_jax.score --config configs/metrics.py --config.corpus=a.jsonl,b.jsonl      # baseline metrics, no judge

Writes scorecard.json, groupings.jsonl and report.html to output_dir; with several corpora, the first two in a folder each.
"""

import logging
from pathlib import Path
import re
import sys

from diversity_jax import entry_point, run_record
from diversity_jax.corpus import Corpus, CorpusConfig, open_corpus
from diversity_jax.errors import InputError
from diversity_jax.score_config import ScoreConfig

log = logging.getLogger(__name__)


def main(config: ScoreConfig) -> None:
    """Forecasts, scores, and writes the page; prints its path last."""
    from diversity_jax import baseline, score_page
    from diversity_jax.cluster_agent import compare
    from diversity_jax.scoring import describe_price, score_named

    corpora = open_corpora(config)
    if config.judge != "none":
        log.info(describe_price(config, list(corpora.values())))
    if config.dry_run:
        return
    output_dir = Path(config.output_dir)
    folders = {name: output_dir / name if len(corpora) > 1 else output_dir for name in corpora}
    measured = baseline.measure_corpora(config, corpora, folders)
    if config.judge == "none":
        run_record.describe(sys.argv, config).save(output_dir)
        return print(baseline.write_page(output_dir, measured))
    groupings = {name: folder / "groupings.jsonl" for name, folder in folders.items()}
    cards = score_named(config, corpora, output_dir / "ledger.sqlite", groupings)
    cards = baseline.attach(cards, measured)
    for name, card in cards.items():
        card.save(folders[name] / "scorecard.json")
        log.info("%s: %s", name, _line(card))
        for warning in card.warnings:
            log.warning("%s: %s", name, warning)
    names = list(cards)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            log.info("%s against %s: %s", first, second, compare(cards[first], cards[second]))
    run_record.describe(sys.argv, config).save(output_dir)
    print(score_page.write(output_dir, cards, measured))


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
    named = {corpus.name: corpus.corpus for corpus in config.corpora}
    for source in filter(None, (config.corpus or "").split(",")):
        name = _name(source)
        number = 2
        while name in named:
            name, number = f"{_name(source)}_{number}", number + 1
        named[name] = CorpusConfig(source=source.strip(), text_field=config.text_field)
    if not named:
        raise InputError("config.corpus is not set; name a file, such as --config.corpus=texts.jsonl.gz, or several with commas")
    return {name: open_corpus(corpus) for name, corpus in named.items()}


def _name(source: str) -> str:
    """A short name for a source: its file's, without folders and endings."""
    stem = re.split(r"[/\\]", source.strip().rstrip("/"))[-1].split(".")[0]
    return re.sub(r"\W+", "_", stem).strip("_") or "corpus"


if __name__ == "__main__":
    entry_point.run(main, ScoreConfig, __doc__)

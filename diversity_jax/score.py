"""Score how diverse corpora are, under one judge and one set of criteria.

    python -m diversity_jax.score --config configs/score.py --config.corpus=texts.jsonl.gz
    python -m diversity_jax.score --config configs/score.py --config.corpus=a.jsonl,b.jsonl \\
        --config.judge=gemini:gemini-2.5-flash --config.budget.max_dollars=5 --config.dry_run=True
    python -m diversity_jax.score --config configs/metrics.py --config.corpus=a.jsonl,b.jsonl

The last measures baseline metrics without a judge. Writes scorecard.json, groupings.jsonl, forecast.json and
report.html to output_dir; with several corpora the first two in a folder each, and comparison.json. More can be asked:
`--config.pilot_groupings=30` (a forecast by what this judge uses), `--config.until_decided=True` (of two corpora, stop
when it is decided which is more diverse), `--config.draws=10` (independent draws); see `ScoreConfig`.
"""

from pathlib import Path
import sys

from diversity_jax.cluster_agent import NothingUsable
from diversity_jax.core import cli, run_info
from diversity_jax.core.buckets import public_name, writes_to
from diversity_jax.core.errors import InputError
from diversity_jax.scoring.config import ScoreConfig


def _write_unusable(config: ScoreConfig, failure: NothingUsable) -> str:
    """Writes scorecard and page of a scoring that gave no figure; returns where the page is."""
    from diversity_jax.report.pages import judge_verdict

    folder = Path(config.output_dir, failure.folder)
    run_info.describe(sys.argv, config).save(folder)
    failure.score.save(folder / "scorecard.json")
    return public_name(judge_verdict.write_unusable(folder, failure.score))


@writes_to("output_dir")
def main(config: ScoreConfig) -> None:
    """Scores and measures, writes the page, and prints its path last; a dry run prints the forecast alone."""
    from diversity_jax.scoring.run import run_score

    try:
        result = run_score(config)
    except NothingUsable as failure:
        raise InputError(f"{failure}; what was seen and what helps: {_write_unusable(config, failure)}") from None
    if result is None or config.dry_run:
        done = public_name(Path(config.output_dir) / "report.html")
        print(done if result is None else result.forecast or "nothing to forecast")
        return
    run_info.describe(sys.argv, config).save(config.output_dir)
    if result.scorecards:
        from diversity_jax.report.pages import score as page

        page_path = page.write(config.output_dir, result.scorecards, result.metrics, result.checks, result.comparisons)
        print(public_name(page_path))
    else:
        from diversity_jax.report.pages import metrics as metrics_page

        print(public_name(metrics_page.write(config.output_dir, result.metrics)))


if __name__ == "__main__":
    cli.run(main, ScoreConfig, __doc__)

"""A scoring in its folder: what the command `score` does, for the command and for `diversity_jax.score`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from diversity_jax.cluster_agent import NothingUsable
from diversity_jax.core import run_info
from diversity_jax.core.buckets import public_name
from diversity_jax.core.errors import InputError
from diversity_jax.corpus import Corpus
from diversity_jax.scoring.config import ScoreConfig
from diversity_jax.scoring.run import ScoreResult, run_score


def score_folder(
    config: ScoreConfig, command: Sequence[str], corpora: Mapping[str, Corpus] | None = None
) -> tuple[ScoreResult | None, Path]:
    """Scores and measures, and writes all files and the page to `output_dir`; a dry run writes nothing.

    Args:
      command: for the record.
      corpora: that are open already; None: those of the configuration.

    Returns:
      What `run_score` returns, and the path of the page.

    Raises:
      InputError: as `run_score`; where the judge gave nothing usable, the message names the page that says why.
    """
    path = Path(config.output_dir, "report.html")
    try:
        result = run_score(config, corpora)
    except NothingUsable as failure:
        written = _write_unusable(config, failure, command)
        raise InputError(f"{failure}; what was seen and what helps: {written}") from None
    if result is None or config.dry_run:
        return result, path
    run_info.describe(command, config).save(config.output_dir)
    if result.scorecards:
        from diversity_jax.report.pages import score as page

        return result, page.write(
            config.output_dir, result.scorecards, result.metrics, result.checks, result.comparisons
        )
    from diversity_jax.report.pages import metrics as metrics_page

    return result, metrics_page.write(config.output_dir, result.metrics)


def _write_unusable(config: ScoreConfig, failure: NothingUsable, command: Sequence[str]) -> str:
    """Writes scorecard and page of a scoring that gave no figure; returns where the page is."""
    from diversity_jax.report.pages import judge_verdict

    folder = Path(config.output_dir, failure.folder)
    run_info.describe(command, config).save(folder)
    failure.score.save(folder / "scorecard.json")
    return public_name(judge_verdict.write_unusable(folder, failure.score))

"""Score how diverse corpora are, under one judge and one set of criteria.

    python -m diversity_jax.score --config configs/score.py --config.corpus=texts.jsonl.gz
    python -m diversity_jax.score --config configs/score.py --config.corpus=a.jsonl,b.jsonl \\
        --config.judge=gemini:gemini-2.5-flash --config.budget.max_dollars=5 --config.dry_run=True
    python -m diversity_jax.score --config configs/metrics.py --config.corpus=a.jsonl,b.jsonl

The last measures baseline metrics without a judge. Writes scorecard.json, groupings.jsonl, forecast.json and
report.html to output_dir; for several corpora the first two in a folder each, and comparison.json. Further options:
`--config.pilot_groupings=30` (a forecast from what this judge uses), `--config.until_decided=True` (stop when it is
decided which of two corpora is more diverse), `--config.draws=10` (independent draws); see `ScoreConfig`.
"""

import sys
from types import ModuleType
from typing import Any

from diversity_jax.core import cli
from diversity_jax.core.buckets import public_name, writes_to
from diversity_jax.scoring.config import ScoreConfig


@writes_to("output_dir")
def main(config: ScoreConfig) -> None:
    """Scores and measures, writes the page, and prints its path last; a dry run prints the forecast only."""
    from diversity_jax.api.scoring import score_folder

    result, page = score_folder(config, sys.argv)
    print((result.forecast or "nothing to forecast") if result and config.dry_run else public_name(page))


class _Callable(ModuleType):
    """This module, callable as the function `score`, since `diversity_jax.score` names both."""

    def __call__(self, *data: Any, **settings: Any) -> Any:
        """`diversity_jax.api.scoring.score`: how diverse a corpus is."""
        from diversity_jax.api.scoring import score

        return score(*data, **settings)


if __name__ == "__main__":
    cli.run(main, ScoreConfig, __doc__)
else:
    sys.modules[__name__].__class__ = _Callable

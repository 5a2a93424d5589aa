"""Run a study: a grid of data recipes through generate, score, mix, train, fine-tune and evaluate, and statistics of
their outcomes.

    python -m diversity_jax.study --config configs/studies/tiny.py
    python -m diversity_jax.study --config configs/studies/tiny.py --config.dry_run=True

The same command resumes a study; started on several machines or in several terminals at once it shares the work.
Finished steps are not run again. Writes analysis.json, report.html and figures/ to output_dir, and every step with its
log to output_dir/steps.
"""

from diversity_jax.core import cli
from diversity_jax.study.config import StudyConfig


def main(study: StudyConfig) -> None:
    """Runs the study; prints the page's path last."""
    from diversity_jax.study import run

    run.run(study)


if __name__ == "__main__":
    cli.run(main, StudyConfig, __doc__)

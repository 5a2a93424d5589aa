"""Examine a judge: on small corpora of known diversity, and by the effect of hostile documents on its figures.

    python -m diversity_jax.audit --config configs/score.py --config.judge=openai:gpt-5-mini
    python -m diversity_jax.audit --config configs/score.py --config.corpus=texts.jsonl.gz --config.agent.groupings=300

The exam takes a few hundred calls, once for each judge, wording and `agent.samples_per_grouping`; its result is cached
in `exam_dir`. If a corpus is named, it is scored twice: as it is, and with injections planted in a share
`hostile_share` of its documents. `--config.dry_run=True` prints the forecast only. Writes audit.json and report.html to
output_dir, or to its folder `audit` if it holds the page of a scoring.
"""

from pathlib import Path
import sys

from diversity_jax.core import cli, run_info
from diversity_jax.core.buckets import public_name, writes_to
from diversity_jax.scoring.config import ScoreConfig


@writes_to("output_dir")
def main(config: ScoreConfig) -> None:
    """Audits the judge of the configuration; prints the table of the exam, and last the page's path."""
    from diversity_jax.scoring.audit import run_audit

    result = run_audit(config)
    if result is None:
        return
    from diversity_jax.report.pages import audit as page

    output_dir = Path(config.output_dir)
    # The page of a scoring in this folder is not overwritten.
    scored = any(next(output_dir.glob(pattern), None) for pattern in ("scorecard.json", "*/scorecard.json"))
    folder = output_dir / "audit" if scored else output_dir
    run_info.describe(sys.argv, config).save(folder)
    path = page.write(folder, result)
    print(result.exam)
    for name, injection in result.injections.items():
        print(f"{name}: {injection}")
    print(public_name(path))


if __name__ == "__main__":
    cli.run(main, ScoreConfig, __doc__)

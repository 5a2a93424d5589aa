r"""The baseline metrics of corpora, without a judge: lexical and embedding metrics with intervals, at full and equal
length.

    python -m diversity_jax.score --config configs/metrics.py --config.corpus=a.jsonl.gz,b.jsonl.gz
    python -m diversity_jax.score --config configs/metrics.py --config.corpus=a.jsonl.gz \
        --config.metrics=self_repetition,mtld,vendi
    python -m diversity_jax.score --config configs/metrics.py --config.corpus=a.jsonl.gz \
        --config.baseline.model=runs/quickstart

Results are written to runs/metrics; one that holds those of other text is refused: `--config.output_dir` names another.
Nothing is downloaded, and no service is paid. Two corpora of 400 documents of 280 words take 25 seconds on 2 cores.
With two corpora the page shows which metrics differ significantly; with five or more, how far metrics agree.
`configs/score.py` with --config.metrics=all measures the same in addition to scoring by a judge.
"""

from diversity_jax.scoring.config import ScoreConfig


def get_config() -> ScoreConfig:
    return ScoreConfig(output_dir="runs/metrics", judge="none", metrics="all")

r"""How diverse a corpus is, by the six stages of the cluster agent.

    python -m diversity_jax.score --config configs/score.py --config.corpus=texts.jsonl.gz
    python -m diversity_jax.score --config configs/score.py --config.corpus=texts.jsonl.gz \
        --config.judge=gemini:gemini-2.5-flash

The judge is `offline (no LLM)` unless another is named: a baseline that costs nothing, not the paper's judge. With an
LLM, 1,000 groupings of 10 samples are about 2,100 calls; add --config.dry_run=True to see tokens and dollars first. The
interval holds +-5 % up to about 30 effective clusters at this size; more groupings, or 20 samples a grouping, hold
more.
"""

from diversity_jax.cluster_agent import AgentConfig
from diversity_jax.scoring.config import ScoreConfig


def get_config() -> ScoreConfig:
    return ScoreConfig(
        output_dir="runs/score", agent=AgentConfig(groupings=1000, samples_per_grouping=10, criteria_sets=5)
    )

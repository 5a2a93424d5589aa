r"""Measures how diverse a corpus is by the cluster agent.

    python -m diversity_jax.score --config configs/score.py --config.corpus=texts.jsonl.gz
    python -m diversity_jax.score --config configs/score.py --config.corpus=texts.jsonl.gz \
        --config.judge=gemini:gemini-2.5-flash --config.agent.groupings=300 --config.dry_run=True

The default judge is `offline (no LLM)`, a baseline that costs nothing, not the paper's judge. With a language model the
run chooses the number of samples shown at once: 40, unless the judge groups 40 differently from 20. 300 groupings of 40
give intervals of +-5 % up to about 150 effective clusters, in about 600 calls. The dry run prints tokens and dollars; a
run that costs money needs a limit such as --config.budget.max_dollars=5.
"""

from diversity_jax.cluster_agent import AgentConfig
from diversity_jax.scoring.config import ScoreConfig


def get_config() -> ScoreConfig:
    return ScoreConfig(
        output_dir="runs/score", agent=AgentConfig(groupings=1000, samples_per_grouping=0, criteria_sets=5)
    )

r"""How diverse a corpus is, by the six stages of the cluster agent.

    python -m diversity_jax.score --config configs/score.py --config.corpus=texts.jsonl.gz
    python -m diversity_jax.score --config configs/score.py --config.corpus=texts.jsonl.gz \
        --config.judge=gemini:gemini-2.5-flash --config.agent.groupings=300 --config.dry_run=True

The judge is `offline (no LLM)` unless another is named: a baseline that costs nothing, not the paper's judge. With an
LLM the run chooses how many samples it shows at once: 40, if the judge reads those like 20. 300 groupings of 40 hold
+-5 % up to about 150 effective clusters, in about 600 calls; the dry run prints tokens and dollars, and the run then
asks for a cap such as --config.budget.max_dollars=5.
"""

from diversity_jax.cluster_agent import AgentConfig
from diversity_jax.scoring.config import ScoreConfig


def get_config() -> ScoreConfig:
    return ScoreConfig(
        output_dir="runs/score", agent=AgentConfig(groupings=1000, samples_per_grouping=0, criteria_sets=5)
    )

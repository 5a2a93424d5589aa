r"""The paper's other ratio, as many synthetic as real tokens, of the same components as
configs/mixtures/paper_4_to_1.py.

    python -m diversity_jax.mixtures.build --config configs/mixtures/paper_1_to_1.py \
        --config.output_dir=/data/paper_1_to_1

Data, judge and hardware: as for 4:1. With --config.mixture.components_dir=/data/components both ratios share prepared
rows, so that the second is neither prepared nor scored again.
Expected: shares 16.7 % Wikipedia, 16.7 % C4, 8.3 % code, 8.3 % mathematics, 50 % synthetic. Not run here at this size.
"""

from configs.mixtures.paper_4_to_1 import mixture
from diversity_jax.cluster_agent import AgentConfig
from diversity_jax.mixtures.config import BuildConfig


def get_config() -> BuildConfig:
    return BuildConfig(
        output_dir="runs/mixtures/paper_1_to_1",
        mixture=mixture("paper_1_to_1", (1, 1)),
        judge="gemini:gemini-2.5-flash",
        agent=AgentConfig(groupings=5000, samples_per_grouping=10),
    )

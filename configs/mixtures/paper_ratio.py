r"""The paper's ratio experiment: one set of 12.9 B synthetic tokens, read as 1, 5, 10, 20, 34 or 50 B, with 34 B real
tokens.

    for b in 1 5 10 20 34 50; do
      python -m diversity_jax.mixtures.build --config configs/mixtures/paper_ratio.py \
          --config.mixture.name=paper_34_to_$b --config.output_dir=/data/paper_34_to_$b \
          --config.mixture.real_to_synthetic="(34, $b)" --config.mixture.train_tokens=$(( (34 + b) * 1000000000 ))
    done

Data, judge and hardware: as configs/mixtures/paper_4_to_1.py. All six mixtures share one set of prepared components.
Expected: the paper's accuracy rises up to about 20 B and falls beyond 34 B, where the text is read 2.6 to 3.9 times.
Four epochs are allowed, so that all shares asked for are granted; --config.mixture.components[4].policy.repeat_limit=2
would limit 34 and 50 B to 25.8 B and give the rest to real text. Not run at this size; the shares are tested on small
components.
"""

from configs.mixtures.paper_4_to_1 import mixture
from diversity_jax.cluster_agent import AgentConfig
from diversity_jax.mixtures.config import BuildConfig, GatePolicy

SYNTHETIC_B = 20


def get_config() -> BuildConfig:
    policy = GatePolicy(min_ratio_to={"real": 0.25}, on_fail="reject", repeat_limit=4.0, freed_share="all")
    return BuildConfig(
        output_dir=f"runs/mixtures/paper_34_to_{SYNTHETIC_B}",
        mixture=mixture(
            f"paper_34_to_{SYNTHETIC_B}",
            (34, SYNTHETIC_B),
            policy,
            train_tokens=(34 + SYNTHETIC_B) * 10**9,
            components_dir="runs/mixtures/paper_components",
        ),
        judge="gemini:gemini-2.5-flash",
        agent=AgentConfig(groupings=5000, samples_per_grouping=10),
    )

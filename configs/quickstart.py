"""Scores, mixes and trains on real text of this machine and two synthetic components, one of them redundant.

    scripts/quickstart

That sets up .venv, writes the synthetic text by configs/quickstart_text.py, and runs
`python -m diversity_jax.train --config configs/quickstart.py`.

Hardware: any machine with 2 cores and 3 GB of memory; no accelerator, no network, no LLM.
"""

from diversity_jax.cluster_agent import AgentConfig
from diversity_jax.corpus import CorpusConfig
from diversity_jax.mixtures.config import Component, GatePolicy, MixtureConfig
from diversity_jax.model import LLAMA
from diversity_jax.training.config import OptimizerConfig, TrainConfig
from diversity_jax.training.run import Config

OUTPUT = "runs/quickstart"
GATE = GatePolicy(min_ratio_to={"real": 0.25}, on_fail="reject")


def get_config() -> Config:
    return Config(
        output_dir=OUTPUT,
        mixture=MixtureConfig(
            name="quickstart",
            components=(
                Component(
                    name="prose",
                    kind="real",
                    corpus=CorpusConfig(source="installed_docs:prose", max_documents=4000),
                    share=3,
                ),
                Component(
                    name="code",
                    kind="real",
                    corpus=CorpusConfig(source="installed_docs:code", max_documents=2000),
                    share=1,
                ),
                Component(
                    name="many_topics", kind="synthetic", corpus=f"{OUTPUT}/text/many_topics.jsonl.gz", policy=GATE
                ),
                Component(
                    name="few_topics", kind="synthetic", corpus=f"{OUTPUT}/text/few_topics.jsonl.gz", policy=GATE
                ),
            ),
            real_to_synthetic=(1, 1),
            vocabulary="bytes",
            sequence_length=256,
            validation_share=0.02,
        ),
        agent=AgentConfig(groupings=2000, samples_per_grouping=10),
        model=LLAMA["llama_tiny"](),
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=30),
        train=TrainConfig(
            steps=300,
            batch_size=16,
            log_every=10,
            eval_every=100,
            eval_batches=4,
            sample_every=100,
            sample_prompts=("Return the ", "def ", ""),
            checkpoint_every=100,
        ),
        register=True,
    )

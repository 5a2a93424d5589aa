"""The quickstart's model, fine-tuned on instructions in the Alpaca form: the main job's last step, small.

    python -m diversity_jax.train --config configs/sft_tiny.py --config.mixture.components[0].corpus.source=alpaca.jsonl
    python -m diversity_jax.generate_text --config configs/generate_text.py --config.model.checkpoint=runs/sft_tiny \\
        --config.chat=True --config.prompt="Name three colours."

Needs runs/quickstart (scripts/quickstart) or any model as train.init_from, and a JSON-lines file of instruction data: Alpaca fields,
messages, or inputs and targets, told apart by themselves.
Hardware: any machine with 2 cores. Result: docs/evaluation.md has the figures of a shorter run.
"""

from diversity_jax.config import Config
from diversity_jax.corpus import CorpusConfig
from diversity_jax.mixtures.component import Component, GatePolicy, MixtureConfig
from diversity_jax.mixtures.preparation import Chat
from diversity_jax.model import LLAMA
from diversity_jax.training.optimizer import OptimizerConfig
from diversity_jax.training.settings import TrainConfig


def get_config() -> Config:
    return Config(
        output_dir="runs/sft_tiny",
        mixture=MixtureConfig(
            name="sft_tiny",
            components=(
                Component(
                    name="alpaca",
                    kind="synthetic",
                    corpus=CorpusConfig(source="data/alpaca.jsonl", conversations="auto"),
                    policy=GatePolicy(ungated=True),
                ),
            ),
            vocabulary="bytes",
            sequence_length=2048,
            validation_share=0.05,
            chat=Chat(),
        ),
        model=LLAMA["llama_tiny"](vocab_size=384, max_length=2048),
        optimizer=OptimizerConfig(learning_rate=1e-3, weight_decay=0.0, warmup_steps=10),
        train=TrainConfig(
            epochs=1,
            batch_size=4,
            init_from="runs/quickstart",
            log_every=10,
            eval_every=50,
            eval_batches=2,
            sample_prompts=("### Instruction:\nName three colours.\n\n### Response:\n",),
            checkpoint_every=100,
        ),
    )

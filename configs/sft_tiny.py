r"""Fine-tunes a tiny model on instructions in the Alpaca form: the paper's last step, small enough for two cores.

    python -m diversity_jax.train --config configs/sft_tiny.py --config.mixture.components[0].corpus.source=alpaca.jsonl
    python -m diversity_jax.generate_text --config configs/generate_text.py --config.model.checkpoint=runs/sft_tiny \
        --config.chat=True --config.prompt="Name three colours."

Needs runs/llama_tiny (two commands in configs/llama_tiny.py), and a JSON-lines file of instruction data with Alpaca
fields, messages, or inputs and targets; the form is recognised. From the quickstart's model over bytes:
--config.train.init_from=runs/quickstart --config.mixture.vocabulary=bytes --config.mixture.sequence_length=2048
--config.model.max_length=2048 --config.model.vocab_size=384.
Low-rank adapters only: --config.train.lora.rank=8 --config.optimizer.learning_rate=3e-3.
Hardware: any machine with 2 cores; 18 minutes on cores shared with other programs. Result: after an epoch of 3,500
examples the loss on held-out answers is 3.67 nats a token (5.24 before), and sampled answers end as often as the
data's; two of three greedy ones repeat themselves. docs/evaluation.md has the table.
"""

from diversity_jax.corpus import CorpusConfig
from diversity_jax.mixtures.config import Component, GatePolicy, MixtureConfig
from diversity_jax.model import LLAMA
from diversity_jax.prepare.config import Chat
from diversity_jax.training.config import OptimizerConfig, TrainConfig
from diversity_jax.training.run import Config


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
            vocabulary="runs/tokenizer/tiny.model",
            sequence_length=1024,
            validation_share=0.05,
            chat=Chat(),
        ),
        model=LLAMA["llama_tiny"](vocab_size=2048, max_length=1024),
        optimizer=OptimizerConfig(learning_rate=1e-3, weight_decay=0.0, warmup_steps=20),
        train=TrainConfig(
            epochs=1,
            batch_size=4,
            init_from="runs/llama_tiny",
            log_every=20,
            eval_every=60,
            eval_batches=10,
            sample_prompts=("### Instruction:\nName three colours.\n\n### Response:\n",),
            checkpoint_every=200,
        ),
    )

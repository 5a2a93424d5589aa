r"""A model of 1.1 million parameters, trained on English prose of this machine, as a start for fine-tuning.

    python -m diversity_jax.train_tokenizer --config configs/tokenizer.py --config.vocab_size=2048 \
        --config.output=runs/tokenizer/tiny.model
    python -m diversity_jax.train --config configs/llama_tiny.py

Hardware: any machine with 2 cores and 3 GB of memory; no accelerator, no network, no data. Other text:
`--config.mixture.components[0].corpus.source=FILE`.
Result: held-out loss 7.65 to 4.59 nats a token at step 250 of 500, after 7 minutes on two busy cores.
"""

from diversity_jax.corpus import CorpusConfig
from diversity_jax.mixtures.config import Component, MixtureConfig
from diversity_jax.model import LLAMA
from diversity_jax.training.config import OptimizerConfig, TrainConfig
from diversity_jax.training.run import Config


def get_config() -> Config:
    return Config(
        output_dir="runs/llama_tiny",
        mixture=MixtureConfig(
            name="llama_tiny",
            components=(
                Component(name="prose", kind="real", corpus=CorpusConfig(source="installed_docs:prose"), share=1),
            ),
            vocabulary="runs/tokenizer/tiny.model",
            sequence_length=256,
            validation_share=0.02,
        ),
        model=LLAMA["llama_tiny"](vocab_size=2048, max_length=1024),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=50),
        train=TrainConfig(
            steps=500,
            batch_size=16,
            log_every=20,
            eval_every=250,
            eval_batches=4,
            sample_prompts=("Return the ", "The "),
            checkpoint_every=250,
        ),
    )

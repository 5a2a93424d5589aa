r"""Fine-tuning of a real instruct model: SmolLM2-135M-Instruct, in its own chat template, loss on answers alone.

    python -m diversity_jax.train --config configs/sft_smollm2.py \
        --config.mixture.components[0].corpus.source=alpaca.jsonl
    python -m diversity_jax.model.convert gguf runs/sft_smollm2 sft.gguf
    python -m diversity_jax.model.convert export runs/sft_smollm2 sft_hf

Needs runs/smollm2 (the first three commands in configs/continue_smollm2.py), and a JSON-lines file of instruction data
with Alpaca fields, messages, or inputs and targets; the form is recognised. The exports can be chatted with in
llama.cpp and transformers. Low-rank adapters are trained; to train all parameters, with twice the memory and time:
--config.train.lora.rank=0 --config.optimizer.learning_rate=5e-5.
Hardware: any machine with 2 cores and 6 GB of memory. Times and losses: docs/real_models.md.
"""

from configs.continue_smollm2 import START, model
from diversity_jax.corpus import CorpusConfig
from diversity_jax.mixtures.config import Component, GatePolicy, MixtureConfig
from diversity_jax.model.config import LoraConfig
from diversity_jax.prepare.config import Chat
from diversity_jax.training.config import OptimizerConfig, TrainConfig
from diversity_jax.training.run import Config


def get_config() -> Config:
    return Config(
        output_dir="runs/sft_smollm2",
        mixture=MixtureConfig(
            name="sft_smollm2",
            components=(
                Component(
                    name="instructions",
                    kind="synthetic",
                    corpus=CorpusConfig(source="data/alpaca.jsonl", conversations="auto"),
                    policy=GatePolicy(ungated=True),
                ),
            ),
            vocabulary=START,
            sequence_length=512,
            validation_share=0.05,
            chat=Chat(template="tokenizer"),
        ),
        model=model(),
        optimizer=OptimizerConfig(learning_rate=5e-4, weight_decay=0.0, warmup_steps=10),
        train=TrainConfig(
            steps=100,
            batch_size=1,
            init_from=START,
            lora=LoraConfig(rank=16),
            log_every=10,
            eval_batches=20,
        ),
    )

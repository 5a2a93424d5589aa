"""A mixture with one component of every kind: taken, down-weighted, rejected, ungated conversations."""

from dataclasses import replace

from configs.mixtures import small


def get_config():
    base = small.get_config()
    real, gated = base.mixture.components[0], base.mixture.components[2]

    def component(like, name, share=1.0, **policy):
        source = f"text/{name}.jsonl.gz"
        corpus = replace(like.corpus, source=source, max_documents=None)
        return replace(like, name=name, corpus=corpus, share=share, policy=replace(like.policy, **policy))

    talk = component(real, "talk", share=1.0, ungated=True)
    talk = replace(talk, corpus=replace(talk.corpus, source="text/talk.jsonl", conversations="auto"))
    components = (
        component(real, "web", share=3.0),
        talk,
        component(gated, "varied", min_ratio_to={"real": 0.25}, freed_share="all"),
        component(gated, "lean", min_ratio_to={"web": 0.6}, on_fail="downweight", freed_share="all"),
        component(gated, "dull", min_ratio_to={"real": 0.25}, on_fail="reject", freed_share="all"),
    )
    mixture = replace(
        base.mixture,
        name="earlier",
        components=components,
        real_to_synthetic=(2, 1),
        sequence_length=64,
        validation_share=0.1,
        hygiene=replace(base.mixture.hygiene, exact_duplicates=True),
        processes=1,
    )
    agent = replace(base.agent, groupings=80, samples_per_grouping=8)
    return replace(base, output_dir="mixture", mixture=mixture, agent=agent, grammar=(), register=False)

"""A mixture whose real text is the mixture in `mixture`, in that mixture's own shares."""

from dataclasses import replace

from configs.mixtures import small


def get_config():
    base = small.get_config()
    real, gated = base.mixture.components[0], base.mixture.components[2]
    inner = replace(real, name="inner", corpus=replace(real.corpus, source="mixture:mixture", max_documents=None))
    made = replace(gated, name="made", corpus=replace(gated.corpus, source="text/varied.jsonl.gz"))
    mixture = replace(
        base.mixture,
        name="nested",
        components=(replace(inner, share=1.0), made),
        sequence_length=64,
        validation_share=0.1,
        processes=1,
    )
    agent = replace(base.agent, groupings=60, samples_per_grouping=6)
    return replace(base, output_dir="nested", mixture=mixture, agent=agent, grammar=(), register=False)

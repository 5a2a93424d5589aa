"""A small mixture: English and Python of the installed packages, and text by a grammar that the gate judges.

    python -m diversity_jax.mixtures.build --config configs/mixtures/small.py
    python -m diversity_jax.mixtures.show runs/mixtures/small

Hardware: any machine with 2 cores and 3 GB of memory; no accelerator, no network, no LLM. About a minute, once the
installed packages have been read.
Expected: `few_topics` is rejected (far below a quarter of the real text's effective clusters), and `many_topics` gets
its share.
"""

from diversity_jax.cluster_agent import AgentConfig
from diversity_jax.corpus import CorpusConfig
from diversity_jax.mixtures.config import BuildConfig, Component, GatePolicy, MixtureConfig
from diversity_jax.synthesis.config import GrammarComponent
from diversity_jax.synthesis.demo_grammar import GrammarConfig

OUTPUT = "runs/mixtures/small"
TEXT = "runs/mixtures/text"
GATE = GatePolicy(min_ratio_to={"real": 0.25}, on_fail="reject", freed_share="kind")


def get_config() -> BuildConfig:
    return BuildConfig(
        output_dir=OUTPUT,
        mixture=MixtureConfig(
            name="small",
            components=(
                Component(
                    name="prose",
                    kind="real",
                    corpus=CorpusConfig(source="installed_docs:prose", max_documents=2000),
                    share=3,
                ),
                Component(
                    name="code",
                    kind="real",
                    corpus=CorpusConfig(source="installed_docs:code", max_documents=500),
                    share=1,
                ),
                Component(name="many_topics", kind="synthetic", corpus=f"{TEXT}/many_topics.jsonl.gz", policy=GATE),
                Component(name="few_topics", kind="synthetic", corpus=f"{TEXT}/few_topics.jsonl.gz", policy=GATE),
            ),
            real_to_synthetic=(4, 1),
            vocabulary="bytes",
            sequence_length=256,
            validation_share=0.02,
        ),
        agent=AgentConfig(groupings=1000, samples_per_grouping=10),
        grammar=(
            GrammarComponent(path=f"{TEXT}/many_topics.jsonl.gz", grammar=GrammarConfig(topics=400, documents=2000)),
            GrammarComponent(path=f"{TEXT}/few_topics.jsonl.gz", grammar=GrammarConfig(topics=4, documents=2000)),
        ),
    )

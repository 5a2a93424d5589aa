"""The quickstart's two synthetic components, written by a grammar: one over 400 topics, one over 4.

    python -m diversity_jax.generate --config configs/quickstart_text.py

Hardware: any; a few seconds.
"""

from diversity_jax.synthesis.config import GenerateConfig, GrammarComponent
from diversity_jax.synthesis.demo_grammar import GrammarConfig


def get_config() -> GenerateConfig:
    return GenerateConfig(
        grammar=(
            GrammarComponent(
                path="runs/quickstart/text/many_topics.jsonl.gz", grammar=GrammarConfig(topics=400, documents=4000)
            ),
            GrammarComponent(
                path="runs/quickstart/text/few_topics.jsonl.gz", grammar=GrammarConfig(topics=4, documents=4000)
            ),
        )
    )

"""Trains a SentencePiece tokenizer of 8,192 pieces on English and Python of this machine.

    python -m diversity_jax.train_tokenizer --config configs/tokenizer.py

Hardware: any; under a minute on one core. Result: about 4 bytes of prose a token.
"""

from diversity_jax.corpus import CorpusConfig
from diversity_jax.mixtures.config import Component, TokenizerConfig


def get_config() -> TokenizerConfig:
    return TokenizerConfig(
        output="runs/tokenizer/installed_docs.model",
        components=(
            Component(
                name="prose",
                kind="real",
                corpus=CorpusConfig(source="installed_docs:prose", max_documents=20000),
                share=0.75,
            ),
            Component(
                name="code",
                kind="real",
                corpus=CorpusConfig(source="installed_docs:code", max_documents=5000),
                share=0.25,
            ),
        ),
        vocab_size=8192,
        sample_characters=8_000_000,
    )

"""Documents as vectors, for judges and metrics alike."""

from diversity_jax.embedders.embedder import (
    Embedder,
    LlamaEmbedder,
    OpenAIEmbedder,
    SentenceTransformer,
    check_embedder,
    open_embedder,
    vocabulary_of,
)

__all__ = [
    "Embedder",
    "LlamaEmbedder",
    "OpenAIEmbedder",
    "SentenceTransformer",
    "check_embedder",
    "open_embedder",
    "vocabulary_of",
]

"""Documents as vectors, for judges and metrics alike."""

from typing import TYPE_CHECKING

from diversity_jax.core import lazy

if TYPE_CHECKING:
    from diversity_jax.embedders.embedder import (
        Embedder,
        LlamaEmbedder,
        OpenAIEmbedder,
        SentenceTransformer,
        check_embedder,
        is_paid,
        open_embedder,
        vocabulary_of,
    )
else:
    __getattr__ = lazy.exports(__name__)

__all__ = [
    "Embedder",
    "LlamaEmbedder",
    "OpenAIEmbedder",
    "SentenceTransformer",
    "check_embedder",
    "is_paid",
    "open_embedder",
    "vocabulary_of",
]

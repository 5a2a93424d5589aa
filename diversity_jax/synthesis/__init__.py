"""Synthetic components: documents written by language models, steered by their diversity, and demo text."""

from typing import TYPE_CHECKING

from diversity_jax.core import lazy

if TYPE_CHECKING:
    from diversity_jax.synthesis.demo_grammar import GrammarConfig, generate, write_component
else:
    __getattr__ = lazy.exports(__name__)

__all__ = ["GrammarConfig", "generate", "write_component"]

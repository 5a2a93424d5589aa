"""Synthetic components: documents written by language models, steered by their diversity, and demo text."""

from diversity_jax.synthesis.demo_grammar import GrammarConfig, generate, write_component

__all__ = ["GrammarConfig", "generate", "write_component"]

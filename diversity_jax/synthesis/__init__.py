"""Making synthetic components: at present a demo grammar that needs no language model."""

from diversity_jax.synthesis.demo_grammar import GrammarConfig, generate, write_component

__all__ = ["GrammarConfig", "generate", "write_component"]

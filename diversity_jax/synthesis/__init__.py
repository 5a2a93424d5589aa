"""Synthetic components: documents written by language models, steered by their diversity, and demo text."""

from typing import TYPE_CHECKING

from diversity_jax.core import lazy

if TYPE_CHECKING:
    from diversity_jax.synthesis.demo_grammar import GrammarConfig as GrammarConfig
    from diversity_jax.synthesis.demo_grammar import generate as generate
    from diversity_jax.synthesis.demo_grammar import write_component as write_component
else:
    __getattr__ = lazy.exports(__name__)

"""Measure how diverse training data is, mix it by that measurement, and train Llama models on the mixture in JAX."""

from diversity_jax.core import moved_modules

__version__ = "0.1.0"

moved_modules.install()

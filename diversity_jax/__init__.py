"""Measure how diverse training data is, mix it by that measurement, and train Llama models on the mixture in JAX."""

__version__ = "0.1.0"

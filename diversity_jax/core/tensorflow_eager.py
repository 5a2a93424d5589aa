"""TensorFlow and seqio for the modules that cannot do without; importing this one takes seconds."""

from diversity_jax.core.tensorflow import import_quietly

tf = import_quietly("tensorflow")
seqio = import_quietly("seqio")

__all__ = ["seqio", "tf"]

"""Small models for tests, with parameters drawn by NumPy: compiling JAX's random generator takes longer than the
tests.
"""

import jax
import numpy as np

from diversity_jax.model import LlamaConfig, init_params

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_layers": 2,
    "num_heads": 4,
    "max_length": 64,
}


def small_config(**fields) -> LlamaConfig:
    """A float32 model of 10,000 parameters or so, its layers compiled one by one."""
    return LlamaConfig(**(SHAPE | {"compute_dtype": "float32", "scan_layers": False} | fields))


def random_params(config: LlamaConfig, seed: int = 0, scale: float = 0.2):
    """Parameters of the right shapes: matrices of standard deviation `scale`, norms around one."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        noise = rng.normal(size=leaf.shape).astype(np.float32)
        return 1 + scale * noise if "norm" in str(path[-1]) else scale * noise

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(lambda: init_params(config, jax.random.key(0))))

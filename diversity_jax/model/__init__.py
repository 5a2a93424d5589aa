"""Llama in JAX: configs, parameters, logits and loss as pure functions, sharding rules, Hugging Face import and
export.
"""

from typing import TYPE_CHECKING

from diversity_jax.core import lazy

if TYPE_CHECKING:
    from diversity_jax.model.config import LLAMA, LlamaConfig, MeshConfig
    from diversity_jax.model.cross_entropy import loss
    from diversity_jax.model.llama import hidden_states, init_params, logits
    from diversity_jax.model.sharding import batch_sharding, check_batch, make_mesh, param_shardings
else:
    __getattr__ = lazy.exports(__name__)

__all__ = [
    "LLAMA",
    "LlamaConfig",
    "MeshConfig",
    "batch_sharding",
    "check_batch",
    "hidden_states",
    "init_params",
    "logits",
    "loss",
    "make_mesh",
    "param_shardings",
]

"""Llama in JAX: configs, parameters, logits and loss as pure functions, sharding rules, Hugging Face import and
export.
"""

from typing import TYPE_CHECKING

from diversity_jax.core import lazy

if TYPE_CHECKING:
    from diversity_jax.model.config import LLAMA as LLAMA
    from diversity_jax.model.config import LlamaConfig as LlamaConfig
    from diversity_jax.model.config import MeshConfig as MeshConfig
    from diversity_jax.model.cross_entropy import loss as loss
    from diversity_jax.model.llama import hidden_states as hidden_states
    from diversity_jax.model.llama import init_params as init_params
    from diversity_jax.model.llama import logits as logits
    from diversity_jax.model.sharding import batch_sharding as batch_sharding
    from diversity_jax.model.sharding import check_batch as check_batch
    from diversity_jax.model.sharding import make_mesh as make_mesh
    from diversity_jax.model.sharding import param_shardings as param_shardings
else:
    __getattr__ = lazy.exports(__name__)

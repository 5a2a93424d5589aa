"""Low-rank adapters: beside a matrix W stands a product A B of small rank, and training changes A and B alone (Hu et
al. 2021, LoRA).

Adapters are a tree of their own, `blocks/attention/query/a` and so on, stacked over layers as the matrices are. A model
with them is the base's tree with one more entry, `adapters`; `merged` makes an ordinary model of the two.

Shape legend: D hidden, R rank, N layers.
"""

from dataclasses import dataclass
import math

import jax
from jax import Array
import jax.numpy as jnp

from diversity_jax.core.errors import InputError
from diversity_jax.model.config import LlamaConfig
from diversity_jax.model.llama import Params, add_adapters, param_shapes
from diversity_jax.model.sharding import input_axes

_MATRICES = {
    "query": "attention",
    "key": "attention",
    "value": "attention",
    "output": "attention",
    "gate": "mlp",
    "up": "mlp",
    "down": "mlp",
}


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Which matrices get adapters, and how large those are.

    Attributes:
      rank: R, columns of A and rows of B; 0: no adapters, all parameters are trained.
      alpha: the product counts alpha / rank times, so that the learning rate need not change with the rank.
      matrices: names of projections in every layer.
    """

    rank: int = 0
    alpha: float = 16.0
    matrices: tuple[str, ...] = tuple(_MATRICES)

    def __post_init__(self):
        if self.rank < 0 or not self.alpha > 0:
            raise InputError(
                f"lora.rank={self.rank}, lora.alpha={self.alpha}: give a rank of at least 0 and an alpha above 0"
            )
        object.__setattr__(self, "matrices", tuple(self.matrices))
        unknown = [name for name in self.matrices if name not in _MATRICES]
        if unknown or not self.matrices:
            raise InputError(f"lora.matrices={self.matrices}: name one or more of {', '.join(_MATRICES)}")


def init_adapters(config: LlamaConfig, lora: LoraConfig, key: Array) -> Params:
    """Float32 adapters that change nothing yet: A is normal with variance 1/inputs, B is zero."""
    blocks = param_shapes(config)["blocks"]
    adapters: Params = {"attention": {}, "mlp": {}}
    for number, name in enumerate(lora.matrices):
        shape, split = blocks[_MATRICES[name]][name].shape, 1 + input_axes(name)
        a_shape, b_shape = (*shape[:split], lora.rank), (shape[0], lora.rank, *shape[split:])
        noise = jax.random.normal(jax.random.fold_in(key, number), a_shape, jnp.float32)
        adapters[_MATRICES[name]][name] = {
            "a": noise / math.sqrt(math.prod(shape[1:split])),
            "b": jnp.zeros(b_shape, jnp.float32),
        }
    return {"blocks": adapters}


def with_adapters(base: Params, adapters: Params, lora: LoraConfig) -> Params:
    """The base's tree with adapters in it, as `hidden_states` reads it; gradients reach adapters through it."""
    scale = lora.alpha / lora.rank
    scaled = jax.tree_util.tree_map_with_path(
        lambda path, leaf: scale * leaf if path[-1].key == "b" else leaf, adapters
    )
    return {**base, "adapters": scaled}


def merged(base: Params, adapters: Params, lora: LoraConfig) -> Params:
    """An ordinary model's float32 parameters: W + alpha / rank * A B."""
    both = with_adapters(base, adapters, lora)
    return {**base, "blocks": jax.vmap(add_adapters)(base["blocks"], both["adapters"]["blocks"])}

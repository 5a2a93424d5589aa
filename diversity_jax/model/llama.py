"""The Llama: modules in Flax NNX, and pure functions over nested dicts of parameters. No other file knows NNX.

Shape legend: B batch, L length, D hidden, H query heads, K key/value heads, Dh head, F feed-forward, V vocabulary, N
  layers.
"""

import functools
import math
from typing import Any

from flax import nnx
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
import numpy as np

from diversity_jax.model.attention import KERNEL_OUTPUT, attend
from diversity_jax.model.config import LlamaConfig
from diversity_jax.model.sharding import GATHERED, constrain, gathered

Params = dict[str, Any]
_LAYER_INPUT = "layer_input"  # name of what the remat policy "offload" keeps on the host


def rms_norm(x_BxLxD: jax.Array, weight_D: jax.Array, epsilon: float) -> jax.Array:
    """Root-mean-square normalisation; statistics in float32, result in x's type."""
    y_BxLxD = x_BxLxD.astype(jnp.float32)
    scale_BxLx1 = jax.lax.rsqrt(jnp.mean(y_BxLxD * y_BxLxD, axis=-1, keepdims=True) + epsilon)
    return (y_BxLxD * scale_BxLx1).astype(x_BxLxD.dtype) * weight_D


def rotary_table(config: LlamaConfig, length: int, positions_BxL: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines, each BxLx1xDh/2 (B is 1 without positions), of the rotary angles in the compute type."""
    half = config.head_size // 2
    frequency = np.float32(config.rope_theta) ** (-np.arange(half, dtype=np.float32) / half)
    # Without positions numpy makes the table: a compiler that made it would work it out again in every use, for every
    # row, head and layer.
    module, positions = (np, np.arange(length)[None]) if positions_BxL is None else (jnp, positions_BxL)
    angle = positions.astype(np.float32)[..., None, None] * frequency
    return tuple(jnp.asarray(function(angle), config.compute_dtype) for function in (module.cos, module.sin))


def rotate(x_BxLxHxDh: jax.Array, rotary: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotary positions, half-split as in Hugging Face: element i turns with element i + Dh/2."""
    cos, sin = rotary
    a, b = jnp.split(x_BxLxHxDh, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def project(x_BxLxD: jax.Array, weight: jax.Array, axes: int = 1) -> jax.Array:
    """The product over x's last `axes` axes and the weight's first: BxLxD and DxHxDh make BxLxHxDh.

    Done on matrices with all tokens as rows: with two axes of rows, XLA's CPU backend copies operands, a third of the
      step's time. A cut
    sequence keeps them apart, since rows that are cut both ways cannot be merged in place.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and mesh.shape["sequence"] > 1:
        return jnp.tensordot(x_BxLxD, weight, axes=axes)
    inner = math.prod(weight.shape[:axes])
    y = x_BxLxD.reshape(-1, inner) @ weight.reshape(inner, -1)
    return y.reshape(*x_BxLxD.shape[:2], *weight.shape[axes:])


def _matrix(config: LlamaConfig, key: jax.Array, shape: tuple[int, ...]) -> nnx.Param:
    return nnx.Param(config.initializer_range * jax.random.normal(key, shape, jnp.float32))


class Attention(nnx.Module):
    """Causal grouped-query self-attention with rotary positions."""

    def __init__(self, config: LlamaConfig, key: jax.Array):
        D, H, K, Dh = config.hidden_size, config.num_heads, config.kv_heads, config.head_size
        keys = jax.random.split(key, 4)
        self.config = config
        self.query = _matrix(config, keys[0], (D, H, Dh))
        self.key = _matrix(config, keys[1], (D, K, Dh))
        self.value = _matrix(config, keys[2], (D, K, Dh))
        self.output = _matrix(config, keys[3], (H, Dh, D))

    def __call__(self, x_BxLxD: jax.Array, rotary, *, segment_ids_BxL, dropout_key) -> jax.Array:
        q_BxLxHxDh = project(x_BxLxD, self.query[...])
        k_BxLxKxDh = project(x_BxLxD, self.key[...])
        v_BxLxKxDh = project(x_BxLxD, self.value[...])
        out_BxLxHxDh = attend(
            self.config,
            constrain(rotate(q_BxLxHxDh, rotary), "batch", "length", "heads", "head"),
            constrain(rotate(k_BxLxKxDh, rotary), "batch", "length", "kv_heads", "head"),
            constrain(v_BxLxKxDh, "batch", "length", "kv_heads", "head"),
            segment_ids_BxL=segment_ids_BxL,
            dropout_key=dropout_key,
        )
        return project(out_BxLxHxDh, self.output[...], axes=2)


class FeedForward(nnx.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: LlamaConfig, key: jax.Array):
        D, F = config.hidden_size, config.intermediate_size
        keys = jax.random.split(key, 3)
        self.gate = _matrix(config, keys[0], (D, F))
        self.up = _matrix(config, keys[1], (D, F))
        self.down = _matrix(config, keys[2], (F, D))

    def __call__(self, x_BxLxD: jax.Array) -> jax.Array:
        gate_BxLxF = constrain(project(x_BxLxD, self.gate[...]), "batch", "length", "mlp")
        up_BxLxF = constrain(project(x_BxLxD, self.up[...]), "batch", "length", "mlp")
        return project(jax.nn.silu(gate_BxLxF) * up_BxLxF, self.down[...])


class Block(nnx.Module):
    """One layer: attention and feed-forward, each on the normalised stream and added to it."""

    def __init__(self, config: LlamaConfig, key: jax.Array):
        attention_key, mlp_key = jax.random.split(key)
        self.epsilon = config.rms_norm_eps
        self.attention_norm = nnx.Param(jnp.ones(config.hidden_size))
        self.attention = Attention(config, attention_key)
        self.mlp_norm = nnx.Param(jnp.ones(config.hidden_size))
        self.mlp = FeedForward(config, mlp_key)

    def __call__(self, x_BxLxD: jax.Array, rotary, *, segment_ids_BxL, dropout_key) -> jax.Array:
        h_BxLxD = rms_norm(x_BxLxD, self.attention_norm[...], self.epsilon)
        x_BxLxD = x_BxLxD + self.attention(h_BxLxD, rotary, segment_ids_BxL=segment_ids_BxL, dropout_key=dropout_key)
        h_BxLxD = rms_norm(x_BxLxD, self.mlp_norm[...], self.epsilon)
        return constrain(x_BxLxD + self.mlp(h_BxLxD), "batch", "length", "activation_embed")


class Llama(nnx.Module):
    """Embedding, N blocks with their parameters stacked along a first axis, a last norm and, where untied, a head."""

    def __init__(self, config: LlamaConfig, key: jax.Array):
        embed_key, blocks_key, head_key = jax.random.split(key, 3)
        self.config = config
        self.embed = _matrix(config, embed_key, (config.vocab_size, config.hidden_size))
        stacked = jax.vmap(lambda k: nnx.state(Block(config, k)))(jax.random.split(blocks_key, config.num_layers))
        self.blocks = nnx.merge(nnx.graphdef(nnx.eval_shape(lambda: Block(config, blocks_key))), stacked)
        self.norm = nnx.Param(jnp.ones(config.hidden_size))
        if not config.tie_embeddings:
            self.head = _matrix(config, head_key, (config.hidden_size, config.vocab_size))

    def hidden(
        self, tokens_BxL: jax.Array, *, adapters: Params, segment_ids_BxL, positions_BxL, dropout_key
    ) -> jax.Array:
        """What the output projection reads, BxLxD in the compute type."""
        config = self.config
        rotary = rotary_table(config, tokens_BxL.shape[1], positions_BxL)
        graphdef, stacked = nnx.split(self.blocks)
        stacked = nnx.to_pure_dict(stacked)
        cast = functools.partial(jax.tree.map, lambda a: a.astype(config.compute_dtype))
        if not adapters:
            stacked = cast(stacked)

        def layer(x_BxLxD, index, weights):
            weights, added = weights
            key = None if dropout_key is None else jax.random.fold_in(dropout_key, index)
            if added:  # in float32, and where both are cut alike: nothing but the sum is rounded, and nothing but it is gathered
                weights = cast(add_adapters(weights, added))
            weights = gathered(weights, "blocks")
            if config.remat == "offload":
                x_BxLxD = checkpoint_name(x_BxLxD, _LAYER_INPUT)
            return nnx.merge(graphdef, weights)(x_BxLxD, rotary, segment_ids_BxL=segment_ids_BxL, dropout_key=key)

        layer = _remat(config, layer)
        x_BxLxD = self.embed[...][tokens_BxL].astype(config.compute_dtype)
        x_BxLxD = constrain(x_BxLxD, "batch", "length", "activation_embed")
        if config.scan_layers:
            indices = jnp.arange(config.num_layers)
            x_BxLxD, _ = jax.lax.scan(lambda x, item: (layer(x, *item), None), x_BxLxD, (indices, (stacked, adapters)))
        else:
            for index, weights in enumerate(_unstacked((stacked, adapters), config.num_layers)):
                x_BxLxD = layer(x_BxLxD, index, weights)
        return rms_norm(x_BxLxD, self.norm[...].astype(config.compute_dtype), config.rms_norm_eps)


def add_adapters(weights: Params, adapters: Params) -> Params:
    """One layer's parameters, to whose matrices the products of their low-rank adapters `a` and `b` are added; see
    `model.lora`.
    """
    if "a" in adapters:
        return weights + jnp.tensordot(adapters["a"], adapters["b"], axes=1, precision="highest")
    return {
        name: add_adapters(weight, adapters[name]) if name in adapters else weight for name, weight in weights.items()
    }


def _unstacked(stacked: Any, count: int) -> list[Any]:
    """One tree per layer. Split, not indexed: the gradient of indexings is as many whole stacks added up, that of a
    split one stack.
    """
    leaves, tree = jax.tree.flatten(stacked)
    split = [[part[0] for part in jax.lax.split(leaf, [1] * count)] for leaf in leaves]
    return [jax.tree.unflatten(tree, layer) for layer in zip(*split, strict=True)]


def _is_product_or_attention(primitive, *shapes, **parameters) -> bool:
    """What "save_matmuls" keeps: products with weights, and the attention kernel's output and row sums, without which
    it runs again.
    """
    if primitive.name == "name":
        return parameters["name"] == KERNEL_OUTPUT
    if primitive.name.startswith("dot_product_attention_fwd"):  # cuDNN's, which cannot be given a name
        return True
    return jax.checkpoint_policies.dots_with_no_batch_dims_saveable(primitive, *shapes, **parameters)


def _remat(config: LlamaConfig, layer):
    policies = jax.checkpoint_policies
    mesh = jax.sharding.get_abstract_mesh()
    if config.remat == "none":
        if mesh.empty or mesh.shape["fsdp"] == 1:
            return layer
        # What fsdp gathers is gathered again: kept, it would be the whole model on every device.
        policy = policies.save_anything_except_these_names(GATHERED)
    elif config.remat == "offload":
        policy = policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=[_LAYER_INPUT],
            offload_src="device",
            offload_dst="pinned_host",
        )
    else:
        policy = {"full": None, "save_matmuls": _is_product_or_attention}[config.remat]
    # Inside a scan the loop itself keeps the compiler from merging the recomputation with the forward pass.
    return jax.checkpoint(layer, policy=policy, prevent_cse=not config.scan_layers)


@functools.lru_cache(maxsize=64)
def _graphdef(config: LlamaConfig) -> Any:
    return nnx.graphdef(nnx.eval_shape(lambda: Llama(config, jax.random.key(0))))


def init_params(config: LlamaConfig, key: jax.Array) -> Params:
    """Random float32 parameters: normal matrices of `initializer_range`, norms of one; a layer's arrays stacked on axis
    0.
    """
    return nnx.to_pure_dict(nnx.state(Llama(config, key)))


def param_shapes(config: LlamaConfig) -> Params:
    """Shapes and types of the parameters, without making any."""
    return jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))


def hidden_states(
    config: LlamaConfig,
    params: Params,
    tokens_BxL: jax.Array,
    *,
    segment_ids_BxL: jax.Array | None = None,
    positions_BxL: jax.Array | None = None,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """Last hidden states, normalised, BxLxD in the compute type.

    Args:
      config: Sizes and numerics.
      params: From `init_params` or `model.convert`; with an entry `adapters`, from `model.lora.with_adapters`.
      tokens_BxL: Token ids.
      segment_ids_BxL: Document of each token; a token attends only within its own. None: the row is one document.
      positions_BxL: Position of each token; None: its column. Rotary attention sees only differences, so documents
        packed in one row need none.
      dropout_key: Randomness for dropout; None: no dropout, as in evaluation.
    """
    dropout_key = dropout_key if config.dropout else None
    base = {name: leaf for name, leaf in params.items() if name != "adapters"}
    adapters = params.get("adapters", {"blocks": {}})["blocks"]
    return nnx.merge(_graphdef(config), base).hidden(
        tokens_BxL,
        adapters=adapters,
        segment_ids_BxL=segment_ids_BxL,
        positions_BxL=positions_BxL,
        dropout_key=dropout_key,
    )


def head_weight(config: LlamaConfig, params: Params) -> jax.Array:
    """The output projection, DxV in the compute type."""
    return (params["embed"].T if config.tie_embeddings else params["head"]).astype(config.compute_dtype)


def logits(config: LlamaConfig, params: Params, tokens_BxL: jax.Array, **arguments: Any) -> jax.Array:
    """Float32 scores of every next token, BxLxV; arguments as `hidden_states`. Training uses `loss`, which never holds
    them whole.
    """
    x_BxLxD = hidden_states(config, params, tokens_BxL, **arguments)
    return jnp.einsum("bld,dv->blv", x_BxLxD, head_weight(config, params), preferred_element_type=jnp.float32)

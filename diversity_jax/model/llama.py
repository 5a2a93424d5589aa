"""The Llama: modules in Flax NNX, and pure functions over nested dicts of parameters. No other file uses NNX.

Shape legend: B batch, L length, D hidden, H query heads, K key/value heads, Dh head, F feed-forward, V vocabulary,
N layers.
"""

from collections.abc import Callable
import functools
import math
from typing import Any

from flax import nnx
import jax
from jax import Array
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
from jax.sharding import Mesh

from diversity_jax.model.attention import KERNEL_OUTPUT, attend
from diversity_jax.model.config import ATTENTION_MATRICES, LlamaConfig, LoraConfig
from diversity_jax.model.rotary import Rotary, layer_rotary, rotate
from diversity_jax.model.sharding import GATHERED, constrain, gathered, input_axes

Params = dict[str, Any]
# (q BxLxHxDh, k BxLxKxDh, v BxLxKxDh) -> output BxLxHxDh, and any further result, such as an updated cache.
AttentionFunction = Callable[[Array, Array, Array], tuple[Array, Any]]
_LAYER_INPUT = "layer_input"  # checkpoint name of what the remat policy "offload" keeps on the host


def rms_norm(config: LlamaConfig, x: Array, weight: Array) -> Array:
    """Root-mean-square normalisation over the weight's axes, x's last; statistics in float32, result in x's type."""
    axes = tuple(range(-weight.ndim, 0))
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=axes, keepdims=True) + config.rms_norm_eps)
    if config.norm_offset:
        return (y * (config.norm_offset + weight.astype(jnp.float32))).astype(x.dtype)
    return y.astype(x.dtype) * weight


def project(x: Array, weight: Array, *, axes: int = 1, mesh: Mesh | None) -> Array:
    """The product over x's last `axes` axes and the weight's first: BxLxD and DxHxDh give BxLxHxDh.

    Computed with all tokens as rows of one matrix: with two axes of rows XLA's CPU backend copies operands, which takes
    a third of the step's time. Axes sharded over both batch and sequence cannot be merged, and stay separate.
    """
    if mesh is not None and mesh.shape["sequence"] > 1:
        return jnp.tensordot(x, weight, axes=axes)
    inner = math.prod(weight.shape[:axes])
    y = x.reshape(-1, inner) @ weight.reshape(inner, -1)
    return y.reshape(*x.shape[:2], *weight.shape[axes:])


def _matrix(config: LlamaConfig, key: Array, shape: tuple[int, ...]) -> nnx.Param:
    return nnx.Param(config.initializer_range * jax.random.normal(key, shape, jnp.float32))


def _bias(*shape: int) -> nnx.Param:
    return nnx.Param(jnp.zeros(shape))


def _norm(config: LlamaConfig, *shape: int) -> nnx.Param:
    return nnx.Param(jnp.full(shape, 1 - config.norm_offset))


class Attention(nnx.Module):
    """Projections and rotary positions of grouped-query self-attention, around an `AttentionFunction`."""

    def __init__(self, config: LlamaConfig, key: Array):
        D, H, K, Dh = config.hidden_size, config.num_heads, config.kv_heads, config.head_size
        self.config = config
        keys = jax.random.split(key, 4)
        self.query = _matrix(config, keys[0], (D, H, Dh))
        self.key = _matrix(config, keys[1], (D, K, Dh))
        self.value = _matrix(config, keys[2], (D, K, Dh))
        self.output = _matrix(config, keys[3], (H, Dh, D))
        if config.qkv_bias:
            self.query_bias, self.key_bias, self.value_bias = _bias(H, Dh), _bias(K, Dh), _bias(K, Dh)
        if config.output_bias:
            self.output_bias = _bias(D)
        if config.qk_norm == "head":
            self.query_norm, self.key_norm = _norm(config, Dh), _norm(config, Dh)
        if config.qk_norm == "full":
            self.full_query_norm, self.full_key_norm = _norm(config, H, Dh), _norm(config, K, Dh)

    def _projected(self, name: str, x_BxLxD: Array, mesh: Mesh | None) -> Array:
        """Queries, keys or values, BxLxHxDh or BxLxKxDh, before rotation."""
        config = self.config
        y = project(x_BxLxD, getattr(self, name)[...], mesh=mesh)
        if config.qkv_bias:
            y = y + getattr(self, f"{name}_bias")[...]
        if config.qk_norm == "none" or name == "value":
            return y
        norm = f"{name}_norm" if config.qk_norm == "head" else f"full_{name}_norm"
        return rms_norm(config, y, getattr(self, norm)[...])

    def __call__(
        self, x_BxLxD: Array, rotary: Rotary | None, attention: AttentionFunction, mesh: Mesh | None, length: str | None
    ) -> tuple[Array, Any]:
        q_BxLxHxDh, k_BxLxKxDh, v_BxLxKxDh = (
            self._projected(name, x_BxLxD, mesh) for name in ("query", "key", "value")
        )
        if rotary is not None:
            q_BxLxHxDh, k_BxLxKxDh = rotate(q_BxLxHxDh, rotary), rotate(k_BxLxKxDh, rotary)
        if (scale := self.config.attention_multiplier) is not None:  # instead of the kernels' own Dh ** -0.5
            q_BxLxHxDh = q_BxLxHxDh * (scale * math.sqrt(self.config.head_size))
        out_BxLxHxDh, extra = attention(
            constrain(q_BxLxHxDh, mesh, "batch", length, "heads", "head"),
            constrain(k_BxLxKxDh, mesh, "batch", length, "kv_heads", "head"),
            constrain(v_BxLxKxDh, mesh, "batch", length, "kv_heads", "head"),
        )
        y_BxLxD = project(out_BxLxHxDh, self.output[...], axes=2, mesh=mesh)
        return (y_BxLxD + self.output_bias[...] if self.config.output_bias else y_BxLxD), extra


class FeedForward(nnx.Module):
    """Gated: down(activation(gate(x)) * up(x))."""

    def __init__(self, config: LlamaConfig, key: Array):
        D, F = config.hidden_size, config.intermediate_size
        self.config = config
        keys = jax.random.split(key, 3)
        self.gate = _matrix(config, keys[0], (D, F))
        self.up = _matrix(config, keys[1], (D, F))
        self.down = _matrix(config, keys[2], (F, D))
        if config.mlp_bias:
            self.gate_bias, self.up_bias, self.down_bias = _bias(F), _bias(F), _bias(D)

    def __call__(self, x_BxLxD: Array, mesh: Mesh | None, length: str | None) -> Array:
        gate_BxLxF = constrain(project(x_BxLxD, self.gate[...], mesh=mesh), mesh, "batch", length, "mlp")
        up_BxLxF = constrain(project(x_BxLxD, self.up[...], mesh=mesh), mesh, "batch", length, "mlp")
        if self.config.mlp_bias:
            gate_BxLxF, up_BxLxF = gate_BxLxF + self.gate_bias[...], up_BxLxF + self.up_bias[...]
        activation = {"silu": jax.nn.silu, "gelu_tanh": jax.nn.gelu}[self.config.activation]
        y_BxLxD = project(activation(gate_BxLxF) * up_BxLxF, self.down[...], mesh=mesh)
        return y_BxLxD + self.down_bias[...] if self.config.mlp_bias else y_BxLxD


class Block(nnx.Module):
    """One layer: attention and feed-forward, each added to the residual stream and normalised as `norm_order` says."""

    def __init__(self, config: LlamaConfig, key: Array):
        attention_key, mlp_key = jax.random.split(key)
        self.config = config
        self.attention = Attention(config, attention_key)
        self.mlp = FeedForward(config, mlp_key)
        if config.norm_order != "post":
            self.attention_norm, self.mlp_norm = (_norm(config, config.hidden_size) for _ in range(2))
        if config.norm_order != "pre":
            self.attention_post_norm, self.mlp_post_norm = (_norm(config, config.hidden_size) for _ in range(2))

    def _input(self, x_BxLxD: Array, part: str) -> Array:
        """The input of "attention" or "mlp"."""
        if self.config.norm_order == "post":
            return x_BxLxD
        return rms_norm(self.config, x_BxLxD, getattr(self, f"{part}_norm")[...])

    def _add_output(self, x_BxLxD: Array, y_BxLxD: Array, part: str) -> Array:
        """The residual stream plus the output of "attention" or "mlp"."""
        if self.config.norm_order != "pre":
            y_BxLxD = rms_norm(self.config, y_BxLxD, getattr(self, f"{part}_post_norm")[...])
        scale = self.config.residual_multiplier
        return x_BxLxD + (y_BxLxD if scale == 1 else scale * y_BxLxD)

    def __call__(
        self, x_BxLxD: Array, rotary: Rotary | None, attention: AttentionFunction, mesh: Mesh | None, length: str | None
    ) -> tuple[Array, Any]:
        """The residual stream after the layer, BxLxD, and `attention`'s further result.

        Args:
          length: logical axis of the sequence, "length"; None: the sequence is not sharded.
        """
        attended_BxLxD, extra = self.attention(self._input(x_BxLxD, "attention"), rotary, attention, mesh, length)
        x_BxLxD = self._add_output(x_BxLxD, attended_BxLxD, "attention")
        x_BxLxD = self._add_output(x_BxLxD, self.mlp(self._input(x_BxLxD, "mlp"), mesh, length), "mlp")
        return constrain(x_BxLxD, mesh, "batch", length, "activation_embed"), extra


class Llama(nnx.Module):
    """Embedding, N blocks with parameters stacked along the first axis, a final norm and, where untied, a head."""

    def __init__(self, config: LlamaConfig, key: Array):
        embed_key, blocks_key, head_key = jax.random.split(key, 3)
        self.embed = _matrix(config, embed_key, (config.vocab_size, config.hidden_size))
        stacked = jax.vmap(lambda k: nnx.state(Block(config, k)))(jax.random.split(blocks_key, config.num_layers))
        self.blocks = nnx.merge(_block_graphdef(config), stacked)
        self.norm = _norm(config, config.hidden_size)
        if not config.tie_embeddings:
            self.head = _matrix(config, head_key, (config.hidden_size, config.vocab_size))


@functools.lru_cache(maxsize=64)
def _block_graphdef(config: LlamaConfig) -> Any:
    return nnx.graphdef(nnx.eval_shape(lambda: Block(config, jax.random.key(0))))


def run_block(config: LlamaConfig, weights: Params, *arguments: Any) -> tuple[Array, Any]:
    """One layer, in training and in decoding: `Block` with these weights, in the compute type, on its arguments."""
    return nnx.merge(_block_graphdef(config), weights)(*arguments)


def _unstacked(stacked, count):
    """One tree per layer. Split, not indexed: the gradient of indexing sums `count` arrays of the stack's size."""
    leaves, tree = jax.tree.flatten(stacked)
    split = [[part[0] for part in jax.lax.split(leaf, [1] * count)] for leaf in leaves]
    return [jax.tree.unflatten(tree, layer) for layer in zip(*split, strict=True)]


def _is_product_or_attention(primitive, *shapes, **parameters):
    """What "save_matmuls" saves: products with weights, and the arrays that attention's backward pass reads."""
    if primitive.name == "name":
        return parameters["name"] == KERNEL_OUTPUT
    if primitive.name.startswith("dot_product_attention_fwd"):  # cuDNN's, which cannot be given a name
        return True
    return jax.checkpoint_policies.dots_with_no_batch_dims_saveable(primitive, *shapes, **parameters)


def _remat(config: LlamaConfig, layer: Callable[..., Any], mesh: Mesh | None, in_loop: bool) -> Callable[..., Any]:
    policies = jax.checkpoint_policies
    policy: Any = {"none": None, "full": None, "save_matmuls": _is_product_or_attention}.get(config.remat)
    if config.remat == "none":
        if mesh is None or mesh.shape["fsdp"] == 1:
            return layer
        # Gathered parameters are gathered again: saved, they would be the full model on every device.
        policy = policies.save_anything_except_these_names(GATHERED)
    elif config.remat == "offload":
        names: dict[str, Any] = {"names_which_can_be_saved": [], "names_which_can_be_offloaded": [_LAYER_INPUT]}
        policy = policies.save_and_offload_only_these_names(**names, offload_src="device", offload_dst="pinned_host")
    # Inside a scan the loop itself keeps the compiler from merging the recomputation with the forward pass.
    return jax.checkpoint(layer, policy=policy, prevent_cse=not in_loop)


def init_params(config: LlamaConfig, key: Array) -> Params:
    """Random float32 parameters, layers stacked on axis 0: normal matrices of standard deviation `initializer_range`,
    biases of zero, norms with an effective weight of one.

    Raises:
      InputError: the configuration leaves a size to the mixture.
    """
    config.check_described()
    return nnx.to_pure_dict(nnx.state(Llama(config, key)))


def param_shapes(config: LlamaConfig) -> Params:
    """Shapes and types of the parameters, as `jax.ShapeDtypeStruct`s."""
    return jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))


def hidden_states(
    config: LlamaConfig,
    params: Params,
    tokens_BxL: Array,
    *,
    segment_ids_BxL: Array | None = None,
    positions_BxL: Array | None = None,
    dropout_key: Array | None = None,
    mesh: Mesh | None = None,
) -> Array:
    """Last hidden states, normalised, BxLxD in the compute type.

    Args:
      params: From `init_params` or `model.convert`; with an entry `adapters`, from `with_adapters`.
      segment_ids_BxL: Document of each token; a token attends only within its own. None: the row is one document.
      positions_BxL: Position of each token; None: its column. Rotary attention sees only differences, so documents
        packed in one row need none.
      dropout_key: None: no dropout, as in evaluation.
      mesh: Of the arrays; None: they are on one device.
    """
    rotary = layer_rotary(config, tokens_BxL.shape[1], positions_BxL)
    adapters = params.get("adapters", {"blocks": {}})["blocks"]

    def cast(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.astype(config.compute_dtype), tree)

    def layer(kind: int, x_BxLxD: Array, index: Any, weights_and_adapters: tuple[Params, Params]) -> Array:
        weights, added = weights_and_adapters
        key = None if dropout_key is None or not config.dropout else jax.random.fold_in(dropout_key, index)
        if added:  # in float32 and with the same sharding, so that only the sum is rounded and gathered
            weights = cast(add_adapters(weights, added))
        if config.remat == "offload":
            x_BxLxD = checkpoint_name(x_BxLxD, _LAYER_INPUT)
        options: dict[str, Any] = {"window": config.layer_window(kind), "dropout_key": key, "mesh": mesh}
        attention = functools.partial(attend, config, segment_ids_BxL=segment_ids_BxL, **options)
        weights = gathered(weights, "blocks", mesh)
        arguments = x_BxLxD, rotary(kind), lambda *qkv: (attention(*qkv), None), mesh, "length"
        return run_block(config, weights, *arguments)[0]

    x_BxLxD = embedded(config, params, tokens_BxL)
    x_BxLxD = constrain(x_BxLxD, mesh, "batch", "length", "activation_embed")
    stacked = (params["blocks"] if adapters else cast(params["blocks"]), adapters)
    return final_states(config, params, _run_layers(config, layer, x_BxLxD, stacked, mesh))


def _run_layers(config: LlamaConfig, layer: Callable[..., Array], x_BxLxD: Array, stacked: Any, mesh: Mesh | None):
    """The residual stream after all layers.

    With `scan_layers` a loop runs one layer at a time, or one `layer_period` of layers where they differ in window or
    rotary positions; where nothing repeats there is no loop.

    Args:
      layer: (the layer's number modulo `layer_period`, stream, the layer's number, its parameters) -> stream.
      stacked: All layers' parameters.
    """
    count, period = config.num_layers, config.layer_period
    in_loop = config.scan_layers and (period < count or period == 1)
    kinds = [_remat(config, functools.partial(layer, kind), mesh, in_loop) for kind in range(period)]
    if not in_loop:
        for index, weights in enumerate(_unstacked(stacked, count)):
            x_BxLxD = kinds[index % period](x_BxLxD, index, weights)
        return x_BxLxD

    def run_period(x_BxLxD: Array, item: tuple[Array, Any]) -> tuple[Array, None]:
        number, weights = item
        for kind, own in enumerate([weights] if period == 1 else _unstacked(weights, period)):
            x_BxLxD = kinds[kind](x_BxLxD, number * period + kind, own)
        return x_BxLxD, None

    if period > 1:
        stacked = jax.tree.map(lambda leaf: leaf.reshape(-1, period, *leaf.shape[1:]), stacked)
    return jax.lax.scan(run_period, x_BxLxD, (jnp.arange(count // period), stacked))[0]


def embedded(config: LlamaConfig, params: Params, tokens_BxL: Array) -> Array:
    """The embedded tokens, BxLxD in the compute type."""
    x_BxLxD = params["embed"][tokens_BxL].astype(config.compute_dtype)
    return x_BxLxD if config.embedding_multiplier == 1 else x_BxLxD * config.embedding_multiplier


def final_states(config: LlamaConfig, params: Params, x_BxLxD: Array) -> Array:
    """The residual stream after the last layer, normalised for the output projection."""
    x_BxLxD = rms_norm(config, x_BxLxD, params["norm"].astype(config.compute_dtype))
    return x_BxLxD if config.logits_divisor == 1 else x_BxLxD / config.logits_divisor


def head_weight(config: LlamaConfig, params: Params) -> Array:
    """The output projection, DxV in the compute type."""
    return (params["embed"].T if config.tie_embeddings else params["head"]).astype(config.compute_dtype)


def logits(config: LlamaConfig, params: Params, tokens_BxL: Array, **arguments: Any) -> Array:
    """Float32 logits of every next token, BxLxV; arguments as `hidden_states`. Training uses `loss` instead."""
    x_BxLxD = hidden_states(config, params, tokens_BxL, **arguments)
    return jnp.einsum("bld,dv->blv", x_BxLxD, head_weight(config, params), preferred_element_type=jnp.float32)


def add_adapters(weights: Any, adapters: Params) -> Any:
    """A layer's parameters plus the products of their low-rank adapters, `a` and `b`."""
    if "a" in adapters:
        return weights + jnp.tensordot(adapters["a"], adapters["b"], axes=1, precision="highest")
    return {name: add_adapters(w, adapters[name]) if name in adapters else w for name, w in weights.items()}


def init_adapters(config: LlamaConfig, lora: LoraConfig, key: Array) -> Params:
    """Float32 adapters `blocks/attention/query/a` and so on, stacked over layers: A is normal with variance 1/inputs,
    B is zero, so that their product is zero.
    """
    blocks = param_shapes(config)["blocks"]
    adapters: Params = {"attention": {}, "mlp": {}}
    for number, name in enumerate(lora.matrices):
        part = "attention" if name in ATTENTION_MATRICES else "mlp"
        shape, split = blocks[part][name].shape, 1 + input_axes(name)
        noise = jax.random.normal(jax.random.fold_in(key, number), (*shape[:split], lora.rank), jnp.float32)
        b = jnp.zeros((shape[0], lora.rank, *shape[split:]), jnp.float32)
        adapters[part][name] = {"a": noise / math.sqrt(math.prod(shape[1:split])), "b": b}
    return {"blocks": adapters}


def with_adapters(base: Params, adapters: Params, lora: LoraConfig) -> Params:
    """The base parameters with scaled adapters under `adapters`, as `hidden_states` reads them; differentiable."""
    scale = lora.alpha / lora.rank
    scaled = jax.tree_util.tree_map_with_path(
        lambda path, leaf: scale * leaf if path[-1].key == "b" else leaf, adapters
    )
    return {**base, "adapters": scaled}


def merged(base: Params, adapters: Params, lora: LoraConfig) -> Params:
    """Float32 parameters with the adapters added: W + alpha / rank * A B."""
    both = with_adapters(base, adapters, lora)
    return {**base, "blocks": jax.vmap(add_adapters)(base["blocks"], both["adapters"]["blocks"])}


@jax.jit
def fingerprint(tree: Any) -> Array:
    """A uint32 hash of all arrays' bits and their order, the same on every mesh: wrapping sums do not depend on the
    order of their terms.
    """
    total = jnp.uint32(0)
    for array in jax.tree.leaves(tree):
        bits = jax.lax.bitcast_convert_type(array, jnp.uint32).reshape(-1)
        weight = 2 * jnp.arange(bits.size, dtype=jnp.uint32) + 1
        mixed = bits ^ (bits >> 15)
        leaf_hash = jnp.sum(mixed * (weight * jnp.uint32(2654435761)), dtype=jnp.uint32)
        total = total * jnp.uint32(0x01000193) + leaf_hash
    return total

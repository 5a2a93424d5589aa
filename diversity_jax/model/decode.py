"""The Llama for inference: forests of token sequences scored at once, and generation with a cache.

All functions take parameters as `for_inference` lays them out, and run the block that training runs.

Shape legend: B batch, L length, S cached length, D hidden, H query heads, K key/value heads, Dh head, V vocabulary.
"""

import functools

import jax
from jax import Array
import jax.numpy as jnp
from jax.sharding import Mesh

from diversity_jax.model.attention import masked_attention
from diversity_jax.model.config import LlamaConfig
from diversity_jax.model.llama import Params, embedded, final_states, head_weight, run_block
from diversity_jax.model.rotary import layer_rotary

Cache = tuple[tuple[Array, Array], ...]  # keys and values of each layer, BxSxKxDh
_QUERY_CHUNK = 256  # queries whose scores exist at once


def for_inference(config: LlamaConfig, params: Params) -> Params:
    """The same parameters with `blocks` as a list, one tree a layer, all in the compute type.

    Slices of a stack would be copied in every step; apart, and already in the right type, they are read once.
    """
    params = jax.tree.map(lambda a: a.astype(config.compute_dtype), params)
    layers = [jax.tree.map(lambda a, index=index: a[index], params["blocks"]) for index in range(config.num_layers)]
    return {**params, "blocks": layers}


def forest_hidden_states(
    config: LlamaConfig, params: Params, tokens_BxL: Array, positions_BxL: Array, ends_BxL: Array, mesh: Mesh | None
) -> Array:
    """Last hidden states, BxLxD, of rows of token trees in preorder; every token sees its ancestors and itself.

    Sequences that share a beginning share its tokens, so a prompt with many continuations is computed once.

    Args:
      tokens_BxL: token ids.
      positions_BxL: depth of each token in its tree.
      ends_BxL: one past the last descendant of each token: token i sees token j where j <= i < ends[j].
      mesh: where the arrays live; None: on one device.
    """
    L = tokens_BxL.shape[1]
    rotary = layer_rotary(config, L, positions_BxL)

    def attention(window, q_BxLxHxDh, k_BxLxKxDh, v_BxLxKxDh):
        outputs = []
        for start in range(0, L, _QUERY_CHUNK):
            stop = min(start + _QUERY_CHUNK, L)
            i, j = jnp.arange(start, stop)[:, None], jnp.arange(stop)[None, :]
            allowed = (j <= i) & (i < ends_BxL[:, None, :stop])
            if window is not None:
                allowed &= positions_BxL[:, start:stop, None] - positions_BxL[:, None, :stop] < window
            chunk = q_BxLxHxDh[:, start:stop], k_BxLxKxDh[:, :stop], v_BxLxKxDh[:, :stop]
            outputs.append(masked_attention(*chunk, allowed))
        return jnp.concatenate(outputs, axis=1), None

    x_BxLxD = embedded(config, params, tokens_BxL)
    for number, weights in enumerate(params["blocks"]):
        own = functools.partial(attention, config.layer_window(number))
        x_BxLxD, _ = run_block(config, weights, x_BxLxD, rotary(number), own, mesh, None)
    return final_states(config, params, x_BxLxD)


def empty_cache(config: LlamaConfig, batch: int, length_tokens: int) -> Cache:
    """Zeros, one pair of BxSxKxDh a layer."""
    shape = (batch, length_tokens, config.kv_heads, config.head_size)
    dtype = config.compute_dtype
    return tuple((jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(config.num_layers))


def _cached_hidden_states(config, params, cache, tokens_BxL, positions_BxL, write, read, mesh):
    """Hidden states of new tokens that also see the cache, and the cache with them in it.

    Args:
      write: puts the new tokens' keys or values into the cache.
      read: the keys or values that these rows may see.
    """
    rotary = layer_rotary(config, tokens_BxL.shape[1], positions_BxL)
    x_BxLxD = embedded(config, params, tokens_BxL)
    new_cache = []
    for number, (weights, layer_cache) in enumerate(zip(params["blocks"], cache, strict=True)):

        def attention(q, k, v, layer_cache=layer_cache, window=config.layer_window(number)):
            keys, values = write(layer_cache[0], k), write(layer_cache[1], v)
            k_BxSxKxDh, v_BxSxKxDh = read(keys), read(values)
            distance_BxLxS = positions_BxL[:, :, None] - jnp.arange(k_BxSxKxDh.shape[1])  # from the key to the query
            allowed_BxLxS = distance_BxLxS >= 0
            if window is not None:
                allowed_BxLxS &= distance_BxLxS < window
            return masked_attention(q, k_BxSxKxDh, v_BxSxKxDh, allowed_BxLxS), (keys, values)

        x_BxLxD, updated = run_block(config, weights, x_BxLxD, rotary(number), attention, mesh, None)
        new_cache.append(updated)
    return final_states(config, params, x_BxLxD), tuple(new_cache)


def prefill(
    config: LlamaConfig,
    params: Params,
    cache: Cache,
    tokens_L: Array,
    slot: Array,
    start: Array,
    *,
    span_tokens: int,
    mesh: Mesh | None = None,
) -> tuple[Array, Cache]:
    """Last hidden states, LxD, of a part of one sequence, and the cache with it in row `slot` from position `start` on.

    Padding past the sequence's end is written too; decoding overwrites it before anything can see it.

    Args:
      tokens_L: the part; `start + L` must not exceed the cache.
      span_tokens: static; columns of the cache that are read, at least `start + L`.
    """

    def write(stored: Array, new: Array) -> Array:
        return jax.lax.dynamic_update_slice(stored, new.astype(stored.dtype), (slot, start, 0, 0))

    def read(stored: Array) -> Array:
        return jax.lax.dynamic_index_in_dim(stored, slot, 0, keepdims=True)[:, :span_tokens]

    positions_BxL = (start + jnp.arange(tokens_L.shape[0]))[None]
    hidden_1xLxD, cache = _cached_hidden_states(config, params, cache, tokens_L[None], positions_BxL, write, read, mesh)
    return hidden_1xLxD[0], cache


def decode_step(
    config: LlamaConfig,
    params: Params,
    cache: Cache,
    tokens_B: Array,
    positions_B: Array,
    *,
    span_tokens: int,
    mesh: Mesh | None = None,
) -> tuple[Array, Cache]:
    """One token of every sequence: float32 logits BxV of the tokens that follow, and the cache with these tokens in it.

    Args:
      tokens_B: the last token of each sequence, not yet in the cache.
      positions_B: its position; everything before it is in the cache.
      span_tokens: static; columns of the cache that are read, above every position.
    """
    rows = jnp.arange(tokens_B.shape[0])

    def write(stored: Array, new: Array) -> Array:
        return stored.at[rows, positions_B].set(new[:, 0].astype(stored.dtype))

    def read(stored: Array) -> Array:
        return stored[:, :span_tokens]

    tokens_BxL, positions_BxL = tokens_B[:, None], positions_B[:, None]
    hidden_BxLxD, cache = _cached_hidden_states(config, params, cache, tokens_BxL, positions_BxL, write, read, mesh)
    head_DxV = head_weight(config, params)
    return jnp.einsum("bd,dv->bv", hidden_BxLxD[:, 0], head_DxV, preferred_element_type=jnp.float32), cache

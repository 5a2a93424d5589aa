"""The Llama for inference: forests of token sequences scored at once, and generation with a cache. Pure functions over
a run's parameters.

Both take parameters as `for_inference` lays them out: one tree a layer, in the compute type.

Shape legend: B batch, L length, S cached length, D hidden, H query heads, K key/value heads, Dh head, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from diversity_jax.model.attention import MASKED
from diversity_jax.model.config import LlamaConfig
from diversity_jax.model.llama import Params, head_weight, project, rms_norm, rotary_table, rotate
from diversity_jax.model.sharding import constrain

Cache = tuple[tuple[jax.Array, jax.Array], ...]  # keys and values of each layer, BxSxKxDh
_QUERY_PIECE = 256  # queries whose scores exist at once


def for_inference(config: LlamaConfig, params: Params) -> Params:
    """The same parameters with `blocks` as a list, one tree a layer, all in the compute type.

    Slices of a stack would be copied in every step; apart, and already in the right type, they are read once.
    """
    params = jax.tree.map(lambda a: a.astype(config.compute_dtype), params)
    layers = [jax.tree.map(lambda a, index=index: a[index], params["blocks"]) for index in range(config.num_layers)]
    return {**params, "blocks": layers}


def _attention(q_BxLxHxDh, k_BxSxKxDh, v_BxSxKxDh, allowed_BxLxS) -> jax.Array:
    """Grouped-query attention under any mask; softmax in float32."""
    B, L, H, Dh = q_BxLxHxDh.shape
    K = k_BxSxKxDh.shape[2]
    q_BxLxKxGxDh = q_BxLxHxDh.reshape(B, L, K, H // K, Dh)
    scores = jnp.einsum("blkgd,bskd->bkgls", q_BxLxKxGxDh, k_BxSxKxDh, preferred_element_type=jnp.float32) * Dh**-0.5
    weights = jax.nn.softmax(jnp.where(allowed_BxLxS[:, None, None], scores, MASKED), axis=-1)
    return jnp.einsum("bkgls,bskd->blkgd", weights.astype(v_BxSxKxDh.dtype), v_BxSxKxDh).reshape(B, L, H, Dh)


def _layer(config: LlamaConfig, weights: Params, x_BxLxD, rotary, attend: Callable) -> tuple[jax.Array, Any]:
    """One layer; `attend(q, k, v)` returns its output and whatever it keeps."""
    attention, mlp = weights["attention"], weights["mlp"]
    h_BxLxD = rms_norm(x_BxLxD, weights["attention_norm"], config.rms_norm_eps)
    q_BxLxHxDh = constrain(rotate(project(h_BxLxD, attention["query"]), rotary), "batch", None, "heads", "head")
    k_BxLxKxDh = constrain(rotate(project(h_BxLxD, attention["key"]), rotary), "batch", None, "kv_heads", "head")
    v_BxLxKxDh = constrain(project(h_BxLxD, attention["value"]), "batch", None, "kv_heads", "head")
    out_BxLxHxDh, kept = attend(q_BxLxHxDh, k_BxLxKxDh, v_BxLxKxDh)
    x_BxLxD = x_BxLxD + project(out_BxLxHxDh, attention["output"], axes=2)
    h_BxLxD = rms_norm(x_BxLxD, weights["mlp_norm"], config.rms_norm_eps)
    inner_BxLxF = jax.nn.silu(project(h_BxLxD, mlp["gate"])) * project(h_BxLxD, mlp["up"])
    return x_BxLxD + project(constrain(inner_BxLxF, "batch", None, "mlp"), mlp["down"]), kept


def forest_hidden_states(config: LlamaConfig, params: Params, tokens_BxL, positions_BxL, ends_BxL) -> jax.Array:
    """Last hidden states, BxLxD, of rows that hold trees of tokens in preorder; every token sees its ancestors and
    itself.

    Sequences that share a beginning share its tokens, so a prompt with many continuations is computed once.

    Args:
      tokens_BxL: token ids.
      positions_BxL: depth of each token in its tree.
      ends_BxL: one past the last descendant of each token: token i sees token j where j <= i < ends[j].
    """
    rotary = rotary_table(config, tokens_BxL.shape[1], positions_BxL)
    L = tokens_BxL.shape[1]
    pieces = [(start, min(start + _QUERY_PIECE, L)) for start in range(0, L, _QUERY_PIECE)]

    def attend(q_BxLxHxDh, k_BxLxKxDh, v_BxLxKxDh):
        outputs = []
        for start, stop in pieces:
            i, j = jnp.arange(start, stop)[:, None], jnp.arange(stop)[None, :]
            allowed = (j <= i) & (i < ends_BxL[:, None, :stop])
            if config.sliding_window is not None:
                allowed &= positions_BxL[:, start:stop, None] - positions_BxL[:, None, :stop] < config.sliding_window
            outputs.append(_attention(q_BxLxHxDh[:, start:stop], k_BxLxKxDh[:, :stop], v_BxLxKxDh[:, :stop], allowed))
        return jnp.concatenate(outputs, axis=1), None

    x_BxLxD = params["embed"][tokens_BxL].astype(config.compute_dtype)
    for weights in params["blocks"]:
        x_BxLxD, _ = _layer(config, weights, x_BxLxD, rotary, attend)
    return rms_norm(x_BxLxD, params["norm"], config.rms_norm_eps)


def empty_cache(config: LlamaConfig, batch: int, length_tokens: int) -> Cache:
    """Zeros, one pair of BxSxKxDh a layer."""
    shape = (batch, length_tokens, config.kv_heads, config.head_size)
    zeros = lambda: jnp.zeros(shape, config.compute_dtype)  # noqa: E731
    return tuple((zeros(), zeros()) for _ in range(config.num_layers))


def _cached(
    config: LlamaConfig, params: Params, tokens_BxL, positions_BxL, cache: Cache, write: Callable, read: Callable
):
    """Hidden states of new tokens that also see the cache, and the cache with them in it."""
    rotary = rotary_table(config, tokens_BxL.shape[1], positions_BxL)
    x_BxLxD = params["embed"][tokens_BxL].astype(config.compute_dtype)
    kept = []
    for weights, (keys, values) in zip(params["blocks"], cache, strict=True):

        def attend(q, k, v, keys=keys, values=values):
            keys, values = write(keys, k), write(values, v)
            k_BxSxKxDh, v_BxSxKxDh = read(keys), read(values)
            ahead_BxLxS = positions_BxL[:, :, None] - jnp.arange(k_BxSxKxDh.shape[1])
            allowed_BxLxS = ahead_BxLxS >= 0
            if config.sliding_window is not None:
                allowed_BxLxS &= ahead_BxLxS < config.sliding_window
            return _attention(q, k_BxSxKxDh, v_BxSxKxDh, allowed_BxLxS), (keys, values)

        x_BxLxD, pair = _layer(config, weights, x_BxLxD, rotary, attend)
        kept.append(pair)
    return rms_norm(x_BxLxD, params["norm"], config.rms_norm_eps), tuple(kept)


def prefill(config: LlamaConfig, params: Params, cache: Cache, tokens_L, slot, start, *, span_tokens: int) -> Cache:
    """Writes a piece of one sequence into row `slot` of the cache, at positions `start` and on.

    What lies past the sequence's end in a padded piece is written too; decoding overwrites it before anything can see
    it.

    Args:
      tokens_L: the piece; `start + L` must not exceed the cache.
      span_tokens: static; columns of the cache that are looked at, at least `start + L`.
    """
    L = tokens_L.shape[0]
    positions_BxL = (start + jnp.arange(L))[None]

    def write(stored, new):
        return jax.lax.dynamic_update_slice(stored, new.astype(stored.dtype), (slot, start, 0, 0))

    def read(stored):
        row = jax.lax.dynamic_index_in_dim(stored, slot, 0, keepdims=True)
        return row[:, :span_tokens]

    return _cached(config, params, tokens_L[None], positions_BxL, cache, write, read)[1]


def decode_step(
    config: LlamaConfig, params: Params, cache: Cache, tokens_B, positions_B, *, span_tokens: int
) -> tuple[jax.Array, Cache]:
    """One token of every sequence: float32 logits BxV of the tokens that follow, and the cache with these tokens in it.

    Args:
      tokens_B: the last token of each sequence, not yet in the cache.
      positions_B: its position; everything before it is in the cache.
      span_tokens: static; columns of the cache that are looked at, above every position.
    """
    rows = jnp.arange(tokens_B.shape[0])

    def write(stored, new):
        return stored.at[rows, positions_B].set(new[:, 0].astype(stored.dtype))

    hidden, cache = _cached(
        config, params, tokens_B[:, None], positions_B[:, None], cache, write, lambda stored: stored[:, :span_tokens]
    )
    logits_BxV = jnp.einsum("bd,dv->bv", hidden[:, 0], head_weight(config, params), preferred_element_type=jnp.float32)
    return logits_BxV, cache

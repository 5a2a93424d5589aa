"""The Llama for inference: parameters laid out for it, and forests of token sequences scored at once.

All functions take parameters as `for_inference` lays them out, and run the block that training runs.

Shape legend: B batch, L length, D hidden, H query heads, K key/value heads, Dh head.
"""

import functools

import jax
from jax import Array
import jax.numpy as jnp
from jax.sharding import Mesh

from diversity_jax.model.attention import masked_attention
from diversity_jax.model.config import LlamaConfig
from diversity_jax.model.llama import Params, embedded, final_states, run_block
from diversity_jax.model.rotary import check_reading_in_parts, layer_rotary

_QUERY_CHUNK = 256  # queries whose scores exist at once


def for_inference(config: LlamaConfig, params: Params) -> Params:
    """The same parameters with `blocks` as a list, one tree a layer, all in the compute type.

    Slices of a stack would be copied in every step; apart, and already in the right type, they are read once.

    Raises:
      InputError: as `check_reading_in_parts`.
    """
    check_reading_in_parts(config)
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

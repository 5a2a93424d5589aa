"""Inference with a paged key/value cache: sequences allocate blocks as they grow, attention reads only those in use.

A block holds the keys and values of T consecutive tokens of one sequence. The caller (`evaluation.cache_blocks`)
allocates blocks; the compiled programs are given lists of blocks. How many are read is data, not a shape, so that one
program serves sequences of all lengths.

Shape legend: R rows (each the next L tokens of a sequence), P blocks, T tokens of a block, C blocks read at once,
D hidden, H query heads, K key/value heads, G = H / K, Q = G x L, Dh head, V vocabulary.
"""

import functools
from typing import Any, NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
from jax.sharding import Mesh

from diversity_jax.model.attention import MASKED, masked_attention
from diversity_jax.model.config import LlamaConfig
from diversity_jax.model.llama import Params, embedded, final_states, head_weight, run_block
from diversity_jax.model.rotary import Rotary, check_reading_in_parts, layer_rotary
from diversity_jax.model.sharding import spec

BLOCK_TOKENS = 64  # T: a sequence wastes at most 63 positions, and a block of keys fits a core's cache
Cache = tuple[tuple[Array, Array], ...]  # keys and values of each layer, PxKxTxDh


class BlockReads(NamedTuple):
    """The pairs of a row and a block it attends to, in `rounds` of C pairs each.

    Where rows are sharded over Z devices, each device's N rounds are contiguous, and row and block numbers count from
    the device's own first row and block.
    """

    blocks_NxC: Any
    rows_NxC: Any  # padding has the device's number of rows R, which is no row
    starts_NxC: Any  # position of the block's first token
    rounds_Z: Any


def empty_cache(config: LlamaConfig, blocks: int) -> tuple[Array, Array]:
    """Zeros for one layer's keys and values."""
    shape = (blocks, config.kv_heads, BLOCK_TOKENS, config.head_size)
    return jnp.zeros(shape, config.compute_dtype), jnp.zeros(shape, config.compute_dtype)


def block_bytes(config: LlamaConfig) -> int:
    """Bytes of a block in all layers."""
    itemsize = jnp.dtype(config.compute_dtype).itemsize
    return 2 * config.num_layers * config.kv_heads * BLOCK_TOKENS * config.head_size * itemsize


def _write(pool_PxKxTxDh: Array, new_RxLxKxDh: Array, positions_R: Array, blocks_R: Array) -> Array:
    """The pool with each row's L keys or values written into its block; positions are multiples of L, L divides T."""
    P, K, T, Dh = pool_PxKxTxDh.shape
    L = new_RxLxKxDh.shape[1]
    pool = pool_PxKxTxDh.reshape(P, K, T // L, L, Dh)
    new = jnp.swapaxes(new_RxLxKxDh, 1, 2).astype(pool.dtype)
    return pool.at[blocks_R, :, positions_R % T // L].set(new).reshape(P, K, T, Dh)


def _read(q_RxLxHxDh, keys_PxKxTxDh, values_PxKxTxDh, positions_R, reads, window):
    """Attention's output, RxLxHxDh: online softmax in float32 over rounds of blocks (Milakov and Gimelshein 2018)."""
    R, L, H, Dh = q_RxLxHxDh.shape
    K, T = keys_PxKxTxDh.shape[1:3]
    q_RxKxQxDh = jnp.moveaxis(q_RxLxHxDh.reshape(R, L, K, H // K, Dh), 1, 3).reshape(R, K, -1, Dh)
    at_RxQ = jnp.tile(positions_R[:, None] + jnp.arange(L), (1, H // K))
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)

    def one_round(i: Array, totals: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        peak_RxKxQ, sum_RxKxQ, out_RxKxQxDh = totals
        blocks_C, rows_C, starts_C = reads.blocks_NxC[i], reads.rows_NxC[i], reads.starts_NxC[i]

        def of_pair(x: Array) -> Array:
            return jnp.take(x, rows_C, axis=0, mode="clip")

        at_CxT = starts_C[:, None] + jnp.arange(T)
        distance_CxQxT = of_pair(at_RxQ)[:, :, None] - at_CxT[:, None]  # tokens from the key to the query
        allowed_CxQxT = (distance_CxQxT >= 0) & (rows_C < R)[:, None, None]
        if window is not None:
            allowed_CxQxT &= distance_CxQxT < window
        k_CxKxTxDh = jnp.take(keys_PxKxTxDh, blocks_C, axis=0, mode="clip")
        v_CxKxTxDh = jnp.take(values_PxKxTxDh, blocks_C, axis=0, mode="clip")
        # An earlier sequence may have left NaN in a block, and 0 * NaN is NaN.
        written_CxT = jnp.any(allowed_CxQxT, axis=1)
        v_CxKxTxDh = jnp.where(written_CxT[:, None, :, None], v_CxKxTxDh, 0)
        scores_CxKxQxT = product("ckqd,cktd->ckqt", of_pair(q_RxKxQxDh), k_CxKxTxDh) * Dh**-0.5
        scores_CxKxQxT = jnp.where(allowed_CxQxT[:, None], scores_CxKxQxT, MASKED)
        owned_RxC = rows_C == jnp.arange(R)[:, None]
        highest = jnp.where(owned_RxC[:, :, None, None], jnp.max(scores_CxKxQxT, axis=-1), MASKED)
        new_peak_RxKxQ = jnp.maximum(peak_RxKxQ, jnp.max(highest, axis=1))
        weights_CxKxQxT = jnp.exp(scores_CxKxQxT - of_pair(new_peak_RxKxQ)[..., None])
        weights_CxKxQxT = jnp.where(allowed_CxQxT[:, None], weights_CxKxQxT, 0)
        values_CxKxQxDh = product("ckqt,cktd->ckqd", weights_CxKxQxT.astype(v_CxKxTxDh.dtype), v_CxKxTxDh)
        # A NaN must affect only its own row: it enters the row's sum, and is replaced in the product over all rows.
        sums_CxKxQ = jnp.sum(weights_CxKxQxT, axis=-1) + 0 * jnp.sum(values_CxKxQxDh, axis=-1)
        values_CxKxQxDh = jnp.where(jnp.isfinite(values_CxKxQxDh), values_CxKxQxDh, 0)
        added_RxKxQ = jnp.sum(jnp.where(owned_RxC[:, :, None, None], sums_CxKxQ, 0), axis=1)
        scale_RxKxQ = jnp.exp(peak_RxKxQ - new_peak_RxKxQ)
        return (
            new_peak_RxKxQ,
            sum_RxKxQ * scale_RxKxQ + added_RxKxQ,
            out_RxKxQxDh * scale_RxKxQ[..., None]
            + product("rc,ckqd->rkqd", owned_RxC.astype(jnp.float32), values_CxKxQxDh),
        )

    zeros_RxKxQ = jnp.zeros(q_RxKxQxDh.shape[:3], jnp.float32)
    totals = (zeros_RxKxQ + MASKED, zeros_RxKxQ, jnp.zeros(q_RxKxQxDh.shape, jnp.float32))
    _, sum_RxKxQ, out_RxKxQxDh = jax.lax.fori_loop(0, reads.rounds_Z[0], one_round, totals)
    out_RxKxQxDh = out_RxKxQxDh / jnp.where(sum_RxKxQ == 0, 1, sum_RxKxQ)[..., None]  # 0: a padding row
    out_RxLxKxGxDh = jnp.moveaxis(out_RxKxQxDh.reshape(R, K, H // K, L, Dh), 3, 1)
    return out_RxLxKxGxDh.reshape(R, L, H, Dh).astype(q_RxLxHxDh.dtype)


def _write_and_read(window, q, k, v, keys, values, positions_R, blocks_R, *reads):
    keys, values = _write(keys, k, positions_R, blocks_R), _write(values, v, positions_R, blocks_R)
    return _read(q, keys, values, positions_R, BlockReads(*reads), window), keys, values


def _cached_attention(window: int | None, mesh: Mesh | None, *arrays: Any) -> tuple[Array, Array, Array]:
    """`_write_and_read` on each device's own rows, heads and blocks."""
    run = functools.partial(_write_and_read, window)
    if mesh is None or mesh.size == 1:
        return run(*arrays)
    heads, pool, rows = spec("batch", None, "heads", None), spec("batch", "kv_heads", None, None), spec("batch")
    kv_heads, pairs = spec("batch", None, "kv_heads", None), spec("batch", None)
    in_specs = (heads, kv_heads, kv_heads, pool, pool, rows, rows, pairs, pairs, pairs, rows)
    return jax.shard_map(run, mesh=mesh, in_specs=in_specs, out_specs=(heads, pool, pool), check_vma=False)(*arrays)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _run_layer(
    config: LlamaConfig,
    window: int | None,
    mesh: Mesh | None,
    weights: Params,
    layer_cache: tuple[Array, Array],
    x_RxLxD: Array,
    rotary: Rotary | None,
    positions_R: Array,
    blocks_R: Array,
    reads: BlockReads,
) -> tuple[Array, tuple[Array, Array]]:
    """One layer; jitted by itself so that JAX traces and lowers it once for all layers of one kind."""

    def attention(q: Array, k: Array, v: Array) -> tuple[Array, tuple[Array, Array]]:
        out, keys, values = _cached_attention(window, mesh, q, k, v, *layer_cache, positions_R, blocks_R, *reads)
        return out, (keys, values)

    return run_block(config, weights, x_RxLxD, rotary, attention, mesh, None)


def cached_hidden_states(
    config: LlamaConfig,
    params: Params,
    cache: Cache,
    tokens_RxL: Array,
    positions_R: Array,
    blocks_R: Array,
    reads: BlockReads,
    *,
    mesh: Mesh | None = None,
) -> tuple[Array, Cache]:
    """Last hidden states, RxLxD, of each row's next L tokens, and the cache with these tokens added.

    Rows may be consecutive parts of one sequence: all keys and values of a call are written before any are read.
    Padding past a sequence's end is written too; later tokens overwrite it before any query can attend to it.

    Args:
      params: in the layout of `for_inference`.
      positions_R: position of each row's first token, a multiple of L; L divides T.
      blocks_R: the block of each row's positions.
      reads: the blocks of all tokens up to and including these.
    """
    positions_RxL = positions_R[:, None] + jnp.arange(tokens_RxL.shape[1])
    rotary = layer_rotary(config, tokens_RxL.shape[1], positions_RxL)
    x_RxLxD = embedded(config, params, tokens_RxL)
    new_cache = []
    for number, (weights, layer_cache) in enumerate(zip(params["blocks"], cache, strict=True)):
        arrays = weights, layer_cache, x_RxLxD, rotary(number), positions_R, blocks_R, reads
        x_RxLxD, updated = _run_layer(config, config.layer_window(number), mesh, *arrays)
        new_cache.append(updated)
    return final_states(config, params, x_RxLxD), tuple(new_cache)


def decode_step(
    config: LlamaConfig,
    params: Params,
    cache: Cache,
    tokens_R: Array,
    positions_R: Array,
    blocks_R: Array,
    reads: BlockReads,
    *,
    mesh: Mesh | None = None,
) -> tuple[Array, Cache]:
    """Float32 logits RxV of each sequence's next token, and the cache with `tokens_R` added.

    Args:
      tokens_R: the last token of each sequence, not yet in the cache.
      positions_R, blocks_R, reads: as `cached_hidden_states`.
    """
    arrays = tokens_R[:, None], positions_R, blocks_R, reads
    hidden_RxLxD, cache = cached_hidden_states(config, params, cache, *arrays, mesh=mesh)
    head_DxV = head_weight(config, params)
    return jnp.einsum("rd,dv->rv", hidden_RxLxD[:, 0], head_DxV, preferred_element_type=jnp.float32), cache


_QUERY_CHUNK = 256  # queries whose scores exist at once


def for_inference(config: LlamaConfig, params: Params) -> Params:
    """The parameters in the compute type, with `blocks` as a list of one tree per layer.

    Slices of stacked layers would be copied, and float32 parameters cast, in every step.

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
    """Last hidden states, BxLxD, of rows of token trees in preorder; a token attends to its ancestors and itself.

    Sequences with a common prefix share its tokens, so a prompt with many continuations is computed once.

    Args:
      tokens_BxL: token ids.
      positions_BxL: depth of each token in its tree.
      ends_BxL: one past the last descendant of each token: token i attends to token j where j <= i < ends[j].
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

"""Exact causal attention for any device: queries in pieces that see only the keys before them, scores made again in the backward pass.

Where no fused kernel can be used this is what runs: half the products of the plain formula, and memory that grows with the length, not
its square.

Shape legend: B batch, L length (queries), S length (keys), H query heads, K key/value heads, G = H / K, Dh head, R = G x piece of L.
"""

import functools

import jax
import jax.numpy as jnp

MASKED = -1e30  # finite, so that a fully masked tile cannot make NaN
_PIECES = 8
_SMALLEST_PIECE = 64  # tokens; the scores of one piece then stay in a CPU's cache


def _pieces(length: int) -> list[tuple[int, int]]:
    size = max(_SMALLEST_PIECE, -(-length // _PIECES))
    return [(start, min(start + size, length)) for start in range(0, length, size)]


def _scores(q_BxKxRxDh, k_BxKxSxDh, query_segments_BxR, key_segments_BxS, start: int, size: int) -> jax.Array:
    """Float32 scores, BxKxRxS, of the queries `start, ..., start + size - 1` of each group against all keys up to the last of them."""
    scores = jnp.einsum("bkrd,bksd->bkrs", q_BxKxRxDh, k_BxKxSxDh, preferred_element_type=jnp.float32)
    shape = scores.shape[2:]
    allowed = start + jax.lax.broadcasted_iota(jnp.int32, shape, 0) % size >= jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    if query_segments_BxR is not None:
        allowed = allowed & (query_segments_BxR[:, None, :, None] == key_segments_BxS[:, None, None, :])
    return jnp.where(allowed, scores, MASKED)


def _queries(x_BxKxGxLxDh, piece) -> jax.Array:
    x = x_BxKxGxLxDh[:, :, :, piece[0] : piece[1]]
    return x.reshape(*x.shape[:2], -1, x.shape[-1])


def _segments(segment_ids_BxL, groups: int, piece):
    """Segment ids of a piece's queries (BxR) and of the keys they may see (BxS)."""
    if segment_ids_BxL is None:
        return None, None
    return jnp.tile(segment_ids_BxL[:, piece[0] : piece[1]], (1, groups)), segment_ids_BxL[:, : piece[1]]


def _forward(q_BxKxGxLxDh, k_BxKxLxDh, v_BxKxLxDh, segment_ids_BxL):
    B, K, G, L, Dh = q_BxKxGxLxDh.shape
    outputs, normalisers = [], []
    for piece in _pieces(L):
        size = piece[1] - piece[0]
        q, k, v = _queries(q_BxKxGxLxDh, piece), k_BxKxLxDh[:, :, : piece[1]], v_BxKxLxDh[:, :, : piece[1]]
        scores = _scores(q, k, *_segments(segment_ids_BxL, G, piece), piece[0], size)
        peak = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - peak)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        output = jnp.einsum("bkrs,bksd->bkrd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32) / total
        outputs.append(output.astype(v.dtype).reshape(B, K, G, size, Dh))
        normalisers.append(peak + jnp.log(total))
    return jnp.concatenate(outputs, axis=3), normalisers


@jax.custom_vjp
def _attention(q_BxKxGxLxDh, k_BxKxLxDh, v_BxKxLxDh, segment_ids_BxL):
    return _forward(q_BxKxGxLxDh, k_BxKxLxDh, v_BxKxLxDh, segment_ids_BxL)[0]


def _attention_forward(q, k, v, segment_ids):
    output, normalisers = _forward(q, k, v, segment_ids)
    return output, (q, k, v, segment_ids, output, normalisers)


def _attention_backward(saved, gradient_BxKxGxLxDh):
    q_BxKxGxLxDh, k_BxKxLxDh, v_BxKxLxDh, segment_ids_BxL, output_BxKxGxLxDh, normalisers = saved
    B, K, G, L, Dh = q_BxKxGxLxDh.shape
    dtype = q_BxKxGxLxDh.dtype
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    # sum_s weights * d weights, the term softmax's gradient subtracts, from the output instead of the scores (Dao et al. 2022, eq. 4)
    delta = jnp.sum(gradient_BxKxGxLxDh.astype(jnp.float32) * output_BxKxGxLxDh.astype(jnp.float32), axis=-1, keepdims=True)
    q_parts, k_parts, v_parts = [], [], []
    for piece, normaliser in zip(_pieces(L), normalisers, strict=True):
        size = piece[1] - piece[0]
        q, slope = _queries(q_BxKxGxLxDh, piece), _queries(gradient_BxKxGxLxDh, piece)
        k, v = k_BxKxLxDh[:, :, : piece[1]], v_BxKxLxDh[:, :, : piece[1]]
        weights = jnp.exp(_scores(q, k, *_segments(segment_ids_BxL, G, piece), piece[0], size) - normaliser)
        weights_slope = product("bkrd,bksd->bkrs", slope, v)
        scores_slope = (weights * (weights_slope - _queries(delta, piece))).astype(dtype)
        q_parts.append(product("bkrs,bksd->bkrd", scores_slope, k).astype(dtype).reshape(B, K, G, size, Dh))
        k_parts.append(product("bkrs,bkrd->bksd", scores_slope, q))
        v_parts.append(product("bkrs,bkrd->bksd", weights.astype(dtype), slope))
    return jnp.concatenate(q_parts, axis=3), _sum_prefixes(k_parts).astype(dtype), _sum_prefixes(v_parts).astype(dtype), None


def _sum_prefixes(parts: list[jax.Array]) -> jax.Array:
    """Sums arrays BxKxSxDh of growing S, each belonging to the first S keys."""
    ends = [part.shape[2] for part in parts]
    pieces = zip([0, *ends], ends, strict=False)
    return jnp.concatenate([sum(part[:, :, start:end] for part in parts if part.shape[2] >= end) for start, end in pieces], axis=2)


_attention.defvjp(_attention_forward, _attention_backward)


def chunked_attention(q_BxLxHxDh, k_BxLxKxDh, v_BxLxKxDh, *, segment_ids_BxL=None) -> jax.Array:
    """Causal grouped-query attention, BxLxHxDh; softmax in float32.

    Args:
      q_BxLxHxDh: Queries; H is a multiple of K.
      k_BxLxKxDh: Keys.
      v_BxLxKxDh: Values.
      segment_ids_BxL: A token attends only within its own segment; None: the row is one.
    """
    B, L, H, Dh = q_BxLxHxDh.shape
    K = k_BxLxKxDh.shape[2]
    # Heads before tokens: the batched products then read contiguous matrices, which more than pays for this one copy.
    q_BxKxGxLxDh = jnp.swapaxes(q_BxLxHxDh * Dh**-0.5, 1, 2).reshape(B, K, H // K, L, Dh)
    k_BxKxLxDh, v_BxKxLxDh = jnp.swapaxes(k_BxLxKxDh, 1, 2), jnp.swapaxes(v_BxLxKxDh, 1, 2)
    output_BxKxGxLxDh = _attention(q_BxKxGxLxDh, k_BxKxLxDh, v_BxKxLxDh, segment_ids_BxL)
    return jnp.swapaxes(output_BxKxGxLxDh.reshape(B, H, L, Dh), 1, 2)

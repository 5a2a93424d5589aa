"""Exact causal attention for any device: queries in pieces that see only the keys before them, scores made again in the backward pass.

Where no fused kernel can be used this is what runs: half the products of the plain formula, and memory that grows with the length, not
its square.

Shape legend: B batch, L length (queries), S length (keys), H query heads, K key/value heads, G = H / K, Dh head, R = G x piece of L.
"""

from dataclasses import dataclass
import functools
import itertools

import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

KERNEL_OUTPUT = "attention_kernel_output"  # name of what a kernel's backward pass needs of its forward pass, for remat policies
MASKED = -1e30  # finite, so that a fully masked tile cannot make NaN
_PIECES = 8
_SMALLEST_PIECE = 64  # tokens; the scores of one piece then stay in a CPU's cache


@dataclass(frozen=True)
class _Piece:
    """Queries `start, ..., stop - 1` and the keys they may see, `first, ..., stop - 1`."""

    number: int
    first: int
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class _Settings:
    window: int | None
    dropout: float


def _pieces(length: int, window: int | None) -> list[_Piece]:
    size = max(_SMALLEST_PIECE, -(-length // _PIECES))
    return [
        _Piece(number, 0 if window is None else max(0, start - window + 1), start, min(start + size, length))
        for number, start in enumerate(range(0, length, size))
    ]


def _scores(q_BxKxRxDh, k_BxKxSxDh, segments, piece: _Piece, window: int | None) -> jax.Array:
    """Float32 scores, BxKxRxS, of a piece's queries, one group after the other, against its keys."""
    scores = jnp.einsum("bkrd,bksd->bkrs", q_BxKxRxDh, k_BxKxSxDh, preferred_element_type=jnp.float32)
    shape = scores.shape[2:]
    ahead = piece.start - piece.first + jax.lax.broadcasted_iota(jnp.int32, shape, 0) % piece.size
    ahead = ahead - jax.lax.broadcasted_iota(jnp.int32, shape, 1)  # tokens from the key to the query
    allowed = ahead >= 0 if window is None else (ahead >= 0) & (ahead < window)
    if segments is not None:
        query_segments_BxR, key_segments_BxS = segments
        allowed = allowed & (query_segments_BxR[:, None, :, None] == key_segments_BxS[:, None, None, :])
    return jnp.where(allowed, scores, MASKED)


def _queries(x_BxKxGxLxDh, piece: _Piece) -> jax.Array:
    x = x_BxKxGxLxDh[:, :, :, piece.start : piece.stop]
    return x.reshape(*x.shape[:2], -1, x.shape[-1])


def _segments(segment_ids_BxL, groups: int, piece: _Piece):
    """Segment ids of a piece's queries (BxR) and of its keys (BxS)."""
    if segment_ids_BxL is None:
        return None
    return jnp.tile(segment_ids_BxL[:, piece.start : piece.stop], (1, groups)), segment_ids_BxL[:, piece.first : piece.stop]


def _kept(dropout_key, shape: tuple[int, ...], piece: _Piece, dropout: float) -> jax.Array | None:
    """0 for dropped weights and 1 / (1 - dropout) for kept ones, the same whenever a piece is worked through; None: all are kept."""
    if dropout_key is None or not dropout:
        return None
    return jax.random.bernoulli(jax.random.fold_in(dropout_key, piece.number), 1 - dropout, shape) / jnp.float32(1 - dropout)


def _forward(settings: _Settings, q_BxKxGxLxDh, k_BxKxLxDh, v_BxKxLxDh, segment_ids_BxL, dropout_key):
    B, K, G, L, Dh = q_BxKxGxLxDh.shape
    outputs, normalisers = [], []
    for piece in _pieces(L, settings.window):
        k, v = k_BxKxLxDh[:, :, piece.first : piece.stop], v_BxKxLxDh[:, :, piece.first : piece.stop]
        scores = _scores(_queries(q_BxKxGxLxDh, piece), k, _segments(segment_ids_BxL, G, piece), piece, settings.window)
        peak = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - peak)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        if (kept := _kept(dropout_key, weights.shape, piece, settings.dropout)) is not None:
            weights = weights * kept
        output = jnp.einsum("bkrs,bksd->bkrd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32) / total
        outputs.append(output.astype(v.dtype).reshape(B, K, G, piece.size, Dh))
        normalisers.append(peak + jnp.log(total))
    return jnp.concatenate(outputs, axis=3), normalisers


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(settings: _Settings, q_BxKxGxLxDh, k_BxKxLxDh, v_BxKxLxDh, segment_ids_BxL, dropout_key):
    return _forward(settings, q_BxKxGxLxDh, k_BxKxLxDh, v_BxKxLxDh, segment_ids_BxL, dropout_key)[0]


def _attention_forward(settings, q, k, v, segment_ids, dropout_key):
    output, normalisers = checkpoint_name(_forward(settings, q, k, v, segment_ids, dropout_key), KERNEL_OUTPUT)
    return output, (q, k, v, segment_ids, dropout_key, output, normalisers)


def _attention_backward(settings: _Settings, saved, gradient_BxKxGxLxDh):
    q_BxKxGxLxDh, k_BxKxLxDh, v_BxKxLxDh, segment_ids_BxL, dropout_key, output_BxKxGxLxDh, normalisers = saved
    B, K, G, L, Dh = q_BxKxGxLxDh.shape
    dtype = q_BxKxGxLxDh.dtype
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    # sum_s weights * d weights, the term softmax's gradient subtracts, from the output instead of the scores (Dao et al. 2022, eq. 4);
    # with dropout too, since dropped weights leave both sides of it.
    delta = jnp.sum(gradient_BxKxGxLxDh.astype(jnp.float32) * output_BxKxGxLxDh.astype(jnp.float32), axis=-1, keepdims=True)
    pieces = _pieces(L, settings.window)
    q_parts, k_parts, v_parts = [], [], []
    for piece, normaliser in zip(pieces, normalisers, strict=True):
        q, slope = _queries(q_BxKxGxLxDh, piece), _queries(gradient_BxKxGxLxDh, piece)
        k, v = k_BxKxLxDh[:, :, piece.first : piece.stop], v_BxKxLxDh[:, :, piece.first : piece.stop]
        weights = jnp.exp(_scores(q, k, _segments(segment_ids_BxL, G, piece), piece, settings.window) - normaliser)
        weights_slope, used = product("bkrd,bksd->bkrs", slope, v), weights
        if (kept := _kept(dropout_key, weights.shape, piece, settings.dropout)) is not None:
            weights_slope, used = weights_slope * kept, weights * kept
        scores_slope = (weights * (weights_slope - _queries(delta, piece))).astype(dtype)
        q_parts.append(product("bkrs,bksd->bkrd", scores_slope, k).astype(dtype).reshape(B, K, G, piece.size, Dh))
        k_parts.append(product("bkrs,bkrd->bksd", scores_slope, q))
        v_parts.append(product("bkrs,bkrd->bksd", used.astype(dtype), slope))
    k_slope, v_slope = (_sum_parts(parts, pieces).astype(dtype) for parts in (k_parts, v_parts))
    return jnp.concatenate(q_parts, axis=3), k_slope, v_slope, None, None


def _sum_parts(parts: list[jax.Array], pieces: list[_Piece]) -> jax.Array:
    """Sums arrays BxKxSxDh, each belonging to the keys of its piece, into one for all keys."""
    ends = sorted({place for piece in pieces for place in (piece.first, piece.stop)})
    return jnp.concatenate(
        [
            sum(
                part[:, :, start - piece.first : stop - piece.first]
                for part, piece in zip(parts, pieces, strict=True)
                if piece.first <= start and stop <= piece.stop
            )
            for start, stop in itertools.pairwise(ends)
        ],
        axis=2,
    )


_attention.defvjp(_attention_forward, _attention_backward)


def chunked_attention(
    q_BxLxHxDh, k_BxLxKxDh, v_BxLxKxDh, *, segment_ids_BxL=None, window: int | None = None, dropout: float = 0.0, dropout_key=None
) -> jax.Array:
    """Causal grouped-query attention, BxLxHxDh; softmax in float32.

    Args:
      q_BxLxHxDh: Queries; H is a multiple of K.
      k_BxLxKxDh: Keys.
      v_BxLxKxDh: Values.
      segment_ids_BxL: A token attends only within its own segment; None: the row is one.
      window: Tokens that a token sees, itself the last of them; None: all before it.
      dropout: Share of weights dropped where `dropout_key` is given.
      dropout_key: Randomness; the backward pass draws the same again instead of keeping it.
    """
    B, L, H, Dh = q_BxLxHxDh.shape
    K = k_BxLxKxDh.shape[2]
    # Heads before tokens: the batched products then read contiguous matrices, which more than pays for this one copy.
    q_BxKxGxLxDh = jnp.swapaxes(q_BxLxHxDh * Dh**-0.5, 1, 2).reshape(B, K, H // K, L, Dh)
    k_BxKxLxDh, v_BxKxLxDh = jnp.swapaxes(k_BxLxKxDh, 1, 2), jnp.swapaxes(v_BxLxKxDh, 1, 2)
    settings = _Settings(window if window is not None and window < L else None, dropout)
    output_BxKxGxLxDh = _attention(settings, q_BxKxGxLxDh, k_BxKxLxDh, v_BxKxLxDh, segment_ids_BxL, dropout_key)
    return jnp.swapaxes(output_BxKxGxLxDh.reshape(B, H, L, Dh), 1, 2)

"""Exact causal attention for any device: queries in pieces that see only the keys before them, scores made again in the
backward pass.

Where no fused kernel can be used this is what runs: half the products of the plain formula, and memory that grows with
  the length, not
its square.

Shape legend: B batch, L length (queries), S length (keys), H query heads, K key/value heads, G = H / K, Dh head, R = G
  x piece of L.

Causal attention by one chooser over several kernels, all equal to the float32 reference up to rounding.

| kernel    | where          | segment ids | window | dropout | refuses
                | |-----------|----------------|-------------|--------|---------|--------------------------------------------------------------------------|
| chunked   | everywhere     | yes         | yes    | yes     | (as "xla")
                | | plain     | everywhere     | yes         | yes    | yes     | (as "xla": where a cut sequence rules
                the chunked one out)               |
| reference | everywhere     | yes         | yes    | yes     |
                | | cudnn     | NVIDIA         | no          | yes    | no      | float32, segment ids, odd lengths,
                heads not a multiple of 8 or over 128 |
| splash    | TPU            | yes         | yes    | no      | lengths that are no multiple of 128
                |

cuDNN itself can take packed rows as lists of offsets, but `jax.nn.dot_product_attention` has no such argument; packed
rows on NVIDIA run the chunked kernel.

Shape legend: B batch, L length (queries), S length (keys), H query heads, K key/value heads, G = H / K, Dh head.
"""

from dataclasses import dataclass
import functools
import itertools

import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from diversity_jax.core.errors import InputError
from diversity_jax.model.config import LlamaConfig
from diversity_jax.model.sharding import constrain, spec

KERNEL_OUTPUT = (
    "attention_kernel_output"  # name of what a kernel's backward pass needs of its forward pass, for remat policies
)
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
    return jnp.tile(segment_ids_BxL[:, piece.start : piece.stop], (1, groups)), segment_ids_BxL[
        :, piece.first : piece.stop
    ]


def _kept(dropout_key, shape: tuple[int, ...], piece: _Piece, dropout: float) -> jax.Array | None:
    """0 for dropped weights and 1 / (1 - dropout) for kept ones, the same whenever a piece is worked through; None: all
    are kept.
    """
    if dropout_key is None or not dropout:
        return None
    return jax.random.bernoulli(jax.random.fold_in(dropout_key, piece.number), 1 - dropout, shape) / jnp.float32(
        1 - dropout
    )


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
    # sum_s weights * d weights, the term softmax's gradient subtracts, from the output instead of the scores (Dao et
    # al. 2022, eq. 4); with dropout too, since dropped weights leave both sides of it.
    delta = jnp.sum(
        gradient_BxKxGxLxDh.astype(jnp.float32) * output_BxKxGxLxDh.astype(jnp.float32), axis=-1, keepdims=True
    )
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
    q_BxLxHxDh,
    k_BxLxKxDh,
    v_BxLxKxDh,
    *,
    segment_ids_BxL=None,
    window: int | None = None,
    dropout: float = 0.0,
    dropout_key=None,
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


def plain_attention(
    q_BxLxHxDh, k_BxLxKxDh, v_BxLxKxDh, *, segment_ids_BxL=None, window=None, dropout=0.0, dropout_key=None
) -> jax.Array:
    """The definition, all scores at once; products in the inputs' type, softmax in float32."""
    B, L, H, Dh = q_BxLxHxDh.shape
    K = k_BxLxKxDh.shape[2]
    q_BxLxKxGxDh = q_BxLxHxDh.reshape(B, L, K, H // K, Dh)
    ahead_LxS = jnp.arange(L)[:, None] - jnp.arange(L)[None, :]
    allowed = ahead_LxS >= 0 if window is None else (ahead_LxS >= 0) & (ahead_LxS < window)
    if segment_ids_BxL is not None:
        allowed = allowed & (segment_ids_BxL[:, None, None, :, None] == segment_ids_BxL[:, None, None, None, :])
    scores_BxKxGxLxS = jnp.einsum("blkgd,bskd->bkgls", q_BxLxKxGxDh, k_BxLxKxDh, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(jnp.where(allowed, scores_BxKxGxLxS * Dh**-0.5, MASKED), axis=-1)
    if dropout_key is not None and dropout:
        weights = jnp.where(jax.random.bernoulli(dropout_key, 1 - dropout, weights.shape), weights / (1 - dropout), 0)
    return jnp.einsum("bkgls,bskd->blkgd", weights.astype(v_BxLxKxDh.dtype), v_BxLxKxDh).reshape(B, L, H, Dh)


def reference_attention(q_BxLxHxDh, k_BxLxKxDh, v_BxLxKxDh, **arguments) -> jax.Array:
    """`plain_attention` in float32, at the highest precision the device has; what every kernel is tested against."""
    with jax.default_matmul_precision("highest"):
        output = plain_attention(*(x.astype(jnp.float32) for x in (q_BxLxHxDh, k_BxLxKxDh, v_BxLxKxDh)), **arguments)
    return output.astype(q_BxLxHxDh.dtype)


def cudnn_attention(q_BxLxHxDh, k_BxLxKxDh, v_BxLxKxDh, *, window=None) -> jax.Array:
    """NVIDIA's fused kernel. It knows no segment ids and would ignore them silently, so the chooser never hands it
    any.
    """
    sizes = None if window is None else (window - 1, 0)
    return jax.nn.dot_product_attention(
        q_BxLxHxDh, k_BxLxKxDh, v_BxLxKxDh, is_causal=True, local_window_size=sizes, implementation="cudnn"
    )


def splash_attention(
    q_BxLxHxDh, k_BxLxKxDh, v_BxLxKxDh, *, segment_ids_BxL=None, window=None, interpret: bool = False
) -> jax.Array:
    """The TPU's block-sparse Pallas kernel; `interpret` runs it, slowly, on any device."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    L, H, Dh = q_BxLxHxDh.shape[1:]
    block = next(size for size in (512, 384, 256, 128) if L % size == 0)
    blocks = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        use_fused_bwd_kernel=True,
    )
    seen = splash.CausalMask((L, L)) if window is None else splash.LocalMask((L, L), (window - 1, 0), 0)
    mask = splash.MultiHeadMask([seen] * H)
    kernel = splash.make_splash_mha(
        mask,
        block_sizes=blocks,
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=KERNEL_OUTPUT,
        interpret=interpret,
    )
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q_BxLxHxDh * Dh**-0.5, k_BxLxKxDh, v_BxLxKxDh))
    if segment_ids_BxL is None:
        output_BxHxLxDh = jax.vmap(kernel)(q, k, v)
    else:
        output_BxHxLxDh = jax.vmap(kernel)(q, k, v, splash.SegmentIds(q=segment_ids_BxL, kv=segment_ids_BxL))
    return jnp.swapaxes(output_BxHxLxDh, 1, 2)


def _obstacle(
    config: LlamaConfig, name: str, platform: str, length: int, segments: bool, sequence_cuts: int
) -> str | None:
    """Why a fused kernel cannot be used here, or None if it can."""
    wanted = {"cudnn": ("gpu", "cuda"), "splash": ("tpu",)}[name]
    if platform not in wanted:
        return f"it runs on {wanted[0].upper()}s and this is a {platform.upper()}"
    if config.dropout:
        return f"it cannot drop attention probabilities (model.dropout={config.dropout})"
    if sequence_cuts > 1:
        return f"it needs whole sequences (mesh.sequence={sequence_cuts})"
    if name == "splash":
        return f"the sequence of {length} tokens is not a multiple of 128" if length % 128 else None
    if segments:
        return "it would ignore segment ids and let packed documents see each other"
    if config.compute_dtype != "bfloat16":
        return f"it has no {config.compute_dtype} (model.compute_dtype)"
    if config.head_size % 8 or config.head_size > 128:
        return f"heads of size {config.head_size} are not a multiple of 8 up to 128"
    return f"the sequence of {length} tokens is odd" if length % 2 else None


def choose_attention(
    config: LlamaConfig, platform: str, length: int, *, segments: bool, sequence_cuts: int = 1
) -> tuple[str, str]:
    """The kernel that will run and why: the device's fused one where nothing stands against it, else XLA's.

    Args:
      config: Its `attention` field names a kernel or "auto".
      platform: "cpu", "gpu", "cuda" or "tpu".
      length: Tokens of a sequence.
      segments: Whether segment ids are given.
      sequence_cuts: Size of the mesh's sequence axis.

    Raises:
      InputError: `config.attention` names a kernel that cannot be used here; the message says why.
    """
    if config.attention == "reference":
        return "reference", "asked for"
    if config.attention in ("cudnn", "splash"):
        if obstacle := _obstacle(config, config.attention, platform, length, segments, sequence_cuts):
            raise InputError(f"model.attention={config.attention!r}: {obstacle}; set model.attention='auto'")
        return config.attention, "asked for"
    reason = "asked for"
    if config.attention == "auto":
        fused = {"tpu": "splash", "gpu": "cudnn", "cuda": "cudnn"}.get(platform)
        if fused is None:
            reason = f"no fused kernel for {platform}"
        elif obstacle := _obstacle(config, fused, platform, length, segments, sequence_cuts):
            reason = f"not {fused}: {obstacle}"
        else:
            return fused, f"the fused kernel for {platform}"
    return ("plain" if sequence_cuts > 1 else "chunked"), reason


def _per_device(kernel, mesh, *arrays) -> jax.Array:
    """Runs a kernel that the compiler cannot split on each device's own rows and heads."""
    if mesh.empty or mesh.size == 1:
        return kernel(*arrays)
    specs = (spec("batch", None, "heads", None), *[spec("batch", None, "kv_heads", None)] * 2, spec("batch", None))[
        : len(arrays)
    ]
    return jax.shard_map(kernel, mesh=mesh, in_specs=specs, out_specs=specs[0], check_vma=False)(*arrays)


def attend(
    config: LlamaConfig, q_BxLxHxDh, k_BxLxKxDh, v_BxLxKxDh, *, segment_ids_BxL=None, dropout_key=None
) -> jax.Array:
    """Causal attention, BxLxHxDh, by the kernel of `choose_attention` for the ambient mesh's devices.

    Raises:
      InputError: `config.attention` names a kernel that cannot be used here.
    """
    mesh = jax.sharding.get_abstract_mesh()
    platform = jax.default_backend() if mesh.empty or mesh.abstract_device is None else mesh.abstract_device.platform
    cuts = 1 if mesh.empty else mesh.shape["sequence"]
    name, _ = choose_attention(
        config, platform, q_BxLxHxDh.shape[1], segments=segment_ids_BxL is not None, sequence_cuts=cuts
    )
    arrays, window = (q_BxLxHxDh, k_BxLxKxDh, v_BxLxKxDh), config.sliding_window
    if name == "cudnn":
        return _per_device(functools.partial(cudnn_attention, window=window), mesh, *arrays)
    if name == "splash":
        packed = [] if segment_ids_BxL is None else [segment_ids_BxL]
        return _per_device(
            lambda q, k, v, s=None: splash_attention(q, k, v, segment_ids_BxL=s, window=window), mesh, *arrays, *packed
        )
    if cuts > 1:  # every device keeps its part of the queries and fetches all keys and values
        arrays = (q_BxLxHxDh, *(constrain(x, "batch", None, "kv_heads", None) for x in arrays[1:]))
    kernel = {"chunked": chunked_attention, "plain": plain_attention, "reference": reference_attention}[name]
    return kernel(
        *arrays, segment_ids_BxL=segment_ids_BxL, window=window, dropout=config.dropout, dropout_key=dropout_key
    )

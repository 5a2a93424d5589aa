"""Causal attention by one of several kernels, all equal to the float32 reference up to rounding.

| kernel    | where      | segments | window | dropout | refuses                                                     |
|-----------|------------|----------|--------|---------|-------------------------------------------------------------|
| chunked   | everywhere | yes      | yes    | yes     | sequences sharded over devices (plain runs instead)         |
| plain     | everywhere | yes      | yes    | yes     |                                                             |
| reference | everywhere | yes      | yes    | yes     |                                                             |
| cudnn     | NVIDIA     | no       | yes    | no      | float32, odd lengths, heads that are not 8, 16, ... or 128  |
| splash    | TPU        | yes      | yes    | no      | lengths that are no multiple of 128                         |

cuDNN itself can take packed rows as lists of offsets, but `jax.nn.dot_product_attention` has no such argument; packed
rows on NVIDIA run the chunked kernel.

Shape legend: B batch, L length (queries), S length (keys), H query heads, K key/value heads, G = H / K, Dh head,
R = G x queries of a chunk.
"""

from collections.abc import Callable
from dataclasses import dataclass
import functools
import itertools
from typing import Any

import jax
from jax import Array
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
from jax.sharding import Mesh

from diversity_jax.core.errors import InputError
from diversity_jax.model.config import LlamaConfig
from diversity_jax.model.sharding import constrain, spec

KERNEL_OUTPUT = "attention_kernel_output"  # checkpoint name of the arrays that a kernel's backward pass reads
MASKED = -1e30  # score of a masked key; finite, so that a fully masked tile gives no NaN
_CHUNKS = 8  # most chunks of a sequence; 9/16 of the products of the plain formula are then computed
_SMALLEST_CHUNK = 64  # tokens; the scores of a chunk then stay in a CPU's cache


@dataclass(frozen=True)
class _Chunk:
    """Queries `start, ..., stop - 1` and the keys they may see, `first, ..., stop - 1`."""

    number: int
    first: int
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start

    def queries(self, x_BxKxGxLxDh: Array) -> Array:
        """BxKxRxDh."""
        x = x_BxKxGxLxDh[:, :, :, self.start : self.stop]
        return x.reshape(*x.shape[:2], -1, x.shape[-1])

    def keys(self, x_BxKxLxDh: Array) -> Array:
        """BxKxSxDh."""
        return x_BxKxLxDh[:, :, self.first : self.stop]


def _chunks(length: int, window: int | None) -> list[_Chunk]:
    size = max(_SMALLEST_CHUNK, -(-length // _CHUNKS))
    return [
        _Chunk(number, 0 if window is None else max(0, start - window + 1), start, min(start + size, length))
        for number, start in enumerate(range(0, length, size))
    ]


def _scores(q_BxKxRxDh, k_BxKxSxDh, segment_ids_BxL, chunk, window):
    """Masked float32 scores, BxKxRxS, of a chunk's queries against its keys; R is group-major."""
    scores = jnp.einsum("bkrd,bksd->bkrs", q_BxKxRxDh, k_BxKxSxDh, preferred_element_type=jnp.float32)
    shape = scores.shape[2:]
    distance = chunk.start - chunk.first + jax.lax.broadcasted_iota(jnp.int32, shape, 0) % chunk.size
    distance = distance - jax.lax.broadcasted_iota(jnp.int32, shape, 1)  # tokens from the key to the query
    allowed = distance >= 0 if window is None else (distance >= 0) & (distance < window)
    if segment_ids_BxL is not None:
        query_segments_BxR = jnp.tile(segment_ids_BxL[:, chunk.start : chunk.stop], (1, shape[0] // chunk.size))
        key_segments_BxS = segment_ids_BxL[:, chunk.first : chunk.stop]
        allowed = allowed & (query_segments_BxR[:, None, :, None] == key_segments_BxS[:, None, None, :])
    return jnp.where(allowed, scores, MASKED)


def _dropout_scale(dropout_key, shape, chunk, dropout):
    """0 for dropped weights and 1 / (1 - dropout) for the others, the same in both passes; 1 without dropout."""
    if dropout_key is None or not dropout:
        return 1.0
    is_kept = jax.random.bernoulli(jax.random.fold_in(dropout_key, chunk.number), 1 - dropout, shape)
    return is_kept / jnp.float32(1 - dropout)


def _forward(window, dropout, q_BxKxGxLxDh, k_BxKxLxDh, v_BxKxLxDh, segment_ids_BxL, dropout_key):
    """The output, BxKxGxLxDh, and the log of the softmax's normaliser of each chunk, BxKxRx1."""
    B, K, G, L, Dh = q_BxKxGxLxDh.shape
    outputs, normalisers = [], []
    for chunk in _chunks(L, window):
        q, k, v = chunk.queries(q_BxKxGxLxDh), chunk.keys(k_BxKxLxDh), chunk.keys(v_BxKxLxDh)
        scores = _scores(q, k, segment_ids_BxL, chunk, window)
        peak = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - peak)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        weights = weights * _dropout_scale(dropout_key, weights.shape, chunk, dropout)
        output = jnp.einsum("bkrs,bksd->bkrd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32) / total
        outputs.append(output.astype(v.dtype).reshape(B, K, G, chunk.size, Dh))
        normalisers.append(peak + jnp.log(total))
    return jnp.concatenate(outputs, axis=3), normalisers


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attention(window, dropout, *arrays):
    return _forward(window, dropout, *arrays)[0]


def _attention_forward(window, dropout, *arrays):
    output, normalisers = checkpoint_name(_forward(window, dropout, *arrays), KERNEL_OUTPUT)
    return output, (*arrays, output, normalisers)


def _attention_backward(window, dropout, saved, gradient_BxKxGxLxDh):
    q_BxKxGxLxDh, k_BxKxLxDh, v_BxKxLxDh, segment_ids_BxL, dropout_key, output_BxKxGxLxDh, normalisers = saved
    B, K, G, L, Dh = q_BxKxGxLxDh.shape
    dtype = q_BxKxGxLxDh.dtype
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    # The softmax's gradient subtracts sum_s weights * d weights, computed from the output instead of the scores (Dao
    # et al. 2022, eq. 4). This holds with dropout too, since dropped weights are zero on both sides.
    products = gradient_BxKxGxLxDh.astype(jnp.float32) * output_BxKxGxLxDh.astype(jnp.float32)
    delta = jnp.sum(products, axis=-1, keepdims=True)
    chunks = _chunks(L, window)
    q_parts, k_parts, v_parts = [], [], []
    for chunk, normaliser in zip(chunks, normalisers, strict=True):
        q, gradient = chunk.queries(q_BxKxGxLxDh), chunk.queries(gradient_BxKxGxLxDh)
        k, v = chunk.keys(k_BxKxLxDh), chunk.keys(v_BxKxLxDh)
        weights = jnp.exp(_scores(q, k, segment_ids_BxL, chunk, window) - normaliser)
        scale = _dropout_scale(dropout_key, weights.shape, chunk, dropout)
        weights_gradient = product("bkrd,bksd->bkrs", gradient, v) * scale
        scores_gradient = (weights * (weights_gradient - chunk.queries(delta))).astype(dtype)
        q_parts.append(product("bkrs,bksd->bkrd", scores_gradient, k).astype(dtype).reshape(B, K, G, chunk.size, Dh))
        k_parts.append(product("bkrs,bkrd->bksd", scores_gradient, q))
        v_parts.append(product("bkrs,bkrd->bksd", (weights * scale).astype(dtype), gradient))
    k_gradient, v_gradient = (_sum_parts(parts, chunks).astype(dtype) for parts in (k_parts, v_parts))
    return jnp.concatenate(q_parts, axis=3), k_gradient, v_gradient, None, None


def _sum_parts(parts: list[Array], chunks: list[_Chunk]) -> Array:
    """Sums arrays BxKxSxDh, each belonging to the keys of its chunk, into one for all keys."""
    edges = sorted({edge for chunk in chunks for edge in (chunk.first, chunk.stop)})
    return jnp.concatenate(
        [
            sum(
                part[:, :, start - chunk.first : stop - chunk.first]
                for part, chunk in zip(parts, chunks, strict=True)
                if chunk.first <= start and stop <= chunk.stop
            )
            for start, stop in itertools.pairwise(edges)
        ],
        axis=2,
    )


_attention.defvjp(_attention_forward, _attention_backward)


def chunked_attention(
    q_BxLxHxDh: Array,
    k_BxLxKxDh: Array,
    v_BxLxKxDh: Array,
    *,
    segment_ids_BxL: Array | None = None,
    window: int | None = None,
    dropout: float = 0.0,
    dropout_key: Array | None = None,
) -> Array:
    """Causal grouped-query attention, BxLxHxDh; softmax in float32.

    Queries are processed in chunks that read only the keys before their end: about half the products of the plain
    formula. Scores are recomputed in the backward pass, so that memory is linear in the length.

    Args:
      q_BxLxHxDh: Queries; H is a multiple of K, the number of heads of keys and values.
      segment_ids_BxL: A token attends only within its own segment; None: all tokens of a row.
      window: Tokens that a token attends to, itself included; None: all up to itself.
      dropout: Share of weights dropped where `dropout_key` is given.
      dropout_key: The backward pass samples the same mask again from it instead of storing the mask.
    """
    B, L, H, Dh = q_BxLxHxDh.shape
    K = k_BxLxKxDh.shape[2]
    # Heads before tokens: the batched products then read contiguous matrices, which saves more than this copy costs.
    q_BxKxGxLxDh = jnp.swapaxes(q_BxLxHxDh * Dh**-0.5, 1, 2).reshape(B, K, H // K, L, Dh)
    k_BxKxLxDh, v_BxKxLxDh = jnp.swapaxes(k_BxLxKxDh, 1, 2), jnp.swapaxes(v_BxLxKxDh, 1, 2)
    window = window if window is not None and window < L else None
    output_BxKxGxLxDh = _attention(window, dropout, q_BxKxGxLxDh, k_BxKxLxDh, v_BxKxLxDh, segment_ids_BxL, dropout_key)
    return jnp.swapaxes(output_BxKxGxLxDh.reshape(B, H, L, Dh), 1, 2)


def masked_attention(
    q_BxLxHxDh: Array, k_BxSxKxDh: Array, v_BxSxKxDh: Array, allowed_BxLxS: Array, *, dropout=0.0, dropout_key=None
) -> Array:
    """Grouped-query attention by its definition; products in the inputs' type, softmax in float32.

    Args:
      allowed_BxLxS: which keys each query attends to; B may be 1.
    """
    B, L, H, Dh = q_BxLxHxDh.shape
    K = k_BxSxKxDh.shape[2]
    q_BxLxKxGxDh = q_BxLxHxDh.reshape(B, L, K, H // K, Dh)
    scores_BxKxGxLxS = jnp.einsum("blkgd,bskd->bkgls", q_BxLxKxGxDh, k_BxSxKxDh, preferred_element_type=jnp.float32)
    scores_BxKxGxLxS = jnp.where(allowed_BxLxS[:, None, None], scores_BxKxGxLxS * Dh**-0.5, MASKED)
    weights = jax.nn.softmax(scores_BxKxGxLxS, axis=-1)
    if dropout_key is not None and dropout:
        weights = jnp.where(jax.random.bernoulli(dropout_key, 1 - dropout, weights.shape), weights / (1 - dropout), 0)
    return jnp.einsum("bkgls,bskd->blkgd", weights.astype(v_BxSxKxDh.dtype), v_BxSxKxDh).reshape(B, L, H, Dh)


def plain_attention(
    q_BxLxHxDh: Array, k_BxLxKxDh: Array, v_BxLxKxDh: Array, *, segment_ids_BxL=None, window=None, **dropout
) -> Array:
    """Causal attention with all scores at once; arguments as `chunked_attention`."""
    L = q_BxLxHxDh.shape[1]
    distance_LxS = jnp.arange(L)[:, None] - jnp.arange(L)[None, :]  # from the key to the query
    allowed = distance_LxS >= 0 if window is None else (distance_LxS >= 0) & (distance_LxS < window)
    allowed_BxLxS = allowed[None]
    if segment_ids_BxL is not None:
        allowed_BxLxS = allowed_BxLxS & (segment_ids_BxL[:, :, None] == segment_ids_BxL[:, None, :])
    return masked_attention(q_BxLxHxDh, k_BxLxKxDh, v_BxLxKxDh, allowed_BxLxS, **dropout)


def reference_attention(q_BxLxHxDh: Array, k_BxLxKxDh: Array, v_BxLxKxDh: Array, **arguments: Any) -> Array:
    """`plain_attention` in float32, at the highest precision the device has; what every kernel is tested against."""
    with jax.default_matmul_precision("highest"):
        output = plain_attention(*(x.astype(jnp.float32) for x in (q_BxLxHxDh, k_BxLxKxDh, v_BxLxKxDh)), **arguments)
    return output.astype(q_BxLxHxDh.dtype)


def cudnn_attention(q_BxLxHxDh: Array, k_BxLxKxDh: Array, v_BxLxKxDh: Array, *, window: int | None) -> Array:
    """NVIDIA's fused kernel. It has no segment ids."""
    sizes = None if window is None else (window - 1, 0)
    return jax.nn.dot_product_attention(
        q_BxLxHxDh, k_BxLxKxDh, v_BxLxKxDh, is_causal=True, local_window_size=sizes, implementation="cudnn"
    )


def splash_attention(
    q_BxLxHxDh: Array, k_BxLxKxDh: Array, v_BxLxKxDh: Array, segment_ids_BxL=None, *, window=None, interpret=False
) -> Array:
    """The TPU's block-sparse Pallas kernel; `interpret` runs it, slowly, on any device."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    L, H, Dh = q_BxLxHxDh.shape[1:]
    block = next(size for size in (512, 384, 256, 128) if L % size == 0)
    names = ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute")
    sizes: dict[str, Any] = dict.fromkeys(names, block)
    head_mask = splash.CausalMask((L, L)) if window is None else splash.LocalMask((L, L), (window - 1, 0), 0)
    options: dict[str, Any] = {"head_shards": 1, "q_seq_shards": 1, "residual_checkpoint_name": KERNEL_OUTPUT}
    options["block_sizes"] = splash.BlockSizes(**sizes, use_fused_bwd_kernel=True)
    kernel = splash.make_splash_mha(splash.MultiHeadMask([head_mask] * H), interpret=interpret, **options)
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q_BxLxHxDh * Dh**-0.5, k_BxLxKxDh, v_BxLxKxDh))
    ids = () if segment_ids_BxL is None else (splash.SegmentIds(q=segment_ids_BxL, kv=segment_ids_BxL),)
    return jnp.swapaxes(jax.vmap(kernel)(q, k, v, *ids), 1, 2)


def _obstacle(config, name, platform, length, segments, sequence_shards):
    """Why a fused kernel cannot be used here, or None if it can."""
    platforms = {"cudnn": ("gpu", "cuda"), "splash": ("tpu",)}[name]
    if platform not in platforms:
        return f"it runs on {platforms[0].upper()}s and this is a {platform.upper()}"
    if config.dropout:
        return f"it cannot drop attention probabilities (model.dropout={config.dropout})"
    if sequence_shards > 1:
        return f"it needs whole sequences (mesh.sequence={sequence_shards})"
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
    config: LlamaConfig, platform: str, length: int, *, segments: bool, sequence_shards: int = 1
) -> tuple[str, str]:
    """Name of the kernel that will run, and why: the device's fused one where possible, else one of XLA operations.

    Args:
      platform: "cpu", "gpu", "cuda" or "tpu".
      length: Tokens of a sequence.
      segments: Whether segment ids are given.
      sequence_shards: Size of the mesh's sequence axis.

    Raises:
      InputError: `config.attention` names a kernel that cannot be used here; the message says why.
    """
    wanted = config.attention
    if wanted == "reference":
        return "reference", "asked for"
    fallback = "plain" if sequence_shards > 1 else "chunked"
    fused = {"tpu": "splash", "gpu": "cudnn", "cuda": "cudnn"}.get(platform) if wanted == "auto" else wanted
    if fused in (None, "chunked"):
        return fallback, "asked for" if fused else f"no fused kernel for {platform}"
    obstacle = _obstacle(config, fused, platform, length, segments, sequence_shards)
    if obstacle and wanted != "auto":
        raise InputError(f"model.attention={wanted!r}: {obstacle}; set model.attention='auto'")
    if obstacle:
        return fallback, f"not {fused}: {obstacle}"
    return fused, f"the fused kernel for {platform}" if wanted == "auto" else "asked for"


def _per_device(kernel: Callable[..., Array], mesh: Mesh | None, *arrays: Array) -> Array:
    """Runs a kernel that the compiler cannot partition on each device's own rows and heads."""
    if mesh is None or mesh.size == 1:
        return kernel(*arrays)
    q, kv, segments = spec("batch", None, "heads", None), spec("batch", None, "kv_heads", None), spec("batch", None)
    specs = (q, kv, kv, segments)[: len(arrays)]
    return jax.shard_map(kernel, mesh=mesh, in_specs=specs, out_specs=q, check_vma=False)(*arrays)


def attend(
    config: LlamaConfig,
    q_BxLxHxDh: Array,
    k_BxLxKxDh: Array,
    v_BxLxKxDh: Array,
    *,
    window: int | None = None,
    segment_ids_BxL: Array | None = None,
    dropout_key: Array | None = None,
    mesh: Mesh | None = None,
) -> Array:
    """Causal attention, BxLxHxDh, by the kernel of `choose_attention` for the mesh's devices.

    Args:
      window: Of this layer; as in `chunked_attention`.

    Raises:
      InputError: `config.attention` names a kernel that cannot be used here.
    """
    platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
    shards = 1 if mesh is None else mesh.shape["sequence"]
    has_segments = segment_ids_BxL is not None
    name, _ = choose_attention(config, platform, q_BxLxHxDh.shape[1], segments=has_segments, sequence_shards=shards)
    arrays = (q_BxLxHxDh, k_BxLxKxDh, v_BxLxKxDh)
    if name in ("cudnn", "splash"):
        fused = functools.partial(cudnn_attention if name == "cudnn" else splash_attention, window=window)
        return _per_device(fused, mesh, *arrays, *([] if segment_ids_BxL is None else [segment_ids_BxL]))
    if shards > 1:  # every device keeps its shard of the queries and gathers all keys and values
        keys, values = (constrain(x, mesh, "batch", None, "kv_heads", None) for x in arrays[1:])
        arrays = (q_BxLxHxDh, keys, values)
    kernel = {"chunked": chunked_attention, "plain": plain_attention, "reference": reference_attention}[name]
    return kernel(
        *arrays, segment_ids_BxL=segment_ids_BxL, window=window, dropout=config.dropout, dropout_key=dropout_key
    )

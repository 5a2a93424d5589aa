"""Next-token cross-entropy with the output projection inside, so that BxLxV logits never exist whole where they would
be large.

Shape legend: B batch, L length, D hidden, V vocabulary.
"""

from collections.abc import Mapping
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from diversity_jax.model.config import LlamaConfig
from diversity_jax.model.llama import Params, head_weight, hidden_states
from diversity_jax.model.sharding import RULES, constrain


def chunk_count(config: LlamaConfig, rows: int, length: int) -> int:
    """Pieces of the sequence the loss works through: the fewest, dividing `length`, whose logits fit `loss_chunk_bytes`
    on a device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    devices = 1 if mesh.empty else mesh.size
    logits_bytes = 4 * rows * length * config.vocab_size / devices
    least = math.ceil(logits_bytes / config.loss_chunk_bytes)
    return next(n for n in range(min(least, length), length + 1) if length % n == 0)


def _chunk_logits(x_BxLxD, head_DxV):
    logits = jnp.einsum("bld,dv->blv", x_BxLxD, head_DxV, preferred_element_type=jnp.float32)
    # Rows are already this device's own where `_on_own_rows` runs it.
    return constrain(logits, None if _row_axes() else "batch", "length", "vocab")


def _chunk_losses(logits_BxLxV, targets_BxL):
    peak_BxLx1 = jnp.max(logits_BxLxV, axis=-1, keepdims=True)
    normaliser_BxL = jnp.log(jnp.sum(jnp.exp(logits_BxLxV - peak_BxLx1), axis=-1)) + peak_BxLx1[..., 0]
    chosen_BxL = jnp.take_along_axis(logits_BxLxV, targets_BxL[..., None], axis=-1)[..., 0]
    return normaliser_BxL - chosen_BxL, normaliser_BxL


def _forward_chunk(z_loss, x_BxLxD, head_DxV, targets_BxL, weights_BxL):
    losses_BxL, normaliser_BxL = _chunk_losses(_chunk_logits(x_BxLxD, head_DxV), targets_BxL)
    return jnp.sum(weights_BxL * (losses_BxL + z_loss * normaliser_BxL**2)), losses_BxL, normaliser_BxL


def _gradient_chunk(z_loss, x_BxLxD, head_DxV, targets_BxL, weights_BxL):
    logits_BxLxV = _chunk_logits(x_BxLxD, head_DxV)
    losses_BxL, normaliser_BxL = _chunk_losses(logits_BxLxV, targets_BxL)
    objective = jnp.sum(weights_BxL * (losses_BxL + z_loss * normaliser_BxL**2))
    # d objective / d logits = w * (softmax * (1 + 2 z log Z) - onehot)
    hit_BxLxV = jax.lax.broadcasted_iota(targets_BxL.dtype, logits_BxLxV.shape, 2) == targets_BxL[..., None]
    scale_BxL = weights_BxL * (1 + 2 * z_loss * normaliser_BxL)
    slope_BxLxV = jnp.exp(logits_BxLxV - normaliser_BxL[..., None]) * scale_BxL[..., None]
    slope_BxLxV = (slope_BxLxV - jnp.where(hit_BxLxV, weights_BxL[..., None], 0)).astype(x_BxLxD.dtype)
    x_gradient_BxLxD = jnp.einsum("blv,dv->bld", slope_BxLxV, head_DxV)
    head_gradient_DxV = jnp.einsum("bld,blv->dv", x_BxLxD, slope_BxLxV, preferred_element_type=jnp.float32)
    return objective, losses_BxL, normaliser_BxL, x_gradient_BxLxD, head_gradient_DxV


def _split(chunks, x):
    B, L = x.shape[:2]
    return jnp.moveaxis(x.reshape(B, chunks, L // chunks, *x.shape[2:]), 1, 0)


def _join(x):
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def weighted_cross_entropy(chunks: int, z_loss: float, x_BxLxD, head_DxV, targets_BxL, weights_BxL):
    """Sum over tokens of weight * (cross-entropy + z_loss * log(Z)^2), where Z is the softmax's normaliser.

    The gradient with respect to `x` and `head` is made in the forward pass, piece by piece: no logits are kept and none
    are computed twice.

    Returns:
      The scalar sum, then cross-entropy and log(Z) of each token (BxL, float32). Only the sum has a gradient.
    """
    if chunks == 1:
        return _forward_chunk(z_loss, x_BxLxD, head_DxV, targets_BxL, weights_BxL)

    def body(total, piece):
        x, targets, weights = piece
        objective, losses, normaliser = _forward_chunk(z_loss, x, head_DxV, targets, weights)
        return total + objective, (losses, normaliser)

    pieces = tuple(_split(chunks, x) for x in (x_BxLxD, targets_BxL, weights_BxL))
    total, (losses, normaliser) = jax.lax.scan(body, jnp.float32(0), pieces)
    return total, _join(losses), _join(normaliser)


def _forward(chunks, z_loss, x_BxLxD, head_DxV, targets_BxL, weights_BxL):
    if chunks == 1:
        total, losses, normaliser, x_gradient, head_gradient = _gradient_chunk(
            z_loss, x_BxLxD, head_DxV, targets_BxL, weights_BxL
        )
        return (total, losses, normaliser), (x_gradient, head_gradient.astype(head_DxV.dtype))

    def body(carry, piece):
        total, head_gradient = carry
        x, targets, weights = piece
        objective, losses, normaliser, x_slope, head_slope = _gradient_chunk(z_loss, x, head_DxV, targets, weights)
        return (total + objective, head_gradient + head_slope), (losses, normaliser, x_slope)

    pieces = tuple(_split(chunks, x) for x in (x_BxLxD, targets_BxL, weights_BxL))
    start = (jnp.float32(0), jnp.zeros(head_DxV.shape, jnp.float32))
    (total, head_gradient), (losses, normaliser, x_gradient) = jax.lax.scan(body, start, pieces)
    return (total, _join(losses), _join(normaliser)), (_join(x_gradient), head_gradient.astype(head_DxV.dtype))


def _backward(chunks, z_loss, gradients, cotangents):
    x_gradient_BxLxD, head_gradient_DxV = gradients
    scale = cotangents[0]
    return (
        (scale * x_gradient_BxLxD).astype(x_gradient_BxLxD.dtype),
        (scale * head_gradient_DxV).astype(head_gradient_DxV.dtype),
        None,
        None,
    )


weighted_cross_entropy.defvjp(_forward, _backward)


def _row_axes() -> tuple[str, ...]:
    """Axes of the ambient mesh that cut the batch."""
    mesh = jax.sharding.get_abstract_mesh()
    return () if mesh.empty else tuple(axis for axis in RULES["batch"] if mesh.shape[axis] > 1)


def _on_own_rows(chunks: int, z_loss: float, x_BxLxD, head_DxV, targets_BxL, weights_BxL):
    """`weighted_cross_entropy` with every device at its own rows and the whole D of its part of the vocabulary.

    Left to the compiler, each chunk would gather the head anew and reduce its gradient over all devices; so both happen
    once.
    """
    axes = _row_axes()
    if not axes:
        return weighted_cross_entropy(chunks, z_loss, x_BxLxD, head_DxV, targets_BxL, weights_BxL)

    cut = RULES["embed"] if RULES["embed"] in axes else None

    def own(x, head, *arrays):
        head_DxV = jax.lax.all_gather(head, cut, axis=0, tiled=True) if cut else head
        total, losses, normaliser = weighted_cross_entropy(chunks, z_loss, x, head_DxV, *arrays)
        return jax.lax.psum(total, axes), losses, normaliser

    rows, whole = PartitionSpec(axes), PartitionSpec()
    run = jax.shard_map(
        own,
        in_specs=(rows, PartitionSpec(cut), rows, rows),
        out_specs=(whole, rows, rows),
        axis_names=frozenset(axes),
        check_vma=False,
    )
    return run(x_BxLxD, head_DxV, targets_BxL, weights_BxL)


def target_weights(batch: Mapping[str, jax.Array]) -> jax.Array:
    """BxL float32: 1 where a token is a target of the loss, 0 where `loss_mask` (BxL+1, aligned with the tokens) leaves
    it out.
    """
    if batch.get("loss_mask") is None:
        return jnp.ones(batch["tokens"][:, 1:].shape, jnp.float32)
    return batch["loss_mask"][:, 1:].astype(jnp.float32)


def loss(
    config: LlamaConfig,
    params: Params,
    batch: Mapping[str, jax.Array],
    *,
    z_loss: float = 0.0,
    token_count: jax.Array | None = None,
    dropout_key: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, Any]]:
    """Mean next-token loss of a batch.

    Args:
      config: The model.
      params: Its parameters.
      batch: `tokens` int BxL+1; optional `segment_ids`, `positions` and `loss_mask`, BxL+1, aligned with the tokens.
      z_loss: Weight of log(Z)^2, which keeps logits from drifting; 0: off.
      token_count: What to divide by; None: the number of targets in this batch. Gradient accumulation passes the whole
        batch's.
      dropout_key: Randomness; None: no dropout.

    Returns:
      The scalar to minimise, float32, and its parts: `losses` BxL (cross-entropy of each target in nats, 0 where
        masked) and `weights` BxL.
    """
    tokens = batch["tokens"]
    inputs = {
        f"{name}_BxL": batch[name][:, :-1] for name in ("segment_ids", "positions") if batch.get(name) is not None
    }
    x_BxLxD = hidden_states(config, params, tokens[:, :-1], dropout_key=dropout_key, **inputs)
    weights_BxL = target_weights(batch)
    count = jnp.maximum(jnp.sum(weights_BxL) if token_count is None else token_count, 1)
    chunks = chunk_count(config, *weights_BxL.shape)
    total, losses_BxL, _ = _on_own_rows(
        chunks, z_loss, x_BxLxD, head_weight(config, params), tokens[:, 1:], weights_BxL / count
    )
    return total, {"losses": jax.lax.stop_gradient(losses_BxL) * weights_BxL, "weights": weights_BxL}

"""Next-token cross-entropy fused with the output projection, so that large BxLxV logits never exist at once.

Shape legend: B batch, L length, D hidden, V vocabulary.
"""

from collections.abc import Mapping
import functools
import math
from typing import Any

import jax
from jax import Array
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diversity_jax.model.config import LlamaConfig
from diversity_jax.model.llama import Params, head_weight, hidden_states
from diversity_jax.model.sharding import RULES, spec


def chunk_count(config: LlamaConfig, rows: int, length: int, mesh: Mesh | None = None) -> int:
    """The fewest chunks of the sequence, dividing `length`, whose logits fit `loss_chunk_bytes` on a device."""
    logits_bytes = 4 * rows * length * config.vocab_size / (1 if mesh is None else mesh.size)
    least = math.ceil(logits_bytes / config.loss_chunk_bytes)
    return next(n for n in range(min(least, length), length + 1) if length % n == 0)


def _chunk(z_loss, sharding, head_DxV, x_BxLxD, targets_BxL, weights_BxL):
    """Objective (a scalar), cross-entropy and log normaliser (BxL) and logits (BxLxV) of a part of the sequence."""
    logits_BxLxV = jnp.einsum("bld,dv->blv", x_BxLxD, head_DxV, preferred_element_type=jnp.float32)
    if sharding is not None:
        logits_BxLxV = jax.lax.with_sharding_constraint(logits_BxLxV, sharding)
    peak_BxLx1 = jnp.max(logits_BxLxV, axis=-1, keepdims=True)
    normaliser_BxL = jnp.log(jnp.sum(jnp.exp(logits_BxLxV - peak_BxLx1), axis=-1)) + peak_BxLx1[..., 0]
    chosen_BxL = jnp.take_along_axis(logits_BxLxV, targets_BxL[..., None], axis=-1)[..., 0]
    losses_BxL = normaliser_BxL - chosen_BxL
    objective = jnp.sum(weights_BxL * (losses_BxL + z_loss * normaliser_BxL**2))
    return objective, losses_BxL, normaliser_BxL, logits_BxLxV


def _sum_chunks(chunks, compute, start, *arrays):
    """`compute` on each chunk of the sequence: its first results added to `start`, its second ones concatenated."""
    if chunks == 1:
        return compute(*arrays)

    def add_chunk(totals, part):
        sums, results = compute(*part)
        return jax.tree.map(jnp.add, totals, sums), results

    split = [jnp.moveaxis(x.reshape(x.shape[0], chunks, -1, *x.shape[2:]), 1, 0) for x in arrays]
    totals, results = jax.lax.scan(add_chunk, start, split)
    return totals, [jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1, *x.shape[3:]) for x in results]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def weighted_cross_entropy(
    chunks: int, z_loss: float, sharding: Any, x_BxLxD: Array, head_DxV: Array, targets_BxL: Array, weights_BxL: Array
) -> tuple[Array, Array, Array]:
    """Sum over tokens of weight * (cross-entropy + z_loss * log(Z)^2), where Z is the softmax's normaliser.

    The gradient with respect to `x` and `head` is computed in the forward pass, chunk by chunk: logits are neither
    stored nor computed twice.

    Args:
      chunks: number of equal parts of the sequence.
      sharding: of a chunk's logits; None: left to the compiler.

    Returns:
      The scalar sum, then cross-entropy and log(Z) of each token (BxL, float32). Only the sum has a gradient.
    """

    def compute(*arrays):
        objective, losses_BxL, normaliser_BxL, _ = _chunk(z_loss, sharding, head_DxV, *arrays)
        return objective, (losses_BxL, normaliser_BxL)

    total, results = _sum_chunks(chunks, compute, jnp.float32(0), x_BxLxD, targets_BxL, weights_BxL)
    return total, *results


def _forward(chunks, z_loss, sharding, x_BxLxD, head_DxV, targets_BxL, weights_BxL):
    def compute(x_BxLxD, targets_BxL, weights_BxL):
        objective, losses_BxL, normaliser_BxL, logits_BxLxV = _chunk(
            z_loss, sharding, head_DxV, x_BxLxD, targets_BxL, weights_BxL
        )
        # d objective / d logits = w * (softmax * (1 + 2 z log Z) - onehot)
        is_target_BxLxV = jax.lax.broadcasted_iota(targets_BxL.dtype, logits_BxLxV.shape, 2) == targets_BxL[..., None]
        scale_BxL = weights_BxL * (1 + 2 * z_loss * normaliser_BxL)
        gradient_BxLxV = jnp.exp(logits_BxLxV - normaliser_BxL[..., None]) * scale_BxL[..., None]
        gradient_BxLxV = (gradient_BxLxV - jnp.where(is_target_BxLxV, weights_BxL[..., None], 0)).astype(x_BxLxD.dtype)
        x_gradient_BxLxD = jnp.einsum("blv,dv->bld", gradient_BxLxV, head_DxV)
        head_gradient_DxV = jnp.einsum("bld,blv->dv", x_BxLxD, gradient_BxLxV, preferred_element_type=jnp.float32)
        return (objective, head_gradient_DxV), (losses_BxL, normaliser_BxL, x_gradient_BxLxD)

    start = jnp.float32(0), jnp.zeros(head_DxV.shape, jnp.float32)
    (total, head_gradient_DxV), (losses_BxL, normaliser_BxL, x_gradient_BxLxD) = _sum_chunks(
        chunks, compute, start, x_BxLxD, targets_BxL, weights_BxL
    )
    return (total, losses_BxL, normaliser_BxL), (x_gradient_BxLxD, head_gradient_DxV.astype(head_DxV.dtype))


def _backward(chunks, z_loss, sharding, gradients, cotangents):
    return *((cotangents[0] * gradient).astype(gradient.dtype) for gradient in gradients), None, None


weighted_cross_entropy.defvjp(_forward, _backward)


def _sharded_cross_entropy(mesh, chunks, z_loss, x_BxLxD, head_DxV, *arrays_BxL):
    """`weighted_cross_entropy` where each device computes its own rows with the head gathered over fsdp.

    The compiler alone would gather the head and reduce its gradient over all devices in every chunk; here both happen
    once.
    """
    if mesh is None or mesh.size == 1:
        return weighted_cross_entropy(chunks, z_loss, None, x_BxLxD, head_DxV, *arrays_BxL)
    axes = tuple(axis for axis in ("data", "fsdp") if mesh.shape[axis] > 1)  # RULES["batch"]
    if not axes:
        sharding = NamedSharding(mesh, spec("batch", "length", "vocab"))
        return weighted_cross_entropy(chunks, z_loss, sharding, x_BxLxD, head_DxV, *arrays_BxL)
    head_axis = RULES["embed"] if RULES["embed"] in axes else None
    if mesh.devices.flat[0].platform == "cpu":
        # The backward pass sums the head's gradient over `axes`, and XLA's CPU compiler (jaxlib 0.10.2) aborts on sums
        # of bfloat16 over some of a mesh's axes, so that the sum has to be in float32.
        head_DxV = head_DxV.astype(jnp.float32)

    def own_rows(x, head, *arrays):
        full_head = jax.lax.all_gather(head, head_axis, axis=0, tiled=True) if head_axis else head
        full_head = full_head.astype(x.dtype)
        sharding = spec(None, "length", "vocab")  # rows are already this device's own
        total, losses, normaliser = weighted_cross_entropy(chunks, z_loss, sharding, x, full_head, *arrays)
        return jax.lax.psum(total, axes), losses, normaliser

    rows, replicated = PartitionSpec(axes), PartitionSpec()
    run = jax.shard_map(
        own_rows,
        mesh=mesh,
        in_specs=(rows, PartitionSpec(head_axis), rows, rows),
        out_specs=(replicated, rows, rows),
        axis_names=frozenset(axes),
        check_vma=False,
    )
    return run(x_BxLxD, head_DxV, *arrays_BxL)


def target_weights(batch: Mapping[str, Array]) -> Array:
    """Float32 BxL: 1 for targets of the loss, 0 where `loss_mask` (BxL+1, aligned with the tokens) is 0."""
    if batch.get("loss_mask") is None:
        return jnp.ones(batch["tokens"][:, 1:].shape, jnp.float32)
    return batch["loss_mask"][:, 1:].astype(jnp.float32)


def loss(
    config: LlamaConfig,
    params: Params,
    batch: Mapping[str, Array],
    *,
    mesh: Mesh | None = None,
    z_loss: float = 0.0,
    token_count: Array | None = None,
    dropout_key: Array | None = None,
) -> tuple[Array, dict[str, Any]]:
    """Mean next-token loss of a batch.

    Args:
      batch: `tokens` int BxL+1; optional `segment_ids`, `positions` and `loss_mask`, BxL+1, aligned with the tokens.
      mesh: Of the arrays; None: they are on one device.
      z_loss: Weight of log(Z)^2, which keeps logits from drifting; 0: off.
      token_count: Divisor of the sum; None: the number of targets in this batch. With gradient accumulation, the number
        in all parts.
      dropout_key: None: no dropout.

    Returns:
      The scalar to minimise, float32, and its parts: `losses` BxL (cross-entropy of each target in nats, 0 where
        masked) and `weights` BxL.
    """
    tokens = batch["tokens"]
    given = [name for name in ("segment_ids", "positions") if batch.get(name) is not None]
    inputs = {f"{name}_BxL": batch[name][:, :-1] for name in given}
    x_BxLxD = hidden_states(config, params, tokens[:, :-1], dropout_key=dropout_key, mesh=mesh, **inputs)
    weights_BxL = target_weights(batch)
    count = jnp.maximum(jnp.sum(weights_BxL) if token_count is None else token_count, 1)
    B, L = weights_BxL.shape
    chunks = chunk_count(config, B, L, mesh)
    total, losses_BxL, _ = _sharded_cross_entropy(
        mesh, chunks, z_loss, x_BxLxD, head_weight(config, params), tokens[:, 1:], weights_BxL / count
    )
    return total, {"losses": jax.lax.stop_gradient(losses_BxL) * weights_BxL, "weights": weights_BxL}

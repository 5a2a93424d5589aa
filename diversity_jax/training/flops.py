"""Floating-point operations of a Llama and what share of a device's peak a run reaches, in both conventions in use.

Per trained token, forward and backward, with matrix parameters M (all layers' matrices and the output projection, not
the look-up), N layers, hidden size D = H * Dh and sequence length L:

    not causal:  6 M + 12 N D L    scores and weighted values counted for every pair of tokens (PaLM, appendix B;
      MaxText's default for MFU)
    causal:      6 M +  6 N D L    only the half of the pairs that a causal kernel needs

Recomputation by remat counts in neither: MFU is about useful work. Norms, softmax, rotary and the optimizer are left
  out, as is customary.
"""

import time
from typing import Any

import jax
import jax.numpy as jnp

from diversity_jax.model.config import LlamaConfig

# Dense peak of matrix products in bfloat16 with float32 accumulation, FLOP/s of one JAX device, by a part of its
# `device_kind`; from the makers'
# data sheets.
# Longer names stand before the shorter ones they contain.
PEAK_FLOPS = {
    "tpu v2": 22.5e12,
    "tpu v3": 61.5e12,
    "tpu v4": 275e12,
    "tpu v5 lite": 197e12,
    "tpu v5e": 197e12,
    "tpu v5p": 459e12,
    "tpu v5": 459e12,
    "tpu v6 lite": 918e12,
    "tpu v6e": 918e12,
    "h100 pcie": 756e12,
    "h100": 989e12,
    "h200": 989e12,
    "h800": 989e12,
    "a100": 312e12,
    "a10g": 70e12,
    "l40s": 362e12,
    "l4": 121e12,
}


def flops_per_token(config: LlamaConfig, length: int, *, causal: bool) -> float:
    """Floating-point operations of one trained token, forward and backward, in the named convention.

    Args:
      config: The model.
      length: Tokens of a sequence.
      causal: Whether only pairs that a causal mask keeps are counted.
    """
    matrices = config.num_layers * config.layer_matrix_parameters + config.vocab_size * config.hidden_size
    return 6 * matrices + (6 if causal else 12) * config.num_layers * config.hidden_size * length


def peak_flops(device: Any | None = None) -> float | None:
    """The data sheet's bfloat16 FLOP/s of a device (default: the first); None where the kind is unknown, as for
    CPUs.
    """
    kind = (jax.devices()[0] if device is None else device).device_kind.lower()
    return next((peak for name, peak in PEAK_FLOPS.items() if name in kind), None)


def measured_peak_flops(dtype: str = "bfloat16", size: int = 1024, seconds: float = 0.3) -> float:
    """FLOP/s that square matrix products of `size` reach on the first device: the best of repeated runs for about
    `seconds`.
    """
    x = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a, b: a @ b)
    product(x, x).block_until_ready()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        product(x, x).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def mfu(config: LlamaConfig, length: int, tokens_per_second: float, total_peak_flops: float, *, causal: bool) -> float:
    """Model FLOPs utilisation: the share of `total_peak_flops` (all devices together) that useful work takes."""
    return flops_per_token(config, length, causal=causal) * tokens_per_second / total_peak_flops

"""Rotary positions (Su et al. 2021), half-split as in Hugging Face, and their scaling for long texts.

Shape legend: B batch, L length, H heads, Dh head.
"""

from collections.abc import Callable
import dataclasses
import math
from typing import Any

from jax import Array
import jax.numpy as jnp
import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.model.config import LlamaConfig

Rotary = tuple[Array, Array]  # cosines and sines, each BxLx1xR/2, where R elements of a head are rotated


def rotary_frequencies(config: LlamaConfig, length: int) -> np.ndarray:
    """Radians per token of each pair of elements, float32 [R / 2], descending.

    Args:
      length: Tokens of the sequence, which "dynamic" depends on.
    """
    half, theta = config.rotary_size // 2, config.rope_theta
    original = config.rope_original_length or 0
    if config.rope_scaling == "dynamic" and length > original:  # "NTK": a larger base stretches long waves most
        growth = config.rope_factor * length / original - (config.rope_factor - 1)
        theta *= growth ** (config.rotary_size / (config.rotary_size - 2))
    frequency = np.float32(theta) ** (-np.arange(half, dtype=np.float32) / half)
    if config.rope_scaling in ("none", "dynamic"):
        return frequency
    unscaled = _unscaled_share(config, frequency)
    return (frequency * (unscaled + (1 - unscaled) / config.rope_factor)).astype(np.float32)


def _unscaled_share(config: LlamaConfig, frequency: np.ndarray) -> np.ndarray:
    """Weight, 0 to 1, of the original frequency of each pair; the remainder weighs that divided by `rope_factor`."""
    slow, fast = config.rope_slow_turns, config.fast_turns
    if config.rope_scaling == "llama3":  # linear in the turns within the original length (Llama 3.1)
        turns = (config.rope_original_length or 0) * frequency.astype(np.float64) / (2 * math.pi)
        return np.clip((turns - slow) / (fast - slow), 0, 1)
    if config.rope_scaling == "yarn":  # linear in the number of the pair (Peng et al. 2023, section 3.2)
        first, last = (_pair_with_turns(config, turns) for turns in (fast, slow))
        low, high = max(math.floor(first), 0), min(math.ceil(last), config.rotary_size - 1)
        ramp = (np.arange(len(frequency)) - low) / (high - low if high != low else 0.001)
        return 1 - np.clip(ramp, 0, 1)
    return np.zeros(len(frequency))


def _pair_with_turns(config: LlamaConfig, turns: float) -> float:
    """The index, a fraction, of the pair that makes this number of turns within the original length."""
    longest = (config.rope_original_length or 0) / (turns * 2 * math.pi)
    return config.rotary_size * math.log(longest) / (2 * math.log(config.rope_theta))


def check_reading_in_parts(config: LlamaConfig) -> None:
    """Raises `InputError` where frequencies depend on the length of the text, which may be processed in parts."""
    original = config.rope_original_length or 0
    if config.rope_scaling == "dynamic" and config.max_length > original:
        raise InputError(
            f"model.max_length={config.max_length}: beyond model.rope_original_length={original} 'dynamic' scaling "
            "changes with the length of a whole text, which packed documents, evaluation and generation read in parts; "
            "lower max_length to it, or set model.rope_scaling='yarn'"
        )


def rotary_table(config: LlamaConfig, length: int, positions_BxL: Array | None) -> Rotary:
    """Cosines and sines of the rotary angles in the compute type; B is 1 without positions.

    Raises:
      InputError: as `check_reading_in_parts`, where there are positions.
    """
    if positions_BxL is not None:
        check_reading_in_parts(config)
    frequency = rotary_frequencies(config, length)
    # Without positions the table is a numpy constant: XLA would recompute it for every row, head and layer.
    module: Any = np if positions_BxL is None else jnp
    positions = np.arange(length)[None] if positions_BxL is None else positions_BxL
    angle = positions.astype(np.float32)[..., None, None] * frequency
    cos, sin = module.cos(angle), module.sin(angle)
    if (scale := config.attention_factor) != 1:
        cos, sin = scale * cos, scale * sin
    return jnp.asarray(cos, config.compute_dtype), jnp.asarray(sin, config.compute_dtype)


def layer_rotary(config: LlamaConfig, length: int, positions_BxL: Array | None) -> Callable[[int], Rotary | None]:
    """A function from a layer's number to its rotary table; None for layers without rotary positions."""
    table = of_windows = rotary_table(config, length, positions_BxL)
    if (theta := config.window_rope_theta) is not None:
        plain: dict[str, Any] = {"rope_scaling": "none", "rope_factor": 1.0, "rope_original_length": None}
        unstretched = dataclasses.replace(config, rope_theta=theta, rope_attention_factor=None, **plain)
        of_windows = rotary_table(unstretched, length, positions_BxL)

    def of_layer(layer: int) -> Rotary | None:
        if layer in config.layers_without_rotary:
            return None
        return table if config.layer_window(layer) is None else of_windows

    return of_layer


def rotate(x_BxLxHxDh: Array, rotary: Rotary) -> Array:
    """Rotates the pairs (i, i + R/2) of a head's first R elements; the others stay."""
    cos, sin = rotary
    R = 2 * cos.shape[-1]
    a, b = jnp.split(x_BxLxHxDh[..., :R], 2, axis=-1)
    rest = [] if x_BxLxHxDh.shape[-1] == R else [x_BxLxHxDh[..., R:]]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin, *rest], axis=-1)

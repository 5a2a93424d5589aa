"""From a compiled step's figures to a range of step times, and the limit that binds."""

from collections.abc import Mapping
from typing import Any

from diversity_jax.model import LlamaConfig
from diversity_jax.training.compile_targets import Target
from diversity_jax.training.throughput import flops_per_token

ASSUMPTIONS = (
    "products at the data sheet's bfloat16 peak; no kernel is that fast, so measured MFU will be lower than the range's upper end",
    "memory traffic from the program's own reads and writes at the data sheet's bandwidth; kernels' inner traffic is not seen",
    "collectives as rings: one torus axis, both directions (TPU), or NVLink; groups that cross slices at the network's speed",
    "fastest: all four overlap perfectly (the largest alone); slowest: none do (their sum)",
)
# Share of all pairs of tokens that a kernel works on, and products in its backward pass as a multiple of the forward's.
_ATTENTION_WORK = {"splash": (0.5, 2.5), "cudnn": (0.5, 2.5), "chunked": (0.5625, 2.5), "plain": (1.0, 2.0), "reference": (1.0, 2.0)}
USABLE_GPU_SHARE = 0.92  # of a GPU's memory, with XLA_PYTHON_CLIENT_MEM_FRACTION=0.92; JAX's default takes 0.75


def executed_flops_per_token(config: LlamaConfig, length: int, attention: str) -> float:
    """Products a trained token really costs, recomputation by remat and the kernel's causal saving included."""
    share, backward = _ATTENTION_WORK[attention]
    pairs = min(config.sliding_window or length, length) if attention in ("splash", "cudnn") else length
    scores = 4 * config.num_layers * config.hidden_size * pairs * share
    layers = 2 * config.num_layers * config.layer_matrix_parameters
    head = 2 * config.vocab_size * config.hidden_size
    again = {"none": 0, "save_matmuls": 0, "full": layers + scores, "offload": layers + scores}[config.remat]
    return 3 * (layers + head) + (1 + backward) * scores + again


def total_bytes(memory: Mapping[str, float]) -> float:
    """Device memory of one step; the state is donated, so outputs count only where they are new."""
    return sum(memory[kind] for kind in ("arguments", "outputs", "temporaries", "code"))


def capacity_bytes(target: Target) -> float:
    """Memory of one device that a program can have."""
    return target.chip.hbm_bytes * (USABLE_GPU_SHARE if target.chip.platform == "cuda" else 1)


def estimate(config: LlamaConfig, target: Target, report: Mapping[str, Any], *, batch_size: int, length: int) -> dict[str, Any]:
    """Seconds by resource, step time and MFU as a range, and what binds.

    Args:
      report: from `compile_worker.report`, of a step that compiled.
    """
    chip, tokens = target.chip, batch_size * length
    sent = {
        crosses: sum(one["sent_bytes"] for one in report["collectives"] if one["crosses_slices"] is crosses) for crosses in (False, True)
    }
    executed = executed_flops_per_token(config, length, report["attention"]) * tokens
    seconds = {
        "compute": executed / target.devices / chip.peak_flops,
        "memory": report["hbm_traffic_bytes"] / chip.hbm_bytes_per_second,
        "interconnect": sent[False] / chip.link_bytes_per_second,
        "network": sent[True] / chip.network_bytes_per_second,
    }
    fastest, slowest = max(seconds.values()), sum(seconds.values())
    memory, capacity = total_bytes(report["memory_bytes"]), capacity_bytes(target)
    peak = target.devices * chip.peak_flops
    useful = {name: flops_per_token(config, length, causal=causal) * tokens for name, causal in (("mfu", False), ("mfu_causal", True))}
    return {
        "flops": {"executed": executed, "model": useful["mfu"], "model_causal": useful["mfu_causal"]},
        "seconds": seconds,
        "step_seconds": [fastest, slowest],
        "tokens_per_second": [tokens / slowest, tokens / fastest],
        **{name: [flops / peak / slowest, flops / peak / fastest] for name, flops in useful.items()},
        "memory_total_bytes": memory,
        "memory_capacity_bytes": capacity,
        "fits": memory <= capacity,
        "binds": max(seconds, key=seconds.get) if memory <= capacity else "capacity",
    }

"""What a sitting of a run came to: speed, utilisation, waiting, goodput, compilation and memory, kept in
`summary.json`.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from pathlib import Path
import resource
import sys
from typing import Any

from diversity_jax.core.files import write_json
from diversity_jax.training.goodput import Sitting, goodput

_GIB = 1 << 30


def utilisation(model: Any, length: int, tokens_per_second: float) -> dict[str, float]:
    """`mfu` and `mfu_causal` of all devices together, by `throughput`'s formulas; empty where the devices' peak is not
    known.
    """
    import jax

    from diversity_jax.training.flops import mfu, peak_flops

    peak = peak_flops()
    if peak is None:
        return {}
    total = peak * jax.device_count()
    return {
        name: mfu(model, length, tokens_per_second, total, causal=causal)
        for name, causal in (("mfu", False), ("mfu_causal", True))
    }


def memory_figures() -> dict[str, float]:
    """Peaks so far: `device_memory_bytes` of the first local device, where it counts them, and this process's
    `host_memory_bytes`.
    """
    import jax

    kilobyte = 1 if sys.platform == "darwin" else 1024
    figures = {"host_memory_bytes": float(kilobyte * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)}
    memory = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in memory:
        figures["device_memory_bytes"] = float(memory["peak_bytes_in_use"])
    return figures


def summarise(
    folder: Path | None,
    model: Any,
    length: int,
    *,
    steps: int,
    tokens_per_step: int,
    timed_steps: int,
    sittings: Sequence[Sitting],
    clock: Any,
) -> Mapping[str, Any]:
    """The figures of a sitting that has just ended, and of the run's goodput.

    Args:
      folder: where `summary.json` goes; None: it is not written.
      model, length: the model, and tokens of a row.
      steps: finished.
      tokens_per_step: of the global batch.
      timed_steps: of this sitting, all but the one that compiled.
      sittings: of the run, this one last.
      clock: the sitting's `CompileClock`.
    """
    import jax

    from diversity_jax.training.flops import flops_per_token, peak_flops

    sitting = sittings[-1]
    speed = timed_steps * tokens_per_step / sitting.step_seconds if timed_steps else None
    flops = {
        name: flops_per_token(model, length, causal=causal) for name, causal in (("full", False), ("causal", True))
    }
    found = {
        "steps": steps,
        "tokens": steps * tokens_per_step,
        "parameters": model.parameter_count,
        "devices": jax.device_count(),
        "device_kind": jax.devices()[0].device_kind,
        "peak_flops_of_device": peak_flops(),
        "tokens_per_second": speed,
        "step_seconds": sitting.step_seconds / timed_steps if timed_steps else None,
        "model_flops_per_second": speed * flops["full"] if speed else None,
        "model_flops_per_second_causal": speed * flops["causal"] if speed else None,
        **({"mfu": None, "mfu_causal": None} | (utilisation(model, length, speed) if speed else {})),
        "input_wait_share": sitting.input_wait_seconds / sitting.step_seconds if timed_steps else None,
        "goodput": dataclasses.asdict(goodput(sittings)),
        "compile_seconds": clock.seconds,
        "programs": clock.programs,
        "programs_from_cache": clock.from_cache,
        "evaluation_seconds": sitting.evaluation_seconds,
        "save_seconds": sitting.save_seconds,
        **({"device_memory_bytes": None} | memory_figures()),
    }
    if folder is not None:
        write_json(folder / "summary.json", found)
    return found


def utilisation_sentence(summary: Mapping[str, Any]) -> str:
    """MFU in both conventions; where the peak is not known, that it is not, and what was computed."""
    if summary["mfu"] is not None:
        return (
            f"MFU {100 * summary['mfu']:.1f} %, {100 * summary['mfu_causal']:.1f} % where only causal pairs count, of "
            f"{summary['devices']} x {summary['peak_flops_of_device'] / 1e12:.0f} TFLOP/s"
        )
    rates = [summary["model_flops_per_second"], summary["model_flops_per_second_causal"]]
    said = f"MFU unknown: no data sheet's peak is known for {summary['device_kind']!r}"
    return (
        said
        if None in rates
        else f"{said}; {rates[0] / 1e9:.1f} GFLOP/s of model work, {rates[1] / 1e9:.1f} by causal pairs"
    )


def summary_lines(summary: Mapping[str, Any]) -> list[str]:
    """A summary for the console."""
    lines = []
    if summary["tokens_per_second"] is not None:
        wait = 100 * summary["input_wait_share"]
        speed = (
            f"{summary['tokens_per_second']:,.0f} tokens/s, {1000 * summary['step_seconds']:.1f} ms a step, input "
            f"wait {wait:.2f} %"
        )
        lines += [speed, utilisation_sentence(summary)]
    reached = summary["goodput"]
    again = f", {reached['steps_done_again']} steps done again" if reached["steps_done_again"] else ""
    sittings = f"{reached['sittings']} sitting{'s' if reached['sittings'] > 1 else ''}"
    lines.append(f"goodput {100 * reached['share']:.1f} % of the time of {sittings}{again}")
    kept = f"{summary['programs_from_cache']} of {summary['programs']} programs kept from before"
    lines.append(
        f"compiling {summary['compile_seconds']:.1f} s, {kept}; evaluating {summary['evaluation_seconds']:.1f} s"
    )
    device = summary["device_memory_bytes"]
    of_device = f"{device / _GIB:.2f} GiB a device, " if device is not None else ""
    lines.append(f"memory at most: {of_device}{summary['host_memory_bytes'] / _GIB:.2f} GiB on the host")
    return lines

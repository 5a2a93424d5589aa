"""How fast a run is: floating-point operations a token, MFU, goodput over the run's attempts, and `summary.json`."""

from collections.abc import Mapping, Sequence
import dataclasses
from dataclasses import dataclass
import math
from pathlib import Path
import resource
import sys
import time
from typing import Any

import jax

from diversity_jax.core.chips import peak_flops
from diversity_jax.core.config import read_fields
from diversity_jax.core.files import write_json
from diversity_jax.model.config import LlamaConfig
from diversity_jax.training.runtime import CompileClock

_WRITE_EVERY_SECONDS = 5.0
_GIB = 1 << 30


def flops_per_token(config: LlamaConfig, length: int, *, causal: bool) -> float:
    """Floating-point operations of one trained token, forward and backward.

    With matrix parameters M (all layers' matrices and the output projection, not the look-up), N layers, A = H * Dh:

        not causal:  6 M + 12 N A L    scores counted for every pair of tokens (PaLM, appendix B; MaxText's default)
        causal:      6 M +  6 N A L    only the half of the pairs that a causal kernel needs

    In layers with a window of w < L tokens, L becomes w without causality, and w (2 - w / L) with it.

    Recomputation by remat counts in neither: MFU is about useful work. Norms, softmax, rotary and the optimizer are
    left out, as is customary.

    Args:
      length: L, tokens of a sequence.
    """
    matrices = config.num_layers * config.layer_matrix_parameters + config.vocab_size * config.hidden_size
    windows = [min(config.sliding_window or length, length), length]  # of layers with a window, and without
    layers = [config.num_layers - len(config.layers_without_window), len(config.layers_without_window)]
    spans = [window * (2 - window / length) if causal else window for window in windows]
    pairs = sum(count * span for count, span in zip(layers, spans, strict=True))
    return 6 * matrices + (6 if causal else 12) * config.num_heads * config.head_size * pairs


def mfu(config: LlamaConfig, length: int, tokens_per_second: float, total_peak_flops: float, *, causal: bool) -> float:
    """Model FLOPs utilisation: the share of `total_peak_flops` (all devices together) that useful work takes."""
    return flops_per_token(config, length, causal=causal) * tokens_per_second / total_peak_flops


def utilisation(model: LlamaConfig, length: int, tokens_per_second: float) -> dict[str, float]:
    """`mfu` and `mfu_causal` of all devices together; empty where the devices' peak is not known."""
    peak = peak_flops(jax.devices()[0].device_kind)
    if peak is None:
        return {}
    total = peak * jax.device_count()
    kinds = {"mfu": False, "mfu_causal": True}
    return {name: mfu(model, length, tokens_per_second, total, causal=causal) for name, causal in kinds.items()}


def memory_figures() -> dict[str, float]:
    """Peaks so far: this process's `host_memory_bytes`, and `device_memory_bytes` of the first device that tells."""
    unit_bytes = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    figures = {"host_memory_bytes": float(unit_bytes * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)}
    memory = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in memory:
        figures["device_memory_bytes"] = float(memory["peak_bytes_in_use"])
    return figures


@dataclass(kw_only=True)
class Attempt:
    """One process of a run, from its start to its end; times in seconds, field names as in `goodput.json`."""

    began: float  # since 1970
    last: float  # since 1970; when this record was last updated
    first_step: int = 0  # finished steps it started with
    last_step: int = 0  # finished steps it reached
    step_seconds: float = 0.0  # in steps, without compilation, evaluation and samples
    compile_seconds: float = 0.0  # in the compiler; also part of the first step, which `step_seconds` leaves out
    evaluation_seconds: float = 0.0  # held-out losses and samples
    save_seconds: float = 0.0  # in which training stood still for a checkpoint
    input_wait_seconds: float = 0.0  # in which it stood still for a batch


@dataclass(frozen=True, kw_only=True)
class Goodput:
    """Share of a run's wall time in useful steps; the field names are keys of `summary.json`."""

    share: float  # of the time of all attempts
    share_with_pauses: float  # of all time since the first attempt began
    sittings: int  # number of attempts
    steps_done_again: int  # repeated by a later attempt, since the process was killed after its last checkpoint


def goodput(attempts: Sequence[Attempt]) -> Goodput:
    """The goodput of a run's attempts, oldest first; shares are 0 where no time has passed.

    useful seconds = sum over attempts of step seconds * (steps not repeated later) / (steps done)
    share          = useful seconds / (seconds of all attempts)
    """
    useful_seconds, repeated = 0.0, 0
    for number, attempt in enumerate(attempts):
        steps = attempt.last_step - attempt.first_step
        resumed_at = min([later.first_step for later in attempts[number + 1 :]], default=attempt.last_step)
        useful = max(0, min(attempt.last_step, resumed_at) - attempt.first_step)
        useful_seconds += attempt.step_seconds * useful / steps if steps else 0.0
        repeated += steps - useful
    seconds = sum(attempt.last - attempt.began for attempt in attempts)
    since_first = attempts[-1].last - attempts[0].began if attempts else 0.0
    return Goodput(
        share=useful_seconds / seconds if seconds > 0 else 0.0,
        share_with_pauses=useful_seconds / since_first if since_first > 0 else 0.0,
        sittings=len(attempts),
        steps_done_again=repeated,
    )


class GoodputLog:
    """The attempts of a run in `goodput.json`; the last one is this process.

    The process that is to `write` does so every few seconds: of an attempt that was killed the last are missing.
    """

    def __init__(self, folder: Path, *, began: float, write: bool = True):
        self._path, self._write, self._written = folder / "goodput.json", write, 0.0
        self.attempt = Attempt(began=began, last=time.time())
        self.attempts = [*read_attempts(self._path), self.attempt] if write else [self.attempt]

    def begin(self, step: int) -> None:
        """Records the finished steps that this attempt starts with."""
        self.attempt.first_step = self.attempt.last_step = step
        self.save(now=True)

    def save(self, *, now: bool = False) -> None:
        """Writes the file, unless it was written a moment ago and `now` is not set."""
        self.attempt.last = time.time()
        if self._write and (now or self.attempt.last - self._written > _WRITE_EVERY_SECONDS):
            write_json(self._path, {"sittings": [dataclasses.asdict(attempt) for attempt in self.attempts]})
            self._written = self.attempt.last


def read_attempts(path: Path) -> list[Attempt]:
    """The attempts in a `goodput.json`; none where there is no such file.

    Raises:
      InputError: the file is not what `GoodputLog` writes.
    """
    if not path.exists():
        return []
    return read_fields(path, sittings=list[Attempt])["sittings"]


def summarise(
    model: LlamaConfig, batch_shape: tuple[int, int], timed_steps: int, attempts: Sequence[Attempt], clock: CompileClock
) -> dict[str, Any]:
    """The content of `summary.json`: figures of an attempt that has just ended, and of the run's goodput.

    Args:
      batch_shape: rows and tokens of the global batch.
      timed_steps: of this attempt, all but the one that compiled.
      attempts: of the run, this one last.
    """
    tokens_per_step, length = math.prod(batch_shape), batch_shape[1]
    attempt, device_kind = attempts[-1], jax.devices()[0].device_kind
    speed = timed_steps * tokens_per_step / attempt.step_seconds if timed_steps else None
    return {
        "steps": attempt.last_step,
        "tokens": attempt.last_step * tokens_per_step,
        "parameters": model.parameter_count,
        "devices": jax.device_count(),
        "device_kind": device_kind,
        "peak_flops_of_device": peak_flops(device_kind),
        "tokens_per_second": speed,
        "step_seconds": attempt.step_seconds / timed_steps if timed_steps else None,
        "model_flops_per_second": speed * flops_per_token(model, length, causal=False) if speed else None,
        "model_flops_per_second_causal": speed * flops_per_token(model, length, causal=True) if speed else None,
        **({"mfu": None, "mfu_causal": None} | (utilisation(model, length, speed) if speed else {})),
        "input_wait_share": attempt.input_wait_seconds / attempt.step_seconds if timed_steps else None,
        "goodput": dataclasses.asdict(goodput(attempts)),
        "compile_seconds": clock.seconds,
        "programs": clock.programs,
        "programs_from_cache": clock.from_cache,
        "evaluation_seconds": attempt.evaluation_seconds,
        "save_seconds": attempt.save_seconds,
        **({"device_memory_bytes": None} | memory_figures()),
    }


def _utilisation_sentence(summary: Mapping[str, Any]) -> str:
    """MFU in both conventions; where the peak is not known, that it is not, and what was computed."""
    if summary["mfu"] is not None:
        return (
            f"MFU {100 * summary['mfu']:.1f} %, {100 * summary['mfu_causal']:.1f} % where only causal pairs count, of "
            f"{summary['devices']} x {summary['peak_flops_of_device'] / 1e12:.0f} TFLOP/s"
        )
    unknown = f"MFU unknown: no data sheet's peak is known for {summary['device_kind']!r}"
    every_pair, causal = summary["model_flops_per_second"], summary["model_flops_per_second_causal"]
    if every_pair is None or causal is None:
        return unknown
    return f"{unknown}; {every_pair / 1e9:.1f} GFLOP/s of model work, {causal / 1e9:.1f} by causal pairs"


def summary_lines(summary: Mapping[str, Any]) -> list[str]:
    lines = []
    if summary["tokens_per_second"] is not None:
        speed, milliseconds = summary["tokens_per_second"], 1000 * summary["step_seconds"]
        wait = f"input wait {100 * summary['input_wait_share']:.2f} %"
        lines += [f"{speed:,.0f} tokens/s, {milliseconds:.1f} ms a step, {wait}", _utilisation_sentence(summary)]
    reached = summary["goodput"]
    again = f", {reached['steps_done_again']} steps done again" if reached["steps_done_again"] else ""
    attempts = f"{reached['sittings']} attempt{'s' if reached['sittings'] > 1 else ''}"
    lines.append(f"goodput {100 * reached['share']:.1f} % of the time of {attempts}{again}")
    cached = f"{summary['programs_from_cache']} of {summary['programs']} programs kept from before"
    lines.append(
        f"compiling {summary['compile_seconds']:.1f} s, {cached}; evaluating {summary['evaluation_seconds']:.1f} s"
    )
    device = summary["device_memory_bytes"]
    of_device = f"{device / _GIB:.2f} GiB a device, " if device is not None else ""
    lines.append(f"memory at most: {of_device}{summary['host_memory_bytes'] / _GIB:.2f} GiB on the host")
    return lines

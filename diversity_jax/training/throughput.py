"""Speed of a run: windows of timed steps, FLOPs per token, MFU, goodput over all attempts, and `summary.json`."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
from dataclasses import dataclass
import logging
import math
from pathlib import Path
import resource
import sys
import time
from typing import Any

import jax

from diversity_jax.core import formats
from diversity_jax.core.chips import peak_flops
from diversity_jax.core.json_fields import read_fields
from diversity_jax.model.config import LlamaConfig, LoraConfig
from diversity_jax.training.runtime import CompileClock
from diversity_jax.training.step import Metrics, TrainState

log = logging.getLogger(__name__)

_GIB = 1 << 30
_NO_LORA = LoraConfig()


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """A step that has been dispatched; its state and metrics may still be being computed."""

    step: int  # finished steps, this one included
    state: TrainState
    metrics: Metrics
    input_wait_seconds: float


class StepClock:
    """A clock in seconds that does not count pauses for evaluation and saving, which it sums separately."""

    def __init__(self) -> None:
        self.evaluation_seconds = self.save_seconds = 0.0

    def now(self) -> float:
        """Seconds since an arbitrary time, without pauses."""
        return time.perf_counter() - self.evaluation_seconds - self.save_seconds

    @contextlib.contextmanager
    def pause(self, field: str) -> Iterator[None]:
        """Adds the block's time to `field`, `evaluation_seconds` or `save_seconds`."""
        began = time.perf_counter()
        yield
        setattr(self, field, getattr(self, field) + time.perf_counter() - began)


@dataclass(frozen=True, kw_only=True)
class StepWindow:
    """Consecutive steps whose metrics were read from the devices together."""

    step: int  # finished steps, the last of the window included
    records: Sequence[Mapping[str, Any]]  # metrics of each step (see `make_train_step`), on the host
    timed_steps: int  # steps that `seconds` covers; 0 where the window is only the first step, which compiles
    seconds: float  # of the timed steps; of the first step where `timed_steps` is 0
    input_wait_seconds: float  # part of `seconds` in which the devices had no batch


class StepWindows:
    """Groups the steps of an attempt into windows of `log_every` steps, and times them.

    Metrics of a window are read from the devices after the next step has been dispatched, so that the devices do not
    become idle. The first step of an attempt compiles, and is not timed.
    """

    def __init__(self, start: int, log_every: int, clock: StepClock, compile_clock: CompileClock):
        self._start, self._step, self._log_every = start, start, log_every
        self._clock, self._compile_clock = clock, compile_clock
        self._pending: list[Metrics] = []
        self._wait_seconds, self._untimed_steps, self._first_step_seconds = 0.0, 0, 0.0
        self._began = clock.now()

    def add(self, result: StepResult, *, devices_stop: bool) -> Iterator[StepWindow]:
        """Adds the next step, and yields the windows that have ended.

        Args:
          devices_stop: whether a callback waits for the devices after this step, which then ends its window.
        """
        if self._pending and self._step % self._log_every == 0:
            yield from self._read()
        self._step = result.step
        self._pending.append(result.metrics)
        self._wait_seconds += result.input_wait_seconds
        if result.step == self._start + 1:
            self._leave_out_compilation()
        if devices_stop:
            yield from self._read()

    def rest(self) -> Iterator[StepWindow]:
        """Yields the window of the last steps, if there is one."""
        if self._pending:
            yield from self._read()

    def _leave_out_compilation(self) -> None:
        jax.block_until_ready(self._pending)
        self._first_step_seconds, compiled = self._clock.now() - self._began, self._compile_clock
        log.info(
            "first step, with compilation: %s (so far %s in the compiler, %d of %d programs from the cache)",
            formats.duration(self._first_step_seconds),
            formats.duration(compiled.seconds),
            compiled.from_cache,
            compiled.programs,
        )
        self._began, self._wait_seconds, self._untimed_steps = self._clock.now(), 0.0, 1

    def _read(self) -> Iterator[StepWindow]:
        records = jax.device_get(self._pending)
        seconds, timed_steps = self._clock.now() - self._began, len(records) - self._untimed_steps
        yield StepWindow(
            step=self._step,
            records=records,
            timed_steps=timed_steps,
            seconds=seconds if timed_steps else self._first_step_seconds,
            input_wait_seconds=self._wait_seconds,
        )
        self._pending, self._wait_seconds, self._untimed_steps = [], 0.0, 0
        self._began = self._clock.now()


def flops_per_token(config: LlamaConfig, length: int, *, causal: bool, lora: LoraConfig = _NO_LORA) -> float:
    """Floating-point operations of one trained token, forward and backward.

    With matrix parameters M (all layers' matrices and the output projection, not the look-up), N layers, A = H * Dh:

        not causal:  6 M + 12 N A L    scores counted for every pair of tokens (PaLM, appendix B; MaxText's default)
        causal:      6 M +  6 N A L    only the half of the pairs that a causal kernel needs

    Where only adapters of P numbers are trained, 4 M + 6 P replaces 6 M: frozen matrices need no gradient.

    In layers with a window of w < L tokens, L becomes w without causality, and w (2 - w / L) with it.

    Neither counts recomputation by remat, since MFU measures useful work, nor, as is customary, norms, softmax, rotary
    positions and the optimizer.

    Args:
      length: L, tokens of a sequence.
    """
    matrices = config.num_layers * config.layer_matrix_parameters + config.vocab_size * config.hidden_size
    windows = [min(config.sliding_window or length, length), length]  # of layers with a window, and without
    layers = [config.num_layers - len(config.layers_without_window), len(config.layers_without_window)]
    spans = [window * (2 - window / length) if causal else window for window in windows]
    pairs = sum(count * span for count, span in zip(layers, spans, strict=True))
    weights = 4 * matrices + 6 * lora.parameter_count(config) if lora.rank else 6 * matrices
    return weights + (6 if causal else 12) * config.num_heads * config.head_size * pairs


def utilisation(model: LlamaConfig, lora: LoraConfig, length: int, tokens_per_second: float) -> dict[str, float]:
    """`flops_per_token` as a share of all devices' peak, `mfu` and `mfu_causal`; empty where the peak is unknown."""
    peak = peak_flops(jax.devices()[0].device_kind)
    if peak is None:
        return {}
    share = tokens_per_second / (peak * jax.device_count())
    kinds = {"mfu": False, "mfu_causal": True}
    return {name: flops_per_token(model, length, causal=causal, lora=lora) * share for name, causal in kinds.items()}


def memory_figures() -> dict[str, float]:
    """Peaks so far: this process's `host_memory_bytes`, and its first device's `device_memory_bytes` where known."""
    unit_bytes = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    figures = {"host_memory_bytes": float(unit_bytes * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)}
    memory = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in memory:
        figures["device_memory_bytes"] = float(memory["peak_bytes_in_use"])
    return figures


@dataclass(kw_only=True)
class Attempt:
    """One process's part of a run; times in seconds, field names as in `goodput.json`."""

    began: float  # since 1970
    last: float  # since 1970; when this record was last updated
    first_step: int = 0  # finished steps at its start
    last_step: int = 0  # finished steps at its end
    step_seconds: float = 0.0  # in steps, without the first one, which compiles, and without evaluation and samples
    compile_seconds: float = 0.0  # in the compiler
    evaluation_seconds: float = 0.0  # in held-out losses and samples
    save_seconds: float = 0.0  # in which training waited for a checkpoint
    input_wait_seconds: float = 0.0  # in which it waited for a batch


@dataclass(frozen=True, kw_only=True)
class Goodput:
    """Share of a run's wall time in useful steps; the field names are keys of `summary.json`."""

    share: float  # of the time of all attempts
    share_with_pauses: float  # of all time since the first attempt began
    sittings: int  # number of attempts
    steps_done_again: int  # steps that a later attempt repeated, since they followed the last checkpoint


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
    # The clock may have been set back between attempts.
    since_first = max(seconds, attempts[-1].last - attempts[0].began) if attempts else 0.0
    return Goodput(
        share=useful_seconds / seconds if seconds > 0 else 0.0,
        share_with_pauses=useful_seconds / since_first if since_first > 0 else 0.0,
        sittings=len(attempts),
        steps_done_again=repeated,
    )


def read_attempts(path: Path) -> list[Attempt]:
    """The attempts in a `goodput.json`; none where there is no such file.

    Raises:
      InputError: the file is not what `GoodputLog` writes.
    """
    if not path.exists():
        return []
    return read_fields(path, sittings=list[Attempt])["sittings"]


def summarise(
    model: LlamaConfig,
    lora: LoraConfig,
    batch_shape: tuple[int, int],
    timed_steps: int,
    attempts: Sequence[Attempt],
    clock: CompileClock,
) -> dict[str, Any]:
    """The content of `summary.json`: figures of the last attempt, and the run's goodput.

    Args:
      batch_shape: rows of the global batch, and tokens of a row.
      timed_steps: of the last attempt.
      attempts: of the run, oldest first.
    """
    tokens_per_step, length = math.prod(batch_shape), batch_shape[1]
    attempt, device_kind = attempts[-1], jax.devices()[0].device_kind
    speed = timed_steps * tokens_per_step / attempt.step_seconds if timed_steps else None
    all_pairs, causal = (flops_per_token(model, length, causal=causal, lora=lora) for causal in (False, True))
    return {
        "steps": attempt.last_step,
        "tokens": attempt.last_step * tokens_per_step,
        "parameters": model.parameter_count,
        "devices": jax.device_count(),
        "device_kind": device_kind,
        "peak_flops_of_device": peak_flops(device_kind),
        "tokens_per_second": speed,
        "step_seconds": attempt.step_seconds / timed_steps if timed_steps else None,
        "model_flops_per_second": speed * all_pairs if speed else None,
        "model_flops_per_second_causal": speed * causal if speed else None,
        **({"mfu": None, "mfu_causal": None} | (utilisation(model, lora, length, speed) if speed else {})),
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
    """MFU in both conventions; where the peak is unknown, model FLOP/s."""
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
    """The content of `summary.json` in a few lines."""
    lines = []
    if summary["tokens_per_second"] is not None:
        speed, milliseconds = summary["tokens_per_second"], 1000 * summary["step_seconds"]
        wait = f"input wait {100 * summary['input_wait_share']:.2f} %"
        lines += [f"{speed:,.0f} tokens/s, {milliseconds:.1f} ms a step, {wait}", _utilisation_sentence(summary)]
    reached = summary["goodput"]
    again = f", {reached['steps_done_again']} steps done again" if reached["steps_done_again"] else ""
    attempts = f"{reached['sittings']} attempt{'s' if reached['sittings'] > 1 else ''}"
    lines.append(f"goodput {100 * reached['share']:.1f} % of the time of {attempts}{again}")
    cached = f"{summary['programs_from_cache']} of {summary['programs']} programs from the cache"
    lines.append(
        f"compiling {summary['compile_seconds']:.1f} s, {cached}; evaluating {summary['evaluation_seconds']:.1f} s"
    )
    device = summary["device_memory_bytes"]
    of_device = f"{device / _GIB:.2f} GiB a device, " if device is not None else ""
    lines.append(f"memory at most: {of_device}{summary['host_memory_bytes'] / _GIB:.2f} GiB on the host")
    return lines

"""What a run does beside its steps, each at its own cadence: reports, held-out losses, samples, checkpoints, traces."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
from dataclasses import dataclass
import functools
import json
import logging
from pathlib import Path
import time
from typing import Any

import jax
from jax.sharding import Mesh

from diversity_jax.core import formats
from diversity_jax.core.errors import InputError
from diversity_jax.mixtures.mixture import Loader, Mixture
from diversity_jax.model import LlamaConfig
from diversity_jax.model.llama import Params, merged
from diversity_jax.tokenizers.document_start import Boundaries
from diversity_jax.training.bucket_checkpoints import BucketCheckpoints
from diversity_jax.training.checkpoint import CheckpointError, Checkpoints
from diversity_jax.training.config import TrainConfig
from diversity_jax.training.evaluation import HeldOut, Samples
from diversity_jax.training.log import JsonLinesLog, MetricWriter
from diversity_jax.training.runtime import CompileClock, StopRequest
from diversity_jax.training.step import Metrics, TrainState, model_shardings
from diversity_jax.training.throughput import GoodputLog, goodput, memory_figures, utilisation

log = logging.getLogger(__name__)

_SHOWN_CHARACTERS = 160  # of a sample in the console's log


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """A step that has been dispatched; its state and metrics may still be under way on the devices."""

    step: int  # finished steps, this one included
    state: TrainState
    metrics: Metrics
    input_wait_seconds: float


@dataclass(frozen=True, kw_only=True)
class Run:
    """What an attempt of a run works with."""

    mixture: Mixture
    model: LlamaConfig
    config: TrainConfig
    mesh: Mesh
    output_dir: Path
    loader: Loader
    checkpoints: Checkpoints | BucketCheckpoints
    goodput_log: GoodputLog
    compile_clock: CompileClock
    writer: MetricWriter | None  # None in all processes but the first, which write no files
    stop: StopRequest
    frozen: Params | None  # the parameters that adapters are trained beside; None where all parameters are trained

    @functools.cached_property
    def components(self) -> list[str]:
        """Names, in the order of the per-component metrics."""
        return [component.name for component in self.mixture.taken]

    @property
    def boundaries(self) -> Boundaries:
        """Where documents begin in rows of text."""
        return self.mixture.boundaries(attend_across_documents=self.config.attend_across_documents)

    @functools.cached_property
    def _merge(self) -> Callable[[Params, Params], Params]:
        merge = functools.partial(merged, lora=self.config.lora)
        return jax.jit(merge, out_shardings=model_shardings(self.model, self.mesh))

    def full_params(self, state: TrainState) -> Params:
        """All parameters of the model, adapters merged in."""
        return state.params if self.frozen is None else self._merge(self.frozen, state.params)

    @contextlib.contextmanager
    def pause(self, field: str) -> Iterator[None]:
        """Books the time of its block, with no step under way, as `evaluation_seconds` or `save_seconds`."""
        began, attempt = time.perf_counter(), self.goodput_log.attempt
        yield
        setattr(attempt, field, getattr(attempt, field) + time.perf_counter() - began)


class Callback:
    """Work beside the steps, done every `every` steps (0: never), before step `until` where that is given."""

    def __init__(self, every: int = 1, until: int | None = None):
        self._every, self._until = every, until

    def due(self, step: int) -> bool:
        """Whether `on_step` is to be called after this number of finished steps."""
        is_early = self._until is None or step < self._until
        return bool(self._every) and step % self._every == 0 and is_early

    def before_step(self, finished_steps: int) -> None:
        """Called before every step is dispatched."""

    def on_step(self, result: StepResult) -> None:
        """Called after a step has been dispatched, where `due`."""

    def on_end(self, step: int, state: TrainState) -> None:
        """Called after the last step of the attempt."""

    def on_error(self, error: BaseException, step: int, state: TrainState) -> None:
        """Called when a step or a callback has failed, with the last state there was; must not raise."""

    def close(self) -> None:
        """Called at the end of the attempt in any case."""


class StepTrace(Callback):
    """JAX's profiler over `train.profile_steps` steps from `train.profile_start` on, or from the attempt's first step.

    The trace lies under `profile`/plugins/profile/DATE: for TensorBoard's profile plugin (`tensorboard --logdir
    FOLDER`), and as `perfetto_trace.json.gz` for ui.perfetto.dev.
    """

    def __init__(self, run: Run):
        super().__init__()
        self._folder, self._start = run.output_dir / "profile", run.config.profile_start
        self._steps_left, self._running = run.config.profile_steps, False

    def before_step(self, finished_steps: int) -> None:
        if self._steps_left and not self._running and finished_steps >= self._start:
            jax.profiler.start_trace(str(self._folder), create_perfetto_trace=True)
            self._running = True

    def on_step(self, result: StepResult) -> None:
        if self._running:
            self._steps_left -= 1
            if not self._steps_left:
                jax.block_until_ready(result.metrics)
                self.close()

    def close(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._running, self._steps_left = False, 0
            log.info("profiler trace: %s", self._folder)


class LossStaysNonFinite(InputError):
    """The run was stopped because it cannot learn; its state is not worth another checkpoint."""


class StepReport(Callback):
    """Reports windows of `train.log_every` steps to the console, `metrics.jsonl` and the goodput record.

    Metrics of a window stay on the devices until the step after it has been dispatched, so that reading them does not
    leave the devices idle. The first step of an attempt compiles: its time is no part of any speed.

    Args:
      flush_before: callbacks that stop the devices; a window ends before them.
    """

    def __init__(self, run: Run, *, flush_before: Sequence[Callback]):
        super().__init__()
        self._run, self._flush_before = run, flush_before
        self._step = run.goodput_log.attempt.first_step
        self._pending: list[Metrics] = []
        self._wait_seconds, self._untimed_steps, self._first_step_seconds = 0.0, 0, 0.0
        self._began = self._now()
        self._skipped_in_a_row = 0
        self.timed_steps = 0

    def _now(self) -> float:
        """Seconds on a clock that stands still during pauses."""
        attempt = self._run.goodput_log.attempt
        return time.perf_counter() - attempt.evaluation_seconds - attempt.save_seconds

    def on_step(self, result: StepResult) -> None:
        if self._pending and self._step % self._run.config.log_every == 0:
            self.flush()
        self._step = result.step
        self._pending.append(result.metrics)
        self._wait_seconds += result.input_wait_seconds
        if result.step == self._run.goodput_log.attempt.first_step + 1:
            self._leave_out_compilation()
        if any(callback.due(result.step) for callback in self._flush_before):
            self.flush()

    def on_end(self, step: int, state: TrainState) -> None:
        self.flush()

    def _leave_out_compilation(self) -> None:
        jax.block_until_ready(self._pending)
        self._first_step_seconds, clock = self._now() - self._began, self._run.compile_clock
        log.info(
            "first step, with compilation: %s (so far %s in the compiler, %d of %d programs kept from before)",
            formats.duration(self._first_step_seconds),
            formats.duration(clock.seconds),
            clock.from_cache,
            clock.programs,
        )
        self._began, self._wait_seconds, self._untimed_steps = self._now(), 0.0, 1

    def flush(self) -> None:
        """Waits for the steps of the window, and reports them."""
        if not self._pending:
            return
        records = jax.device_get(self._pending)
        seconds, timed_steps = self._now() - self._began, len(records) - self._untimed_steps
        attempt = self._run.goodput_log.attempt
        attempt.last_step, attempt.compile_seconds = self._step, self._run.compile_clock.seconds
        attempt.step_seconds += seconds if timed_steps else 0.0
        attempt.input_wait_seconds += self._wait_seconds
        self.timed_steps += timed_steps
        self._run.goodput_log.save()
        if not timed_steps:  # nothing but the compiling step: its whole time is all there is to report
            timed_steps, seconds = 1, self._first_step_seconds
        self._write(records, seconds / timed_steps, self._wait_seconds / timed_steps)
        self._stop_if_it_cannot_learn(records)
        self._pending, self._wait_seconds, self._untimed_steps = [], 0.0, 0
        self._began = self._now()

    def _write(self, records: Sequence[Mapping[str, Any]], step_seconds: float, wait_seconds: float) -> None:
        run, step = self._run, self._step
        if not run.writer:
            return
        speed = run.config.batch_size * run.loader.sequence_length / step_seconds
        rows = step * run.config.batch_size
        figures = window_figures(records, run.components)
        figures |= {"tokens_per_second": speed, "step_seconds": step_seconds, "input_wait_seconds": wait_seconds}
        figures |= utilisation(run.model, run.loader.sequence_length, speed) | memory_figures()
        figures |= {"goodput": goodput(run.goodput_log.attempts).share, "rows": float(rows)}
        for name, count in zip(run.components, run.loader.schedule.counts(rows), strict=True):
            figures[f"rows/{name}"] = float(count)
        shares = {f"share/{name}": figures[f"rows/{name}"] / rows for name in run.components}
        run.writer.write(step, figures, shown=shares)
        log.info(console_line(step, run.config.steps, figures))

    def _stop_if_it_cannot_learn(self, records: Sequence[Mapping[str, Any]]) -> None:
        for record in records:
            self._skipped_in_a_row = 0 if record["applied"] else self._skipped_in_a_row + 1
            if self._skipped_in_a_row >= self._run.config.max_skipped_steps:
                saved = self._run.checkpoints.last_complete
                last = f"the last checkpoint is step {saved}" if saved is not None else "there is no checkpoint yet"
                raise LossStaysNonFinite(
                    f"loss or gradient was not finite for {self._skipped_in_a_row} steps in a row, up to step "
                    f"{self._step}; {last}: lower optimizer.learning_rate or optimizer.clip_norm and train again"
                )
        if skipped := sum(not record["applied"] for record in records):
            warning = "%d of the last %d updates were skipped: loss or gradient was not finite"
            log.warning(warning, skipped, len(records))


def window_figures(records: Sequence[Mapping[str, Any]], components: Sequence[str]) -> dict[str, float]:
    """Figures of a window of steps: token-weighted losses, means, and tokens of each component.

    Args:
      records: metrics of each step (see `make_train_step`), on the host.
      components: names, in the order of the per-component arrays.
    """
    losses_C = sum(record["component_loss_sum"] for record in records)
    tokens_C = sum(record["component_tokens"] for record in records)
    figures = {
        "loss": float(losses_C.sum() / tokens_C.sum()),
        "gradient_norm": float(sum(record["gradient_norm"] for record in records) / len(records)),
        "learning_rate": float(records[-1]["learning_rate"]),
        "skipped": float(sum(1 - record["applied"] for record in records)),
    }
    for name, loss, tokens in zip(components, losses_C, tokens_C, strict=True):
        figures[f"tokens/{name}"] = float(tokens)
        if tokens:
            figures[f"loss/{name}"] = float(loss / tokens)
    return figures


def console_line(step: int, steps: int, figures: Mapping[str, float]) -> str:
    """One aligned line: progress, loss, learning rate, gradient norm, speed, time left."""
    width = len(str(steps))
    return (
        f"step {step:>{width}}/{steps}  loss {figures['loss']:7.4f}  lr {figures['learning_rate']:.2e}  "
        f"|g| {figures['gradient_norm']:6.3f}  {figures['tokens_per_second']:>11,.0f} tokens/s  "
        f"input wait {100 * figures['input_wait_seconds'] / figures['step_seconds']:4.1f} %  "
        f"{formats.duration(figures['step_seconds'] * (steps - step))} left"
    )


class Evaluation(Callback):
    """Held-out losses every `train.eval_every` steps before the last, in `metrics.jsonl` and on the console."""

    def __init__(self, run: Run):
        super().__init__(run.config.eval_every, until=run.config.steps)
        self._run, config = run, run.config
        sizes = config.batch_size, config.eval_batches
        self._held_out = HeldOut(run.mixture, run.model, run.mesh, *sizes, run.boundaries)

    def on_step(self, result: StepResult) -> None:
        self.evaluate(result.step, result.state)

    def evaluate(self, step: int, state: TrainState) -> dict[str, float]:
        """Nats per token by component, and `all`; empty where nothing is held out or a stop was requested."""
        run = self._run
        with run.pause("evaluation_seconds"):
            losses = self._held_out.losses(run.full_params(state), stop=lambda: run.stop.asked)
            if losses and run.writer:
                names = {name: "eval/loss" if name == "all" else f"eval/{name}/loss" for name in losses}
                run.writer.write(step, {names[name]: loss for name, loss in losses.items()})
                parts = "  ".join(f"{name} {loss:.4f}" for name, loss in losses.items())
                log.info("held-out loss at step %d: %s", step, parts)
        return losses


class Sampling(Callback):
    """Continuations of fixed prompts every `train.sample_every` steps, in `samples.jsonl` and on the console."""

    def __init__(self, run: Run):
        super().__init__(run.config.sample_every, until=run.config.steps)
        self._run = run
        self._samples = Samples(run.mixture, run.model, run.mesh, run.config) if run.config.sample_prompts else None
        self._log = JsonLinesLog(run.output_dir / "samples.jsonl") if self._samples and run.writer else None

    def on_step(self, result: StepResult) -> None:
        self.sample(result.step, result.state)

    def sample(self, step: int, state: TrainState) -> None:
        """Writes one text for each prompt."""
        if not self._samples:
            return
        with self._run.pause("evaluation_seconds"):
            texts = self._samples.texts(step, self._run.full_params(state))
            if self._log:
                for prompt, text in zip(self._samples.prompts, texts, strict=True):
                    self._log.append({"step": step, "prompt": prompt, "text": text})
                    shown = formats.shortened(json.dumps(text, ensure_ascii=False)[1:-1], _SHOWN_CHARACTERS)
                    log.info("sample at step %d: [%s] %s", step, prompt, shown)

    def close(self) -> None:
        if self._log:
            self._log.close()


class Saving(Callback):
    """Checkpoints every `train.checkpoint_every` steps, at the end, and when the run fails.

    Args:
      info: recorded beside the state.
      saved: the step whose checkpoint the run goes on from; None: it begins anew.
    """

    def __init__(self, run: Run, info: Mapping[str, Any], *, saved: int | None):
        super().__init__(run.config.checkpoint_every)
        self._run, self._info, self._saved = run, info, saved

    def on_step(self, result: StepResult) -> None:
        self._save(result.step, result.state)

    def on_end(self, step: int, state: TrainState) -> None:
        if self._saved != step:
            self._save(step, state)

    def _save(self, step: int, state: TrainState) -> None:
        jax.block_until_ready(state)  # waiting for steps is not waiting for the checkpoint
        with self._run.pause("save_seconds"):
            self._run.checkpoints.save(step, state, self._info)
        self._saved = step

    def on_error(self, error: BaseException, step: int, state: TrainState) -> None:
        """Saves the last state, where that can help."""
        never_moved = step in (self._saved, self._run.goodput_log.attempt.first_step)
        if never_moved or isinstance(error, (CheckpointError, LossStaysNonFinite)):
            return
        what = f"{type(error).__name__} after step {step}"
        if jax.process_count() > 1:
            log.error("%s: no emergency checkpoint, since one of several hosts cannot write one alone", what)
            return
        try:
            self._save(step, state)
            self._run.checkpoints.wait()
            log.error("%s: emergency checkpoint of step %d saved", what, step)
        except Exception as second:  # the state may be lost with the failure; the first error is the one to raise
            log.error("%s: an emergency checkpoint could not be saved (%s)", what, " ".join(str(second).split())[:200])

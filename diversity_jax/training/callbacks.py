"""Callbacks of the training loop: reports, goodput, held-out losses, samples, checkpoints and profiler traces."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
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
from diversity_jax.core.files import write_json
from diversity_jax.mixtures.loader import Loader
from diversity_jax.mixtures.mixture import Mixture
from diversity_jax.model import LlamaConfig
from diversity_jax.model.llama import Params, merged
from diversity_jax.tokenizers.document_start import Boundaries
from diversity_jax.training.bucket_checkpoints import BucketCheckpoints
from diversity_jax.training.checkpoint import CheckpointError, Checkpoints
from diversity_jax.training.config import TrainConfig
from diversity_jax.training.evaluation import HeldOut, Samples
from diversity_jax.training.log import JsonLinesLog, MetricWriter
from diversity_jax.training.runtime import CompileClock, StopRequest
from diversity_jax.training.step import TrainState, model_shardings
from diversity_jax.training.throughput import (
    Attempt,
    StepClock,
    StepResult,
    StepWindow,
    goodput,
    memory_figures,
    read_attempts,
    utilisation,
)

log = logging.getLogger(__name__)

_SHOWN_CHARACTERS = 160  # of a sample in the console's log
_WRITE_EVERY_SECONDS = 5.0  # `goodput.json`


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """Objects that all parts of an attempt share."""

    mixture: Mixture
    model: LlamaConfig
    config: TrainConfig
    mesh: Mesh
    output_dir: Path
    loader: Loader
    checkpoints: Checkpoints | BucketCheckpoints
    clock: StepClock
    compile_clock: CompileClock
    writer: MetricWriter | None  # None in all processes but the first, which alone writes files
    stop: StopRequest
    frozen: Params | None  # the model's parameters, where adapters are trained; else None

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
        """All parameters of the model, with the products of adapters added."""
        return state.params if self.frozen is None else self._merge(self.frozen, state.params)


class Callback:
    """Work done every `every` steps (0: never), only before step `until` where that is given."""

    stops_devices = False  # whether `on_step` waits for the devices

    def __init__(self, every: int = 1, until: int | None = None):
        self._every, self._until = every, until

    def due(self, step: int) -> bool:
        """Whether `on_step` is called after this number of finished steps."""
        is_early = self._until is None or step < self._until
        return bool(self._every) and step % self._every == 0 and is_early

    def before_step(self, finished_steps: int) -> None:
        """Called before every step is dispatched."""

    def on_step(self, result: StepResult) -> None:
        """Called after a step has been dispatched, where `due`."""

    def on_window(self, window: StepWindow) -> None:
        """Called at the end of a window of steps, before `on_step` of its last step."""

    def on_end(self, step: int, state: TrainState) -> None:
        """Called after the last step of the attempt."""

    def on_error(self, error: BaseException, step: int, state: TrainState) -> None:
        """Called after a step or a callback has raised, with the last state; must not raise."""

    def close(self) -> None:
        """Called at the end of the attempt, also after an error."""


class StepTrace(Callback):
    """Records JAX's profiler trace of `train.profile_steps` steps, from `train.profile_start` or the first step on.

    The trace is written to `profile`/plugins/profile/DATE: for TensorBoard's profile plugin (`tensorboard --logdir
    FOLDER`), and as `perfetto_trace.json.gz` for ui.perfetto.dev.
    """

    def __init__(self, run: TrainingRun):
        super().__init__()
        self._folder, self._start = run.output_dir / "profile", run.config.profile_start
        self._steps_left, self._running = run.config.profile_steps, False

    def before_step(self, finished_steps: int) -> None:
        if self._steps_left and not self._running and finished_steps >= self._start:
            self._running = True
            self._profile(lambda: jax.profiler.start_trace(str(self._folder), create_perfetto_trace=True))

    def on_step(self, result: StepResult) -> None:
        if self._running:
            self._steps_left -= 1
            if not self._steps_left:
                jax.block_until_ready(result.metrics)
                self.close()

    def on_end(self, step: int, state: TrainState) -> None:
        jax.block_until_ready(state)
        self.close()  # the last evaluation would make the trace a hundred times as large
        if self._steps_left:
            log.warning("no profiler trace: train.profile_start=%d, and the run ended at step %d", self._start, step)

    def close(self) -> None:
        if self._running and self._profile(jax.profiler.stop_trace):
            self._running, self._steps_left = False, 0
            log.info("profiler trace: %s", self._folder)

    def _profile(self, action: Callable[[], None]) -> bool:
        """Whether the profiler did it. No run ends for its trace, as on a full disk or beside another profile."""
        try:
            action()
        except (OSError, RuntimeError) as error:
            log.warning("no profiler trace: %s", " ".join(str(error).split())[:200])
            self._running, self._steps_left = False, 0
            return False
        return True


class LossStaysNonFinite(InputError):
    """Too many consecutive losses or gradients were not finite; the state is not saved."""


class GoodputLog(Callback):
    """Records the run's attempts in `goodput.json`, written by the first process every few seconds.

    Attributes:
      attempts: of the run, oldest first; the last, `attempt`, is this process's.
      timed_steps: number of steps of this attempt, except the first, which compiled.
    """

    def __init__(self, run: TrainingRun, *, began: float, start: int, anew: bool = False):
        super().__init__()
        self._path, self._write, self._written = run.output_dir / "goodput.json", run.writer is not None, 0.0
        self._clock, self._compile_clock = run.clock, run.compile_clock
        self._clock_offset = time.time() - time.monotonic()  # kept, so that a clock that is set changes no duration
        self.attempt = Attempt(began=began, last=time.time(), first_step=start, last_step=start)
        earlier = read_attempts(self._path) if self._write and not anew else []
        self.attempts, self.timed_steps = [*earlier, self.attempt], 0

    def on_window(self, window: StepWindow) -> None:
        attempt = self.attempt
        attempt.last_step, self.timed_steps = window.step, self.timed_steps + window.timed_steps
        attempt.step_seconds += window.seconds if window.timed_steps else 0.0
        attempt.input_wait_seconds += window.input_wait_seconds
        self.save()

    def save(self, *, now: bool = False) -> None:
        """Writes the file, if `now` is set or the last write is a few seconds ago."""
        attempt, clock = self.attempt, self._clock
        attempt.last, attempt.compile_seconds = self._clock_offset + time.monotonic(), self._compile_clock.seconds
        attempt.evaluation_seconds, attempt.save_seconds = clock.evaluation_seconds, clock.save_seconds
        if self._write and (now or attempt.last - self._written > _WRITE_EVERY_SECONDS):
            write_json(self._path, {"sittings": [dataclasses.asdict(attempt) for attempt in self.attempts]})
            self._written = attempt.last


class StepReport(Callback):
    """Reports windows of steps to the console, `metrics.jsonl` and trackers."""

    def __init__(self, run: TrainingRun, attempts: Sequence[Attempt]):
        super().__init__()
        self._run, self._attempts = run, attempts
        self._skipped_in_a_row = 0

    def on_window(self, window: StepWindow) -> None:
        self._write(window)
        self._stop_if_it_cannot_learn(window)

    def _write(self, window: StepWindow) -> None:
        run, step, steps = self._run, window.step, max(1, window.timed_steps)
        if not run.writer:
            return
        speed = run.config.batch_size * run.loader.sequence_length * steps / window.seconds
        rows = step * run.config.batch_size
        figures = window_figures(window.records, run.components)
        figures |= {"tokens_per_second": speed, "step_seconds": window.seconds / steps}
        figures |= {"input_wait_seconds": window.input_wait_seconds / steps}
        figures |= utilisation(run.model, run.config.lora, run.loader.sequence_length, speed) | memory_figures()
        figures |= {"goodput": goodput(self._attempts).share, "rows": float(rows)}
        for name, count in zip(run.components, run.loader.schedule.counts(rows), strict=True):
            figures[f"rows/{name}"] = float(count)
        shares = {f"share/{name}": figures[f"rows/{name}"] / rows for name in run.components}
        run.writer.write(step, figures, shown=shares)
        log.info(console_line(step, run.config.steps, figures))

    def _stop_if_it_cannot_learn(self, window: StepWindow) -> None:
        run = self._run
        for step, record in enumerate(window.records, window.step - len(window.records) + 1):
            self._skipped_in_a_row = 0 if record["applied"] else self._skipped_in_a_row + 1
            if self._skipped_in_a_row >= run.config.max_skipped_steps:
                run.checkpoints.wait()  # the latest one may still be being written
                # What is saved after the last step before them, or later, is the state in which they cannot go on.
                before = [saved for saved in run.checkpoints.steps if saved < step - self._skipped_in_a_row]
                last = f"the last checkpoint before them is step {before[-1]}" if before else "no checkpoint is older"
                raise LossStaysNonFinite(
                    f"loss or gradient was not finite for {self._skipped_in_a_row} steps in a row, up to step {step}; "
                    f"{last}: lower optimizer.learning_rate or optimizer.clip_norm, and "
                    + ("branch off there with train.branch_from and train.branch_step, or " if before else "")
                    + "begin anew"
                )
        if skipped := sum(not record["applied"] for record in window.records):
            warning = "%d of the last %d updates were skipped: loss or gradient was not finite"
            log.warning(warning, skipped, len(window.records))


def window_figures(records: Sequence[Mapping[str, Any]], components: Sequence[str]) -> dict[str, float]:
    """Figures of a window of steps: token-weighted mean losses, other means, and tokens of each component.

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

    stops_devices = True

    def __init__(self, run: TrainingRun):
        super().__init__(run.config.eval_every, until=run.config.steps)
        self._run, config = run, run.config
        sizes = config.batch_size, config.eval_batches
        self._held_out = HeldOut(run.mixture, run.model, run.mesh, *sizes, run.boundaries)

    def on_step(self, result: StepResult) -> None:
        self.evaluate(result.step, result.state)

    def evaluate(self, step: int, state: TrainState) -> dict[str, float]:
        """Nats per token by component, and `all`; empty where nothing is held out or a stop was requested."""
        run = self._run
        with run.clock.pause("evaluation_seconds"):
            losses = self._held_out.losses(run.full_params(state), stop=lambda: run.stop.asked)
            if losses and run.writer:
                names = {name: "eval/loss" if name == "all" else f"eval/{name}/loss" for name in losses}
                run.writer.write(step, {names[name]: loss for name, loss in losses.items()})
                parts = "  ".join(f"{name} {loss:.4f}" for name, loss in losses.items())
                log.info("held-out loss at step %d: %s", step, parts)
        return losses


class Continuations(Callback):
    """Continuations of fixed prompts every `train.sample_every` steps, in `samples.jsonl` and on the console."""

    stops_devices = True

    def __init__(self, run: TrainingRun):
        super().__init__(run.config.sample_every, until=run.config.steps)
        self._run = run
        self._samples = Samples(run.mixture, run.model, run.mesh, run.config) if run.config.sample_prompts else None
        self._log = JsonLinesLog(run.output_dir / "samples.jsonl") if self._samples and run.writer else None

    def on_step(self, result: StepResult) -> None:
        self.sample(result.step, result.state)

    def sample(self, step: int, state: TrainState) -> None:
        """Writes one continuation of each prompt."""
        if not self._samples:
            return
        with self._run.clock.pause("evaluation_seconds"):
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

    One that is due after a skipped step waits for the next step that is not: in a row of skipped steps the state stays
    the one that cannot go on, and its copies would push out all others.

    Args:
      info: JSON object saved with the state.
      start: finished steps at the start of the attempt.
      saved: step of the checkpoint that the run is resumed from; None: there is none.
    """

    def __init__(self, run: TrainingRun, info: Mapping[str, Any], *, start: int, saved: int | None):
        super().__init__(run.config.checkpoint_every)
        self._run, self._info, self._start, self._saved = run, info, start, saved
        self._is_waiting = False

    def due(self, step: int) -> bool:
        return self._is_waiting or super().due(step)

    def on_step(self, result: StepResult) -> None:
        self._is_waiting = not result.metrics["applied"]
        if not self._is_waiting:
            self._save(result.step, result.state)

    def on_end(self, step: int, state: TrainState) -> None:
        if self._saved != step:
            self._save(step, state)

    def _save(self, step: int, state: TrainState) -> None:
        jax.block_until_ready(state)  # so that time of steps does not count as time of saving
        with self._run.clock.pause("save_seconds"):
            self._run.checkpoints.save(step, state, self._info)
        self._saved = step

    def on_error(self, error: BaseException, step: int, state: TrainState) -> None:
        """Saves the last state, unless it is saved already, was the cause of the error, or nobody waits for it."""
        if step in (self._saved, self._start) or isinstance(error, (CheckpointError, LossStaysNonFinite)):
            return
        if isinstance(error, KeyboardInterrupt) and self._run.stop.asked:  # the second one
            return
        what = f"{type(error).__name__} after step {step}"
        if jax.process_count() > 1:
            log.error("%s: no emergency checkpoint, since one of several hosts cannot write one alone", what)
            return
        try:
            self._save(step, state)
            self._run.checkpoints.wait()
            log.error("%s: emergency checkpoint of step %d saved", what, step)
        except Exception as second:  # the state may be lost with the failure; the first error is raised
            log.error("%s: an emergency checkpoint could not be saved (%s)", what, " ".join(str(second).split())[:200])

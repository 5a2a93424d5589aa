"""The training loop: batches in, checkpoints and figures out, exact to resume."""

from collections.abc import Mapping
from dataclasses import dataclass
import logging
from pathlib import Path
import signal
import time
from typing import Any

import jax
import numpy as np

from diversity_jax.errors import InputError
from diversity_jax.mixtures.mixture import Mixture
from diversity_jax.model import LlamaConfig, MeshConfig, batch_sharding, check_batch, make_mesh
from diversity_jax.storage import content_hash
from diversity_jax.training.checkpoint import Checkpoints
from diversity_jax.training.data import ReadAhead, as_arrays, put
from diversity_jax.training.evaluation import HeldOut
from diversity_jax.training.metrics import MetricWriter, console_line, evaluation_line, format_seconds, window_figures
from diversity_jax.training.optimizer import OptimizerConfig
from diversity_jax.training.step import TrainState, make_train_step, state_shardings
from diversity_jax.training.throughput import measured_peak_flops, mfu, peak_flops

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long and how a run trains; the optimizer, model and mesh have their own configs."""

    steps: int = 1000
    batch_size: int = 8  # rows of the global batch
    seed: int = 0  # of initial parameters and dropout
    gradient_accumulation: int = 1  # equal parts a batch is worked through in
    z_loss: float = 0.0  # weight of log(Z)^2
    attend_across_documents: bool = True  # False keeps attention and positions inside each document
    log_every: int = 10  # steps
    eval_every: int = 0  # steps between held-out losses; 0: only before and after training
    eval_batches: int = 8  # of each component
    checkpoint_every: int = 1000  # steps; a checkpoint is also written at the end and on SIGTERM
    keep_checkpoints: int = 3
    max_skipped_steps: int = 20  # consecutive steps with a non-finite loss or gradient after which training stops
    tensorboard: bool = True  # write TensorBoard events beside metrics.jsonl; needs clu and TensorFlow

    def __post_init__(self):
        for field in (
            "steps",
            "batch_size",
            "gradient_accumulation",
            "log_every",
            "checkpoint_every",
            "keep_checkpoints",
            "max_skipped_steps",
        ):
            if getattr(self, field) < 1:
                raise InputError(f"train.{field}={getattr(self, field)}: must be at least 1")
        for field in ("eval_every", "eval_batches", "z_loss"):
            if getattr(self, field) < 0:
                raise InputError(f"train.{field}={getattr(self, field)}: must be at least 0")


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """How a run ended.

    Attributes:
      steps: finished, those of earlier sittings too.
      interrupted: stopped by SIGTERM, with a checkpoint of its last step.
      held_out: loss in nats per token by component, and `all`, before the first step of this sitting and at the end.
      skipped_steps: updates left out for a non-finite loss or gradient.
    """

    steps: int
    interrupted: bool
    held_out: Mapping[str, tuple[float, float]]
    skipped_steps: int


def check_fit(model: LlamaConfig, config: TrainConfig, mesh: MeshConfig, *, token_ids: int, sequence_length: int) -> None:
    """Refuses settings that cannot work together, before anything is scored, prepared or compiled.

    Args:
      token_ids: of the tokenizer.
      sequence_length: tokens a row predicts.

    Raises:
      InputError: more token ids than the model's vocabulary, rows longer than the model is meant for, a mesh that does not
        fit the devices, or a batch that cannot be dealt evenly over them.
    """
    if token_ids > model.vocab_size:
        raise InputError(
            f"model.vocab_size={model.vocab_size}: the mixture's tokenizer has {token_ids:,} ids; "
            "set it to at least that (a multiple of 128 runs fastest)"
        )
    if sequence_length > model.max_length:
        raise InputError(
            f"model.max_length={model.max_length}: the mixture's rows predict {sequence_length} tokens; raise it, or prepare shorter rows"
        )
    check_batch(make_mesh(mesh), config.batch_size, gradient_accumulation=config.gradient_accumulation)


def train(
    mixture: Mixture,
    model: LlamaConfig,
    optimizer: OptimizerConfig,
    train_config: TrainConfig,
    mesh_config: MeshConfig,
    output_dir: str | Path,
) -> TrainingResult:
    """Trains, or goes on from the last checkpoint in `output_dir`; the result does not depend on interruptions.

    Raises:
      InputError: the model does not fit the mixture, mesh or batch; the checkpoints are of another run; or too many
        non-finite steps.
    """
    fit = {"token_ids": mixture.vocabulary.size, "sequence_length": mixture.sequence_length}
    check_fit(model, train_config, mesh_config, **fit)
    mesh = make_mesh(mesh_config)
    run = _Run(mixture, model, optimizer.for_run(train_config.steps), train_config, mesh, Path(output_dir))
    try:
        return run.go()
    finally:
        run.close()


class _Run:
    """One sitting of a training run."""

    def __init__(self, mixture, model, optimizer, config, mesh, output_dir):
        self.mixture, self.model, self.config, self.mesh = mixture, model, config, mesh
        self.components = [component.name for component in mixture.taken]
        self.loader = mixture.loader(batch_size=config.batch_size)
        self.separate_at = None if config.attend_across_documents else mixture.vocabulary.end_of_text_id
        self.shapes, self.shardings = state_shardings(model, optimizer, mesh)
        self.init_state, self.step = make_train_step(
            model,
            optimizer,
            mesh,
            num_components=len(self.components),
            z_loss=config.z_loss,
            gradient_accumulation=config.gradient_accumulation,
            seed=config.seed,
        )
        self.held_out = HeldOut(mixture, model, mesh, config.batch_size, config.eval_batches, self.separate_at)
        self.identity = _identity(mixture, model, optimizer, config)
        self.checkpoints = Checkpoints(output_dir / "checkpoints", keep=config.keep_checkpoints)
        self.writer = MetricWriter(output_dir, tensorboard=config.tensorboard) if jax.process_index() == 0 else None
        self.peak = (peak_flops() or measured_peak_flops()) * jax.device_count()
        self.saved = None
        self.skipped_in_a_row = 0

    def close(self) -> None:
        if self.writer:
            self.writer.close()
        self.checkpoints.close()

    def go(self) -> TrainingResult:
        state = self._start()
        start = int(state.step)
        first = self._evaluate(start, state)
        with _StopRequest() as stop:
            state, done = self._steps(state, start, stop)
        if self.saved != done:
            self._save(done, state)
        last = self._evaluate(done, state) if done != start else first
        self.checkpoints.wait()
        return TrainingResult(
            steps=done,
            interrupted=done < self.config.steps,
            held_out={name: (first[name], last[name]) for name in first},
            skipped_steps=int(state.skipped),
        )

    def _start(self) -> TrainState:
        """The state to go on from."""
        restored = self.checkpoints.restore(self.shapes, self.shardings)
        if restored is None:
            return self.init_state(jax.random.key(self.config.seed))
        state, info = restored
        for what, now in self.identity.items():
            if info["identity"].get(what) != now:
                raise InputError(
                    f"{self.checkpoints.folder}: its checkpoints were trained with another {what}; "
                    "set the configuration back, or choose another output_dir"
                )
        self.saved = int(state.step)
        log.info("going on from step %d", self.saved)
        return state

    def _steps(self, state: TrainState, start: int, stop: "_StopRequest") -> tuple[TrainState, int]:
        """Runs steps until the end or a stop request; metrics of a step are read after the next one is under way."""
        sharding = batch_sharding(self.mesh)
        prepare = _Preparation(self.loader, sharding, self.separate_at)
        ahead, done = ReadAhead(prepare, start, self.config.steps), start
        window = _Window(self, start)
        try:
            for number, batch, waited in ahead:
                state, metrics = self.step(state, batch)
                done = number + 1
                window.add(done, metrics, waited)
                if number == start:
                    window.leave_out_compilation()
                if self.config.eval_every and done % self.config.eval_every == 0 and done < self.config.steps:
                    window.flush()
                    self._evaluate(done, state)
                    window.restart()
                if done % self.config.checkpoint_every == 0:
                    self._save(done, state)
                if stop.agreed(done):
                    break
        finally:
            ahead.close()
        window.flush()
        return state, done

    def _save(self, step: int, state: TrainState) -> None:
        self.checkpoints.save(step, state, {"identity": self.identity, "seed": self.config.seed})
        self.saved = step

    def _evaluate(self, step: int, state: TrainState) -> dict[str, float]:
        losses = self.held_out.losses(state.params)
        if losses and self.writer:
            self.writer.write(step, {f"eval/{name}/loss" if name != "all" else "eval/loss": value for name, value in losses.items()})
            log.info(evaluation_line(step, losses))
        return losses

    def report(self, step: int, records: list[Mapping[str, Any]], seconds: float, waited: float, timed: int) -> None:
        """Logs a window of steps, of which the last `timed` took `seconds`; stops a run whose losses stay non-finite."""
        figures = window_figures(records, self.components)
        per_step = seconds / timed
        speed = self.config.batch_size * self.loader.sequence_length / per_step
        figures |= {"tokens_per_second": speed, "step_seconds": per_step, "input_wait_seconds": waited / timed}
        for name, causal in (("mfu", False), ("mfu_causal", True)):
            figures[name] = mfu(self.model, self.loader.sequence_length, speed, self.peak, causal=causal)
        memory = jax.local_devices()[0].memory_stats() or {}
        if "peak_bytes_in_use" in memory:
            figures["device_memory_bytes"] = float(memory["peak_bytes_in_use"])
        figures["rows"] = float(step * self.config.batch_size)
        for name, rows in zip(self.components, self.loader.schedule.counts(step * self.config.batch_size), strict=True):
            figures[f"rows/{name}"] = float(rows)
        if self.writer:
            self.writer.write(step, figures)
            log.info(console_line(step, self.config.steps, figures, per_step * (self.config.steps - step)))
        self._watch(step, records)

    def _watch(self, step: int, records: list[Mapping[str, Any]]) -> None:
        for record in records:
            self.skipped_in_a_row = 0 if record["applied"] else self.skipped_in_a_row + 1
            if self.skipped_in_a_row >= self.config.max_skipped_steps:
                saved = self.checkpoints.steps
                last = f"the last checkpoint is step {saved[-1]}" if saved else "there is no checkpoint yet"
                raise InputError(
                    f"loss or gradient was not finite for {self.skipped_in_a_row} steps in a row, up to step {step}; {last}: "
                    "lower optimizer.learning_rate or optimizer.clip_norm and train again"
                )
        bad = sum(not record["applied"] for record in records)
        if bad:
            log.warning("%d of the last %d updates were skipped: loss or gradient was not finite", bad, len(records))


class _Preparation:
    """Batch of a step on the mesh."""

    def __init__(self, loader, sharding, separate_at):
        self.loader, self.sharding, self.separate_at = loader, sharding, separate_at

    def __call__(self, step: int) -> dict[str, jax.Array]:
        def read(rows: slice) -> Mapping[str, np.ndarray]:
            return as_arrays(self.loader.batch(step, rows), separate_at=self.separate_at)

        return put(self.loader.batch_size, self.sharding, read)


class _Window:
    """Metrics of the steps since the last log line, left on the device until the step after them has been dispatched."""

    def __init__(self, run: _Run, start: int):
        self.run, self.step, self.pending = run, start, []
        self.restart()

    def restart(self) -> None:
        self.began, self.waited, self.untimed = time.perf_counter(), 0.0, 0

    def leave_out_compilation(self) -> None:
        """The first step of a sitting compiles: its time is told apart and is not part of any speed."""
        jax.block_until_ready(self.pending)
        self.first_seconds = time.perf_counter() - self.began
        log.info("first step, with compilation: %s", format_seconds(self.first_seconds))
        self.restart()
        self.untimed = 1

    def add(self, step: int, metrics: Mapping[str, jax.Array], waited: float) -> None:
        full = self.pending and self.step % self.run.config.log_every == 0
        if full:
            self.flush()
        self.step = step
        self.pending.append(metrics)
        self.waited += waited

    def flush(self) -> None:
        if self.pending:
            records = jax.device_get(self.pending)
            timed, seconds = len(records) - self.untimed, time.perf_counter() - self.began
            if not timed:  # nothing but the compiling step: its whole time is all there is to report
                timed, seconds = 1, self.first_seconds
            self.run.report(self.step, records, seconds, self.waited, timed)
            self.pending = []
            self.restart()


def _identity(mixture: Mixture, model: LlamaConfig, optimizer: OptimizerConfig, config: TrainConfig) -> dict[str, str]:
    """What a checkpoint may only be resumed with; how the model is run (kernels, remat, scan, mesh, hosts) may change."""
    shape = {name: value for name, value in vars(model).items() if name not in _RUN_ONLY}
    data = {"batch_size": config.batch_size, "seed": config.seed, "z_loss": config.z_loss, "across": config.attend_across_documents}
    return {
        "mixture": mixture.content_hash,
        "model": content_hash(shape),
        "optimizer": content_hash(vars(optimizer)),
        "batch_size, seed, z_loss or attend_across_documents": content_hash(data),
    }


_RUN_ONLY = ("scan_layers", "remat", "attention", "loss_chunk_bytes")


class _StopRequest:
    """SIGTERM asks for a stop; on several hosts all stop at the same step."""

    def __enter__(self):
        self._asked = False
        self._several = jax.process_count() > 1
        if not self._several:
            self._previous = signal.signal(signal.SIGTERM, self._ask)
        return self

    def _ask(self, *_: Any) -> None:
        self._asked = True

    def agreed(self, step: int) -> bool:
        """Whether all hosts stop after this step."""
        if self._several:
            from jax.experimental import multihost_utils

            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked

    def __exit__(self, *_: Any):
        if not self._several:
            signal.signal(signal.SIGTERM, self._previous)

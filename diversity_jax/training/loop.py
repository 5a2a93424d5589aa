"""The training loop: batches in, checkpoints and figures out, exact to resume."""

from collections.abc import Mapping
import dataclasses
from dataclasses import dataclass
import functools
import logging
from pathlib import Path
import time
from typing import Any

import jax

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import content_hash
from diversity_jax.mixtures.mixture import Mixture
from diversity_jax.model import LlamaConfig, MeshConfig, batch_sharding, check_batch, make_mesh
from diversity_jax.model.fingerprint import fingerprint
from diversity_jax.model.lora import merged
from diversity_jax.training.checkpoint import CheckpointError, Checkpoints
from diversity_jax.training.config import TrainConfig
from diversity_jax.training.data import Preparation, ReadAhead
from diversity_jax.training.evaluation import HeldOut
from diversity_jax.training.goodput import GoodputLog, goodput
from diversity_jax.training.initial import initial_params
from diversity_jax.training.metrics import MetricWriter, console_line, evaluation_line, window_figures
from diversity_jax.training.optimizer import OptimizerConfig
from diversity_jax.training.runtime import CompileClock, StopRequest, keep_programs
from diversity_jax.training.samples import SampleLog, Samples, sample_lines
from diversity_jax.training.step import OnMesh, TrainState, base_shardings, make_train_step, state_shardings
from diversity_jax.training.summary import memory_figures, summarise, utilisation
from diversity_jax.training.trace import StepTrace
from diversity_jax.training.window import Window

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """How a run ended.

    Attributes:
      steps: finished, those of earlier sittings too.
      interrupted: stopped by SIGTERM, with a checkpoint of its last step.
      held_out: loss in nats per token by component, and `all`, before the first step of this sitting and at the end;
        empty where it was interrupted.
      skipped_steps: updates left out for a non-finite loss or gradient.
      summary: what `summary.json` says of speed, memory and goodput; None where this sitting had no step to do.
    """

    steps: int
    interrupted: bool
    held_out: Mapping[str, tuple[float, float]]
    skipped_steps: int
    summary: Mapping[str, Any] | None = None


def check_fit(
    model: LlamaConfig, config: TrainConfig, mesh: MeshConfig, *, token_ids: int, sequence_length: int
) -> None:
    """Refuses settings that cannot work together, before anything is scored, prepared or compiled.

    Args:
      token_ids: of the tokenizer.
      sequence_length: tokens a row predicts.

    Raises:
      InputError: more token ids than the model's vocabulary, rows longer than the model is meant for, a mesh that does
        not fit the devices, or a batch that cannot be dealt evenly over them.
    """
    if token_ids > model.vocab_size:
        raise InputError(
            f"model.vocab_size={model.vocab_size}: the mixture's tokenizer has {token_ids:,} ids; "
            "set it to at least that (a multiple of 128 runs fastest)"
        )
    if sequence_length > model.max_length:
        raise InputError(
            f"model.max_length={model.max_length}: the mixture's rows predict {sequence_length} tokens; raise it, or "
            "prepare shorter rows"
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
    began = time.time()
    fit = {"token_ids": mixture.vocabulary.size, "sequence_length": mixture.sequence_length}
    check_fit(model, train_config, mesh_config, **fit)
    cache = keep_programs(train_config.compilation_cache)
    log.info("compiled programs are kept in %s", cache) if cache else None
    mesh = make_mesh(mesh_config)
    run = _Run(mixture, model, optimizer.for_run(train_config.steps), train_config, mesh, Path(output_dir), began)
    try:
        return run.go()
    finally:
        run.close()


class _LossStaysNonFinite(InputError):
    """The run was stopped because it cannot learn; its state is not worth another checkpoint."""


class _Run:
    """One sitting of a training run."""

    def __init__(self, mixture, model, optimizer, config, mesh, output_dir, began):
        self.mixture, self.model, self.config, self.mesh = mixture, model, config, mesh
        self.output_dir, self.clock = output_dir, CompileClock()
        self.components = [component.name for component in mixture.taken]
        self.loader = mixture.loader(batch_size=config.batch_size)
        self.tokens_per_step = config.batch_size * self.loader.sequence_length
        self.separate_at = None if config.attend_across_documents else mixture.vocabulary.end_of_text_id
        self.shapes, self.shardings = state_shardings(model, optimizer, mesh, config.lora)
        self.init_state, self.step = make_train_step(
            model,
            optimizer,
            mesh,
            num_components=len(self.components),
            z_loss=config.z_loss,
            gradient_accumulation=config.gradient_accumulation,
            seed=config.seed,
            lora=config.lora,
        )
        self.held_out = HeldOut(mixture, model, mesh, config.batch_size, config.eval_batches, self.separate_at)
        self.samples = Samples(mixture, model, mesh, config)
        self.identity = _identity(mixture, model, optimizer, config)
        self.checkpoints = Checkpoints(
            output_dir / "checkpoints",
            keep=config.keep_checkpoints,
            keep_every_steps=config.keep_every_steps,
            keep_every_minutes=config.keep_every_minutes,
        )
        first = jax.process_index() == 0
        self.writer = MetricWriter(output_dir, tensorboard=config.tensorboard) if first else None
        self.sample_log = SampleLog(output_dir) if first and config.sample_prompts else None
        self.goodput = GoodputLog(output_dir, began=began, write=first)
        self.state, self.done, self.saved, self.window = None, 0, None, None
        self.base: tuple[Any, ...] = ()
        self.timed_steps, self.skipped_in_a_row = 0, 0

    def close(self) -> None:
        for log_file in filter(None, (self.writer, self.sample_log)):
            log_file.close()
        self.checkpoints.close()

    def go(self) -> TrainingResult:
        with StopRequest(self.config.grace_seconds, lambda: self.checkpoints.last_whole) as self.stop:
            self._start()
            start = self.done
            first = self._evaluate()
            try:
                self._steps(start)
                if self.saved != self.done:
                    self._save()
            except BaseException as error:
                self._rescue(error)
                raise
            if self.stop.asked:
                self.checkpoints.wait()
                last = {}
            else:
                last = self._at_the_end() if self.done > start else first
                self.checkpoints.wait()
            summary = self._summarise() if self.done > start else None
        return TrainingResult(
            steps=self.done,
            interrupted=self.done < self.config.steps,
            held_out={name: (first[name], last[name]) for name in last if name in first},
            skipped_steps=int(self.state.skipped),
            summary=summary,
        )

    def _at_the_end(self) -> dict[str, float]:
        """Looks at the trained model, while its checkpoint is being written."""
        self._write_samples()
        return self._evaluate()

    def _start(self) -> None:
        """Finds the state to go on from."""
        self._read_base()
        restored = self.checkpoints.restore(self.shapes, self.shardings)
        if restored is None:
            self.state = self._initial()
        else:
            self.state, info = restored
            for what, now in self.identity.items():
                if info["identity"].get(what) != now:
                    raise InputError(
                        f"{self.checkpoints.folder}: its checkpoints were trained with another {what}; "
                        "set the configuration back, or choose another output_dir"
                    )
            self.saved = self.done = int(self.state.step)
            log.info("going on from step %d", self.saved)
        sitting = self.goodput.sitting
        sitting.first_step = sitting.last_step = self.done
        self.goodput.save(now=True)

    def _initial(self) -> TrainState:
        state = self.init_state(jax.random.key(self.config.seed))
        if self.config.init_from is None or self.base:
            return state
        params = initial_params(self.config.init_from, self.config.init_step, self.model, self.shardings.params)
        log.info("beginning with the parameters of %s", self.config.init_from)
        return dataclasses.replace(state, params=params)

    def _read_base(self) -> None:
        """The frozen parameters that adapters are trained beside; every sitting reads them again, and they must be the
        same.
        """
        lora = self.config.lora
        if not lora.rank:
            return
        whole = base_shardings(self.model, self.mesh)
        self.base = (initial_params(self.config.init_from, self.config.init_step, self.model, whole),)
        self.identity["model in init_from"] = str(int(fingerprint(self.base[0])))
        self.merge = OnMesh(self.mesh, jax.jit(functools.partial(merged, lora=lora), out_shardings=whole))
        count = sum(leaf.size for leaf in jax.tree.leaves(self.shapes.params))
        log.info(
            "training adapters of rank %d, %s parameters, beside those of %s",
            lora.rank,
            f"{count:,}",
            self.config.init_from,
        )

    def _weights(self) -> Any:
        """All parameters of the model as it stands."""
        return self.merge(self.base[0], self.state.params) if self.base else self.state.params

    def _steps(self, start: int) -> None:
        """Runs steps until the end or a stop request; metrics of a step are read after the next one is under way."""
        config = self.config
        prepare = Preparation(self.loader, batch_sharding(self.mesh), self.separate_at)
        ahead = ReadAhead(prepare, start, config.steps)
        window = self.window = Window(self, start)
        trace = StepTrace(self.output_dir / "profile", start=config.profile_start, count=config.profile_steps)
        try:
            for number, batch, waited in ahead:
                trace.before(number)
                with jax.transfer_guard(
                    "disallow"
                ):  # a hidden copy between host and device is an error, not a slow step
                    self.state, metrics = self.step(self.state, batch, *self.base)
                self.done = number + 1
                trace.after(metrics)
                window.add(self.done, metrics, waited)
                if number == start:
                    window.leave_out_compilation()
                evaluate, sample = self._due(config.eval_every), self._due(config.sample_every)
                if evaluate or sample:
                    window.flush()
                    if evaluate:
                        self._evaluate()
                    if sample:
                        self._write_samples()
                    window.restart()
                if self.done % config.checkpoint_every == 0:
                    self._save()
                if self.stop.agreed(self.done):
                    break
            window.flush()
        finally:
            trace.close()
            ahead.close()

    def _due(self, every: int) -> bool:
        return bool(every) and self.done % every == 0 and self.done < self.config.steps

    def _save(self) -> None:
        jax.block_until_ready(self.state)  # waiting for steps is not waiting for the checkpoint
        began = time.perf_counter()
        self.checkpoints.save(self.done, self.state, {"identity": self.identity, "seed": self.config.seed})
        self.saved = self.done
        seconds = time.perf_counter() - began
        self.goodput.sitting.save_seconds += seconds
        self.window.leave_out(seconds)

    def _rescue(self, error: BaseException) -> None:
        """Saves what a failing run has reached, where that can help: the failure is raised whether or not it
        succeeds.
        """
        if self.done in (self.saved, self.goodput.sitting.first_step) or isinstance(
            error, (CheckpointError, _LossStaysNonFinite)
        ):
            return
        what = f"{type(error).__name__} after step {self.done}"
        if jax.process_count() > 1:
            log.error("%s: no emergency checkpoint, since one of several hosts cannot write one alone", what)
            return
        try:
            self._save()
            self.checkpoints.wait()
            log.error("%s: emergency checkpoint of step %d saved", what, self.done)
        except Exception as second:  # the state may be lost with the failure; then the first error is the one to tell
            log.error("%s: an emergency checkpoint could not be saved (%s)", what, " ".join(str(second).split())[:200])

    def _evaluate(self) -> dict[str, float]:
        began = time.perf_counter()
        losses = self.held_out.losses(self._weights(), stop=lambda: self.stop.asked)
        if losses and self.writer:
            self.writer.write(
                self.done,
                {"eval/loss" if name == "all" else f"eval/{name}/loss": value for name, value in losses.items()},
            )
            log.info(evaluation_line(self.done, losses))
        self.goodput.sitting.evaluation_seconds += time.perf_counter() - began
        return losses

    def _write_samples(self) -> None:
        began = time.perf_counter()
        texts = self.samples.texts(self.done, self._weights())
        if self.sample_log:
            self.sample_log.write(self.done, self.samples.prompts, texts)
            for line in sample_lines(self.done, self.samples.prompts, texts):
                log.info(line)
        self.goodput.sitting.evaluation_seconds += time.perf_counter() - began

    def report(self, step: int, records: list[Mapping[str, Any]], seconds: float, waited: float, timed: int) -> None:
        """Logs a window of steps, of which the last `timed` took `seconds`; stops a run whose losses stay
        non-finite.
        """
        figures = window_figures(records, self.components)
        per_step = seconds / timed
        speed = self.tokens_per_step / per_step
        figures |= {"tokens_per_second": speed, "step_seconds": per_step, "input_wait_seconds": waited / timed}
        figures |= utilisation(self.model, self.loader.sequence_length, speed) | memory_figures()
        figures["goodput"] = goodput(self.goodput.sittings).share
        figures["rows"] = float(step * self.config.batch_size)
        for name, rows in zip(self.components, self.loader.schedule.counts(step * self.config.batch_size), strict=True):
            figures[f"rows/{name}"] = float(rows)
        if self.writer:
            self.writer.write(step, figures)
            log.info(console_line(step, self.config.steps, figures, per_step * (self.config.steps - step)))
        self._watch(step, records)

    def account(self, step: int, seconds: float, waited: float, timed: int) -> None:
        """Adds a window of steps to the sitting's account of its time."""
        sitting = self.goodput.sitting
        sitting.last_step, sitting.compile_seconds = step, self.clock.seconds
        sitting.step_seconds += seconds
        sitting.input_wait_seconds += waited
        self.timed_steps += timed
        self.goodput.save()

    def _watch(self, step: int, records: list[Mapping[str, Any]]) -> None:
        for record in records:
            self.skipped_in_a_row = 0 if record["applied"] else self.skipped_in_a_row + 1
            if self.skipped_in_a_row >= self.config.max_skipped_steps:
                saved = self.checkpoints.last_whole
                last = f"the last checkpoint is step {saved}" if saved is not None else "there is no checkpoint yet"
                raise _LossStaysNonFinite(
                    f"loss or gradient was not finite for {self.skipped_in_a_row} steps in a row, up to step {step}; "
                    f"{last}: "
                    "lower optimizer.learning_rate or optimizer.clip_norm and train again"
                )
        bad = sum(not record["applied"] for record in records)
        if bad:
            log.warning("%d of the last %d updates were skipped: loss or gradient was not finite", bad, len(records))

    def _summarise(self) -> Mapping[str, Any]:
        self.goodput.save(now=True)
        return summarise(
            self.output_dir if self.writer else None,
            self.model,
            self.loader.sequence_length,
            steps=self.done,
            tokens_per_step=self.tokens_per_step,
            timed_steps=self.timed_steps,
            sittings=self.goodput.sittings,
            clock=self.clock,
        )


def _identity(mixture: Mixture, model: LlamaConfig, optimizer: OptimizerConfig, config: TrainConfig) -> dict[str, str]:
    """What a checkpoint may only be resumed with; how the model is run (kernels, remat, scan, mesh, hosts) may
    change.
    """
    shape = {name: value for name, value in vars(model).items() if name not in _RUN_ONLY}
    data = {
        "batch_size": config.batch_size,
        "seed": config.seed,
        "z_loss": config.z_loss,
        "across": config.attend_across_documents,
    }
    begun = {} if config.init_from is None else {"init_from": content_hash([config.init_from, config.init_step])}
    if config.lora.rank:
        begun["lora"] = content_hash(dataclasses.asdict(config.lora))
    return begun | {
        "mixture": mixture.content_hash,
        "model": content_hash(shape),
        "optimizer": content_hash(vars(optimizer)),
        "batch_size, seed, z_loss or attend_across_documents": content_hash(data),
    }


_RUN_ONLY = ("scan_layers", "remat", "attention", "loss_chunk_bytes")

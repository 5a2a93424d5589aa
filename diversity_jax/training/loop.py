"""The training loop: batches in, checkpoints and figures out, exact to resume."""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
from dataclasses import dataclass
import logging
from pathlib import Path
import time
from typing import Any

import jax
from jax.sharding import Mesh
import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import content_hash, write_json
from diversity_jax.mixtures.mixture import Mixture
from diversity_jax.model import LlamaConfig, MeshConfig, batch_sharding, check_batch, make_mesh
from diversity_jax.model.convert import read_model
from diversity_jax.model.llama import Params, fingerprint
from diversity_jax.training.callbacks import (
    Callback,
    Evaluation,
    Run,
    Sampling,
    Saving,
    StepReport,
    StepResult,
    StepTrace,
)
from diversity_jax.training.checkpoint import Checkpoints
from diversity_jax.training.config import TrainConfig
from diversity_jax.training.data import Preparation, ReadAhead
from diversity_jax.training.log import MetricWriter
from diversity_jax.training.optimizer import OptimizerConfig
from diversity_jax.training.runtime import CompileClock, StopRequest, keep_programs
from diversity_jax.training.step import TrainState, TrainStep, make_train_step, model_shardings, state_shardings
from diversity_jax.training.throughput import GoodputLog, summarise

log = logging.getLogger(__name__)

_RUN_ONLY_FIELDS = ("scan_layers", "remat", "attention", "loss_chunk_bytes")
"""Fields of the model that say how it is run; a resumed run may change them, as it may mesh and hosts."""
_SAME_FUNCTION_FIELDS = ("max_length", "dropout", "initializer_range", "compute_dtype", *_RUN_ONLY_FIELDS)
"""Fields of the model that do not change which function its parameters compute."""


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """How a run ended.

    Attributes:
      steps: finished, those of earlier attempts too.
      interrupted: stopped by SIGTERM, with a checkpoint of its last step.
      held_out: loss in nats per token by component, and `all`, before the first step of this attempt and at the end;
        empty where it was interrupted.
      skipped_steps: updates left out for a non-finite loss or gradient.
      summary: the content of `summary.json`; None where this attempt had no step to do.
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
    config: TrainConfig,
    mesh_config: MeshConfig,
    output_dir: str | Path,
) -> TrainingResult:
    """Trains, or goes on from the last checkpoint in `output_dir`; the result does not depend on interruptions.

    Raises:
      InputError: the model does not fit the mixture, mesh or batch; the checkpoints are of another run; or too many
        non-finite steps.
    """
    began, mesh, optimizer = time.time(), make_mesh(mesh_config), optimizer.for_run(config.steps)
    token_ids, sequence_length = mixture.vocabulary.size, mixture.sequence_length
    check_fit(model, config, mesh_config, token_ids=token_ids, sequence_length=sequence_length)
    if cache := keep_programs(config.compilation_cache):
        log.info("compiled programs are kept in %s", cache)
    with contextlib.ExitStack() as resources:
        run = _open_run(resources, mixture, model, config, mesh, Path(output_dir), began)
        init_state, train_step = make_train_step(
            model,
            optimizer,
            mesh,
            num_components=len(run.components),
            z_loss=config.z_loss,
            gradient_accumulation=config.gradient_accumulation,
            seed=config.seed,
            lora=config.lora,
        )
        identity = _identity(run, optimizer)
        restored = _restore(run, identity, *state_shardings(model, optimizer, mesh, config.lora))
        state = _initial_state(run, init_state) if restored is None else restored
        start = int(state.step)
        run.goodput_log.begin(start)

        evaluation, sampling = Evaluation(run), Sampling(run)
        report = StepReport(run, flush_before=(evaluation, sampling))
        saving = Saving(run, {"identity": identity, "seed": config.seed}, saved=None if restored is None else start)
        callbacks = [StepTrace(run), report, evaluation, sampling, saving]
        for callback in callbacks:
            resources.callback(callback.close)

        losses_before = losses_after = evaluation.evaluate(start, state)
        step, state = _run_steps(run, train_step, state, callbacks)
        if run.stop.asked:
            losses_after = {}
        elif step > start:  # while the last checkpoint is being written
            sampling.sample(step, state)
            losses_after = evaluation.evaluate(step, state)
        run.checkpoints.wait()
        summary = _summarise(run, step, report.timed_steps) if step > start else None
    return TrainingResult(
        steps=step,
        interrupted=step < config.steps,
        held_out={name: (losses_before[name], loss) for name, loss in losses_after.items() if name in losses_before},
        skipped_steps=int(state.skipped),
        summary=summary,
    )


def _run_steps(
    run: Run, train_step: TrainStep, state: TrainState, callbacks: Sequence[Callback]
) -> tuple[int, TrainState]:
    """Runs steps until the last one or a stop request; returns the finished steps and the state after them."""
    start = step = int(state.step)
    prepare = Preparation(run.loader, batch_sharding(run.mesh), run.separate_at)
    try:
        with contextlib.closing(ReadAhead(prepare, start, run.config.steps)) as batches:
            for number, batch, waited in batches:
                for callback in callbacks:
                    callback.before_step(number)
                with jax.transfer_guard("disallow"):  # a hidden copy between host and device is an error
                    state, metrics = train_step(state, batch, run.frozen)
                step = number + 1
                result = StepResult(step=step, state=state, metrics=metrics, input_wait_seconds=waited)
                for callback in callbacks:
                    if callback.due(step):
                        callback.on_step(result)
                if run.stop.agreed(step):
                    break
        for callback in callbacks:
            callback.on_end(step, state)
    except BaseException as error:
        for callback in callbacks:
            callback.on_error(error, step, state)
        raise
    return step, state


def _open_run(
    resources: contextlib.ExitStack,
    mixture: Mixture,
    model: LlamaConfig,
    config: TrainConfig,
    mesh: Mesh,
    output_dir: Path,
    began: float,
) -> Run:
    """Opens a run's files, starts listening to SIGTERM, and reads the parameters that stay frozen."""
    checkpoints = Checkpoints(
        output_dir / "checkpoints",
        keep=config.keep_checkpoints,
        keep_every_steps=config.keep_every_steps,
        keep_every_minutes=config.keep_every_minutes,
    )
    resources.callback(checkpoints.close)
    writes_files, writer = jax.process_index() == 0, None
    if writes_files:
        writer = MetricWriter(output_dir, tensorboard=config.tensorboard)
        resources.callback(writer.close)
    stop = resources.enter_context(StopRequest(config.grace_seconds, lambda: checkpoints.last_complete))
    frozen = None
    if config.lora.rank and config.init_from is not None:
        log.info("training adapters of rank %d beside the parameters of %s", config.lora.rank, config.init_from)
        frozen = initial_params(config.init_from, config.init_step, model, model_shardings(model, mesh))
    return Run(
        mixture=mixture,
        model=model,
        config=config,
        mesh=mesh,
        output_dir=output_dir,
        loader=mixture.loader(batch_size=config.batch_size),
        checkpoints=checkpoints,
        goodput_log=GoodputLog(output_dir, began=began, write=writes_files),
        compile_clock=CompileClock(),
        writer=writer,
        stop=stop,
        frozen=frozen,
    )


def _restore(run: Run, identity: Mapping[str, str], shapes: TrainState, shardings: TrainState) -> TrainState | None:
    """The state of the last checkpoint; None where there is none.

    Raises:
      InputError: the checkpoints are of another run.
    """
    restored = run.checkpoints.restore(shapes, shardings)
    if restored is None:
        return None
    state, info = restored
    for what, now in identity.items():
        if info["identity"].get(what) != now:
            raise InputError(
                f"{run.checkpoints.folder}: its checkpoints were trained with another {what}; "
                "set the configuration back, or choose another output_dir"
            )
    log.info("going on from step %d", int(state.step))
    return state


def _initial_state(run: Run, init_state: Callable[[jax.Array], TrainState]) -> TrainState:
    """The state of a run that begins: random parameters, or those of `train.init_from`."""
    config, state = run.config, init_state(jax.random.key(run.config.seed))
    if config.init_from is None or config.lora.rank:
        return state
    params = initial_params(config.init_from, config.init_step, run.model, model_shardings(run.model, run.mesh))
    log.info("beginning with the parameters of %s", config.init_from)
    return dataclasses.replace(state, params=params)


def _identity(run: Run, optimizer: OptimizerConfig) -> dict[str, str]:
    """What a checkpoint may only be resumed with; how the model is run (kernels, mesh, hosts) may change."""
    config, identity = run.config, {}
    if config.init_from is not None:
        identity["init_from"] = content_hash([config.init_from, config.init_step])
    if config.lora.rank:
        identity["lora"] = content_hash(dataclasses.asdict(config.lora))
        identity["model in init_from"] = str(int(fingerprint(run.frozen)))
    model = {name: value for name, value in vars(run.model).items() if name not in _RUN_ONLY_FIELDS}
    training = {
        "batch_size": config.batch_size,
        "seed": config.seed,
        "z_loss": config.z_loss,
        "across": config.attend_across_documents,
    }
    return identity | {
        "mixture": run.mixture.content_hash,
        "model": content_hash(model),
        "optimizer": content_hash(vars(optimizer)),
        "batch_size, seed, z_loss or attend_across_documents": content_hash(training),
    }


def _summarise(run: Run, steps: int, timed_steps: int) -> dict[str, Any]:
    """The figures of the attempt, also written to `summary.json`."""
    run.goodput_log.save(now=True)
    length = run.loader.sequence_length
    summary = summarise(
        run.model,
        length,
        steps=steps,
        tokens_per_step=run.config.batch_size * length,
        timed_steps=timed_steps,
        attempts=run.goodput_log.attempts,
        clock=run.compile_clock,
    )
    if run.writer:
        write_json(run.output_dir / "summary.json", summary)
    return summary


def initial_params(folder: str | Path, step: int | None, model: LlamaConfig, shardings: Any) -> Params:
    """Parameters of a run, of what `model.convert import` wrote, or of a Hugging Face Llama, on the mesh.

    Every process reads all of them, and keeps the part that its devices hold.

    Args:
      step: of a run: which checkpoint; None: the latest.
      model: the model that is to be trained.
      shardings: of its parameters.

    Raises:
      InputError: no model there, or another than `model`; the message names the fields that differ.
    """
    theirs, params = read_model(folder, step=step)
    names = [field.name for field in dataclasses.fields(LlamaConfig) if field.name not in _SAME_FUNCTION_FIELDS]
    differing = [name for name in names if _value(theirs, name) != _value(model, name)]
    if differing:
        listed = ", ".join(f"{name} {_value(theirs, name)} there, {_value(model, name)} here" for name in differing)
        raise InputError(
            f"train.init_from={folder}: is another model ({listed}); set config.model to it, or leave config.model out"
        )

    def put_on_mesh(leaf: Any, sharding: Any) -> jax.Array:
        array = np.asarray(leaf, np.float32)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(put_on_mesh, params, shardings)


def _value(model: LlamaConfig, name: str) -> Any:
    return model.kv_heads if name == "num_kv_heads" else getattr(model, name)

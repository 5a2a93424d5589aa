"""The training loop: batches in, checkpoints and figures out, exact to resume."""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
from dataclasses import dataclass
import functools
import logging
from pathlib import Path
import time
from typing import Any

import jax
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
from diversity_jax.training.data import ReadAhead, prepare
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
    """How a run ended."""

    steps: int  # finished, those of earlier attempts too
    interrupted: bool  # stopped by SIGTERM, with a checkpoint of its last step
    # Loss in nats per token by component, and `all`, before the first step of this attempt and at the end; empty where
    # it was interrupted.
    held_out: Mapping[str, tuple[float, float]]
    skipped_steps: int  # updates left out for a non-finite loss or gradient
    summary: Mapping[str, Any] | None  # the content of `summary.json`; None where this attempt had no step to do


def check_fit(model: LlamaConfig, config: TrainConfig, mesh: MeshConfig, token_ids: int, sequence_length: int) -> None:
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
            f"model.vocab_size={model.vocab_size}: the mixture's tokenizer has {token_ids:,} ids; set it to at least "
            "that (a multiple of 128 runs fastest)"
        )
    if sequence_length > model.max_length:
        raise InputError(
            f"model.max_length={model.max_length}: the mixture's rows predict {sequence_length} tokens; raise it"
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
    check_fit(model, config, mesh_config, mixture.vocabulary.size, mixture.sequence_length)
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
        state, is_restored = _first_state(run, identity, init_state, optimizer)
        start = int(state.step)
        run.goodput_log.begin(start)

        evaluation, sampling = Evaluation(run), Sampling(run)
        report = StepReport(run, flush_before=(evaluation, sampling))
        saving = Saving(run, {"identity": identity, "seed": config.seed}, saved=start if is_restored else None)
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
        summary = None
        if step > start:
            run.goodput_log.save(now=True)
            rows = config.batch_size, run.loader.sequence_length
            summary = summarise(model, rows, report.timed_steps, run.goodput_log.attempts, run.compile_clock)
            if run.writer:
                write_json(run.output_dir / "summary.json", summary)
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
    read = functools.partial(prepare, run.loader, batch_sharding(run.mesh), run.separate_at)
    try:
        with contextlib.closing(ReadAhead(read, start, run.config.steps)) as batches:
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


def _open_run(resources, mixture, model, config, mesh, output_dir, began) -> Run:
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


def _first_state(
    run: Run, identity: Mapping[str, str], init_state: Callable[..., TrainState], optimizer: OptimizerConfig
) -> Any:
    """The state to go on from, and whether it is a checkpoint's: the last one, or random or `init_from`'s parameters.

    Raises:
      InputError: the checkpoints are of another run.
    """
    config = run.config
    restored = run.checkpoints.restore(*state_shardings(run.model, optimizer, run.mesh, config.lora))
    if restored is not None:
        state, info = restored
        for what, now in identity.items():
            if info["identity"].get(what) != now:
                raise InputError(
                    f"{run.checkpoints.folder}: its checkpoints were trained with another {what}; set the "
                    "configuration back, or choose another output_dir"
                )
        log.info("going on from step %d", int(state.step))
        return state, True
    state = init_state(jax.random.key(config.seed))
    if config.init_from is not None and not config.lora.rank:
        params = initial_params(config.init_from, config.init_step, run.model, model_shardings(run.model, run.mesh))
        log.info("beginning with the parameters of %s", config.init_from)
        state = dataclasses.replace(state, params=params)
    return state, False


def _identity(run: Run, optimizer: OptimizerConfig) -> dict[str, str]:
    """What a checkpoint may only be resumed with; how the model is run (kernels, mesh, hosts) may change."""
    config, identity = run.config, {}
    if config.init_from is not None:
        identity["init_from"] = content_hash([config.init_from, config.init_step])
    if config.lora.rank:
        identity["lora"] = content_hash(dataclasses.asdict(config.lora))
        identity["model in init_from"] = str(int(fingerprint(run.frozen)))
    model = {name: value for name, value in vars(run.model).items() if name not in _RUN_ONLY_FIELDS}
    training = {name: getattr(config, name) for name in ("batch_size", "seed", "z_loss")}
    training["across"] = config.attend_across_documents
    return identity | {
        "mixture": run.mixture.content_hash,
        "model": content_hash(model),
        "optimizer": content_hash(vars(optimizer)),
        "batch_size, seed, z_loss or attend_across_documents": content_hash(training),
    }


def initial_params(folder: str | Path, step: int | None, model: LlamaConfig, shardings: Any) -> Params:
    """Parameters of a run, of what `model.convert import` wrote, or of a Hugging Face Llama, on the mesh.

    Every process reads all of them, and keeps the part that its devices hold.

    Raises:
      InputError: no model there, or another than `model`; the message names the fields that differ.
    """
    theirs, params = read_model(folder, step=step)
    fields = {
        name: (old, getattr(model, name)) for name, old in vars(theirs).items() if name not in _SAME_FUNCTION_FIELDS
    }
    fields["num_kv_heads"] = theirs.kv_heads, model.kv_heads
    differing = [f"{name} {old} there, {new} here" for name, (old, new) in fields.items() if old != new]
    if differing:
        listed = ", ".join(differing)
        raise InputError(f"train.init_from={folder}: is another model ({listed}); leave config.model out to use it")

    def put_on_mesh(leaf: Any, sharding: Any) -> jax.Array:
        array = np.asarray(leaf, np.float32)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(put_on_mesh, params, shardings)

"""The training loop, with bit-exact resume from checkpoints."""

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
from jax.experimental import multihost_utils
import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import join_path, parent_folder, write_json
from diversity_jax.core.run_info import Change, plain
from diversity_jax.mixtures.mixture import Mixture
from diversity_jax.model import LlamaConfig, MeshConfig, batch_sharding, check_batch, make_mesh
from diversity_jax.model.convert import read_model
from diversity_jax.model.llama import Params, fingerprint
from diversity_jax.training.bucket_checkpoints import BucketCheckpoints, open_checkpoints
from diversity_jax.training.callbacks import (
    Callback,
    Continuations,
    Evaluation,
    GoodputLog,
    Saving,
    StepReport,
    StepTrace,
    TrainingRun,
)
from diversity_jax.training.checkpoint import Checkpoints, complete_steps, load
from diversity_jax.training.config import DataConfig, TrainConfig
from diversity_jax.training.data import ReadAhead, prepare
from diversity_jax.training.log import MetricWriter
from diversity_jax.training.resume import Settings, accepted_changes
from diversity_jax.training.runtime import CompileClock, StopRequest, keep_programs
from diversity_jax.training.step import (
    OptimizerConfig,
    TrainState,
    TrainStep,
    make_train_step,
    model_shardings,
    state_shardings,
)
from diversity_jax.training.throughput import StepClock, StepResult, StepWindows, summarise
from diversity_jax.training.trackers import check_installed, mixture_figures, open_trackers

log = logging.getLogger(__name__)

_SAME_FUNCTION_FIELDS = (
    *("max_length", "dropout", "initializer_range", "compute_dtype", "scan_layers", "remat", "attention"),
    "loss_chunk_bytes",
)
"""Fields of the model that do not change which function its parameters compute."""


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """Result of an attempt of a run."""

    steps: int  # finished, those of earlier attempts too
    interrupted: bool  # stopped by SIGTERM, with a checkpoint of its last step
    # Loss in nats per token by component, and `all`, before the first step of this attempt and at the end; empty after
    # an interruption.
    held_out: Mapping[str, tuple[float, float]]
    skipped_steps: int  # updates left out for a non-finite loss or gradient
    summary: Mapping[str, Any] | None  # the content of `summary.json`; None where the run was complete before


def check_fit(model: LlamaConfig, config: TrainConfig, mesh: MeshConfig, token_ids: int, sequence_length: int) -> None:
    """Checks settings against each other, before anything is scored, prepared or compiled.

    Args:
      token_ids: number of ids of the tokenizer.
      sequence_length: tokens a row predicts.

    Raises:
      InputError: token ids exceed the model's vocabulary, rows exceed its length, the mesh does not fit the devices, or
        the batch cannot be divided evenly over them.
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
    *,
    checkpoints: Checkpoints | BucketCheckpoints | None = None,
    data: DataConfig = DataConfig(),
    anew: bool = False,
    before_writing: Callable[[], None] = lambda: None,
) -> TrainingResult:
    """Trains, from the last checkpoint in `output_dir` if there is one; the result does not depend on interruptions.

    Args:
      output_dir: local folder of logs and page, and, where `checkpoints` is None, of checkpoints.
      anew: ignores an earlier run in `output_dir`, which `before_writing` has to remove.
      before_writing: called after all checks and restoring, before the first file is written.

    Raises:
      InputError: settings do not fit each other or the checkpoints, or too many consecutive steps are not finite.
    """
    began, mesh = time.time(), make_mesh(mesh_config)
    model = model.for_rows(mixture.vocabulary.size, mixture.sequence_length)
    settings = Settings(model=model, optimizer=optimizer, train=config, mesh=mesh_config)
    optimizer = optimizer.for_run(config.steps)
    check_fit(model, config, mesh_config, mixture.vocabulary.size, mixture.sequence_length)
    if cache := keep_programs(config.compilation_cache):
        log.info("compiled programs are kept in %s", cache)
    with contextlib.ExitStack() as resources:
        run = _open_run(resources, mixture, model, config, mesh, Path(output_dir), checkpoints, data)
        init_state, train_step = _compiled(run, optimizer)
        begin = _first_state(run, settings, init_state, optimizer, anew=anew)
        state, start = begin.state, int(begin.state.step)
        goodput_log = GoodputLog(run, began=began, start=start, anew=anew)
        evaluation, continuations = Evaluation(run), Continuations(run)
        record, saved = _record(run, settings, begin.changes), start if begin.is_saved else None
        saving = Saving(run, record, start=start, saved=saved)
        report = StepReport(run, goodput_log.attempts)
        callbacks = [StepTrace(run), goodput_log, report, evaluation, continuations, saving]
        for callback in callbacks:
            resources.callback(callback.close)
        before_writing()
        _begin_writing(run, settings, begin, goodput_log)
        losses_before = losses_after = evaluation.evaluate(start, state)
        step, state = _run_steps(run, train_step, state, callbacks)
        if run.stop.asked:
            losses_after = {}
        elif step > start:  # while the last checkpoint is being written
            continuations.sample(step, state)
            losses_after = evaluation.evaluate(step, state)
        run.checkpoints.wait()
        return TrainingResult(
            steps=step,
            interrupted=step < config.steps,
            held_out={n: (losses_before[n], loss) for n, loss in losses_after.items() if n in losses_before},
            skipped_steps=int(state.skipped),
            summary=_summary(run, goodput_log, begin.changes) if step > start else None,
        )


def _warn_of_idle_steps(optimizer: OptimizerConfig, steps: int) -> None:
    """Warns where the schedule reaches a learning rate of zero before the last step."""
    last = optimizer.total_steps
    if optimizer.schedule != "constant" and not optimizer.final_ratio and last is not None and last < steps:
        log.warning(
            "optimizer.total_steps=%d: steps %d to %d have a learning rate of 0 and change nothing; set "
            "optimizer.final_ratio, or fewer train.steps",
            *(last, last + 1, steps),
        )


def _compiled(run: TrainingRun, optimizer: OptimizerConfig) -> tuple[Callable[..., TrainState], TrainStep]:
    config = run.config
    _warn_of_idle_steps(optimizer, config.steps)
    return make_train_step(
        run.model,
        optimizer,
        run.mesh,
        num_components=len(run.components),
        z_loss=config.z_loss,
        gradient_accumulation=config.gradient_accumulation,
        seed=config.seed,
        lora=config.lora,
    )


def _begin_writing(run: TrainingRun, settings: Settings, begin: "_Start", goodput_log: GoodputLog) -> None:
    """Moves damaged checkpoints away, opens the trackers, and writes the attempt's first records."""
    start = int(begin.state.step)
    if begin.damaged:
        run.checkpoints.set_aside(begin.damaged)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints set aside")
    if run.writer and start < run.config.steps:
        shown = {**plain(settings), "mixture": run.mixture.asked}
        run.writer.show_on(open_trackers(run.config.all_trackers, run.output_dir, shown))
        run.writer.show(start, mixture_figures(run.mixture))
    goodput_log.save(now=True)


def _summary(run: TrainingRun, goodput_log: GoodputLog, changes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The content of `summary.json`, which the first process writes."""
    goodput_log.save(now=True)
    rows = run.config.batch_size, run.loader.sequence_length
    timed_steps, attempts = goodput_log.timed_steps, goodput_log.attempts
    summary = summarise(run.model, run.config.lora, rows, timed_steps, attempts, run.compile_clock)
    summary["changes"] = list(changes)
    if run.writer:
        write_json(run.output_dir / "summary.json", summary)
        run.writer.outcome = "finished" if goodput_log.attempt.last_step == run.config.steps else "interrupted"
    return summary


def _run_steps(
    run: TrainingRun, train_step: TrainStep, state: TrainState, callbacks: Sequence[Callback]
) -> tuple[int, TrainState]:
    """Runs steps until the last one or a stop request; returns the number of finished steps and the state."""
    start = step = int(state.step)
    read = functools.partial(prepare, run.loader, batch_sharding(run.mesh), run.boundaries)
    windows = StepWindows(start, run.config.log_every, run.clock, run.compile_clock)
    try:
        with contextlib.closing(ReadAhead(read, start, run.config.steps)) as batches:
            for number, batch, waited in batches:
                for callback in callbacks:
                    callback.before_step(number)
                with jax.transfer_guard("disallow"):  # a hidden copy between host and device is an error
                    state, metrics = train_step(state, batch, run.frozen)
                step = number + 1
                result = StepResult(step=step, state=state, metrics=metrics, input_wait_seconds=waited)
                due = [callback for callback in callbacks if callback.due(step)]
                for window in windows.add(result, devices_stop=any(callback.stops_devices for callback in due)):
                    for callback in callbacks:
                        callback.on_window(window)
                for callback in due:
                    callback.on_step(result)
                if run.stop.agreed(step):
                    break
        for window in windows.rest():
            for callback in callbacks:
                callback.on_window(window)
        for callback in callbacks:
            callback.on_end(step, state)
    except BaseException as error:
        for callback in callbacks:
            callback.on_error(error, step, state)
        raise
    return step, state


def _open_run(resources, mixture, model, config, mesh, output_dir, checkpoints, data) -> TrainingRun:
    """Opens a run's files, handles SIGTERM from now on, and reads frozen parameters."""
    checkpoints = checkpoints or open_checkpoints(join_path(output_dir, "checkpoints"), config)
    resources.callback(checkpoints.close)
    writer = MetricWriter(output_dir) if jax.process_index() == 0 else None
    if writer:
        check_installed(config.all_trackers)
        resources.enter_context(writer)
    stop = resources.enter_context(StopRequest(config.grace_seconds, lambda: checkpoints.last_complete))
    frozen = None
    if config.lora.rank and config.init_from is not None:
        log.info("training adapters of rank %d beside the parameters of %s", config.lora.rank, config.init_from)
        frozen = initial_params(config.init_from, config.init_step, model, model_shardings(model, mesh))
    return TrainingRun(
        mixture=mixture,
        model=model,
        config=config,
        mesh=mesh,
        output_dir=output_dir,
        loader=mixture.loader(batch_size=config.batch_size, cache_gb=data.cache_gb),
        checkpoints=checkpoints,
        clock=StepClock(),
        compile_clock=CompileClock(),
        writer=writer,
        stop=stop,
        frozen=frozen,
    )


@dataclass(frozen=True, kw_only=True)
class _Start:
    """The state at the start of an attempt.

    Attributes:
      is_saved: whether the run has a checkpoint of the state.
      changes: recorded changes of settings up to this state; see `train.allow_changed`.
      damaged: later steps of the run with damaged checkpoints.
    """

    state: TrainState
    is_saved: bool = False
    changes: Sequence[Mapping[str, Any]] = ()
    damaged: Sequence[int] = ()


def _first_state(
    run: TrainingRun,
    settings: Settings,
    init_state: Callable[..., TrainState],
    optimizer: OptimizerConfig,
    *,
    anew: bool,
) -> _Start:
    """The last checkpoint's state; else that of `train.branch_from`; else a new one, random or from `train.init_from`.

    Raises:
      InputError: the checkpoints were made with other settings; nothing was changed.
    """
    config, own = run.config, run.checkpoints.folder
    begin = None if anew else _load(run, settings, optimizer, own, None)
    if begin is not None:
        log.info("going on from step %d", int(begin.state.step))
        return begin
    run.checkpoints.check_space(state_shardings(run.model, optimizer, run.mesh, config.lora)[0])
    if config.branch_from is not None:
        trunk = join_path(config.branch_from, "checkpoints")
        steps = complete_steps(trunk)
        if not steps or config.branch_step not in (None, *steps):
            listed = ", ".join(map(str, steps)) or "none"
            raise InputError(
                f"{trunk}: has no checkpoint to branch off from (branch_step={config.branch_step}); there: {listed}"
            )
        begin = _load(run, settings, optimizer, trunk, config.branch_step)
        assert begin is not None  # there is a checkpoint
        step = int(begin.state.step)
        if config.steps <= step:
            raise InputError(
                f"train.steps={config.steps}: the branch begins after step {step}; give the step it ends at"
            )
        log.info("branching off from %s at step %d", config.branch_from, step)
        return dataclasses.replace(begin, is_saved=False, damaged=())
    key = jax.random.key(config.seed)
    if config.init_from is None or config.lora.rank:
        return _Start(state=init_state(key))
    params = initial_params(config.init_from, config.init_step, run.model, model_shardings(run.model, run.mesh))
    log.info("beginning with the parameters of %s", config.init_from)
    return _Start(state=init_state(key, params))


def _load(
    run: TrainingRun, settings: Settings, optimizer: OptimizerConfig, checkpoints: str | Path, step: int | None
) -> _Start | None:
    """The last undamaged checkpoint of a run, after a check of its settings; None where there is none."""
    origin, is_branch = parent_folder(checkpoints), str(checkpoints) != run.checkpoints.folder
    accepted: list[Change] = []

    def check(info: Mapping[str, Any]) -> None:
        mixture = {"content_hash": run.mixture.content_hash, "document_start": run.mixture.document_start}
        accepted[:] = accepted_changes(info, settings, mixture, run=origin, is_branch=is_branch)
        if run.frozen is not None and info["identity"]["model in init_from"] != str(int(fingerprint(run.frozen))):
            raise InputError(
                f"{origin}: its adapters were trained beside another model than train.init_from={run.config.init_from} "
                "holds now; put that back, or choose another output_dir; nothing was changed"
            )

    restored = load(checkpoints, *state_shardings(run.model, optimizer, run.mesh, run.config.lora), check, step=step)
    if restored is None:
        return None
    state, info, damaged = restored
    history = list(info.get("changes", ()))
    for change in accepted:
        log.warning("from step %d on: %s", int(state.step), change)
        history.append({"step": int(state.step), **vars(change)})
    return _Start(state=state, is_saved=True, changes=history, damaged=damaged)


def _record(run: TrainingRun, settings: Settings, history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    frozen = {} if run.frozen is None else {"model in init_from": str(int(fingerprint(run.frozen)))}
    return {
        "settings": plain(settings),
        "mixture": run.mixture.content_hash,
        "document_start": run.mixture.document_start,
        "changes": list(history),
        "identity": frozen,
        "seed": run.config.seed,
    }


def initial_params(folder: str | Path, step: int | None, model: LlamaConfig, shardings: Any) -> Params:
    """Parameters from any folder of `read_model`, on the mesh; every process reads all, and keeps its devices' shards.

    Raises:
      InputError: there is no model, or another than `model`; the message names the fields that differ.
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

"""Runs a study: plans it, runs its steps beside other processes, analyses the results and writes the page."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
from dataclasses import dataclass
import functools
import hashlib
import importlib
import logging
import multiprocessing
import os
from pathlib import Path
import signal
import sys
import threading
from typing import Any

from diversity_jax.core import run_info
from diversity_jax.core.artifacts import locked_folder
from diversity_jax.core.cli import run_work
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import local_folder, read_json, write_json
from diversity_jax.core.formats import counted
from diversity_jax.core.process import TERMINATED, end_with_parent
from diversity_jax.study import config as study_config
from diversity_jax.study import graph
from diversity_jax.study.config import Plan, Recipe, StudyConfig
from diversity_jax.study.graph import Command, Step, StepStates, StepStore

log = logging.getLogger(__name__)

_PAGE_SECONDS = 60.0  # for another process to write the analysis
_TERMINATE_SECONDS = 60.0  # for other processes to save what they are working on
_PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True)
class _StepKind:
    """The function of a module that runs a step, and the sources (packages or files) that its result depends on.

    With `may_be_unusable`, a scoring without a usable grouping is a result, which the scorecard records, not a failure.
    """

    module: str
    sources: tuple[str, ...]
    function: str = "main"
    may_be_unusable: bool = False


_TRAINING = _StepKind(module="train", sources=("train.py", "training", "model", "mixtures"))
_SCORING = _StepKind(module="score", sources=("score.py", "scoring", "cluster_agent", "metrics", "llm", "corpus"))
_EVALUATION = _StepKind(module="evaluate", sources=("evaluate.py", "evaluation", "tokenizers", "model"))
_KINDS = {
    "benchmark": _StepKind(
        module="evaluation.tasks", function="write_continuations", sources=("evaluation/tasks.py", "corpus")
    ),
    "generate": _StepKind(module="generate", sources=("generate.py", "synthesis", "llm", "corpus")),
    "score": _SCORING,
    "second_score": dataclasses.replace(_SCORING, may_be_unusable=True),
    "build": _StepKind(
        module="mixtures.build", sources=("scoring", "mixtures", "prepare", "tokenizers", "cluster_agent", "corpus")
    ),
    "train": _TRAINING,
    "sft": _TRAINING,
    "evaluate": _EVALUATION,
    "evaluate_sft": _EVALUATION,
}
assert set(_KINDS) == set(Recipe.__dataclass_fields__)


def commands(study: StudyConfig) -> dict[str, Command]:
    """By kind of step, the function that runs one; its module is imported when it is first called."""
    return {kind: functools.partial(_run_command, step_kind, study.servers) for kind, step_kind in _KINDS.items()}


def _run_command(kind: _StepKind, servers: Sequence[graph.Server], config: Any) -> None:
    if kind is _EVALUATION:  # a training sets up the cache of compiled programs itself, after connecting to other hosts
        from diversity_jax.training.runtime import keep_programs

        keep_programs("user")
    with contextlib.ExitStack() as running:
        for server in graph.named_in(config, servers):
            running.enter_context(graph.answering(server))
        try:
            result = getattr(importlib.import_module(f"diversity_jax.{kind.module}"), kind.function)(config)
        except InputError:
            scorecard = Path(config.output_dir, "scorecard.json") if kind.may_be_unusable else None
            if scorecard is None or not scorecard.exists() or "unusable" not in read_json(scorecard):
                raise
            result = None
    if getattr(result, "interrupted", False):  # a training that SIGTERM stopped has saved a checkpoint and is not done
        raise SystemExit(TERMINATED)


@functools.cache
def codes() -> dict[str, dict[str, str]]:
    """For each kind of step, a hash of each of its sources."""

    @functools.cache
    def source_hash(source: str) -> str:
        path, digest = _PACKAGE / source, hashlib.sha256()
        for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
            digest.update(str(file.relative_to(_PACKAGE)).encode() + b"\0" + file.read_bytes() + b"\0")
        return digest.hexdigest()

    return {name: {source: source_hash(source) for source in kind.sources} for name, kind in _KINDS.items()}


def run(study: StudyConfig) -> None:
    """Runs the study, or one step of it, or prints its graph; prints the page's path last.

    Raises:
      SystemExit: steps have failed; the page is written.
    """
    from diversity_jax.study import cost_forecast

    check_folder(study)
    store = StepStore(Path(study.output_dir) / "steps")
    plan = study_config.plan(study, store)
    if study.step:
        with _stoppable():
            return _run_one_step(study, plan.steps, store)
    for line in cost_forecast.describe(study, cost_forecast.costs_by_kind(study, plan.steps, store)):
        log.info(line)
    if study.dry_run:
        print(describe_graph(plan, store))
        return
    _handle_stale(study, plan.steps, store)
    store.clear_failures(plan.steps)
    states = _run_steps(study, plan.steps, store)
    _analyse(study, plan, store, states)
    if states.failed:
        sys.exit(1)


def check_folder(study: StudyConfig) -> None:
    """Checks `output_dir`, writing nothing.

    Raises:
      InputError: it cannot be used, or holds results of another study or command; the message says which.
    """
    local_folder(study.output_dir, "output_dir")
    if study.overwrite:
        return
    before = run_info.refuse_other_command(study.output_dir, "recipe", "study")
    if before is not None and before["name"] != study.name:
        raise InputError(
            f"{study.output_dir}: holds the study name={before['name']!r}, not {study.name!r}; choose another "
            "output_dir, or set overwrite=True to replace its analysis (finished steps stay)"
        )


def _analyse(study: StudyConfig, plan: Plan, store: StepStore, states: StepStates) -> None:
    """Writes analysis.json, run.json and the page, and prints the page's path."""
    from diversity_jax.study import analysis  # loads statsmodels, which takes seconds

    folder = Path(study.output_dir)
    rows = analysis.table(study, plan.runs, store)
    if not rows:
        raise InputError(f"{study.output_dir}: no recipe was judged; {_failures(states, store)}")
    described: dict[str, Any] = {"densities": analysis.densities(study, plan.runs, store)}
    described["verdicts"] = analysis.verdicts(study, plan.runs, store)
    failures = [{"step": key, **(store.failure(key) or {})} for key in states.failed]
    results = analysis.analyse(study, rows) | described | {"failures": failures}
    # Every process that worked on the study does this at its end.
    with locked_folder(folder, wait_seconds=_PAGE_SECONDS):
        write_json(folder / "analysis.json", results)
        run_info.describe(sys.argv, study).save(folder)
    if states.failed:
        log.warning("%s", _failures(states, store))
    print(analysis.draw(folder))


def describe_graph(plan: Plan, store: StepStore) -> str:
    """A line for each step: its state (`stands`: done, `stale`: done by other code), key, and the steps it needs."""
    states = graph.step_states(plan.steps, store)
    shown = dict.fromkeys(states.done, "stands") | dict.fromkeys(states.failed, "failed")
    shown |= dict.fromkeys(graph.stale(plan.steps, store, codes()), "stale")
    return "\n".join(
        f"{shown.get(key, 'to do'):8}{key}{' <- ' if step.needs else ''}{' '.join(step.needs)}"
        for key, step in plan.steps.items()
    )


def _run_one_step(study: StudyConfig, steps: Mapping[str, Step], store: StepStore) -> None:
    """Runs `study.step`, for schedulers that start each step, in every process of a job; process 0 records it."""
    from diversity_jax.training.distributed import launched_process_id

    key = study.step
    if key not in steps:
        raise InputError(f"step={key!r}: this study has no such step; --config.dry_run=True lists them")
    step = steps[key]
    if missing := [need for need in step.needs if store.done(need) is None]:
        raise InputError(f"step={key!r}: needs {missing[0]}, which is not done; run it first")
    if store.done(key) is not None:
        log.info("%s stands", key)
        return
    command = commands(study)[step.kind]
    if launched_process_id(os.environ) != 0:
        return command(step.config)
    with store.lock(key):
        if not graph.run_step(step, store, command, codes()[step.kind]):
            raise InputError(f"step={key!r}: {_failure(key, store)}")


def _run_steps(study: StudyConfig, steps: Mapping[str, Step], store: StepStore) -> StepStates:
    """Runs the steps in this process and in `study.processes - 1` others."""
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=_work, args=(study, number)) for number in range(1, study.processes)]
    for process in others:
        process.start()
    with _own_cores(0, study.processes), _stoppable():
        try:
            states = graph.run_steps(steps, store, commands(study), codes())
        except BaseException:
            for process in others:
                process.terminate()
            for process in others:
                process.join(_TERMINATE_SECONDS)
            raise
        for process in others:
            process.join()
    return states


def _work(study: StudyConfig, number: int) -> None:
    """Runs steps in another process of this machine, which ends when its parent does."""
    end_with_parent(os.getppid())

    def work() -> None:
        store = StepStore(Path(study.output_dir) / "steps")
        with _own_cores(number, study.processes), _stoppable():
            graph.run_steps(study_config.plan(study, store).steps, store, commands(study), codes())

    run_work(work)  # multiprocessing would print a traceback


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM raises SystemExit, so that the step is neither done nor failed; a training saves a checkpoint first."""

    def stop(*_: Any) -> None:
        log.warning("SIGTERM: stopping; the same command goes on")
        raise SystemExit(TERMINATED)

    if threading.current_thread() is not threading.main_thread():  # the only one that handles signals in Python
        yield
        return
    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextlib.contextmanager
def _own_cores(number: int, processes: int) -> Iterator[None]:
    """Pins each process that computes on the CPU to its own cores: threads of several processes would compete."""
    from diversity_jax.training.runtime import cpu_only

    if not hasattr(os, "sched_setaffinity") or not cpu_only():
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(cores)[number % len(cores) :: processes])
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def _handle_stale(study: StudyConfig, steps: Mapping[str, Step], store: StepStore) -> None:
    """Warns of results made by code that has changed; with `stale=again` invalidates them and their dependents."""
    stale = graph.stale(steps, store, codes())
    if not stale:
        return
    for line in stale_lines(steps, stale):
        log.warning("%s", line)
    dependents = [key for key in graph.dependents(steps, list(stale)) if store.state(key) == "done"]
    also = f", and {len(dependents)} made from them, " if dependents else " "
    if study.stale == "again":
        store.invalidate([*stale, *dependents])
        log.warning("they%sare made again", also)
    else:
        log.warning("they%sare kept as they are; --config.stale=again makes them again", also)


def stale_lines(steps: Mapping[str, Step], stale: Mapping[str, list[str]]) -> list[str]:
    """A line for each kind of step and set of changed sources, naming the first stale steps."""
    groups: dict[tuple[str, str], list[str]] = {}
    for key, sources in stale.items():
        changed = ", ".join(f"diversity_jax/{source}" for source in sources)
        groups.setdefault((steps[key].kind, changed), []).append(key)
    return [
        f"stale: {len(keys)} {kind} made before {changed} changed ({', '.join(keys[:3])}"
        + (f" and {len(keys) - 3} more)" if len(keys) > 3 else ")")
        for (kind, changed), keys in groups.items()
    ]


def _failures(states: StepStates, store: StepStore) -> str:
    reasons = [f"{key}: {_failure(key, store)}" for key in states.failed[:3]]
    reasons += [f"and {len(states.failed) - 3} more"] if len(states.failed) > 3 else []
    failed, blocked = counted(len(states.failed), "step"), len(states.blocked)
    return f"{failed} failed, {blocked} more cannot run without: {'; '.join(reasons)}"


def _failure(key: str, store: StepStore) -> str:
    failure = store.failure(key)
    return f"{failure['reason']} (log: {failure['log']})" if failure else "its failure was cleared by another process"

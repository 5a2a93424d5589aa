"""A whole study: plan, run or join it, analyse, draw. What the command `python -m diversity_jax.study` calls."""

from collections.abc import Iterator
import contextlib
import logging
import multiprocessing
import os
from pathlib import Path
import signal
import sys

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import content_hash, is_remote, write_json
from diversity_jax.study.config import StudyConfig

log = logging.getLogger(__name__)

_LEAVE_SECONDS = 60.0


def run(study: StudyConfig) -> None:
    """The whole study; prints the page's path last."""
    from diversity_jax.core import run_info
    from diversity_jax.report.pages import study as page
    from diversity_jax.study import analysis, cost_forecast
    from diversity_jax.study import config as recipe

    store = open_store(study)
    plan = recipe.plan(study, store)
    if study.step:
        with _stoppable():
            return _one_step(study, plan.steps, store)
    for line in cost_forecast.describe(study, cost_forecast.needs(study, plan.steps, store)):
        log.info(line)
    if study.dry_run:
        print(describe_graph(plan, store))
        return
    _tell_stale(study, plan.steps, store)
    store.forgive(list(plan.steps))
    progress = _run(study, plan.steps, store)
    store.bring([key for key in progress.done if plan.steps[key].kind in analysis.READ], ".json")
    rows = analysis.table(study, plan.runs, store)
    if not rows:
        raise InputError(f"{study.output_dir}: no recipe was judged; {_failures(progress, store)}")
    failures = [{"step": key, **store.failure(key)} for key in progress.failed]
    found = analysis.analyse(study, rows) | {
        "densities": analysis.densities(study, plan.runs, store),
        "failures": failures,
    }
    folder = local_folder(study)
    write_json(folder / "analysis.json", found)
    record = run_info.describe(sys.argv, study)
    record.save(folder)
    if progress.failed:
        log.warning("%s", _failures(progress, store))
    print(_published(study, page.draw(folder)))


def local_folder(study: StudyConfig) -> Path:
    """Where this machine keeps the study: its output folder, or what stands in for one in a bucket."""
    if not is_remote(study.output_dir):
        return Path(study.output_dir)
    if study.work_dir:
        return Path(study.work_dir)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "diversity_jax" / "studies" / f"{study.name}-{content_hash(study.output_dir)[:12]}"


def open_store(study: StudyConfig):
    """The study's steps, in a folder or in a bucket."""
    from diversity_jax.study.graph import Store
    from diversity_jax.study.object_store import ObjectStore

    work = local_folder(study) / "steps"
    if not is_remote(study.output_dir):
        return Store(work)
    store = ObjectStore(study.output_dir, work, lease_seconds=study.lease_seconds, save_seconds=60 * study.save_minutes)
    store.bucket.check()
    return store


def _published(study: StudyConfig, written: Path) -> str:
    """Puts what was found beside the steps, where those are in a bucket; where the page is."""
    if not is_remote(study.output_dir):
        return str(written)
    from diversity_jax.study.bucket import Bucket

    bucket, folder = Bucket(study.output_dir), written.parent
    for path in [folder / "analysis.json", folder / "run.json", written, *sorted((folder / "figures").glob("*"))]:
        bucket.put(path, path.relative_to(folder).as_posix())
    return bucket.url(written.name)


def describe_graph(plan, store) -> str:
    """A line for each step: whether it stands, failed, or was made by code that has changed since; its key, and the
    steps it needs.
    """
    from diversity_jax.study import graph, steps

    known = store.states(list(plan.steps)) | dict.fromkeys(graph.stale(plan.steps, store, steps.codes()), "stale")
    lines = []
    for key, step in plan.steps.items():
        state = "stands" if known.get(key) == "done" else known.get(key, "to do")
        lines.append(f"{state:8}{key}{' <- ' if step.needs else ''}{' '.join(step.needs)}")
    return "\n".join(lines)


def _one_step(study: StudyConfig, steps, store) -> None:
    """One step by its key, for schedulers that start every step themselves; all processes of a multi-host job call
    this.
    """
    from diversity_jax.study import graph
    from diversity_jax.study.steps import codes, commands
    from diversity_jax.training.distributed import launched_number

    key = study.step
    if key not in steps:
        raise InputError(f"step={key!r}: this study has no such step; --config.dry_run=True lists them")
    step = steps[key]
    missing = [need for need in step.needs if store.done(need) is None]
    if missing:
        raise InputError(f"step={key!r}: needs {missing[0]}, which is not done; run it first")
    if store.done(key) is not None:
        log.info("%s stands", key)
        return
    if launched_number(os.environ) != 0:
        if is_remote(study.output_dir):
            raise InputError(
                f"step={key!r}: several hosts at one step need a folder that all of them mount, not {study.output_dir}"
            )
        commands()[step.kind](step.config)
        return
    with store.claim(key) as mine:
        if not mine:
            raise InputError(f"step={key!r}: another process is at it")
        if not graph.run_step(step, store, commands()[step.kind], codes()[step.kind]):
            raise InputError(f"step={key!r}: {_why(key, store)}")


def _run(study: StudyConfig, todo, store):
    """Works in this process and in as many others as asked for."""
    from diversity_jax.study import graph, steps

    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=_help, args=(study, number)) for number in range(1, study.processes)]
    for process in others:
        process.start()
    with _own_cores(0, study.processes), _stoppable():
        try:
            progress = graph.run_steps(todo, store, steps.commands(), steps.codes())
        except BaseException:
            for process in others:
                process.terminate()
            for process in others:
                process.join(_LEAVE_SECONDS)  # they save what they are at
            raise
        for process in others:
            process.join()
    return progress


def _help(study: StudyConfig, number: int) -> None:
    """Another process of this machine: the same plan, the same folder. It ends when its parent does."""
    from diversity_jax.study import config as recipe
    from diversity_jax.study import graph, steps

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    _end_with_parent(os.getppid())
    store = open_store(study)
    with _own_cores(number, study.processes), _stoppable():
        graph.run_steps(recipe.plan(study, store).steps, store, steps.commands(), steps.codes())


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM ends the process by an exception, so that it gives its step back; a training saves itself first."""
    from diversity_jax.study.steps import STOPPED

    def stop(*_):
        log.warning("SIGTERM: stopping; the same command goes on")
        raise SystemExit(STOPPED)

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextlib.contextmanager
def _own_cores(number: int, processes: int) -> Iterator[None]:
    """Cores of its own for each process that computes on the CPU: threads of two that share all cores wait for each
    other.
    """
    from diversity_jax.training.runtime import cpu_only

    if not hasattr(os, "sched_setaffinity") or not cpu_only():
        yield
        return
    every = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(every)[number % len(every) :: processes])
    try:
        yield
    finally:
        os.sched_setaffinity(0, every)


def _end_with_parent(parent: int) -> None:
    """A killed study leaves no worker behind that would hold its locks."""
    import threading
    import time

    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _tell_stale(study: StudyConfig, steps, store) -> None:
    """Says which results were made by other code, and has them made again, with all that was made from them, if that is
    wanted.
    """
    from diversity_jax.study import graph
    from diversity_jax.study.steps import codes

    found = graph.stale(steps, store, codes())
    if not found:
        return
    later = [key for key, state in store.states(graph.readers(steps, found)).items() if state == "done"]
    for line in stale_lines(steps, found):
        log.warning("%s", line)
    made = f", and {len(later)} made from them, " if later else " "
    if study.stale == "again":
        store.forget([*found, *later])
        log.warning("they%sare made again", made)
    else:
        log.warning("they%sare kept as they are; --config.stale=again makes them again", made)


def stale_lines(steps, found) -> list[str]:
    """A line for each kind of step and cause: which results are stale, and why."""
    groups: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for key, rooms in found.items():
        groups.setdefault((steps[key].kind, tuple(rooms)), []).append(key)
    lines = []
    for (kind, rooms), keys in groups.items():
        named = ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
        lines.append(
            f"stale: {len(keys)} {kind} made before diversity_jax/{', diversity_jax/'.join(rooms)} changed ({named})"
        )
    return lines


def _failures(progress, store) -> str:
    from diversity_jax.core.formats import counted

    shown = progress.failed[:3]
    told = "; ".join(f"{key}: {_why(key, store)}" for key in shown)
    more = f"; and {len(progress.failed) - len(shown)} more" if len(progress.failed) > len(shown) else ""
    return (
        f"{counted(len(progress.failed), 'step')} failed, {len(progress.blocked)} more cannot run without: {told}{more}"
    )


def _why(key: str, store) -> str:
    failure = store.failure(key)
    return f"{failure['reason']} (log: {failure['log']})"

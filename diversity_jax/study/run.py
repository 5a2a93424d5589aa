"""A whole study: plan, run or join it, analyse, draw. What the command `python -m diversity_jax.study` calls."""

import logging
import multiprocessing
import os
from pathlib import Path
import sys

from diversity_jax.errors import InputError
from diversity_jax.study.recipe import StudyConfig

log = logging.getLogger(__name__)


def run(study: StudyConfig) -> None:
    """The whole study; prints the page's path last."""
    from diversity_jax import run_record
    from diversity_jax.storage import write_json
    from diversity_jax.study import analysis, forecast, graph, page, recipe, results, steps

    if "://" in study.output_dir:
        raise InputError(
            f"output_dir={study.output_dir}: a study needs a folder with file locks; mount one, such as NFS, and name its path"
        )
    folder = Path(study.output_dir)
    store = graph.Store(folder / "steps")
    plan = recipe.plan(study, store)
    if study.step:
        return _one_step(study.step, plan.steps, store)
    for line in forecast.describe(study, forecast.needs(study, plan.steps, store)):
        log.info(line)
    if study.dry_run:
        print(describe_graph(plan, store))
        return
    _tell_stale(study, graph.stale(plan.steps, store, steps.codes()), store)
    store.forgive(list(plan.steps))
    progress = _run(study, plan.steps, store)
    rows = results.table(study, plan.runs, store)
    if not rows:
        raise InputError(f"{folder}: no recipe was judged; {_failures(progress, store)}")
    failures = [{"step": key, "reason": store.failure(key), "log": str(store.log_file(key))} for key in progress.failed]
    found = analysis.analyse(study, rows) | {"densities": results.densities(study, plan.runs, store), "failures": failures}
    write_json(folder / "analysis.json", found)
    record = run_record.describe(sys.argv, study)
    record.save(folder)
    if progress.failed:
        log.warning("%s", _failures(progress, store))
    print(page.write(folder, found, record.facts()))


def describe_graph(plan, store) -> str:
    """A line for each step: whether it stands, its key and the steps it needs."""
    lines = []
    for key, step in plan.steps.items():
        state = "stands" if store.done(key) else "failed" if store.failure(key) else "to do"
        lines.append(f"{state:8}{key}{' <- ' if step.needs else ''}{' '.join(step.needs)}")
    return "\n".join(lines)


def _one_step(key: str, steps, store) -> None:
    """One step by its key, for schedulers that start every step themselves; all processes of a multi-host job call this."""
    from diversity_jax.study import graph
    from diversity_jax.study.steps import codes, commands
    from diversity_jax.training.distributed import launched_number

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
        commands()[step.kind](step.config)
        return
    with store.claim(key) as mine:
        if not mine:
            raise InputError(f"step={key!r}: another process is at it")
        if not graph.run_step(step, store, commands()[step.kind], codes()[step.kind]):
            raise InputError(f"step={key!r}: {store.failure(key)} (log: {store.log_file(key)})")


def _run(study: StudyConfig, todo, store):
    """Works in this process and in as many others as asked for."""
    from diversity_jax.study import graph, steps

    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=_help, args=(study, store.folder)) for _ in range(study.processes - 1)]
    for process in others:
        process.start()
    try:
        progress = graph.run_steps(todo, store, steps.commands(), steps.codes())
    finally:
        for process in others:
            process.join() if sys.exc_info()[0] is None else process.terminate()
    return progress


def _help(study: StudyConfig, folder: Path) -> None:
    """Another process of this machine: the same plan, the same folder. It ends when its parent does."""
    from diversity_jax.study import graph, recipe, steps

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    _end_with_parent(os.getppid())
    store = graph.Store(folder)
    graph.run_steps(recipe.plan(study, store).steps, store, steps.commands(), steps.codes())


def _end_with_parent(parent: int) -> None:
    """A killed study leaves no worker behind that would hold its locks."""
    import threading
    import time

    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _tell_stale(study: StudyConfig, stale, store) -> None:
    """Says which results were made by other code, and has them made again if that is wanted."""
    if not stale:
        return
    rooms = ", ".join(sorted({room for changed in stale.values() for room in changed}))
    if study.stale == "again":
        store.forget(list(stale))
        log.info("%d finished steps were made before %s changed; running them again", len(stale), rooms)
    else:
        log.warning("%d finished steps were made before %s changed and are kept; --config.stale=again runs them again", len(stale), rooms)


def _failures(progress, store) -> str:
    told = "; ".join(f"{key}: {store.failure(key)} (log: {store.log_file(key)})" for key in progress.failed[:3])
    more = f" and {len(progress.failed) - 3} more" if len(progress.failed) > 3 else ""
    return f"{len(progress.failed)} steps failed{more} and {len(progress.blocked)} need them: {told}"

"""Run a study: a grid of data recipes through generate, score, mix, train, fine-tune and evaluate, and what their outcomes say.

    python -m diversity_jax.study --config configs/studies/tiny.py
    python -m diversity_jax.study --config configs/studies/tiny.py --config.dry_run=True

Run it again to go on; run it on several machines or in several terminals at once to share the work. Steps that stand are not run again.
Writes analysis.json, report.html and figures/ to output_dir, and every step with its log to output_dir/steps.
"""

import logging
import multiprocessing
import os
from pathlib import Path
import sys

from diversity_jax import entry_point
from diversity_jax.errors import InputError
from diversity_jax.study.recipe import StudyConfig

log = logging.getLogger(__name__)


def main(study: StudyConfig) -> None:
    """The whole study; prints the page's path last."""
    from diversity_jax import run_record
    from diversity_jax.storage import write_json
    from diversity_jax.study import analysis, forecast, graph, page, recipe, results, steps

    folder = Path(study.output_dir)
    store = graph.Store(folder / "steps")
    plan = recipe.plan(study, store)
    for line in forecast.describe(study, forecast.forecast(plan.steps, store)):
        log.info(line)
    if study.dry_run:
        return
    _tell_stale(study, graph.stale(plan.steps, store, steps.codes()), store)
    store.forgive(list(plan.steps))
    progress = _run(study, plan.steps, store)
    rows = results.table(study, plan.runs, store)
    if not rows:
        raise InputError(f"{folder}: no recipe was evaluated; {_failures(progress, store)}")
    found = analysis.analyse(study, rows)
    write_json(folder / "analysis.json", found)
    record = run_record.describe(sys.argv, study)
    record.save(folder)
    if progress.failed:
        log.warning("%s", _failures(progress, store))
    print(page.write(folder, found, record.facts()))


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


if __name__ == "__main__":
    entry_point.run(main, StudyConfig, __doc__)

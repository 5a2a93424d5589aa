"""A process that runs a small graph of steps whose commands record each start and end."""

import dataclasses
import json
from pathlib import Path
import sys
import time

from diversity_jax.core.errors import InputError
from diversity_jax.study.graph import Step, StepStore, run_steps

CODES = {"first": {"room": "1"}, "second": {"room": "1"}}


def steps(seconds: float, *, fail: str | None = None, pairs: int = 6) -> dict[str, Step]:
    """First steps, and as many second ones that each need one of them."""
    steps = {}
    for number in range(pairs):
        settings = {"number": number, "seconds": seconds, "fail": fail}
        first = _step("first", settings)
        second = _step("second", settings | {"reads": f"{{{first.key}}}"}, first.key)
        steps |= {first.key: first, second.key: second}
    return dict(sorted(steps.items(), key=lambda item: item[1].kind))


def _step(kind, settings, *needs):
    step = Step(kind=kind, config=None, settings=settings, needs=needs)
    return dataclasses.replace(step, config={**settings, "key": step.key, "needs": needs})


def commands(folder: Path, store: StepStore):
    """Each notes when it starts, ends, and from how many lines it goes on; the sleep between is where a kill hits."""

    def command(kind):
        def run(config):
            _note(folder, f"start {kind} {config['number']}")
            assert all((store.output(need) / "lines.txt").read_text().endswith("end\n") for need in config["needs"])
            lines = store.output(config["key"]) / "lines.txt"
            lines.parent.mkdir(parents=True, exist_ok=True)
            if lines.exists():
                _note(folder, f"going on with {kind} {config['number']} after {len(lines.read_text().splitlines())}")
            with open(lines, "a") as file:
                print(f"begun by {folder.name}", file=file)
            time.sleep(config["seconds"])
            if config["fail"] == f"{kind} {config['number']}":
                raise InputError("this one cannot be done; it was asked to fail")
            with open(lines, "a") as file:
                print("end", file=file)
            _note(folder, f"end {kind} {config['number']}")

        return run

    return {kind: command(kind) for kind in CODES}


def _note(folder: Path, line: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "notes.txt", "a") as file:
        file.write(line + "\n")


def work(folder: str, seconds: float) -> None:
    """Runs all steps that are ready."""
    store = StepStore(Path(folder) / "steps")
    run_steps(steps(seconds), store, commands(Path(folder), store), CODES)


if __name__ == "__main__":
    work(**json.loads(sys.argv[1]))

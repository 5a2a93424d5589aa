"""A process that works on a small graph of steps; its commands write down each start and end."""

import json
from pathlib import Path
import sys
import time

from diversity_jax.errors import InputError
from diversity_jax.study.graph import Step, Store, run_steps

CODES = {"first": {"room": "1"}, "second": {"room": "1"}}


def steps(seconds: float, *, fail: str | None = None) -> dict[str, Step]:
    """Six first steps, and six second ones that each need one of them."""
    found = {}
    for number in range(6):
        settings = {"number": number, "seconds": seconds, "fail": fail}
        first = Step(kind="first", config=settings, settings=settings)
        second = Step(kind="second", config=settings, settings=settings | {"reads": f"{{{first.key}}}"}, needs=(first.key,))
        found |= {first.key: first, second.key: second}
    return dict(sorted(found.items(), key=lambda item: item[1].kind))


def commands(folder: Path):
    """Each notes when it starts and ends; the sleep between is where a kill hits."""

    def command(kind):
        def run(settings):
            _note(folder, f"start {kind} {settings['number']}")
            time.sleep(settings["seconds"])
            if settings["fail"] == f"{kind} {settings['number']}":
                raise InputError("this one cannot be done; it was asked to fail")
            _note(folder, f"end {kind} {settings['number']}")

        return run

    return {kind: command(kind) for kind in CODES}


def _note(folder: Path, line: str) -> None:
    with open(folder / "notes.txt", "a") as file:
        file.write(line + "\n")


if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    folder = Path(settings["folder"])
    run_steps(steps(settings["seconds"]), Store(folder / "steps"), commands(folder), CODES)

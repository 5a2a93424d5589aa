"""What all contestants of a train step benchmark share: flags of the model, timing, and the line of JSON they print."""

import argparse
from collections.abc import Callable
import json
import os
import sys
import time

SHAPE = {"hidden": 384, "intermediate": 1024, "layers": 6, "heads": 6, "kv_heads": 0, "vocab": 8192, "length": 256}
SHAPE |= {"batch": 8}
_REPORT_EVERY = 5  # timed steps between two lines, so that a contestant that is stopped has printed what it measured


def parser(description: str | None) -> argparse.ArgumentParser:
    """The flags that every contestant takes."""
    flags = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in SHAPE.items():
        flags.add_argument("--" + name.replace("_", "-"), type=int, default=default)
    flags.add_argument("--tied", action="store_true", help="the output projection is the embedding")
    flags.add_argument("--steps", type=int, default=20, help="timed ones")
    flags.add_argument("--warmup", type=int, default=3, help="steps before them; the first one compiles")
    flags.add_argument("--seed", type=int, default=0)
    return flags


def measure(
    step: Callable[[], float], options: argparse.Namespace, peak_bytes: Callable[[], int | None], **details: object
) -> None:
    """Times steps and prints what was measured, again every few steps; the last line counts.

    `time.perf_counter` is called once before each step and, after the warm-up, once after it: bench_train_step.py
    relies on that.

    Args:
      step: trains on the batch once, waits for the device, and returns the loss before the update.
      peak_bytes: of the device's memory; None where the device does not tell.
      details: of the contestant: framework, device, parameters.
    """
    parent, losses, seconds = os.getppid(), [], []
    for index in range(options.warmup + options.steps):
        start = time.perf_counter()
        loss = step()
        if index >= options.warmup:
            seconds.append(time.perf_counter() - start)
        if len(losses) < 5:
            losses.append(round(loss, 5))
        last = index + 1 == options.warmup + options.steps
        if seconds and (last or len(seconds) % _REPORT_EVERY == 0):
            report = figures(seconds, losses, options) | {"complete": last, "peak_bytes": peak_bytes()}
            print(json.dumps(report | details), flush=True)
        if os.getppid() != parent:
            sys.exit("the benchmark that started this has ended")


def figures(seconds: list[float], losses: list[float], options: argparse.Namespace) -> dict:
    """What a contestant reports of its steps so far."""
    tokens, ordered = options.batch * options.length, sorted(seconds)
    rates = {"fastest_tenth": tokens / ordered[len(ordered) // 10], "median": tokens / ordered[len(ordered) // 2]}
    return {"steps": len(seconds), "tokens_per_second": rates, "first_losses": losses, "files": own_files()}


def own_files() -> list[str]:
    """Files of this repository that the process has loaded."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    files = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    paths = sorted({os.path.relpath(os.path.abspath(file), root) for file in files if file})
    return [path for path in paths if path.startswith(("diversity_jax/", "scripts/"))]

#!/usr/bin/env python3
r"""Time of our train step and of other implementations, in alternating steps so that machine noise affects all alike.

    cd scripts/benchmarks
    python bench_train_step.py --peer peers/torch_llama_step.py --peer peers/jax_llama_step.py --steps 30
    python bench_train_step.py --hidden 2048 --intermediate 8192 --layers 16 --heads 32 --vocab 50304 --batch 16 \
        --length 2048 --peer "peers/torch_llama_step.py --compile" --model remat=save_matmuls

A peer is a script that trains a Llama given by the same flags, calls `time.perf_counter` once before each step and,
after its warm-up, once after it, and prints one line of JSON with `first_losses`. Its `main` runs unchanged in a
process of its own; only `perf_counter` is replaced, by one that waits for its turn. Ours is one of them. The fastest
tenth of the steps is compared, the only figure that repeats on a shared machine.
"""

import argparse
import importlib.util
import json
import multiprocessing
import os
from pathlib import Path
import shlex
import sys
import time
import types

PEERS = Path(__file__).resolve().parent / "peers"
sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(PEERS)]
import common  # noqa: E402

_PAUSE_SECONDS = 0.02  # lets the threads of the one before go to sleep


class Turn:
    """A contestant's end of the pipe: waits for its turn, and reports how long its step took."""

    def __init__(self, pipe, warmup: int):
        self.pipe, self.warmup, self.calls, self.start = pipe, warmup, 0, 0.0

    def perf_counter(self) -> float:
        """Replaces `time.perf_counter` in a peer: blocks before a step until its turn, reports the time after it."""
        self.calls += 1
        timed = self.calls - self.warmup
        if timed > 0 and timed % 2 == 0:
            now = time.perf_counter()
            self.pipe.send(("step", now - self.start))
            return now
        if self.warmup < self.calls:
            self.pipe.send(("ready", None))
            self.pipe.recv()
        self.start = time.perf_counter()
        return self.start


def run_peer(pipe, command: list[str], warmup: int):
    """Runs a peer's own `main` with a clock that takes turns."""
    spec = importlib.util.spec_from_file_location("peer", command[0])
    peer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(peer)
    turn = Turn(pipe, warmup)
    sys.argv = command
    lines = []
    for module in (peer, common):  # those of this repository share their clock, foreign ones have their own
        module.time = types.SimpleNamespace(perf_counter=turn.perf_counter)
        module.print = lambda *values, **_: lines.append(" ".join(map(str, values)))
    peer.main()
    pipe.send(("done", json.loads(lines[-1])))


def alternate(contestants: list[tuple[str, object, object]], steps: int) -> dict[str, dict]:
    """Lets the contestants step in turns, the first one rotating; returns each one's seconds a step and its own
    report.
    """

    def receive(name, pipe, wanted):
        try:
            kind, value = pipe.recv()
        except EOFError:
            raise SystemExit(f"{name}: ended before its last step; its error stands above") from None
        assert kind == wanted, (name, kind, wanted)
        return value

    seconds = {name: [] for name, _, _ in contestants}
    for name, _, pipe in contestants:
        receive(name, pipe, "ready")
    for index in range(steps):
        turn = index % len(contestants)
        for name, _, pipe in contestants[turn:] + contestants[:turn]:
            time.sleep(_PAUSE_SECONDS)
            pipe.send("go")
            seconds[name].append(receive(name, pipe, "step"))
            if index < steps - 1:
                receive(name, pipe, "ready")
        if sys.stderr.isatty():
            print(f"\rround {index + 1}/{steps}", end="", file=sys.stderr)
    return {name: {"seconds": sorted(seconds[name]), **receive(name, pipe, "done")} for name, _, pipe in contestants}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in common.SHAPE.items():
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=default)
    parser.add_argument("--tied", action="store_true")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--peer", action="append", default=[], help="a peer's script, and flags of its own")
    parser.add_argument("--model", action="append", default=[], help="a field of our LlamaConfig, such as remat=full")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    return parser.parse_args()


def main():
    """Runs all contestants in turns and prints a table."""
    options = arguments()
    shape = {name: getattr(options, name) for name in common.SHAPE}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in shape.items()] + ["--tied"] * options.tied
    flags += [f"--steps={options.steps}", f"--warmup={options.warmup}"]
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several processes share one accelerator
    spawn = multiprocessing.get_context("spawn")
    ours = shlex.join([str(PEERS / "diversity_jax_step.py"), *(f"--model={field}" for field in options.model)])
    plans = []
    for peer in [ours, *options.peer]:
        script, *own = shlex.split(peer)
        name = " ".join([Path(script).stem, *own]) if plans else "diversity_jax"
        plans.append((name, run_peer, ([script, *flags, *own], options.warmup)))
    contestants = []
    for name, target, rest in plans:
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=target, args=(theirs, *rest), daemon=True)
        process.start()
        theirs.close()
        contestants.append((name, process, ours))
    results = alternate(contestants, options.steps)
    report(results, shape["batch"] * shape["length"], options)


def report(results: dict[str, dict], tokens: int, options: argparse.Namespace):
    """Prints a table of the fastest tenth and the median, and our speed as a multiple of each peer's."""

    def rate(result, share):
        return tokens / result["seconds"][int(share * len(result["seconds"]))]

    ours = rate(results["diversity_jax"], 0.1)
    print(f"{'':40} {'tokens/s, fastest tenth':>24} {'median':>10} {'ours is':>8}  first losses")
    for name, result in results.items():
        ratio = f"{ours / rate(result, 0.1):.3f}x"
        losses = " ".join(f"{loss:.4f}" for loss in result["first_losses"][:3])
        print(f"{name:40} {rate(result, 0.1):24,.1f} {rate(result, 0.5):10,.1f} {ratio:>8}  {losses}")
        result["tokens_per_second"] = {"fastest_tenth": rate(result, 0.1), "median": rate(result, 0.5)}
    if options.json:
        from diversity_jax.core.files import write_json

        write_json(options.json, results)


if __name__ == "__main__":
    main()

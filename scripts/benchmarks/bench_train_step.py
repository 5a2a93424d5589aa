#!/usr/bin/env python3
r"""Our train step against other implementations of the same step, steps alternating so that noise of the machine meets
all alike.

    python scripts/benchmarks/bench_train_step.py --peer torch_llama_step.py --peer jax_llama_step.py --steps 30
    python scripts/benchmarks/bench_train_step.py --hidden 2048 --intermediate 8192 --layers 16 --heads 32 \
        --vocab 50304 --length 2048 --batch 16 --peer "torch_llama_step.py --compile" \
        --peer "jax_llama_step.py --attention cudnn --scan --remat" --model remat=save_matmuls

A peer is a script that trains a Llama of the same flags, reads the clock (`time.perf_counter`) once before each step
and, after its warm-up, once behind it, and prints one line of JSON with `first_losses`. Its `main` runs unchanged in a
process of its own; only its clock is replaced by one that waits for its turn. Ours runs in a process of its own too.
Compared is the fastest tenth of the steps: on a shared machine the only figure that repeats.
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

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

SHAPE = {
    "hidden": 384,
    "intermediate": 1024,
    "layers": 6,
    "heads": 6,
    "kv_heads": 0,
    "vocab": 8192,
    "length": 256,
    "batch": 8,
}
_PAUSE_SECONDS = 0.02  # lets the threads of the one before go to sleep


class Turn:
    """A contestant's side of the pipe: waits until it may step, and reports how long the step took."""

    def __init__(self, pipe, warmup: int):
        self.pipe, self.warmup, self.calls, self.start = pipe, warmup, 0, 0.0

    def perf_counter(self) -> float:
        """The clock handed to a peer: blocks where a step begins, reports where one ends."""
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
    peer.time = types.SimpleNamespace(perf_counter=turn.perf_counter)
    sys.argv = command
    lines = []
    peer.print = lambda *values, **_: lines.append(" ".join(map(str, values)))
    peer.main()
    pipe.send(("done", json.loads(lines[-1])))


def run_ours(pipe, shape: dict, fields: dict, steps: int, warmup: int, tied: bool):
    """Runs our train step, everything a training run has in it: clipping, the guard against non-finite updates,
    metrics.
    """
    from diversity_jax.training import runtime

    runtime.keep_freed_memory()  # as the train command does
    import jax
    import jax.numpy as jnp

    from diversity_jax.model import LlamaConfig, MeshConfig, make_mesh
    from diversity_jax.training.optimizer import OptimizerConfig
    from diversity_jax.training.step import make_train_step

    cpu = jax.default_backend() == "cpu"
    defaults = {"scan_layers": not cpu, "compute_dtype": "float32" if cpu else "bfloat16", "tie_embeddings": tied}
    model = LlamaConfig(
        vocab_size=shape["vocab"],
        hidden_size=shape["hidden"],
        intermediate_size=shape["intermediate"],
        num_layers=shape["layers"],
        num_heads=shape["heads"],
        num_kv_heads=shape["kv_heads"] or None,
        max_length=shape["length"],
        **(defaults | fields),
    )
    init_state, train_step = make_train_step(
        model, OptimizerConfig(schedule="constant"), make_mesh(MeshConfig(), jax.devices()[:1])
    )
    state = init_state(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (shape["batch"], shape["length"] + 1), 0, shape["vocab"], jnp.int32)
    batch = {"tokens": tokens, "component": jnp.zeros(shape["batch"], jnp.int32)}
    turn, losses = Turn(pipe, warmup), []
    for index in range(warmup + steps):
        turn.perf_counter()
        state, metrics = jax.block_until_ready(train_step(state, batch))
        if index >= warmup:
            turn.perf_counter()
        losses.append(round(float(metrics["loss"]), 5))
    memory = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    details = {"framework": f"diversity_jax, jax {jax.__version__}", "device": jax.local_devices()[0].device_kind}
    pipe.send(
        ("done", details | {"parameters": model.parameter_count, "first_losses": losses[:5], "peak_bytes": memory})
    )


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


def field(text: str) -> tuple[str, object]:
    """`attention=cudnn` as a field of LlamaConfig and its value."""
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in SHAPE.items():
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=default)
    parser.add_argument("--tied", action="store_true")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--peer", action="append", default=[], help="a peer's script, and flags of its own")
    parser.add_argument(
        "--model", action="append", default=[], type=field, help="a field of our LlamaConfig, such as remat=full"
    )
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    return parser.parse_args()


def main():
    """Runs all contestants in turns and prints a table."""
    options = arguments()
    shape = {name: getattr(options, name) for name in SHAPE}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in shape.items()] + ["--tied"] * options.tied
    flags += [f"--steps={options.steps}", f"--warmup={options.warmup}"]
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several processes share one accelerator
    spawn = multiprocessing.get_context("spawn")
    plans = [("diversity_jax", run_ours, (shape, dict(options.model), options.steps, options.warmup, options.tied))]
    for peer in options.peer:
        script, *own = shlex.split(peer)
        plans.append((" ".join([Path(script).stem, *own]), run_peer, ([script, *flags, *own], options.warmup)))
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

#!/usr/bin/env python3
r"""Train step speed at the paper's model sizes on one accelerator, ours and other implementations', as shares of the
peak.

One command, under eight minutes with compilation.

    python scripts/benchmarks/bench_accelerator.py
    # all it needs of this repository; neither TensorFlow nor SeqIO
    python scripts/benchmarks/bench_accelerator.py --files
    # the same way, on a CPU
    JAX_PLATFORMS=cpu python scripts/benchmarks/bench_accelerator.py --models tiny --steps 4 --output /tmp/tiny

Measures the throughput of plain bfloat16 matrix products, then our step on every model, then each peer (peers/: plain
JAX, compiled PyTorch with its own attention, MaxText where it is installed). Every contestant runs alone, in a process
of its own: a failure or a timeout costs only its own row. One that does not fit into memory is tried once more with
half the rows. Results are on disk at any moment: a line of JSON is appended to OUTPUT.jsonl after each contestant, and
OUTPUT.md, the table with commit and date, is rewritten; the default OUTPUT is docs/benchmarks/DEVICE-DATE.
"""

import argparse
import contextlib
import ctypes
from dataclasses import dataclass
import importlib.util
import json
import os
from pathlib import Path
import shlex
import signal
import subprocess
import sys
import tempfile
import time

ROOT = Path(__file__).resolve().parents[2]
PEERS = Path(__file__).resolve().parent / "peers"
sys.path[:0] = [str(ROOT), str(PEERS)]

_PAPER = {"vocab": 50304, "length": 2048, "batch": 8}
MODELS = {
    "350m": _PAPER | {"hidden": 960, "intermediate": 2560, "layers": 28, "heads": 15},
    "1p4b": _PAPER | {"hidden": 2048, "intermediate": 8192, "layers": 16, "heads": 32},
    "tiny": {"vocab": 512, "length": 128, "batch": 4, "hidden": 64, "intermediate": 128, "layers": 2, "heads": 4},
}
# By the traffic of the programs compiled ahead for an H200: unrolled layers spare the copies of all that is kept for
# the backward pass, whole logits a third of the loss's traffic; both fit.
OURS = "diversity_jax_step.py --model scan_layers=false --model remat=none --model loss_chunk_bytes=4294967296"
# Script with its flags, and the module that it needs.
DEFAULT_PEERS = (
    ("jax_llama_step.py", "optax"),
    ("torch_llama_step.py --compile", "torch"),
    ("maxtext_step.py", "maxtext"),
)
GOALS = {"350m": 0.50, "1p4b": 0.55}  # MFU, not causal
GOAL_OF_CEILING = 0.60
_LEAST_SECONDS = 20.0  # a contestant that has less is not started
_OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "OutOfMemoryError", "out of memory")


def ceiling() -> None:
    """Prints the device and what bfloat16 products of large random matrices reach on it, one line of JSON."""
    import common
    import jax
    import jax.numpy as jnp

    from diversity_jax.core.chips import peak_flops

    device = jax.devices()[0]
    sizes, work = ((512,), 2e9) if device.platform == "cpu" else ((4096, 8192, 16384), 2e12)
    reached = {}
    for size in sizes:
        # Random numbers: products of constants switch fewer transistors, and a GPU that draws less power runs faster.
        x, y = (jax.random.normal(jax.random.key(seed), (size, size), jnp.bfloat16) for seed in (0, 1))
        rounds = max(1, int(work / (2 * size**3)))  # as one program, so that starting it costs nothing

        @jax.jit
        def products(x, y, rounds=rounds, size=size):
            return jax.lax.fori_loop(0, rounds, lambda _, z: (z @ y) * jnp.bfloat16(size**-0.5), x)

        jax.block_until_ready(products(x, y))
        times = []
        for _ in range(10):
            start = time.perf_counter()
            jax.block_until_ready(products(x, y))
            times.append(time.perf_counter() - start)
        reached[size] = 2 * size**3 * rounds / sorted(times)[len(times) // 10]
    record = {"device": device.device_kind, "jax": jax.__version__, "peak": peak_flops(device.device_kind)}
    record |= {"memory_bytes": (device.memory_stats() or {}).get("bytes_limit"), "files": common.own_files()}
    print(json.dumps(record | {"products": reached, "ceiling": max(reached.values())}), flush=True)


def run_json(command: list[str], seconds: float) -> dict:
    """The last line of JSON that a command prints within its time; with `failed`, why, where it did not end well.

    The command leads a group of processes, which ends with it, and it ends with this process, however that ends.
    """

    parent, libc = os.getpid(), ctypes.CDLL(None)

    def end_with_parent() -> None:
        if sys.platform == "linux":
            libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it has ended in between
            os._exit(1)

    with tempfile.NamedTemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        streams = {"stdout": output, "stderr": errors, "start_new_session": True, "preexec_fn": end_with_parent}
        failed = None
        with subprocess.Popen(command, cwd=ROOT, **streams) as process:
            try:
                status = _wait(process, Path(output.name), time.monotonic() + seconds)
                if status is None:
                    failed = f"stopped after {seconds:.0f} s"
                elif status:
                    failed = f"ended with status {status}"
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        output.seek(0)
        errors.seek(0)
        lines = [line for line in output.read().splitlines() if line.startswith("{") and line.endswith("}")]
        result = json.loads(lines[-1]) if lines else {}
        if failed is None and not result:
            failed = "printed no figures"
        if failed is not None:
            text = errors.read()
            last = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no message")
            result |= {
                "failed": f"{failed}: {last[:300]}",
                "out_of_memory": any(word in text for word in _OUT_OF_MEMORY),
            }
    return result


def _wait(process: subprocess.Popen, output: Path, deadline: float) -> int | None:
    """Status of a process; 0 once it has printed its last figures, ended or not, and None where its time is up.

    A process of compiled PyTorch may hang at its exit, when all is measured.
    """
    while time.monotonic() < deadline:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(timeout=min(1.0, max(0.0, deadline - time.monotonic())))
        if '"complete": true' in output.read_text():
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(timeout=5.0)
            return 0
    return None


@dataclass(frozen=True)
class Contest:
    """One contestant on one model."""

    model: str
    contestant: str  # as it is shown
    command: str  # script in peers/, or elsewhere, with flags of its own
    needs: str | None = None  # a module

    def run(self, shape: dict, steps: int, seconds: float) -> dict:
        """A record of what was measured, or why nothing was."""
        record = {"model": self.model, "contestant": self.contestant, "batch": shape["batch"]}
        if self.needs and importlib.util.find_spec(self.needs) is None:
            return record | {"skipped": f"{self.needs} is not installed"}
        if seconds < _LEAST_SECONDS:
            return record | {"skipped": f"{max(0.0, seconds):.0f} s were left of the time limit"}
        script, *own = shlex.split(self.command)
        path = PEERS / script if (PEERS / script).exists() else script
        flags = [f"--{name}={size}" for name, size in shape.items()]
        started = time.monotonic()
        result = run_json([sys.executable, str(path), *flags, "--tied", f"--steps={steps}", *own], seconds)
        record |= result | {"seconds": round(time.monotonic() - started, 1)}
        left = seconds - record["seconds"]
        if record.get("out_of_memory") and "tokens_per_second" not in record and shape["batch"] > 1:
            return self.run(shape | {"batch": shape["batch"] // 2}, steps, left)
        return record


class Results:
    """The results so far: `path`.jsonl, one line a record, and `path`.md, made anew after each."""

    def __init__(self, path: Path, limits: dict):
        self.path, self.limits, self.records = path, limits, []
        path.parent.mkdir(parents=True, exist_ok=True)
        self.add({"limits": limits, "command": sys.argv[1:], "commit": _commit(), "date": time.strftime("%Y-%m-%d")})

    def add(self, record: dict) -> None:
        """Appends a record in one write: a line is whole or absent, and SIGTERM waits until the table has it."""
        line = (json.dumps(record) + "\n").encode()
        waiting = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            file = os.open(self.path.with_suffix(".jsonl"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                os.write(file, line)
                os.fsync(file)
            finally:
                os.close(file)
            self.records.append(record)
            self._write_table()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, waiting)

    def _write_table(self) -> None:
        begun, *records = self.records
        command = " ".join(f'"{word}"' if " " in word else word for word in begun["command"])
        head = f"# {self.limits['device']}, {begun['date']}\n\nCommit {begun['commit']}; "
        head += f"`python scripts/benchmarks/bench_accelerator.py {command}`\n\n"
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(head + table(self.limits, records) + "\n")
        os.replace(temporary, self.path.with_suffix(".md"))


def _commit() -> str:
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return git.stdout.strip() or "unknown"


def figures(record: dict, records: list[dict], limits: dict) -> dict:
    """Shares of the peak that a record reaches, and how many times as fast ours is."""
    from diversity_jax.model import LlamaConfig
    from diversity_jax.training.throughput import flops_per_token

    shape = MODELS[record["model"]]
    names = {"vocab_size": "vocab", "hidden_size": "hidden", "intermediate_size": "intermediate"}
    names |= {"num_layers": "layers", "num_heads": "heads"}
    model = LlamaConfig(**{field: shape[flag] for field, flag in names.items()})
    full, half = (flops_per_token(model, shape["length"], causal=causal) for causal in (False, True))
    speed, peak = record["tokens_per_second"]["fastest_tenth"], limits.get("peak")
    ours = next((row for row in measured(records, record["model"]) if row["contestant"] == "diversity_jax"), None)
    return {
        "speed": speed,
        "mfu": full * speed / peak if peak else None,
        "mfu_causal": half * speed / peak if peak else None,
        "of_ceiling": full * speed / limits["ceiling"] if limits.get("ceiling") else None,
        "ours_is": ours["tokens_per_second"]["fastest_tenth"] / speed if ours else None,
    }


def measured(records: list[dict], model: str | None = None) -> list[dict]:
    """Records with figures, of one model or of all."""
    return [row for row in records if "tokens_per_second" in row and model in (None, row["model"])]


def table(limits: dict, records: list[dict]) -> str:
    """Markdown of all that was measured, the goals, and what was not measured, with the reasons."""

    def share(value: float | None) -> str:
        return "" if value is None else f"{100 * value:.1f} %"

    peak = f"data sheet {limits['peak'] / 1e12:,.0f} TFLOP/s" if limits.get("peak") else "no data sheet known"
    products = [f"{size}: {reached / 1e12:,.4g}" for size, reached in limits.get("products", {}).items()]
    shown = ", ".join(products) or "not measured"
    lines = [
        f"{limits['device']}, jax {limits['jax']}; {peak}; square bfloat16 products, TFLOP/s: {shown}",
        "",
        (
            "| model | rows x tokens | step | tokens/s, fastest tenth | median | MFU | causal | of products | ours is "
            "| peak GiB | losses | steps | seconds in all |"
        ),
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|---|---:|---:|",
    ]
    for record in measured(records):
        values = figures(record, records, limits)
        cells = [record["model"], f"{record['batch']} x {MODELS[record['model']]['length']}", record["contestant"]]
        cells += [f"{values['speed']:,.0f}", f"{record['tokens_per_second']['median']:,.0f}"]
        cells += [share(values[name]) for name in ("mfu", "mfu_causal", "of_ceiling")]
        cells.append(f"{values['ours_is']:.2f}x" if values["ours_is"] else "")
        cells.append(f"{record['peak_bytes'] / 2**30:.1f}" if record.get("peak_bytes") else "")
        cells.append(" ".join(f"{loss:.3f}" for loss in record["first_losses"][:3]))
        cells += [str(record["steps"]), f"{record['seconds']:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *goals(limits, records), *_shortfalls(limits, records)])


def _shortfalls(limits: dict, records: list[dict]) -> list[str]:
    """A line for whatever is missing or cut short, with the reason."""
    lines = [f"- products: {limits['failed']}"] if "failed" in limits else []
    for record in records:
        name = f"{record['model']}, {record['contestant']}, {record['batch']} rows" if "model" in record else ""
        if "stopped" in record:
            lines.append(f"- {record['stopped']}")
        elif "skipped" in record:
            lines.append(f"- not measured: {name}: {record['skipped']}")
        elif "failed" in record:
            what = "cut short" if "tokens_per_second" in record else "not measured"
            lines.append(f"- {what}: {name}: {record['failed']}")
    return lines


def goals(limits: dict, records: list[dict]) -> list[str]:
    """Each goal with what was reached."""
    output = []
    for record in measured(records):
        values, model = figures(record, records, limits), record["model"]
        if record["contestant"] == "diversity_jax":
            for what, reached, goal in (
                ("MFU", values["mfu"], GOALS.get(model)),
                ("of measured products", values["of_ceiling"], GOAL_OF_CEILING if model in GOALS else None),
            ):
                if reached is not None and goal is not None:
                    verdict = "reached" if reached >= goal else "MISSED"
                    output.append(f"- {model}, {what}: {reached:.1%}, goal {goal:.0%}: {verdict}")
        elif values["ours_is"]:
            goal = 1.1 if "torch" in record["contestant"] else 1.0
            verdict = "reached" if values["ours_is"] >= goal else "MISSED"
            against = f"{model}, against {record['contestant']}"
            output.append(f"- {against}: {values['ours_is']:.2f}x, goal {goal:.1f}x: {verdict}")
    return output


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", action="append", help="a peer's script, and flags of its own; default: all of peers/")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["350m", "1p4b"])
    parser.add_argument("--batch", type=int, help="rows of a step; default 8")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--time-limit", type=float, default=460, help="seconds for all of it")
    parser.add_argument("--output", type=Path, help="path of the results without suffix")
    parser.add_argument("--files", action="store_true", help="print the files a run needs, by a small one on the CPU")
    parser.add_argument("--ceiling", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def contests(options: argparse.Namespace) -> list[Contest]:
    """All contests in order: ours on every model, then a peer on every model, then the next peer."""
    peers = DEFAULT_PEERS if options.peer is None else [(peer, None) for peer in options.peer]
    plans = [("diversity_jax", OURS, None)]
    for command, needs in peers:
        script, *own = shlex.split(command)
        plans.append((" ".join([Path(script).stem, *own]), command, needs))
    return [Contest(model, name, command, needs) for name, command, needs in plans for model in options.models]


def files() -> list[str]:
    """Files of this repository that a run needs: those that its processes load in a small one."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--models", "tiny", "--steps", "1", "--output", f"{folder}/tiny"]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        lines = Path(folder, "tiny.jsonl").read_text().splitlines() if Path(folder, "tiny.jsonl").exists() else []
    records = [json.loads(line) for line in lines]
    loaded = [path for record in records for path in record.get("limits", record).get("files", [])]
    if not any("training/step" in path for path in loaded):
        sys.exit(f"error: the small run failed: {(done.stdout + done.stderr)[-1000:]}")
    import common

    table({"device": "", "jax": ""}, [{"model": "tiny", "contestant": "", "batch": 1, **_EXAMPLE}])
    peers = [str(path.relative_to(ROOT)) for path in PEERS.glob("*.py")]
    return sorted({*loaded, *common.own_files(), *peers, str(Path(__file__).resolve().relative_to(ROOT))})


_EXAMPLE = {"tokens_per_second": {"fastest_tenth": 1, "median": 1}, "first_losses": [], "steps": 1, "seconds": 1}


def path_of(options: argparse.Namespace, limits: dict) -> Path:
    """Where the results are kept, without suffix."""
    name = limits["device"].lower().replace(" ", "-").replace("/", "-")
    default = ROOT / "docs" / "benchmarks" / f"{name}-{time.strftime('%Y-%m-%d')}"
    return (options.output or default).resolve()


def main() -> None:
    """Measures the limit, then each contestant, and prints the table."""
    options = arguments()
    if options.files:
        print("\n".join(files()))
        return
    if options.ceiling:
        ceiling()
        return
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")  # each contestant has the device for itself
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    end, waiting = time.monotonic() + options.time_limit, contests(options)
    results, limits = None, {"device": "unknown device", "jax": "unknown"}
    try:
        limits |= run_json([sys.executable, __file__, "--ceiling"], options.time_limit / 4)
        results = Results(path_of(options, limits), limits)
        while waiting:
            contest, shape = waiting[0], MODELS[waiting[0].model]
            shape = shape | ({"batch": options.batch} if options.batch else {})
            # Half of what is left, or all but four minutes, while others wait: one that hangs leaves time for them.
            left = end - time.monotonic()
            results.add(contest.run(shape, options.steps, left if len(waiting) == 1 else max(left / 2, left - 240)))
            waiting.pop(0)
            print(json.dumps({k: v for k, v in results.records[-1].items() if k != "files"}), flush=True)
    except BaseException as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        results = results or Results(path_of(options, limits), limits)
        known = {(record.get("model"), record.get("contestant")) for record in results.records}
        waiting = [contender for contender in waiting if (contender.model, contender.contestant) not in known]
        names = ", ".join(f"{contender.model} {contender.contestant}" for contender in waiting)
        results.add({"stopped": f"stopped by {type(error).__name__} {error}; not measured: {names}"})
        raise
    print(table(limits, results.records[1:]))
    print(f"written to {results.path}.jsonl and .md")
    sys.exit(any("tokens_per_second" not in record and "skipped" not in record for record in results.records[1:]))


if __name__ == "__main__":
    main()

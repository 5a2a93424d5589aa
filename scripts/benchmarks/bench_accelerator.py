#!/usr/bin/env python3
r"""The train step of the paper's sizes on one accelerator, beside its peers, as shares of the peak: one command, under
eight minutes.

    python scripts/benchmarks/bench_accelerator.py --peer "torch_llama_step.py --compile" \
        --peer "jax_llama_step.py --attention cudnn"
    # all it needs of this repository; neither TensorFlow nor SeqIO
    python scripts/benchmarks/bench_accelerator.py --files
    # the same way, on a CPU
    JAX_PLATFORMS=cpu python scripts/benchmarks/bench_accelerator.py --models tiny --steps 4

First measures what plain bfloat16 products reach here. Then, for each model, `bench_train_step.py` lets ours and the
peers step in turns at the same shapes and precision. Prints a table, and writes it with commit and date to
docs/benchmarks/DEVICE-DATE.md. A model whose contestants do not fit into the device's memory together is tried once
more with half the rows; one that time runs out for is named.
"""

import argparse
import contextlib
import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import tempfile
import time

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

_PAPER = {"vocab": 50304, "length": 2048, "batch": 8}
MODELS = {
    "350m": _PAPER | {"hidden": 960, "intermediate": 2560, "layers": 28, "heads": 15},
    "1p4b": _PAPER | {"hidden": 2048, "intermediate": 8192, "layers": 16, "heads": 32},
    "tiny": {"vocab": 512, "length": 128, "batch": 4, "hidden": 64, "intermediate": 128, "layers": 2, "heads": 4},
}
# By the traffic of the programs compiled ahead for an H200: unrolled layers spare the copies of all that is kept for
# the backward pass, whole logits a third of the loss's traffic; both fit.
OURS = {"scan_layers": False, "remat": "none", "loss_chunk_bytes": 4 << 30}
GOALS = {"350m": 0.50, "1p4b": 0.55}  # MFU, not causal
GOAL_OF_CEILING = 0.60


def ceiling() -> None:
    """Prints the device and what bfloat16 products of large random matrices reach on it, one line of JSON."""
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
    memory = (device.memory_stats() or {}).get("bytes_limit")
    made = {
        "device": device.device_kind,
        "jax": jax.__version__,
        "peak": peak_flops(device.device_kind),
        "memory_bytes": memory,
    }
    print(json.dumps(made | {"products": reached, "ceiling": max(reached.values())}))


def run_json(command: list[str], seconds: float) -> dict | None:
    """Runs a script that ends with a line of JSON; None where it fails or takes longer than it may."""
    try:
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        print(f"stopped after {seconds:.0f} s: {' '.join(command[1:])}", file=sys.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 and done.stdout.strip() else None


def contest(shape: dict, options: argparse.Namespace, seconds: float) -> dict | None:
    """Ours and the peers on one model; None where one of them fails or time runs out."""
    with tempfile.TemporaryDirectory() as scratch:
        figures = Path(scratch) / "figures.json"
        command = [
            sys.executable,
            "scripts/benchmarks/bench_train_step.py",
            "--tied",
            f"--steps={options.steps}",
            f"--json={figures}",
        ]
        command += [f"--{name}={size}" for name, size in shape.items()]
        for peer in options.peer:
            command += ["--peer", peer]
        for name, value in OURS.items():
            command += ["--model", f"{name}={json.dumps(value)}"]
        print(" ".join(command[1:]), flush=True)
        started = time.monotonic()
        # A session of its own: whatever ends this script, the contestants go with it and leave the device.
        with subprocess.Popen(command, cwd=ROOT, start_new_session=True) as process:
            try:
                process.wait(timeout=seconds)
            except subprocess.TimeoutExpired:
                print(f"stopped after {seconds:.0f} s", file=sys.stderr)
                return None
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        if process.returncode or not figures.exists():
            return None
        return {
            "seconds": round(time.monotonic() - started, 1),
            "shape": shape,
            "contestants": json.loads(figures.read_text()),
        }


def rows(name: str, result: dict, limits: dict) -> list[dict]:
    """Figures of each contestant of one model."""
    from diversity_jax.model import LlamaConfig
    from diversity_jax.training.throughput import flops_per_token

    shape = result["shape"]
    names = {
        "vocab_size": "vocab",
        "hidden_size": "hidden",
        "intermediate_size": "intermediate",
        "num_layers": "layers",
        "num_heads": "heads",
    }
    model = LlamaConfig(**{field: shape[flag] for field, flag in names.items()})
    complete, half = (flops_per_token(model, shape["length"], causal=causal) for causal in (False, True))
    ours = result["contestants"]["diversity_jax"]["tokens_per_second"]["fastest_tenth"]
    results = []
    for contestant, figures in result["contestants"].items():
        speed = figures["tokens_per_second"]["fastest_tenth"]
        results.append(
            {
                "model": name,
                "batch": shape["batch"],
                "contestant": contestant,
                "tokens_per_second": speed,
                "median": figures["tokens_per_second"]["median"],
                "mfu": complete * speed / limits["peak"] if limits["peak"] else None,
                "mfu_causal": half * speed / limits["peak"] if limits["peak"] else None,
                "of_ceiling": complete * speed / limits["ceiling"],
                "ours_is": ours / speed,
                "peak_bytes": figures["peak_bytes"],
                "first_losses": figures["first_losses"][:3],
            }
        )
    return results


def table(limits: dict, results: list[dict], missing: list[str]) -> str:
    """Markdown of all models and contestants, with the limits they are held against."""

    def share(value: float | None) -> str:
        return "" if value is None else f"{100 * value:.1f} %"

    peak = f"data sheet {limits['peak'] / 1e12:,.0f} TFLOP/s" if limits["peak"] else "no data sheet known"
    products = ", ".join(f"{size}: {reached / 1e12:,.4g}" for size, reached in limits["products"].items())
    lines = [
        f"{limits['device']}, jax {limits['jax']}; {peak}; square bfloat16 products, TFLOP/s: {products}",
        "",
        (
            "| model | rows x tokens | step | tokens/s, fastest tenth | median | MFU | causal | of products | ours is "
            "| "
            "peak GiB | losses |"
        ),
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for item in results:
        memory = f"{item['peak_bytes'] / 2**30:.1f}" if item["peak_bytes"] else ""
        shares = [share(item[name]) for name in ("mfu", "mfu_causal", "of_ceiling")]
        losses = " ".join(f"{loss:.3f}" for loss in item["first_losses"])
        cells = [
            item["model"],
            f"{item['batch']} x {MODELS[item['model']]['length']}",
            item["contestant"],
            f"{item['tokens_per_second']:,.0f}",
        ]
        cells += [f"{item['median']:,.0f}", *shares, f"{item['ours_is']:.2f}x", memory, losses]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *goals(results), *(f"- not measured: {name}" for name in missing)])


def goals(results: list[dict]) -> list[str]:
    """Each goal with what was reached."""
    output = []
    for item in results:
        if item["contestant"] == "diversity_jax" and item["model"] in GOALS and item["mfu"] is not None:
            for what, reached, goal in (
                ("MFU", item["mfu"], GOALS[item["model"]]),
                ("of measured products", item["of_ceiling"], GOAL_OF_CEILING),
            ):
                verdict = "reached" if reached >= goal else "MISSED"
                output.append(f"- {item['model']}, {what}: {reached:.1%}, goal {goal:.0%}: {verdict}")
        elif item["contestant"] != "diversity_jax":
            goal = 1.1 if "torch" in item["contestant"] else 1.0
            verdict = "reached" if item["ours_is"] >= goal else "MISSED"
            output.append(
                f"- {item['model']}, against {item['contestant']}: {item['ours_is']:.2f}x, goal {goal:.1f}x: {verdict}"
            )
    return output


def files() -> list[str]:
    """Files of this repository that a run needs, all of them."""
    import diversity_jax.core.files
    import diversity_jax.training.step
    import diversity_jax.training.throughput  # noqa: F401

    needed = {
        Path(module.__file__).resolve() for module in list(sys.modules.values()) if getattr(module, "__file__", None)
    }
    package = ROOT / "diversity_jax"
    needed = {path for path in needed if package in path.parents} | {
        Path(__file__).resolve(),
        ROOT / "scripts" / "benchmarks" / "bench_train_step.py",
    }
    return sorted(str(path.relative_to(ROOT)) for path in needed)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", action="append", default=[], help="a peer's script, and flags of its own")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["350m", "1p4b"])
    parser.add_argument("--batch", type=int, help="rows of a step; default 8")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--time-limit", type=float, default=460, help="seconds for all of it")
    parser.add_argument("--output", type=Path, help="file of the table; default docs/benchmarks/DEVICE-DATE.md")
    parser.add_argument("--files", action="store_true", help="print the files a run needs, and end")
    parser.add_argument("--ceiling", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def write(options: argparse.Namespace, limits: dict, text: str) -> None:
    """Keeps the table with what is needed to repeat it."""
    date = time.strftime("%Y-%m-%d")
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    name = limits["device"].lower().replace(" ", "-").replace("/", "-")
    path = options.output or ROOT / "docs" / "benchmarks" / f"{name}-{date}.md"
    command = " ".join(f'"{word}"' if " " in word else word for word in sys.argv[1:])
    head = (
        f"# {limits['device']}, {date}\n\nCommit {git.stdout.strip() or 'unknown'}; `python "
        f"scripts/benchmarks/bench_accelerator.py {command}`\n\n"
    )
    path.write_text(head + text + "\n")
    print(f"written to {path}")


def main() -> None:
    """Measures the limit, then each model, and prints the table."""
    options = arguments()
    if options.files:
        print("\n".join(files()))
        return
    if options.ceiling:
        ceiling()
        return
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    end = time.monotonic() + options.time_limit
    limits = run_json([sys.executable, __file__, "--ceiling"], options.time_limit / 4)
    if limits is None:
        sys.exit("error: no product could be measured; the message stands above")
    results, missing = [], []
    for position, name in enumerate(options.models):
        shape = MODELS[name] | ({"batch": options.batch} if options.batch else {})
        left = (end - time.monotonic()) / (len(options.models) - position)
        started = time.monotonic()
        result = contest(shape, options, left)
        if result is None and (left := left - (time.monotonic() - started)) > 60 and shape["batch"] > 1:
            result = contest(shape | {"batch": shape["batch"] // 2}, options, left)
        if result is None:
            missing.append(name)
        else:
            results += rows(name, result, limits)
    text = table(limits, results, missing)
    print(text)
    write(options, limits, text)
    sys.exit(bool(missing))


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Compiles the three model sizes for every chip of docs/compile.md; writes figures and a table to
docs/benchmarks/compile.

    # all that have no file yet, one after the other: an hour on two cores
    python scripts/benchmarks/compile_table.py
    python scripts/benchmarks/compile_table.py v5e h200             # these chips
    python scripts/benchmarks/compile_table.py --table              # only rewrite the table from the files

TPU rows need libtpu, GPU rows jax[cuda12]; rows whose compiler is not installed are named and left out.
"""

import argparse
import logging
from pathlib import Path
import subprocess
import sys
import time

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

FOLDER = ROOT / "docs" / "benchmarks" / "compile"
# The flags that each configuration's docstring gives for this hardware; TPU slices use the configurations unchanged.
# Unrolled layers spare GPUs a copy of all activations kept for the backward pass; TPUs compile slowly, so that the loop
# is better there.
_GPU = ["--config.model.scan_layers=False"]
_KEPT = ["--config.model.remat=save_matmuls"]
_NONE = [*_GPU, "--config.model.remat=none"]
_TWO_SLICES = [
    "--config.mesh.data=2",
    "--config.mesh.network_data=2",
    "--config.train.gradient_accumulation=1",
]  # parts cross one by one
ROWS = (
    ("llama_350m", "v5e:4x4", []),
    ("llama_1p4b", "v5e:4x4", []),
    ("llama_7b", "v5e:8x8", []),
    ("llama_350m", "v4:2x2x4", []),
    ("llama_1p4b", "v4:2x2x4", []),
    ("llama_7b", "v4:4x4x4", []),
    ("llama_350m", "v5p:2x2x2", []),
    ("llama_1p4b", "v5p:2x2x2", []),
    ("llama_7b", "v5p:2x4x4", _KEPT),
    ("llama_350m", "v6e:4x4", []),
    ("llama_1p4b", "v6e:4x4", []),
    ("llama_7b", "v6e:8x8", _KEPT),
    ("llama_1p4b", "v5e:4x4*2", _TWO_SLICES),
    ("llama_350m", "h100:8", _GPU),
    ("llama_1p4b", "h100:8", _GPU),
    ("llama_7b", "h100:8", ["--config.train.gradient_accumulation=2"]),
    ("llama_350m", "h200:1", [*_NONE, "--config.train.gradient_accumulation=8"]),
    ("llama_1p4b", "h200:1", [*_NONE, "--config.train.gradient_accumulation=8"]),
    ("llama_7b", "h200:1", ["--config.train.gradient_accumulation=64"]),
)


def path_of(config: str, topology: str) -> Path:
    """Where a row's figures are kept."""
    return FOLDER / f"{config}_{topology.replace(':', '_').replace('*', '_slices_')}.json"


def compile_row(config: str, topology: str, overrides: list[str]) -> None:
    """Compiles one row and keeps its figures with commit and date."""
    from diversity_jax.aot import compile as aot
    from diversity_jax.aot.compile import default_folder
    from diversity_jax.aot.report import lines
    from diversity_jax.aot.worker import parse_target
    from diversity_jax.core import config as config_files
    from diversity_jax.core.files import write_json
    from diversity_jax.training.run import Config

    command = ["--config", f"configs/{config}.py", *overrides]
    loaded = config_files.parse([command[0], str(ROOT / command[1]), *overrides], Config)
    result = aot.compiled(aot.make_request(loaded, parse_target(topology), effort="O1"), default_folder())
    print("\n".join(lines(result)), flush=True)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    output = " ".join(["python -m diversity_jax.training.compile", *command, "--topology", topology, "--fast"])
    write_json(
        path_of(config, topology),
        aot.record(result) | {"command": output, "commit": commit, "date": time.strftime("%Y-%m-%d")},
    )


def kept_rows() -> list[dict]:
    """Figures of all rows that are kept, each with its configuration's name."""
    from diversity_jax.core.files import read_json

    paths = [(config, path_of(config, topology)) for config, topology, _ in ROWS]
    return [read_json(path) | {"config": config} for config, path in paths if path.exists()]


def table(rows: list[dict]) -> str:
    """Markdown: what fits and how fast it can be, what the memory holds, what a step does and sends, and the
    commands.
    """
    return "\n\n".join([_HEAD, _verdicts(rows), _memory(rows), _work(rows), _collectives(rows), _commands(rows)]) + "\n"


_HEAD = """# Training steps compiled for chips that are not here

Written by `scripts/benchmarks/compile_table.py`; figures of each row, and more, in the JSON file of its name. Nothing
here was run: memory is the compiler's own count, traffic and collectives are read from the compiled program, times are
a roofline over them ([compile.md](../../compile.md) says what that assumes).
Sequences of 2,048 tokens, bfloat16 with float32 master weights."""


def _markdown(title: str, columns: list[str], lines: list[list[str]], words: int) -> str:
    """A table whose first `words` columns are text and the others numbers."""
    rule = ["---"] * words + ["---:"] * (len(columns) - words)
    return "\n".join([f"## {title}\n", *("| " + " | ".join(line) + " |" for line in [columns, rule, *lines])])


def _name(row: dict) -> list[str]:
    return [row["config"].removeprefix("llama_"), row["topology"]]


def _span(values: list[float], factor: float) -> str:
    return "-".join(f"{factor * value:,.0f}" for value in values)


def _verdicts(rows: list[dict]) -> str:
    columns = [
        "model",
        "devices",
        "mesh",
        "batch",
        "remat",
        "fits",
        "GiB a device",
        "binds",
        "step ms",
        "k tokens/s",
        "MFU %",
        "causal %",
    ]
    lines = []
    for row in rows:
        request, figures = row["request"], row["estimate"]
        mesh = " x ".join(f"{axis} {size}" for axis, size in row["report"]["mesh"].items() if size > 1) or "one device"
        parts = f" in {request['gradient_accumulation']}" if request["gradient_accumulation"] > 1 else ""
        loop = "" if request["model"]["scan_layers"] else ", unrolled"
        line = [*_name(row), mesh, f"{request['batch_size']}{parts}", request["model"]["remat"] + loop]
        capacity = row["chip"]["hbm_bytes"] / 2**30
        if figures is None:
            needed = row["report"]["needed_bytes"]
            lines.append(
                [
                    *line,
                    "no",
                    f"{needed / 2**30:.1f} of {capacity:.1f}" if needed else "more",
                    "capacity",
                    "",
                    "",
                    "",
                    "",
                ]
            )
            continue
        line += ["yes" if figures["fits"] else "no"]
        line += [
            f"{figures['memory_total_bytes'] / 2**30:.1f} of {figures['memory_capacity_bytes'] / 2**30:.1f}",
            figures["binds"],
        ]
        spans = (("step_seconds", 1e3), ("tokens_per_second", 1e-3), ("mfu", 100), ("mfu_causal", 100))
        lines.append(line + [_span(figures[name], factor) for name, factor in spans])
    return _markdown("What fits, and how fast it can be", columns, lines, 6)


def _memory(rows: list[dict]) -> str:
    kinds = ["arguments", "outputs", "temporaries", "code", "host"]
    fitting = [(row, row["report"]["memory_bytes"]) for row in rows if row["estimate"] is not None]
    lines = [[*_name(row), *(f"{memory[kind] / 2**30:.2f}" for kind in kinds)] for row, memory in fitting]
    columns = ["model", "devices", "state and batch", "new outputs", "temporaries", "code", "host"]
    return _markdown("Memory a device by kind, GiB", columns, lines, 2)


def _work(rows: list[dict]) -> str:
    from diversity_jax.aot.report import quantity

    lines = []
    for row in rows:
        if (figures := row["estimate"]) is None:
            continue
        kernels = (
            ", ".join(f"{name} x {count}" for name, count in sorted(row["report"]["kernels"].items()))
            or row["report"]["attention"]
        )
        times = [f"{1000 * figures['seconds'][name]:,.0f}" for name in ("compute", "memory", "interconnect", "network")]
        flops = [quantity(figures["flops"][name], "FLOP") for name in ("model", "model_causal", "executed")]
        lines.append([*_name(row), kernels, *flops, quantity(row["report"]["hbm_traffic_bytes"], "B"), *times])
    columns = ["model", "devices", "attention kernels", "FLOPs", "causal", "executed", "HBM traffic a device"]
    return _markdown(
        "Work of a step, and ms each resource would take alone", [*columns, "compute", "HBM", "ICI", "DCN"], lines, 3
    )


def _collectives(rows: list[dict]) -> str:
    from diversity_jax.aot.report import quantity

    lines = [
        [
            *_name(row),
            item["kind"],
            "across slices" if item["crosses_slices"] else "inside",
            *(
                f"{item['devices']}",
                f"{item['count']:,}",
                quantity(item["payload_bytes"], "B"),
                quantity(item["sent_bytes"], "B"),
            ),
        ]
        for row in rows
        for item in row["report"].get("collectives", [])
        if item["payload_bytes"] >= 1e6
    ]
    columns = ["model", "devices", "collective", "where", "group", "count", "payload", "sent"]
    return _markdown("Collectives a device and step, of a megabyte and more", columns, lines, 4)


def _commands(rows: list[dict]) -> str:
    lines = [
        [
            *_name(row),
            f"`{row['command'].removeprefix('python -m diversity_jax.training.compile ')}`",
            f"{row['commit']}, {row['date']}, jax {row['report']['jax']}",
            f"{row['report'].get('lowering_seconds', 0) + row['report'].get('compile_seconds', 0):.0f}",
        ]
        for row in rows
    ]
    columns = [
        "model",
        "devices",
        "arguments of `python -m diversity_jax.training.compile`",
        "commit, date, version",
        "seconds",
    ]
    return _markdown("How each was made", columns, lines, 4)


def main() -> None:
    """Compiles what is missing and prints the table."""
    from diversity_jax.core.errors import InputError

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chips", nargs="*", help="v4, v5e, v5p, v6e, h100, h200; default: all")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--again", action="store_true", help="also rows that are kept")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for config, topology, overrides in () if options.table else ROWS:
        wanted = not options.chips or topology.split(":")[0] in options.chips
        if wanted and (options.again or not path_of(config, topology).exists()):
            try:
                compile_row(config, topology, overrides)
            except InputError as error:
                print(f"left out: {config} {topology}: {error}", file=sys.stderr)
    written = table(kept_rows())
    (FOLDER / "README.md").write_text(written)
    print(written)


if __name__ == "__main__":
    main()

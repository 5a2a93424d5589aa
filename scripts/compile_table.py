#!/usr/bin/env python3
"""Compiles the three sizes for every chip of docs/compile.md, keeps the figures, and prints the table.

    python scripts/compile_table.py                      # all that are not kept yet, one after the other: an hour on two cores
    python scripts/compile_table.py v5e h200             # these chips
    python scripts/compile_table.py --table              # only print what is kept under docs/benchmarks/compile/

TPU rows need libtpu, GPU rows jax[cuda12]; rows whose compiler is not installed are named and left out.
"""

import argparse
import logging
from pathlib import Path
import subprocess
import sys
import time

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

FOLDER = ROOT / "docs" / "benchmarks" / "compile"
# What each configuration's docstring says to give on this hardware; the TPU slices take the configurations as they are. Unrolled layers
# spare GPUs a copy of all that is kept for the backward pass; on TPUs, which compile slowly, the loop is the better bargain.
_GPU = ["--config.model.scan_layers=False"]
_NONE = [*_GPU, "--config.model.remat=none"]
ROWS = (
    ("llama_350m", "v5e:4x4", []),
    ("llama_1p4b", "v5e:4x4", []),
    ("llama_7b", "v5e:8x8", []),
    ("llama_350m", "v4:2x2x4", []),
    ("llama_1p4b", "v4:2x2x4", []),
    ("llama_7b", "v4:4x4x4", []),
    ("llama_350m", "v5p:2x2x2", []),
    ("llama_1p4b", "v5p:2x2x2", []),
    ("llama_7b", "v5p:2x4x4", []),
    ("llama_350m", "v6e:4x4", []),
    ("llama_1p4b", "v6e:4x4", []),
    ("llama_7b", "v6e:8x8", []),
    ("llama_1p4b", "v5e:4x4*2", ["--config.mesh.data=2", "--config.mesh.network_data=2"]),
    ("llama_350m", "h100:8", _NONE),
    ("llama_1p4b", "h100:8", _NONE),
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
    from diversity_jax import config_files
    from diversity_jax.config import Config
    from diversity_jax.storage import write_json
    from diversity_jax.training import compile as ahead
    from diversity_jax.training.compile_cache import default_folder
    from diversity_jax.training.compile_report import lines
    from diversity_jax.training.compile_targets import parse_target

    command = ["--config", f"configs/{config}.py", *overrides]
    loaded = config_files.parse([command[0], str(ROOT / command[1]), *overrides], Config)
    result = ahead.compiled(ahead.make_request(loaded, parse_target(topology), effort="O1"), default_folder())
    print("\n".join(lines(result)), flush=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    said = " ".join(["python -m diversity_jax.training.compile", *command, "--topology", topology, "--fast"])
    write_json(path_of(config, topology), ahead.record(result) | {"command": said, "commit": commit, "date": time.strftime("%Y-%m-%d")})


def table() -> str:
    """Markdown of all rows that are kept."""
    from diversity_jax.storage import read_json

    found = [
        "| model | slice | mesh | batch, remat | memory a device | binds | step ms | MFU % | causal % | collectives sent |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for config, topology, _ in ROWS:
        path = path_of(config, topology)
        if path.exists():
            found.append(_line(config, topology, read_json(path)))
    return "\n".join(found)


def _line(config: str, topology: str, kept: dict) -> str:
    request, report, figures = kept["request"], kept["report"], kept["estimate"]
    mesh = " x ".join(f"{axis} {size}" for axis, size in report["mesh"].items() if size > 1) or "1"
    batch = f"{request['batch_size']}, {request['model']['remat']}"
    capacity = kept["chip"]["hbm_bytes"] / 2**30
    if figures is None:
        needed = f"{report['needed_bytes'] / 2**30:.0f}" if report["needed_bytes"] else "more"
        return f"| {config} | {topology} | {mesh} | {batch} | needs {needed} of {capacity:.1f} GiB | capacity | | | | |"
    spans = [
        f"{factor * figures[name][0]:,.0f}-{factor * figures[name][1]:,.0f}"
        for name, factor in (("step_seconds", 1000), ("mfu", 100), ("mfu_causal", 100))
    ]
    sent = sum(one["sent_bytes"] for one in report["collectives"]) / 1e9
    memory = f"{figures['memory_total_bytes'] / 2**30:.1f} of {capacity:.1f} GiB"
    return f"| {config} | {topology} | {mesh} | {batch} | {memory} | {figures['binds']} | {' | '.join(spans)} | {sent:.1f} GB |"


def main() -> None:
    """Compiles what is missing and prints the table."""
    from diversity_jax.errors import InputError

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
    print(table())


if __name__ == "__main__":
    main()

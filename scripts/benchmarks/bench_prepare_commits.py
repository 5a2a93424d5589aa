"""CPU seconds and peak memory of a preparation under two checkouts of this project, and whether every shard is the
same.

    git worktree add /tmp/before COMMIT
    python scripts/benchmarks/bench_prepare_commits.py --base /tmp/before --text 'texts/*.jsonl' --repeats 5 \\
        gpt_neox_tokenizer.json llama_tokenizer.json llama2_tokenizer.model

The two take turns. Shown are medians: user plus system time of the command and everything it starts, and the largest
sum of resident memory, sampled every 50 ms. Bytecode is compiled beforehand for both. Documents end with end-of-text
and begin with nothing, the only form in checkouts without `document_start`.
"""

import argparse
import compileall
import contextlib
import hashlib
import os
from pathlib import Path
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.child_times import ChildTimes

ROOT = Path(__file__).resolve().parents[2]

_LOOK_SECONDS = 0.05
_CONFIG = """
import dataclasses

from diversity_jax.corpus import CorpusConfig
try:  # where they were before
    from diversity_jax.mixtures.preparation import Preparation, PrepareConfig
except ImportError:
    from diversity_jax.prepare.config import Preparation, PrepareConfig


def get_config():
    settings = dict(name="bench", kind="real", sequence_length={length!r})
    if "document_start" in {{field.name for field in dataclasses.fields(Preparation)}}:
        settings["document_start"] = "end_of_text"
    return PrepareConfig(
        output_dir={output!r},
        corpus=CorpusConfig(source={source!r}),
        vocabulary={vocabulary!r},
        processes={processes!r},
        preparation=Preparation(**settings),
    )
"""


def prepared(
    checkout: Path, folder: Path, vocabulary: str, args: argparse.Namespace
) -> tuple[float, float, float, str]:
    """CPU seconds, wall-clock seconds, peak megabytes, and a hash of all shards."""
    rows, config = folder / "rows", folder / "prepare_config.py"
    shutil.rmtree(rows, ignore_errors=True)
    values = {"length": args.length, "source": args.text, "vocabulary": vocabulary, "processes": args.processes}
    config.write_text(_CONFIG.format(output=str(rows), **values))
    command = [sys.executable, "-m", "diversity_jax.mixtures.prepare", "--config", str(config)]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    peak = 0
    with open(folder / "log.txt", "w") as log, ChildTimes() as times:
        process = subprocess.Popen(command, cwd=checkout, env=environment, stdout=log, stderr=log)
        tree = psutil.Process(process.pid)
        while process.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                peak = max(peak, sum(process.memory_info().rss for process in [tree, *tree.children(recursive=True)]))
            time.sleep(_LOOK_SECONDS)
    if process.returncode:
        sys.exit(f"{checkout}\n{(folder / 'log.txt').read_text()[-3000:]}")
    digest = hashlib.sha256()
    for path in sorted(rows.glob("*.bin*")):
        digest.update(path.name.encode() + path.read_bytes())
    return times.cpu_seconds, times.seconds, peak / 1e6, digest.hexdigest()


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("vocabularies", nargs="+")
    flags.add_argument("--base", type=Path, required=True, help="the checkout that is compared with")
    flags.add_argument("--new", type=Path, default=ROOT, help="the checkout in question")
    flags.add_argument("--text", required=True, help="a path or pattern, as a corpus's source")
    flags.add_argument("--length", type=int, default=2048)
    flags.add_argument("--processes", type=int)
    flags.add_argument("--repeats", type=int, default=5)
    args = flags.parse_args()
    columns = ("base CPU s", "new CPU s", "ratio", "base s", "new s", "base MB", "new MB")
    print(f"{'vocabulary':<28}" + "".join(f"{name:>12}" for name in columns) + "  shards", flush=True)
    for checkout in (args.base, args.new):
        compileall.compile_dir(checkout / "diversity_jax", quiet=1)
    with tempfile.TemporaryDirectory() as scratch:
        for vocabulary in args.vocabularies:
            sides: dict[str, list[tuple[float, float, float, str]]] = {"base": [], "new": []}
            for _ in range(args.repeats):
                for side, checkout in (("base", args.base.resolve()), ("new", args.new.resolve())):
                    sides[side].append(prepared(checkout, Path(scratch), str(Path(vocabulary).resolve()), args))
            medians = {
                side: [statistics.median(run[i] for run in runs) for i in range(3)] for side, runs in sides.items()
            }
            base, new = medians["base"], medians["new"]
            same = "same" if len({run[3] for runs in sides.values() for run in runs}) == 1 else "DIFFER"
            figures = (base[0], new[0], base[0] / new[0], base[1], new[1], base[2], new[2])
            print(
                f"{Path(vocabulary).name:<28}" + "".join(f"{value:>12.2f}" for value in figures) + f"  {same}",
                flush=True,
            )


if __name__ == "__main__":
    main()

"""Speed and peak memory of exporting and importing rows; exits with status 1 where a limit is broken.

    python scripts/benchmarks/bench_export.py --gb 1 --folder /tmp/bench_export

A Megatron set of that size is made of random ids of a vocabulary of 50,257, imported without copying it, and exported
to every format, each in a process of its own. Figures are MB of rows on disk (2 bytes a token) per CPU second of that
process: all threads, start-up included. The upper bound, measured in the same run, is a plain loop that reads,
checksums and writes the same bytes.
"""

import argparse
import hashlib
import json
import os
from pathlib import Path
import re
import shutil
import subprocess
import sys

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.child_times import ChildTimes

ROOT = Path(__file__).resolve().parents[2]
VOCABULARY, LENGTH = 50_257, 2048
LEAST_MB, MOST_MEMORY = 100, 1e9
FORMATS = ("megatron", "mds", "litdata", "arrow", "parquet", "levanter", "array_record", "tfrecord")


def make(folder: Path, size: float) -> None:
    """The tokenizer, and a set of documents of about 800 ids."""
    from tokenizers import Tokenizer, models

    words = {f"w{i}": i for i in range(VOCABULARY - 1)} | {"<|endoftext|>": VOCABULARY - 1}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.add_special_tokens(["<|endoftext|>"])
    (folder / "vocabulary").mkdir(parents=True)
    tokenizer.save(str(folder / "vocabulary" / "tokenizer.json"))
    draw, count, lengths = np.random.default_rng(0), int(size / 2), []
    with open(folder / "set.bin", "wb") as file:
        for first in range(0, count, 1 << 24):
            ids = (draw.zipf(1.2, min(1 << 24, count - first)) % (VOCABULARY - 1)).astype(np.uint16)
            ends = np.cumsum(draw.integers(100, 1500, len(ids) // 800))
            ends = np.append(ends[ends < len(ids)], len(ids))
            ids[ends - 1] = VOCABULARY - 1
            file.write(ids.data)
            lengths.append(np.diff(ends, prepend=0))
    sizes = np.concatenate(lengths).astype(np.int32)
    head = b"MMIDIDX\x00\x00" + np.array([1], "<u8").tobytes() + bytes([8])
    counts = np.array([len(sizes), len(sizes) + 1], "<u8").tobytes()
    pointers = 2 * (np.cumsum(sizes, dtype=np.int64) - sizes)
    bounds = np.arange(len(sizes) + 1, dtype=np.int64)
    (folder / "set.idx").write_bytes(head + counts + sizes.tobytes() + pointers.tobytes() + bounds.tobytes())


def build(folder: Path, *, link: bool) -> None:
    """Imports the set, and makes a mixture of it."""
    from fractions import Fraction

    from diversity_jax.mixtures.exchange.token_files import open_token_set
    from diversity_jax.mixtures.exchange.token_import import import_tokens
    from diversity_jax.mixtures.mixture import Mixture, MixtureComponent
    from diversity_jax.prepare.config import Preparation
    from diversity_jax.tokenizers.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(str(folder / "vocabulary"))
    settings = Preparation(name="theirs", kind="real", sequence_length=LENGTH, document_start="end_of_text")
    target = folder / ("mixture" if link else "copied")
    manifest = import_tokens(open_token_set(str(folder / "set")), tokenizer, target / "theirs", settings, link=link)
    component_fields = {
        "share_asked": Fraction(1),
        "share_granted": Fraction(1),
        "decision": {"action": "ungated", "reason": "made"},
    }
    part = MixtureComponent(name="theirs", kind="real", manifest=manifest, **component_fields)
    vocabulary, start = manifest.vocabulary, ("end_of_text", tokenizer.end_of_text_id)
    fields = {"sequence_length": LENGTH, "seed": 0, "document_start": start[0], "document_start_id": start[1]}
    Mixture(name="bench", components=(part,), vocabulary=vocabulary, folder=target, **fields).save()


def copy(source: Path, target: Path) -> None:
    """The minimum of any export: bytes read, checksummed and written."""
    digest = hashlib.sha256()
    with open(source, "rb") as file, open(target, "wb") as out:
        while data := file.read(8 << 20):
            digest.update(data)
            out.write(data)
        out.flush()
        os.fsync(out.fileno())


def measured(*arguments: str) -> tuple[float, float, float]:
    """CPU seconds, seconds and peak bytes of this script's work in a process of its own."""
    code = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", code, __file__, *arguments]
    with ChildTimes() as times:
        done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}: ended with {done.returncode}")
    return times.cpu_seconds, times.seconds, float(done.stdout.split()[-1])


def work(folder: Path, what: str) -> None:
    """One piece of work, and this process's peak of memory as the last word printed."""
    if what in ("link", "import"):
        build(folder, link=what == "link")
    elif what == "copy":
        copy(folder / "set.bin", folder / "out")
    else:
        from diversity_jax.mixtures import export

        arguments = {"--mixture": folder / "mixture", "--to": what, "--output_dir": folder / "out"}
        export.main([str(word) for pair in arguments.items() for word in pair])
    # Not `ru_maxrss`: a process begins with its parent's.
    peak = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    print(1024 * int(peak[1]) if peak else float("nan"))


def main() -> int:
    """Makes the set, and prints a line for each piece of work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=1.0)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/bench_export"))
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--work")
    options = parser.parse_args()
    if options.work:
        work(options.folder, options.work)
        return 0
    shutil.rmtree(options.folder, ignore_errors=True)
    make(options.folder, options.gb * 1e9)
    broken, base = 0, 0.0
    print(f"{'':14} {'MB/CPU s':>9} {'of copying':>11} {'seconds':>8} {'peak MB':>8} {'written MB':>11}")
    for what in ("copy", "link", "import", *options.formats.split(",")):
        cpu, seconds, peak = measured("--work", what, "--folder", str(options.folder))
        speed = options.gb * 1e3 / cpu
        base = base or speed
        out = {"link": "mixture", "import": "copied"}.get(what, "out")
        written = sum(path.stat().st_size for path in options.folder.rglob("*") if path.is_file() and out in path.parts)
        line = f"{what:14} {speed:9.0f} {speed / base:11.2f} {seconds:8.1f} {peak / 1e6:8.0f} {written / 1e6:11.0f}"
        is_broken = what != "copy" and (speed < LEAST_MB or peak > MOST_MEMORY)
        print(line + ("  BROKEN" if is_broken else ""), flush=True)
        broken += is_broken
        if out != "mixture":
            path = options.folder / out
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    print(json.dumps({"limits": {"MB a CPU second": LEAST_MB, "peak MB": MOST_MEMORY / 1e6}, "broken": broken}))
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())

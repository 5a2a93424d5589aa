"""Loader tokens per second from the page cache, against copying the same bytes, and input wait at 200,000 tokens/s.

    python scripts/benchmarks/bench_loader.py
    python scripts/benchmarks/bench_loader.py --busy 2          the same while two other processes use the cores

First table: the limit measured beside the loader is numpy copying rows of the same size out of the same file into
int32, without schedule or checksums. Second table: the training loop's own path (schedule, memory map, checksums, copy
to the device, read-ahead) feeds a step that does nothing but take as long as 200,000 tokens/s leave it; the input wait
is what the loop measures in a real run. Both on 1 GB and on 100 GB of rows, whose ratio must stay near 1. The large
components are sparse files, so nothing like 100 GB of disk is used; reading rows of a hole costs what cached rows cost.
"""

import argparse
from fractions import Fraction
import functools
import multiprocessing
from pathlib import Path
import statistics
import sys
import tempfile
import time
import zlib

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from diversity_jax.mixtures.loader import Loader
from diversity_jax.model import MeshConfig, batch_sharding, make_mesh
from diversity_jax.prepare.manifest import Manifest, Shard, Split, VocabularyInfo
from diversity_jax.training.data import ReadAhead, prepare

_GIGABYTES = (1, 100)
_WARMUP_STEPS = 4


def sparse_component(folder: Path, name: str, gigabytes: float, length: int) -> Manifest:
    """A component of zeros with right checksums, whose shard takes no disk."""
    row_bytes = 2 * (length + 1)
    rows = int(gigabytes * 1e9 / row_bytes)
    (folder / name).mkdir(parents=True)
    with open(folder / name / "train-00000-of-00001.bin", "wb") as file:
        file.truncate(rows * row_bytes)
    np.full(rows, zlib.crc32(bytes(row_bytes)), "<u4").tofile(folder / name / "train-00000-of-00001.bin.crc32")
    shard = Shard(file="train-00000-of-00001.bin", rows=rows, sha256="")
    split = Split(
        documents=rows, tokens=rows * (length + 1), text_bytes=0, dropped_tokens=0, rows=rows, shards=(shard,)
    )
    vocabulary = VocabularyInfo(kind="bytes", size=259, end_of_text_id=1, hash="bench", files=())
    return Manifest(
        name=name,
        kind="real",
        sequence_length=length,
        dtype="uint16",
        seed=0,
        validation_share=0.0,
        vocabulary=vocabulary,
        source={},
        rejected={},
        splits={"train": split},
        folder=folder / name,
    )


def loader_speed(loader: Loader, first: int, steps: int) -> float:
    """Tokens per second over `steps` batches, the second time they are read."""
    for step in range(first, first + steps):
        loader.batch(step)
    began = time.perf_counter()
    for step in range(first, first + steps):
        loader.batch(step)
    return steps * loader.batch_size * loader.sequence_length / (time.perf_counter() - began)


def copy_speed(manifest: Manifest, batch: int, steps: int) -> float:
    """Tokens per second of a plain copy of rows to int32."""
    shard = manifest.splits["train"].shards[0]
    rows = np.memmap(manifest.folder / shard.file, "<u2", "r", shape=(shard.rows, manifest.row_tokens))
    out = np.empty((batch, manifest.row_tokens), np.int32)
    for _ in range(2):
        began = time.perf_counter()
        for step in range(steps):
            out[:] = rows[step * batch : (step + 1) * batch]
    return steps * batch * manifest.sequence_length / (time.perf_counter() - began)


def input_wait(loader: Loader, first: int, steps: int, tokens_per_second: float) -> tuple[float, float, float]:
    """Runs the training loop's input path at a given speed, with a step that computes nothing.

    Returns:
      Share of the steps' time spent waiting for input, the longest wait as a share of a step, and the CPU seconds a
      batch costs.
    """
    step_seconds = loader.batch_size * loader.sequence_length / tokens_per_second
    sharding = batch_sharding(make_mesh(MeshConfig(data=-1, fsdp=1)))
    read = functools.partial(prepare, loader, sharding, None)
    prefetched, waits = ReadAhead(read, first, first + steps + _WARMUP_STEPS), []
    batches = iter(prefetched)
    for _ in range(_WARMUP_STEPS):
        next(batches)
        time.sleep(step_seconds)
    used, began = time.process_time(), time.perf_counter()
    for _, batch, waited in batches:
        waits.append(waited)
        jax.block_until_ready(batch)
        time.sleep(step_seconds)
    passed = time.perf_counter() - began
    prefetched.close()
    return sum(waits) / passed, max(waits) / step_seconds, (time.process_time() - used) / steps


def _spin() -> None:
    while True:
        pass


def report(args: argparse.Namespace, folder: Path) -> None:
    """Both tables."""
    shares = [Fraction(8, 15), Fraction(2, 15), Fraction(2, 15), Fraction(1, 5)]
    parts = {
        gigabytes: [sparse_component(folder, f"of{gigabytes}_part{i}", gigabytes / 4, args.length) for i in range(4)]
        for gigabytes in _GIGABYTES
    }
    middle = {gigabytes: int(results[0].splits["train"].rows / args.batch) // 2 for gigabytes, results in parts.items()}
    speeds: dict[int, list[tuple[float, float]]] = {gigabytes: [] for gigabytes in parts}
    waits: dict[int, list[tuple[float, float, float]]] = {gigabytes: [] for gigabytes in parts}
    for _ in range(args.repeats):  # the sizes take turns, so that other load on the machine affects both
        for gigabytes, results in parts.items():
            loader = Loader(results, shares, batch_size=args.batch)
            speed = loader_speed(loader, middle[gigabytes], args.steps)
            speeds[gigabytes].append((speed, copy_speed(results[0], args.batch, args.steps)))
            loader = Loader(results, shares, batch_size=args.train_batch)
            waits[gigabytes].append(input_wait(loader, middle[gigabytes], args.train_steps, args.tokens_per_second))
    print(f"{'rows':>8}{'loader Mtok/s':>16}{'copy Mtok/s':>14}{'loader/copy':>13}")
    best = {}
    for gigabytes, results in speeds.items():
        loaded, copied = (max(side) / 1e6 for side in zip(*results, strict=True))
        best[gigabytes] = loaded
        print(f"{gigabytes:>5} GB{loaded:>16.0f}{copied:>14.0f}{loaded / copied:>13.2f}")
    small, large = _GIGABYTES
    print(f"time a token, {large} GB over {small} GB: {best[small] / best[large]:.2f}\n")
    print(f"at {args.tokens_per_second:,.0f} tokens/s, batches of {args.train_batch} x {args.length}:")
    print(
        f"{'rows':>8}{'input wait, of step time':>26}{'longest, of a step':>20}{'CPU ms a batch':>16}{'of a core':>11}"
    )
    costs, batch_tokens = {}, args.train_batch * args.length
    for gigabytes, results in waits.items():
        share, longest, costs[gigabytes] = (statistics.median(side) for side in zip(*results, strict=True))
        of_core = costs[gigabytes] * args.tokens_per_second / batch_tokens
        print(f"{gigabytes:>5} GB{share:>25.3%} {longest:>19.2%} {1e3 * costs[gigabytes]:>15.2f}{of_core:>11.2%}")
    worst = max(statistics.median(side[0] for side in results) for results in waits.values())
    remaining = "below" if worst < 0.01 else "ABOVE"
    print(f"cost of a batch, {large} GB over {small} GB: {costs[large] / costs[small]:.2f}; input wait {remaining} 1 %")


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--length", type=int, default=2048)
    flags.add_argument("--batch", type=int, default=128, help="rows a batch of the first table")
    flags.add_argument("--steps", type=int, default=100)
    flags.add_argument("--tokens-per-second", type=float, default=200_000)
    flags.add_argument("--train-batch", type=int, default=16, help="rows a batch of the second table")
    flags.add_argument("--train-steps", type=int, default=40)
    flags.add_argument("--repeats", type=int, default=3)
    flags.add_argument("--busy", type=int, default=0, help="processes that do nothing but use a core")
    args = flags.parse_args()
    others = [multiprocessing.Process(target=_spin, daemon=True) for _ in range(args.busy)]
    for other in others:
        other.start()
    try:
        with tempfile.TemporaryDirectory() as scratch:
            report(args, Path(scratch))
    finally:
        for other in others:
            other.kill()


if __name__ == "__main__":
    main()

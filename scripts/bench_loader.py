"""Loader tokens per second from page cache, against copying the same bytes, and its cost on 1 GB against 100 GB of rows.

    python scripts/bench_loader.py

The limit measured beside it is numpy copying rows of the same size out of the same file into int32, without schedule or checksums.
The large components are sparse files, so nothing like 100 GB of disk is used; reading rows of a hole costs what cached rows cost.
"""

import argparse
from fractions import Fraction
from pathlib import Path
import tempfile
import time
import zlib

import numpy as np

from diversity_jax.mixtures.loader import Loader
from diversity_jax.mixtures.manifest import Manifest, Shard, Split, VocabularyInfo


def sparse_component(folder: Path, name: str, gigabytes: float, length: int) -> Manifest:
    """A component of zeros with right checksums, whose shard takes no disk."""
    row_bytes = 2 * (length + 1)
    rows = int(gigabytes * 1e9 / row_bytes)
    (folder / name).mkdir(parents=True)
    with open(folder / name / "train-00000-of-00001.bin", "wb") as file:
        file.truncate(rows * row_bytes)
    np.full(rows, zlib.crc32(bytes(row_bytes)), "<u4").tofile(folder / name / "train-00000-of-00001.bin.crc32")
    shard = Shard(file="train-00000-of-00001.bin", rows=rows, sha256="")
    split = Split(documents=rows, tokens=rows * (length + 1), text_bytes=0, dropped_tokens=0, rows=rows, shards=(shard,))
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


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--length", type=int, default=2048)
    flags.add_argument("--batch", type=int, default=128)
    flags.add_argument("--steps", type=int, default=100)
    args = flags.parse_args()
    shares = [Fraction(8, 15), Fraction(2, 15), Fraction(2, 15), Fraction(1, 5)]
    print(f"{'size':>8}{'loader Mtok/s':>16}{'copy Mtok/s':>14}{'loader/copy':>13}")
    for gigabytes in (1, 100):
        with tempfile.TemporaryDirectory() as scratch:
            parts = [sparse_component(Path(scratch), f"part{i}", gigabytes / 4, args.length) for i in range(4)]
            speeds = []
            for _ in range(3):
                loader = Loader(parts, shares, batch_size=args.batch)
                last = int(parts[0].splits["train"].rows / args.batch)
                speeds.append((loader_speed(loader, last // 2, args.steps), copy_speed(parts[0], args.batch, args.steps)))
            loaded, copied = (max(side) / 1e6 for side in zip(*speeds, strict=True))
            print(f"{gigabytes:>5} GB{loaded:>16.0f}{copied:>14.0f}{loaded / copied:>13.2f}")


if __name__ == "__main__":
    main()

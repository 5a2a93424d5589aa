"""A permutation of all rows of a component without a list of them: every row draws a 64-bit key, and rows lie in key
order.

The keys of a piece's rows are a function of (seed, component, split, piece, row), so any process can compute them.
Independent keys put in order are a uniformly random permutation. Shard s of S holds the keys in [s / S, (s + 1) / S) of
their range: it is known where a row goes before any other row has been seen, and a shard is sorted by itself.

Tokens of conversations as they lie on disk: uint32, the id in the low 30 bits and two bits about it.

Attention stays inside an example because segments and positions are read from START; end-of-text may well stand within
one.

Rows on disk: raw little-endian tokens of fixed width, one CRC-32 a row beside them.
"""

from dataclasses import dataclass
import hashlib
from pathlib import Path
import zlib

import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import is_remote, join_path, writing
from diversity_jax.corpus.sampling import priorities
from diversity_jax.prepare.manifest import Manifest, Shard

_LEAST_SHARD_ROWS = 64  # keys are random: shards of fewer rows on average could come out empty


def row_keys(seed: int, component: str, split: str, piece: str, rows: int) -> np.ndarray:
    """Keys of a piece's rows, in the order of the rows: uint64 [rows]."""
    return priorities(0, rows, f"{seed}/{component}/{split}/{piece}")


def shard_count(rows: int, row_bytes: int, shard_bytes: int) -> int:
    """Number of shards of about `shard_bytes`."""
    return max(1, rows // max(_LEAST_SHARD_ROWS, shard_bytes // row_bytes))


def extent_of(keys: np.ndarray, shard: int, shards: int) -> tuple[int, int]:
    """First row and end of those that go to a shard: rows are in key order, so they lie one after the other."""
    first = np.searchsorted(keys, np.uint64(-(-(shard << 64) // shards))) if shard else 0
    end = np.searchsorted(keys, np.uint64(-(-(shard + 1 << 64) // shards))) if shard + 1 < shards else len(keys)
    return int(first), int(end)


DTYPE = "<u4"
TARGET = np.uint32(1 << 31)
"""On every token of an answer: what the loss counts. Never on the first token of an example."""
START = np.uint32(1 << 30)
"""On the first token of every example."""
ID_BITS = np.uint32((1 << 30) - 1)


_BLOCK_BYTES = 8 << 20


def write_shard(folder: str | Path, file: str, rows: np.ndarray, order: np.ndarray) -> Shard:
    """Writes `rows[order]` to one file, and one checksum a row beside it; beside `rows`, a block of them is in memory
    at a time.
    """
    digest, checksums = hashlib.sha256(), np.empty(len(order), "<u4")
    block_rows = max(1, _BLOCK_BYTES // rows[0].nbytes)
    with writing(join_path(folder, file)) as out:
        for start in range(0, len(order), block_rows):
            block = np.ascontiguousarray(rows[order[start : start + block_rows]])
            out.write(block.data)
            digest.update(block.data)
            checksums[start : start + len(block)] = row_checksums(block)
    with writing(join_path(folder, f"{file}.crc32")) as out:
        out.write(checksums.data)
    return Shard(file=file, rows=len(order), sha256=digest.hexdigest())


def row_checksums(rows: np.ndarray) -> np.ndarray:
    """CRC-32 of each row's bytes, uint32 [rows]; `rows` is C-contiguous [rows, tokens]."""
    data = memoryview(rows).cast("B")
    width = rows.shape[1] * rows.itemsize
    return np.fromiter((zlib.crc32(data[i : i + width]) for i in range(0, len(data), width)), np.uint32, len(rows))


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows that were read.

    Attributes:
      tokens: int32 [rows, L + 1].
      targets: of conversations, bool [rows, L + 1]: tokens that the loss counts; None: all of them.
      starts: of conversations, bool [rows, L + 1]: first tokens of examples; None: documents end at end-of-text.
    """

    tokens: np.ndarray
    targets: np.ndarray | None = None
    starts: np.ndarray | None = None


class RowReader:
    """Random access to the rows of one split of a prepared component, each verified against its checksum as it is
    read.
    """

    def __init__(self, manifest: Manifest, split: str = "train"):
        if split not in manifest.splits:
            raise InputError(
                f"{manifest.folder}: component {manifest.name!r} has no {split!r} rows; prepare it with some held out"
            )
        if is_remote(manifest.folder):
            raise InputError(
                f"{manifest.folder}: rows are read by memory map; copy the component to a local disk first"
            )
        manifest.check_sizes()
        self.manifest, self.rows = manifest, manifest.splits[split].rows
        self._shards = manifest.splits[split].shards
        self._starts = np.cumsum([0] + [shard.rows for shard in self._shards])
        dtype = np.dtype(manifest.dtype).newbyteorder("<")
        paths = [manifest.folder / shard.file for shard in self._shards]
        self._tokens = [
            np.memmap(path, dtype, "r", shape=(shard.rows, manifest.row_tokens))
            for path, shard in zip(paths, self._shards, strict=True)
        ]
        self._checksums = [
            _read_checksums(path.with_name(path.name + ".crc32"), shard.rows)
            for path, shard in zip(paths, self._shards, strict=True)
        ]

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Rows by number, int32 [len(rows), L + 1]; numbers past the last row start again at the first (next epoch).

        Raises:
          InputError: a row's checksum does not agree: the shard was damaged after it was prepared.
        """
        return self.read_with_flags(rows).tokens

    def read_with_flags(self, rows: np.ndarray) -> "Rows":
        """Rows by number as `read` gives them, and which of their tokens are targets and which begin an example.

        Raises:
          InputError: as `read`.
        """
        found = self._read(np.asarray(rows) % self.rows)
        if not self.manifest.chat:
            return Rows(tokens=found.astype(np.int32))
        return Rows(
            tokens=(found & ID_BITS).astype(np.int32), targets=(found & TARGET) != 0, starts=(found & START) != 0
        )

    def _read(self, rows: np.ndarray) -> np.ndarray:
        out = np.empty((len(rows), self.manifest.row_tokens), self.manifest.dtype)
        shard_of_row = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(shard_of_row):
            here = np.flatnonzero(shard_of_row == number)
            inside = rows[here] - self._starts[number]
            found = self._tokens[number][inside]
            wrong = np.flatnonzero(row_checksums(found) != self._checksums[number][inside])
            if len(wrong):
                path = self.manifest.folder / self._shards[number].file
                raise InputError(
                    f"{path}: row {inside[wrong[0]]} is damaged (checksum); prepare component {self.manifest.name!r} "
                    "again"
                )
            out[here] = found
        return out


def _read_checksums(path: Path, rows: int) -> np.ndarray:
    if not path.exists() or path.stat().st_size != 4 * rows:
        raise InputError(f"{path}: the rows' checksums are missing or cut short; prepare the component again")
    return np.memmap(path, "<u4", "r", shape=(rows,))

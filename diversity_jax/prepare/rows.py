"""Rows on disk: raw little-endian tokens of fixed width, one CRC-32 a row beside them, in the order of random keys.

Every row draws a 64-bit key that is a function of (seed, component, split, chunk, row), so any process can compute it;
rows in key order are a uniformly random permutation.

Tokens of conversations are uint32: the id in the low 30 bits, and two flags. Attention stays inside an example because
segments and positions are read from START; end-of-text may well stand within one.
"""

from dataclasses import dataclass
from pathlib import Path
import zlib

import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import is_remote
from diversity_jax.corpus.sampling import priorities
from diversity_jax.prepare.manifest import Manifest

FLAGGED_DTYPE = "<u4"
TARGET = np.uint32(1 << 31)
"""Flag of every token of an answer: what the loss counts. Never on the first token of an example."""
START = np.uint32(1 << 30)
"""Flag of the first token of every example."""
ID_BITS = np.uint32((1 << 30) - 1)


def row_keys(seed: int, component: str, split: str, chunk: str, rows: int) -> np.ndarray:
    """Keys of a chunk's rows, in the order of the rows: uint64 [rows]."""
    return priorities(0, rows, f"{seed}/{component}/{split}/{chunk}")


def row_checksums(rows: np.ndarray) -> np.ndarray:
    """CRC-32 of each row's bytes, uint32 [rows]; `rows` is C-contiguous [rows, tokens]."""
    data = rows.reshape(-1).view(np.uint8).data
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
    """Random access to the rows of one split of a prepared component, each verified against its checksum when read.

    Raises:
      InputError: there is no such split, the folder is remote, or a shard is missing or cut short.
    """

    def __init__(self, manifest: Manifest, split: str = "train"):
        if split not in manifest.splits:
            raise InputError(
                f"{manifest.folder}: {manifest.name!r} has no {split!r} rows; prepare it with some held out"
            )
        if is_remote(manifest.folder):
            raise InputError(f"{manifest.folder}: rows are memory-mapped; copy the component to a local disk first")
        manifest.check_sizes()
        self.manifest, self.rows = manifest, manifest.splits[split].rows
        shards = manifest.splits[split].shards
        self._paths = [Path(manifest.folder, shard.file) for shard in shards]
        self._starts = np.cumsum([0] + [shard.rows for shard in shards])
        dtype = np.dtype(manifest.dtype).newbyteorder("<")
        self._tokens, self._checksums = [], []
        for path, shard in zip(self._paths, shards, strict=True):
            checksums = path.with_name(path.name + ".crc32")
            if not checksums.exists() or checksums.stat().st_size != 4 * shard.rows:
                raise InputError(f"{checksums}: is missing or cut short; prepare the component again")
            self._tokens.append(np.memmap(path, dtype, "r", shape=(shard.rows, manifest.row_tokens)))
            self._checksums.append(np.memmap(checksums, "<u4", "r", shape=(shard.rows,)))

    def read(self, rows: np.ndarray) -> Rows:
        """Rows by number; numbers past the last row start again at the first (next epoch).

        Raises:
          InputError: a row's checksum does not agree: the shard was damaged after it was prepared.
        """
        rows = np.asarray(rows) % self.rows
        out = np.empty((len(rows), self.manifest.row_tokens), self.manifest.dtype)
        shard_of_row = np.searchsorted(self._starts, rows, side="right") - 1
        for shard in np.unique(shard_of_row):
            positions = np.flatnonzero(shard_of_row == shard)
            numbers = rows[positions] - self._starts[shard]
            stored = self._tokens[shard][numbers]
            damaged = np.flatnonzero(row_checksums(stored) != self._checksums[shard][numbers])
            if len(damaged):
                where = f"{self._paths[shard]}: row {numbers[damaged[0]]}"
                raise InputError(f"{where} is damaged (checksum); prepare component {self.manifest.name!r} again")
            out[positions] = stored
        if not self.manifest.chat:
            return Rows(tokens=out.astype(np.int32))
        return Rows(tokens=(out & ID_BITS).astype(np.int32), targets=(out & TARGET) != 0, starts=(out & START) != 0)

"""Rows on disk or in a bucket: little-endian tokens of fixed width in the order of random keys, with CRC-32 checksums.

Every row has a random 64-bit key that is a function of (seed, component, split, chunk, row), so any process can compute
it; rows in key order are a uniformly random permutation.

Tokens of conversations are uint32: the id in the low 30 bits, and two flags. Attention stays inside an example because
segments and positions are derived from START; end-of-text may occur within one.

Of rows in a bucket a host requests the byte ranges of its own before they are used, and caches them on its disk up to a
limit.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
import contextlib
from dataclasses import dataclass
import mmap
import os
from pathlib import Path
import threading
from typing import Any
import weakref
import zlib

import numpy as np

from diversity_jax.core.buckets import cache_folder
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import join_path, make_folder, read_range
from diversity_jax.core.stores import is_remote
from diversity_jax.corpus.sampling import priorities
from diversity_jax.prepare.manifest import Manifest, Shard

CACHE_GB = 8.0
_REQUEST_BYTES = 4 << 20  # of adjacent rows in one request, at most
_threads = ThreadPoolExecutor(16, thread_name_prefix="rows")  # requests at once, over all components
_checksum_threads = ThreadPoolExecutor(4, thread_name_prefix="checksums")  # threads of the other pool wait for these


class RowCache:
    """Rows on this host's disk, in a sparse file for each shard; rows that are not there have no valid checksum.

    Processes of one host share it. Above the limit, the least recently written shards are removed.
    """

    def __init__(self, manifest: Manifest, limit_bytes: int):
        self._root, self._limit = cache_folder() / "rows", limit_bytes
        self.folder = self._root / manifest.content_hash[:16]
        self._row_bytes, self._written = manifest.row_bytes, 0
        self._lock = threading.Lock()
        make_folder(self.folder)

    def has(self, file: str) -> bool:
        """Whether there is any row of a shard."""
        return (self.folder / file).exists()

    def read(self, file: str, row: int, crc32: int) -> bytes | None:
        """A row; None where it is not there."""
        try:
            with open(self.folder / file, "rb", buffering=0) as shard:
                data = os.pread(shard.fileno(), self._row_bytes, row * self._row_bytes)
        except FileNotFoundError:
            return None
        return data if len(data) == self._row_bytes and zlib.crc32(data) == crc32 else None

    def write(self, file: str, row: int, data: bytes) -> None:
        """Stores rows from number `row` on; a full disk is no error."""
        with contextlib.suppress(OSError):
            descriptor = os.open(self.folder / file, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                os.pwrite(descriptor, data, row * self._row_bytes)
            finally:
                os.close(descriptor)
        with self._lock:
            self._written += len(data)
            is_due = self._written > self._limit // 16
            if is_due:
                self._written = 0
        if is_due:
            self._evict(self.folder / file)

    def _evict(self, in_use: Path) -> None:
        files = []
        for path in self._root.rglob("*.bin"):
            with contextlib.suppress(FileNotFoundError):  # another process evicts too
                status = path.stat()
                files.append((status.st_mtime, 512 * status.st_blocks, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self._limit * 15 // 16:
                break
            if path != in_use:
                path.unlink(missing_ok=True)
                total -= size


class BucketShards:
    """The shards of one split of a component in a bucket, for `RowReader`.

    The checksums of a shard are fetched in one request: four bytes a row.

    Args:
      cache_gb: of this host's disk; 0: none.
    """

    def __init__(self, manifest: Manifest, split: str, cache_gb: float):
        self._manifest, self._shards = manifest, manifest.splits[split].shards
        self._row_bytes = manifest.row_bytes
        self._cache = RowCache(manifest, int(cache_gb * 1e9)) if cache_gb else None
        self._checksums: dict[int, Future[np.ndarray]] = {}
        self._requests: dict[tuple[int, int], Future[dict[int, bytes]]] = {}  # by (shard, row), of several rows each
        self._lock = threading.Lock()

    def _url(self, shard: int, ending: str = "") -> str:
        return str(join_path(self._manifest.folder, self._shards[shard].file + ending))

    def _checksum(self, shard: int) -> Future[np.ndarray]:
        with self._lock:
            if shard not in self._checksums:
                self._checksums[shard] = _checksum_threads.submit(self._read_checksums, shard)
            return self._checksums[shard]

    def _read_checksums(self, shard: int) -> np.ndarray:
        return np.frombuffer(read_range(self._url(shard, ".crc32"), 0, 4 * self._shards[shard].rows), "<u4")

    def prefetch(self, shard: int, rows: Sequence[int]) -> None:
        """Begins to fetch rows of a shard, ascending, unless they are requested already."""
        self._checksum(shard)
        most = max(1, _REQUEST_BYTES // self._row_bytes)
        with self._lock:
            runs: list[list[int]] = []
            for row in (row for row in rows if (shard, row) not in self._requests):
                if runs and runs[-1][-1] == row - 1 and len(runs[-1]) < most:
                    runs[-1].append(row)
                else:
                    runs.append([row])
            for run in runs:
                request = _threads.submit(self._fetch, shard, run)
                self._requests.update(dict.fromkeys(((shard, row) for row in run), request))

    def _fetch(self, shard: int, run: Sequence[int]) -> dict[int, bytes]:
        """Adjacent rows; one request fetches those that the cache lacks, from the first to the last of them."""
        file, size = self._shards[shard].file, self._row_bytes
        rows_read: dict[int, bytes] = {}
        if self._cache and self._cache.has(file):
            known = self._checksum(shard).result()
            cached = ((row, self._cache.read(file, row, int(known[row]))) for row in run)
            rows_read = {row: data for row, data in cached if data is not None}
        missing = [row for row in run if row not in rows_read]
        if missing:
            first, count = missing[0], missing[-1] + 1 - missing[0]
            data = read_range(self._url(shard), first * size, count * size)
            for i in range(count):
                rows_read[first + i] = data[i * size : (i + 1) * size]
            if self._cache:
                self._cache.write(file, first, data)
        return rows_read

    def read(self, shard: int, rows: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Rows of a shard as they are stored [rows, row_tokens], and their checksums as recorded, uint32 [rows].

        Raises:
          InputError: the shard is missing, or the store failed.
        """
        self.prefetch(shard, sorted(set(rows)))
        with self._lock:
            requests = {row: self._requests.pop((shard, row)) for row in set(rows)}
        try:
            data = b"".join(requests[row].result()[row] for row in rows)
            checksums = self._checksum(shard).result()
        except InputError:
            with self._lock:  # so that another attempt requests them again
                self._checksums.pop(shard, None)
            raise
        dtype: Any = np.dtype(self._manifest.dtype).newbyteorder("<")
        return np.frombuffer(data, dtype).reshape(len(rows), -1), checksums[np.asarray(rows)]


FLAGGED_DTYPE = "<u4"
TARGET = np.uint32(1 << 31)
"""Flag of every token of an answer, which the loss counts; never on the first token of an example."""
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


def release_pages(values: np.ndarray) -> None:
    """Releases the memory of a mapped file's pages; does nothing for arrays in memory."""
    base: Any = values
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap):
        base.madvise(mmap.MADV_DONTNEED)


class LinkedRows:
    """Rows of one file of ids that begin at `offsets`, in tokens; read as `rows[numbers]`.

    They are read, not mapped: they are all over the file, and with each mapped row the kernel loads up to megabytes
    around it that count as this process's memory.
    """

    def __init__(self, path: Path, dtype: Any, offsets: np.ndarray, row_tokens: int, where: str):
        self._dtype, self._offsets, self._row_tokens, self._where = np.dtype(dtype), offsets, row_tokens, where
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._descriptor)
        self._last = os.fstat(self._descriptor).st_size // self._dtype.itemsize - row_tokens

    def __getitem__(self, numbers: np.ndarray) -> np.ndarray:
        """Rows by number, [rows, row_tokens].

        Raises:
          InputError: one is outside the file.
        """
        rows = np.empty((len(numbers), self._row_tokens), self._dtype)
        for row, begin in zip(rows, self._offsets[numbers].tolist(), strict=True):
            is_inside = 0 <= begin <= self._last
            if not is_inside or os.preadv(self._descriptor, [row], begin * self._dtype.itemsize) != row.nbytes:
                raise InputError(f"{self._where}: has a row that lies outside its file; prepare the component again")
        return rows


class RowReader:
    """Random access to the rows of one split of a prepared component, each verified against its checksum when read.

    Rows on a disk are memory-mapped; those in a bucket are fetched by `BucketShards`.

    Args:
      cache_gb: of this host's disk, for rows in a bucket; 0: none.

    Raises:
      InputError: there is no such split, or a shard is missing or cut short.
    """

    def __init__(self, manifest: Manifest, split: str = "train", *, cache_gb: float = CACHE_GB):
        if split not in manifest.splits:
            raise InputError(
                f"{manifest.folder}: {manifest.name!r} has no {split!r} rows; prepare it with some held out"
            )
        self.manifest, self.rows = manifest, manifest.splits[split].rows
        self._shards = manifest.splits[split].shards
        self._starts = np.cumsum([0] + [shard.rows for shard in self._shards])
        manifest.check_sizes()
        self._bucket = BucketShards(manifest, split, cache_gb) if is_remote(manifest.folder) else None
        self._maps: dict[int, tuple[np.ndarray | LinkedRows, np.ndarray]] = {}
        self._mapped: list[np.ndarray] = []
        for number, shard in enumerate(self._shards):
            if self._bucket is None and shard.file not in manifest.left_out_shards:
                self._maps[number] = self._map(shard)

    def _mapping(self, path: Path, dtype: Any, count: int) -> np.ndarray:
        self._mapped.append(np.memmap(path, dtype, "r", shape=(count,)))
        return self._mapped[-1].view(np.ndarray)

    def _map(self, shard: Shard) -> tuple[np.ndarray | LinkedRows, np.ndarray]:
        path, row_tokens = Path(self.manifest.folder, shard.file), self.manifest.row_tokens
        checksums = path.with_name(path.name + ".crc32")
        if not checksums.exists() or checksums.stat().st_size != 4 * shard.rows:
            raise InputError(f"{checksums}: is missing or cut short; prepare the component again")
        dtype = np.dtype(self.manifest.dtype).newbyteorder("<")
        rows: np.ndarray | LinkedRows
        if self.manifest.linked:  # ids of int32 are not negative
            offsets = self._mapping(path, "<i8", shard.rows)
            rows = LinkedRows(Path(self.manifest.linked["file"]), dtype, offsets, row_tokens, str(path))
        else:
            rows = self._mapping(path, dtype, shard.rows * row_tokens).reshape(-1, row_tokens)
        return rows, self._mapping(checksums, "<u4", shard.rows)

    def _stored(self, shard: int, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows of a shard with their recorded checksums."""
        if self._bucket:
            return self._bucket.read(shard, numbers.tolist())
        if shard not in self._maps:
            path = join_path(self.manifest.folder, self._shards[shard].file)
            raise InputError(f"{path}: was not fetched, since fewer steps were asked for; fetch more --steps")
        tokens, checksums = self._maps[shard]
        return tokens[numbers], checksums[numbers]

    def _by_shard(self, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(shard, positions in `rows`, numbers in the shard) of rows below `self.rows`."""
        shard_of_row = np.searchsorted(self._starts, rows, side="right") - 1
        for shard in np.unique(shard_of_row):
            positions = np.flatnonzero(shard_of_row == shard)
            yield int(shard), positions, rows[positions] - self._starts[shard]

    @property
    def is_remote(self) -> bool:
        """Whether reading waits for a bucket, so that `prefetch` helps."""
        return self._bucket is not None

    def shards_of(self, rows: np.ndarray) -> set[str]:
        """Files that hold these rows."""
        return {self._shards[shard].file for shard, _, _ in self._by_shard(np.asarray(rows) % self.rows)}

    def prefetch(self, rows: np.ndarray) -> None:
        """Begins to fetch rows that will be read soon, by number as in `read`; nothing for rows on a disk."""
        if self._bucket:
            for shard, _, numbers in self._by_shard(np.asarray(rows) % self.rows):
                self._bucket.prefetch(shard, np.unique(numbers).tolist())

    def release(self) -> None:
        """Releases the memory of pages that were read: the kernel counts mapped files as this process's."""
        for values in self._mapped:
            release_pages(values)

    def read(self, rows: np.ndarray) -> Rows:
        """Rows by number; numbers beyond the last row start again at the first (next epoch).

        Raises:
          InputError: a row's checksum does not agree: the shard was damaged after it was prepared; or the store failed.
        """
        rows = np.asarray(rows) % self.rows
        dtype = self.manifest.dtype if self.manifest.chat else np.int32
        out = np.empty((len(rows), self.manifest.row_tokens), dtype)
        for shard, positions, numbers in self._by_shard(rows):
            stored, checksums = self._stored(shard, numbers)
            damaged = np.flatnonzero(row_checksums(stored) != checksums)
            if len(damaged):
                path = join_path(self.manifest.folder, self._shards[shard].file)
                where = f"{self.manifest.linked.get('file', path)}: row {numbers[damaged[0]]}"
                raise InputError(f"{where} is damaged (checksum); prepare component {self.manifest.name!r} again")
            out[positions] = stored
        if not self.manifest.chat:
            return Rows(tokens=out)
        return Rows(tokens=(out & ID_BITS).astype(np.int32), targets=(out & TARGET) != 0, starts=(out & START) != 0)

"""Rows that lie in a bucket: a host asks for the byte ranges of its own rows, ahead of their use, and keeps them on its
disk up to a limit.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
import contextlib
import os
from pathlib import Path
import threading
from typing import Any
import zlib

import numpy as np

from diversity_jax.core.buckets import cache_folder
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import join_path, make_folder, read_range
from diversity_jax.prepare.manifest import Manifest

CACHE_GB = 8.0
_REQUEST_BYTES = 4 << 20  # rows that lie one after the other are asked for together, up to so many
_THREADS = 16  # requests under way at once, over all components
_threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="rows")
_checksum_threads = ThreadPoolExecutor(4, thread_name_prefix="checksums")  # for which threads of the other pool wait


class RowCache:
    """Rows on this host's disk, in a sparse file a shard; which are there, their checksums tell.

    Processes of one host share it. Over the limit, the shards that were not read for the longest time go.
    """

    def __init__(self, manifest: Manifest, limit_bytes: int):
        self._root, self._limit = cache_folder() / "rows", limit_bytes
        self.folder = self._root / manifest.content_hash[:16]
        self._row_bytes, self._written = manifest.row_bytes, 0
        self._lock = threading.Lock()
        make_folder(self.folder)

    def has(self, file: str) -> bool:
        """Whether any row of a shard was kept."""
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
        """Keeps rows that begin at number `row`; a full disk keeps none and stops nothing."""
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
        found = []
        for path in self._root.rglob("*.bin"):
            with contextlib.suppress(FileNotFoundError):  # another process evicts too
                status = path.stat()
                found.append((status.st_mtime, 512 * status.st_blocks, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self._limit * 15 // 16:
                break
            if path != in_use:
                path.unlink(missing_ok=True)
                total -= size


class BucketShards:
    """The shards of one split of a component in a bucket, as `rows.RowReader` reads them.

    Checksums are fetched whole, shard by shard: four bytes a row.

    Args:
      cache_gb: of this host's disk; 0: none.
    """

    def __init__(self, manifest: Manifest, split: str, cache_gb: float):
        self._manifest, self._shards = manifest, manifest.splits[split].shards
        self._row_bytes = manifest.row_bytes
        self._cache = RowCache(manifest, int(cache_gb * 1e9)) if cache_gb else None
        self._checksums: dict[int, Future[np.ndarray]] = {}
        self._ahead: dict[tuple[int, int], Future[dict[int, bytes]]] = {}  # (shard, row) -> the request it is part of
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
        """Begins to fetch rows of a shard, ascending, which are not here yet."""
        self._checksum(shard)
        most = max(1, _REQUEST_BYTES // self._row_bytes)
        with self._lock:
            missing = [row for row in rows if (shard, row) not in self._ahead]
            runs: list[list[int]] = []
            for row in missing:
                if runs and runs[-1][-1] == row - 1 and len(runs[-1]) < most:
                    runs[-1].append(row)
                else:
                    runs.append([row])
            for run in runs:
                request = _threads.submit(self._fetch, shard, run)
                self._ahead.update(dict.fromkeys(((shard, row) for row in run), request))

    def _fetch(self, shard: int, run: Sequence[int]) -> dict[int, bytes]:
        """Adjacent rows, those that the cache lacks in one request from the first to the last of them."""
        file, size = self._shards[shard].file, self._row_bytes
        found: dict[int, bytes] = {}
        if self._cache and self._cache.has(file):
            known = self._checksum(shard).result()
            cached = ((row, self._cache.read(file, row, int(known[row]))) for row in run)
            found = {row: data for row, data in cached if data is not None}
        missing = [row for row in run if row not in found]
        if missing:
            first, count = missing[0], missing[-1] + 1 - missing[0]
            data = read_range(self._url(shard), first * size, count * size)
            for i in range(count):
                found[first + i] = data[i * size : (i + 1) * size]
            if self._cache:
                self._cache.write(file, first, data)
        return found

    def read(self, shard: int, rows: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Rows of a shard as they are stored [rows, row_tokens], and their checksums as recorded, uint32 [rows].

        Raises:
          InputError: the shard is missing, or the store failed.
        """
        self.prefetch(shard, sorted(set(rows)))
        with self._lock:
            requests = {row: self._ahead.pop((shard, row)) for row in set(rows)}
        try:
            data = b"".join(requests[row].result()[row] for row in rows)
            checksums = self._checksum(shard).result()
        except InputError:
            with self._lock:  # asked for again, should somebody try again
                self._checksums.pop(shard, None)
            raise
        dtype: Any = np.dtype(self._manifest.dtype).newbyteorder("<")
        return np.frombuffer(data, dtype).reshape(len(rows), -1), checksums[np.asarray(rows)]

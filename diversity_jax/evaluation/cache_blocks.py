"""Allocates blocks of the paged key/value cache, and makes the block lists that compiled programs take."""

from collections.abc import Sequence
import ctypes
import heapq
import os
from pathlib import Path
import sys
from typing import NamedTuple

import jax
from jax.sharding import Mesh
import numpy as np
import psutil

from diversity_jax.core.errors import InputError
from diversity_jax.model.cache import BLOCK_TOKENS, BlockReads, block_bytes
from diversity_jax.model.config import LlamaConfig

_FREE_SHARE = 0.8  # of the free memory is used by the cache; the rest is for activations and other processes
_LEAST_PAIRS = 4  # fewest blocks read at once; on an accelerator per row
_MADV_DONTNEED = 4
_GROUPS = "/sys/fs/cgroup/"
_CONTROL_GROUP = (  # files of the memory limit and usage, in control groups of version 2 and 1
    (_GROUPS + "memory.max", _GROUPS + "memory.current"),
    (_GROUPS + "memory/memory.limit_in_bytes", _GROUPS + "memory/memory.usage_in_bytes"),
)


def blocks_for(tokens: int) -> int:
    """Number of blocks that hold this number of tokens."""
    return -(-tokens // BLOCK_TOKENS)


def free_bytes(device: jax.Device) -> int:
    """Free memory of a device; for a CPU of the host, within the limit of its control group."""
    if stats := device.memory_stats():
        return stats["bytes_limit"] - stats["bytes_in_use"]
    free = [psutil.virtual_memory().available]
    for limit, used in _CONTROL_GROUP:
        try:
            free.append(int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return max(min(free), 0)


def blocks_that_fit(config: LlamaConfig, mesh: Mesh, memory_gb: float | None) -> int:
    """Number of blocks of each row shard that fit into memory.

    Args:
      memory_gb: memory of each device to use; None: most of the free memory.
    """
    devices = jax.local_devices() if mesh.is_multi_process else list(mesh.devices.flat)
    on_host = devices[0].platform == "cpu"  # all devices then share one memory
    if memory_gb is None:
        available = _FREE_SHARE * min(map(free_bytes, devices)) / (len(devices) if on_host else 1)
    else:
        available = memory_gb * 1e9
    return int(available // (block_bytes(config) / mesh.shape["tensor"]))


def refuse_too_small(config: LlamaConfig, fit: int, tokens: int, memory_gb: float | None) -> None:
    """Raises `InputError` where not even one sequence of this number of tokens fits into `fit` blocks."""
    if fit > blocks_for(tokens):  # block 0 is reserved
        return
    needed, available = (blocks * block_bytes(config) / 1e9 for blocks in (blocks_for(tokens) + 1, fit))
    source = f"{available:.3g} GB of memory can be used" if memory_gb is None else f"memory_gb={memory_gb:g}"
    remedy = "lower model.max_length" if memory_gb is None else "raise it, or lower model.max_length"
    raise InputError(
        f"{source}: the keys and values of one request of {tokens:,} tokens take {needed:.3g} GB; {remedy}"
    )


class BlockPool:
    """Free blocks of each row shard, lowest number first, so that memory never needed is never touched.

    Block 0 is reserved: padding rows write into it.
    """

    def __init__(self, blocks: int, shards: int):
        self.blocks = blocks
        self._free = [list(range(1, blocks)) for _ in range(shards)]

    def free(self, shard: int) -> int:
        """Number of free blocks of a shard."""
        return len(self._free[shard])

    def take(self, shard: int, count: int) -> list[int]:
        """Allocates blocks; at least `count` must be free."""
        return [heapq.heappop(self._free[shard]) for _ in range(count)]

    def give_back(self, shard: int, blocks: Sequence[int]) -> None:
        for block in blocks:
            heapq.heappush(self._free[shard], block)


class CacheRow(NamedTuple):
    """A row of a compiled call: tokens of one sequence from position `start` on, attending to positions below `end`."""

    shard: int
    blocks: Sequence[int]
    start: int
    end: int


class RowLayout:
    """Assigns the rows of one call to indices of its arrays.

    Args:
      sizes: numbers of rows per shard that programs are compiled for, ascending; the first that suffices is used.

    Attributes:
      indices: of each row, in arrays of `total` rows.
    """

    def __init__(self, rows: Sequence[CacheRow], shards: int, sizes: Sequence[int]):
        counts = [0] * shards
        positions = []
        for row in rows:
            positions.append(counts[row.shard])
            counts[row.shard] += 1
        self._rows, self._shards = rows, shards
        self.size = next(size for size in sizes if size >= max(counts))
        self.indices = [row.shard * self.size + position for row, position in zip(rows, positions, strict=True)]
        self.total = self.size * shards

    def array(self, values: Sequence[int], dtype: type = np.int32) -> np.ndarray:
        """One value per row, 0 for padding."""
        out: np.ndarray = np.zeros(self.total, dtype)
        out[self.indices] = values
        return out

    def written(self, tokens: int, steps: int) -> np.ndarray:
        """Int32 [steps, total]: the block of each row's `tokens` tokens of a step; 0 past the sequence's blocks."""
        out = np.zeros((steps, self.total), np.int32)
        for index, row in zip(self.indices, self._rows, strict=True):
            for step in range(steps):
                number = (row.start + step * tokens) // BLOCK_TOKENS
                out[step, index] = row.blocks[number] if number < len(row.blocks) else 0
        return out

    def reads(self, longest: int, window: int | None, *, on_host: bool) -> BlockReads:
        """The blocks that rows attend to.

        Args:
          longest: blocks of the longest sequence.
          window: tokens that all layers attend to; None: all.
          on_host: on a CPU fewer blocks are read at once, whose copies stay in a core's cache.
        """
        at_once = max(_LEAST_PAIRS, self.size * (1 if on_host else _LEAST_PAIRS))
        rounds = -(-self.size * longest // at_once)
        shape = (self._shards, rounds * at_once)
        out = np.zeros((3, *shape), np.int32)
        out[1] = self.size
        filled = [0] * self._shards
        for index, row in zip(self.indices, self._rows, strict=True):
            first = 0 if window is None else max(0, row.start - window + 1) // BLOCK_TOKENS
            numbers = np.arange(first, min(blocks_for(row.end), len(row.blocks)))
            begin = filled[row.shard]
            filled[row.shard] = end = begin + len(numbers)
            out[0, row.shard, begin:end] = np.asarray(row.blocks, np.int32)[numbers]
            out[1, row.shard, begin:end] = index % self.size
            out[2, row.shard, begin:end] = numbers * BLOCK_TOKENS
        used = -(-np.array(filled, np.int32) // at_once)
        blocks, row_numbers, starts = out.reshape(3, -1, at_once)
        return BlockReads(blocks, row_numbers, starts, used.astype(np.int32))


def release_zeros(array: jax.Array) -> None:
    """Returns the memory of an array of zeros to the system until it is written to; on Linux CPUs only.

    Dropped pages read as zeros, so the array does not change; unused blocks of a cache then take no memory.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    page = os.sysconf("SC_PAGE_SIZE")
    for shard in jax.block_until_ready(array).addressable_shards:
        if shard.device.platform == "cpu":
            start = shard.data.unsafe_buffer_pointer()
            first, last = -(-start // page) * page, (start + shard.data.nbytes) // page * page
            if last > first:
                libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), _MADV_DONTNEED)

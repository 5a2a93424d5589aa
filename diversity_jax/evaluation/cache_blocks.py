"""Blocks of the key/value cache: how many there are, which sequence holds which, and their lists for programs."""

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

_FREE_SHARE = 0.8  # of the memory that is free when the cache is made; the rest is for activations and other programs
_LEAST_PAIRS = 4  # blocks read at once at least, and on an accelerator so many for every row
_MADV_DONTNEED = 4
_GROUPS = "/sys/fs/cgroup/"
_CONTROL_GROUP = (  # limit and use, in both versions of control groups
    (_GROUPS + "memory.max", _GROUPS + "memory.current"),
    (_GROUPS + "memory/memory.limit_in_bytes", _GROUPS + "memory/memory.usage_in_bytes"),
)


def blocks_for(tokens: int) -> int:
    """Blocks that so many tokens take."""
    return -(-tokens // BLOCK_TOKENS)


def free_bytes(device: jax.Device) -> int:
    """Memory of a device that nobody uses; of the host for a CPU, within the limit of its control group."""
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
    """Blocks of each part of the rows that the memory of its devices holds.

    Args:
      memory_gb: of each device; None: most of what is free.
    """
    devices = jax.local_devices() if mesh.is_multi_process else list(mesh.devices.flat)
    on_host = devices[0].platform == "cpu"  # where all devices share one memory
    if memory_gb is None:
        available = _FREE_SHARE * min(map(free_bytes, devices)) / (len(devices) if on_host else 1)
    else:
        available = memory_gb * 1e9
    return int(available // (block_bytes(config) / mesh.shape["tensor"]))


def refuse_too_small(config: LlamaConfig, fit: int, tokens: int, memory_gb: float | None) -> None:
    """Raises `InputError` where not even one sequence of so many tokens fits."""
    if fit > blocks_for(tokens):  # one block is nobody's
        return
    needed, there = (blocks * block_bytes(config) / 1e9 for blocks in (blocks_for(tokens) + 1, fit))
    source = f"{there:.3g} GB of memory can be used" if memory_gb is None else f"memory_gb={memory_gb:g}"
    remedy = "lower model.max_length" if memory_gb is None else "raise it, or lower model.max_length"
    raise InputError(
        f"{source}: the keys and values of one request of {tokens:,} tokens take {needed:.3g} GB; {remedy}"
    )


class BlockPool:
    """Free blocks of each part of the rows, the lowest first, so that what was never needed is never touched.

    Block 0 is nobody's: there goes what rows write that are no sequence's.
    """

    def __init__(self, blocks: int, shards: int):
        self.blocks = blocks
        self._free = [list(range(1, blocks)) for _ in range(shards)]

    def free(self, shard: int) -> int:
        """How many are free."""
        return len(self._free[shard])

    def take(self, shard: int, count: int) -> list[int]:
        """So many blocks; there must be that many."""
        return [heapq.heappop(self._free[shard]) for _ in range(count)]

    def give_back(self, shard: int, blocks: Sequence[int]) -> None:
        for block in blocks:
            heapq.heappush(self._free[shard], block)


class CacheRow(NamedTuple):
    """A row of a compiled call: the next tokens of one sequence, from position `start` on, of which it reads `end`."""

    shard: int
    blocks: Sequence[int]
    start: int
    end: int


class RowLayout:
    """Where the rows of one call lie in its arrays.

    Args:
      sizes: numbers of rows of each part that programs are compiled for; the least that is enough is taken.
    """

    def __init__(self, rows: Sequence[CacheRow], shards: int, sizes: Sequence[int]):
        counts = [0] * shards
        places = []
        for row in rows:
            places.append((row.shard, counts[row.shard]))
            counts[row.shard] += 1
        self._rows, self._shards = rows, shards
        self.size = next(size for size in sizes if size >= max(counts))
        self.places = [shard * self.size + within for shard, within in places]  # of each row in an array of all
        self.total = self.size * shards

    def array(self, values: Sequence[int], dtype: type = np.int32) -> np.ndarray:
        out: np.ndarray = np.zeros(self.total, dtype)
        out[self.places] = values
        return out

    def written(self, tokens: int, steps: int) -> np.ndarray:
        """int32 steps x rows: the block of each row's next tokens, `tokens` in a step; 0 past the sequence's blocks."""
        out = np.zeros((steps, self.total), np.int32)
        for index, row in zip(self.places, self._rows, strict=True):
            for step in range(steps):
                number = (row.start + step * tokens) // BLOCK_TOKENS
                out[step, index] = row.blocks[number] if number < len(row.blocks) else 0
        return out

    def reads(self, longest: int, window: int | None, *, on_host: bool) -> BlockReads:
        """The blocks that rows see.

        Args:
          longest: blocks of the longest sequence.
          window: tokens that all layers look back on; None: all.
          on_host: few blocks at once, whose copies stay in a core's cache.
        """
        at_once = max(_LEAST_PAIRS, self.size * (1 if on_host else _LEAST_PAIRS))
        rounds = -(-self.size * longest // at_once)
        shape = (self._shards, rounds * at_once)
        out = np.zeros((3, *shape), np.int32)
        out[1] = self.size
        filled = [0] * self._shards
        for index, row in zip(self.places, self._rows, strict=True):
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
    """Gives the memory of an array of zeros on a Linux host back until it is written to; elsewhere does nothing.

    Pages that are dropped read as zeros again, so the array's contents stay. What a cache does not use then costs
    nothing.
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

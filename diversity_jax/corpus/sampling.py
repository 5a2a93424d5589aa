"""Uniform samples without replacement, the same whether records are looked up or streamed.

A record's priority is the output of a counter-based generator (SplitMix64) for its position and the seed; the records
of lowest priority are the sample.
"""

from collections.abc import Iterator
import hashlib
import heapq
from typing import Generic, TypeVar

import numpy as np

T = TypeVar("T")

_GAMMA = np.uint64(0x9E3779B97F4A7C15)  # of SplitMix64
_CHUNK = 1 << 20  # priorities computed at once


def priorities(first: int, count: int, seed: int | str) -> np.ndarray:
    """Priorities of the records at positions `first` to `first + count - 1`: uint64[count], uniform.

    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014), mixing function variant 13.
    """
    key = np.uint64(int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:8], "little"))
    x = np.arange(first, first + count, dtype=np.uint64)
    with np.errstate(over="ignore"):
        x = key + (x + np.uint64(1)) * _GAMMA
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def lowest(total: int, size: int, seed: int) -> np.ndarray:
    """Positions of the `size` records of lowest priority among `total`: int64[min(size, total)], lowest first.

    Needs memory for `size` positions, not for `total`.
    """
    values, positions = np.empty(0, np.uint64), np.empty(0, np.int64)
    for first in range(0, total, max(_CHUNK, size)):
        count = min(max(_CHUNK, size), total - first)
        values = np.concatenate([values, priorities(first, count, seed)])
        positions = np.concatenate([positions, np.arange(first, first + count)])
        if len(values) > size:
            chosen = np.argpartition(values, size - 1)[:size]
            values, positions = values[chosen], positions[chosen]
    return positions[np.lexsort((positions, values))]


class Lowest(Generic[T]):
    """Keeps the `size` values of lowest priority out of a stream of unknown length."""

    def __init__(self, size: int, seed: int):
        self._size, self._seed = size, seed
        self._heap: list[tuple[int, int, T]] = []  # negated, so that the highest priority comes first

    def wanted(self, first: int, count: int) -> Iterator[tuple[int, int]]:
        """(offset from `first`, priority) of those of `count` consecutive positions that can still enter; values added
        during the iteration are considered.
        """
        values = priorities(first, count, self._seed)
        full = len(self._heap) >= self._size
        offsets = np.flatnonzero(values <= np.uint64(-self._heap[0][0])) if full else np.arange(count)
        for offset in offsets.tolist():
            priority = int(values[offset])
            if len(self._heap) < self._size or priority < -self._heap[0][0]:
                yield offset, priority

    def add(self, priority: int, position: int, value: T) -> None:
        """Adds a value, and drops the one of highest priority if there are more than `size`."""
        item = (-priority, -position, value)
        if len(self._heap) < self._size:
            heapq.heappush(self._heap, item)
        else:
            heapq.heappushpop(self._heap, item)

    def values(self) -> list[T]:
        """The values, lowest priority first."""
        return [value for _, _, value in sorted(self._heap, key=lambda item: (-item[0], -item[1]))]

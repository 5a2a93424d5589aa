"""Uniform sampling without replacement, the same sample whether records can be looked up or must be streamed.

Every record has a priority: the output of a counter-based generator (SplitMix64) for its position in the corpus under
  the seed.
The sample is the records of lowest priority. Priorities are independent of content and length, so that long documents
are drawn no more often than short ones; they need no knowledge of how many records there are, so that a compressed
stream and an indexed file give the same sample; and a smaller sample is the beginning of a larger one with the same
seed.
"""

from collections.abc import Iterator
import hashlib
import heapq
from typing import Generic, TypeVar

import numpy as np

T = TypeVar("T")

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_CHUNK = 1 << 20


def priorities(first: int, count: int, seed: int | str) -> np.ndarray:
    """Priorities of the records at positions `first` to `first + count - 1`: uint64[count], uniform, a function of
    (seed, position).

    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014), the mixing function with
      variant 13.
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

    Takes memory for `size` positions and not for `total`.
    """
    kept_priorities, kept = np.empty(0, np.uint64), np.empty(0, np.int64)
    for first in range(0, total, max(_CHUNK, size)):
        count = min(max(_CHUNK, size), total - first)
        pool = np.concatenate([kept_priorities, priorities(first, count, seed)])
        positions = np.concatenate([kept, np.arange(first, first + count)])
        if len(pool) > size:
            chosen = np.argpartition(pool, size - 1)[:size]
            pool, positions = pool[chosen], positions[chosen]
        kept_priorities, kept = pool, positions
    return kept[np.lexsort((kept, kept_priorities))]


class Lowest(Generic[T]):
    """Keeps the `size` values of lowest priority out of a stream of unknown length."""

    def __init__(self, size: int, seed: int):
        self._size = size
        self._seed = seed
        self._heap: list[tuple[int, int, T]] = []  # the highest priority kept stands first: entries are negated

    def wanted(self, first: int, count: int) -> Iterator[tuple[int, int]]:
        """Those of `count` consecutive positions that could still enter: (offset from `first`, priority).

        `keep` may be called between two of them, and what it keeps narrows the rest.
        """
        values = priorities(first, count, self._seed)
        full = len(self._heap) >= self._size
        offsets = np.flatnonzero(values <= np.uint64(-self._heap[0][0])) if full else np.arange(count)
        for offset in offsets.tolist():
            priority = int(values[offset])
            if len(self._heap) < self._size or priority < -self._heap[0][0]:
                yield offset, priority

    def keep(self, priority: int, position: int, value: T) -> None:
        entry = (-priority, -position, value)
        if len(self._heap) < self._size:
            heapq.heappush(self._heap, entry)
        else:
            heapq.heappushpop(self._heap, entry)

    def values(self) -> list[T]:
        """What was kept, lowest priority first."""
        return [value for _, _, value in sorted(self._heap, key=lambda entry: (-entry[0], -entry[1]))]

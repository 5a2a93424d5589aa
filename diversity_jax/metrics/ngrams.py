"""Counting n-grams by sorting integers: exact, without a dictionary of tuples, and never across two documents.

A window of n words becomes one 64-bit key: the ids of its words where they fit, else the ranks of its two halves, each
below 2^32. Equal keys are equal n-grams in both cases: nothing is hashed, so nothing can collide.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
import functools
import os
from typing import Any, TypeVar

import numpy as np

from diversity_jax.metrics.text import Words

_PART = 1 << 24  # keys that a thread sorts at once
_T = TypeVar("_T")
_HASH = np.uint64(0x9E3779B97F4A7C15)


class Ngrams:
    """The n-grams of some documents, sorted once and shared by the metrics that count them."""

    def __init__(self, words: Words, *, threads: int | None = None):
        self.words = words
        self.threads = threads or os.cpu_count() or 1

    @functools.lru_cache(maxsize=1)  # noqa: B019 - at most one table of gigabytes
    def _pair_ranks(self) -> np.ndarray:
        """Rank of every two neighbouring words, across documents too, among different pairs: uint32 [words - 1]."""
        ids = self.words.ids
        return rank(_packed(ids[:-1], ids[1:], _bits(self.words.types)), self.threads)

    def windows(self, n: int) -> np.ndarray:
        """Whether the n words that begin at each word lie in one document: bool [max(words - n + 1, 0)]."""
        inside = np.ones(max(len(self.words.ids) - n + 1, 0), bool)
        ends = self.words.offsets[1:-1]
        for back in range(1, n):
            starts = ends - back
            inside[starts[(starts >= 0) & (starts < len(inside))]] = False
        return inside

    def all_keys(self, n: int) -> np.ndarray:
        """Keys of all windows, across documents too, equal where the words are: uint64 [max(words - n + 1, 0)]."""
        ids, bits = self.words.ids, _bits(self.words.types)
        if len(ids) < n:
            return np.empty(0, np.uint64)
        if n * bits <= 64:
            keys = ids[: len(ids) - n + 1].astype(np.uint64)
            for step in range(1, n):
                keys <<= np.uint64(bits)
                keys |= ids[step : len(ids) - n + 1 + step].astype(np.uint64)
            return keys
        half = (n + 1) // 2
        if n <= 4:
            left, right = self._pair_ranks(), self._pair_ranks() if n == 4 else ids
        else:
            left, right = rank(self.all_keys(half), self.threads), rank(self.all_keys(n - half), self.threads)
        count = len(ids) - n + 1
        return _packed(left[:count], right[half : half + count], 32)

    def keys(self, n: int) -> np.ndarray:
        """Keys of the windows inside documents, in their order."""
        return self.all_keys(n)[self.windows(n)]

    def documents(self, n: int) -> np.ndarray:
        """The document of each of `keys(n)`: int32."""
        return self.words.document_of_word()[: max(len(self.words.ids) - n + 1, 0)][self.windows(n)]

    def distinct(self, n: int) -> tuple[int, int]:
        """The number of different n-grams, and of all."""
        if n == 1:
            return int(np.count_nonzero(np.bincount(self.words.ids, minlength=1))), len(self.words.ids)
        keys = self.keys(n)
        return sum(in_parts(keys, _count_different, self.threads)), len(keys)

    def repeated(self, n: int) -> np.ndarray:
        """Keys that occur more than once, ascending."""
        return np.concatenate(in_parts(self.keys(n), _repeated, self.threads))

    def repeats_by_document(self, n: int) -> np.ndarray:
        """Per document, the sum over its different n-grams of the OTHER documents that hold each: int64 [documents].

        Most n-grams of natural text occur once. So repeated ones are determined first, by sorting keys alone; only
        their windows are sorted together with their documents.
        """
        repeated, keys = self.repeated(n), self.keys(n)
        if self.words.documents < 2 or not len(repeated):
            return np.zeros(self.words.documents, np.int64)
        chosen = _members(keys, repeated)
        ranks = np.searchsorted(repeated, keys[chosen])
        documents = self.documents(n)[chosen]
        bits = _bits(self.words.documents)
        pairs = np.sort(_packed(ranks, documents, bits))
        pairs = pairs[is_new(pairs)]
        ranks = (pairs >> np.uint64(bits)).astype(np.int64)
        documents = (pairs & np.uint64((1 << bits) - 1)).astype(np.int64)
        others = np.bincount(ranks, minlength=len(repeated)) - 1
        return np.bincount(documents, others[ranks], self.words.documents).astype(np.int64)


def _bits(count: int) -> int:
    return max(1, int(count - 1).bit_length())


def _packed(left: np.ndarray, right: np.ndarray, bits: int) -> np.ndarray:
    keys = left.astype(np.uint64)
    keys <<= np.uint64(bits)
    keys |= right.astype(np.uint64)
    return keys


def is_new(ascending: np.ndarray) -> np.ndarray:
    """Where an element of a sorted array differs from the one before."""
    new = np.ones(len(ascending), bool)
    np.not_equal(ascending[1:], ascending[:-1], out=new[1:])
    return new


def _count_different(part: np.ndarray) -> int:
    return int(np.count_nonzero(is_new(np.sort(part))))


def _repeated(part: np.ndarray) -> np.ndarray:
    ascending = np.sort(part)
    new = is_new(ascending)
    return ascending[:-1][new[:-1] & ~new[1:]]


def _members(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Positions of the keys that are among `wanted` (ascending): a table of bits excludes most others, the rest are
    compared exactly.
    """
    bits = min(30, max(10, _bits(len(wanted)) + 3))
    shift = np.uint64(64 - bits)
    table = np.zeros(1 << bits, bool)
    table[(wanted * _HASH) >> shift] = True
    matches = []
    for start in range(0, len(keys), _PART):
        part = keys[start : start + _PART]
        candidates = np.flatnonzero(table[(part * _HASH) >> shift])
        at = np.minimum(np.searchsorted(wanted, part[candidates]), len(wanted) - 1)
        matches.append(start + candidates[wanted[at] == part[candidates]])
    return np.concatenate(matches) if matches else np.empty(0, np.int64)


def _over_ranges(keys: np.ndarray, parts: int, work: Callable[[np.ndarray], _T], threads: int) -> Iterator[_T]:
    """`work` on masks of `keys` that select disjoint ranges of values, ascending and of about equal size, several at
    once: numpy sorts without holding the lock. Equal keys fall into one range.
    """
    sample = np.sort(keys[:: max(1, len(keys) // (64 * parts))])
    edges = np.unique(sample[np.linspace(0, len(sample) - 1, parts + 1).astype(int)[1:-1]])

    def of_range(bounds: tuple[Any, Any]) -> _T:
        low, high = bounds
        inside = np.ones(len(keys), bool) if low is None else keys >= low
        if high is not None:
            inside &= keys < high
        return work(inside)

    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(of_range, zip([None, *edges], [*edges, None], strict=True))


def in_parts(keys: np.ndarray, work: Callable[[np.ndarray], _T], threads: int) -> list[_T]:
    """`work` on the keys of disjoint ranges of values, ascending."""
    parts = -(-len(keys) // _PART)
    if parts <= 1 and (threads == 1 or len(keys) < 1 << 20):
        return [work(keys)]
    return list(_over_ranges(keys, max(parts, threads), lambda inside: work(keys[inside]), threads))


def rank(keys: np.ndarray, threads: int) -> np.ndarray:
    """The rank of each key among the different keys, from 0 in ascending order: uint32 [keys]."""

    def of_range(inside: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        positions = np.flatnonzero(inside)
        different, inverse = np.unique(keys[positions], return_inverse=True)
        return positions, inverse.astype(np.uint32), len(different)

    ranks, ranked = np.empty(len(keys), np.uint32), 0
    for positions, inverse, different in _over_ranges(keys, max(1, -(-len(keys) // _PART)), of_range, threads):
        ranks[positions] = inverse + np.uint32(ranked)
        ranked += different
    return ranks

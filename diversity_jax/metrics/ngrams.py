"""Counting n-grams by sorting integers: exact, without a dictionary of tuples, and never across two documents.

A window of n words becomes one 64-bit key. Where the words' ids are short enough they stand in it side by side; where
not, the key is made of the ranks of its two halves, each below 2^32. Equal keys are equal n-grams in both cases:
nothing is hashed, so nothing can collide.
"""

from concurrent.futures import ThreadPoolExecutor
import functools
import os

import numpy as np

from diversity_jax.metrics.text import Words

_PART = 1 << 24  # keys that are sorted at once, by each thread
_HASH = np.uint64(0x9E3779B97F4A7C15)


class Ngrams:
    """The n-grams of some documents, sorted once and shared by the metrics that count them."""

    def __init__(self, words: Words, *, threads: int | None = None):
        self.words = words
        self.threads = threads or os.cpu_count() or 1

    @functools.lru_cache(maxsize=1)  # noqa: B019 - it is one table of gigabytes, and lives as long as its owner
    def _pair_ranks(self) -> np.ndarray:
        """For every two neighbouring words, across documents too, which of all different pairs it is: uint32 [words -
        1].
        """
        ids = self.words.ids
        return rank(_packed(ids[:-1], ids[1:], _bits(self.words.types)), self.threads)

    def windows(self, n: int) -> np.ndarray:
        """Whether the window of n words that starts at each word lies inside its document: bool [max(words - n + 1,
        0)].
        """
        inside = np.ones(max(len(self.words.ids) - n + 1, 0), bool)
        ends = self.words.offsets[1:-1]
        for back in range(1, n):
            starts = ends - back
            inside[starts[(starts >= 0) & (starts < len(inside))]] = False
        return inside

    def all_keys(self, n: int) -> np.ndarray:
        """One key for every window, across documents too: uint64 [max(words - n + 1, 0)]; equal exactly where the n
        words are.
        """
        ids, bits = self.words.ids, _bits(self.words.types)
        if len(ids) < n:
            return np.empty(0, np.uint64)
        if n * bits <= 64:
            keys = ids[: len(ids) - n + 1].astype(np.uint64)
            for step in range(1, n):
                keys <<= np.uint64(bits)
                keys |= ids[step : len(ids) - n + 1 + step].astype(np.uint64)
            return keys
        if n <= 4:
            left, right = self._pair_ranks(), self._pair_ranks() if n == 4 else ids
        else:
            half = (n + 1) // 2
            left, right = rank(self.all_keys(half), self.threads), rank(self.all_keys(n - half), self.threads)
        split = 2 if n <= 4 else (n + 1) // 2
        count = len(ids) - n + 1
        return _packed(left[:count], right[split : split + count], 32)

    def keys(self, n: int) -> np.ndarray:
        """Keys of the windows inside documents, in their order."""
        return self.all_keys(n)[self.windows(n)]

    def documents(self, n: int) -> np.ndarray:
        """Which document each of `keys(n)` stands in: int32."""
        return self.words.document_of_word()[: max(len(self.words.ids) - n + 1, 0)][self.windows(n)]

    def distinct(self, n: int) -> tuple[int, int]:
        """How many different n-grams there are, and how many in all."""
        if n == 1:
            return int(np.count_nonzero(np.bincount(self.words.ids, minlength=1))), len(self.words.ids)
        keys = self.keys(n)
        return sum(self._in_parts(keys, lambda part: int(np.count_nonzero(is_new(np.sort(part)))))), len(keys)

    def repeated(self, n: int) -> np.ndarray:
        """The keys that occur more than once, ascending."""
        parts = self._in_parts(self.keys(n), _repeated)
        return np.concatenate(parts) if parts else np.empty(0, np.uint64)

    def repeats_by_document(self, n: int) -> np.ndarray:
        """For every document: over its different n-grams, in how many OTHER documents each occurs, added up: int64
        [documents].

        Most n-grams of natural text occur once. So those that do not are found first, by a sort without places; and
        only windows that hit a table of them are looked up and sorted together with their documents.
        """
        if self.words.documents < 2:
            return np.zeros(self.words.documents, np.int64)
        repeated, keys = self.repeated(n), self.keys(n)
        if not len(repeated):
            return np.zeros(self.words.documents, np.int64)
        chosen = _members(keys, repeated)
        ranks = np.searchsorted(repeated, keys[chosen])
        documents = self.documents(n)[chosen]
        bits = _bits(self.words.documents)
        pairs = np.sort(_packed(ranks, documents, bits))
        pairs = pairs[is_new(pairs)]
        ranks, documents = (
            (pairs >> np.uint64(bits)).astype(np.int64),
            (pairs & np.uint64((1 << bits) - 1)).astype(np.int64),
        )
        others = np.bincount(ranks, minlength=len(repeated)) - 1
        return np.bincount(documents, others[ranks], self.words.documents).astype(np.int64)

    def _in_parts(self, keys: np.ndarray, work) -> list:
        return in_parts(keys, work, self.threads)


def _bits(count: int) -> int:
    return max(1, int(count - 1).bit_length())


def _packed(left: np.ndarray, right: np.ndarray, bits: int) -> np.ndarray:
    keys = left.astype(np.uint64)
    keys <<= np.uint64(bits)
    keys |= right.astype(np.uint64)
    return keys


def is_new(ascending: np.ndarray) -> np.ndarray:
    """Where a sorted array differs from the element before."""
    new = np.ones(len(ascending), bool)
    np.not_equal(ascending[1:], ascending[:-1], out=new[1:])
    return new


def _repeated(part: np.ndarray) -> np.ndarray:
    ascending = np.sort(part)
    new = is_new(ascending)
    again = np.zeros(len(new), bool)
    again[:-1] = new[:-1] & ~new[1:]
    return ascending[again]


def _members(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Places of the keys that are among `wanted` (ascending): a table of bits keeps most others out, the rest is
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


def _edges(keys: np.ndarray, parts: int) -> np.ndarray:
    """Values that cut keys into about equal parts; all equal keys fall into one."""
    sample = np.sort(keys[:: max(1, len(keys) // (64 * parts))])
    return np.unique(sample[np.linspace(0, len(sample) - 1, parts + 1).astype(int)[1:-1]])


def in_parts(keys: np.ndarray, work, threads: int) -> list:
    """`work` on disjoint ranges of key values in ascending order, several at once: numpy sorts without the lock."""
    parts = -(-len(keys) // _PART)
    if parts <= 1 and (threads == 1 or len(keys) < 1 << 20):
        return [work(keys)]
    edges = _edges(keys, max(parts, threads))
    bounds = list(zip([None, *edges], [*edges, None], strict=True))

    def of_range(bound) -> object:
        low, high = bound
        chosen = np.ones(len(keys), bool) if low is None else keys >= low
        if high is not None:
            chosen &= keys < high
        return work(keys[chosen])

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(of_range, bounds))


def rank(keys: np.ndarray, threads: int) -> np.ndarray:
    """Which of the different keys each one is, counted from 0 in ascending order: uint32 [keys]."""
    edges = _edges(keys, -(-len(keys) // _PART)) if len(keys) > _PART else np.empty(0, keys.dtype)
    bounds = list(zip([None, *edges], [*edges, None], strict=True))
    ranks = np.empty(len(keys), np.uint32)

    def of_range(bound) -> tuple[np.ndarray, np.ndarray, int]:
        low, high = bound
        chosen = np.ones(len(keys), bool) if low is None else keys >= low
        if high is not None:
            chosen &= keys < high
        positions = np.flatnonzero(chosen)
        different, inverse = np.unique(keys[positions], return_inverse=True)
        return positions, inverse.astype(np.uint32), len(different)

    ranked = 0
    with ThreadPoolExecutor(threads) as pool:
        for positions, inverse, different in pool.map(of_range, bounds):
            ranks[positions] = inverse + np.uint32(ranked)
            ranked += different
    return ranks

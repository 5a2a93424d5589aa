"""Documents that stand already in other words or nearly: MinHash over sequences of five words, looked up in bands.

A signature is 32 minima; two signatures agree at a place with the probability that two documents share a sequence
(their Jaccard similarity). Eight bands of four places find pairs at 0.6 with 67 %, at 0.8 with 98 % and at 0.9 with
99.97 %; what they find is checked by the share of equal places. 192 bytes a document in memory.
"""

from collections.abc import Sequence
import re
import zlib

import numpy as np

PLACES = 32
_BANDS = 8
_WORDS = 5
_WORD = re.compile(r"\w+")
_generator = np.random.default_rng(20240229)
_FACTORS = _generator.integers(1, 2**63, PLACES, dtype=np.uint64) | np.uint64(1)
_SHIFTS = _generator.integers(0, 2**63, PLACES, dtype=np.uint64)
_MIX = np.uint64(0x9E3779B97F4A7C15)


def signature(text: str) -> np.ndarray:
    """MinHash signature of a text: uint32 [32]."""
    codes = np.fromiter((zlib.crc32(word.encode(errors="replace")) for word in _WORD.findall(text.lower())), np.uint64)
    if not len(codes):
        return np.zeros(PLACES, np.uint32)
    mixed = np.zeros(max(len(codes) - _WORDS + 1, 1), np.uint64)
    for offset in range(min(_WORDS, len(codes))):
        mixed = (mixed ^ codes[offset : offset + len(mixed)]) * _MIX
        mixed ^= mixed >> np.uint64(29)
    mixed = np.unique(mixed)
    return ((mixed[:, None] * _FACTORS + _SHIFTS) >> np.uint64(32)).min(axis=0).astype(np.uint32)


class NearDuplicates:
    """Signatures of the documents that stand, with the nearest of them for a new one."""

    def __init__(self, threshold: float):
        self._threshold = threshold
        self._signatures = np.zeros((1024, PLACES), np.uint32)
        self._count = 0
        self._settled = [(np.zeros(0, np.uint64), np.zeros(0, np.int32)) for _ in range(_BANDS)]
        self._fresh: list[dict[int, list[int]]] = [{} for _ in range(_BANDS)]

    def __len__(self) -> int:
        return self._count

    @property
    def signatures(self) -> np.ndarray:
        """Of all documents in order: uint32 [documents, 32]."""
        return self._signatures[: self._count]

    def find(self, one: np.ndarray) -> tuple[int, float] | None:
        """Number and similarity of the nearest document at or above the threshold, or None."""
        numbers: set[int] = set()
        for (keys, owners), fresh, key in zip(self._settled, self._fresh, _keys(one[None])[0].tolist(), strict=True):
            numbers.update(fresh.get(key, ()))
            start, end = np.searchsorted(keys, np.uint64(key), "left"), np.searchsorted(keys, np.uint64(key), "right")
            numbers.update(owners[start : min(end, start + 64)].tolist())
        if not numbers:
            return None
        rows = np.array(sorted(numbers))
        similar = (self._signatures[rows] == one).mean(axis=1)
        best = int(similar.argmax())
        return (int(rows[best]), float(similar[best])) if similar[best] >= self._threshold else None

    def add(self, one: np.ndarray) -> None:
        """Takes a document in."""
        if self._count == len(self._signatures):
            self._signatures = np.concatenate([self._signatures, np.zeros_like(self._signatures)])
        self._signatures[self._count] = one
        for fresh, key in zip(self._fresh, _keys(one[None])[0].tolist(), strict=True):
            fresh.setdefault(key, []).append(self._count)
        self._count += 1

    def extend(self, many: Sequence[np.ndarray] | np.ndarray) -> None:
        """Takes in documents of earlier rounds: uint32 [documents, 32]."""
        many = np.asarray(many, np.uint32).reshape(-1, PLACES)
        if not len(many):
            return
        self._signatures = np.concatenate([self.signatures, many])
        self._count = len(self._signatures)
        self.settle()

    def settle(self) -> None:
        """Moves what is fresh into sorted arrays, which take an eighth of a dictionary's memory; done once a round."""
        first = len(self._settled[0][0])
        new = _keys(self._signatures[first : self._count])
        for band, (keys, owners) in enumerate(self._settled):
            keys = np.concatenate([keys, new[:, band]])
            owners = np.concatenate([owners, np.arange(first, self._count, dtype=np.int32)])
            order = np.argsort(keys, kind="stable")
            self._settled[band] = (keys[order], owners[order])
            self._fresh[band] = {}


def _keys(signatures: np.ndarray) -> np.ndarray:
    """One number for each band: uint64 [documents, bands]."""
    banded = signatures.reshape(len(signatures), _BANDS, PLACES // _BANDS).astype(np.uint64)
    keys = np.zeros(banded.shape[:2], np.uint64)
    for place in range(banded.shape[2]):
        keys = (keys ^ banded[:, :, place]) * _MIX
        keys ^= keys >> np.uint64(31)
    return keys

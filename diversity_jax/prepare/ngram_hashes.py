"""Words of a text and hashes of every run of n of them, by which copied text is found whatever its case and
punctuation.
"""

from collections.abc import Mapping, Sequence
import hashlib
import re
import unicodedata

import numpy as np

_WORD = re.compile(r"[^\W_]+")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no position is multiplied away
_CACHED_WORDS = 200_000


def words(text: str) -> list[str]:
    """Runs of letters and digits, NFKC-normalised and case-folded; punctuation and underscores only separate them."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return _WORD.findall(text.casefold())


def windows(ids: np.ndarray, length: int) -> np.ndarray:
    """A hash of every `length` consecutive ids, uint64 [max(0, len(ids) - length + 1)]; ids are uint64."""
    count = len(ids) - length + 1
    return _hash([ids[offset : offset + count] for offset in range(length)]) if count > 0 else np.empty(0, np.uint64)


def hash_runs(runs: np.ndarray) -> np.ndarray:
    """The hash that `windows` gives each run: uint64 [runs] of unsigned integers [runs, length]."""
    return _hash(runs.T)


def _hash(columns: Sequence[np.ndarray]) -> np.ndarray:
    hashes = np.zeros(len(columns[0]), np.uint64)
    with np.errstate(over="ignore"):
        for column in columns:
            hashes = (hashes ^ column) * _MULTIPLIER
            hashes ^= hashes >> np.uint64(29)
    return hashes


class WordHashes:
    """A 64-bit hash of each word, the same in every process."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}

    def __call__(self, found: Sequence[str]) -> np.ndarray:
        if len(self._known) > _CACHED_WORDS:
            self._known = {}  # not cleared: another thread of a Beam worker may be reading it
        known = self._known
        for word in found:
            if word not in known:
                known[word] = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
        return np.fromiter(map(known.__getitem__, found), np.uint64, len(found))


def numbered(found: Sequence[str], vocabulary: Mapping[str, int]) -> np.ndarray:
    """Number of each word in a vocabulary, 0 for one that is not there, uint64 [len(found)]."""
    return np.fromiter((vocabulary.get(word, 0) for word in found), np.uint64, len(found))

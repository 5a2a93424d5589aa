"""A permutation of all rows of a component without a list of them: every row draws a 64-bit key, and rows lie in key order.

The keys of a piece's rows are a function of (seed, component, split, piece, row), so any process can compute them.
Independent keys put in order are a uniformly random permutation. Shard s of S holds the keys in [s / S, (s + 1) / S) of
their range: it is known where a row goes before any other row has been seen, and a shard is sorted by itself.
"""

import numpy as np

from diversity_jax.corpus.sampling import priorities

_LEAST_SHARD_ROWS = 64  # keys are random: shards of fewer rows on average could come out empty


def row_keys(seed: int, component: str, split: str, piece: str, rows: int) -> np.ndarray:
    """Keys of a piece's rows, in the order of the rows: uint64 [rows]."""
    return priorities(0, rows, f"{seed}/{component}/{split}/{piece}")


def shard_count(rows: int, row_bytes: int, shard_bytes: int) -> int:
    """Number of shards of about `shard_bytes`."""
    return max(1, rows // max(_LEAST_SHARD_ROWS, shard_bytes // row_bytes))


def extent_of(keys: np.ndarray, shard: int, shards: int) -> tuple[int, int]:
    """First row and end of those that go to a shard: rows are in key order, so they lie one after the other."""
    first = np.searchsorted(keys, np.uint64(-(-(shard << 64) // shards))) if shard else 0
    end = np.searchsorted(keys, np.uint64(-(-(shard + 1 << 64) // shards))) if shard + 1 < shards else len(keys)
    return int(first), int(end)

"""The assignment of mixture rows to components, stratified so that token shares hold in every window of rows.

Every row of a prepared component is one full sequence, hence a share of rows IS a share of tokens. Row n of the
mixture belongs to component `component(n)` and is that component's row number `rank(n)`: pure functions of n, so that
the data order depends on no host, restart or iterator state.
"""

from collections.abc import Sequence
from fractions import Fraction
import hashlib
import math
import re
from typing import Any

import numpy as np

from diversity_jax.core.errors import InputError

WINDOW = 1000
"""Rows in which every component's count is within one of its share, wherever the window starts."""

_SHARE = re.compile(r"\d{1,40}(/\d{1,40})?", re.ASCII)
_MAX_EXACT_BLOCKS = 1000  # limits the period, and with it the memory of a schedule, to a million rows
_GRID = 100 * WINDOW  # shares that need a longer period are rounded to 1e-5, a period of 100 blocks


def read_share(value: Any) -> Fraction:
    """Reads an exact share from a file, such as "3/4".

    Raises:
      ValueError: it has another form; `Fraction("1e-300000000")` would take minutes.
    """
    if not isinstance(value, str) or not _SHARE.fullmatch(value):
        raise ValueError(f"share {str(value)[:80]!r}")
    return Fraction(value)


def exact_shares(shares: Sequence[float | int | Fraction]) -> tuple[Fraction, ...]:
    """Shares as fractions that sum to one.

    They are exact if `WINDOW` times their common denominator fits the schedule's period; otherwise they are rounded to
    multiples of 1e-5 by largest remainder.

    Args:
      shares: one non-negative weight a component; need not be normalised.

    Raises:
      InputError: a weight is negative or not finite, or all are zero.
    """
    weights = []
    for share in shares:
        if not math.isfinite(share) or share < 0:
            raise InputError(f"share {share} is not a weight; give a number of at least 0")
        weights.append(Fraction(share).limit_denominator(10**9))
    total = sum(weights)
    if total == 0:
        raise InputError("all shares are 0; give at least one component a positive share")
    weights = [weight / total for weight in weights]
    if math.lcm(*((WINDOW * weight).denominator for weight in weights)) <= _MAX_EXACT_BLOCKS:
        return tuple(weights)
    return tuple(Fraction(count, _GRID) for count in _largest_remainder(weights, _GRID))


def _largest_remainder(weights: Sequence[Fraction], total: int) -> list[int]:
    counts = [math.floor(weight * total) for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda i: (counts[i] - weights[i] * total, i))
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts


class Schedule:
    """The assignment of mixture rows to components, periodic with `period` rows.

    Rows come in blocks of `WINDOW`. Every block repeats one evenly interleaved pattern in which component i holds
    floor(WINDOW * share_i) positions; the few positions left rotate from block to block between the components that are
    owed a fraction, by a proportionate-fair rule (Baruah et al., 1996); a component that has a rotating position in two
    successive blocks has the same one. So any WINDOW consecutive rows, aligned or not, hold floor or ceil of
    WINDOW * share_i rows of component i; every prefix of full blocks is within one row of its share, any other prefix
    within three.
    (Within one for all window lengths at once is impossible for most shares of three or more components: Fraenkel's
    conjecture.)

    Attributes:
      shares: exact fractions that sum to one.
      period: rows after which the schedule repeats.
    """

    def __init__(self, shares: Sequence[float | int | Fraction]):
        self.shares = exact_shares(shares)
        fixed = [math.floor(WINDOW * share) for share in self.shares]
        owed = [WINDOW * share - count for share, count in zip(self.shares, fixed, strict=True)]
        rotating_owners = _rotating_owners(owed)
        pattern = _interleave(fixed + [WINDOW - sum(fixed)])
        blocks = np.tile(pattern, (len(rotating_owners), 1))
        blocks[:, pattern == len(self.shares)] = rotating_owners
        self._component = blocks.reshape(-1).astype(np.int32)
        self.period = len(self._component)
        self._count = np.bincount(self._component, minlength=len(self.shares))
        self._rank = np.empty(self.period, np.int64)
        for i, count in enumerate(self._count):
            self._rank[self._component == i] = np.arange(count)

    def component(self, rows: np.ndarray) -> np.ndarray:
        """Component index, int32, of each mixture row number."""
        return self._component[np.asarray(rows) % self.period]

    def rank(self, rows: np.ndarray) -> np.ndarray:
        """How many earlier mixture rows belong to the same component, int64, for each mixture row number."""
        rows = np.asarray(rows)
        position = rows % self.period
        return rows // self.period * self._count[self._component[position]] + self._rank[position]

    def counts(self, rows: int) -> np.ndarray:
        """Rows of each component among the first `rows` rows of the mixture, int64."""
        periods, rest = divmod(rows, self.period)
        return periods * self._count + np.bincount(self._component[:rest], minlength=len(self._count))


class EpochShuffle:
    """The order of a component's rows in each epoch: in the first as on disk, in every later one another permutation.

    Epoch e reads row `permutation_e(i)` at position i: a pure function of (key, e, i) without memory, so that any host
    can start anywhere. It is a Feistel network (Luby and Rackoff, 1988) of six rounds over the least even number of
    bits that hold a row number; a result beyond the last row is permuted again until it is a row (cycle walking, Black
    and Rogaway, 2002). Arithmetic stays below 2^62, so that int64 of NumPy and of TensorFlow give the same.

    Args:
      key: of seed, component and split.
      rows: of the component.
    """

    ROUNDS, BITS = 6, 32

    def __init__(self, key: str, rows: int):
        digest = hashlib.sha256(key.encode()).digest()
        self.rows, self.half_bits = rows, max(1, -(-(rows - 1).bit_length() // 2))
        self.keys = [int.from_bytes(digest[4 * i : 4 * i + 4], "little") for i in range(self.ROUNDS)]

    def rows_at(self, positions: np.ndarray) -> np.ndarray:
        """Row at each position of an endless sequence of epochs, int64."""
        positions = np.asarray(positions, np.int64)
        epochs, row_numbers = positions // self.rows, positions % self.rows
        walking = epochs > 0
        while walking.any():
            row_numbers[walking] = self.permuted(row_numbers[walking], epochs[walking])
            walking &= row_numbers >= self.rows
        return row_numbers

    def permuted(self, numbers: Any, epochs: Any) -> Any:
        """Applies the network once, to int64 below 4 ** half_bits; NumPy arrays or TensorFlow tensors."""
        mask, low = (1 << self.half_bits) - 1, (1 << self.BITS) - 1
        left, right = numbers // (mask + 1), numbers % (mask + 1)
        for key in self.keys:
            mixed = (right * 0x2C1B3C6D + (epochs % (1 << 20)) * 0x297A2D39 + key) % (low + 1)
            for shift, factor in ((16, 0x21F0AAAD), (15, 0x2C9277B5), (13, 0x1A85EC53)):
                mixed = (mixed + mixed // (1 << shift)) * factor % (low + 1)
            mixed = mixed // (1 << (self.BITS - self.half_bits))  # the high bits depend on most bits of the input
            left, right = right, (left + mixed) % (mask + 1)
        return left * (mask + 1) + right


def _interleave(counts: Sequence[int]) -> np.ndarray:
    """Orders counts[i] copies of each i so that every prefix is within one of proportional (Tijdeman, 1980)."""
    total, scale = sum(counts), 2 * max(2, sum(count > 0 for count in counts)) - 2
    taken, order = [0] * len(counts), []
    for n in range(1, total + 1):
        left = [(i, count) for i, count in enumerate(counts) if taken[i] < count]
        due = [i for i, count in left if n * count * scale >= (taken[i] * scale + 1) * total]
        chosen = min(due, key=lambda i: ((taken[i] * scale + scale - 1) / counts[i], i))
        taken[chosen] += 1
        order.append(chosen)
    return np.array(order, np.int32)


def _rotating_owners(owed: Sequence[Fraction]) -> np.ndarray:
    """Owners [blocks, positions] of the rotating positions in each block of a period.

    A component keeps its position from one block to the next, also from the last block to the first. Which component
    succeeds which does not depend on positions, so that going through the memberships once permutes the positions, and
    repeating that brings every component back to the position it started from.
    """
    memberships = _proportionate_fair(owed)
    owners = memberships[0]
    table: list[list[int]] = []
    while not table or owners != memberships[0]:
        for members, successors in zip(memberships, memberships[1:] + memberships[:1], strict=True):
            table.append(owners)
            leaving, entering = set(members) - set(successors), set(successors) - set(members)
            successor_of = dict(zip(sorted(leaving), sorted(entering), strict=True))
            owners = [successor_of.get(i, i) for i in owners]
    return np.array(table, np.int32).reshape(len(table), -1)


def _proportionate_fair(owed: Sequence[Fraction]) -> list[list[int]]:
    """Members of each block: after b blocks component i has been a member floor or ceil of b * owed[i] times.

    `owed` are fractions below one with an integer sum, the number of members of a block. The order of service is PD2
    (Anderson and Srinivasan, 2001), which meets every deadline at full load.
    """
    members_per_block, blocks = int(sum(owed)), math.lcm(*(fraction.denominator for fraction in owed))
    times = [int(fraction * blocks) for fraction in owed]
    held, memberships = [0] * len(owed), []
    for block in range(blocks):
        eligible = [i for i, wanted in enumerate(times) if wanted and held[i] * blocks // wanted <= block]
        members = sorted(eligible, key=lambda i: (*_urgency(held[i] + 1, times[i], blocks), i))[:members_per_block]
        for i in members:
            held[i] += 1
        memberships.append(members)
    return memberships


def _urgency(turn: int, times: int, blocks: int) -> tuple[int, bool, int]:
    """Order of service of a component's turn-th membership: deadline, whether the next turn is free, group deadline."""
    deadline = _ceil(turn * blocks, times)
    leaves_next_free = turn * blocks % times == 0
    spare = blocks - times
    group_deadline = _ceil(_ceil(deadline * spare, blocks) * blocks, spare) if 2 * times >= blocks else 0
    return deadline, leaves_next_free, -group_deadline


def _ceil(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)

"""The schedule keeps token shares in every window, for any shares."""

from fractions import Fraction
import math

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.mixtures.schedule import WINDOW, EpochShuffle, Schedule, exact_shares

weights = st.lists(st.integers(0, 60), min_size=1, max_size=8).filter(any)
floats = st.lists(st.floats(0, 1, allow_subnormal=False), min_size=1, max_size=7).filter(
    lambda shares: sum(shares) > 1e-3
)


def window_counts(schedule, rows):
    """Counts [rows - WINDOW + 1, components] of every window of WINDOW consecutive rows."""
    owner = schedule.component(np.arange(rows))
    before = np.zeros((rows + 1, len(schedule.shares)), np.int64)
    before[1:] = np.cumsum(owner[:, None] == np.arange(len(schedule.shares)), axis=0)
    return before[WINDOW:] - before[:-WINDOW], before


@settings(max_examples=25, deadline=None)
@given(st.one_of(weights, floats))
def test_every_window_is_within_one_row_of_its_share(shares):
    schedule = Schedule(shares)
    rows = min(schedule.period, 100 * WINDOW) + 2 * WINDOW
    counts, before = window_counts(schedule, rows)
    expected = np.array([float(WINDOW * share) for share in schedule.shares])
    assert np.abs(counts - expected).max() < 1 + 1e-9
    drift = np.abs(before - np.arange(rows + 1)[:, None] * expected / WINDOW)
    assert drift[::WINDOW].max() < 1 + 1e-9
    assert drift.max() < 3


@settings(max_examples=30, deadline=None)
@given(weights)
def test_ranks_count_up_without_gaps_and_across_periods(shares):
    schedule = Schedule(shares)
    rows = np.arange(min(2 * schedule.period, 50_000))
    owner, rank = schedule.component(rows), schedule.rank(rows)
    for i in range(len(shares)):
        np.testing.assert_array_equal(rank[owner == i], np.arange((owner == i).sum()))
    np.testing.assert_array_equal(schedule.counts(len(rows)), np.bincount(owner, minlength=len(shares)))


@pytest.mark.parametrize("synthetic", [1, 5, 10, 20, 34, 50])
def test_the_papers_ratio_sweep_is_exact(synthetic):
    real = [Fraction(34 * part, 6 * (34 + synthetic)) for part in (4, 1, 1)]
    schedule = Schedule([*real, Fraction(synthetic, 34 + synthetic)])
    assert schedule.shares == (*real, Fraction(synthetic, 34 + synthetic))
    counts = schedule.counts(schedule.period)
    assert [Fraction(int(count), schedule.period) for count in counts] == list(schedule.shares)


def test_shares_that_no_period_holds_are_rounded_to_a_grid():
    shares = exact_shares([math.pi, math.e, 1])
    assert sum(shares) == 1
    total = math.pi + math.e + 1
    assert (
        max(abs(float(share) - weight / total) for share, weight in zip(shares, (math.pi, math.e, 1), strict=True))
        < 1e-5
    )


@pytest.mark.parametrize("shares", [[0, 0], [1, -1], [float("nan")], [float("inf"), 1]])
def test_impossible_shares_are_refused(shares):
    with pytest.raises(InputError, match="share"):
        Schedule(shares)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 7, 16, 17, 100, 1000, 4097])
def test_every_pass_reads_every_row_once_and_later_ones_in_another_order(rows):
    order = EpochShuffle(f"0/web/{rows}", rows)
    passes = order.rows_at(np.arange(5 * rows)).reshape(5, rows)
    np.testing.assert_array_equal(passes[0], np.arange(rows))
    np.testing.assert_array_equal(np.sort(passes, axis=1), np.tile(np.arange(rows), (5, 1)))
    if rows > 16:
        assert len({tuple(order) for order in passes}) == 5
        again = EpochShuffle(f"0/web/{rows}", rows).rows_at(np.array([4 * rows + 3, 2 * rows]))
        np.testing.assert_array_equal(again, [passes[4, 3], passes[2, 0]])
        assert not np.array_equal(EpochShuffle("1/web", rows).rows_at(np.arange(rows, 2 * rows)), passes[1])


def test_a_reshuffled_pass_looks_drawn_at_random():
    """Fixed points, neighbours kept, and where rows of the first tenth go, against what a random order gives."""
    rows, passes = 10_000, 20
    order = EpochShuffle("7/web/train", rows)
    passes_of_rows = order.rows_at(np.arange(rows, (passes + 1) * rows)).reshape(passes, rows)
    assert (passes_of_rows == np.arange(rows)).sum() < 50  # 20 on average, standard deviation 4.5
    assert (np.diff(passes_of_rows) == 1).sum() < 50
    tenths = np.stack(
        [np.bincount(order_of_rows[: rows // 10] * 10 // rows, minlength=10) for order_of_rows in passes_of_rows]
    )
    expected, variance = rows / 100, rows / 100 * 0.9 * 0.9
    assert abs(((tenths - expected) ** 2 / variance).mean() - 1) < 0.4  # 200 squares: standard deviation 0.1
    huge = EpochShuffle("7/web/train", 3 * 10**9)
    far = huge.rows_at(np.arange(5 * huge.rows, 5 * huge.rows + 1000))
    assert far.min() >= 0
    assert far.max() < huge.rows
    assert len(np.unique(far)) == 1000

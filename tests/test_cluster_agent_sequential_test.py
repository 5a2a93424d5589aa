"""The sequential comparison: its rate of false decisions, and its power."""

import numpy as np
import pytest

from diversity_jax.cluster_agent import sequential_test as s
from diversity_jax.core.errors import InputError
from tests.simulated_corpus import even_shares, simulate_groupings


def draw(truth, generator, *, k=10, count=400, sets=1):
    """Groupings of equally common clusters; a list of numbers gives one for each criteria set."""
    truths = truth if isinstance(truth, list) else [truth] * sets
    return simulate_groupings(
        [even_shares(t) for t in truths], samples_per_grouping=k, groupings=count, generator=generator
    )


def test_spent_levels_err_at_alpha_together():
    levels = s._gaussian_levels(0.05, 8)
    sums = np.random.default_rng(0).standard_normal((100_000, 8)).cumsum(axis=1) / np.sqrt(np.arange(1, 9))
    from scipy.special import ndtri

    assert (np.abs(sums) > [-ndtri(level / 2) for level in levels]).any(axis=1).mean() == pytest.approx(0.05, abs=0.003)
    assert list(levels) == sorted(levels)
    assert s.spent_levels(0.05, 1) == (0.05,)


def test_few_degrees_of_freedom_lower_the_levels():
    assert all(few < many for few, many in zip(s.spent_levels(0.05, 8, 4), s.spent_levels(0.05, 8), strict=True))


@pytest.mark.parametrize("sets", [1, 5])
def test_equal_corpora_are_rarely_called_different(sets):
    generator = np.random.default_rng(sets)
    decisions = [
        s.compare_in_looks(
            draw(20, generator, sets=sets, count=160), draw(20, generator, sets=sets, count=160), paired=True
        ).decided
        for _ in range(300)
    ]
    assert np.mean(decisions) <= 0.08


def test_peeking_with_plain_intervals_decides_wrongly_and_often():
    generator, wrong = np.random.default_rng(9), 0
    for _ in range(150):
        a, b = draw(20, generator), draw(20, generator)
        wrong += any(s.compare_groupings(a.first(n), b.first(n), paired=True).decided for n in range(20, 401, 20))
    assert wrong / 150 > 0.15


@pytest.mark.parametrize("sets", [1, 5])
def test_different_corpora_are_told_apart_before_the_end(sets):
    generator = np.random.default_rng(2)
    comparison = s.compare_in_looks(draw(20, generator, sets=sets), draw(60, generator, sets=sets), paired=True)
    assert comparison.decided
    assert comparison.higher == "b"
    assert comparison.look < 8
    assert comparison.low < 1 / 3 < comparison.high < 1
    assert comparison.groupings == (400 * comparison.look // 8,) * 2


def test_an_effect_of_criteria_that_both_share_cancels():
    generator = np.random.default_rng(3)
    coarse_and_fine = [10, 40, 10, 40, 20]
    a, b = draw(coarse_and_fine, generator, count=2000), draw([2 * t for t in coarse_and_fine], generator, count=2000)
    assert s.compare_groupings(a, b, paired=True).decided
    assert not s.compare_groupings(a, b, paired=False).decided


def test_a_corpus_against_itself_is_not_decided():
    a = draw(20, np.random.default_rng(0))
    comparison = s.compare_groupings(a, a, paired=True)
    assert not comparison.decided
    assert comparison.ratio == 1


def test_a_side_with_too_few_pairs_is_decided_by_bounds():
    generator = np.random.default_rng(4)
    few, wide = draw(5, generator), draw(100_000, generator)
    comparison = s.compare_in_looks(wide, few, paired=True)
    assert comparison.higher == "a"
    assert comparison.high is None
    assert 1 < comparison.low < 100_000 / 5
    both = s.compare_groupings(wide, draw(100_000, generator), paired=True)
    assert not both.decided
    assert both.low is None
    assert both.high is None


def test_bounds_rarely_decide_wrongly():
    generator, wrong = np.random.default_rng(5), 0
    for _ in range(300):
        a, b = draw(800, generator, k=5, count=300), draw(800, generator, k=5, count=300)
        wrong += s.compare_in_looks(a, b, paired=True).decided
    assert wrong / 300 < 0.07


def test_drift_between_two_k_is_found_and_its_absence_too():
    generator = np.random.default_rng(6)
    at_ten, at_twenty, coarser = draw(50, generator), draw(50, generator, k=20), draw(25, generator, k=20)
    assert not s.drift_of_groupings(at_ten, at_twenty, paired=True).decided
    assert s.drift_of_groupings(at_ten, coarser, paired=True).decided
    with pytest.raises(InputError, match="two different K"):
        s.drift_of_groupings(at_ten, at_ten, paired=True)


def test_a_run_stops_for_precision_only_after_fifty_pairs():
    generator = np.random.default_rng(7)
    few = draw(500, generator, k=5, count=300)
    assert few.pairs.sum() < 50
    assert not s.precise_enough(few, 0.9)
    assert s.precise_enough(draw(20, generator, count=3000), 0.05)


@pytest.mark.parametrize("bad", [{"alpha": 0.0}, {"alpha": 1.0}, {"looks": 0}])
def test_nonsense_is_refused(bad):
    with pytest.raises(InputError, match="alpha"):
        s.spent_levels(**bad)

"""The study's statistics against published implementations and simulated truths."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
from scipy import stats

from diversity_jax.core.errors import InputError
from diversity_jax.study.saturation import saturation
from diversity_jax.study.statistics import (
    factor_effects,
    least_squares,
    partial_correlation,
    power,
    rank_correlation,
    recipes_needed,
)


def sample(n=24):
    generator = np.random.default_rng(7)
    x, z = generator.normal(size=n).round(3), generator.normal(size=n).round(3)
    return x, z, (1 + 0.5 * x - 0.3 * z + generator.normal(size=n) * 0.4).round(3)


def grid():
    """Two factors and a seed, 24 runs."""
    factors = zip(sample()[2], "pq" * 12, "u" * 8 + "v" * 8 + "w" * 8, [0, 0, 1, 1] * 6, strict=True)
    return [{"y": y, "a": a, "b": b, "seed": seed} for y, a, b, seed in factors]


def test_least_squares_equals_statsmodels_with_hc3_errors():
    # Renew: statsmodels.api.OLS(y, add_constant([x, z])).fit(cov_type="HC3", use_t=True) on sample()
    x, z, y = sample()
    fit = least_squares(y, {"x": x, "z": z})
    golden = {
        "intercept": (0.98846925, 0.71674002, 1.26019848),
        "x": (0.50184721, 0.21908496, 0.78460947),
        "z": (-0.33966725, -0.56989734, -0.10943715),
    }
    for name, numbers in golden.items():
        assert (fit[name].value, fit[name].low, fit[name].high) == pytest.approx(numbers, abs=1e-7)
        assert fit[name].n == 24
    assert fit.r_squared == pytest.approx(0.6748906977805273)
    assert fit["x"].decided


# Renew: statsmodels.stats.anova_lm(ols("y ~ C(a)*C(b) + C(seed)", runs).fit(), typ=2)
@pytest.mark.parametrize(
    ("runs", "golden"),
    [
        (
            24,
            {
                "a": (0.049232, 1, 0.151573, 0.701870),
                "b": (3.077977, 2, 4.738159, 0.023149),
                "a:b": (0.997752, 2, 1.535913, 0.243684),
            },
        ),
        (
            19,
            {
                "a": (0.033145, 1, 0.097482, 0.760231),
                "b": (1.003899, 2, 1.476267, 0.267177),
                "a:b": (0.394460, 2, 0.580067, 0.574812),
            },
        ),
    ],
)
def test_effects_equal_statsmodels_with_runs_missing_too(runs, golden):
    effects = factor_effects(grid()[:runs], "y", ["a", "b"], block="seed")
    for term in effects.terms:
        assert (term.sum_of_squares, term.degrees, term.f, term.p) == pytest.approx(golden[term.name], abs=1e-6)
    assert effects.residual_degrees == runs - 7


def test_level_means_of_a_whole_grid_are_plain_means():
    runs = grid()
    effects = factor_effects(runs, "y", ["a", "b"], block="seed")
    for level, mean in effects.levels["b"].items():
        assert mean.value == pytest.approx(np.mean([run["y"] for run in runs if run["b"] == level]))
        assert mean.low < mean.value < mean.high


def test_intervals_cover_and_confounders_are_taken_out():
    generator, runs = np.random.default_rng(0), 800
    hits = np.zeros(4)
    for _ in range(runs):
        tokens = generator.normal(size=16)
        diversity = tokens + generator.normal(size=16)
        accuracy = diversity + 2 * tokens + generator.normal(size=16) * 0.7
        coefficient = least_squares(accuracy, {"diversity": diversity, "tokens": tokens})["diversity"]
        partial = partial_correlation(diversity, accuracy, {"tokens": tokens})
        other = 0.6 * tokens + 0.8 * generator.normal(size=16)
        spearman, kendall = (rank_correlation(tokens, other, kind=kind) for kind in ("spearman", "kendall"))
        truths = [1, 1 / math.sqrt(1.49), 6 / math.pi * math.asin(0.3), 2 / math.pi * math.asin(0.6)]
        hits += [i.low <= t <= i.high for i, t in zip((coefficient, partial, spearman, kendall), truths, strict=True)]
    assert (hits / runs >= 0.93).all(), hits / runs
    assert (hits / runs <= 0.985).all(), hits / runs  # Kendall's interval is known to be wide at small n


def test_without_controls_a_partial_correlation_is_pearsons():
    x, _, y = sample()
    theirs = stats.pearsonr(x, y)
    ours = partial_correlation(x, y)
    assert (ours.value, ours.low, ours.high) == pytest.approx((theirs.statistic, *theirs.confidence_interval()))


def test_saturation_finds_its_top_and_sees_where_there_is_none():
    generator = np.random.default_rng(1)
    amounts = np.tile([1, 5, 10, 20, 34, 50], 3)
    hits = np.zeros(2)
    for _ in range(200):
        fit = saturation(amounts, 10 - 3 * np.exp(-amounts / 12) + 0.1 * generator.normal(size=18))
        hits += [fit.top.low <= 10 <= fit.top.high, fit.scale.low <= 12 <= fit.scale.high]
        assert fit.better_than_a_line
    assert (hits / 200 >= 0.91).all(), hits
    straight = saturation(amounts, amounts + generator.normal(size=18))
    assert straight.scale.high == math.inf
    assert straight.top.high == math.inf


def test_power_equals_the_share_of_simulated_tests_that_see_the_effect():
    generator = np.random.default_rng(2)
    seen = 0
    for _ in range(2000):
        x = generator.normal(size=19)
        seen += stats.linregress(x, 0.6 * x / x.std() + 0.8 * generator.normal(size=19)).pvalue < 0.05
    assert power(0.6, 19) == pytest.approx(seen / 2000, abs=0.025)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.05, 0.95), st.floats(0.3, 0.95))
def test_recipes_needed_is_the_least_that_suffices(correlation, wanted):
    n = recipes_needed(correlation, wanted_power=wanted)
    assert power(correlation, n) >= wanted
    assert n == 3 or power(correlation, n - 1) < wanted


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: least_squares([1, 2, 3], {"x": [1, 1, 1]}), "x: the same in all 3 recipes"),
        (
            lambda: least_squares([1, 2, 4, 3], {"x": [1, 2, 3, 4], "z": [2, 4, 6, 8]}),
            "one of them follows from the others",
        ),
        (lambda: least_squares([1, 2], {"x": [1, 2]}), "needs at least 3 recipes"),
        (lambda: least_squares([0.1 + 0.2, 0.3, 0.3], {"x": [1, 2, 4]}), "outcome: the same in all 3 recipes"),
        (lambda: partial_correlation([1, 2], [1, 2]), "2 recipes: it is always 1 or -1; an interval needs at least 4"),
        (lambda: partial_correlation([1, 2, 4], [1, 2, 3]), "3 recipes: an interval needs at least 4"),
        (lambda: partial_correlation([1, 2, 4], [1, 3, 3], {"z": [1, 0, 1]}), "given z: it is always 1 or -1"),
        (lambda: partial_correlation([1, 2, 4, 3], [1, 3, 3, 5], {"z": [1, 0, 1, 0]}), "given z: an interval needs"),
        (lambda: partial_correlation([1, 2, 4, 3, 6], [1, 0, 1, 0, 1], {"z": [1, 0, 1, 0, 1]}), "outcome: follows"),
        (lambda: rank_correlation([1, 2, 3], [1, 3, 2]), "3 recipes: an interval needs at least 4"),
        (lambda: rank_correlation([1, 2, 3, 4], [1, 3, 2, 4], kind="kendall"), "an interval needs at least 5"),
        (lambda: rank_correlation([1, 2, 3, 4], [2, 2, 2, 2]), "outcome: the same in all 4 recipes"),
        (lambda: factor_effects([{"y": 1, "a": 1}, {"y": 1, "a": 2}], "y", ["a"]), "y is the same in all 2 runs"),
        (lambda: factor_effects([{"y": math.nan, "a": 1}, {"y": 1, "a": 2}], "y", ["a"]), "run 0: y is not finite"),
        (lambda: saturation([1, 2, 3, 4, 5], [2] * 5), "the outcome is the same in all points"),
        (lambda: saturation([1, 2, 3, 4, 5], [2, 1, math.nan, 3, 4]), "a point is not finite"),
        (lambda: least_squares([1, 2, math.nan], {"x": [1, 2, 3]}), "outcome: not finite in recipe 2"),
        (lambda: least_squares([1, 2], {"x": [1, 2, 3]}), "x: (3,) values for (2,) outcomes"),
        (lambda: partial_correlation([1, 2, 3, 5], [1, 3, 2, 4], {"z": [2, 4, 6, 10]}), "x: follows from z"),
        (lambda: rank_correlation([1, 2, 3], [1, 2, 3], kind="pearson"), "expected 'spearman' or 'kendall'"),
        (lambda: factor_effects([], "y", ["a"]), "no finished run"),
        (lambda: factor_effects([{"y": 1}], "y", ["a"]), "run 0: no 'a'"),
        (lambda: factor_effects([{"y": 1, "a": 1}] * 2, "y", ["a"]), "none of a takes two levels"),
        (lambda: saturation([1, 2, 3], [1, 2, 3]), "needs five points"),
        (lambda: recipes_needed(0.0), "no number of recipes"),
    ],
)
def test_what_cannot_be_analysed_is_refused_with_the_reason(call, message):
    with pytest.raises(InputError) as error:
        call()
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("y", "x"),
    [
        ([1, 2, 3], [1, 2, 3]),  # on the line exactly: no noise to see
        ([1, 2, 4, 7], [0, 0, 0, 1]),  # the last recipe alone sets the slope
    ],
)
def test_a_slope_without_noise_to_see_has_no_interval(y, x):
    coefficient = least_squares(y, {"x": x})["x"]
    assert math.isnan(coefficient.low)
    assert math.isnan(coefficient.high)
    assert not coefficient.decided


def test_ties_and_perfect_orders_of_four_recipes():
    tied = rank_correlation([1, 1, 2, 2], [1, 2, 2, 3])
    assert -1 < tied.low < tied.value < tied.high < 1
    for ordered in (rank_correlation([1, 2, 3, 4], [1, 2, 3, 4]), partial_correlation([1, 2, 3, 4], [4, 3, 2, 1])):
        assert abs(ordered.value) == 1
        assert math.isnan(ordered.low)


DEGENERATE = {
    "saturated": ([(1, "p", 1.0), (2, "p", 2.0), (1, "q", 4.0), (2, "q", 3.0)], "4 runs leave no degrees of freedom"),
    "aliased": (
        [(1, "p", 1.0), (2, "q", 2.0), (1, "p", 1.5), (2, "q", 3.0)],
        "a, b, a:b: cannot be told from the other terms",
    ),
    "constant factor": ([(1, "p", 1.0), (2, "p", 2.0), (1, "p", 1.5), (2, "p", 3.0)], "b: one level only"),
    "no noise": ([(1, "p", 1.0), (2, "p", 2.0), (1, "p", 1.0), (2, "p", 2.0)], "the terms explain every run exactly"),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_effects_of_degenerate_grids_withhold_shares_and_tests_with_the_reason(name):
    cells, reason = DEGENERATE[name]
    effects = factor_effects([{"a": a, "b": b, "y": y} for a, b, y in cells], "y", ["a", "b"])
    assert any(reason in withheld for withheld in effects.withheld), effects.withheld
    for term in effects.terms:
        assert math.isnan(term.p) == (name != "constant factor")
        assert math.isnan(term.share) == (name in ("saturated", "aliased"))
    assert set(effects.levels) == {"saturated": {"a", "b"}, "aliased": set()}.get(name, {"a"})


def test_whole_grids_withhold_nothing():
    assert factor_effects(grid(), "y", ["a", "b"], block="seed").withheld == []


def test_five_points_never_prefer_a_curve_to_a_line():
    assert not saturation([1, 2, 4, 8, 16], [0.0, 0.5, 0.8, 0.9, 0.91]).better_than_a_line

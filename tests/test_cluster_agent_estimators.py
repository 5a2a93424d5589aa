"""Estimators against their definitions, against theory, and at the ends of their ranges."""

import json
import math

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from diversity_jax.cluster_agent import estimators as e
from diversity_jax.cluster_agent.canaries import ErrorRates, binomial, corrected
from diversity_jax.cluster_agent.estimators import groupings_needed
from diversity_jax.cluster_agent.groupings import COLUMNS, OPTIONAL_COLUMNS, Groupings, count_partition
from diversity_jax.core.errors import InputError
from tests.simulated_corpus import count_clusters, count_pairs, even_shares, simulate_groupings, zipf_shares


def groupings_of(partitions, k, valid=None, sets=None):
    """Groupings of explicit cluster sizes."""
    counted = [
        count_partition(sizes, good)
        for sizes, good in zip(partitions, valid or [[True] * len(p) for p in partitions], strict=True)
    ]
    clusters, valid_clusters, pairs, triples = zip(*counted, strict=True)
    return Groupings(
        samples_per_grouping=k,
        criteria_set=sets or [0] * len(partitions),
        clusters=clusters,
        kept=valid_clusters,
        pairs=pairs,
        triples=triples,
    )


def test_figures_of_two_groupings_by_hand():
    groupings = groupings_of([(3, 1, 1), (2, 2, 1)], 5)
    assert groupings.collisions.tolist() == [3 / 10, 2 / 10]
    assert e.effective_clusters(groupings_of([(3, 1, 1)] * 9 + [(2, 2, 1)] * 9, 5)).value == pytest.approx(1 / 0.25)
    assert e.cluster_score(groupings).value == pytest.approx((9 / 5 + 9 / 5) / 2)
    assert e.clusters_per_sample(groupings).value == pytest.approx(3 / 5)


def test_an_invalid_cluster_is_singletons_for_collision_and_dropped_for_the_paper_score():
    groupings = groupings_of([(3, 2)], 5, valid=[[False, True]])
    assert groupings.collisions[0] == pytest.approx(1 / 10)
    assert (groupings.clusters[0], groupings.kept[0]) == (1, 2)
    assert e.cluster_score(groupings).value == pytest.approx(1 / 2)


def test_a_grouping_without_a_valid_cluster_has_no_paper_score_but_counts_for_collision():
    groupings = groupings_of([(5,), (1, 1, 1, 1, 1)], 5, valid=[[False], [True] * 5])
    assert e.cluster_score(groupings).value == pytest.approx(5.0)
    assert groupings.collisions.tolist() == [0, 0]


@given(st.lists(st.lists(st.integers(0, 6), min_size=8, max_size=8), min_size=2, max_size=30))
def test_every_figure_keeps_its_range_and_its_interval_holds_its_value(labels):
    labels = np.array(labels)
    groupings = Groupings(
        samples_per_grouping=8,
        criteria_set=np.arange(len(labels)) % 3,
        clusters=count_clusters(labels),
        kept=np.full(len(labels), 8),
        pairs=count_pairs(labels),
    )
    for estimate, least, most in (
        (e.cluster_score(groupings), 1 / 8, 8),
        (e.clusters_per_sample(groupings), 0, 1),
        (e.collision(groupings), 0, 1),
        (e.effective_clusters(groupings), 1, math.inf),
    ):
        assert least <= estimate.low <= estimate.value + 1e-12
        assert estimate.value <= (most if estimate.high is None else estimate.high) + 1e-12
        assert estimate.high is None or estimate.high <= most + 1e-12


@pytest.mark.parametrize("k", [5, 10, 20])
@pytest.mark.parametrize(
    ("truth", "score"),
    [(5, {5: 2.37, 10: 2.03, 20: 1.22}), (50, {5: 4.65, 10: 8.41, 20: 13.9}), (500, {5: 4.96, 10: 9.83, 20: 19.3})],
)
def test_the_paper_score_depends_on_k_and_effective_clusters_does_not(k, truth, score):
    groupings = simulate_groupings(
        even_shares(truth), samples_per_grouping=k, groupings=20_000, generator=np.random.default_rng(k)
    )
    assert e.cluster_score(groupings).value == pytest.approx(score[k], rel=0.02)
    assert e.effective_clusters(groupings).value == pytest.approx(truth, rel=0.1)


@pytest.mark.parametrize("shares", [even_shares(5), zipf_shares(50)])
@pytest.mark.parametrize("k", [5, 20])
def test_the_variance_of_one_collision_is_as_the_theory_of_u_statistics_says(shares, k):
    groupings = simulate_groupings(shares, samples_per_grouping=k, groupings=40_000, generator=np.random.default_rng(1))
    expected = e.collision_variance(np.square(shares).sum(), (shares**3).sum(), k)
    assert groupings.collisions.var() == pytest.approx(expected, rel=0.08)


@pytest.mark.parametrize(
    ("truth", "k", "even", "zipf"),
    [
        (5, 10, 137, 288),
        (5, 20, 33, 109),
        (50, 10, 1674, 2589),
        (50, 20, 397, 884),
        (500, 10, 17040, 20769),
        (500, 20, 4036, 6023),
    ],
)
def test_groupings_needed_for_five_percent(truth, k, even, zipf):
    for shares, expected in ((even_shares(truth), even), (zipf_shares(truth), zipf)):
        assert groupings_needed(np.square(shares).sum(), (shares**3).sum(), k) == pytest.approx(expected, rel=0.005)


@pytest.mark.parametrize("sets", [1, 5])
def test_intervals_hold_the_truth_as_often_as_they_say(sets):
    generator, held = np.random.default_rng(3), 0
    for _ in range(400):
        groupings = simulate_groupings(
            [even_shares(50)] * sets, samples_per_grouping=10, groupings=250, generator=generator
        )
        estimate = e.effective_clusters(groupings)
        held += estimate.low <= 50 <= estimate.high
    assert 0.92 <= held / 400 <= 0.98


def test_criteria_that_differ_need_the_two_level_interval():
    generator, held = np.random.default_rng(4), np.zeros(2)
    for _ in range(300):
        shares = [even_shares(round(50 * math.exp(generator.normal(0, 0.1)))) for _ in range(5)]
        groupings = simulate_groupings(shares, samples_per_grouping=10, groupings=2500, generator=generator)
        flat = Groupings(
            samples_per_grouping=10,
            criteria_set=[0] * 2500,
            clusters=groupings.clusters,
            kept=groupings.kept,
            pairs=groupings.pairs,
        )
        for number, series in enumerate((groupings, flat)):
            estimate = e.effective_clusters(series)
            held[number] += estimate.low <= 50 <= estimate.high
    assert held[0] / 300 > 0.9
    assert held[1] / 300 < 0.75


def test_without_a_pair_only_a_bound_is_given():
    groupings = groupings_of([(1,) * 10] * 200, 10)
    estimate = e.effective_clusters(groupings)
    assert estimate.high is None
    assert estimate.value == estimate.low == pytest.approx(200 * 10 * 9 / 6, rel=0.002)
    assert e.collision(groupings).value == 0


def test_under_ten_pairs_only_a_bound_is_given_and_it_holds_the_truth_as_often_as_it_says():
    generator, held = np.random.default_rng(5), 0
    for _ in range(400):
        groupings = simulate_groupings(even_shares(500), samples_per_grouping=5, groupings=200, generator=generator)
        estimate = e.effective_clusters(groupings)
        assert (estimate.high is None) == (groupings.pairs.sum() < 10)
        held += estimate.low <= 500 if estimate.high is None else estimate.low <= 500 <= estimate.high
    assert held / 400 > 0.92


def test_groupings_that_are_all_one_cluster_do_not_claim_certainty():
    estimate = e.effective_clusters(groupings_of([(10,)] * 30, 10))
    assert estimate.value == 1
    assert 1 < estimate.high < 1.05


def test_agreement_of_few_groupings_is_no_certainty():
    estimate = e.effective_clusters(groupings_of([(5, 5)] * 4, 10))
    assert estimate.low < estimate.value < estimate.high


def test_one_grouping_gives_an_interval_as_wide_as_it_deserves():
    estimate = e.effective_clusters(groupings_of([(6, 4)], 10))
    assert estimate.high / estimate.low > 4


def test_no_grouping_is_refused():
    with pytest.raises(InputError, match="no usable grouping"):
        e.effective_clusters(Groupings(samples_per_grouping=5, criteria_set=[], clusters=[], kept=[], pairs=[]))


def test_damaged_counts_are_refused():
    with pytest.raises(InputError, match="damaged"):
        Groupings(samples_per_grouping=5, criteria_set=[0], clusters=[2], kept=[5], pairs=[11])
    with pytest.raises(InputError, match="at least 2"):
        Groupings(samples_per_grouping=1, criteria_set=[0], clusters=[1], kept=[1], pairs=[0])


def test_a_corpus_has_no_more_clusters_than_documents():
    theta = e.collision(groupings_of([(1,) * 10] * 200, 10))
    assert e.in_a_corpus_of(1000, theta).value == pytest.approx(1000)
    labels = np.repeat(np.arange(50), 4)
    theta_without = (4 * 3 * 50) / (200 * 199)
    exact = e.in_a_corpus_of(200, e.Estimate(value=theta_without, low=theta_without, high=theta_without))
    assert exact.value == pytest.approx(1 / np.square(np.bincount(labels) / 200).sum())


def test_convergence_ends_at_the_estimate():
    groupings = simulate_groupings(
        even_shares(20), samples_per_grouping=10, groupings=500, generator=np.random.default_rng(0)
    )
    settled = e.convergence(groupings)
    assert settled["groupings"][-1] == 500
    assert settled["value"][-1] == e.effective_clusters(groupings).value
    assert settled["groupings"] == sorted(set(settled["groupings"]))


def test_several_draws_of_a_corpus_give_a_mean_and_an_error_bar():
    estimate = e.across_draws([4.0, 4.1, 3.9, 4.05, 3.95])
    assert estimate.value == pytest.approx(4.0)
    assert estimate.low < 3.95 < 4.05 < estimate.high
    with pytest.raises(InputError, match="at least 2"):
        e.across_draws([4.0])


@given(st.integers(1, 300), st.data())
def test_a_rate_lies_in_its_interval(trials, data):
    events = data.draw(st.integers(0, trials))
    rate = binomial(events, trials)
    assert 0 <= rate.low <= rate.value <= rate.high <= 1


def test_rates_of_no_canary_are_unknown():
    assert ErrorRates(shown=0, merged=0, split=0).ceiling is None
    assert ErrorRates(shown=100, merged=0, split=0).ceiling["value"] is None
    assert ErrorRates(shown=100, merged=2, split=0).ceiling["value"] == 50


def test_the_ceiling_rests_on_every_sample_that_a_foreign_text_could_lie_with():
    rates = ErrorRates(shown=100, merged=2, split=0, merged_pairs=2, drawn_pairs=1000)
    assert rates.ceiling["value"] == pytest.approx(500)
    lumped = ErrorRates(shown=100, merged=2, split=0, merged_pairs=18, drawn_pairs=1000)
    assert lumped.ceiling["value"] == pytest.approx(1000 / 18)
    checked = ErrorRates(shown=100, merged=2, split=0, merged_pairs=18, drawn_pairs=1000, controls=100, missed=20)
    assert checked.ceiling["value"] == pytest.approx(1000 / 18 * 5)
    assert rates.ceiling["low"] < rates.ceiling["value"]


@pytest.mark.parametrize(("merge", "split", "misses"), [(0.005, 0.1, 0.0), (0.002, 0.02, 0.0), (0.01, 0.05, 0.3)])
def test_the_correction_takes_out_the_errors_of_a_judge(merge, split, misses):
    generator, values, held = np.random.default_rng(6), [], 0
    a = merge * (misses or 1)  # after verification, where there is one
    for _ in range(200):
        true = simulate_groupings(even_shares(50), samples_per_grouping=10, groupings=800, generator=generator)
        pairs = generator.binomial(true.pairs, 1 - split) + generator.binomial(45 - true.pairs, a)
        spoilt = Groupings(
            samples_per_grouping=10, criteria_set=true.criteria_set, clusters=true.clusters, kept=true.kept, pairs=pairs
        )
        with_foreign = generator.binomial(10, merge, size=800)
        rates = ErrorRates(
            shown=800,
            merged=int((with_foreign > 0).sum()),
            merged_pairs=int(with_foreign.sum()),
            drawn_pairs=8000,
            split=int(generator.binomial(800, split)),
            controls=800 if misses else 0,
            missed=int(generator.binomial(800, misses)),
        )
        estimate, refusal = corrected(spoilt, rates)
        if estimate is None:
            assert "less certain" in refusal
            continue
        values.append(estimate.value)
        held += estimate.low <= 50 <= estimate.high
    assert np.median(values) == pytest.approx(50, rel=0.06)
    assert len(values) > 150
    assert held / len(values) > 0.92


@pytest.mark.parametrize(
    ("rates", "refusal"),
    [
        (ErrorRates(shown=500, merged=5, split=0), "T cannot be told from them"),
        (ErrorRates(shown=2000, merged=4, split=0), "less certain than the figure"),
        (ErrorRates(shown=10, merged=6, split=5), "it errs on most canaries"),
        (ErrorRates(shown=0, merged=0, split=0), "no canaries measured them"),
    ],
)
def test_a_correction_that_says_less_than_the_figure_is_refused(rates, refusal):
    groupings = simulate_groupings(
        even_shares(100), samples_per_grouping=10, groupings=500, generator=np.random.default_rng(0)
    )
    corrected_clusters, reason = corrected(groupings, rates)
    assert corrected_clusters is None
    assert refusal in reason


def all_columns(count=200, k=8, **changes):
    """Groupings with every optional column, of groupings of which some were verified."""
    generator = np.random.default_rng(1)
    verified = np.arange(count) % 4 == 0
    labels = generator.integers(0, 6, (count, k))
    claimed = count_pairs(labels)
    columns = {
        "criteria_set": np.arange(count) % 3,
        "clusters": count_clusters(labels),
        "kept": np.full(count, k),
        "pairs": np.where(verified, claimed * 9 // 10, claimed),
        "triples": np.minimum(claimed // 3, 56),
        "claimed_clusters": count_clusters(labels),
        "claimed_pairs": claimed,
        "weight": np.where(verified, 4.0, 0.0),
        "features": generator.random((count, 2)),
        "feature_means": [0.5, 0.5],
        "feature_means_covariance": np.eye(2) * 1e-5,
    }
    return Groupings(samples_per_grouping=k, **(columns | changes))


def test_groupings_with_every_column_come_back_from_json_and_from_rows():
    groupings = all_columns()
    again = Groupings(**json.loads(json.dumps(groupings.to_json())))
    rows = [
        {name: getattr(groupings, name)[number] for name in (*COLUMNS, *OPTIONAL_COLUMNS)}
        for number in range(len(groupings))
    ]
    of_rows = Groupings.of_rows(8, rows, feature_means=[0.5, 0.5], feature_means_covariance=np.eye(2) * 1e-5)
    for other in (again, of_rows):
        assert other.to_json() == groupings.to_json()
        assert e.values(other).tolist() == e.values(groupings).tolist()
    assert len(groupings.first(7)) == len(groupings.first(7).features) == len(groupings.first(7).weight) == 7
    assert Groupings.of_rows(8, [(0, 1, 8, 28)]).to_json().keys() == {"samples_per_grouping", *COLUMNS}


@pytest.mark.parametrize(
    "changes",
    [
        {"weight": [-1.0] * 200},
        {"triples": [57] * 200},
        {"claimed_pairs": [0] * 200},
        {"claimed_clusters": [9] * 200},
        {"features": [[math.nan, 0]] * 200},
        {"feature_means": [0.5]},
        {"weight": [1.0]},
    ],
)
def test_damaged_optional_columns_are_refused(changes):
    with pytest.raises(InputError, match="groupings:"):
        all_columns(**changes)

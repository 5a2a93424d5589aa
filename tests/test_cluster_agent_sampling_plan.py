"""The plan of a scoring (groupings, share verified, samples at once) and the assumptions behind it."""

import numpy as np
import pytest

from diversity_jax.cluster_agent import AgentConfig, score_corpus
from diversity_jax.cluster_agent import estimators as e
from diversity_jax.cluster_agent import estimators as plan
from diversity_jax.cluster_agent.groupings import Groupings
from diversity_jax.cluster_agent.uncertainty import mean_over_sets
from diversity_jax.core.errors import InputError
from diversity_jax.core.intervals import Estimate
from tests.faulty_judges import FaultyJudge
from tests.simulated_corpus import (
    POPULATIONS,
    draw_labels,
    draw_rows,
    even_corpus,
    even_shares,
    groupings_of_labels,
    misplace,
    misplaced_groupings,
    simulate_groupings,
    zipf_shares,
)


def judged(shares, k, count, rate, generator, share=1.0):
    """Groupings of a judge that misplaces samples, of which a share is verified."""
    claimed, placed = misplace(draw_labels(shares, (count, k), generator), rate, generator)
    return misplaced_groupings(claimed, placed, np.where(generator.random(count) < share, 1 / share, 0.0))


@pytest.mark.parametrize("share", [0.15, 0.5])
def test_verifying_a_share_is_unbiased_and_its_interval_holds(share):
    generator, values, held = np.random.default_rng(1), [], 0
    theta = e.collision(judged(zipf_shares(20), 10, 60_000, 0.05, generator)).value  # as verified throughout
    for _ in range(200):
        estimate = e.collision(judged(zipf_shares(20), 10, 150, 0.05, generator, share))
        values.append(estimate.value)
        held += estimate.low <= theta <= estimate.high
    assert np.mean(values) == pytest.approx(theta, rel=0.03)
    assert held / 200 > 0.9


def test_the_paper_score_corrects_what_was_not_verified():
    generator = np.random.default_rng(2)
    part, everything = (judged(even_shares(6), 10, 6000, 0.05, generator, share) for share in (0.2, 1.0))
    for figure in (e.cluster_score, e.clusters_per_sample):
        assert figure(part).value == pytest.approx(figure(everything).value, rel=0.03)
        unverified = figure(Groupings(**{**part.to_json(), "weight": None}))
        assert abs(unverified.value / figure(everything).value - 1) > 0.05


def test_groupings_of_which_none_was_verified_give_no_figure():
    groupings = judged(even_shares(5), 10, 50, 0.05, np.random.default_rng(0))
    with pytest.raises(InputError, match="no usable grouping was verified"):
        e.collision(Groupings(**{**groupings.to_json(), "weight": [0.0] * 50}))


def test_a_judge_that_lumps_leftovers_is_not_read_as_less_diverse():
    """Samples without a mate are all put into one cluster; verification names them, and they have no mates."""
    labels = draw_labels(even_shares(100), (4000, 10), np.random.default_rng(3))
    alone = (labels[:, :, None] == labels[:, None, :]).sum(axis=2) == 1
    groupings = misplaced_groupings(np.where(alone, -1, labels), ~alone, np.ones(4000))
    assert e.effective_clusters(groupings).value == pytest.approx(100, rel=0.05)


def test_the_share_to_verify_follows_what_verification_changes_and_costs():
    generator = np.random.default_rng(4)
    never, sometimes, often = (judged(zipf_shares(20), 20, 100, rate, generator) for rate in (0, 0.01, 0.1))
    shares = [plan.verification_share(groupings, 1.0, 0.8) for groupings in (never, sometimes, often)]
    assert shares == sorted(shares)
    assert plan.LEAST_VERIFIED <= shares[0] < 0.2 < shares[2] <= 1.0
    assert plan.verification_share(sometimes, 1.0, 0.1) > plan.verification_share(sometimes, 1.0, 2.0)
    assert plan.verification_share(sometimes, 1.0, 0.0) == 1.0
    plain = groupings_of_labels(draw_labels(even_shares(5), (50, 10), generator))
    assert plan.verification_share(plain, 1.0, 1.0) == 1.0


def test_where_sets_agree_two_of_them_do_not_pay_for_one_degree_of_freedom():
    generator, widths = np.random.default_rng(5), []
    for _ in range(40):
        groupings = simulate_groupings(
            [even_shares(50)] * 2, samples_per_grouping=10, groupings=200, generator=generator
        )
        mean, plain = (
            mean_over_sets(groupings.collisions, groupings.criteria_set, bounded=bounded) for bounded in (True, False)
        )
        widths.append((mean.half_width(0.95), plain.half_width(0.95)))
    bounded_width, wide = np.mean(widths, axis=0)
    assert bounded_width < 0.6 * wide


def test_sets_that_differ_more_than_allowed_for_are_believed():
    values = np.concatenate([np.full(100, 0.1), np.full(100, 0.5), np.full(100, 0.9)])
    values += np.random.default_rng(6).normal(0, 0.01, 300)
    mean = mean_over_sets(values, np.repeat([0, 1, 2], 100))
    assert mean.freedom == 2
    assert mean.half_width(0.95) > 0.5


@pytest.mark.parametrize("name", POPULATIONS)
def test_the_interval_holds_the_population_that_the_documents_were_drawn_from(name):
    generator, held = np.random.default_rng(7), np.zeros(2)
    shares = POPULATIONS[name](300)
    theta = np.square(shares).sum()
    for _ in range(150):
        labels = draw_labels(shares, 300, generator)
        groupings = groupings_of_labels(labels[draw_rows(300, 200, 20, generator)])
        with_documents, without = e.collision(groupings, documents=300), e.collision(groupings)
        held += [estimate.low <= theta <= estimate.high for estimate in (with_documents, without)]
        assert with_documents.value == without.value
    assert held[0] / 150 > 0.89
    assert held[1] < held[0]


def test_no_printed_figure_passes_the_documents_or_a_ceiling():
    groupings = groupings_of_labels(np.tile(np.arange(10), (200, 1)))
    estimate = e.effective_clusters(groupings, documents=40)
    assert (estimate.value, estimate.low, estimate.high) == (40, 40, None)
    few = e.at_most(Estimate(value=50.0, low=30.0, high=90.0), 45)
    assert (few.value, few.low, few.high) == (45, 30, None)
    below = Estimate(value=20.0, low=10.0, high=90.0)
    assert e.at_most(below, 45) == below


@pytest.mark.parametrize("k", [5, 20])
def test_samples_in_wrong_places_do_not_move_the_figure_where_verification_names_them(k):
    corpus = even_corpus(4, 20_000)
    judge = FaultyJudge("errors", corpus.label_of, rate=0.05)
    config = AgentConfig(
        samples_per_grouping=k, groupings=9000 // k, proposals=1, recheck_share=0.0, verify_share=1.0, criteria_sets=1
    )
    scorecard = score_corpus(corpus, judge, config)
    assert 1 / scorecard.collision.value > 4.02  # pairs of misplaced samples are lost
    assert scorecard.effective_clusters.value == pytest.approx(4, rel=0.04)
    assert scorecard.effective_clusters.low < 4.05
    assert scorecard.effective_clusters.high > 3.95

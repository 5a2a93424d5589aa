"""The control variate from the ruler's features lowers the variance of T and leaves it unbiased."""

import itertools

import numpy as np
import pytest

from diversity_jax.cluster_agent import estimators, uncertainty
from diversity_jax.cluster_agent.groupings import Groupings
from diversity_jax.cluster_agent.uncertainty import KNOTS, adjust, corpus_means, features
from tests.simulated_corpus import draw_rows, groupings_of_labels


def unit(vectors):
    """Rows of length 1, in the type that rulers give."""
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def corpus(generator, documents=300, clusters=12, noise=0.6):
    """Labels, and vectors that show them: the less so, the more noise."""
    labels = generator.integers(0, clusters, documents)
    centres = generator.standard_normal((clusters, 24))
    return labels, unit(centres[labels] + noise * generator.standard_normal((documents, 24)))


def of_corpus(labels, vectors, rows):
    """Groupings of rows of a corpus, with its features."""
    columns = groupings_of_labels(labels[rows]).to_json()
    means, covariance = corpus_means(vectors)
    values = np.stack([features(vectors[index]) for index in rows])
    return Groupings(**columns, features=values, feature_means=means, feature_means_covariance=covariance)


def test_means_over_all_pairs_are_those_of_every_pair():
    _, vectors = corpus(np.random.default_rng(0), documents=61)
    pairs = itertools.combinations(range(len(vectors)), 2)
    expected = np.mean([features(vectors[list(pair)]) for pair in pairs], axis=0)
    means, covariance = corpus_means(vectors)
    assert means == pytest.approx(expected, rel=1e-5, abs=1e-7)
    assert features(vectors) == pytest.approx(expected, rel=1e-5, abs=1e-7)
    assert not covariance.any()
    assert len(means) == len(KNOTS)


def test_the_covariance_of_a_random_part_is_how_its_means_vary(monkeypatch):
    generator = np.random.default_rng(1)
    _, vectors = corpus(generator, documents=2000)
    monkeypatch.setattr(uncertainty, "EXACT_DOCUMENTS", 200)
    drawn = [corpus_means(vectors, seed=seed) for seed in range(60)]
    deviations = np.std([means for means, _ in drawn], axis=0)
    expected = np.sqrt(np.mean([covariance.diagonal() for _, covariance in drawn], axis=0))
    assert deviations[:3] == pytest.approx(expected[:3], rel=0.3)
    part = corpus_means(vectors[:150], documents=2000)[1]
    assert part[0, 0] == pytest.approx(corpus_means(vectors[:150], documents=10**9)[1][0, 0] * (1 - 150 / 2000))


def test_a_good_ruler_narrows_the_interval_and_leaves_the_estimate_where_it_is():
    generator = np.random.default_rng(2)
    labels, vectors = corpus(generator)
    sizes = np.bincount(labels)
    truth = (sizes * (sizes - 1)).sum() / (len(labels) * (len(labels) - 1))
    figures, widths, held = [], [], 0
    for _ in range(40):
        groupings = of_corpus(labels, vectors, draw_rows(len(labels), 100, 10, generator))
        plain = Groupings(**{name: part for name, part in groupings.to_json().items() if "feature" not in name})
        with_ruler, without = estimators.collision(groupings), estimators.collision(plain)
        figures.append(with_ruler.value)
        widths.append((with_ruler.high - with_ruler.low) / (without.high - without.low))
        held += with_ruler.low <= truth <= with_ruler.high
    assert np.mean(figures) == pytest.approx(truth, abs=3 * np.std(figures) / np.sqrt(40))
    assert np.mean(widths) < 0.75
    assert held >= 34


@pytest.mark.parametrize("count", [10, 60, 200])
def test_a_worthless_ruler_costs_nothing(count):
    generator = np.random.default_rng(3)
    labels, _ = corpus(generator)
    vectors = unit(generator.standard_normal((len(labels), 24)))
    widths = []
    for _ in range(8):
        groupings = of_corpus(labels, vectors, draw_rows(len(labels), count, 10, generator))
        adjusted = estimators.values(groupings)
        widths.append(adjusted.std() / groupings.collisions.std())
    assert max(widths) <= 1.0 + 1e-9
    assert np.mean(widths) > 0.95


def test_an_adjustment_does_not_use_the_grouping_that_it_adjusts():
    generator = np.random.default_rng(4)
    values, explained = generator.random(200), generator.random((200, 1))
    values += explained[:, 0]
    before, _ = adjust(values, explained, np.array([0.5]), np.zeros((1, 1)))
    values[7] += 0.3
    after, _ = adjust(values, explained, np.array([0.5]), np.zeros((1, 1)))
    assert after[7] - before[7] == pytest.approx(0.3)


def test_means_that_are_uncertain_make_the_error_larger():
    generator = np.random.default_rng(5)
    labels, vectors = corpus(generator)
    groupings = of_corpus(labels, vectors, draw_rows(len(labels), 200, 10, generator))
    known = estimators.collision_mean(groupings)
    columns = groupings.to_json() | {"feature_means_covariance": np.eye(len(KNOTS)) * 1e-6}
    assert estimators.collision_mean(Groupings(**columns)).error > known.error
    columns["feature_means_covariance"] = np.eye(len(KNOTS))  # so uncertain that the features are better left out
    assert estimators.values(Groupings(**columns)).tolist() == groupings.collisions.tolist()


def test_equal_documents_and_zero_vectors_have_finite_features():
    vectors = np.zeros((6, 8), np.float32)
    assert features(vectors) == pytest.approx(np.maximum(-np.array(KNOTS), 0))
    assert features(unit(np.ones((6, 8)))) == pytest.approx(1 - np.array(KNOTS), rel=1e-5)
    adjusted = adjust(np.arange(100.0), np.ones((100, 2)), np.ones(2), np.zeros((2, 2)))
    assert adjusted[0].tolist() == list(range(100))

"""Steering on generators of known diversity: it finds the best arms and rarely stops good ones."""

import numpy as np
import pytest

from diversity_jax.cluster_agent.exam_corpora import exam_corpora
from diversity_jax.synthesis.config import SteeringConfig
from diversity_jax.synthesis.diversity import WordClusters, crowded, thin
from diversity_jax.synthesis.steering import (
    Steering,
    allocate_documents,
    effective_clusters,
    marginal_gain,
    overlap_of_labels,
)
from tests.simulated_steering import SimulatedWriter, arm_over, simulate, true_gain

CONFIG = SteeringConfig(arms=("style",), min_gain_per_dollar=0.5)


def arms():
    return [
        *(arm_over(f"poor {n}", np.arange(20 * n, 20 * n + 10), exponent=0.5) for n in range(5)),
        arm_over("rich", np.arange(1000, 1400)),
    ]


def test_it_beats_even_spending_and_finds_the_best_arm():
    ratios = []
    for seed in range(20):
        steered = simulate(arms(), CONFIG, dollars=20, round_dollars=2, seed=seed)
        even = simulate(arms(), CONFIG, dollars=20, round_dollars=2, seed=seed, steered=False)
        assert even.dollars == pytest.approx(steered.dollars, rel=0.02)
        assert max(steered.documents, key=steered.documents.get) == "rich"
        assert steered.wrong_stops == []
        ratios.append(steered.clusters_per_dollar / even.clusters_per_dollar)
    assert min(ratios) >= 1.5


def test_a_cheaper_arm_wins_where_it_pays_better():
    arms = [arm_over("dear", np.arange(400), dollars=0.1), arm_over("cheap", np.arange(1000, 1200), dollars=0.005)]
    run = simulate(arms, CONFIG, dollars=10, round_dollars=1, seed=0)
    assert run.documents["cheap"] > 10 * run.documents["dear"]


def test_arms_that_pay_are_stopped_no_more_often_than_stated():
    same = [arm_over(f"arm {n}", np.arange(60), exponent=0.3) for n in range(4)]
    probe = simulate(
        same, SteeringConfig(arms=("style",), min_gain_per_dollar=-1e9), dollars=5, round_dollars=1, seed=99
    )
    setting = true_gain(same[0], probe.labels, 25) / 1.02
    config = SteeringConfig(arms=("style",), min_gain_per_dollar=setting, alpha=0.05)
    runs = [simulate(same, config, dollars=9, round_dollars=1, seed=seed) for seed in range(60)]
    assert sum(bool(run.wrong_stops) for run in runs) <= 0.05 * len(runs)


def test_the_estimated_gain_is_the_true_one():
    generator = np.random.default_rng(0)
    arm, rest = arm_over("a", np.arange(50), exponent=0.5), arm_over("b", np.arange(30, 200))
    too_low = too_high = 0
    for _ in range(200):
        labels = np.append(arm.write(150, generator), rest.write(300, generator))
        gain = marginal_gain(overlap_of_labels(labels, np.arange(450) < 150, arm.dollars), 50)
        truth = true_gain(arm, labels, 50)
        half = gain.half_width(0.95)
        too_low, too_high = too_low + (gain.value + half < truth), too_high + (gain.value - half > truth)
    assert too_low <= 5  # the side on which an arm would be stopped wrongly
    assert too_high <= 24  # the imagined document of another cluster leans this way


def test_the_papers_shape():
    writer = SimulatedWriter()

    def clusters(template, topics, generations):
        return np.mean(
            [effective_clusters(writer.write(template, topics, generations, seed=seed)) for seed in range(3)]
        )

    assert clusters("topic", 300, 10) > 2 * clusters("topic", 100, 10)
    rises = [
        clusters("topic", 100, after) / clusters("topic", 100, before)
        for before, after in ((3, 10), (10, 20), (20, 30))
    ]
    assert rises[0] > rises[1] > rises[2] < 1.1
    by_template = [clusters(name, 100, 10) for name in ("topic", "topic_styles", "topic_styles_persona")]
    assert by_template[0] < by_template[1] < by_template[2]
    assert by_template[1] < clusters("multi_topic_styles_persona", 100, 10) < by_template[2]


def test_a_stopped_arm_gets_nothing_and_looks_are_taken_up_again():
    labels = np.append(np.zeros(200, int), np.arange(1, 201))
    evidence = {
        "a": overlap_of_labels(labels, np.arange(400) < 200, 0.01),
        "b": overlap_of_labels(labels, np.arange(400) >= 200, 0.01),
    }
    first = Steering(["a", "b"], SteeringConfig(arms=("style",)), seed=1)
    verdicts = []
    for _ in range(8):
        verdicts += first.look(evidence, 50)
    assert list(first.stopped) == ["a"]
    assert first.shares(3) == {"b": 1.0}
    second = Steering(["a", "b"], SteeringConfig(arms=("style",)), seed=1)
    second.restore(verdicts, {arm: (gain.value, gain.error, gain.freedom) for arm, gain in first.gains.items()})
    assert second.stopped == first.stopped
    assert second.shares(3) == first.shares(3)
    assert [arm_test.look for arm_test in second.look(evidence, 50)] == [
        arm_test.look for arm_test in first.look(evidence, 50)
    ]


def test_documents_are_allotted_by_dollars():
    assert allocate_documents({"a": 0.5, "b": 0.5}, {"a": 0.01, "b": 0.03}, 100) == {"a": 75, "b": 25}
    assert sum(allocate_documents({"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}, dict.fromkeys("abc", 1.0), 100).values()) == 100


def test_documents_lie_with_those_of_their_subject():
    corpus = exam_corpora()["subjects_6"]
    order = np.random.default_rng(0).permutation(len(corpus))
    texts, subjects = [corpus.texts[row] for row in order], np.array(corpus.labels)[order]
    clusters, parts = WordClusters(), WordClusters()
    clusters.extend(texts)
    for start in range(0, len(texts), 25):
        parts.extend(texts[start : start + 25])
    assert parts.labels == clusters.labels
    together = np.equal.outer(clusters.labels, clusters.labels) & ~np.eye(len(texts), dtype=bool)
    assert together.sum() > len(texts) / 2
    assert np.equal.outer(subjects, subjects)[together].mean() > 0.9


def test_documents_that_cannot_be_read_lie_alone():
    clusters = WordClusters()
    clusters.extend(["Der Hund und die Katze sind auf dem Sofa."] * 2 + ["The dog is on the sofa with the cat."] * 2)
    assert clusters.labels == [0, 1, 2, 2]
    assert clusters.unread == 2


def test_crowded_and_thin_clusters_are_told():
    labels = np.array([0] * 100 + [1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
    assert crowded(labels, 5).tolist() == [0]
    assert thin(labels).tolist() == list(range(10, 0, -1))
    assert crowded(np.array([-1, -1]), 5).tolist() == []

"""Simulated generators of known diversity, to test the steering of a synthesis with."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from diversity_jax.synthesis.config import SteeringConfig
from diversity_jax.synthesis.steering import (
    ArmDecision,
    Steering,
    allocate_documents,
    effective_clusters,
    overlap_of_labels,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class SimulatedArm:
    """An arm that writes documents of known clusters: `shares` [C] over cluster numbers, at `dollars` a document."""

    name: str
    clusters: np.ndarray
    shares: np.ndarray
    dollars: float = 0.01

    def write(self, documents: int, generator: np.random.Generator) -> np.ndarray:
        """Cluster numbers of so many documents: int [documents]."""
        return self.clusters[np.searchsorted(np.cumsum(self.shares)[:-1], generator.random(documents), side="right")]


def arm_over(name: str, clusters: np.ndarray, *, exponent: float = 0.0, dollars: float = 0.01) -> SimulatedArm:
    """An arm over the given clusters with shares proportional to rank ** -exponent."""
    weights = np.arange(1, len(clusters) + 1) ** -exponent
    return SimulatedArm(name=name, clusters=np.asarray(clusters), shares=weights / weights.sum(), dollars=dollars)


def true_gain(arm: SimulatedArm, labels: np.ndarray, added: int) -> float:
    """The expected marginal effective clusters per dollar of an arm, from its true shares: what steering estimates."""
    counts = np.bincount(labels, minlength=int(arm.clusters.max()) + 1).astype(float)
    truth = np.zeros(len(counts))
    np.add.at(truth, arm.clusters, arm.shares)
    n, m = counts.sum(), added
    now = float(np.square(counts).sum())
    then = now + 2 * m * float(counts @ truth) + m + m * (m - 1) * float(truth @ truth)
    return ((n + m) ** 2 / then - n**2 / now) / (m * arm.dollars)


@dataclass(kw_only=True)
class SimulatedRun:
    """The result of a simulated run.

    Attributes:
      labels: clusters of all documents, in order.
      dollars: spent.
      documents: by arm.
      verdicts: every look.
      wrong_stops: arms stopped although their true gain at that look was not below the setting.
      curve: (dollars, effective clusters) after every round.
    """

    labels: np.ndarray
    dollars: float
    documents: dict[str, int]
    verdicts: list[ArmDecision] = field(default_factory=list)
    wrong_stops: list[str] = field(default_factory=list)
    curve: list[tuple[float, float]] = field(default_factory=list)

    @property
    def clusters_per_dollar(self) -> float:
        """Effective clusters of the collection per dollar spent."""
        return effective_clusters(self.labels) / self.dollars


def simulate(
    arms: Sequence[SimulatedArm],
    config: SteeringConfig,
    *,
    dollars: float,
    round_dollars: float,
    seed: int,
    steered: bool = True,
) -> SimulatedRun:
    """Spends `dollars` in rounds, by the steering or evenly over all arms.

    A steered run ends early where every arm is stopped.
    """
    generator = np.random.default_rng(seed)
    steering, by_name = Steering([arm.name for arm in arms], config, seed=seed), {arm.name: arm for arm in arms}
    prices = {arm.name: arm.dollars for arm in arms}
    run = SimulatedRun(labels=np.zeros(0, int), dollars=0.0, documents=dict.fromkeys(prices, 0))
    owners = np.zeros(0, int)
    number = 0
    while run.dollars < dollars * (1 - 1e-9) and steering.live:
        shares = steering.shares(number) if steered else {arm.name: 1 / len(arms) for arm in arms}
        mean_price = 1 / sum(share / prices[name] for name, share in shares.items())
        documents = max(1, round(min(round_dollars, dollars - run.dollars) / mean_price))
        for name, count in allocate_documents(shares, prices, documents).items():
            run.labels = np.append(run.labels, by_name[name].write(count, generator))
            owners = np.append(owners, np.full(count, steering.arms.index(name)))
            run.documents[name] += count
            run.dollars += count * prices[name]
        run.curve.append((run.dollars, effective_clusters(run.labels)))
        number += 1
        if steered:
            added = max(1, documents // len(steering.live))
            _look(run, steering, by_name, owners, added)
    return run


def _look(run: SimulatedRun, steering: Steering, arms: dict[str, SimulatedArm], owners: np.ndarray, added: int) -> None:
    evidence = {
        name: overlap_of_labels(run.labels, owners == steering.arms.index(name), arms[name].dollars)
        for name in steering.live
    }
    setting = steering.config.min_gain_per_dollar
    for verdict in steering.look(evidence, added):
        run.verdicts.append(verdict)
        if verdict.stopped and true_gain(arms[verdict.arm], run.labels, added) >= setting:
            run.wrong_stops.append(verdict.arm)


@dataclass(frozen=True, kw_only=True)
class SimulatedWriter:
    """A generator shaped like the paper's: its texts on a topic have few facets; styles and readers open more.

    Attributes:
      facets: of a topic, the later ones rarer (rank ** -exponent).
      exponent: how much rarer.
      readers: kinds of readers that change what is written.
      joint_share: of multi-topic texts that stay with what their topics have in common.
    """

    facets: int = 12
    exponent: float = 1.0
    readers: int = 3
    joint_share: float = 0.25

    def write(self, template: str, topics: int, generations: int, *, seed: int) -> np.ndarray:
        """Clusters of topics x generations documents of a built-in template: int64 [topics * generations]."""
        generator = np.random.default_rng(seed)
        count = topics * generations
        topic = np.repeat(np.arange(topics), generations)
        weights = np.arange(1, self.facets + 1) ** -self.exponent
        facet = np.searchsorted(np.cumsum(weights / weights.sum())[:-1], generator.random(count), side="right")
        style = generator.integers(0, 4, count) if "styles" in template else np.zeros(count, int)
        reader = generator.integers(0, self.readers, count) if "persona" in template else np.zeros(count, int)
        if template.startswith("multi"):
            joint = generator.random(count) < self.joint_share
            topic = np.where(joint, topics + topic // 10, topic)
        return np.unique(((topic * self.facets + facet) * 4 + style) * self.readers + reader, return_inverse=True)[1]

"""Steering of generation: marginal effective clusters per dollar of each arm, a sequential test, and a bandit.

An arm is a combination of template, style, generator and number of topics. A collection of N documents with n_c in
cluster c has S = sum n_c^2 and N^2 / S effective clusters (Hill number of order 2, documents paired with themselves
too). Adding m documents of an arm makes S' = S + 2 m N x + m + m (m - 1) y, where x is the probability that
a document of the arm shares the cluster of a random document of the collection, and y that two of the arm share one.
The marginal gain is ((N + m)^2 / S' - N^2 / S) / (m * dollars a document). Its randomness is that of the arm's future
documents, so x and y are means over the arm's documents, each compared with all others, and the error of the gain
follows by the delta method.

An arm is stopped at the look at which the upper end of its gain, at the level that `spent_levels` assigns to that look,
lies below the setting. The levels of an arm add up to alpha / arms, so the probability that ANY arm is stopped wrongly
is at most alpha. The next round's dollars are divided by Thompson sampling: an arm's share is the probability that its
gain, drawn from its estimate, is the highest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import math

import numpy as np

from diversity_jax.cluster_agent.sequential_test import spent_levels
from diversity_jax.cluster_agent.uncertainty import Mean
from diversity_jax.core.formats import of_unit
from diversity_jax.synthesis.config import SteeringConfig

_DRAWS = 400
_LEAST_LEVEL = 1e-12  # the quantiles of smaller levels, of first looks, are lost to rounding


@dataclass(frozen=True, kw_only=True, eq=False)
class ArmOverlap:
    """How often documents of an arm share clusters, with each other and with the collection.

    Attributes:
      shared: x [n], for each unit (a document, or a grouping of the judge) the share of the collection in its cluster.
      own: y [n], the share of the arm's other documents in its cluster.
      existing: share of the collection's pairs in a common cluster; [n] where each unit gives an estimate.
      documents: N, of the collection.
      arm_documents: those of the arm.
      dollars: cost of a document of the arm, with failed attempts.
    """

    shared: np.ndarray
    own: np.ndarray
    existing: float | np.ndarray
    documents: int
    arm_documents: int
    dollars: float


@dataclass(frozen=True, kw_only=True)
class ArmDecision:
    """One look at one arm.

    Attributes:
      arm: its name.
      look: number of looks so far, this one included.
      gain, low, high: effective clusters per dollar, and the interval of this look; None with too few documents.
      stopped: whether the interval lies below the setting.
      reason: in words.
    """

    arm: str
    look: int
    reason: str
    gain: float | None = None
    low: float | None = None
    high: float | None = None
    stopped: bool = False


def overlap_of_labels(labels: np.ndarray, is_arm: np.ndarray, dollars: float) -> ArmOverlap:
    """The overlap of an arm, from the cluster of every document.

    Args:
      labels: int [N], clusters of all documents.
      is_arm: bool [N], whether a document is the arm's.
      dollars: cost of a document of the arm.
    """
    counts = np.bincount(labels)
    own_labels = labels[is_arm]
    own_counts = np.bincount(own_labels, minlength=len(counts))
    total, arm_total = len(labels), len(own_labels)
    return ArmOverlap(
        shared=(counts[own_labels] - 1) / max(total - 1, 1),
        own=(own_counts[own_labels] - 1) / max(arm_total - 1, 1),
        existing=float((counts * (counts - 1.0)).sum()) / max(total * (total - 1.0), 1.0),
        documents=total,
        arm_documents=arm_total,
        dollars=dollars,
    )


def effective_clusters(labels: np.ndarray) -> float:
    """Effective clusters of a collection: N^2 / sum n_c^2."""
    counts = np.bincount(labels).astype(float)
    return float(counts.sum() ** 2 / np.square(counts).sum()) if len(labels) else 0.0


def marginal_gain(overlap: ArmOverlap, added: int) -> Mean:
    """Effective clusters per dollar of `added` further documents of an arm.

    An imaginary document in a cluster of its own is added, so that an arm with a single cluster so far is not assumed
    to have no other.
    """
    shared, own = np.append(overlap.shared, 0.0), np.append(overlap.own, 0.0)
    existing = np.append(np.broadcast_to(overlap.existing, len(overlap.shared)), np.mean(overlap.existing))
    n, m = float(overlap.documents), float(max(1, added))
    x, y, t = shared.mean(), own.mean(), existing.mean()
    now = n + n * (n - 1) * t
    then = now + 2 * m * n * x + m + m * (m - 1) * y
    gain = (n + m) ** 2 / then - n**2 / now
    # Derivatives of the gain by x, y and t. Each of the arm's pairs has two of its documents, hence 2 for y.
    by_x = -((n + m) ** 2) / then**2 * 2 * m * n
    by_y = -((n + m) ** 2) / then**2 * m * (m - 1)
    by_t = (-((n + m) ** 2) / then**2 + n**2 / now**2) * n * (n - 1)
    influence = by_x * (shared - x) + 2 * by_y * (own - y) + by_t * (existing - t)
    freedom = max(len(influence) - 1, 1)
    error = float(np.sqrt(np.square(influence).sum() / freedom / len(influence)))
    cost = m * max(overlap.dollars, 1e-12)
    return Mean(value=float(gain) / cost, error=error / cost, freedom=freedom)


class Steering:
    """Decides at each look which arms continue, and their shares of the next dollars.

    Args:
      arms: their names.
      config: the settings.
      seed: of the bandit's draws.

    Attributes:
      stopped: the reason of every arm that does not continue.
      gains: the latest gain of every arm that has been tested.
    """

    def __init__(self, arms: Sequence[str], config: SteeringConfig, *, seed: int = 0):
        self.arms, self.config = tuple(arms), config
        self.stopped: dict[str, str] = {}
        self.gains: dict[str, Mean] = {}
        self._seed = seed
        self._looks: dict[str, int] = dict.fromkeys(arms, 0)
        self._levels = spent_levels(config.alpha / len(self.arms), config.looks)

    @property
    def live(self) -> list[str]:
        """Arms that are not stopped."""
        return [arm for arm in self.arms if arm not in self.stopped]

    def restore(self, decisions: Sequence[ArmDecision], gains: Mapping[str, Sequence[float]]) -> None:
        """Restores a round of an earlier process: its decisions, and (value, error, freedom) of every gain."""
        for arm, (value, error, freedom) in gains.items():
            self.gains[arm] = Mean(value=value, error=error, freedom=freedom)
        for decision in decisions:
            self._looks[decision.arm] = decision.look
            if decision.stopped:
                self.stopped[decision.arm] = decision.reason

    def stop(self, arm: str, reason: str) -> None:
        """Stops an arm for a reason other than its diversity."""
        self.stopped.setdefault(arm, reason)

    def look(self, overlaps: Mapping[str, ArmOverlap], added: int) -> list[ArmDecision]:
        """Tests every live arm for a round of about `added` documents.

        Only the planned looks may stop an arm: alpha is spent on them alone.
        """
        return [self._decide(arm, overlaps.get(arm), added) for arm in self.live]

    def _decide(self, arm: str, overlap: ArmOverlap | None, added: int) -> ArmDecision:
        config = self.config
        if overlap is None or overlap.arm_documents < config.min_documents:
            return ArmDecision(arm=arm, look=self._looks[arm], reason="too little to say")
        gain = self.gains[arm] = marginal_gain(overlap, added)
        is_planned = self._looks[arm] < config.looks
        self._looks[arm] += is_planned
        level = self._levels[self._looks[arm] - 1] if is_planned else config.alpha
        half = gain.half_width(1 - max(level, _LEAST_LEVEL))
        low, high = gain.value - half, gain.value + half
        stopped = is_planned and high < config.min_gain_per_dollar
        reason = "all planned looks are taken; it goes on"
        if is_planned:
            gained = f"{gain.value:.3g}"
            reason = f"{gained} {of_unit(gained, 'effective clusters')} a dollar, at most {high:.3g}"
        if stopped:
            reason = self.stopped[arm] = f"{reason}: below {config.min_gain_per_dollar:g}"
        return ArmDecision(
            arm=arm, look=self._looks[arm], gain=gain.value, low=low, high=high, stopped=stopped, reason=reason
        )

    def shares(self, round_number: int) -> dict[str, float]:
        """The share of the next round's dollars for every live arm.

        `explore_share` is divided evenly, the rest by Thompson sampling; all evenly until every live arm was tested.
        """
        live = self.live
        if not live or not all(arm in self.gains for arm in live):
            return {arm: 1 / len(live) for arm in live}
        generator = np.random.default_rng([self._seed, round_number])
        means = np.array([self.gains[arm].value for arm in live])
        errors = np.array([self.gains[arm].error for arm in live])
        draws = means + errors * generator.standard_normal((_DRAWS, len(live)))
        wins = np.bincount(draws.argmax(axis=1), minlength=len(live)) / _DRAWS
        explore = self.config.explore_share
        return {arm: explore / len(live) + (1 - explore) * float(win) for arm, win in zip(live, wins, strict=True)}


def allocate_documents(
    shares: Mapping[str, float], dollars_each: Mapping[str, float], documents: int
) -> dict[str, int]:
    """Documents for each arm whose dollars are in the ratio of `shares`, rounded by largest remainders."""
    rates = {arm: share / max(dollars_each[arm], 1e-12) for arm, share in shares.items()}
    total = math.fsum(rates.values())
    exact = {arm: documents * rate / total for arm, rate in rates.items()}
    allocated = {arm: int(value) for arm, value in exact.items()}
    for arm in sorted(exact, key=lambda arm: allocated[arm] - exact[arm])[: documents - sum(allocated.values())]:
        allocated[arm] += 1
    return allocated

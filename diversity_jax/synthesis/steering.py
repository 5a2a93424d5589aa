"""Which arms of a generation still pay: marginal effective clusters per dollar, a sequential test, and a bandit.

An arm is a way to write (a template, a style, a generator, a number of topics). A collection of N documents has
S = sum n_c^2 over its clusters, and N^2 / S effective clusters (Hill number of order 2, documents paired with
themselves too). Adding m documents of an arm makes S' = S + 2 m N x + m + m (m - 1) y, where x is the probability that
a document of the arm shares the cluster of a random document of the collection, and y that two of the arm share one.
The marginal gain is ((N + m)^2 / S' - N^2 / S) / (m * dollars a document). Random in it are the arm's future documents,
so x and y are means over the arm's own documents, each left out of what it is compared with, and the error of the gain
follows by the delta method.

An arm is stopped at the look at which the upper end of its gain, at the level that `spent_levels` assigns to that look,
lies below the setting. The levels of one arm add up to alpha / arms, so the probability that ANY arm is stopped wrongly
is at most alpha. The next round's dollars are divided by Thompson sampling: an arm's share is the probability that its
gain, drawn from its estimate, is the highest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import math

import numpy as np

from diversity_jax.cluster_agent.sequential_test import spent_levels
from diversity_jax.core.intervals import t_quantile
from diversity_jax.synthesis.config import SteeringConfig

_DRAWS = 400
_LEAST_LEVEL = 1e-12  # smaller ones, of first looks, have no quantile in floating point


@dataclass(frozen=True, kw_only=True, eq=False)
class ArmOverlap:
    """How one arm's documents lie among those of the collection.

    Attributes:
      shared: x [n], for each unit (a document, or a grouping of the judge) the share of the collection in its cluster.
      own: y [n], the same among the arm's other documents.
      existing: share of the collection's pairs that lie in one cluster: [n] where it is estimated with the units, else
        a number.
      documents: N, of the collection.
      arm_documents: how many of them are the arm's.
      dollars: cost of a document of the arm, its failed attempts included.
    """

    shared: np.ndarray
    own: np.ndarray
    existing: float | np.ndarray
    documents: int
    arm_documents: int
    dollars: float


@dataclass(frozen=True, kw_only=True)
class Gain:
    """Marginal effective clusters per dollar of one arm: estimate, standard error and its degrees of freedom."""

    value: float
    error: float
    freedom: int

    def bound(self, level: float, side: int) -> float:
        """The upper (side 1) or lower (side -1) end of a two-sided interval at `level`."""
        return self.value + side * t_quantile(1 - max(level, _LEAST_LEVEL) / 2, self.freedom) * self.error


@dataclass(frozen=True, kw_only=True)
class ArmDecision:
    """One look at one arm.

    Attributes:
      arm: its name.
      look: number of looks so far, this one included.
      gain, low, high: effective clusters per dollar, and the ends at this look's level; None with too few documents.
      stopped: whether this look decided that the arm no longer pays.
      reason: in words.
    """

    arm: str
    look: int
    gain: float | None
    low: float | None
    high: float | None
    stopped: bool
    reason: str


def evidence_of_labels(labels: np.ndarray, is_arm: np.ndarray, dollars: float) -> ArmOverlap:
    """ArmOverlap from a cluster number for every document.

    Args:
      labels: int [N], clusters of all documents.
      is_arm: bool [N], which are the arm's.
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


def marginal_gain(evidence: ArmOverlap, added: int) -> Gain:
    """Effective clusters per dollar of `added` further documents of an arm.

    One imaginary document in a cluster of its own is added to the evidence, so that an arm which has shown one cluster
    only is not taken to have no other.
    """
    shared, own = np.append(evidence.shared, 0.0), np.append(evidence.own, 0.0)
    existing = np.append(np.broadcast_to(evidence.existing, len(evidence.shared)), np.mean(evidence.existing))
    n, m = float(evidence.documents), float(max(1, added))
    x, y, t = shared.mean(), own.mean(), existing.mean()
    now = n + n * (n - 1) * t
    then = now + 2 * m * n * x + m + m * (m - 1) * y
    gain = (n + m) ** 2 / then - n**2 / now
    # Derivatives of the gain by x, y and t. A pair of the arm's documents counts for both of them, hence twice the
    # deviation of y.
    by_x = -((n + m) ** 2) / then**2 * 2 * m * n
    by_y = -((n + m) ** 2) / then**2 * m * (m - 1)
    by_t = (-((n + m) ** 2) / then**2 + n**2 / now**2) * n * (n - 1)
    influence = by_x * (shared - x) + 2 * by_y * (own - y) + by_t * (existing - t)
    freedom = max(len(influence) - 1, 1)
    error = float(np.sqrt(np.square(influence).sum() / freedom / len(influence)))
    cost = m * max(evidence.dollars, 1e-12)
    return Gain(value=float(gain) / cost, error=error / cost, freedom=freedom)


class Steering:
    """Decides, look by look, which arms continue and what share each gets; knows nothing of text.

    Args:
      arms: their names.
      config: the settings.
      seed: of the bandit's draws.

    Attributes:
      stopped: arms that do not continue, with the reason.
      gains: the latest estimate of every arm that has been looked at.
    """

    def __init__(self, arms: Sequence[str], config: SteeringConfig, *, seed: int = 0):
        self.arms, self.config = tuple(arms), config
        self.stopped: dict[str, str] = {}
        self.gains: dict[str, Gain] = {}
        self._seed = seed
        self._looks: dict[str, int] = dict.fromkeys(arms, 0)
        self._levels = spent_levels(config.alpha / len(self.arms), config.looks)

    @property
    def live(self) -> list[str]:
        """Arms that are not stopped."""
        return [arm for arm in self.arms if arm not in self.stopped]

    def restore(self, verdicts: Sequence[ArmDecision], gains: Mapping[str, Sequence[float]]) -> None:
        """Takes up a round of an earlier process: its verdicts, and (value, error, freedom) of every gain."""
        for arm, (value, error, freedom) in gains.items():
            self.gains[arm] = Gain(value=value, error=error, freedom=int(freedom))
        for verdict in verdicts:
            self._looks[verdict.arm] = verdict.look
            if verdict.stopped:
                self.stopped[verdict.arm] = verdict.reason

    def stop(self, arm: str, reason: str) -> None:
        """Stops an arm for another reason than its diversity: its generator is stopped, or its grid is done."""
        self.stopped.setdefault(arm, reason)

    def look(self, evidence: Mapping[str, ArmOverlap], added: int) -> list[ArmDecision]:
        """Tests every live arm; `added` is about what a round adds.

        Only the planned looks may stop an arm: the error of further ones is not accounted for.
        """
        return [self._verdict(arm, evidence.get(arm), added) for arm in self.live]

    def _verdict(self, arm: str, evidence: ArmOverlap | None, added: int) -> ArmDecision:
        config = self.config
        if evidence is None or evidence.arm_documents < config.min_documents:
            return ArmDecision(
                arm=arm,
                look=self._looks[arm],
                gain=None,
                low=None,
                high=None,
                stopped=False,
                reason="too little to say",
            )
        gain = self.gains[arm] = marginal_gain(evidence, added)
        is_planned = self._looks[arm] < config.looks
        self._looks[arm] += is_planned
        level = self._levels[self._looks[arm] - 1] if is_planned else config.alpha
        low, high = gain.bound(level, -1), gain.bound(level, 1)
        stopped = is_planned and high < config.min_gain_per_dollar
        reason = "all planned looks are taken; it goes on"
        if is_planned:
            reason = f"{gain.value:.3g} effective clusters a dollar, at most {high:.3g}"
        if stopped:
            reason = self.stopped[arm] = f"{reason}: below {config.min_gain_per_dollar:g}"
        return ArmDecision(
            arm=arm, look=self._looks[arm], gain=gain.value, low=low, high=high, stopped=stopped, reason=reason
        )

    def shares(self, round_number: int) -> dict[str, float]:
        """The share of the next round's dollars for every live arm.

        `explore_share` is divided evenly, the rest by Thompson sampling among arms that have been looked at. Until all
        live arms have been, they get equal shares.
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
    """Documents for each arm so that their dollars are in the ratio of `shares`, rounded by largest remainders."""
    rates = {arm: share / max(dollars_each[arm], 1e-12) for arm, share in shares.items()}
    total = math.fsum(rates.values())
    exact = {arm: documents * rate / total for arm, rate in rates.items()}
    allocated = {arm: int(value) for arm, value in exact.items()}
    for arm in sorted(exact, key=lambda arm: allocated[arm] - exact[arm])[: documents - sum(allocated.values())]:
        allocated[arm] += 1
    return allocated

"""From partitions to figures: how diverse a corpus is, and how sure that is.

One grouping shows a judge K samples and gets a partition of them. What enters the figures is four integers a grouping
(`Groupings`), so that 5,000 groupings are 80 kB. Notation: p_c is the share of the corpus in cluster c, theta = sum
  p_c^2 and
theta3 = sum p_c^3. The mean collision estimates theta without bias at any K >= 2, because two samples of a grouping are
two random documents however many others lie beside them; 1 / theta is the Hill number of order 2.
"""

from collections.abc import Sequence
from dataclasses import dataclass
import math

import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.core.intervals import Estimate

FEWEST_PAIRS = 10  # under so many co-clustered pairs the log interval does not hold and only a lower bound is given


@dataclass(frozen=True, kw_only=True, eq=False)
class Groupings:
    """What the partitions of one corpus come to. Arrays are [N], one entry a usable grouping, in the order they were
    drawn.

    Attributes:
      samples_per_grouping: K.
      criteria_set: which of the B criteria sets the grouping was judged by, 0 to B - 1.
      clusters: C, clusters left after those that verification called invalid are dropped.
      kept: n, samples in those clusters.
      pairs: pairs of samples in one valid cluster. The samples of an invalid cluster count as singletons here: "these
        belong together" was asserted wrongly and nothing else is known of them.
    """

    samples_per_grouping: int
    criteria_set: np.ndarray
    clusters: np.ndarray
    kept: np.ndarray
    pairs: np.ndarray

    def __post_init__(self):
        if self.samples_per_grouping < 2:
            raise InputError(f"samples_per_grouping: {self.samples_per_grouping} samples make no pair; give at least 2")
        for name in ("criteria_set", "clusters", "kept", "pairs"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), np.int32))
        if (
            len({getattr(self, name).shape for name in ("criteria_set", "clusters", "kept", "pairs")}) != 1
            or self.clusters.ndim != 1
        ):
            raise InputError("groupings: criteria_set, clusters, kept and pairs must be of one length")
        if len(self) and not (
            (self.kept <= self.samples_per_grouping).all()
            and (self.clusters <= self.kept).all()
            and (self.pairs <= self.pairs_of_one).all()
        ):
            raise InputError(
                f"groupings: counts do not fit {self.samples_per_grouping} samples a grouping; the file is damaged"
            )

    def __len__(self) -> int:
        return len(self.clusters)

    @property
    def pairs_of_one(self) -> int:
        """Pairs in one grouping, K (K - 1) / 2."""
        return self.samples_per_grouping * (self.samples_per_grouping - 1) // 2

    @property
    def collisions(self) -> np.ndarray:
        """T_i [N]: share of a grouping's pairs that lie in one cluster."""
        return self.pairs / self.pairs_of_one

    def first(self, count: int) -> "Groupings":
        """The first `count` groupings."""
        names = ("criteria_set", "clusters", "kept", "pairs")
        return Groupings(
            samples_per_grouping=self.samples_per_grouping, **{name: getattr(self, name)[:count] for name in names}
        )


def count_partition(sizes: Sequence[int], valid: Sequence[bool]) -> tuple[int, int, int]:
    """Of one partition: (clusters left, samples left, co-clustered pairs), all over valid clusters only.

    Dropping an invalid cluster from the pairs is the same as making its samples singletons: neither adds a pair.
    """
    left = [size for size, good in zip(sizes, valid, strict=True) if good]
    return len(left), sum(left), sum(size * (size - 1) // 2 for size in left)


@dataclass(frozen=True, kw_only=True)
class Mean:
    """A mean, its standard error, and the degrees of freedom of that error."""

    value: float
    error: float
    freedom: int

    def half_width(self, confidence: float) -> float:
        """Half the width of the t interval."""
        return t_quantile(0.5 + confidence / 2, self.freedom) * self.error


def load() -> None:
    """Imports what the quantiles need, which takes a fifth of a second, at a time that suits the caller."""
    import scipy.special  # noqa: F401


def t_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, probability))


def mean_over_sets(values: np.ndarray, criteria_set: np.ndarray) -> Mean:
    """The mean of `values` [N] with an error that holds although criteria are random too.

    With one criteria set this is the usual standard error. With B > 1 each set's own deviation is one draw: it holds
    the variance between sets and within them in their right proportion, so B - 1 degrees of freedom are all there are.
    Sets of unequal size (dropped groupings) are weighted by size.
    """
    count = len(values)
    mean = float(values.mean())
    sets, index = np.unique(criteria_set, return_inverse=True)
    if len(sets) == 1:
        error = float(values.std(ddof=1)) / math.sqrt(count) if count > 1 else 0.0
        return Mean(value=mean, error=error, freedom=max(count - 1, 1))
    deviations = np.bincount(index, values - mean) / count
    scale = len(sets) / (len(sets) - 1)
    return Mean(value=mean, error=math.sqrt(scale * float(deviations @ deviations)), freedom=len(sets) - 1)


def collision_mean(groupings: Groupings) -> Mean:
    """Mean and error of T. Where every grouping (or set) agrees, the error is the least that theta allows, not zero."""
    mean = mean_over_sets(groupings.collisions, groupings.criteria_set)
    if mean.error > 0:
        return mean
    # theta3 >= theta^2 always, so this is a floor of the variance whatever the clusters' sizes are.
    least = collision_variance(mean.value, mean.value**2, groupings.samples_per_grouping)
    return Mean(value=mean.value, error=math.sqrt(least / len(groupings)), freedom=mean.freedom)


def collision_variance(theta: float, theta3: float, samples_per_grouping: int) -> float:
    """Variance of one grouping's T when its K samples are independent draws: the variance of a U-statistic of order
    2.
    """
    k = samples_per_grouping
    return 2 / (k * (k - 1)) * (2 * (k - 2) * (theta3 - theta**2) + theta * (1 - theta))


def groupings_needed(
    theta: float, theta3: float, samples_per_grouping: int, relative: float = 0.05, confidence: float = 0.95
) -> int:
    """Groupings for an interval of +-`relative` around 1 / theta, with one criteria set."""
    from scipy.special import ndtri

    variance = collision_variance(theta, theta3, samples_per_grouping) / theta**2
    return math.ceil(variance * (ndtri(0.5 + confidence / 2) / relative) ** 2)


def collision_bound(groupings: Groupings, confidence: float = 0.95) -> float:
    """One-sided upper bound of theta from few pairs.

    Poisson, with pairs that come in clumps (a cluster of four is six pairs) counted as the fewer events that they are.
    With no pair at all it is 3 / (N K (K - 1) / 2).
    """
    from scipy.special import gammaincinv

    pairs = groupings.pairs.astype(float)
    total = float(pairs.sum())
    clump = float(pairs @ pairs) / total if total else 1.0
    events = float(gammaincinv(total / clump + 1, confidence))
    return min(1.0, clump * events / (len(groupings) * groupings.pairs_of_one))


def collision(groupings: Groupings, confidence: float = 0.95) -> Estimate:
    """T with its interval theta * exp(+-t s / (theta sqrt(N))); under `FEWEST_PAIRS` pairs [0, a one-sided bound]."""
    _some(groupings)
    mean = collision_mean(groupings)
    if groupings.pairs.sum() < FEWEST_PAIRS:
        # With so few groupings that everything they hold makes under ten pairs, T may be 1; the bound is then 1 too.
        return Estimate(value=mean.value, low=0.0, high=max(mean.value, collision_bound(groupings, confidence)))
    if mean.value == 1.0:
        # Nothing was ever told apart; by the rule of three at most 3 groupings in N would have one sample apart from
        # the rest.
        return Estimate(
            value=1.0, low=1.0 - min(1.0, 3 / len(groupings)) * 2 / groupings.samples_per_grouping, high=1.0
        )
    factor = math.exp(min(mean.half_width(confidence) / mean.value, 700.0))
    return Estimate(value=mean.value, low=mean.value / factor, high=min(1.0, mean.value * factor))


def effective_clusters(groupings: Groupings, confidence: float = 0.95) -> Estimate:
    """1 / T, the number of equally common clusters that would collide as often: the same figure at every K.

    Under `FEWEST_PAIRS` pairs `high` is None and `low` a one-sided bound. With no pair at all 1 / T is infinite, and
    `value` repeats the bound.
    """
    return invert(collision(groupings, confidence))


def invert(theta: Estimate) -> Estimate:
    """Effective clusters of a collision estimate."""
    low = 1.0 / theta.high
    return Estimate(
        value=1.0 / theta.value if theta.value else low, low=low, high=1.0 / theta.low if theta.low else None
    )


def cluster_score(groupings: Groupings, confidence: float = 0.95) -> Estimate:
    """The paper's score, mean of C_i / S_i with S_i = n_i / C_i, so C_i^2 / n_i; in [1/K, K], comparable at equal K
    only.

    Invalid clusters are dropped with their samples, as in the paper. A grouping without a valid cluster has no C / S
    and is left out of this mean.
    """
    some = groupings.clusters > 0
    values = groupings.clusters[some] ** 2.0 / groupings.kept[some]
    k = groupings.samples_per_grouping
    return _plain(values, groupings.criteria_set[some], 1.0 / k, float(k), confidence)


def clusters_per_sample(groupings: Groupings, confidence: float = 0.95) -> Estimate:
    """Mean of C_i / K over the groupings that `cluster_score` counts; in (0, 1]."""
    some = groupings.clusters > 0
    values = groupings.clusters[some] / groupings.samples_per_grouping
    return _plain(values, groupings.criteria_set[some], 1.0 / groupings.samples_per_grouping, 1.0, confidence)


def _plain(values: np.ndarray, criteria_set: np.ndarray, least: float, most: float, confidence: float) -> Estimate:
    if not len(values):
        return Estimate(value=least, low=least, high=most)
    mean = mean_over_sets(values, criteria_set)
    half = mean.half_width(confidence)
    return Estimate(value=mean.value, low=max(least, mean.value - half), high=min(most, mean.value + half))


def in_a_corpus_of(documents: int, theta: Estimate) -> Estimate:
    """Effective clusters of exactly these documents, where a corpus is all there is and not a sample of what could be
    written.

    T counts pairs of two different documents. Two draws WITH replacement also meet the same document, one time in
    `documents`, so sum p_c^2 of the file itself is 1/D + (1 - 1/D) T, and no corpus has more clusters than documents.
    """

    def whole(value: float) -> float:
        return 1.0 / documents + (1.0 - 1.0 / documents) * value

    return Estimate(value=1.0 / whole(theta.value), low=1.0 / whole(theta.high), high=1.0 / whole(theta.low))


def relative_half_width(groupings: Groupings, confidence: float = 0.95) -> float:
    """Half-width of the log interval of `effective_clusters`; infinite where only a bound is known."""
    if groupings.pairs.sum() < FEWEST_PAIRS:
        return math.inf
    mean = collision_mean(groupings)
    return mean.half_width(confidence) / mean.value


def convergence(groupings: Groupings, points: int = 40) -> dict[str, list]:
    """How `effective_clusters` settled: the estimate after about `points` growing counts of groupings, for a page."""
    counts = np.unique(np.geomspace(min(5, len(groupings)), len(groupings), points).round().astype(int))
    estimates = [effective_clusters(groupings.first(int(count))) for count in counts]
    return {"groupings": counts.tolist()} | {
        name: [getattr(e, name) for e in estimates] for name in ("value", "low", "high")
    }


def across_draws(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """Mean and t interval of a figure scored on several independent draws of a corpus (the paper's 10 draws of
    1,000,000).
    """
    if len(values) < 2:
        raise InputError(f"{len(values)} draw has no spread; give at least 2 draws")
    array = np.asarray(values, float)
    mean = Mean(
        value=float(array.mean()), error=float(array.std(ddof=1)) / math.sqrt(len(array)), freedom=len(array) - 1
    )
    half = mean.half_width(confidence)
    return Estimate(value=mean.value, low=mean.value - half, high=mean.value + half)


def _some(groupings: Groupings) -> None:
    if not len(groupings):
        raise InputError("no usable grouping to estimate from; see the counts of dropped groupings for the reasons")

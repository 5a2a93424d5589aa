"""From partitions to figures: how diverse a corpus is, and how sure that is.

One grouping shows a judge K samples and gets a partition of them. Four integers a grouping enter the figures
(`Groupings`), so that 5,000 groupings are 80 kB. Notation: p_c is the share of the corpus in cluster c, theta = sum
p_c^2 and theta3 = sum p_c^3. The mean collision estimates theta without bias at any K >= 2, because two samples of a
grouping are two random documents however many others are shown with them; 1 / theta is the Hill number of order 2
(Hill 1973). Formulas and their measured coverage are in docs/statistics.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
import math

import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.core.intervals import Estimate

FEWEST_PAIRS = 10  # under so many co-clustered pairs the log interval does not hold and only a lower bound is given
COLUMNS = ("criteria_set", "clusters", "kept", "pairs")
_LARGEST_EXPONENT = 700.0  # math.exp overflows at 710


@dataclass(frozen=True, kw_only=True, eq=False)
class Groupings:
    """Counts of the partitions of one corpus. Arrays are [N], one entry a usable grouping, in the order of drawing.

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
        for name in COLUMNS:
            object.__setattr__(self, name, np.asarray(getattr(self, name), np.int32))
        if len({getattr(self, name).shape for name in COLUMNS}) != 1 or self.clusters.ndim != 1:
            raise InputError("groupings: criteria_set, clusters, kept and pairs must be of one length")
        fits = (self.kept <= self.samples_per_grouping) & (self.pairs <= self.possible_pairs)
        if not (fits & (self.clusters <= self.kept)).all():
            raise InputError(
                f"groupings: counts do not fit {self.samples_per_grouping} samples a grouping; the file is damaged"
            )

    @classmethod
    def of_rows(cls, samples_per_grouping: int, rows: Sequence[tuple[int, int, int, int]]) -> "Groupings":
        """From one row of `COLUMNS` for each grouping."""
        columns = np.array(rows, np.int32).reshape(-1, len(COLUMNS)).T
        return cls(samples_per_grouping=samples_per_grouping, **dict(zip(COLUMNS, columns, strict=True)))

    def __len__(self) -> int:
        return len(self.clusters)

    @property
    def possible_pairs(self) -> int:
        """Pairs in one grouping, K (K - 1) / 2."""
        return self.samples_per_grouping * (self.samples_per_grouping - 1) // 2

    @property
    def collisions(self) -> np.ndarray:
        """T_i [N]: share of a grouping's pairs that are in one cluster."""
        return self.pairs / self.possible_pairs

    def first(self, count: int) -> "Groupings":
        """The first `count` groupings."""
        columns = {name: getattr(self, name)[:count] for name in COLUMNS}
        return Groupings(samples_per_grouping=self.samples_per_grouping, **columns)


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

    def log_factor(self, confidence: float) -> float:
        """Upper end of the t interval of the logarithm, over the mean."""
        return math.exp(min(self.half_width(confidence) / self.value, _LARGEST_EXPONENT))


def t_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, probability))


def mean_over_sets(values: np.ndarray, criteria_set: np.ndarray) -> Mean:
    """The mean of `values` [N] with an error that holds although criteria are random too.

    With one criteria set this is the usual standard error. With B > 1 each set's deviation from the mean is one draw
    with B - 1 degrees of freedom, which holds the variance between sets and within them in their right proportion (a
    two-level interval, docs/statistics.md, "Intervals"). Sets of unequal size are weighted by size.
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
    """Variance of one grouping's T, its K samples independent draws: of a U-statistic of order 2 (Hoeffding 1948)."""
    k = samples_per_grouping
    return 2 / (k * (k - 1)) * (2 * (k - 2) * (theta3 - theta**2) + theta * (1 - theta))


def collision_bound(groupings: Groupings, confidence: float = 0.95) -> float:
    """One-sided upper bound of theta from few pairs.

    The exact bound of a Poisson mean (Garwood 1936), with pairs that come in clumps (a cluster of four is six pairs)
    counted as the fewer events that they are. With no pair at all it is 3 / (N K (K - 1) / 2).
    """
    from scipy.special import gammaincinv

    pairs = groupings.pairs.astype(float)
    total = float(pairs.sum())
    clump = float(pairs @ pairs) / total if total else 1.0
    events = float(gammaincinv(total / clump + 1, confidence))
    return min(1.0, clump * events / (len(groupings) * groupings.possible_pairs))


def collision(groupings: Groupings, confidence: float = 0.95) -> Estimate:
    """T with its interval theta * exp(+-t s / theta), s the error of the mean; under `FEWEST_PAIRS` pairs [0, a
    one-sided bound].

    Raises:
      InputError: no grouping.
    """
    if not len(groupings):
        raise InputError("no usable grouping to estimate from; see the counts of dropped groupings for the reasons")
    mean = collision_mean(groupings)
    if groupings.pairs.sum() < FEWEST_PAIRS:
        # With so few groupings that everything they hold makes under ten pairs, T may be 1; the bound is then 1 too.
        return Estimate(value=mean.value, low=0.0, high=max(mean.value, collision_bound(groupings, confidence)))
    if mean.value == 1.0:
        # All samples were always in one cluster; by the rule of three at most 3 groupings in N would have one sample
        # apart from the rest.
        low = 1.0 - min(1.0, 3 / len(groupings)) * 2 / groupings.samples_per_grouping
        return Estimate(value=1.0, low=low, high=1.0)
    factor = mean.log_factor(confidence)
    return Estimate(value=mean.value, low=mean.value / factor, high=min(1.0, mean.value * factor))


def effective_clusters(groupings: Groupings, confidence: float = 0.95) -> Estimate:
    """1 / T, the number of equally common clusters that would collide as often: the same figure at every K.

    Under `FEWEST_PAIRS` pairs `high` is None and `low` a one-sided bound. With no pair at all 1 / T is infinite, and
    `value` repeats the bound.
    """
    return invert(collision(groupings, confidence))


def invert(theta: Estimate) -> Estimate:
    """Effective clusters of a collision estimate."""
    low, high = theta.bounds
    least = 1.0 / high
    return Estimate(value=1.0 / theta.value if theta.value else least, low=least, high=1.0 / low if low else None)


def cluster_score(groupings: Groupings, confidence: float = 0.95) -> Estimate:
    """The paper's score, mean of C_i / S_i with S_i = n_i / C_i, so C_i^2 / n_i; in [1/K, K], comparable at equal K
    only.

    Invalid clusters are dropped with their samples, as in the paper. A grouping without a valid cluster has no C / S
    and is left out of this mean.
    """
    k = groupings.samples_per_grouping
    return _mean_of_valid(groupings, groupings.clusters**2.0 / np.maximum(groupings.kept, 1), 1.0 / k, k, confidence)


def clusters_per_sample(groupings: Groupings, confidence: float = 0.95) -> Estimate:
    """Mean of C_i / K over the groupings that `cluster_score` counts; in (0, 1]."""
    k = groupings.samples_per_grouping
    return _mean_of_valid(groupings, groupings.clusters / k, 1.0 / k, 1.0, confidence)


def _mean_of_valid(groupings: Groupings, values: np.ndarray, least: float, most: float, confidence: float) -> Estimate:
    """Mean of values over groupings with a valid cluster, its interval cut to what is possible."""
    some = groupings.clusters > 0
    if not some.any():
        return Estimate(value=least, low=least, high=float(most))
    mean = mean_over_sets(values[some], groupings.criteria_set[some])
    half = mean.half_width(confidence)
    return Estimate(value=mean.value, low=max(least, mean.value - half), high=min(float(most), mean.value + half))


def in_a_corpus_of(documents: int, theta: Estimate) -> Estimate:
    """Effective clusters of exactly these documents, where a corpus is all there is and not a sample of what could be
    written.

    T counts pairs of two different documents. Two draws WITH replacement also meet the same document, one time in
    `documents`, so sum p_c^2 of the file itself is 1/D + (1 - 1/D) T, and no corpus has more clusters than documents.
    """

    def clusters(value: float) -> float:
        return 1.0 / (1.0 / documents + (1.0 - 1.0 / documents) * value)

    low, high = theta.bounds
    return Estimate(value=clusters(theta.value), low=clusters(high), high=clusters(low))


def convergence(groupings: Groupings, points: int = 40) -> dict[str, list]:
    """How `effective_clusters` settled: the estimate after about `points` growing counts of groupings, for a page."""
    counts = np.unique(np.geomspace(min(5, len(groupings)), len(groupings), points).round().astype(int))
    estimates = [effective_clusters(groupings.first(int(count))) for count in counts]
    series = {name: [getattr(estimate, name) for estimate in estimates] for name in ("value", "low", "high")}
    return {"groupings": counts.tolist()} | series


def across_draws(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """Mean and t interval of a figure scored on several independent draws of a corpus (the paper's 10 draws of
    1,000,000).

    Raises:
      InputError: fewer than 2 values.
    """
    if len(values) < 2:
        raise InputError(f"{len(values)} draw has no spread; give at least 2 draws")
    mean = mean_over_sets(np.asarray(values, float), np.zeros(len(values)))
    half = mean.half_width(confidence)
    return Estimate(value=mean.value, low=mean.value - half, high=mean.value + half)

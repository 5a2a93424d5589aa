"""Estimators: from partitions to the diversity of a corpus, with intervals.

Notation: p_c is the share of the corpus in cluster c, theta = sum p_c^2 and theta3 = sum p_c^3. T, the share of pairs
in one cluster, estimates theta without bias at any K >= 2, because two samples of a grouping are two random documents;
1 / theta is the Hill number of order 2 (Hill 1973). Formulas and their measured coverage are in docs/statistics.md.
"""

from collections.abc import Callable, Sequence
import math

import numpy as np

from diversity_jax.cluster_agent import uncertainty
from diversity_jax.cluster_agent.groupings import Groupings
from diversity_jax.cluster_agent.uncertainty import Mean, mean_over_sets
from diversity_jax.core.errors import InputError
from diversity_jax.core.intervals import Estimate
from diversity_jax.core.lazy import special_functions

FEWEST_PAIRS = 10  # co-clustered pairs, below which the log interval is not valid and only a bound is given


def double_sampled(groupings: Groupings, claimed: np.ndarray, counted: np.ndarray, slope: float = 1.0) -> np.ndarray:
    """Pseudo-values [N] of a figure that is `claimed` before and `counted` after verification, where only some
    groupings were verified.

    Their mean is the mean of `claimed` less the weighted mean of the change over the verified groupings (double
    sampling for a difference, Cochran 1977, chapter 12). Each includes its grouping's influence on that, so that they
    can be used like values of independent groupings.

    Args:
      slope: regression slope of `counted` on `claimed`, where that is another figure, correlated with it.

    Raises:
      InputError: not one grouping was verified.
    """
    if groupings.weight is None:
        return counted.astype(float)
    total = float(groupings.weight.sum())
    if not total:
        raise InputError("no usable grouping was verified; verify a larger share of them")
    change = slope * claimed - counted
    mean = float(groupings.weight @ change) / total
    return slope * claimed - mean - groupings.weight * (len(groupings) / total) * (change - mean)


def values(groupings: Groupings) -> np.ndarray:
    """Pseudo-values [N] of T, one for each grouping, whose mean estimates theta: with the corrections for verification
    and for the control variate.
    """
    return _values(groupings)[0]


def _values(groupings: Groupings) -> tuple[np.ndarray, float]:
    """`values`, and the variance that the estimated corpus means of the control variate add to their mean."""
    pairs = groupings.pairs if groupings.claimed_pairs is None else groupings.claimed_pairs
    counted = double_sampled(groupings, pairs / groupings.possible_pairs, groupings.collisions)
    means, covariance = groupings.feature_means, groupings.feature_means_covariance
    if groupings.features is None or means is None or covariance is None:
        return counted, 0.0
    return uncertainty.adjust(counted, groupings.features, means, covariance)


def collision_mean(groupings: Groupings, documents: int | None = None) -> Mean:
    """Mean and error of T.

    Where all groupings (or sets) are equal, the error is the least that theta allows, not zero.

    Args:
      documents: number in the corpus; the error then includes that they are a sample. None: of exactly these documents.
    """
    pseudo_values, added = _values(groupings)
    # Scores of earlier versions, which have no triples, keep their unbounded errors.
    mean = mean_over_sets(pseudo_values, groupings.criteria_set, bounded=groupings.triples is not None)
    if not mean.error:
        # theta3 >= theta^2, so this is a lower bound of the variance for all cluster sizes.
        least = collision_variance(mean.value, mean.value**2, groupings.samples_per_grouping)
        mean = Mean(value=mean.value, error=math.sqrt(max(0.0, least) / len(groupings)), freedom=mean.freedom)
    if added:
        mean = mean.with_error(math.sqrt(added), len(groupings))
    return mean if documents is None else mean.with_error(*documents_error(groupings, mean.value, documents))


def collision_variance(theta: float, theta3: float, samples_per_grouping: int) -> float:
    """Variance of one grouping's T, a U-statistic of order 2 of K independent draws (Hoeffding 1948)."""
    k = samples_per_grouping
    return 2 / (k * (k - 1)) * (2 * (k - 2) * (theta3 - theta**2) + theta * (1 - theta))


def _triple_values(groupings: Groupings) -> np.ndarray | None:
    """Pseudo-values [N] of theta3: the share of triples of samples in one cluster; None where triples are unknown.

    Triples of groupings that were not verified are predicted from their pairs.
    """
    if groupings.triples is None or groupings.samples_per_grouping < 3:
        return None
    triples = groupings.triples / math.comb(groupings.samples_per_grouping, 3)
    pairs, weight = groupings.claimed_pairs, groupings.weight
    if weight is not None and pairs is not None and weight.any():
        centred = pairs - weight @ pairs / weight.sum()
        spread = float(weight @ centred**2)
        slope = float(weight @ (centred * triples)) / spread if spread else 0.0
        triples = double_sampled(groupings, pairs, triples, slope)
    return triples


def documents_error(groupings: Groupings, theta: float, documents: int) -> tuple[float, float]:
    """(Standard error, degrees of freedom) of T due to the corpus's documents being a sample.

    T of a corpus is a U-statistic of order 2 over its D documents: its variance is 4 (theta3 - theta^2) / D
    + 2 theta (1 - theta) / (D (D - 1)), nearly (Hoeffding 1948), with theta3 = sum p_c^3 at most theta^1.5. The
    estimated first term may be negative where clusters are even, and then reduces the second by at most half. The
    degrees of freedom are 2 V^2 / Var(V) (Satterthwaite 1946), with the variance of V over groupings; where triples are
    unknown V is the largest possible.
    """
    theta = min(max(theta, 0.0), 1.0)
    triples = _triple_values(groupings)
    theta3 = theta**1.5
    if triples is not None:
        # One triple more than was seen: in few groupings of few samples there may be none although a cluster is large.
        more = 1 / (len(groupings) * math.comb(groupings.samples_per_grouping, 3))
        theta3 = min(theta3, float(triples.mean()) + more)
    least = 2 * theta * (1 - theta) / (documents * max(documents - 1, 1))
    variance = max(4 * (theta3 - theta**2) / documents + least, least / 2)
    freedom = float(len(groupings))
    if triples is not None and variance:
        influence = 4 * (triples - 2 * theta * values(groupings)) / documents
        freedom = 2 * variance**2 / max(float(influence.var()) / len(groupings), 1e-300)
    return math.sqrt(variance), min(max(freedom, 1.0), max(1.0, len(groupings) - 1.0))


def collision_bound(groupings: Groupings, confidence: float = 0.95) -> float:
    """One-sided upper bound of theta from few pairs.

    The exact bound of a Poisson mean (Garwood 1936), with the number of pairs divided by their mean clump size (a
    cluster of four is six pairs, but one event). Without any pair it is 3 / (N K (K - 1) / 2).
    """
    pairs = groupings.pairs.astype(float)
    total = float(pairs.sum())
    clump = float(pairs @ pairs) / total if total else 1.0
    events = float(special_functions().gammaincinv(total / clump + 1, confidence))
    return min(1.0, clump * events / (len(groupings) * groupings.possible_pairs))


def collision(groupings: Groupings, confidence: float = 0.95, *, documents: int | None = None) -> Estimate:
    """T with the interval theta * exp(+-t s / theta), s the error of the mean; below `FEWEST_PAIRS` pairs [0, a
    one-sided bound].

    Args:
      documents: number in the corpus, for T of the population that they are a sample of. None is for T of exactly these
        documents: the interval includes the sampling of groupings and of criteria only.

    Raises:
      InputError: no grouping.
    """
    if not len(groupings):
        raise InputError("no usable grouping to estimate from; see the counts of dropped groupings for the reasons")
    mean = collision_mean(groupings, documents)
    if groupings.pairs.sum() < FEWEST_PAIRS or mean.value <= 0:
        # In few small groupings all samples may make fewer than ten pairs: then T may be 1, and the bound is too.
        value = float(groupings.collisions.mean())
        return Estimate(value=value, low=0.0, high=max(value, collision_bound(groupings, confidence)))
    if mean.value >= 1.0:
        # All samples were always in one cluster; by the rule of three at most 3 in N groupings would have one sample
        # apart from the others.
        low = 1.0 - min(1.0, 3 / len(groupings)) * 2 / groupings.samples_per_grouping
        return Estimate(value=1.0, low=low, high=1.0)
    factor = mean.log_factor(confidence)
    return Estimate(value=mean.value, low=mean.value / factor, high=min(1.0, mean.value * factor))


def effective_clusters(groupings: Groupings, confidence: float = 0.95, *, documents: int | None = None) -> Estimate:
    """1 / T, the number of equally common clusters with the same T: comparable at every K.

    Below `FEWEST_PAIRS` pairs `high` is None and `low` a one-sided bound. Without any pair 1 / T is infinite, and
    `value` repeats the bound. Value and `low` are at most `documents`, where that is given.
    """
    estimate = invert(collision(groupings, confidence, documents=documents))
    return estimate if documents is None else at_most(estimate, documents)


def at_most(estimate: Estimate, ceiling: float) -> Estimate:
    """The estimate; where its value exceeds `ceiling`, the ceiling without an upper end."""
    if estimate.value <= ceiling:
        return estimate
    low = ceiling if estimate.low is None else min(estimate.low, ceiling)
    return Estimate(value=float(ceiling), low=float(low), high=None)


def invert(theta: Estimate) -> Estimate:
    """Effective clusters of an estimate of T."""
    low, high = theta.bounds
    least = 1.0 / high
    return Estimate(value=1.0 / theta.value if theta.value else least, low=least, high=1.0 / low if low else None)


def cluster_score(groupings: Groupings) -> Estimate:
    """The paper's score: mean of C_i / S_i with S_i = n_i / C_i, so C_i^2 / n_i; in [1/K, K], comparable at equal K
    only.

    Invalid clusters are dropped with their samples, as in the paper. A grouping without a valid cluster has no C / S
    and is left out.
    """
    k = groupings.samples_per_grouping
    counted = groupings.clusters**2.0 / np.maximum(groupings.kept, 1)
    return _mean_of_valid(groupings, lambda claimed: claimed**2.0 / k, counted, 1.0 / k, k)


def clusters_per_sample(groupings: Groupings) -> Estimate:
    """Mean of C_i / K over the groupings that `cluster_score` counts; in (0, 1]."""
    k = groupings.samples_per_grouping
    return _mean_of_valid(groupings, lambda claimed: claimed / k, groupings.clusters / k, 1.0 / k, 1.0)


def _mean_of_valid(
    groupings: Groupings, figure: Callable[[np.ndarray], np.ndarray], counted: np.ndarray, least: float, most: float
) -> Estimate:
    """Mean of `counted` [N] over groupings with a valid cluster, and its interval, both within [`least`, `most`].

    Args:
      figure: the same quantity from the clusters claimed before verification, where only some groupings were verified.
    """
    some = groupings.clusters > 0
    if not some.any():
        return Estimate(value=least, low=least, high=float(most))
    claimed = counted if groupings.claimed_clusters is None else figure(groupings.claimed_clusters)
    figures = double_sampled(groupings.chosen(some), claimed[some], counted[some])
    mean = mean_over_sets(figures, groupings.criteria_set[some], bounded=groupings.triples is not None)
    half, value = mean.half_width(0.95), min(max(mean.value, least), float(most))
    return Estimate(
        value=value, low=max(least, min(value, mean.value - half)), high=min(float(most), max(value, mean.value + half))
    )


def in_a_corpus_of(documents: int, theta: Estimate) -> Estimate:
    """Effective clusters of exactly these documents, not of a population that they are a sample of.

    T is over pairs of two different documents. Two draws with replacement are the same document once in D, the number
    of documents, so sum p_c^2 of the corpus itself is 1/D + (1 - 1/D) T; it has at most D effective clusters.
    """

    def clusters(value: float) -> float:
        return 1.0 / (1.0 / documents + (1.0 - 1.0 / documents) * value)

    low, high = theta.bounds
    return Estimate(value=clusters(theta.value), low=clusters(high), high=clusters(low))


def convergence(groupings: Groupings, points: int = 40, *, documents: int | None = None) -> dict[str, list]:
    """`effective_clusters` after about `points` growing numbers of groupings, for a page."""
    counts = np.unique(np.geomspace(min(5, len(groupings)), len(groupings), points).round().astype(int))
    estimates = [effective_clusters(groupings.first(int(count)), documents=documents) for count in counts]
    series = {name: [getattr(estimate, name) for estimate in estimates] for name in ("value", "low", "high")}
    return {"groupings": counts.tolist()} | series


def across_draws(values: Sequence[float]) -> Estimate:
    """Mean and t interval of a figure scored on several independent draws of a corpus (the paper's 10 draws of
    1,000,000).

    Raises:
      InputError: fewer than 2 values.
    """
    if len(values) < 2:
        raise InputError(f"{len(values)} draw has no spread; give at least 2 draws")
    mean = mean_over_sets(np.asarray(values, float), np.zeros(len(values)))
    half = mean.half_width(0.95)
    return Estimate(value=mean.value, low=mean.value - half, high=mean.value + half)


LEAST_VERIFIED = 0.1  # share of the groupings, since the changes by verification are rare and have to be observed


def groupings_needed(theta: float, theta3: float, samples_per_grouping: int, relative: float = 0.05) -> int:
    """Groupings for a 95 % interval of +-`relative` around 1 / theta, with one criteria set."""
    variance = collision_variance(theta, theta3, samples_per_grouping) / theta**2
    return math.ceil(variance * (special_functions().ndtri(0.975) / relative) ** 2)


def verification_share(groupings: Groupings, price_cluster: float, price_verify: float) -> float:
    """Share q of the groupings to verify so that a given error costs least (double sampling, Cochran 1977, 12.5).

    The variance of a grouping's pseudo-value is s^2 + (1/q - 1) d^2, where s^2 is the variance of its value and d^2
    that of the change that verification makes; its price is that of clustering and q times that of verifying. The
    product is least at q = sqrt(d^2 price_cluster / ((s^2 - d^2) price_verify)).

    Args:
      groupings: usable groupings so far, some of them verified.
      price_cluster, price_verify: of the two calls of one grouping, in the same unit.
    """
    if groupings.weight is None or groupings.claimed_pairs is None or not groupings.weight.any():
        return 1.0
    verified = groupings.weight > 0
    change = (groupings.claimed_pairs - groupings.pairs)[verified] / groupings.possible_pairs
    # One change more than was observed, since even where there is none in 40 groupings the rate may be 1 / 40.
    change = np.append(change, 1 / groupings.possible_pairs if not change.any() else change[change > 0].mean())
    changed, variance = float(change.var()), float(values(groupings).var())
    if variance <= changed or price_verify <= 0:
        return 1.0
    share = math.sqrt(changed * price_cluster / ((variance - changed) * price_verify))
    return min(1.0, max(LEAST_VERIFIED, share))

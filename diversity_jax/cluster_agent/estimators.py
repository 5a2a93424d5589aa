"""From partitions to figures: how diverse a corpus is, and how sure that is.

Notation: p_c is the share of the corpus in cluster c, theta = sum p_c^2 and theta3 = sum p_c^3. The mean collision
estimates theta without bias at any K >= 2, because two samples of a grouping are two random documents however many
others are shown with them; 1 / theta is the Hill number of order 2 (Hill 1973). Formulas and their measured coverage
are in docs/statistics.md.
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

FEWEST_PAIRS = 10  # under so many co-clustered pairs the log interval does not hold and only a lower bound is given


def double_sampled(groupings: Groupings, claimed: np.ndarray, counted: np.ndarray, slope: float = 1.0) -> np.ndarray:
    """Pseudo-values [N] of a figure that verification changes from `claimed` to `counted` in the groupings verified.

    Their mean is the mean of what was claimed less the weighted mean of the change over the verified groupings (double
    sampling for a difference, Cochran 1977, chapter 12); each carries its own influence on that, so that they are used
    like values of independent groupings.

    Args:
      slope: of `counted` on `claimed`, where the latter is another figure that only goes with it.

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
    """Pseudo-values [N] of T, one a grouping, whose mean estimates theta: what was claimed, corrected by verification
    and adjusted by the control variate.
    """
    return _values(groupings)[0]


def _values(groupings: Groupings) -> tuple[np.ndarray, float]:
    """`values`, and the variance that the control variate's own means add to their mean."""
    pairs = groupings.pairs if groupings.claimed_pairs is None else groupings.claimed_pairs
    counted = double_sampled(groupings, pairs / groupings.possible_pairs, groupings.collisions)
    means, covariance = groupings.feature_means, groupings.feature_means_covariance
    if groupings.features is None or means is None or covariance is None:
        return counted, 0.0
    return uncertainty.adjust(counted, groupings.features, means, covariance)


def collision_mean(groupings: Groupings, documents: int | None = None) -> Mean:
    """Mean and error of T.

    Where every grouping (or set) agrees, the error is the least that theta allows, not zero.

    Args:
      documents: of the corpus; the error then holds that they are a sample too. None: of exactly these documents.
    """
    pseudo_values, added = _values(groupings)
    # Scores of earlier versions are read as they were: they have no triples either.
    mean = mean_over_sets(pseudo_values, groupings.criteria_set, bounded=groupings.triples is not None)
    if not mean.error:
        # theta3 >= theta^2 always, so this is a floor of the variance whatever the clusters' sizes are.
        least = collision_variance(mean.value, mean.value**2, groupings.samples_per_grouping)
        mean = Mean(value=mean.value, error=math.sqrt(max(0.0, least) / len(groupings)), freedom=mean.freedom)
    if added:
        mean = mean.with_error(math.sqrt(added), len(groupings))
    return mean if documents is None else mean.with_error(*documents_error(groupings, mean.value, documents))


def collision_variance(theta: float, theta3: float, samples_per_grouping: int) -> float:
    """Variance of one grouping's T, its K samples independent draws: of a U-statistic of order 2 (Hoeffding 1948)."""
    k = samples_per_grouping
    return 2 / (k * (k - 1)) * (2 * (k - 2) * (theta3 - theta**2) + theta * (1 - theta))


def _triple_values(groupings: Groupings) -> np.ndarray | None:
    """Pseudo-values [N] of theta3: the share of triples of samples in one cluster; None where triples are unknown.

    Triples that verification has not looked at are predicted from the pairs that were claimed.
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
    """(Standard error, degrees of freedom) that T has because the corpus's documents are themselves a sample.

    T of a corpus is a U-statistic of order 2 over its D documents: its variance is 4 (theta3 - theta^2) / D
    + 2 theta (1 - theta) / (D (D - 1)), nearly (Hoeffding 1948), with theta3 = sum p_c^3 at most theta^1.5. The
    estimated first term may be negative where clusters are even, and then takes at most half of the second away. The
    degrees of freedom are 2 V^2 / Var(V) (Satterthwaite 1946), as far as the groupings leave V uncertain; where triples
    are unknown V is the largest possible.
    """
    theta = min(max(theta, 0.0), 1.0)
    triples = _triple_values(groupings)
    theta3 = theta**1.5
    if triples is not None:
        # One triple more than was seen: with few groupings of few samples none may be seen where one cluster is large.
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

    The exact bound of a Poisson mean (Garwood 1936), with pairs that come in clumps (a cluster of four is six pairs)
    counted as the fewer events that they are. With no pair at all it is 3 / (N K (K - 1) / 2).
    """
    pairs = groupings.pairs.astype(float)
    total = float(pairs.sum())
    clump = float(pairs @ pairs) / total if total else 1.0
    events = float(special_functions().gammaincinv(total / clump + 1, confidence))
    return min(1.0, clump * events / (len(groupings) * groupings.possible_pairs))


def collision(groupings: Groupings, confidence: float = 0.95, *, documents: int | None = None) -> Estimate:
    """T of what the documents were drawn from, its interval theta * exp(+-t s / theta), s the error of the mean; under
    `FEWEST_PAIRS` pairs [0, a one-sided bound].

    Args:
      documents: of the corpus, whose own sampling the interval then holds; None where their number is unknown.

    Raises:
      InputError: no grouping.
    """
    if not len(groupings):
        raise InputError("no usable grouping to estimate from; see the counts of dropped groupings for the reasons")
    mean = collision_mean(groupings, documents)
    if groupings.pairs.sum() < FEWEST_PAIRS or mean.value <= 0:
        # With so few groupings that everything they hold makes under ten pairs, T may be 1; the bound is then 1 too.
        value = float(groupings.collisions.mean())
        return Estimate(value=value, low=0.0, high=max(value, collision_bound(groupings, confidence)))
    if mean.value >= 1.0:
        # All samples were always in one cluster; by the rule of three at most 3 groupings in N would have one sample
        # apart from the rest.
        low = 1.0 - min(1.0, 3 / len(groupings)) * 2 / groupings.samples_per_grouping
        return Estimate(value=1.0, low=low, high=1.0)
    factor = mean.log_factor(confidence)
    return Estimate(value=mean.value, low=mean.value / factor, high=min(1.0, mean.value * factor))


def collision_of_documents(groupings: Groupings, confidence: float = 0.95) -> Estimate:
    """T of exactly these documents; its interval holds the sampling of groupings and of criteria only."""
    return collision(groupings, confidence)


def effective_clusters(groupings: Groupings, confidence: float = 0.95, *, documents: int | None = None) -> Estimate:
    """1 / T, the number of equally common clusters that would collide as often: the same figure at every K.

    Under `FEWEST_PAIRS` pairs `high` is None and `low` a one-sided bound. With no pair at all 1 / T is infinite, and
    `value` repeats the bound. Where the documents are counted, neither passes their number.
    """
    estimate = invert(collision(groupings, confidence, documents=documents))
    return estimate if documents is None else at_most(estimate, documents)


def at_most(estimate: Estimate, ceiling: float) -> Estimate:
    """An estimate that no more than `ceiling` can be known of: "at least" the ceiling where its value passes it."""
    if estimate.value <= ceiling:
        return estimate
    low = ceiling if estimate.low is None else min(estimate.low, ceiling)
    return Estimate(value=float(ceiling), low=float(low), high=None)


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
    counted = groupings.clusters**2.0 / np.maximum(groupings.kept, 1)
    return _mean_of_valid(groupings, lambda claimed: claimed**2.0 / k, counted, 1.0 / k, k, confidence)


def clusters_per_sample(groupings: Groupings, confidence: float = 0.95) -> Estimate:
    """Mean of C_i / K over the groupings that `cluster_score` counts; in (0, 1]."""
    k = groupings.samples_per_grouping
    return _mean_of_valid(groupings, lambda claimed: claimed / k, groupings.clusters / k, 1.0 / k, 1.0, confidence)


def _mean_of_valid(
    groupings: Groupings,
    claim: Callable[[np.ndarray], np.ndarray],
    counted: np.ndarray,
    least: float,
    most: float,
    confidence: float,
) -> Estimate:
    """Mean over groupings with a valid cluster of what was `counted` [N], where only some were verified by way of what
    their claimed clusters amount to; its interval cut to what is possible.
    """
    some = groupings.clusters > 0
    if not some.any():
        return Estimate(value=least, low=least, high=float(most))
    claimed = counted if groupings.claimed_clusters is None else claim(groupings.claimed_clusters)
    figures = double_sampled(groupings.chosen(some), claimed[some], counted[some])
    mean = mean_over_sets(figures, groupings.criteria_set[some], bounded=groupings.triples is not None)
    half, value = mean.half_width(confidence), min(max(mean.value, least), float(most))
    return Estimate(
        value=value, low=max(least, min(value, mean.value - half)), high=min(float(most), max(value, mean.value + half))
    )


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


def convergence(groupings: Groupings, points: int = 40, *, documents: int | None = None) -> dict[str, list]:
    """How `effective_clusters` settled: the estimate after about `points` growing counts of groupings, for a page."""
    counts = np.unique(np.geomspace(min(5, len(groupings)), len(groupings), points).round().astype(int))
    estimates = [effective_clusters(groupings.first(int(count)), documents=documents) for count in counts]
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


LEAST_VERIFIED = 0.1  # share of the groupings: what verification changes is rare, and has to be seen to be corrected
DRIFT_TOLERANCE = 0.1  # of T, on the log scale: as much as a score's own interval usually is wide


def groupings_needed(
    theta: float, theta3: float, samples_per_grouping: int, relative: float = 0.05, confidence: float = 0.95
) -> int:
    """Groupings for an interval of +-`relative` around 1 / theta, with one criteria set."""
    variance = collision_variance(theta, theta3, samples_per_grouping) / theta**2
    return math.ceil(variance * (special_functions().ndtri(0.5 + confidence / 2) / relative) ** 2)


def verification_share(groupings: Groupings, price_cluster: float, price_verify: float) -> float:
    """Share q of the groupings to verify so that a wanted error costs least (double sampling, Cochran 1977, 12.5).

    The variance of a grouping's part in T is s^2 + (1/q - 1) d^2, where s^2 is the variance of its value and d^2 that
    of the change that verification makes; its price is that of clustering and q times that of verifying. The product is
    least at q = sqrt(d^2 price_cluster / ((s^2 - d^2) price_verify)).

    Args:
      groupings: usable groupings so far, some of them verified.
      price_cluster, price_verify: of the two calls of one grouping, in one unit.
    """
    if groupings.weight is None or groupings.claimed_pairs is None or not groupings.weight.any():
        return 1.0
    verified = groupings.weight > 0
    change = (groupings.claimed_pairs - groupings.pairs)[verified] / groupings.possible_pairs
    # One change more than was seen: where 40 groupings show none, one in 40 may still be changed.
    change = np.append(change, 1 / groupings.possible_pairs if not change.any() else change[change > 0].mean())
    changed, variance = float(change.var()), float(values(groupings).var())
    if variance <= changed or price_verify <= 0:
        return 1.0
    share = math.sqrt(changed * price_cluster / ((variance - changed) * price_verify))
    return min(1.0, max(LEAST_VERIFIED, share))


def drifts(difference: Estimate, tolerance: float = DRIFT_TOLERANCE) -> bool | None:
    """Whether a judge drifts at K, from log T of the same pairs judged at K less that at K/2; None where more rechecks
    are needed to tell.

    It drifts where the interval leaves out 0 and the difference is at least `tolerance`; it does not where the whole
    interval lies within twice the tolerance.
    """
    low, high = difference.bounds
    if (low > 0 or high < 0) and abs(difference.value) >= tolerance:
        return True
    return False if -2 * tolerance <= low and high <= 2 * tolerance else None

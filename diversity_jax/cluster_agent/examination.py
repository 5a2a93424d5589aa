"""Tests of a judge without labels: whether it repeats itself, and whether its clusters depend on order or length.

They use counts from every partition, including those that a canary discards. The order of samples and the other samples
shown are random, so the clusters of a judge that reads the texts cannot depend on them; each test has a known
false-alarm rate for such a judge. A judge that groups consistently but too coarsely, or by something else than the
subject, is not detected; for that there is the exam.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import functools
import math
from typing import Any

import numpy as np

from diversity_jax.core.intervals import Estimate, t_quantile
from diversity_jax.core.lazy import special_functions

ALARM = 0.005  # false-alarm rate of each test here, two-sided
_Z = 2.807  # its normal quantile
_POSITION_FEATURES = 4
_LEAST_RATIO = 0.2  # of the variance of C to the expected one; see `cluster_counts`
_FEWEST_ROWS = 20  # groupings for a test


@dataclass(frozen=True, kw_only=True)
class PartitionTraits:
    """Counts of one partition of K drawn samples, for the tests.

    Attributes:
      clusters: C; singletons: clusters of one sample.
      near, far, early, late: co-clustered pairs whose samples are at most / more than a third of the list apart, and
        those with both samples in its first / second half.
      position: [4], sums of `position_features`.
      length_wins, length_pairs: for each co-clustered pair the share of the other pairs that differ more in length,
        summed; and the number of co-clustered pairs. Pairs of copies are left out.
    """

    clusters: int
    singletons: int
    near: int
    far: int
    early: int
    late: int
    position: np.ndarray
    length_wins: float
    length_pairs: int


@functools.cache
def _pairs(k: int) -> tuple[np.ndarray, np.ndarray]:
    """Both positions [K (K - 1) / 2] of each pair in a list of K."""
    first, second = np.triu_indices(k, 1)
    return first, second


def traits(labels: Sequence[int], lengths: Sequence[int], texts: Sequence[str] = ()) -> PartitionTraits:
    """Traits of a partition, from the cluster and the number of characters of each of K samples in the order shown.
    With `texts` [K] pairs of copies, which any judge puts together, are left out of the counts of length.
    """
    label, length, k = np.asarray(labels), np.asarray(lengths, float), len(labels)
    all_first, all_second = _pairs(k)
    together = label[all_first] == label[all_second]
    rows = np.flatnonzero(together)  # of the co-clustered pairs
    first, second = all_first[rows], all_second[rows]
    compared = rows
    if texts:
        copy_of = {text: row for row, text in reversed(list(enumerate(texts)))}
        copies = np.array([copy_of[text] for text in texts])
        compared = rows[copies[first] != copies[second]]
    wins, pairs, apart = 0.0, len(compared), len(together) - len(rows)
    if pairs and apart:
        difference = np.abs(length[all_first] - length[all_second])
        # Ties count half; ranks from both sides of the equal values.
        ranked = np.sort(difference[~together])
        sides = [np.searchsorted(ranked, difference[compared], side=side) for side in ("left", "right")]
        wins = float((1 - (sides[0] + sides[1]) / (2 * apart)).sum())
    sizes = np.array(list(Counter(labels).values()))
    near, half = int((3 * (second - first) <= k).sum()), k // 2
    return PartitionTraits(
        clusters=len(sizes),
        singletons=int((sizes == 1).sum()),
        near=near,
        far=len(rows) - near,
        early=int((second < half).sum()),
        late=int((first >= k - half).sum()),
        position=position_features(k)[rows].sum(axis=0),
        length_wins=wins,
        length_pairs=pairs if apart else 0,
    )


@functools.cache
def position_features(k: int) -> np.ndarray:
    """[K (K - 1) / 2, 4] for each pair of positions in a list of K: whether they are adjacent, their distance, how far
    down and how far from the middle they are, each less its mean over all pairs. So sums over co-clustered pairs have
    mean zero for all cluster sizes, where clusters do not depend on order.
    """
    first, second = _pairs(k)
    centred = np.arange(k) / max(k - 1, 1) - 0.5
    down, outward = centred[first] + centred[second], centred[first] ** 2 + centred[second] ** 2
    columns = np.stack([second - first == 1, (second - first) / k, down, outward], axis=1).astype(float)
    return columns - columns.mean(axis=0)


def position(rows: Sequence[PartitionTraits], k: int) -> dict[str, Any] | None:
    """Whether clusters depend on positions in the list; None where that cannot be tested.

    Hotelling's T^2 of the four features over groupings, against F (false alarms `ALARM`; measured: docs/judges.md).
    `effect` is the larger of two relative differences of T: between near and far pairs, between early and late ones.
    """
    if len(rows) < _FEWEST_ROWS or k < 4:
        return None
    values = np.stack([row.position for row in rows])
    count, mean = len(values), values.mean(axis=0)
    covariance = np.cov(values, rowvar=False) + 1e-9 * np.eye(_POSITION_FEATURES)
    square = float(count * mean @ np.linalg.solve(covariance, mean))
    dimensions = min(_POSITION_FEATURES, count - 1)
    scale = (count - dimensions) / (dimensions * (count - 1))
    probability = float(special_functions().fdtrc(dimensions, count - dimensions, max(square, 0.0) * scale))
    first, second = _pairs(k)
    near, half = 3 * (second - first) <= k, k // 2
    possible = {"near": near.sum(), "far": (~near).sum(), "early": math.comb(half, 2), "late": math.comb(half, 2)}
    rates = {name: sum(getattr(row, name) for row in rows) / max(float(possible[name]), 1) for name in possible}
    total = sum(row.near + row.far for row in rows) / len(near)
    differences = rates["near"] - rates["far"], rates["late"] - rates["early"]
    effect = max(map(abs, differences)) / total if total else 0.0
    return {"probability": probability, "effect": effect, "follows": probability < ALARM}


def length(rows: Sequence[PartitionTraits]) -> dict[str, Any] | None:
    """How well the difference in length separates pairs that are together from others (area under the ROC curve, 0.5
    where it does not), with its interval over groupings at `ALARM`; None where there are too few.
    """
    wins = np.array([row.length_wins for row in rows if row.length_pairs])
    pairs = np.array([row.length_pairs for row in rows if row.length_pairs], float)
    if len(wins) < _FEWEST_ROWS:
        return None
    value = float(wins.sum() / pairs.sum())
    error = float(np.sqrt(np.square(wins - value * pairs).sum()) / pairs.sum())
    return {"value": value, "low": max(0.0, value - _Z * error), "high": min(1.0, value + _Z * error)}


def cluster_counts(rows: Sequence[PartitionTraits], k: int, documents: int | None = None) -> dict[str, Any] | None:
    """Whether the number of clusters C varies less than between random samples; None where that cannot be tested.

    A judge that makes at most a fixed number of clusters has nearly the same C every time. For K random samples the
    variance of C is compared with E[s (1 - s / K)] (C - 1) / K, with s the clusters of one sample: by the first factor
    a sample more or less would change C (the jackknife, an upper bound by Efron and Stein 1981); the second allows for
    few clusters, of which nearly all are shown. Where the samples come from only D `documents`, this is multiplied by 1
    - K / D. Over even and Zipf-like clusters, K from 5 to 40, the ratio of the two is 0.5 or more (docs/judges.md);
    where it is below 0.2 with certainty, `held` is True: C is limited by the judge.
    """
    if len(rows) < _FEWEST_ROWS:
        return None
    count = np.array([row.clusters for row in rows], float)
    alone = np.array([row.singletons for row in rows], float)
    unseen = 1 - k / documents if documents else 1.0
    expected = float((alone * (1 - alone / k)).mean() * (count.mean() - 1) / k) * unseen
    deviations = np.square(count - count.mean())
    variance, error = float(deviations.mean()), float(deviations.std() / math.sqrt(len(rows)))
    # Where C never varied, at most `events` groupings in N may still differ (rule of three, at the rate ALARM).
    upper = max(variance + _Z * error, -math.log(ALARM) / len(rows))
    ratio = variance / expected if expected > 0 else None
    held = expected > 0 and upper < _LEAST_RATIO * expected
    return {"mean": float(count.mean()), "most": int(count.max()), "variance_ratio": ratio, "held": bool(held)}


@dataclass(frozen=True, kw_only=True)
class Recheck:
    """Counts of the pairs of half a grouping, which was partitioned twice.

    Attributes:
      pairs: all; first, second, both: together in the first partition, in the second, in both.
      verified: together in the first after verification, None where it was not verified; again: of these, together in
        the second too.
    """

    pairs: int
    first: int
    second: int
    both: int
    verified: int | None = None
    again: int = 0


def recheck(first: Sequence[int], second: Sequence[int], placed: Sequence[bool] | None) -> Recheck:
    """Counts from the clusters [k] of the same samples in both partitions; `placed` [k]: whether verification called
    the sample well placed in the first.
    """
    first_labels, second_labels = np.asarray(first), np.asarray(second)
    a, b = _pairs(len(first_labels))
    together, later = first_labels[a] == first_labels[b], second_labels[a] == second_labels[b]
    counts = {"pairs": len(a), "first": int(together.sum()), "second": int(later.sum())}
    counts["both"] = int((together & later).sum())
    if placed is None:
        return Recheck(**counts)
    in_both = together & np.asarray(placed)[a] & np.asarray(placed)[b]
    return Recheck(**counts, verified=int(in_both.sum()), again=int((in_both & later).sum()))


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> Estimate | None:
    """Ratio of two sums with its interval at `ALARM` over rechecks; None where the denominator is zero.

    A rate of exactly 0 or 1, whose normal interval would have no width, gets a bound by the rule of three.
    """
    total = float(denominator.sum())
    if not total:
        return None
    value = float(numerator.sum()) / total
    spread = float(np.sqrt(np.square(numerator - value * denominator).sum())) / total
    half = max(_Z * spread, -math.log(ALARM) / max(total, 6.0) if value in (0.0, 1.0) else 0.0)
    return Estimate(value=value, low=max(0.0, value - half), high=min(1.0, value + half))


def consistency(rechecks: Sequence[Recheck]) -> dict[str, Any] | None:
    """How far the judge repeats itself, over all pairs judged twice; None where none were.

    `flip_rate` is the share of co-clustered pairs that the other partition does not repeat: the random part of merges.
    `repeat_rate` is the share of pairs together after verification, and so rightly, that are together again: 1 less the
    random part of splits. Intervals at `ALARM`.
    """
    if not rechecks:
        return None

    def column(name: str, of: Sequence[Recheck] = rechecks) -> np.ndarray:
        return np.array([getattr(each, name) for each in of], float)

    pairs, first, second, both = map(column, ("pairs", "first", "second", "both"))
    chance = first.sum() * second.sum() / pairs.sum()
    half = (first.sum() + second.sum()) / 2
    flips = _ratio(first + second - 2 * both, first + second)
    verified = [each for each in rechecks if each.verified is not None]
    again = _ratio(column("again", verified), column("verified", verified)) if verified else None
    return {
        "rechecks": len(rechecks),
        "pairs": int(pairs.sum()),
        "together_both": int(both.sum()),
        "together_first": int(first.sum()),
        "together_second": int(second.sum()),
        "adjusted_rand": float((both.sum() - chance) / (half - chance)) if half > chance else None,
        "flip_rate": flips and flips.to_json(),
        "repeat_rate": again and again.to_json(),
    }


def drift(rechecks: Sequence[Recheck], k: int) -> dict[str, Any] | None:
    """Whether the judge groups the same pairs differently among half as many samples; None where there are too few.

    `difference` is that of T, at K / 2 less at K, paired, with its t interval at `ALARM`; `relative` is it over mean T.
    """
    if len(rechecks) < _FEWEST_ROWS or k < 4:
        return None
    pairs = np.array([each.pairs for each in rechecks], float)
    change = np.array([each.second - each.first for each in rechecks]) / pairs
    mean, error = float(change.mean()), float(change.std(ddof=1)) / math.sqrt(len(rechecks))
    total = sum(each.first + each.second for each in rechecks) / (2 * float(pairs.sum()))
    half = t_quantile(1 - ALARM / 2, len(rechecks) - 1) * error
    interval = Estimate(value=mean, low=mean - half, high=mean + half)
    drifts = interval.low is not None and (interval.low > 0 or mean + half < 0)
    relative = mean / total if total else 0.0
    return {"K": k, "half": k // 2, "difference": interval.to_json(), "relative": relative, "drifts": drifts}


def partition_checks(rows: Sequence[PartitionTraits], k: int, documents: int | None = None) -> Mapping[str, Any]:
    """The three tests of partitions of K samples of so many documents, by name, as on a scorecard."""
    counts = cluster_counts(rows, k, documents)
    return {"position": position(rows, k), "length": length(rows), "cluster_counts": counts}

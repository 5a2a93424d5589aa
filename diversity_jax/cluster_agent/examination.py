"""What a judge's own answers say about it: does it repeat itself, and do its clusters follow what they should not?

Small functions on counts that a scorer collects from every partition, those that a canary discarded among them. They
need no labels: the order of samples and the company they are shown in are random, so a judge that reads the texts
cannot depend on them. Each states its false-alarm rate for such a judge. What they cannot see is a judge that reads
consistently but coarsely or by something else than the corpus is about; for that there is the exam.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import functools
import math
from typing import Any

import numpy as np

from diversity_jax.core.intervals import Estimate
from diversity_jax.core.lazy import special_functions

ALARM = 0.005  # false-alarm rate of each test here, two-sided
_Z = 2.807  # its normal quantile
_POSITION_FEATURES = 4
_LEAST_RATIO = 0.2
_FEWEST_ROWS = 20  # groupings, under which no test is made


@dataclass(frozen=True, kw_only=True)
class PartitionTraits:
    """What the tests need of one partition of K drawn samples.

    Attributes:
      clusters: C; singletons: clusters of one sample.
      near, far, early, late: co-clustered pairs whose samples are at most / more than a third of the list apart, and
        those with both samples in its first / second half.
      position: [4], zero on average where order does not matter; see `position_features`.
      length_wins, length_pairs: of the co-clustered pairs, how many pairs that are apart differ more in length (share
        of all such pairs, summed), and the co-clustered pairs themselves; without pairs of copies.
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
    """Both places [K (K - 1) / 2] of each pair in a list of K."""
    first, second = np.triu_indices(k, 1)
    return first, second


def traits(labels: Sequence[int], lengths: Sequence[int], texts: Sequence[str] = ()) -> PartitionTraits:
    """Traits of a partition: cluster [K] and characters [K] of the samples in the order shown. With their `texts` [K],
    pairs of copies, which any judge puts together, say nothing of length.
    """
    label, length, k = np.asarray(labels), np.asarray(lengths, float), len(labels)
    all_first, all_second = _pairs(k)
    together = label[all_first] == label[all_second]
    rows = np.flatnonzero(together)  # few of all pairs
    first, second = all_first[rows], all_second[rows]
    told = rows
    if texts:
        copy_of = {text: row for row, text in reversed(list(enumerate(texts)))}
        copies = np.array([copy_of[text] for text in texts])
        told = rows[copies[first] != copies[second]]
    wins, pairs, apart = 0.0, len(told), len(together) - len(rows)
    if pairs and apart:
        difference = np.abs(length[all_first] - length[all_second])
        # Ties count half; ranks from both sides of the equal values.
        ranked = np.sort(difference[~together])
        sides = [np.searchsorted(ranked, difference[told], side=side) for side in ("left", "right")]
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
    """[K (K - 1) / 2, 4] for each pair of places in a list of K: whether they are neighbours, how far apart they are,
    how far down, and how far from the middle, less the mean over all pairs. Summed over co-clustered pairs each has the
    mean zero whatever the clusters' sizes are, if order plays no part.
    """
    first, second = _pairs(k)
    centred = np.arange(k) / max(k - 1, 1) - 0.5
    down, outward = centred[first] + centred[second], centred[first] ** 2 + centred[second] ** 2
    columns = np.stack([second - first == 1, (second - first) / k, down, outward], axis=1).astype(float)
    return columns - columns.mean(axis=0)


def position(rows: Sequence[PartitionTraits], k: int) -> dict[str, Any] | None:
    """Whether clusters follow places in the list; None where that cannot be tested.

    Hotelling's T^2 of the four features over groupings, against F (false alarms `ALARM`; measured: docs/judges.md).
    `effect` is the larger of two differences of T, over T: of near against far pairs, of early against late ones.
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
    """How well a difference in length tells pairs that are together from pairs that are apart (area under the curve,
    0.5 where it says nothing), with its interval over groupings at `ALARM`; None where there are too few.
    """
    wins = np.array([row.length_wins for row in rows if row.length_pairs])
    pairs = np.array([row.length_pairs for row in rows if row.length_pairs], float)
    if len(wins) < _FEWEST_ROWS:
        return None
    value = float(wins.sum() / pairs.sum())
    error = float(np.sqrt(np.square(wins - value * pairs).sum()) / pairs.sum())
    return {"value": value, "low": max(0.0, value - _Z * error), "high": min(1.0, value + _Z * error)}


def cluster_counts(rows: Sequence[PartitionTraits], k: int, documents: int | None = None) -> dict[str, Any] | None:
    """Whether the number of clusters C varies as it does between random samples; None where that cannot be tested.

    A judge that never makes more than so many clusters gives nearly the same C every time. For K random samples of any
    clusters the variance of C is in proportion to E[s (1 - s / K)] (C - 1) / K, with s the clusters of one sample: this
    much a sample more or less would change C (the jackknife, an upper bound by Efron and Stein 1981), and the last
    factor holds where clusters are few and nearly all of them are seen. Where all samples come from so few `documents`
    that most are shown every time, C varies by 1 - K / D of that. Over even and Zipf-like clusters, K from 5 to 40, the
    ratio is 0.5 or more (docs/judges.md); under 0.2 with certainty, C is held down.
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
    """A half of a grouping that was grouped twice: counts of its pairs.

    Attributes:
      pairs: all; first, second, both: together in the first partition, in the second, in both.
      verified: together in the first one after verification, None where it was not verified; again: of these, together
        in the second one.
    """

    pairs: int
    first: int
    second: int
    both: int
    verified: int | None = None
    again: int = 0


def recheck(first: Sequence[int], second: Sequence[int], placed: Sequence[bool] | None) -> Recheck:
    """Counts from the clusters [k] of the same samples in both partitions; `placed` [k]: which of them verification
    left where they were in the first.
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
    """Sum over sum, with an interval at `ALARM` over rechecks; None where there is nothing below the line.

    A rule-of-three bound where every event agrees: `_Z`-intervals of a rate that was always 0 or 1 have no width.
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

    `flip_rate` is the share of co-clusterings that the other partition does not repeat: the random part of what the
    judge puts together. `repeat_rate` is the share of pairs that are together after verification, and so rightly, that
    are together again: what is missing to 1 is the random part of what it splits. Intervals at `ALARM`.
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
    """Whether the judge reads the same pairs otherwise among half as many samples; None where that cannot be told.

    The paired difference of T, K / 2 less K, with its t interval at `ALARM`, also over the T of both.
    """
    if len(rechecks) < _FEWEST_ROWS or k < 4:
        return None
    pairs = np.array([each.pairs for each in rechecks], float)
    change = np.array([each.second - each.first for each in rechecks]) / pairs
    mean, error = float(change.mean()), float(change.std(ddof=1)) / math.sqrt(len(rechecks))
    total = sum(each.first + each.second for each in rechecks) / (2 * float(pairs.sum()))
    half = float(special_functions().stdtrit(len(rechecks) - 1, 1 - ALARM / 2)) * error
    interval = Estimate(value=mean, low=mean - half, high=mean + half)
    drifts = interval.low is not None and (interval.low > 0 or mean + half < 0)
    relative = mean / total if total else 0.0
    return {"K": k, "half": k // 2, "difference": interval.to_json(), "relative": relative, "drifts": drifts}


def evidence_of(rows: Sequence[PartitionTraits], k: int, documents: int | None = None) -> Mapping[str, Any]:
    """The three tests of partitions of K of so many documents by name, as they stand on a scorecard."""
    counts = cluster_counts(rows, k, documents)
    return {"position": position(rows, k), "length": length(rows), "cluster_counts": counts}

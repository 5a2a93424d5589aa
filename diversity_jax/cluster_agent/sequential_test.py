"""Sequential comparison of two corpora with a controlled error rate, and stopping at a given precision.

Testing repeatedly at the nominal level, as groupings come in, decides wrongly for a third of equal pairs. A comparison
that may stop early therefore spends its error over a planned number of tests, the looks (`spent_levels`). The measured
error rates are in docs/statistics.md, "Comparing two corpora".
"""

from collections.abc import Sequence
from dataclasses import dataclass
import functools
import math
from typing import Any

import numpy as np

from diversity_jax.cluster_agent.estimators import (
    FEWEST_PAIRS,
    collision_bound,
    collision_mean,
    documents_error,
    values,
)
from diversity_jax.cluster_agent.groupings import Groupings
from diversity_jax.cluster_agent.uncertainty import LARGEST_SPREAD, error_over_sets, joined, within_sets
from diversity_jax.core import formats
from diversity_jax.core.errors import InputError
from diversity_jax.core.lazy import special_functions

LOOKS = 8
# A tenth of the error is reserved, because small counts of pairs have skewed distributions.
_USED_OF_ALPHA = 0.9
# Degrees of freedom for which levels are computed; others take those of the next lower one, and above the last the
# normal levels.
_FREEDOMS = (1, 2, 3, 4, 5, 6, 8, 10, 14, 20, 30)
_GRID_POINTS = 1201  # of the density of the running sum
_SIMULATED_TESTS = 50_000
PAIRS_TO_STOP = 50  # co-clustered pairs from which a run may stop; with fewer, precision would be reached by chance


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The diversity of corpus a over that of corpus b.

    Attributes:
      decided: whether the interval excludes 1, at error rate `alpha` over all looks.
      ratio: effective clusters of a / of b; where one side has too few pairs for a point, a ratio of bounds.
      low, high: interval of the ratio at this look's level; None for an end without a bound.
      higher: "a" or "b" where decided, else None.
      alpha: two-sided error rate over all looks together.
      looks: planned looks; 1 is a comparison at a size fixed beforehand.
      look: the look that decided, or the last one taken, from 1.
      groupings: groupings of a and of b that were used.
      paired: whether both were judged by the same criteria sets, whose common effect then cancels.
      note: why nothing is decided whatever the interval; otherwise None.
    """

    decided: bool
    ratio: float
    low: float | None
    high: float | None
    higher: str | None
    alpha: float
    looks: int
    look: int
    groupings: tuple[int, int]
    paired: bool
    note: str | None = None

    @property
    def ratio_text(self) -> str:
        """The ratio with its interval as text; or `note`."""
        if self.note:
            return f"withheld: {self.note}"
        low = "0" if self.low is None else formats.significant(self.low)
        high = "no upper bound" if self.high is None else formats.significant(self.high)
        return f"{formats.significant(self.ratio)} [{low}, {high}]"

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "groupings": list(self.groupings)}

    def __str__(self) -> str:
        low = "0" if self.low is None else format(self.low, ".3g")
        high = "any" if self.high is None else format(self.high, ".3g")
        if self.note:
            return f"not decided: {self.note}"
        decision = {"a": "more diverse", "b": "less diverse", None: "not decided"}[self.higher]
        return f"{decision}: ratio {self.ratio:.3g} ({low} to {high}) after look {self.look} of {self.looks}"


@functools.cache
def spent_levels(alpha: float = 0.05, looks: int = LOOKS, freedom: int | None = None) -> tuple[float, ...]:
    """Two-sided nominal levels of `looks` equally spaced looks, which together err at most at `alpha`.

    The spending function alpha(t) = 2 - 2 Phi(z / sqrt(t)) of O'Brien-Fleming type (Lan and DeMets 1983), which spends
    hardly anything early and nearly all at the end; boundaries by integrating the density of the running sum over the
    region where no earlier look has stopped (Armitage, McPherson and Rowe 1969).

    Args:
      freedom: degrees of freedom of the errors, None for many. With few of them the error is estimated anew at every
        look, which makes false decisions more likely; the levels are scaled down by a simulation of that.
    """
    if not 0 < alpha < 1 or looks < 1:
        raise InputError(f"compare: alpha {alpha} and looks {looks}; expected 0 < alpha < 1 and at least one look")
    if looks == 1:
        return (alpha,)
    levels = _gaussian_levels(_USED_OF_ALPHA * alpha, looks)
    if freedom is None:
        return levels
    scale = _small_sample_scale(levels, _USED_OF_ALPHA * alpha, freedom)
    return tuple(min(1.0, scale) * level for level in levels)


def _gaussian_levels(alpha: float, looks: int) -> tuple[float, ...]:
    special = special_functions()

    cumulative = [2.0 * special.ndtr(special.ndtri(alpha / 2) / math.sqrt(k / looks)) for k in range(1, looks + 1)]
    # The running sum has unit variance a look; after k looks Z = sum / sqrt(k).
    bound = -special.ndtri(cumulative[0] / 2)
    levels = [float(cumulative[0])]
    grid = np.linspace(-bound, bound, _GRID_POINTS)
    density = np.exp(-(grid**2) / 2) / math.sqrt(2 * math.pi)
    for k in range(2, looks + 1):
        spend = cumulative[k - 1] - cumulative[k - 2]
        weight = density * (grid[1] - grid[0])
        weight[[0, -1]] /= 2
        low, high = 0.0, 10.0 * math.sqrt(k)
        for _ in range(60):
            middle = (low + high) / 2
            outside = float(weight @ (special.ndtr(grid - middle) + special.ndtr(-middle - grid)))
            low, high = (middle, high) if outside > spend else (low, middle)
        levels.append(float(2 * special.ndtr(-high / math.sqrt(k))))
        new = np.linspace(-high, high, _GRID_POINTS)
        density = np.exp(-((new[:, None] - grid[None, :]) ** 2) / 2) @ weight / math.sqrt(2 * math.pi)
        grid = new
    return tuple(levels)


def _small_sample_scale(levels: tuple[float, ...], alpha: float, freedom: int) -> float:
    """Factor of `levels` at which a t test of `freedom` + 1 running sums at each look errs at `alpha`."""
    generator = np.random.default_rng(freedom)
    sums = np.zeros((_SIMULATED_TESTS, freedom + 1))
    worst = np.full(len(sums), np.inf)
    for level in levels:
        sums += generator.standard_normal(sums.shape)
        t = np.abs(sums.mean(axis=1)) / (sums.std(axis=1, ddof=1) / math.sqrt(freedom + 1))
        worst = np.minimum(worst, 2 * special_functions().stdtr(freedom, -t) / level)
    return float(np.quantile(worst, alpha))


def compare_groupings(
    a: Groupings,
    b: Groupings,
    *,
    paired: bool,
    alpha: float = 0.05,
    look: int = 1,
    looks: int = 1,
    documents: tuple[int | None, int | None] = (None, None),
) -> Comparison:
    """Compares two corpora at one look, on the scale of log effective clusters.

    Args:
      a, b: groupings of the two corpora so far.
      paired: whether criteria set i of a is criteria set i of b.
      alpha: two-sided error rate of all planned looks together.
      look, looks: number of this look among the planned ones; 1 of 1 is a comparison at a size fixed beforehand.
      documents: numbers of documents of the two corpora, where the populations that they are samples of are compared.
        This part of the error is the same at all looks, which makes these more correlated than the levels assume, so
        that they err less.
    """
    paired = paired and len(np.union1d(a.criteria_set, b.criteria_set)) > 1

    def comparison(ratio: float, low: float | None, high: float | None) -> Comparison:
        higher = "a" if low is not None and low > 1 else "b" if high is not None and high < 1 else None
        return Comparison(
            decided=higher is not None,
            ratio=ratio,
            low=low,
            high=high,
            higher=higher,
            alpha=alpha,
            looks=looks,
            look=look,
            groupings=(len(a), len(b)),
            paired=paired,
        )

    sides = tuple(zip((a, b), documents, strict=True))
    means = [collision_mean(side) for side, _ in sides]
    if min(a.pairs.sum(), b.pairs.sum()) < FEWEST_PAIRS or min(mean.value for mean in means) <= 0:
        return comparison(*_ratio_by_bounds(sides, spent_levels(alpha, looks)[look - 1]))
    parts = [_paired_error(a, b)] if paired else [(mean.error / mean.value, mean.freedom) for mean in means]
    for mean, (side, count) in zip(means, sides, strict=True):
        if count is not None:
            error, freedom = documents_error(side, mean.value, count)
            parts.append((error / mean.value, freedom))
    ratio = means[1].value / means[0].value
    log_ratio = joined(parts, math.log(ratio))
    computed = (
        None
        if log_ratio.freedom > _FREEDOMS[-1]
        else max(degrees for degrees in _FREEDOMS if degrees <= log_ratio.freedom)
    )
    # For equal groupings the error is 0, and nothing is decided.
    factor = math.exp(min(log_ratio.half_width(1 - spent_levels(alpha, looks, computed)[look - 1]), 700.0))
    return comparison(ratio, ratio / factor, ratio * factor)


def _paired_error(a: Groupings, b: Groupings) -> tuple[float, float]:
    """(Error, degrees of freedom) of the log ratio with criteria sets shared by both, whose common effect cancels."""
    sets = np.union1d(a.criteria_set, b.criteria_set)
    deviations, withins, largest = np.zeros(len(sets)), [], 0.0
    for side, sign in ((a, 1), (b, -1)):
        figures, index = values(side), np.searchsorted(sets, side.criteria_set)
        relative = figures / figures.mean()
        deviations += sign * np.bincount(index, relative - 1, minlength=len(sets)) / len(side)
        withins.append(within_sets(relative, index))
        shares = np.bincount(index) / len(side)
        largest = max(largest, LARGEST_SPREAD * math.sqrt(shares @ shares))
    # Scores of earlier versions, which have no triples, keep their unbounded errors.
    known = [within for within in withins if within is not None and a.triples is not None and b.triples is not None]
    if len(known) < 2:
        return error_over_sets(deviations, None, largest)
    within = joined(known)
    return error_over_sets(deviations, (within.error, within.freedom), largest)


def _ratio_by_bounds(
    sides: Sequence[tuple[Groupings, int | None]], level: float
) -> tuple[float, float | None, float | None]:
    """Ratio, low and high where a corpus has too few pairs: each end from two one-sided bounds at a quarter of the
    error.
    """

    def theta_range(groupings: Groupings, documents: int | None) -> tuple[float, float, float]:
        mean = collision_mean(groupings, documents)
        if groupings.pairs.sum() < FEWEST_PAIRS or mean.value <= 0:
            most = collision_bound(groupings, 1 - level / 4)
            return float(groupings.collisions.mean()) or most, 0.0, most
        factor = mean.log_factor(1 - level / 2)
        return mean.value, mean.value / factor, min(1.0, mean.value * factor)

    (theta_a, least_a, most_a), (theta_b, least_b, most_b) = (theta_range(*side) for side in sides)
    return theta_b / theta_a, least_b / most_a if least_b else None, most_b / least_a if least_a else None


def compare_in_looks(
    a: Groupings,
    b: Groupings,
    *,
    paired: bool,
    alpha: float = 0.05,
    looks: int = LOOKS,
    documents: tuple[int | None, int | None] = (None, None),
) -> Comparison:
    """Compares growing prefixes of both, k / `looks` of all planned groupings, up to the first look that decides."""
    for look in range(1, looks + 1):
        part_a, part_b = (g.first(max(1, len(g) * look // looks)) for g in (a, b))
        comparison = compare_groupings(
            part_a, part_b, paired=paired, alpha=alpha, look=look, looks=looks, documents=documents
        )
        if comparison.decided:
            break
    return comparison


def precise_enough(groupings: Groupings, relative: float) -> bool:
    """Whether a scoring may stop: at a relative half-width of the 95 % interval of at most `relative`, and at least
    `PAIRS_TO_STOP` pairs. Not for comparisons of two corpora: see the module's docstring.
    """
    if groupings.pairs.sum() < PAIRS_TO_STOP:
        return False
    mean = collision_mean(groupings)
    return mean.value > 0 and mean.half_width(0.95) / mean.value <= relative


def drift_of_groupings(a: Groupings, b: Groupings, *, paired: bool, alpha: float = 0.05) -> Comparison:
    """Compares scores of one corpus at two K, b's the larger; `decided` means that the judge drifts.

    Raises:
      InputError: the two K are equal.
    """
    if a.samples_per_grouping == b.samples_per_grouping:
        raise InputError(f"drift: both scores have K = {a.samples_per_grouping}; score the corpus at two different K")
    return compare_groupings(a, b, paired=paired, alpha=alpha)

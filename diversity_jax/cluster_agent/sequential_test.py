"""Which of two corpora is more diverse, decided with controlled error, and when enough groupings have been seen.

Looking at an interval again and again until it excludes "equal" decides wrongly in a third of equal pairs. A comparison
that stops at a decision therefore spends the error over a planned number of looks (`spent_levels`). The measured error
rates are in docs/statistics.md, "Comparing two corpora".
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
# A tenth of the error is kept back, because counts of pairs are skewed where they are few.
_USED_OF_ALPHA = 0.9
# Degrees of freedom for which levels are computed; others take those of the next lower one. Above the last the normal
# levels serve.
_FREEDOMS = (1, 2, 3, 4, 5, 6, 8, 10, 14, 20, 30)
_GRID_POINTS = 1201  # of the density of the running sum
_SIMULATED_TESTS = 50_000
PAIRS_TO_STOP = 50  # co-clustered pairs before a precision may be believed; stopping on fewer picks the lucky runs


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The diversity of corpus a over that of corpus b.

    Attributes:
      decided: whether the interval leaves out 1, at the error rate asked for over all looks.
      ratio: effective clusters of a / of b; where one side has too few pairs for a point, a ratio of bounds.
      low, high: interval of the ratio at this look's level; an end is None where only the other is known.
      higher: "a" or "b" where decided, else None.
      alpha: two-sided error rate over all looks together.
      looks: looks planned; 1 is a comparison at a size fixed beforehand.
      look: the look at which it was decided, or the last one taken, from 1.
      groupings: groupings of a and of b that were used.
      paired: whether both were judged by the same criteria sets, whose own effect then cancels.
      note: why nothing can be decided; None where it can.
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
        """The ratio with its interval, for people; why there is none, where nothing can be decided."""
        if self.note:
            return f"withheld: {self.note}"
        low = "0" if self.low is None else formats.significant(self.low)
        high = "no upper bound" if self.high is None else formats.significant(self.high)
        return f"{formats.significant(self.ratio)} [{low}, {high}]"

    def to_json(self) -> dict[str, Any]:
        """All fields by name."""
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
    """Two-sided nominal level of each of `looks` equally spaced looks, so that all of them together err at `alpha` at
    most.

    The spending function alpha(t) = 2 - 2 Phi(z / sqrt(t)) of O'Brien-Fleming type (Lan and DeMets 1983), which spends
    hardly anything early and nearly all at the end; boundaries by integrating the density of the running sum over the
    region where no earlier look has stopped (Armitage, McPherson and Rowe 1969).

    Args:
      alpha: error rate over all looks.
      looks: how many.
      freedom: degrees of freedom of the errors, None for many. With few of them the error is estimated again at every
        look, which gives more chances for a false decision; a simulation of that process scales the levels down.
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
    """Factor of `levels` at which `freedom` + 1 running sums, tested by their t at each look, err at `alpha`."""
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
    """One look at the difference of two corpora on log effective clusters.

    Args:
      a, b: groupings of the two corpora seen so far.
      paired: whether criteria set i of a IS criteria set i of b.
      alpha: two-sided error rate of all planned looks together.
      look, looks: which of how many equally spaced ones this is; 1 of 1 is a comparison at a size fixed beforehand.
      documents: of the two corpora, whose own sampling the error then holds: it compares what they were drawn from.
        That part does not shrink from look to look, so looks are more alike than the levels allow for, and err less.
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
    # Equal corpora judged identically do not differ at all: the error is 0, and nothing is decided.
    factor = math.exp(min(log_ratio.half_width(1 - spent_levels(alpha, looks, computed)[look - 1]), 700.0))
    return comparison(ratio, ratio / factor, ratio * factor)


def _paired_error(a: Groupings, b: Groupings) -> tuple[float, float]:
    """Error of the log ratio over criteria sets shared by both: a set that is coarse for both cancels."""
    sets = np.union1d(a.criteria_set, b.criteria_set)
    deviations, withins, largest = np.zeros(len(sets)), [], 0.0
    for side, sign in ((a, 1), (b, -1)):
        figures, index = values(side), np.searchsorted(sets, side.criteria_set)
        relative = figures / figures.mean()
        deviations += sign * np.bincount(index, relative - 1, minlength=len(sets)) / len(side)
        withins.append(within_sets(relative, index))
        shares = np.bincount(index) / len(side)
        largest = max(largest, LARGEST_SPREAD * math.sqrt(shares @ shares))
    # Scores of earlier versions are compared as they were: they have no triples either.
    known = [within for within in withins if within is not None and a.triples is not None and b.triples is not None]
    if len(known) < 2:
        return error_over_sets(deviations, None, largest)
    within = joined(known)
    return error_over_sets(deviations, (within.error, within.freedom), largest)


def _ratio_by_bounds(
    sides: Sequence[tuple[Groupings, int | None]], level: float
) -> tuple[float, float | None, float | None]:
    """Ratio, low and high where a side has too few pairs: each end from two one-sided bounds that share the error."""

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
    """Compares growing prefixes of both, at most `looks` times, and stops at the first that decides.

    The prefixes are k / looks of the groupings given, so these have to be all that were planned. With `looks=1` this is
    the comparison at a fixed size.
    """
    for look in range(1, looks + 1):
        part_a, part_b = (g.first(max(1, len(g) * look // looks)) for g in (a, b))
        comparison = compare_groupings(
            part_a, part_b, paired=paired, alpha=alpha, look=look, looks=looks, documents=documents
        )
        if comparison.decided:
            break
    return comparison


def precise_enough(groupings: Groupings, relative: float, confidence: float = 0.95) -> bool:
    """Whether a score may stop here: a half-width of at most `relative`, believed only after `PAIRS_TO_STOP` pairs.

    Never for comparing two corpora: see the module's docstring.
    """
    if groupings.pairs.sum() < PAIRS_TO_STOP:
        return False
    mean = collision_mean(groupings)
    return mean.value > 0 and mean.half_width(confidence) / mean.value <= relative


def drift_of_groupings(a: Groupings, b: Groupings, *, paired: bool, alpha: float = 0.05) -> Comparison:
    """Compares one corpus at two K, b's the larger; `decided` means that the judge drifts.

    Raises:
      InputError: the two K are equal.
    """
    if a.samples_per_grouping == b.samples_per_grouping:
        raise InputError(f"drift: both scores have K = {a.samples_per_grouping}; score the corpus at two different K")
    return compare_groupings(a, b, paired=paired, alpha=alpha)

"""Means with errors that hold although criteria are random too, and how errors are joined."""

from collections.abc import Sequence
from dataclasses import dataclass
import math

import numpy as np

# The largest standard deviation between criteria sets, as a share of the mean, that an interval allows for: what B sets
# say of their own spread alone is worth B - 1 degrees of freedom, and t is 12.7 for two sets.
LARGEST_SPREAD = 0.3
_CONTRADICTED = 0.8  # sets whose spread is beyond this quantile of what the largest allows are believed instead
_LARGEST_EXPONENT = 700.0  # math.exp overflows at 710


@dataclass(frozen=True, kw_only=True)
class Mean:
    """A mean, its standard error, and the degrees of freedom of that error."""

    value: float
    error: float
    freedom: float

    def half_width(self, confidence: float) -> float:
        """Half the width of the t interval."""
        return t_quantile(0.5 + confidence / 2, self.freedom) * self.error

    def log_factor(self, confidence: float) -> float:
        """Upper end of the t interval of the logarithm, over the mean."""
        return math.exp(min(self.half_width(confidence) / self.value, _LARGEST_EXPONENT))

    def with_error(self, error: float, freedom: float) -> "Mean":
        """With the error of another, independent part added."""
        return joined([(self.error, self.freedom), (error, freedom)], self.value)


def joined(parts: Sequence[tuple[float, float]], value: float = 0.0) -> Mean:
    """The error of a sum of independent parts, each (error, degrees of freedom); its own degrees of freedom by
    Satterthwaite (1946).
    """
    squares = [error**2 for error, _ in parts]
    total = sum(squares)
    spread = sum(square**2 / freedom for square, (_, freedom) in zip(squares, parts, strict=True))
    return Mean(value=value, error=math.sqrt(total), freedom=max(1.0, total**2 / spread) if spread else 1.0)


def t_quantile(probability: float, freedom: float) -> float:
    """Quantile of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, probability))


def mean_over_sets(values: np.ndarray, criteria_set: np.ndarray, *, bounded: bool = True) -> Mean:
    """The mean of `values` [N] with an error that holds although criteria are random too.

    With one criteria set this is the usual standard error; for more see `error_over_sets`. Sets of unequal size are
    weighted by size.

    Args:
      bounded: use that sets hardly differ by more than `LARGEST_SPREAD`.
    """
    count, mean = len(values), float(values.mean())
    sets, index = np.unique(criteria_set, return_inverse=True)
    if len(sets) == 1:
        error = float(values.std(ddof=1)) / math.sqrt(count) if count > 1 else 0.0
        return Mean(value=mean, error=error, freedom=max(count - 1, 1))
    deviations = np.bincount(index, values - mean) / count
    shares = np.bincount(index) / count
    within = within_sets(values, index) if bounded else None
    error, freedom = error_over_sets(deviations, within, LARGEST_SPREAD * mean * math.sqrt(shares @ shares))
    return Mean(value=mean, error=error, freedom=freedom)


def within_sets(values: np.ndarray, criteria_set: np.ndarray) -> tuple[float, float] | None:
    """(Error, degrees of freedom) of the mean of `values` [N] from their variance within sets alone; None where no set
    has two.
    """
    sets, index = np.unique(criteria_set, return_inverse=True)
    freedom = len(values) - len(sets)
    if freedom < 1:
        return None
    centred = values - (np.bincount(index, values) / np.bincount(index))[index]
    return math.sqrt(float(centred @ centred) / freedom / len(values)), freedom


def error_over_sets(deviations: np.ndarray, within: tuple[float, float] | None, largest: float) -> tuple[float, float]:
    """(Error, degrees of freedom) of a mean over B > 1 criteria sets.

    The sets' own deviations hold the variance between and within sets in their right proportion, with B - 1 degrees of
    freedom. The error within sets is known far better, and the spread between sets is not arbitrarily large; so where
    the interval from `within` and the `largest` spread is the narrower one of the two, it is taken: its degrees of
    freedom are those of the groupings. Each covers; taking the narrower costs at most 1.5 points of 95 where the spread
    is 20 %, measured in docs/statistics.md, "Intervals".

    Args:
      deviations: [B], each set's part of the deviation from the mean; they sum to 0.
      within: (error, degrees of freedom) that the mean has from the variance within sets.
      largest: error of the mean at the largest spread between sets.
    """
    from scipy.special import chdtri

    sets = len(deviations)
    error = math.sqrt(sets / (sets - 1) * float(deviations @ deviations))
    if within is None:
        return error, sets - 1
    bound = math.hypot(within[0], largest)
    if (sets - 1) * error**2 > chdtri(sets - 1, 1 - _CONTRADICTED) * bound**2:
        return error, sets - 1
    if t_quantile(0.975, within[1]) * bound < t_quantile(0.975, sets - 1) * error:
        return bound, within[1]
    return error, sets - 1

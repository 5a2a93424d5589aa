"""Standard errors of means over groupings and criteria sets, and the control variate.

Control variate (Lavenberg and Welch 1981): the similarity of two documents under a ruler (fixed vectors of texts) costs
no call, so its mean over all pairs of a corpus is known. Groupings whose pairs happen to be more similar than the
corpus's usually have a larger T too; regression of T on the similarities removes that part of the variance. This is
unbiased whatever the vectors are, since each grouping is adjusted with coefficients from other groupings
(cross-fitting); where it does not reduce the variance it is not used.
"""

from collections.abc import Sequence
from dataclasses import dataclass
import math

import numpy as np

from diversity_jax.core.intervals import t_quantile
from diversity_jax.core.lazy import special_functions

# The largest standard deviation between criteria sets that is assumed, as a share of the mean. An estimate of it from B
# sets alone has B - 1 degrees of freedom, with t = 12.7 for two sets.
LARGEST_SPREAD = 0.3
_CONTRADICTED = 0.8  # quantile of the spread under that assumption, beyond which it is not used
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
        """Ratio of the upper end of the t interval on the logarithmic scale to the mean."""
        return math.exp(min(self.half_width(confidence) / self.value, _LARGEST_EXPONENT))

    def with_error(self, error: float, freedom: float) -> "Mean":
        """This mean with the error of an independent part added."""
        return joined([(self.error, self.freedom), (error, freedom)], self.value)


def joined(parts: Sequence[tuple[float, float]], value: float = 0.0) -> Mean:
    """`value` with the error of a sum of independent parts, each (error, degrees of freedom), and its degrees of
    freedom by Satterthwaite (1946).
    """
    squares = [error**2 for error, _ in parts]
    total = sum(squares)
    spread = sum(square**2 / freedom for square, (_, freedom) in zip(squares, parts, strict=True))
    return Mean(value=value, error=math.sqrt(total), freedom=max(1.0, total**2 / spread) if spread else 1.0)


def mean_over_sets(values: np.ndarray, criteria_set: np.ndarray, *, bounded: bool = True) -> Mean:
    """The mean of `values` [N], with an error that includes the variance between criteria sets.

    With one criteria set this is the usual standard error; for more see `error_over_sets`. Sets are weighted by size.

    Args:
      bounded: assume that the spread between sets is at most `LARGEST_SPREAD`.
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

    The sets' deviations give an error with the variance between and within sets, and B - 1 degrees of freedom. The
    error within sets is known better, and the spread between sets is limited; so where the interval from `within` and
    the `largest` spread, with the degrees of freedom of the groupings, is narrower, it is taken. Each of the two
    covers; taking the narrower reduces coverage by at most 1.5 points of 95 where the spread is 20 %, as measured in
    docs/statistics.md, "Intervals".

    Args:
      deviations: [B], each set's part of the deviation from the mean; they sum to 0.
      within: (error, degrees of freedom) that the mean has from the variance within sets.
      largest: error of the mean at the largest spread between sets.
    """
    sets = len(deviations)
    error = math.sqrt(sets / (sets - 1) * float(deviations @ deviations))
    if within is None:
        return error, sets - 1
    bound = math.hypot(within[0], largest)
    if (sets - 1) * error**2 > special_functions().chdtri(sets - 1, 1 - _CONTRADICTED) * bound**2:
        return error, sets - 1
    if t_quantile(0.975, within[1]) * bound < t_quantile(0.975, sets - 1) * error:
        return bound, within[1]
    return error, sets - 1


KNOTS = (-1.0, 0.2, 0.4, 0.6, 0.8)  # features of a similarity s are max(0, s - knot): s + 1, and its upper tails
EXACT_DOCUMENTS = 10_000  # of which all pairs are computed; of more documents, those of a random sample of this size
_ROWS_AT_ONCE = 256  # of the matrix of similarities: 20 MB
_FOLDS = 10
_GROUPINGS_A_FEATURE = 20  # at least: a useless feature adds 1 / N of the variance, so at most 5 %
_RIDGE = 1e-3  # of a feature's variance, since neighbouring hinges are nearly collinear


def features(vectors: np.ndarray) -> np.ndarray:
    """Means [F] of the features over the pairs of one grouping's unit vectors [K, d]."""
    similarities = (vectors @ vectors.T)[np.triu_indices(len(vectors), 1)]
    return np.array([np.maximum(similarities - knot, 0).mean(dtype=float) for knot in KNOTS])


def corpus_means(vectors: np.ndarray, documents: int | None = None, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Means [F] of the features over all pairs of a corpus's unit vectors [D, d], and their covariance [F, F].

    Args:
      documents: number in the corpus, where `vectors` are those of a random sample.
      seed: of the random choice of `EXACT_DOCUMENTS` out of more vectors.

    The covariance is zero where all pairs were computed; for a random sample of n of D documents it is 4 / n (1 - n /
    D) times the covariance of a document's means (Hoeffding 1948).
    """
    documents = max(documents or 0, len(vectors))
    if len(vectors) > EXACT_DOCUMENTS:
        chosen = np.random.default_rng(seed).choice(len(vectors), EXACT_DOCUMENTS, replace=False)
        vectors = vectors[np.sort(chosen)]
    count = len(vectors)
    sums = np.empty((count, len(KNOTS)))
    for start in range(0, count, _ROWS_AT_ONCE):
        rows = slice(start, min(start + _ROWS_AT_ONCE, count))
        similarities = vectors[rows] @ vectors.T
        own = similarities[np.arange(rows.stop - start), np.arange(start, rows.stop)].astype(float)
        for number, knot in enumerate(KNOTS):
            above = np.maximum(similarities - np.float32(knot), 0)
            sums[rows, number] = above.sum(axis=1, dtype=float) - np.maximum(own - knot, 0)
    means = sums / max(count - 1, 1)
    unread = 1 - count / documents
    covariance = 4 * unread / count * np.cov(means, rowvar=False) if unread > 0 else np.zeros((len(KNOTS),) * 2)
    return means.mean(axis=0), covariance


def adjust(
    values: np.ndarray, features_NxF: np.ndarray, means: np.ndarray, covariance: np.ndarray
) -> tuple[np.ndarray, float]:
    """`values` [N] less their regression on the features, and the variance that the features' means add to their mean.

    Unadjusted values where there are too few, or where the adjustment would not reduce the variance.
    """
    count = len(values)
    fold = np.arange(count) % _FOLDS
    most = min(features_NxF.shape[1], count * (_FOLDS - 1) // _FOLDS // _GROUPINGS_A_FEATURE)
    deviations = features_NxF - means
    if not most:
        return values, 0.0
    adjusted = values.astype(float)
    slopes = np.zeros((_FOLDS, len(means)))
    for number in range(_FOLDS):
        slopes[number] = _slopes(values[fold != number], deviations[fold != number], most)
        adjusted[fold == number] -= deviations[fold == number] @ slopes[number]
    slope = slopes.mean(axis=0)
    added = float(slope @ covariance @ slope)
    if adjusted.var() + count * added >= values.var():
        return values, 0.0
    return adjusted, added


def _slopes(values: np.ndarray, deviations: np.ndarray, most: int) -> np.ndarray:
    """Coefficients [F] of the `most` features with the largest correlations to the values; zero for the others."""
    centred = deviations - deviations.mean(axis=0)
    scale = centred.std(axis=0)
    some = scale > 1e-9
    slopes = np.zeros(len(scale))
    if not some.any() or not values.std():
        return slopes
    standard = centred[:, some] / scale[some]
    covariances = standard.T @ (values - values.mean()) / len(values)
    used = np.argsort(-np.abs(covariances), kind="stable")[:most]
    gram = standard[:, used].T @ standard[:, used] / len(values) + _RIDGE * np.eye(len(used))
    chosen = np.flatnonzero(some)[used]
    slopes[chosen] = np.linalg.solve(gram, covariances[used]) / scale[chosen]
    return slopes

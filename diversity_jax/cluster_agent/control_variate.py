"""What a fixed ruler knows of a corpus, as a control variate of the judge's figures.

The similarity of two documents under a ruler costs no call, so its mean over ALL pairs of a corpus is known. Groupings
whose pairs happen to be more alike than the corpus's usually have a larger T too; the regression of one on the other
takes that chance out (control variates: Lavenberg and Welch 1981). It is unbiased whatever the ruler is worth, since
the coefficients that adjust a grouping come from other groupings only (cross-fitting), and where the ruler is worth
nothing they are not used.
"""

import numpy as np

KNOTS = (-1.0, 0.2, 0.4, 0.6, 0.8)  # the features of a similarity s are max(0, s - knot): s itself, and its upper tails
EXACT_DOCUMENTS = 10_000  # up to so many documents all pairs are computed, beyond it those of a random part
_ROWS_AT_ONCE = 256  # of the matrix of similarities: 20 MB
_FOLDS = 10
_GROUPINGS_A_FEATURE = 20  # each feature costs 1 / N of the variance: a worthless one at most 5 %
_RIDGE = 1e-3  # of a feature's variance: hinges next to each other are nearly collinear


def features(vectors: np.ndarray) -> np.ndarray:
    """Means [F] of the features over the pairs of one grouping's unit vectors [K, d]."""
    similarities = (vectors @ vectors.T)[np.triu_indices(len(vectors), 1)]
    return np.array([np.maximum(similarities - knot, 0).mean(dtype=float) for knot in KNOTS])


def corpus_means(vectors: np.ndarray, documents: int | None = None, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Means [F] of the features over all pairs of a corpus's unit vectors [D, d], and their covariance [F, F].

    Args:
      documents: of the corpus, where `vectors` are those of a random part of it.
      seed: of the random part that is read of more than `EXACT_DOCUMENTS` vectors.

    The covariance is zero where all pairs were computed; of a random part it is 4 / n of the covariance of a document's
    own means (Hoeffding 1948), less the share that was read.
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
    """`values` [N] less what the features explain, and the variance that the means of the features add to their mean.

    The values as they were where there are too few of them, or where the adjustment would not make them vary less.
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
    """Coefficients [F] of the `most` features that go best with the values; zero for the others."""
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

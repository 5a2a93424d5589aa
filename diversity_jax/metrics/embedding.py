"""Metrics of embeddings: Vendi score, mean pairwise distance, K-means occupancy; and the embedder `tfidf`, which fits
TF-IDF and truncated SVD (latent semantic analysis) to the corpora of a run together. `embedders` has the others.

Metrics scale vectors to length 1, so that products are cosines. Documents without content have a zero vector, which has
no direction, and are left out: otherwise many empty documents would count as many unlike ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.metrics.registry import DocumentFeatures, Figures, StageSettings, single_metric, stage
from diversity_jax.metrics.text import Vocabulary, Words

_ROWS, _TERMS = 20_000, 50_000  # of the TF-IDF space


class TfidfSvd:
    """TF-IDF of folded words, then truncated SVD.

    Term weights are (1 + log count) * log((1 + documents) / (1 + documents with the term)) + 1, rows of length 1; the
    50,000 terms in most documents are used. Two corpora can only be compared in a space fitted to both.
    """

    cost_usd = 0.0

    def __init__(self, texts: Sequence[str], *, dimensions: int = 256, seed: int = 0):
        from sklearn.utils.extmath import randomized_svd

        draw = np.random.default_rng([seed, 0x7F])
        if len(texts) > _ROWS:
            texts = [texts[i] for i in np.sort(draw.choice(len(texts), _ROWS, replace=False))]
        self._vocabulary = Vocabulary("folded")
        counts = self._counts(self._vocabulary.encode(texts), len(self._vocabulary))
        document_counts = np.bincount(counts.indices, minlength=counts.shape[1])
        self._columns = np.sort(np.argsort(-document_counts, kind="stable")[:_TERMS])
        self._idf = np.log((1 + len(texts)) / (1 + document_counts[self._columns])) + 1
        self._terms = len(self._vocabulary)
        matrix = self._weighted(counts)
        rank = min(dimensions, min(matrix.shape) - 1)
        self._directions = np.eye(matrix.shape[1], 1, dtype=np.float32)
        if rank >= 1:
            _, _, directions = randomized_svd(matrix, rank, n_iter=3, random_state=seed)
            self._directions = np.ascontiguousarray(directions.T, np.float32)
        self.label = f"tfidf ({self._directions.shape[1]} dimensions, fitted here)"

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [documents, D]."""
        parts = [np.zeros((0, self._directions.shape[1]), np.float32)]
        for start in range(0, len(texts), _ROWS):
            counts = self._counts(self._vocabulary.encode(texts[start : start + _ROWS]), self._terms)
            parts.append((self._weighted(counts) @ self._directions).astype(np.float32))
        return np.concatenate(parts)

    @staticmethod
    def _counts(words: Words, terms: int) -> Any:
        """Sparse counts [documents, terms] of the words that were known at the fit."""
        from scipy.sparse import csr_array

        known = words.ids < terms
        cells = (words.document_of_word()[known], words.ids[known])
        return csr_array((np.ones(len(cells[0]), np.float32), cells), shape=(words.documents, max(terms, 1)))

    def _weighted(self, counts: Any) -> Any:
        matrix = counts.tocsc()[:, self._columns].tocsr()
        matrix.data = 1 + np.log(matrix.data)
        matrix.data *= self._idf[matrix.indices].astype(np.float32)
        norms = np.sqrt(matrix.multiply(matrix).sum(1))
        matrix.data /= np.repeat(np.maximum(norms, 1e-12), np.diff(matrix.indptr)).astype(np.float32)
        return matrix


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Rows that are not zero, scaled to length 1: float32 or float64 [documents with content, D].

    Raises:
      InputError: not a matrix, or not finite.
    """
    vectors = np.asarray(vectors)
    if vectors.dtype not in (np.float32, np.float64):
        vectors = vectors.astype(np.float32)
    if vectors.ndim != 2 or not np.isfinite(vectors).all():
        shape = list(vectors.shape)
        raise InputError(f"embeddings: expected finite [documents, dimensions], got shape {shape}; check the embedder")
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    with_content = norms[:, 0] > 0
    return vectors / norms if with_content.all() else vectors[with_content] / norms[with_content]


def _moment(unit: np.ndarray) -> np.ndarray:
    """The smaller of X^T X and X X^T, over documents, in float64; both have the same eigenvalues but for zeros."""
    documents, size = unit.shape
    if documents <= size:
        return (unit @ unit.T).astype(np.float64) / documents
    moment = np.zeros((size, size))
    for start in range(0, documents, 8192):  # blocks, so that float32 sums stay short
        block = unit[start : start + 8192]
        moment += block.T @ block
    return moment / documents


def vendi_score(vectors: np.ndarray, order: float = 1.0) -> float | None:
    """Effective number of unlike documents: exp of the Renyi entropy of the eigenvalues of the cosine matrix.

    Args:
      vectors: [documents, D], any length; None is returned where none has content.
      order: 1 (Shannon), 2, any other above 0, or infinity.

    Source: Friedman and Dieng, "The Vendi Score" (2023); Pasarkar and Dieng, "Cousins of the Vendi Score" (2023). Equal
    to `vendi-score`'s `score_dual`; its `score_X` gives order 1 whatever order is asked for.

    Raises:
      InputError: an order that is not above 0, or vectors that are not finite.
    """
    if not order > 0:
        raise InputError(f"vendi score of order {order}: expected a number above 0")
    unit = unit_rows(vectors)
    if not len(unit):
        return None
    moment = _moment(unit)
    if order == 2:
        return float(1 / np.square(moment).sum())
    shares = np.linalg.eigvalsh(moment)
    shares = shares[shares > 1e-12]
    if order == 1:
        return float(np.exp(-(shares * np.log(shares)).sum()))
    if np.isinf(order):
        return float(1 / shares.max())
    return float((shares**order).sum() ** (1 / (1 - order)))


def mean_pairwise_distance(vectors: np.ndarray) -> float | None:
    """Mean of 1 - cosine over all pairs of different documents; None with fewer than two that have content.

    Exact, from the sum of the vectors. `diversity.remote_clique` counts each document with itself too.
    """
    unit = unit_rows(vectors)
    documents = len(unit)
    if documents < 2:
        return None
    total = unit.sum(0, dtype=np.float64)
    own = float(np.square(unit, dtype=np.float64).sum())
    return max(0.0, float(1 - (total @ total - own) / (documents * (documents - 1))))


@dataclass(frozen=True, kw_only=True)
class Codebook:
    """Cluster centres, float32 [clusters, D], of length 1."""

    centres: np.ndarray

    @classmethod
    def fit(
        cls, vectors: np.ndarray, clusters: int, *, seed: int = 0, batch: int = 8192, passes: float = 4.0
    ) -> "Codebook":
        """Mini-batch K-means by cosine, over `passes` times as many vectors as there are.

        Source: Sculley, "Web-scale k-means clustering" (2010): each centre is the running mean of what was assigned to
        it. Centres begin as different documents; one without an assignment during a full pass is reset to a document of
        the batch.

        Raises:
          InputError: fewer clusters than 1 or more than there are different vectors to begin with.
        """
        unit = unit_rows(vectors).astype(np.float32, copy=False)
        if not 1 <= clusters <= len(unit):
            raise InputError(f"clusters={clusters}: expected 1 to the number of documents with content, {len(unit)}")
        draw = np.random.default_rng([seed, 0xC1])
        centres = unit[draw.choice(len(unit), clusters, replace=False)].copy()
        seen = np.ones(clusters)
        used = np.zeros(clusters, bool)
        rows_since_reset = 0
        for _ in range(max(1, round(passes * len(unit) / batch))):
            rows = unit[draw.integers(len(unit), size=min(batch, len(unit)))] if len(unit) > batch else unit
            nearest = assign(rows, centres)
            counts = np.bincount(nearest, minlength=clusters)
            order = np.argsort(nearest, kind="stable")
            hit = np.flatnonzero(counts)
            sums = np.add.reduceat(rows[order], np.cumsum(counts[hit]) - counts[hit], axis=0)
            seen[hit] += counts[hit]
            centres[hit] += (sums - counts[hit, None] * centres[hit]) / seen[hit, None]
            centres[hit] /= np.maximum(np.linalg.norm(centres[hit], axis=1, keepdims=True), 1e-12)
            used[hit] = True
            rows_since_reset += len(rows)
            if rows_since_reset >= len(unit):
                idle = np.flatnonzero(~used)
                centres[idle] = rows[draw.integers(len(rows), size=len(idle))]
                used[:], rows_since_reset = False, 0
        return cls(centres=centres)

    def occupancy(self, vectors: np.ndarray) -> np.ndarray:
        """The number of documents with content nearest to each centre: int64 [clusters]."""
        unit = unit_rows(vectors).astype(np.float32, copy=False)
        return np.bincount(assign(unit, self.centres), minlength=len(self.centres))


def assign(unit: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """The nearest centre, by cosine, of every row: int64 [rows]."""
    rows = max(64, (1 << 26) // len(centres))  # a quarter of a gigabyte of products at once
    parts = [(unit[start : start + rows] @ centres.T).argmax(1) for start in range(0, len(unit), rows)]
    return np.concatenate([np.empty(0, np.int64), *parts])


def effective_occupied(counts: np.ndarray) -> float | None:
    """exp of the entropy of a corpus's shares of the clusters: 1 where all documents share one cluster, the number of
    clusters where they spread evenly; None where no document has content.

    The paper's "K-means cluster score" specifies 10,000 clusters and no formula. Here clusters are fitted once, to all
    corpora of a run together, and a corpus is measured by how evenly it fills them.
    """
    if not counts.any():
        return None
    shares = counts[counts > 0] / counts.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def default_clusters(documents: int) -> int:
    """One cluster per ten documents, at most 10,000, the paper's number at a million; docs/metrics.md says why."""
    return max(1, min(10_000, documents // 10 or min(documents, 2)))


@stage(
    "vendi",
    "embedding",
    "vectors",
    {
        "vendi_1": ("Vendi score, order 1", 1, "effective unlike documents"),
        "vendi_2": ("Vendi score, order 2", 1, "the same, dominated by large groups"),
    },
)
def _vendi(sample: DocumentFeatures, settings: StageSettings) -> Figures:
    return {f"vendi_{order}": vendi_score(sample.vectors, order) for order in (1, 2)}


single_metric(
    "mean_pairwise_distance",
    "embedding",
    "vectors",
    ("Mean pairwise distance", 1, "1 - cosine, over all pairs"),
    lambda sample, settings: mean_pairwise_distance(sample.vectors),
    stage_name="distance",
)
single_metric(
    "kmeans_effective_clusters",
    "embedding",
    "vectors",
    ("K-means effective clusters", 1, "how evenly clusters fitted to all corpora fill"),
    lambda sample, settings: effective_occupied(settings.occupancy(sample.vectors)) if settings.occupancy else None,
    stage_name="kmeans",
)

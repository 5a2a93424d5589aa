"""Counts of the partitions that a judge made of one corpus: all that the figures of a score are computed from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import math
from typing import Any

import numpy as np

from diversity_jax.core.errors import InputError

COLUMNS = ("criteria_set", "clusters", "kept", "pairs")
OPTIONAL_COLUMNS = ("triples", "claimed_clusters", "claimed_pairs", "weight", "features")
_OF_THE_CORPUS = ("feature_means", "feature_means_covariance")
_KINDS = {"weight": np.float64, "features": np.float64}  # of columns that are not counts
_FEATURE_DECIMALS = 6  # short in files; the error of rounding is far below that of any mean


@dataclass(frozen=True, kw_only=True, eq=False)
class Groupings:
    """Counts of the partitions of one corpus. Arrays are [N], one entry a usable grouping, in the order of sampling.

    Attributes:
      samples_per_grouping: K.
      criteria_set: which of the B criteria sets the grouping was judged by, 0 to B - 1.
      clusters: C, clusters left after those that verification called invalid are dropped.
      kept: n, samples in those clusters.
      pairs: pairs of samples in one cluster, after verification: the samples that it found misplaced are singletons.
      triples: triples of samples in one cluster, likewise; None in scores of earlier versions.
      claimed_clusters, claimed_pairs: C and pairs before verification; None where they are equal to those after it.
      weight: by how much a grouping counts in what verification changed: 1 / q where it was verified with probability
        q, 0 where it was not (its counts are then those before verification); None where all were verified or none.
      features: [N, F], means over a grouping's pairs of the control variate's features (`control_variate.features`).
      feature_means, feature_means_covariance: [F] and [F, F], their means over all pairs of the corpus, and the
        covariance of these means where only a part of the documents was read.

    Raises:
      InputError: arrays that do not fit each other, or counts that K samples cannot have.
    """

    samples_per_grouping: int
    criteria_set: np.ndarray
    clusters: np.ndarray
    kept: np.ndarray
    pairs: np.ndarray
    triples: np.ndarray | None = None
    claimed_clusters: np.ndarray | None = None
    claimed_pairs: np.ndarray | None = None
    weight: np.ndarray | None = None
    features: np.ndarray | None = None
    feature_means: np.ndarray | None = None
    feature_means_covariance: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.samples_per_grouping < 2:
            raise InputError(f"samples_per_grouping: {self.samples_per_grouping} samples make no pair; give at least 2")
        for name in self._present():
            object.__setattr__(self, name, np.asarray(getattr(self, name), _KINDS.get(name, np.int32)))
        if self.clusters.ndim != 1 or len({len(getattr(self, name)) for name in self._present()}) != 1:
            raise InputError("groupings: all columns must be of one length")
        if self.features is not None:
            self._check_features()
        if not self._fits().all():
            raise InputError(
                f"groupings: counts do not fit {self.samples_per_grouping} samples a grouping; the file is damaged"
            )

    def _present(self) -> list[str]:
        return [*COLUMNS, *(name for name in OPTIONAL_COLUMNS if getattr(self, name) is not None)]

    def _check_features(self) -> None:
        features = np.round(np.asarray(self.features).reshape(len(self), -1), _FEATURE_DECIMALS)
        count = features.shape[1]
        means = np.asarray([] if self.feature_means is None else self.feature_means, float)
        covariance = self.feature_means_covariance
        covariance = np.zeros((count, count)) if covariance is None else np.asarray(covariance, float)
        if means.shape != (count,) or covariance.shape != (count, count):
            raise InputError(f"groupings: {count} features need as many feature_means, and their covariance")
        if not all(np.isfinite(numbers).all() for numbers in (features, means, covariance)):
            raise InputError("groupings: features, feature_means and their covariance must be finite numbers")
        for name, value in (("features", features), *zip(_OF_THE_CORPUS, (means, covariance), strict=True)):
            object.__setattr__(self, name, value)

    def _fits(self) -> np.ndarray:
        """[N], whether a grouping's counts are possible."""
        k = self.samples_per_grouping
        fits = (self.kept <= k) & (self.clusters <= self.kept) & (self.pairs >= 0) & (self.pairs <= self.possible_pairs)
        if self.triples is not None:
            fits &= (self.triples >= 0) & (self.triples <= math.comb(k, 3))
        if self.claimed_clusters is not None:
            fits &= (self.claimed_clusters >= 1) & (self.claimed_clusters <= k)
        if self.claimed_pairs is not None:
            fits &= (self.claimed_pairs >= self.pairs) & (self.claimed_pairs <= self.possible_pairs)
        if self.weight is not None:
            fits &= np.isfinite(self.weight) & (self.weight >= 0)
        return fits

    @classmethod
    def of_rows(
        cls, samples_per_grouping: int, rows: Sequence[Mapping[str, Any] | Sequence[int]], **of_the_corpus: Any
    ) -> "Groupings":
        """From one row for each grouping: a mapping by names of columns, or a tuple of `COLUMNS`.

        Args:
          of_the_corpus: `feature_means` and `feature_means_covariance`, where the rows have features.
        """
        named = [row if isinstance(row, Mapping) else dict(zip(COLUMNS, row, strict=True)) for row in rows]
        names = [*COLUMNS, *(name for name in OPTIONAL_COLUMNS if named and all(name in row for row in named))]
        columns = {name: np.array([row[name] for row in named], _KINDS.get(name, np.int32)) for name in names}
        if "features" not in columns:
            of_the_corpus = {}
        return cls(samples_per_grouping=samples_per_grouping, **columns, **of_the_corpus)

    def __len__(self) -> int:
        return len(self.clusters)

    @property
    def possible_pairs(self) -> int:
        """Pairs in one grouping, K (K - 1) / 2."""
        return math.comb(self.samples_per_grouping, 2)

    @property
    def collisions(self) -> np.ndarray:
        """T_i [N]: share of a grouping's pairs that are in one cluster."""
        return self.pairs / self.possible_pairs

    def first(self, count: int) -> "Groupings":
        """The first `count` groupings."""
        return self.chosen(slice(count))

    def chosen(self, rows: slice | np.ndarray) -> "Groupings":
        """Some of the groupings."""
        columns = {name: getattr(self, name)[rows] for name in self._present()}
        of_the_corpus = {name: getattr(self, name) for name in _OF_THE_CORPUS}
        return Groupings(samples_per_grouping=self.samples_per_grouping, **columns, **of_the_corpus)

    def to_json(self) -> dict[str, Any]:
        """K and all columns that there are, as lists; read by `Groupings(**value)`."""
        names = [*self._present(), *(name for name in _OF_THE_CORPUS if self.features is not None)]
        columns = {name: getattr(self, name).tolist() for name in names}
        return {"samples_per_grouping": self.samples_per_grouping} | columns


def count_partition(
    sizes: Sequence[int], valid: Sequence[bool], placed: Sequence[int] | None = None
) -> tuple[int, int, int, int]:
    """Of one partition: (clusters left, samples left, co-clustered pairs, co-clustered triples).

    Args:
      sizes, valid: of each cluster. Clusters and samples left are those of valid clusters, as in the paper.
      placed: samples of each cluster that verification found rightly placed; the others count as singletons in pairs
        and triples, since nothing else is known of them. None: all of a valid cluster and none of an invalid one.
    """
    left = [size for size, good in zip(sizes, valid, strict=True) if good]
    placed = left if placed is None else placed
    return len(left), sum(left), sum(math.comb(size, 2) for size in placed), sum(math.comb(size, 3) for size in placed)

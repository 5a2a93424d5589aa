"""Counts of partitions, from which all figures of a score are computed; and parsers of the answers of stages 5 and 6.

Answers are checked for ids and numbers only. Reasons, metadata and scores are for readers; malformed ones are left out.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
import math
import re
from typing import Any

import numpy as np

from diversity_jax.cluster_agent.text_cleaning import clean_text
from diversity_jax.cluster_agent.types import AnswerError, Cluster, Sample
from diversity_jax.core.errors import InputError

COLUMNS = ("criteria_set", "clusters", "kept", "pairs")
OPTIONAL_COLUMNS = ("triples", "claimed_clusters", "claimed_pairs", "weight", "features")
_OF_THE_CORPUS = ("feature_means", "feature_means_covariance")
_KINDS = {"weight": np.float64, "features": np.float64}  # of columns that are not counts
_FEATURE_DECIMALS = 6  # to keep files short; the rounding error is far below the error of any mean


@dataclass(frozen=True, kw_only=True, eq=False)
class Groupings:
    """Counts of the partitions of one corpus: arrays [N], one element for each usable grouping, in the order of
    sampling.

    Attributes:
      samples_per_grouping: K.
      criteria_set: which of the B criteria sets the grouping was judged by, 0 to B - 1.
      clusters: C, clusters left after those that verification called invalid are dropped.
      kept: n, samples in those clusters.
      pairs: pairs of samples in one cluster after verification, where misplaced samples are singletons.
      triples: triples of samples in one cluster, likewise; None in scores of earlier versions.
      claimed_clusters, claimed_pairs: C and pairs before verification; None where they are equal to those after it.
      weight: of a grouping in the change by verification: 1 / q where it was verified with probability q, 0 where it
        was not (its counts are then those before verification); None where all were verified or none.
      features: [N, F], means over a grouping's pairs of the control variate's features (`uncertainty.features`).
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
        """From one row for each grouping: a mapping by column names, or a tuple of `COLUMNS`.

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
        return self.chosen(slice(count))

    def chosen(self, rows: slice | np.ndarray) -> "Groupings":
        columns = {name: getattr(self, name)[rows] for name in self._present()}
        of_the_corpus = {name: getattr(self, name) for name in _OF_THE_CORPUS}
        return Groupings(samples_per_grouping=self.samples_per_grouping, **columns, **of_the_corpus)

    def to_json(self) -> dict[str, Any]:
        """K and all columns that are not None, as lists; read by `Groupings(**value)`."""
        names = [*self._present(), *(name for name in _OF_THE_CORPUS if self.features is not None)]
        columns = {name: getattr(self, name).tolist() for name in names}
        return {"samples_per_grouping": self.samples_per_grouping} | columns


def count_partition(
    sizes: Sequence[int], valid: Sequence[bool], placed: Sequence[int] | None = None
) -> tuple[int, int, int, int]:
    """(Valid clusters, samples in them, co-clustered pairs, co-clustered triples) of one partition.

    Args:
      sizes, valid: of each cluster.
      placed: samples of each cluster that are not misplaced by verification; the others count as singletons in pairs
        and triples, since their cluster is not known. None: all of a valid cluster and none of an invalid one.
    """
    valid_sizes = [size for size, good in zip(sizes, valid, strict=True) if good]
    placed = valid_sizes if placed is None else placed
    pairs, triples = (sum(math.comb(size, number) for size in placed) for number in (2, 3))
    return len(valid_sizes), sum(valid_sizes), pairs, triples


_REASON_CHARACTERS = 600
_SAMPLE_ID_CHARACTERS = 40
_NAMED = 6  # ids named in an error
_NUMBER_DIGITS = 9
_NUMBER_WORDS = {"true": 1, "yes": 1, "valid": 1, "false": 0, "no": 0, "invalid": 0}
_CLUSTER_NUMBER = re.compile(r"\D{0,12}(\d{1,6})\s*")  # `3`, `#3`, `cluster 3`


def parse_partition(value: Any, samples: Sequence[Sample]) -> tuple[Cluster, ...]:
    """Clusters of a `cluster_samples` answer: every shown sample in exactly one.

    Two forms are read, whichever was asked for: `assignment`, an object of sample ids and cluster numbers, with
    optional descriptions of the clusters by number in `clusters`; and `clusters`, a list with the `sample_ids` of each.
    Metadata and metrics may be objects or lists of name and value.

    Raises:
      AnswerError: an id is missing, repeated or unknown, a cluster is empty, or the value has neither form.
    """
    value = value if isinstance(value, Mapping) else {}
    assignment, entries = value.get("assignment"), value.get("clusters")
    if isinstance(assignment, Mapping) and assignment:
        clusters = _assigned(assignment, entries if isinstance(entries, list) else [])
    elif isinstance(entries, list):
        clusters = tuple(map(_listed, entries))
    else:
        raise AnswerError("expected an object with `assignment`, or with a list `clusters`")
    counts = Counter(sample_id for cluster in clusters for sample_id in cluster.sample_ids)
    expected = {sample.sample_id for sample in samples}
    for what, wrong in (
        ("unknown sample ids", [i for i in counts if i not in expected]),
        ("sample ids in more than one place", [i for i in counts if i in expected and counts[i] > 1]),
        ("sample ids in no cluster", [s.sample_id for s in samples if s.sample_id not in counts]),
    ):
        if wrong:
            raise AnswerError(
                f"{what}: {', '.join(wrong[:_NAMED])}{' and more' * (len(wrong) > _NAMED)}; each shown id belongs in "
                "exactly one cluster"
            )
    return clusters


def _assigned(assignment: Mapping[str, Any], entries: Sequence[Any]) -> tuple[Cluster, ...]:
    members: dict[int, list[str]] = {}
    for sample_id, number in assignment.items():
        members.setdefault(_cluster_number(sample_id, number), []).append(sample_id)
    described = {_number(entry.get("cluster")): entry for entry in entries if isinstance(entry, Mapping)}
    return tuple(_cluster(ids, described.get(number, {})) for number, ids in sorted(members.items()))


def _cluster_number(sample_id: str, value: Any) -> int:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    number = _number(value)
    if number is None and isinstance(value, str) and (match := _CLUSTER_NUMBER.fullmatch(value)):
        number = int(match.group(1))
    if number is None:
        raise AnswerError(f"`assignment` of {sample_id[:_SAMPLE_ID_CHARACTERS]} is no cluster number")
    return number


def _listed(entry: Any) -> Cluster:
    ids = entry.get("sample_ids") if isinstance(entry, Mapping) else None
    if not isinstance(ids, list) or not ids:
        raise AnswerError("a cluster has no `sample_ids`; every cluster needs at least one")
    if not all(isinstance(i, str) and len(i) <= _SAMPLE_ID_CHARACTERS for i in ids):
        raise AnswerError("`sample_ids` must be the short ids shown with the samples")
    return _cluster(ids, entry)


def _cluster(ids: Sequence[str], entry: Mapping[str, Any]) -> Cluster:
    return Cluster(
        sample_ids=tuple(ids),
        reasoning=_text(entry.get("uniqueness_reasoning")),
        metadata=tuple((name, _text(value)) for name, value in _named_values(entry.get("cluster_metadata"), "value")),
        metrics=tuple(_metric(name, value) for name, value in _named_values(entry.get("cluster_metrics"), None)),
    )


def _named_values(value: Any, field: str | None) -> list[tuple[str, Any]]:
    """(name, value) of an object, or of a list of objects with a `name`, whose value is their `field` (None: the
    object).
    """
    if isinstance(value, Mapping):
        return [(_text(name), item) for name, item in value.items()]
    if isinstance(value, list):
        named = [item for item in value if isinstance(item, Mapping) and isinstance(item.get("name"), str)]
        return [(_text(item["name"]), item if field is None else item.get(field)) for item in named]
    return []


def _metric(name: str, value: Any) -> tuple[str, int, str]:
    value = value if isinstance(value, Mapping) else {"score": value}
    score = _number(value.get("score"))
    return name, score if score is not None and 1 <= score <= 5 else 0, _text(value.get("reasoning"))


def _number(value: Any) -> int | None:
    """An integer, which a model may have written as text, true or false; otherwise None."""
    if isinstance(value, str):
        text = value.strip().lower()
        return _NUMBER_WORDS.get(text, int(text) if text.isdecimal() and len(text) <= _NUMBER_DIGITS else None)
    is_integer = isinstance(value, (int, float)) and abs(value) < 10**_NUMBER_DIGITS and value == int(value)
    return int(value) if is_integer else None


def _text(value: Any) -> str:
    if not value:
        return ""
    return clean_text(value if isinstance(value, str) else str(value)[:_REASON_CHARACTERS], _REASON_CHARACTERS)


def parse_validation(value: Any, clusters: Sequence[Cluster]) -> tuple[Cluster, ...]:
    """`clusters` with the verification in a `verify_clusters` answer, where `cluster` counts from 1.

    Singletons are valid whatever it says. `misplaced` names the samples that do not belong; ids that are not in the
    cluster are ignored. A cluster with misplaced samples is invalid whatever its `valid` says, and in an invalid
    cluster without them all samples are misplaced.

    Raises:
      AnswerError: a cluster of two or more has no verdict or two different ones, or the value has another form.
    """
    entries = value.get("validation") if isinstance(value, Mapping) else None
    if not isinstance(entries, list):
        raise AnswerError("expected an object with a list `validation`")
    verdicts: dict[int, tuple[bool, Mapping[str, Any]]] = {}
    for entry in entries:
        item = entry if isinstance(entry, Mapping) else {}
        number, valid = _number(item.get("cluster")), _number(item.get("valid"))
        if number is None or valid not in (0, 1):
            raise AnswerError("every entry of `validation` needs `cluster`, a number, and `valid`, 0 or 1")
        if number in verdicts and verdicts[number][0] != bool(valid):
            raise AnswerError(f"cluster {number} is called both valid and invalid; give one verdict")
        verdicts.setdefault(number, (bool(valid), item))
    numbered = list(enumerate(clusters, start=1))
    missing = [str(n) for n, cluster in numbered if n not in verdicts and len(cluster.sample_ids) > 1]
    if missing:
        raise AnswerError(f"no verdict on cluster {', '.join(missing[:_NAMED])}; judge every cluster")
    return tuple(_checked(cluster, *verdicts.get(n, (True, {}))) for n, cluster in numbered)


def _checked(cluster: Cluster, valid: bool, entry: Mapping[str, Any]) -> Cluster:
    reasoning = _text(entry.get("reasoning"))
    if len(cluster.sample_ids) == 1:
        return replace(cluster, validation=reasoning)
    named = entry.get("misplaced")
    named = re.findall(r"\w+", named) if isinstance(named, str) else named if isinstance(named, list) else []
    named = [item.get("sample_id") if isinstance(item, Mapping) else item for item in named]
    misplaced = tuple(i for i in cluster.sample_ids if i in named)
    if not misplaced and not valid:
        misplaced = cluster.sample_ids
    return replace(cluster, valid=not misplaced, misplaced=misplaced, validation=reasoning)

"""Reads the answers of stages 5 and 6: a partition, and the check of its clusters.

Only ids and numbers decide. Reasons, metadata and scores are for people; whatever is wrong with them is left out.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
import re
from typing import Any

from diversity_jax.cluster_agent.text_cleaning import clean_text
from diversity_jax.cluster_agent.types import AnswerError, Cluster, Sample

_REASON_CHARACTERS = 600
_SAMPLE_ID_CHARACTERS = 40
_NAMED = 6  # ids named in a complaint
_NUMBER_DIGITS = 9
_NUMBER_WORDS = {"true": 1, "yes": 1, "valid": 1, "false": 0, "no": 0, "invalid": 0}
_CLUSTER_NUMBER = re.compile(r"\D{0,12}(\d{1,6})\s*")  # `3`, `#3`, `cluster 3`


def parse_partition(value: Any, samples: Sequence[Sample]) -> tuple[Cluster, ...]:
    """Clusters of a `cluster_samples` answer: every shown sample in exactly one.

    Both forms are read, whichever was asked for: `assignment`, an object of sample ids and cluster numbers, beside
    which `clusters` may describe the clusters by number; and `clusters`, a list with the `sample_ids` of each.
    Metadata and metrics may come as objects or as lists of name and value.

    Raises:
      AnswerError: an id is missing, repeated or unknown, a cluster is empty, or the shape is another.
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
    """(name, value) of an object or of a list of objects with a `name`; the value is their `field`, or all of them."""
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
    """An integer, also where a model wrote it as text or as true or false."""
    if isinstance(value, str):
        text = value.strip().lower()
        return _NUMBER_WORDS.get(text, int(text) if text.isdecimal() and len(text) <= _NUMBER_DIGITS else None)
    whole = isinstance(value, (int, float)) and abs(value) < 10**_NUMBER_DIGITS and value == int(value)
    return int(value) if whole else None


def _text(value: Any) -> str:
    if not value:
        return ""
    return clean_text(value if isinstance(value, str) else str(value)[:_REASON_CHARACTERS], _REASON_CHARACTERS)


def parse_validation(value: Any, clusters: Sequence[Cluster]) -> tuple[Cluster, ...]:
    """`clusters` with what a `verify_clusters` answer, whose `cluster` counts from 1, says of each.

    Singletons are valid, with any verdict or none. `misplaced` names the samples that do not belong; ids that the
    cluster does not have are ignored. A cluster with misplaced samples is not valid whatever its verdict says, and of
    an invalid cluster without them all samples are misplaced.

    Raises:
      AnswerError: a cluster of two or more has no verdict or two different ones, or the shape is another.
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

"""Whether an answer is a partition: every shown sample in exactly one cluster. Anything else is asked again, then
dropped.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from diversity_jax.cluster_agent.text_cleaning import clean_text
from diversity_jax.cluster_agent.types import AnswerError, Cluster, Sample

_REASON_CHARACTERS = 600
_NAMED = 6  # ids named in a complaint
_WORDS = {"true": 1, "yes": 1, "valid": 1, "false": 0, "no": 0, "invalid": 0}


def parse_partition(value: Any, samples: Sequence[Sample]) -> tuple[Cluster, ...]:
    """Clusters of a `cluster_samples` answer.

    Only the ids decide; reasoning, metadata and scores are for people and may be missing. Metadata and metrics may come
    as objects or as lists of name and value.

    Raises:
      AnswerError: an id is missing, repeated or unknown, a cluster is empty, or the shape is another.
    """
    entries = value.get("clusters") if isinstance(value, Mapping) else None
    if not isinstance(entries, list):
        raise AnswerError("expected an object with a list `clusters`")
    clusters = tuple(_cluster(entry) for entry in entries)
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


def _cluster(entry: Any) -> Cluster:
    ids = entry.get("sample_ids") if isinstance(entry, Mapping) else None
    if not isinstance(ids, list) or not ids:
        raise AnswerError("a cluster has no `sample_ids`; every cluster needs at least one")
    if not all(isinstance(i, str) and len(i) <= 40 for i in ids):
        raise AnswerError("`sample_ids` must be the short ids shown with the samples")
    return Cluster(
        sample_ids=tuple(ids),
        reasoning=_text(entry.get("uniqueness_reasoning")),
        metadata=tuple((name, _text(value)) for name, value in _pairs(entry.get("cluster_metadata"), "value")),
        metrics=tuple(_metric(name, value) for name, value in _pairs(entry.get("cluster_metrics"), None)),
    )


def _pairs(value: Any, field: str | None) -> list[tuple[str, Any]]:
    """(name, value) of an object, or of a list of objects that have a `name`; `field` None takes the whole object as
    value.
    """
    if isinstance(value, Mapping):
        return [(_text(name), one) for name, one in value.items()]
    if isinstance(value, list):
        named = [one for one in value if isinstance(one, Mapping) and isinstance(one.get("name"), str)]
        return [(_text(one["name"]), one if field is None else one.get(field)) for one in named]
    return []


def _metric(name: str, value: Any) -> tuple[str, int, str]:
    value = value if isinstance(value, Mapping) else {"score": value}
    score = _number(value.get("score"))
    return name, score if score is not None and 1 <= score <= 5 else 0, _text(value.get("reasoning"))


def _number(value: Any) -> int | None:
    """A whole number, also where a model wrote it as text or as true or false."""
    if isinstance(value, str):
        value = _WORDS.get(value.strip().lower(), value.strip())
        return int(value) if str(value).isdecimal() else None
    return int(value) if isinstance(value, (int, float)) and value == value and abs(value) < 1e9 else None


def _text(value: Any) -> str:
    if not value:
        return ""
    return clean_text(value if isinstance(value, str) else str(value)[:_REASON_CHARACTERS], _REASON_CHARACTERS)


def parse_validation(value: Any, clusters: Sequence[Cluster]) -> tuple[tuple[bool, str], ...]:
    """(valid, reasoning) of every cluster, from a `verify_clusters` answer whose `cluster` counts from 1.

    Singletons are valid whatever is said of them, and nothing needs to be said.

    Raises:
      AnswerError: a cluster of two or more has no verdict or two different ones, or the shape is another.
    """
    entries = value.get("validation") if isinstance(value, Mapping) else None
    if not isinstance(entries, list):
        raise AnswerError("expected an object with a list `validation`")
    verdicts: dict[int, tuple[bool, str]] = {}
    for entry in entries:
        number, valid = (
            (_number(entry.get("cluster")), _number(entry.get("valid"))) if isinstance(entry, Mapping) else (None, None)
        )
        if number is None or valid not in (0, 1):
            raise AnswerError("every entry of `validation` needs `cluster`, a number, and `valid`, 0 or 1")
        if number in verdicts and verdicts[number][0] != bool(valid):
            raise AnswerError(f"cluster {number} is called both valid and invalid; give one verdict")
        verdicts.setdefault(number, (bool(valid), _text(entry.get("reasoning"))))
    silent = [n for n, cluster in enumerate(clusters, start=1) if n not in verdicts and len(cluster.sample_ids) > 1]
    if silent:
        raise AnswerError(f"no verdict on cluster {', '.join(map(str, silent[:_NAMED]))}; judge every cluster")
    found = (verdicts.get(n, (True, "")) for n in range(1, len(clusters) + 1))
    return tuple((valid or len(c.sample_ids) == 1, why) for (valid, why), c in zip(found, clusters, strict=True))

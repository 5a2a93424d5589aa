"""Stages 5 and 6: one grouping is partitioned, the partition is checked, and its clusters are verified."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from diversity_jax.cluster_agent.canaries import CanaryResult, canary_result, with_control_cluster, without_planted
from diversity_jax.cluster_agent.config import AgentConfig
from diversity_jax.cluster_agent.criteria import Criteria
from diversity_jax.cluster_agent.groupings import count_partition
from diversity_jax.cluster_agent.sampling import PlannedGrouping
from diversity_jax.cluster_agent.text_cleaning import clean_text
from diversity_jax.cluster_agent.types import (
    AnswerError,
    CallTotals,
    Cluster,
    Judge,
    RequestLog,
    Sample,
    request_with_repair,
)

_EXAMPLE_CHARACTERS = 400
_REASON_CHARACTERS = 600
_SAMPLE_ID_CHARACTERS = 40
_NAMED = 6  # ids named in a complaint
_NUMBER_WORDS = {"true": 1, "yes": 1, "valid": 1, "false": 0, "no": 0, "invalid": 0}


@dataclass(frozen=True, kw_only=True)
class JudgedGrouping:
    """One grouping after it was judged.

    Attributes:
      planned: what was shown.
      usage: its calls.
      clusters: the partition of the drawn samples without planted ones; empty where there was no usable answer.
      canary: how the planted samples were grouped; None where none were planted or no partition came.
      dropped: why it does not count; None where it does.
      detail: the message of the server or the check.
    """

    planned: PlannedGrouping
    usage: CallTotals
    clusters: tuple[Cluster, ...] = ()
    canary: CanaryResult | None = None
    dropped: str | None = None
    detail: str = ""

    @property
    def counts(self) -> dict[str, int]:
        """Its row of `Groupings`, by column."""
        sizes = [len(cluster.sample_ids) for cluster in self.clusters]
        clusters, kept, pairs, triples = count_partition(sizes, [cluster.valid for cluster in self.clusters])
        _, _, claimed_pairs, _ = count_partition(sizes, [True] * len(sizes))
        claimed = {"claimed_clusters": len(sizes), "claimed_pairs": claimed_pairs, "weight": 1}
        numbers = {"criteria_set": self.planned.criteria_set, "clusters": clusters, "kept": kept}
        return numbers | {"pairs": pairs, "triples": triples} | claimed

    def to_json(self) -> dict[str, Any]:
        """One line of groupings.jsonl: samples and their documents, the canary, the partition and its verdicts."""
        canary = self.planned.canary and {**vars(self.planned.canary), "verdict": self.canary and vars(self.canary)}
        samples = [{"sample_id": sample.sample_id, "document": sample.document} for sample in self.planned.samples]
        clusters = [
            {
                "sample_ids": cluster.sample_ids,
                "valid": cluster.valid,
                "uniqueness_reasoning": cluster.reasoning,
                "validation": cluster.validation,
                "cluster_metadata": dict(cluster.metadata),
                "cluster_metrics": {name: {"score": score, "reasoning": text} for name, score, text in cluster.metrics},
            }
            for cluster in self.clusters
        ]
        numbers = {"grouping": self.planned.index, "criteria_set": self.planned.criteria_set}
        return numbers | {"samples": samples, "canary": canary, "dropped": self.dropped, "clusters": clusters}

    def example(self) -> dict[str, Any]:
        """The grouping for people: its clusters with the beginnings of their texts."""
        texts = {sample.sample_id: sample.text[:_EXAMPLE_CHARACTERS] for sample in self.planned.samples}
        clusters = [
            {
                "texts": [texts[sample_id] for sample_id in cluster.sample_ids],
                "reasoning": cluster.reasoning,
                "valid": cluster.valid,
                "validation": cluster.validation,
            }
            for cluster in self.clusters
        ]
        return {"grouping": self.planned.index, "criteria_set": self.planned.criteria_set, "clusters": clusters}


async def judge_grouping(
    planned: PlannedGrouping, judge: Judge, criteria: Criteria, config: AgentConfig
) -> JudgedGrouping:
    """Clusters the samples of one grouping and verifies the clusters.

    Raises:
      RunEnded: no further call can succeed.
    """
    log = RequestLog()

    def failed(canary: CanaryResult | None = None) -> JudgedGrouping:
        reason, detail = log.failures[-1]
        return JudgedGrouping(planned=planned, usage=log.usage, canary=canary, dropped=reason, detail=detail)

    task = config.task(
        "cluster_samples",
        criteria_set=planned.criteria_set,
        replicate=planned.index,
        samples=planned.samples,
        criteria=criteria.sets[planned.criteria_set],
    )
    partition = await request_with_repair(judge, task, lambda value: parse_partition(value, planned.samples), log)
    if partition is None:
        return failed()
    canary = canary_result(partition, planned.canary) if planned.canary else None
    clusters = without_planted(partition, planned.canary)
    if config.verify and (canary is None or canary.passed):
        shown, control = with_control_cluster(clusters, planned.canary)
        task = replace(task, stage="verify_clusters", clusters=shown)
        validation = await request_with_repair(judge, task, lambda value: parse_validation(value, shown), log)
        if validation is None:
            return failed(canary)
        if control is not None and not validation[control][0]:
            canary = CanaryResult(merged=False, split=True)
        verified = [verdict for number, verdict in enumerate(validation) if number != control]
        clusters = tuple(
            replace(cluster, valid=valid, validation=why)
            for cluster, (valid, why) in zip(clusters, verified, strict=True)
        )
    dropped = "canary" if canary and not canary.passed else None
    return JudgedGrouping(planned=planned, usage=log.usage, clusters=clusters, canary=canary, dropped=dropped)


def parse_partition(value: Any, samples: Sequence[Sample]) -> tuple[Cluster, ...]:
    """Clusters of a `cluster_samples` answer: every shown sample in exactly one.

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
    if not all(isinstance(i, str) and len(i) <= _SAMPLE_ID_CHARACTERS for i in ids):
        raise AnswerError("`sample_ids` must be the short ids shown with the samples")
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
        value = _NUMBER_WORDS.get(value.strip().lower(), value.strip())
        return int(value) if str(value).isdecimal() else None
    return int(value) if isinstance(value, (int, float)) and value == value and abs(value) < 1e9 else None


def _text(value: Any) -> str:
    if not value:
        return ""
    return clean_text(value if isinstance(value, str) else str(value)[:_REASON_CHARACTERS], _REASON_CHARACTERS)


def parse_validation(value: Any, clusters: Sequence[Cluster]) -> tuple[tuple[bool, str], ...]:
    """(valid, reasoning) of every cluster, from a `verify_clusters` answer whose `cluster` counts from 1.

    Singletons are valid, with any verdict or none.

    Raises:
      AnswerError: a cluster of two or more has no verdict or two different ones, or the shape is another.
    """
    entries = value.get("validation") if isinstance(value, Mapping) else None
    if not isinstance(entries, list):
        raise AnswerError("expected an object with a list `validation`")
    verdicts: dict[int, tuple[bool, str]] = {}
    for entry in entries:
        item = entry if isinstance(entry, Mapping) else {}
        number, valid = _number(item.get("cluster")), _number(item.get("valid"))
        if number is None or valid not in (0, 1):
            raise AnswerError("every entry of `validation` needs `cluster`, a number, and `valid`, 0 or 1")
        if number in verdicts and verdicts[number][0] != bool(valid):
            raise AnswerError(f"cluster {number} is called both valid and invalid; give one verdict")
        verdicts.setdefault(number, (bool(valid), _text(item.get("reasoning"))))
    numbered = list(enumerate(clusters, start=1))
    missing = [str(n) for n, cluster in numbered if n not in verdicts and len(cluster.sample_ids) > 1]
    if missing:
        raise AnswerError(f"no verdict on cluster {', '.join(missing[:_NAMED])}; judge every cluster")
    given = [(verdicts.get(n, (True, "")), len(cluster.sample_ids)) for n, cluster in numbered]
    return tuple((valid or size == 1, why) for (valid, why), size in given)

"""Stages 5 and 6 for one grouping, and the collecting of many in the order in which they were drawn."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
import json
from typing import IO, Any

from diversity_jax.cluster_agent.canaries import ErrorRates, Verdict, judge_canary, with_control, without_planted
from diversity_jax.cluster_agent.config import AgentConfig
from diversity_jax.cluster_agent.criteria import Criteria
from diversity_jax.cluster_agent.estimators import Groupings, count_partition
from diversity_jax.cluster_agent.partition import parse_partition, parse_validation
from diversity_jax.cluster_agent.propose import new_task
from diversity_jax.cluster_agent.request import Asker, Usage
from diversity_jax.cluster_agent.sampling import Planned
from diversity_jax.cluster_agent.types import Cluster, Judge

_EXAMPLE_CHARACTERS = 400
_encode = json.JSONEncoder(ensure_ascii=False).encode


@dataclass(frozen=True, kw_only=True)
class Grouped:
    """One grouping after it was judged.

    Attributes:
      planned: what was shown.
      usage: its calls.
      clusters: the partition of the drawn samples, planted ones taken out; empty where there was no usable answer.
      verdicts: valid or not, and why, for each cluster.
      canary: how the planted samples fared; None where none were planted or no partition came.
      dropped: why it does not count; None where it does. detail: what the server or the check said of that.
    """

    planned: Planned
    usage: Usage
    clusters: tuple[Cluster, ...] = ()
    verdicts: tuple[tuple[bool, str], ...] = ()
    canary: Verdict | None = None
    dropped: str | None = None
    detail: str = ""

    @property
    def counts(self) -> tuple[int, int, int]:
        """(clusters left, samples left, co-clustered pairs)."""
        return count_partition(
            [len(cluster.sample_ids) for cluster in self.clusters], [valid for valid, _ in self.verdicts]
        )


async def judge_grouping(planned: Planned, judge: Judge, criteria: Criteria, config: AgentConfig) -> Grouped:
    """Clusters the samples of one grouping and verifies the clusters.

    Raises:
      RunEnded: no further call can succeed.
    """
    asker = Asker(judge)
    content = {"samples": planned.samples, "criteria": criteria.sets[planned.criteria_set]}
    where = {"criteria_set": planned.criteria_set, "replicate": planned.index}
    task = new_task("cluster_samples", config, **where, **content)
    answered = await asker.ask(task, lambda value: parse_partition(value, planned.samples))
    if answered is None:
        return Grouped(planned=planned, usage=asker.usage, dropped=asker.failures[-1], detail=asker.details[-1])
    canary = judge_canary(answered, planned.canary) if planned.canary else None
    clusters = without_planted(answered, planned.canary)
    verdicts = tuple((True, "") for _ in clusters)
    if config.verify and (canary is None or canary.passed):
        shown, control = with_control(clusters, planned.canary)
        task = new_task("verify_clusters", config, **where, **content, clusters=shown)
        given = await asker.ask(task, lambda value: parse_validation(value, shown))
        if given is None:
            return Grouped(
                planned=planned, usage=asker.usage, canary=canary, dropped=asker.failures[-1], detail=asker.details[-1]
            )
        verdicts = tuple(verdict for place, verdict in enumerate(given) if place != control)
        if control is not None and not given[control][0]:
            canary = Verdict(merged=False, split=True)
    dropped = "canary" if canary and not canary.passed else None
    return Grouped(
        planned=planned, usage=asker.usage, clusters=clusters, verdicts=verdicts, canary=canary, dropped=dropped
    )


class Collector:
    """Takes groupings in whatever order they finish and enters them in the order they were drawn.

    So that nothing depends on which call came back first: not the file, the examples, the sums of dollars, or where a
      run stops.
    """

    def __init__(
        self, config: AgentConfig, lines: IO[str] | None = None, on_entry: Callable[[Grouped], None] | None = None
    ):
        self._config = config
        self._lines = lines
        self._on_entry = on_entry
        self._waiting: dict[int, Grouped] = {}
        self._columns: dict[str, list[int]] = {"criteria_set": [], "clusters": [], "kept": [], "pairs": []}
        self._shown = self._merged = self._split = 0
        self.entered = 0
        self.usage = Usage()
        self.drops: Counter[str] = Counter()
        self.first_details: dict[str, str] = {}  # of the drops, by reason
        self.cluster_sizes: Counter[int] = Counter()
        self.invalid_clusters = 0
        self.examples: list[dict[str, Any]] = []

    def take(self, grouped: Grouped) -> None:
        """Takes one grouping, and enters all that are next."""
        self._waiting[grouped.planned.index] = grouped
        while (following := self._waiting.pop(self.entered, None)) is not None:
            self._enter(following)

    def flush(self) -> None:
        """Enters what is left behind gaps, in order: groupings that finished although an earlier one never will."""
        for index in sorted(self._waiting):
            self._enter(self._waiting.pop(index))

    @property
    def groupings(self) -> Groupings:
        """All usable groupings entered so far."""
        return Groupings(samples_per_grouping=self._config.samples_per_grouping, **self._columns)

    @property
    def rates(self) -> ErrorRates:
        """Canaries shown and failed so far."""
        return ErrorRates(shown=self._shown, merged=self._merged, split=self._split)

    def _enter(self, grouped: Grouped) -> None:
        self.entered += 1
        self.usage.add(grouped.usage)
        if grouped.canary:
            self._shown += 1
            self._merged += grouped.canary.merged
            self._split += grouped.canary.split
        if grouped.dropped:
            self.drops[grouped.dropped] += 1
            self.first_details.setdefault(grouped.dropped, grouped.detail)
        else:
            self._count(grouped)
        if self._lines is not None:
            self._lines.write(_encode(line_of(grouped)) + "\n")
        if self._on_entry is not None:
            self._on_entry(grouped)

    def _count(self, grouped: Grouped) -> None:
        for name, value in zip(self._columns, (grouped.planned.criteria_set, *grouped.counts), strict=True):
            self._columns[name].append(value)
        for cluster, (valid, _) in zip(grouped.clusters, grouped.verdicts, strict=True):
            self.cluster_sizes[len(cluster.sample_ids)] += valid
            self.invalid_clusters += not valid
        if len(self.examples) < self._config.examples:
            self.examples.append(example_of(grouped))


def line_of(grouped: Grouped) -> dict[str, Any]:
    """One line of groupings.jsonl: which document stood under which id, the partition, its verdicts, and what became of
    it.
    """
    planned = grouped.planned
    canary = planned.canary and {**vars(planned.canary), "verdict": grouped.canary and dict(vars(grouped.canary))}
    return {
        "grouping": planned.index,
        "criteria_set": planned.criteria_set,
        "samples": [{"sample_id": sample.sample_id, "document": sample.document} for sample in planned.samples],
        "canary": canary,
        "dropped": grouped.dropped,
        "clusters": [
            {
                "sample_ids": list(cluster.sample_ids),
                "valid": valid,
                "uniqueness_reasoning": cluster.reasoning,
                "validation": why,
                "cluster_metadata": dict(cluster.metadata),
                "cluster_metrics": {name: {"score": score, "reasoning": text} for name, score, text in cluster.metrics},
            }
            for cluster, (valid, why) in zip(grouped.clusters, grouped.verdicts, strict=True)
        ],
    }


def example_of(grouped: Grouped) -> dict[str, Any]:
    """A grouping for people: its clusters with the beginnings of their texts."""
    texts = {sample.sample_id: sample.text[:_EXAMPLE_CHARACTERS] for sample in grouped.planned.samples}
    clusters = [
        {
            "texts": [texts[i] for i in cluster.sample_ids],
            "reasoning": cluster.reasoning,
            "valid": valid,
            "validation": why,
        }
        for cluster, (valid, why) in zip(grouped.clusters, grouped.verdicts, strict=True)
    ]
    return {"grouping": grouped.planned.index, "criteria_set": grouped.planned.criteria_set, "clusters": clusters}

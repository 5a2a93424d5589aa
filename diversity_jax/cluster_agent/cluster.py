"""Stages 5 and 6: partitions one grouping, verifies the clusters, and may partition half of the samples again."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from diversity_jax.cluster_agent.canaries import (
    CanaryResult,
    canary_result,
    cluster_numbers,
    with_controls,
    without_planted,
)
from diversity_jax.cluster_agent.config import AgentConfig
from diversity_jax.cluster_agent.criteria import Criteria
from diversity_jax.cluster_agent.examination import PartitionTraits, Recheck, recheck, traits
from diversity_jax.cluster_agent.groupings import count_partition, parse_partition, parse_validation
from diversity_jax.cluster_agent.sampling import PlannedGrouping, drawn_samples, half_of
from diversity_jax.cluster_agent.types import (
    CallTotals,
    Cluster,
    Judge,
    RequestLog,
    RunEnded,
    Task,
    request_with_repair,
)

_EXAMPLE_CHARACTERS = 400
_ANSWER_CHARACTERS = 1500  # of an unusable answer, stored as an example
_RECHECK_REPLICATES = 10_000_000  # added to a grouping's number, so that its recheck is a separate question


@dataclass(frozen=True, kw_only=True)
class JudgedGrouping:
    """One grouping after it was judged.

    Attributes:
      planned: the grouping as it was shown.
      usage: of its calls.
      clusters: the partition of the drawn samples; empty where there was no usable answer.
      canary: how the planted samples were grouped; None where none were planted or no partition came.
      verified: whether a second call checked the clusters; verified_share: in what share of the groupings one does.
      prices: of clustering and of verifying, as `CallTotals.price`.
      traits: of the partition, for `examination`; None where none came.
      recheck: counts of the half that was partitioned again; None where none was.
      dropped: why it does not count; None where it does.
      detail: message of the server or the check; answer: the beginning of an unusable answer.
    """

    planned: PlannedGrouping
    usage: CallTotals
    clusters: tuple[Cluster, ...] = ()
    canary: CanaryResult | None = None
    verified: bool = False
    verified_share: float = 1.0
    prices: tuple[float, float] = (0.0, 0.0)
    traits: PartitionTraits | None = None
    recheck: Recheck | None = None
    dropped: str | None = None
    detail: str = ""
    answer: str = ""

    def row(self) -> dict[str, float]:
        """Its row of `Groupings`, by column."""
        sizes = [len(cluster.sample_ids) for cluster in self.clusters]
        placed = [size - len(cluster.misplaced) for size, cluster in zip(sizes, self.clusters, strict=True)]
        counts = count_partition(sizes, [cluster.valid for cluster in self.clusters], placed)
        clusters, samples, pairs, triples = counts
        _, _, claimed_pairs, _ = count_partition(sizes, [True] * len(sizes))
        weight = 1.0 / self.verified_share if self.verified else float(not self.verified_share)
        numbers = {"criteria_set": self.planned.criteria_set, "clusters": clusters, "kept": samples}
        claimed = {"claimed_clusters": len(sizes), "claimed_pairs": claimed_pairs, "weight": weight}
        return numbers | {"pairs": pairs, "triples": triples} | claimed

    def to_json(self) -> dict[str, Any]:
        """One line of groupings.jsonl: samples and their documents, the canary, the partition and its verification."""
        canary = self.planned.canary and {**vars(self.planned.canary), "verdict": self.canary and vars(self.canary)}
        samples = [{"sample_id": sample.sample_id, "document": sample.document} for sample in self.planned.samples]
        clusters = [
            {
                "sample_ids": cluster.sample_ids,
                "valid": cluster.valid,
                "misplaced": cluster.misplaced,
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
        """The grouping for a page: its clusters with the beginnings of their texts."""
        texts = {sample.sample_id: sample.text[:_EXAMPLE_CHARACTERS] for sample in self.planned.samples}
        clusters = [
            {
                "texts": [texts[sample_id] for sample_id in cluster.sample_ids],
                "reasoning": cluster.reasoning,
                "valid": cluster.valid,
                "misplaced": [cluster.sample_ids.index(sample_id) for sample_id in cluster.misplaced],
                "validation": cluster.validation,
            }
            for cluster in self.clusters
        ]
        return {"grouping": self.planned.index, "criteria_set": self.planned.criteria_set, "clusters": clusters}


async def judge_grouping(
    planned: PlannedGrouping,
    judge: Judge,
    criteria: Criteria,
    config: AgentConfig,
    verified_share: Callable[[int], Awaitable[float]] | None = None,
) -> JudgedGrouping:
    """Partitions the samples of one grouping; where the configuration chooses this grouping for it, verifies the
    clusters and partitions half of the samples again.

    Groupings that a canary discards are not rechecked, and are verified only where the foreign text was merged, because
    whether verification finds it decides how many false merges remain in T. The figures are from the other groupings.
    Where a judge's errors are independent of each other, these have them at the same rates, so that discarding biases
    no figure and the canaries' rates hold for them. Where a judge fails in all pairs of a grouping (told to merge or to
    split everything), fewer of them are affected, and the figures are better than the judge. They are biased only where
    failing depends on the samples; therefore the verdict uses the number of discarded groupings, and rates over all.

    Args:
      verified_share: from the grouping's number to the share of the groupings that are verified, called once it is
        partitioned; None takes the configuration's.

    Raises:
      RunEnded: no further call can succeed.
    """
    log = RequestLog()

    def failed(canary: CanaryResult | None = None) -> JudgedGrouping:
        reason, detail = log.failures[-1]
        answer = log.last_answer[:_ANSWER_CHARACTERS]
        return JudgedGrouping(
            planned=planned, usage=log.usage, canary=canary, dropped=reason, detail=detail, answer=answer
        )

    task = _clustering(planned, planned.index, criteria, config)
    partition = await request_with_repair(judge, task, lambda value: parse_partition(value, planned.samples), log)
    if partition is None:
        return failed()
    canary = canary_result(partition, planned.canary) if planned.canary else None
    judged = JudgedGrouping(
        planned=planned,
        usage=log.usage,
        clusters=without_planted(partition, planned.canary),
        canary=canary,
        traits=_traits(planned, partition),
        dropped="canary" if canary and not canary.passed else None,
    )
    if canary and judged.dropped:
        return await _merge_checked(judged, partition, canary, task, judge, config, log)
    share = config.verified_share if verified_share is None else await verified_share(planned.index)
    judged = replace(judged, verified_share=share)
    if config.verifies(planned.index, share):
        before = log.usage.price
        checked = await _verified(judged, task, judge, log)
        if checked is None:
            return failed(canary)
        judged = replace(checked, prices=(before, log.usage.price - before))
    if not judged.dropped and config.rechecks(planned.index):
        judged = replace(judged, recheck=await _rechecked(judged, judge, criteria, config, log))
    return judged


def _clustering(planned: PlannedGrouping, replicate: int, criteria: Criteria, config: AgentConfig) -> Task:
    return config.task(
        "cluster_samples",
        criteria_set=planned.criteria_set,
        replicate=replicate,
        samples=planned.samples,
        criteria=criteria.sets[planned.criteria_set],
    )


async def _verified(judged: JudgedGrouping, task: Task, judge: Judge, log: RequestLog) -> JudgedGrouping | None:
    """The grouping with its clusters verified; None where no usable answer came."""
    shown, controls = with_controls(judged.clusters, judged.planned.canary)
    task = replace(task, stage="verify_clusters", clusters=shown)
    checked = await request_with_repair(judge, task, lambda value: parse_validation(value, shown), log)
    if checked is None:
        return None
    clusters = tuple(cluster for number, cluster in enumerate(checked) if number not in controls)
    canary = judged.canary and judged.canary.with_controls([checked[number] for number in controls])
    dropped = "canary" if canary and not canary.passed else None
    return replace(judged, clusters=clusters, canary=canary, verified=True, dropped=dropped)


async def _merge_checked(
    judged: JudgedGrouping,
    partition: Sequence[Cluster],
    canary: CanaryResult,
    task: Task,
    judge: Judge,
    config: AgentConfig,
    log: RequestLog,
) -> JudgedGrouping:
    """A grouping that a canary discards, with `kept`: whether verification leaves the merged foreign text in place."""
    planted = judged.planned.canary
    if planted is None or canary.split or not config.verifies(judged.planned.index):
        return judged
    clusters = without_planted(partition, planted, leave_foreign=True)
    checked = await _verified(replace(judged, clusters=clusters), task, judge, log)
    if checked is None or checked.canary is None:
        return judged
    cluster = next(cluster for cluster in checked.clusters if planted.foreign in cluster.sample_ids)
    is_kept = planted.foreign not in cluster.misplaced and len(cluster.sample_ids) - len(cluster.misplaced) > 1
    clusters = tuple(
        replace(c, misplaced=tuple(sample_id for sample_id in c.misplaced if sample_id != planted.foreign))
        for c in without_planted(checked.clusters, planted)
    )
    return replace(judged, clusters=clusters, canary=replace(checked.canary, kept=is_kept), verified=True)


async def _rechecked(
    judged: JudgedGrouping, judge: Judge, criteria: Criteria, config: AgentConfig, log: RequestLog
) -> Recheck | None:
    """Partitions half of the samples again and counts pairs; None without a usable partition that passes its canary."""
    half, first_ids = half_of(judged.planned, config)
    task = _clustering(half, _RECHECK_REPLICATES + half.index, criteria, config)
    try:
        partition = await request_with_repair(judge, task, lambda value: parse_partition(value, half.samples), log)
    except RunEnded:  # the grouping itself is complete; the next call raises it again
        return None
    if partition is None or (half.canary and not canary_result(partition, half.canary).passed):
        return None
    first, second = cluster_numbers(judged.clusters), cluster_numbers(partition)
    misplaced = {sample_id for cluster in judged.clusters for sample_id in cluster.misplaced}
    labels = [first[sample_id] for sample_id in first_ids.values()], [second[sample_id] for sample_id in first_ids]
    placed = [sample_id not in misplaced for sample_id in first_ids.values()]
    return recheck(*labels, placed if judged.verified else None)


def _traits(planned: PlannedGrouping, partition: Sequence[Cluster]) -> PartitionTraits:
    number, drawn = cluster_numbers(partition), drawn_samples(planned)
    texts = [sample.text for sample in drawn]
    return traits([number[sample.sample_id] for sample in drawn], [len(text) for text in texts], texts)

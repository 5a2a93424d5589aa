"""What a scoring will cost, from the very samples that it will show, before the first call.

Prompts are rendered as they will be sent and counted; answers are written as a model that keeps to the instructions would, with as
many clusters as word statistics find in the same groupings.
"""

import asyncio
from collections.abc import Sequence
import json
from typing import Any

from diversity_jax.cluster_agent.canaries import with_control, without_planted
from diversity_jax.cluster_agent.criteria import Criteria, CriteriaSet, Metadata, Metric, load_criteria
from diversity_jax.cluster_agent.drawing import Drawable, Drawing, Planned, draw_proposals
from diversity_jax.cluster_agent.judge import Cluster, Task
from diversity_jax.cluster_agent.offline import OfflineJudge
from diversity_jax.cluster_agent.partition import parse_partition
from diversity_jax.cluster_agent.prompts import system_of, user_of
from diversity_jax.cluster_agent.proposing import new_task, proposal_texts
from diversity_jax.cluster_agent.settings import AgentConfig
from diversity_jax.errors import InputError
from diversity_jax.llm import PlannedCalls, estimate_tokens

_GROUPINGS = 40  # looked at for the mean
_PROPOSALS = 10
_PHRASE = "the texts describe how a particular method or event is presented to readers with some background and examples of use"
_NAMES = 4  # metadata, and as many metrics, that a proposal usually has
_SHARE_OF_WORDS = 0.8  # of the words allowed that models use


async def plan_calls_async(corpora: Sequence[Drawable], config: AgentConfig) -> list[PlannedCalls]:
    """The calls of a run over corpora under one ruler, with mean tokens by stage; price them with `llm.forecast`.

    Raises:
      InputError: a corpus is empty or too small for a grouping, or the criteria file cannot be read.
    """
    criteria = load_criteria(config.criteria) if config.criteria else None
    planned = [] if criteria else _plan_proposing(corpora, config)
    for corpus in corpora:
        planned += await _plan_grouping(corpus, criteria or Criteria(sets=(_typical_set(config),), origin="judge"), config)
    return planned


def plan_calls(corpora: Sequence[Drawable], config: AgentConfig) -> list[PlannedCalls]:
    """`plan_calls_async` for ordinary code."""
    return asyncio.run(plan_calls_async(corpora, config))


def _plan_proposing(corpora: Sequence[Drawable], config: AgentConfig) -> list[PlannedCalls]:
    texts = proposal_texts(corpora, config)
    drawn = draw_proposals(
        texts, criteria_set=0, proposals=min(_PROPOSALS, config.proposals), samples=config.samples_per_proposal, seed=config.seed
    )
    typical = _typical_set(config, _NAMES).to_json()
    for kind in ("metadata", "metrics"):
        for item in typical[kind]:
            del item["guidance"]
    kept = _typical_set(config)
    answer = {"metadata": typical["metadata"], "metrics": typical["metrics"]}
    proposals = tuple((f"{_words(2)} {i}", (_words(18), _words(18))) for i in range(config.proposals * _NAMES // 2))

    def plan(stage: str, calls: int, answer: Any, tasks: Sequence[Task]) -> PlannedCalls:
        return _planned(stage, calls, [(task, answer) for task in tasks])

    sets, count = config.criteria_sets, config.criteria_count
    tasks = [new_task("propose_criteria", config, criteria_set=0, replicate=0, samples=samples) for samples in drawn]
    few = {"metadata": answer["metadata"] * count, "metrics": answer["metrics"] * count}
    few = {kind: items[:count] for kind, items in few.items()}
    guided = {kind: [{"name": _words(2), "guidance": _words(22)}] * count for kind in ("metadata", "metrics")}
    summarize = [
        new_task(stage, config, criteria_set=0, replicate=0, proposals=proposals) for stage in ("summarize_metadata", "summarize_metrics")
    ]
    define = new_task("define_criteria", config, criteria_set=0, replicate=0, criteria=kept)
    return [
        plan("propose_criteria", sets * config.proposals, answer, tasks),
        plan("summarize_metadata", sets, {"metadata": few["metadata"]}, summarize[:1]),
        plan("summarize_metrics", sets, {"metrics": few["metrics"]}, summarize[1:]),
        plan("define_criteria", sets, guided, [define]),
    ]


async def _plan_grouping(corpus: Drawable, criteria: Criteria, config: AgentConfig) -> list[PlannedCalls]:
    groupings = await _draw(corpus, len(criteria.sets), config)
    partitions = _likely_partitions(groupings)
    clustering, verifying = [], []
    for planned, clusters in zip(groupings, partitions, strict=True):
        content = {"samples": planned.samples, "criteria": criteria.sets[planned.criteria_set]}
        where = {"criteria_set": planned.criteria_set, "replicate": planned.index}
        answer = {"clusters": [_answered(number, cluster, config) for number, cluster in enumerate(clusters, start=1)]}
        clustering.append((new_task("cluster_samples", config, **where, **content), answer))
        left = without_planted(clusters, planned.canary)
        shown = with_control([_reasoned(cluster, config) for cluster in left], planned.canary)[0]
        reason = {"reasoning": _words(config.reasoning_words)} if config.reasoning_words else {}
        verdicts = [{"cluster": number, "valid": 1, **reason} for number in range(1, len(shown) + 1)]
        verifying.append((new_task("verify_clusters", config, **where, **content, clusters=shown), {"validation": verdicts}))
    planned = [_planned("cluster_samples", config.groupings, clustering)]
    return planned + ([_planned("verify_clusters", config.groupings, verifying)] if config.verify else [])


async def _draw(corpus: Drawable, sets: int, config: AgentConfig) -> list[Planned]:
    count = min(_GROUPINGS, config.groupings)
    drawing = Drawing(
        corpus,
        groupings=count,
        samples_per_grouping=config.samples_per_grouping,
        sets=sets,
        canary_share=config.canary_share,
        most_characters=config.max_characters,
        seed=config.seed,
    )
    return [await drawing.plan(index) for index in range(count)]


def _likely_partitions(groupings: Sequence[Planned]) -> list[tuple[Cluster, ...]]:
    """What word statistics make of the groupings; all apart where the texts have no words in common."""
    try:
        judge = OfflineJudge([sample.text for planned in groupings for sample in planned.samples])
    except InputError:
        return [tuple(Cluster(sample_ids=(sample.sample_id,)) for sample in planned.samples) for planned in groupings]
    found = []
    for planned in groupings:
        task = Task(stage="cluster_samples", replicate=0, criteria_set=0, criteria_count=1, reasoning_words=1, samples=planned.samples)
        found.append(parse_partition(judge.cluster(task), planned.samples))
    return found


def _planned(stage: str, calls: int, pairs: Sequence[tuple[Task, Any]]) -> PlannedCalls:
    prompts = [estimate_tokens(system_of(task)) + estimate_tokens(user_of(task)) for task, _ in pairs]
    answers = [estimate_tokens(json.dumps(answer)) for _, answer in pairs]
    return PlannedCalls(stage=stage, calls=calls, prompt_tokens=sum(prompts) / len(prompts), completion_tokens=sum(answers) / len(answers))


def _words(count: float) -> str:
    words = _PHRASE.split()
    return " ".join(words[i % len(words)] for i in range(max(1, round(count * _SHARE_OF_WORDS))))


def _typical_set(config: AgentConfig, count: int | None = None) -> CriteriaSet:
    count = config.criteria_count if count is None else count
    text, guidance = _words(18), _words(22)
    metadata = tuple(Metadata(name=f"{_words(2)} {i}", definition=text, guidance=guidance) for i in range(count))
    levels = tuple(_words(6) for _ in range(5))
    metrics = tuple(Metric(name=f"{_words(2)} {i}", definition=text, levels=levels, guidance=guidance) for i in range(count))
    return CriteriaSet(metadata=metadata, metrics=metrics)


def _reasoned(cluster: Cluster, config: AgentConfig) -> Cluster:
    return Cluster(sample_ids=cluster.sample_ids, reasoning=_words(config.reasoning_words) if config.reasoning_words else "")


def _answered(number: int, cluster: Cluster, config: AgentConfig) -> dict[str, Any]:
    placed = {"cluster": number, "sample_ids": list(cluster.sample_ids)}
    if not config.reasoning_words:
        return placed
    reason = _words(max(1, config.reasoning_words // 3))
    return placed | {
        "uniqueness_reasoning": _words(config.reasoning_words),
        "cluster_metadata": [{"name": _words(2), "value": _words(4)}] * config.criteria_count,
        "cluster_metrics": [{"name": _words(2), "reasoning": reason, "score": 3}] * config.criteria_count,
    }

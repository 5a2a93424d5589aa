"""What a scoring will cost, from the very samples that it will show, before the first call.

Prompts are rendered as they will be sent and counted. How long the answers will be nobody knows before a judge has answered: the tersest
and the wordiest that keep to the rules are bounds, and between them stands the total that errs by the same factor against either. A
pilot takes the guess out of it: some groupings are judged, at their price, and what they used stands for the rest.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
import json
import math
from typing import Any

from diversity_jax.cluster_agent.agent import propose_or_explain, run
from diversity_jax.cluster_agent.asking import Usage
from diversity_jax.cluster_agent.canaries import with_control, without_planted
from diversity_jax.cluster_agent.criteria import Criteria, CriteriaSet, Metadata, Metric, load_criteria
from diversity_jax.cluster_agent.drawing import Drawable, Drawing, Planned, draw_proposals
from diversity_jax.cluster_agent.judge import Cluster, Judge, Task
from diversity_jax.cluster_agent.prompts import system_of, user_of
from diversity_jax.cluster_agent.proposing import Proposed, new_task, proposal_texts
from diversity_jax.cluster_agent.scoring_run import Scoring
from diversity_jax.cluster_agent.settings import AgentConfig
from diversity_jax.errors import InputError
from diversity_jax.llm import PlannedCalls, estimate_tokens

_GROUPINGS = 40  # looked at for the mean
_PROPOSALS = 10
_PHRASE = "the texts describe how a particular method or event is presented to readers with some background and examples of use"
_NAMES = 4  # metadata, and as many metrics, that a proposal usually has
_SHARE_OF_WORDS = 0.8  # of the words allowed in criteria that models use


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


async def pilot_calls_async(corpora: Sequence[Drawable], judge: Judge, config: AgentConfig, groupings: int) -> list[PlannedCalls]:
    """The calls of a run by what they use with this judge: proposes the criteria, judges the run's own first groupings of each corpus, and
    takes their means for all. What is asked here is paid for, and answered from the ledger when the run asks it again.

    Raises:
      InputError: as `score_corpus`; or the budget ended within the pilot.
    """
    judge.expect(config.forecast_calls() + (len(corpora) - 1) * config.forecast_calls(with_criteria=True))
    proposed = await propose_or_explain(corpora, judge, config)
    planned = [_as_used("criteria", proposed.usage, 1)] if proposed.usage.calls else []
    for corpus in corpora:
        scoring = Scoring(corpus, judge, config, Proposed(proposed.criteria, Usage(), ()))
        await scoring.extend(min(groupings, config.groupings))
        if scoring.ended:
            raise InputError(f"judge {judge.label}: the pilot came to no end: {scoring.ended}")
        planned.append(_as_used("groupings", scoring.collector.usage, config.groupings / scoring.collector.entered))
    return planned


def pilot_calls(corpora: Sequence[Drawable], judge: Judge, config: AgentConfig, groupings: int) -> list[PlannedCalls]:
    """`pilot_calls_async` for ordinary code."""
    return run(pilot_calls_async(corpora, judge, config, groupings), judge)


def _as_used(stage: str, usage: Usage, times: float) -> PlannedCalls:
    """Calls like those of `usage`, so many times as many."""
    means = {name: getattr(usage, name) / usage.calls for name in ("prompt_tokens", "completion_tokens")}
    return PlannedCalls(stage=stage, calls=round(usage.calls * times), **means)


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
    drawing = Drawing.of(corpus, replace(config, groupings=min(_GROUPINGS, config.groupings)))
    groupings = [await drawing.plan(index, len(criteria.sets)) for index in range(min(_GROUPINGS, config.groupings))]
    await drawing.close()
    return [
        _plan_of_stage(stage, groupings, criteria, config)
        for stage in ("cluster_samples", "verify_clusters")
        if config.verify or stage == "cluster_samples"
    ]


def _plan_of_stage(stage: str, groupings: Sequence[Planned], criteria: Criteria, config: AgentConfig) -> PlannedCalls:
    """Prompts and answers with the tersest and with the wordiest judge that keeps to the rules, and what lies between."""
    (tersest, least), (wordiest, most) = (_sizes(stage, groupings, criteria, config, words) for words in (0.0, 1.0))
    prompt_tokens = math.sqrt(tersest * wordiest)
    return PlannedCalls(
        stage=stage,
        calls=config.groupings,
        prompt_tokens=prompt_tokens,
        completion_tokens=math.sqrt((tersest + least) * (wordiest + most)) - prompt_tokens,
        least_completion_tokens=least,
        most_completion_tokens=most,
    )


def _sizes(stage: str, groupings: Sequence[Planned], criteria: Criteria, config: AgentConfig, words: float) -> tuple[float, float]:
    """Mean tokens of prompt and answer with a judge that uses this share of the words and of the clusters it might."""
    prompts, answers = [], []
    for planned in groupings:
        content = {"samples": planned.samples, "criteria": criteria.sets[planned.criteria_set]}
        clusters = _partition(planned, words)
        if stage == "cluster_samples":
            answer = {"clusters": [_answered(number, one, config, words) for number, one in enumerate(clusters, start=1)]}
        else:
            reasoned = [_reasoned(one, config, words) for one in without_planted(clusters, planned.canary)]
            content["clusters"] = shown = with_control(reasoned, planned.canary)[0]
            reason = {"reasoning": _words(config.reasoning_words, words)} if config.reasoning_words else {}
            answer = {"validation": [{"cluster": number, "valid": 1, **reason} for number in range(1, len(shown) + 1)]}
        task = new_task(stage, config, criteria_set=planned.criteria_set, replicate=planned.index, **content)
        prompts.append(estimate_tokens(system_of(task)) + estimate_tokens(user_of(task)))
        answers.append(estimate_tokens(json.dumps(answer)))
    return sum(prompts) / len(prompts), sum(answers) / len(answers)


def _partition(planned: Planned, share: float) -> tuple[Cluster, ...]:
    """The samples in `share` times as many clusters as there are samples, at least one; canaries where they belong."""
    canary = planned.canary
    planted = (canary.copy, canary.foreign) if canary else ()
    drawn = [sample.sample_id for sample in planned.samples if sample.sample_id not in planted]
    count = max(1, round(share * len(drawn)))
    places = [drawn[number::count] for number in range(count)]
    if canary:
        next(place for place in places if canary.original in place).append(canary.copy)
        places.append([canary.foreign])
    return tuple(Cluster(sample_ids=tuple(place)) for place in places)


def _planned(stage: str, calls: int, pairs: Sequence[tuple[Task, Any]]) -> PlannedCalls:
    prompts = [estimate_tokens(system_of(task)) + estimate_tokens(user_of(task)) for task, _ in pairs]
    answers = [estimate_tokens(json.dumps(answer)) for _, answer in pairs]
    return PlannedCalls(stage=stage, calls=calls, prompt_tokens=sum(prompts) / len(prompts), completion_tokens=sum(answers) / len(answers))


def _words(count: float, share: float = _SHARE_OF_WORDS) -> str:
    words = _PHRASE.split()
    return " ".join(words[i % len(words)] for i in range(max(1, round(count * share))))


def _typical_set(config: AgentConfig, count: int | None = None) -> CriteriaSet:
    count = config.criteria_count if count is None else count
    text, guidance = _words(18), _words(22)
    metadata = tuple(Metadata(name=f"{_words(2)} {i}", definition=text, guidance=guidance) for i in range(count))
    levels = tuple(_words(6) for _ in range(5))
    metrics = tuple(Metric(name=f"{_words(2)} {i}", definition=text, levels=levels, guidance=guidance) for i in range(count))
    return CriteriaSet(metadata=metadata, metrics=metrics)


def _reasoned(cluster: Cluster, config: AgentConfig, words: float) -> Cluster:
    return Cluster(sample_ids=cluster.sample_ids, reasoning=_words(config.reasoning_words, words) if config.reasoning_words else "")


def _answered(number: int, cluster: Cluster, config: AgentConfig, words: float) -> dict[str, Any]:
    placed = {"cluster": number, "sample_ids": list(cluster.sample_ids)}
    if not config.reasoning_words:
        return placed
    # The tersest leave the lists empty, which the schema cannot forbid everywhere.
    count = config.criteria_count if words else 0
    reason = _words(max(1, config.reasoning_words // 3), words)
    return placed | {
        "uniqueness_reasoning": _words(config.reasoning_words, words),
        "cluster_metadata": [{"name": _words(2), "value": _words(4, words)}] * count,
        "cluster_metrics": [{"name": _words(2), "reasoning": reason, "score": 3}] * count,
    }

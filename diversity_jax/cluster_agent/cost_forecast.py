"""What a scoring will cost, from the very samples that it will show, before the first call.

Prompts are rendered as they will be sent and counted. How a judge will write and how many clusters it will see nobody
knows before it has answered. So two judges are imagined over a corpus of middling diversity, a terse one and one that
uses the words it is given, and the forecast is the total that errs by the same factor against either. A pilot takes the
guess out of it: some groupings are judged, at their price, and what they used stands for the rest.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
import json
import math
import random
from typing import Any

from diversity_jax.cluster_agent.canaries import with_control, without_planted
from diversity_jax.cluster_agent.config import AgentConfig
from diversity_jax.cluster_agent.criteria import Criteria, CriteriaSet, Metadata, Metric, load_criteria
from diversity_jax.cluster_agent.prompts import system_of, user_of
from diversity_jax.cluster_agent.propose import Proposed, new_task, proposal_texts
from diversity_jax.cluster_agent.request import Usage
from diversity_jax.cluster_agent.sampling import Drawable, Drawing, Planned, draw_proposals
from diversity_jax.cluster_agent.score import Scoring, propose_or_explain, run
from diversity_jax.cluster_agent.types import Cluster, Judge, Task
from diversity_jax.core.errors import InputError
from diversity_jax.llm import PlannedCalls, Tokens, estimate_tokens

_GROUPINGS = 40  # looked at for the mean
_PROPOSALS = 10
_PHRASE = (
    "the texts describe how a particular method or event is presented to readers with some background and "
    "examples of use"
)
_PROPOSED = 4  # metadata, and as many metrics, that a proposal usually has
_TOKENIZERS = 1.2  # how far one cuts longer or shorter than another
_MIDDLING = 25  # effective clusters of a corpus of which nothing is known


@dataclass(frozen=True, kw_only=True)
class _Manner:
    """How a judge answers: which share of the words allowed it uses, whether it names all the criteria it might, and
    how many effective clusters it sees.
    """

    words: float
    thorough: bool
    clusters: float = _MIDDLING

    def phrase(self, allowed: float) -> str:
        """So many words as it writes where so many are allowed."""
        words = _PHRASE.split()
        return " ".join(words[i % len(words)] for i in range(max(1, round(allowed * self.words))))

    def count(self, most: int) -> int:
        """How many criteria it gives where `most` are asked for."""
        return most if self.thorough else max(1, most // 2)


_TERSE, _WORDY = _Manner(words=0.2, thorough=False), _Manner(words=0.8, thorough=True)
# Nobody who keeps to the rules writes less or more: one cluster of everything, and pairs with all that may be said of
# them.
_LEAST, _MOST = _Manner(words=0.0, thorough=False, clusters=1), _Manner(words=1.0, thorough=True, clusters=math.inf)


async def plan_calls_async(corpora: Sequence[Drawable], config: AgentConfig) -> list[PlannedCalls]:
    """The calls of a run over corpora under one ruler, with mean tokens by stage; price them with `llm.forecast`.

    Raises:
      InputError: a corpus is empty or too small for a grouping, or the criteria file cannot be read.
    """
    criteria = load_criteria(config.criteria) if config.criteria else None
    planned = [] if criteria else _plan_proposing(corpora, config)
    for corpus in corpora:
        planned += await _plan_groupings(corpus, criteria, config)
    return planned


def plan_calls(corpora: Sequence[Drawable], config: AgentConfig) -> list[PlannedCalls]:
    """`plan_calls_async` for ordinary code."""
    return asyncio.run(plan_calls_async(corpora, config))


async def pilot_calls_async(
    corpora: Sequence[Drawable], judge: Judge, config: AgentConfig, groupings: int
) -> list[PlannedCalls]:
    """The calls of a run by what they use with this judge: proposes the criteria, judges the run's own first groupings
    of each corpus, and takes their means for all. What is asked here is paid for, and answered from the ledger when the
    run asks it again.

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
    texts = proposal_texts(corpora, config, keep=True)
    number = min(_PROPOSALS, config.proposals)
    drawn = draw_proposals(
        texts, criteria_set=0, proposals=number, samples=config.samples_per_proposal, seed=config.seed
    )
    shown = sum(estimate_tokens("\n".join(sample.line for sample in samples)) for samples in drawn) / len(drawn)
    stages = {
        "propose_criteria": config.proposals,
        "summarize_metadata": 1,
        "summarize_metrics": 1,
        "define_criteria": 1,
    }
    return [
        _between(
            stage,
            config.criteria_sets * calls,
            lambda manner, stage=stage: _proposing_sizes(stage, shown, config, manner),
        )
        for stage, calls in stages.items()
    ]


def _proposing_sizes(stage: str, shown: float, config: AgentConfig, manner: _Manner) -> tuple[float, float]:
    """Tokens of prompt and answer of a call of stages 1 to 4; `shown` are those of the samples."""
    kept, proposed = _set_of(config.criteria_count, manner), _set_of(_PROPOSED, manner)
    guided = {"metadata": [_guided(one) for one in kept.metadata], "metrics": [_guided(one) for one in kept.metrics]}
    answers = {
        "propose_criteria": _unguided(proposed),
        "summarize_metadata": {"metadata": _unguided(kept)["metadata"]},
        "summarize_metrics": {"metrics": _unguided(kept)["metrics"]},
        "define_criteria": guided,
    }
    # Half of the names that come up come up again.
    names = config.proposals * manner.count(_PROPOSED) // 2 or 1
    proposals = tuple((f"{manner.phrase(2)} {i}", (manner.phrase(18), manner.phrase(18))) for i in range(names))
    content = {"define_criteria": {"criteria": kept}, "propose_criteria": {}}.get(stage, {"proposals": proposals})
    prompt = _prompt_tokens(new_task(stage, config, criteria_set=0, replicate=0, **content))
    return prompt + shown * (stage == "propose_criteria"), estimate_tokens(json.dumps(answers[stage]))


async def _plan_groupings(corpus: Drawable, criteria: Criteria | None, config: AgentConfig) -> list[PlannedCalls]:
    number = min(_GROUPINGS, config.groupings)
    drawing = Drawing.of(corpus, replace(config, groupings=number), keep=True)
    groupings = [await drawing.plan(index, len(criteria.sets) if criteria else 1) for index in range(number)]
    await drawing.close()
    shown = sum(estimate_tokens("\n".join(sample.line for sample in planned.samples)) for planned in groupings) / number

    def sizes(stage: str, manner: _Manner) -> tuple[float, float]:
        return _grouping_sizes(stage, groupings, shown, criteria, config, manner)

    return [
        _between(stage, config.groupings, lambda manner, stage=stage: sizes(stage, manner))
        for stage in ("cluster_samples", "verify_clusters")
        if config.verify or stage == "cluster_samples"
    ]


def _between(stage: str, calls: int, sizes: Callable[[_Manner], tuple[float, float]]) -> PlannedCalls:
    """What lies between the terse and the wordy judge, and the least and the most that there can be."""
    terse, wordy, least, most = (Tokens(*sizes(manner)) for manner in (_TERSE, _WORDY, _LEAST, _MOST))
    prompt_tokens = math.sqrt(terse.prompt * wordy.prompt)
    return PlannedCalls(
        stage=stage,
        calls=calls,
        prompt_tokens=prompt_tokens,
        completion_tokens=math.sqrt(sum(terse) * sum(wordy)) - prompt_tokens,
        least=Tokens(*(part / _TOKENIZERS for part in least)),
        most=Tokens(*(part * _TOKENIZERS for part in most)),
    )


def _grouping_sizes(
    stage: str,
    groupings: Sequence[Planned],
    shown: float,
    criteria: Criteria | None,
    config: AgentConfig,
    manner: _Manner,
) -> tuple[float, float]:
    """Mean tokens of prompt and answer of stage 5 or 6; `shown` are those of the samples."""
    sets = criteria.sets if criteria else (_set_of(config.criteria_count, manner),)
    prompts = answers = 0
    for planned in groupings:
        content: dict[str, Any] = {"criteria": sets[planned.criteria_set % len(sets)]}
        clusters = _partition(planned, manner.clusters)
        if stage == "cluster_samples":
            answer = {
                "clusters": [_answered(number, one, config, manner) for number, one in enumerate(clusters, start=1)]
            }
        else:
            reasoned = [_reasoned(one, config, manner) for one in without_planted(clusters, planned.canary)]
            content["clusters"] = with_control(reasoned, planned.canary)[0]
            answer = {
                "validation": [
                    _verdict(number, one, config, manner) for number, one in enumerate(content["clusters"], start=1)
                ]
            }
        prompts += _prompt_tokens(
            new_task(stage, config, criteria_set=planned.criteria_set, replicate=planned.index, **content)
        )
        answers += estimate_tokens(json.dumps(answer))
    return shown + prompts / len(groupings), answers / len(groupings)


def _prompt_tokens(task: Task) -> int:
    return estimate_tokens(system_of(task)) + estimate_tokens(user_of(task))


def _partition(planned: Planned, clusters: float) -> tuple[Cluster, ...]:
    """The samples as a corpus of so many equal clusters would have them, in pairs where that is without end; canaries
    where they belong.
    """
    canary, generator = planned.canary, random.Random(planned.index)
    planted = (canary.copy, canary.foreign) if canary else ()
    places: dict[int, list[str]] = {}
    for number, sample in enumerate(one for one in planned.samples if one.sample_id not in planted):
        places.setdefault(number // 2 if math.isinf(clusters) else int(generator.random() * clusters), []).append(
            sample.sample_id
        )
    if canary:
        next(place for place in places.values() if canary.original in place).append(canary.copy)
        places[-1] = [canary.foreign]
    return tuple(Cluster(sample_ids=tuple(place)) for place in places.values())


def _set_of(count: int, manner: _Manner) -> CriteriaSet:
    text, guidance, levels = manner.phrase(20), manner.phrase(18), (manner.phrase(6),) * 5
    names = [f"{manner.phrase(3)} {number}" for number in range(manner.count(count))]
    return CriteriaSet(
        metadata=tuple(Metadata(name=name, definition=text, guidance=guidance) for name in names),
        metrics=tuple(Metric(name=name, definition=text, levels=levels, guidance=guidance) for name in names),
    )


def _unguided(criteria: CriteriaSet) -> dict[str, Any]:
    value = criteria.to_json()
    return {
        kind: [{name: part for name, part in one.items() if name != "guidance"} for one in value[kind]]
        for kind in value
    }


def _guided(one: Metadata | Metric) -> dict[str, str]:
    return {"name": one.name, "guidance": one.guidance}


def _reasoned(cluster: Cluster, config: AgentConfig, manner: _Manner) -> Cluster:
    words = config.reasoning_words if len(cluster.sample_ids) > 1 else max(1, config.reasoning_words // 3)
    return Cluster(sample_ids=cluster.sample_ids, reasoning=manner.phrase(words) if config.reasoning_words else "")


def _verdict(number: int, cluster: Cluster, config: AgentConfig, manner: _Manner) -> dict[str, Any]:
    verdict = {"cluster": number, "valid": 1}
    reason = manner.phrase(config.reasoning_words) if len(cluster.sample_ids) > 1 else ""
    return verdict | {"reasoning": reason} if config.reasoning_words else verdict


def _answered(number: int, cluster: Cluster, config: AgentConfig, manner: _Manner) -> dict[str, Any]:
    placed = {"cluster": number, "sample_ids": list(cluster.sample_ids)}
    if not config.reasoning_words:
        return placed
    count = config.criteria_count if manner.thorough and len(cluster.sample_ids) > 1 else 0
    name, reason = manner.phrase(3), manner.phrase(max(1, config.reasoning_words // 3))
    return placed | {
        "uniqueness_reasoning": _reasoned(cluster, config, manner).reasoning,
        "cluster_metadata": [{"name": name, "value": manner.phrase(4)}] * count,
        "cluster_metrics": [{"name": name, "reasoning": reason, "score": 3}] * count,
    }

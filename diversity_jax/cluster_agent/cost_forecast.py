"""Forecast of the calls and tokens of a scoring, before the first call or after a pilot.

The samples that the run will show are rendered into prompts, and their tokens are estimated. How much a judge writes
and how many clusters it makes is assumed: for a terse and for a wordy judge, at a usual diversity; the forecast is the
geometric mean of the two. A pilot replaces the assumption: some groupings are judged, which is paid for, and their
means are used for all.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
import itertools
import json
import math
import random
from typing import Any

from diversity_jax.cluster_agent.canaries import with_controls, without_planted
from diversity_jax.cluster_agent.config import AgentConfig
from diversity_jax.cluster_agent.corpus_scorer import CorpusScorer
from diversity_jax.cluster_agent.criteria import load_criteria, proposal_texts
from diversity_jax.cluster_agent.llm import system_of, user_of
from diversity_jax.cluster_agent.sampling import GroupingSampler, PlannedGrouping, draw_proposals, half_of
from diversity_jax.cluster_agent.score import blocking, expect_calls, propose_or_raise, with_most_samples
from diversity_jax.cluster_agent.types import CallTotals, Cluster, CriteriaSet, Criterion, Judge, Sample, SampledCorpus
from diversity_jax.core.errors import InputError
from diversity_jax.core.event_loop import run_to_end
from diversity_jax.llm import PlannedCalls, Tokens, estimate_tokens

_GROUPINGS = 40  # rendered for the mean
_PROPOSALS = 10  # likewise
_PHRASE = (
    "the texts describe how a particular method or event is presented to readers with some background and "
    "examples of use"
)
_PROPOSED = 4  # metadata, and as many metrics, that a proposal usually has
_TOKENIZERS = 1.2  # ratio of token counts of two models' tokenizers
_USUAL_CLUSTERS = 25  # effective clusters that are assumed
_NAMES_REPEATED = 2  # how often a name comes up among the proposals of a set


@dataclass(frozen=True, kw_only=True)
class _Style:
    """How an assumed judge answers.

    Attributes:
      words: share that it uses of the words allowed.
      thorough: whether it gives as many criteria as it may.
      clusters: effective clusters of its partitions; infinite makes pairs.
    """

    words: float
    thorough: bool
    clusters: float = _USUAL_CLUSTERS

    def phrase(self, allowed: float) -> str:
        """Its text where so many words are allowed."""
        return " ".join(itertools.islice(itertools.cycle(_PHRASE.split()), max(1, round(allowed * self.words))))

    def count(self, most: int) -> int:
        """How many criteria it gives where `most` are asked for."""
        return most if self.thorough else max(1, most // 2)

    def criteria(self, most: int) -> CriteriaSet:
        """A criteria set where `most` of each kind are asked for."""
        text, guidance, levels = self.phrase(20), self.phrase(18), (self.phrase(6),) * 5
        names = [f"{self.phrase(3)} {number}" for number in range(self.count(most))]
        metadata = tuple(Criterion(name=name, definition=text, guidance=guidance) for name in names)
        return CriteriaSet(metadata=metadata, metrics=tuple(replace(item, levels=levels) for item in metadata))


_TERSE, _WORDY = _Style(words=0.2, thorough=False), _Style(words=0.8, thorough=True)
# Bounds for a judge that keeps to the rules: one cluster of all samples, and pairs with every description allowed.
_LEAST, _MOST = _Style(words=0.0, thorough=False, clusters=1), _Style(words=1.0, thorough=True, clusters=math.inf)


async def plan_calls_async(corpora: Sequence[SampledCorpus], config: AgentConfig) -> list[PlannedCalls]:
    """The calls of a run over corpora to be compared, with mean tokens; price them with `llm.forecast`.

    Raises:
      InputError: a corpus is empty or too small for a grouping, or the criteria file cannot be read.
    """
    config = with_most_samples(config, corpora)
    criteria = load_criteria(config.criteria) if config.criteria else None
    planned = [] if criteria else _plan_proposing(corpora, config)
    for corpus in corpora:
        planned += await _plan_groupings(corpus, criteria.sets if criteria else (), config)
    return planned


def plan_calls(corpora: Sequence[SampledCorpus], config: AgentConfig) -> list[PlannedCalls]:
    """The synchronous form of `plan_calls_async`."""
    return run_to_end(plan_calls_async(corpora, config))


async def pilot_calls_async(
    corpora: Sequence[SampledCorpus], judge: Judge, config: AgentConfig, groupings: int
) -> list[PlannedCalls]:
    """The calls of a run with their tokens measured by a pilot: proposes the criteria, judges the first groupings of
    each corpus, and takes their means for all. The calls are paid for; the run then gets them from the response cache.

    Raises:
      InputError: as `score_corpus`; or the budget ended within the pilot.
    """
    config = with_most_samples(config, corpora)
    expect_calls(judge, config, len(corpora))
    proposed = await propose_or_raise(corpora, judge, config)
    planned = [_as_used("criteria", proposed.usage, 1)] if proposed.usage.calls else []
    for corpus in corpora:
        scorer = CorpusScorer(corpus, judge, config, proposed.without_usage())
        await scorer.extend(min(groupings, config.groupings))
        if scorer.ended:
            raise InputError(f"judge {judge.label}: the pilot ended early: {scorer.ended}")
        planned.append(_as_used("groupings", scorer.usage, config.groupings / scorer.entered))
    return planned


pilot_calls = blocking(pilot_calls_async)


def _as_used(stage: str, usage: CallTotals, times: float) -> PlannedCalls:
    """`times` as many calls as those of `usage`, with their mean tokens."""
    return PlannedCalls(
        stage=stage,
        calls=round(usage.calls * times),
        prompt_tokens=usage.prompt_tokens / usage.calls,
        completion_tokens=usage.completion_tokens / usage.calls,
    )


def _plan_proposing(corpora: Sequence[SampledCorpus], config: AgentConfig) -> list[PlannedCalls]:
    texts = proposal_texts(corpora, config, store=True)
    number = min(_PROPOSALS, config.proposals)
    drawn = draw_proposals(
        texts, criteria_set=0, proposals=number, samples=config.samples_per_proposal, seed=config.seed
    )
    shown = _mean_sample_tokens(drawn)

    def sizes(stage: str, style: _Style) -> Tokens:
        chosen, proposed = style.criteria(config.criteria_count), style.criteria(_PROPOSED)
        names = config.proposals * style.count(_PROPOSED) // _NAMES_REPEATED or 1
        proposals = tuple((f"{style.phrase(2)} {i}", (style.phrase(18), style.phrase(18))) for i in range(names))
        content: dict[str, Any] = {"proposals": proposals}
        if stage == "propose_criteria":
            content, answer = {}, _criteria_answer(proposed, drop=("guidance",))
        elif stage == "define_criteria":
            content, answer = {"criteria": chosen}, _criteria_answer(chosen, drop=("definition", "levels"))
        else:
            kind = stage.removeprefix("summarize_")
            answer = {kind: _criteria_answer(chosen, drop=("guidance",))[kind]}
        tokens = _tokens(config, stage, answer, **content)
        return Tokens(tokens.prompt + shown * (stage == "propose_criteria"), tokens.completion)

    single = ("summarize_metadata", "summarize_metrics", "define_criteria")
    stages = {"propose_criteria": config.proposals, **dict.fromkeys(single, 1)}
    return [_between(stage, config.criteria_sets * calls, sizes) for stage, calls in stages.items()]


async def _plan_groupings(
    corpus: SampledCorpus, sets: Sequence[CriteriaSet], config: AgentConfig
) -> list[PlannedCalls]:
    number = min(_GROUPINGS, config.groupings)
    sampler = GroupingSampler(corpus, replace(config, groupings=number), store=True)
    groupings = [await sampler.plan(index, max(len(sets), 1)) for index in range(number)]
    await sampler.close()
    halves = [half_of(planned, config)[0] for planned in groupings]

    def plan(stage: str, calls: int, shown: Sequence[PlannedGrouping]) -> PlannedCalls:
        tokens = _mean_sample_tokens([planned.samples for planned in shown])
        return _between(stage, calls, lambda stage, style: _grouping_tokens(stage, style, shown, sets, config, tokens))

    all_groupings = range(config.groupings)
    planned = [plan("cluster_samples", config.groupings, groupings)]
    if verified := sum(map(config.expects_verified, all_groupings)):
        planned.append(plan("verify_clusters", verified, groupings))
    if again := sum(map(config.rechecks, all_groupings)):
        planned.append(plan("cluster_samples", again, halves))
    return planned


def _grouping_tokens(
    stage: str,
    style: _Style,
    groupings: Sequence[PlannedGrouping],
    sets: Sequence[CriteriaSet],
    config: AgentConfig,
    shown: float,
) -> Tokens:
    """Mean tokens of prompt and answer of a call, of whose prompt the samples have `shown` tokens."""
    criteria = sets or (style.criteria(config.criteria_count),)
    tokens = []
    for planned in groupings:
        content: dict[str, Any] = {"criteria": criteria[planned.criteria_set % len(criteria)]}
        clusters = _partition(planned, style.clusters)
        if stage == "cluster_samples":
            answer = {"clusters": [_cluster_answer(n, each, config, style) for n, each in enumerate(clusters, 1)]}
        else:
            reasoned = [
                replace(cluster, reasoning=_reasoning(cluster, config, style))
                for cluster in without_planted(clusters, planned.canary)
            ]
            content["clusters"], _ = with_controls(reasoned, planned.canary)
            answer = {"validation": [_verdict(n, c, config, style) for n, c in enumerate(content["clusters"], 1)]}
        tokens.append(_tokens(config, stage, answer, **content))
    prompts, answers = (sum(part) for part in zip(*tokens, strict=True))
    return Tokens(shown + prompts / len(groupings), answers / len(groupings))


def _between(stage: str, calls: int, sizes: Callable[[str, _Style], Tokens]) -> PlannedCalls:
    """The calls with the geometric mean of the terse and the wordy judge's tokens, and the bounds."""
    terse, wordy, least, most = (sizes(stage, style) for style in (_TERSE, _WORDY, _LEAST, _MOST))
    prompt_tokens = math.sqrt(terse.prompt * wordy.prompt)
    return PlannedCalls(
        stage=stage,
        calls=calls,
        prompt_tokens=prompt_tokens,
        completion_tokens=math.sqrt(sum(terse) * sum(wordy)) - prompt_tokens,
        least=Tokens(*(part / _TOKENIZERS for part in least)),
        most=Tokens(*(part * _TOKENIZERS for part in most)),
    )


def _mean_sample_tokens(shown: Sequence[Sequence[Sample]]) -> float:
    return sum(estimate_tokens("\n".join(sample.line for sample in samples)) for samples in shown) / len(shown)


def _tokens(config: AgentConfig, stage: str, answer: Any, **content: Any) -> Tokens:
    """Tokens of a call's prompt without samples, and of `answer`."""
    task = config.task(stage, criteria_set=0, replicate=0, **content)
    prompt = estimate_tokens(system_of(task)) + estimate_tokens(user_of(task))
    return Tokens(prompt, estimate_tokens(json.dumps(answer)))


def _partition(planned: PlannedGrouping, clusters: float) -> tuple[Cluster, ...]:
    """A random partition into equally likely clusters, or into pairs where `clusters` is infinite; canaries rightly."""
    canary, generator = planned.canary, random.Random(planned.index)
    planted = (canary.copy, canary.foreign) if canary else ()
    groups: dict[int, list[str]] = {}
    drawn = [sample.sample_id for sample in planned.samples if sample.sample_id not in planted]
    for number, sample_id in enumerate(drawn):
        label = number // 2 if math.isinf(clusters) else int(generator.random() * clusters)
        groups.setdefault(label, []).append(sample_id)
    if canary:
        next(group for group in groups.values() if canary.original in group).append(canary.copy)
        groups[-1] = [canary.foreign]
    return tuple(Cluster(sample_ids=tuple(group)) for group in groups.values())


def _criteria_answer(criteria: CriteriaSet, drop: tuple[str, ...]) -> dict[str, Any]:
    """The JSON value of criteria, without the fields `drop`."""
    return {
        kind: [{name: part for name, part in criterion.items() if name not in drop} for criterion in criteria_of_kind]
        for kind, criteria_of_kind in criteria.to_json().items()
    }


def _reasoning(cluster: Cluster, config: AgentConfig, style: _Style) -> str:
    words = config.reasoning_words if len(cluster.sample_ids) > 1 else max(1, config.reasoning_words // 3)
    return style.phrase(words) if config.reasoning_words else ""


def _verdict(number: int, cluster: Cluster, config: AgentConfig, style: _Style) -> dict[str, Any]:
    verdict: dict[str, Any] = {"cluster": number, "valid": 1, "misplaced": []}
    reason = style.phrase(config.reasoning_words) if len(cluster.sample_ids) > 1 else ""
    return verdict | {"reasoning": reason} if config.reasoning_words else verdict


def _cluster_answer(number: int, cluster: Cluster, config: AgentConfig, style: _Style) -> dict[str, Any]:
    ids = {"cluster": number, "sample_ids": list(cluster.sample_ids)}
    if not config.reasoning_words:
        return ids
    count = config.criteria_count if style.thorough and len(cluster.sample_ids) > 1 else 0
    name, reason = style.phrase(3), style.phrase(max(1, config.reasoning_words // 3))
    return ids | {
        "uniqueness_reasoning": _reasoning(cluster, config, style),
        "cluster_metadata": [{"name": name, "value": style.phrase(4)}] * count,
        "cluster_metrics": [{"name": name, "reasoning": reason, "score": 3}] * count,
    }

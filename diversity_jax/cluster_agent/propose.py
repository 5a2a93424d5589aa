"""Stages 1 to 4: from random samples to B frozen criteria sets, each from its own samples and its own calls."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from diversity_jax.cluster_agent.config import AgentConfig
from diversity_jax.cluster_agent.criteria import (
    Criteria,
    CriteriaSet,
    Metadata,
    Metric,
    load_criteria,
    merge_names,
    read_criteria_set,
)
from diversity_jax.cluster_agent.request import Asker, Usage, reasons
from diversity_jax.cluster_agent.sampling import Drawable, draw_proposals, draw_texts
from diversity_jax.cluster_agent.text_cleaning import child_seed, clean_text
from diversity_jax.cluster_agent.types import AnswerError, Judge, Task
from diversity_jax.core.errors import InputError

# A set hangs on each of its three single calls; where one fails it is put again as a new question, this often.
_TRIES = 5


class Proposed:
    """Criteria with what they cost: `criteria`, `usage` in order of sets, `warnings`."""

    def __init__(self, criteria: Criteria, usage: Usage, warnings: Sequence[str]):
        self.criteria = criteria
        self.usage = usage
        self.warnings = tuple(warnings)


async def propose_criteria(corpora: Sequence[Drawable], judge: Judge, config: AgentConfig) -> Proposed:
    """Criteria for one corpus, or for several that are to be measured by one ruler (each gives an equal part of the
    samples).

    Raises:
      InputError: a corpus is empty, or no criteria set came about.
    """
    if config.criteria is not None:
        return Proposed(load_criteria(config.criteria), Usage(), ())
    texts = await asyncio.to_thread(proposal_texts, corpora, config)
    jobs = [_one_set(number, texts, judge, config) for number in range(config.criteria_sets)]
    sets, usage, warnings = [], Usage(), []
    for number, (found, used, remarks) in enumerate(await asyncio.gather(*jobs), start=1):
        usage.add(used)
        sets += [found] if found else []
        warnings += [f"criteria set {number}: {remark}" for remark in remarks]
    if not sets:
        raise InputError(
            f"judge {judge.label}: no criteria set came about ({warnings[0]}); try another judge, or give criteria in "
            "a file"
        )
    return Proposed(Criteria(sets=tuple(sets), origin="judge"), usage, warnings)


def proposal_texts(corpora: Sequence[Drawable], config: AgentConfig, *, keep: bool = False) -> list[tuple[str, str]]:
    """(document id, text) of what proposals are drawn from: as many texts as they show in all, in equal parts of the
    corpora. `keep` as in `draw_texts`.
    """
    wanted = config.criteria_sets * config.proposals * config.samples_per_proposal
    texts: list[tuple[str, str]] = []
    for number, corpus in enumerate(corpora):
        seed = child_seed(config.seed, "proposals", number)
        drawn, _ = draw_texts(corpus, max(1, wanted // len(corpora)), seed, config.max_characters, keep=keep)
        if not drawn:
            raise InputError("corpus: holds no document with text; check its path and text field")
        texts += drawn
    return texts


def new_task(stage: str, config: AgentConfig, *, criteria_set: int, replicate: int, **content: Any) -> Task:
    """A task with the settings that all stages share."""
    return Task(
        stage=stage,
        criteria_set=criteria_set,
        replicate=replicate,
        criteria_count=config.criteria_count,
        reasoning_words=config.reasoning_words,
        temperature=config.temperature,
        max_output_tokens=config.max_output_tokens,
        schema_limits=config.schema_limits,
        **content,
    )


async def _one_set(
    number: int, texts: Sequence, judge: Judge, config: AgentConfig
) -> tuple[CriteriaSet | None, Usage, list[str]]:
    """Criteria set `number`, or None; what it used; and remarks."""
    drawn = draw_proposals(
        texts, criteria_set=number, proposals=config.proposals, samples=config.samples_per_proposal, seed=config.seed
    )
    askers = [Asker(judge) for _ in range(len(drawn) + 3)]
    jobs = []
    for replicate, samples in enumerate(drawn):
        task = new_task("propose_criteria", config, criteria_set=number, replicate=replicate, samples=samples)
        jobs.append(askers[replicate].ask(task, _some_criteria))
    proposals = [proposal for proposal in await asyncio.gather(*jobs) if proposal]
    remarks: list[str] = []
    if len(proposals) < len(drawn):
        remarks.append(
            f"{len(drawn) - len(proposals)} of {len(drawn)} proposals were not usable "
            f"({reasons(askers, said=not proposals)})"
        )
    found = await _summarise(number, proposals, askers[len(drawn) :], config, remarks) if proposals else None
    usage = Usage()
    for asker in askers:
        usage.add(asker.usage)
    return found, usage, remarks


async def _summarise(
    number: int, proposals: Sequence[CriteriaSet], askers: Sequence[Asker], config: AgentConfig, remarks: list[str]
) -> CriteriaSet | None:
    """Stages 2, 3 and 4 of one set. A kind for which nothing usable came is left out; without both there is no set."""
    metadata = merge_names([item for proposal in proposals for item in proposal.metadata])
    metrics = merge_names([item for proposal in proposals for item in proposal.metrics])
    kept = []
    for stage, merged, asker, check in (
        ("summarize_metadata", metadata, askers[0], _some_metadata),
        ("summarize_metrics", metrics, askers[1], _some_metrics),
    ):
        task = new_task(stage, config, criteria_set=number, replicate=0, proposals=merged)
        kept.append(_insist(asker, task, check) if merged else _nothing())
    first, second = await asyncio.gather(*kept)
    for stage, result in (("summarize_metadata", first), ("summarize_metrics", second)):
        if result is None:
            remarks.append(f"{stage} gave nothing usable; the set goes without")
    count = config.criteria_count
    chosen = CriteriaSet(
        metadata=first.metadata[:count] if first else (), metrics=second.metrics[:count] if second else ()
    )
    if not chosen.metadata and not chosen.metrics:
        return None
    task = new_task("define_criteria", config, criteria_set=number, replicate=0, criteria=chosen)
    defined = await _insist(askers[2], task, _any_object)
    return _with_guidance(chosen, defined or {}, remarks)


async def _nothing() -> None:
    return None


async def _insist(asker: Asker, task: Task, check) -> Any:
    for attempt in range(_TRIES):
        if (found := await asker.ask(replace(task, replicate=task.replicate + attempt), check)) is not None:
            return found
    return None


def _some_criteria(value: Any) -> CriteriaSet:
    found = read_criteria_set(value)
    if not found.metadata and not found.metrics:
        raise AnswerError("no entry with a `name` in `metadata` or `metrics`")
    return found


def _some_metadata(value: Any) -> CriteriaSet:
    if not (found := read_criteria_set(value)).metadata:
        raise AnswerError("no entry with a `name` in `metadata`")
    return found


def _some_metrics(value: Any) -> CriteriaSet:
    if not (found := read_criteria_set(value)).metrics:
        raise AnswerError("no entry with a `name` in `metrics`")
    return found


def _any_object(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise AnswerError("expected a JSON object")
    return value


def _with_guidance(chosen: CriteriaSet, defined: Mapping[str, Any], remarks: list[str]) -> CriteriaSet:
    """`chosen` with the guidance that stage 4 gave, matched by name; where it gave none, the definition has to do."""
    given = read_criteria_set(defined)
    guidance = {item.name.casefold(): item.guidance or item.definition for item in (*given.metadata, *given.metrics)}

    def guided(items: Sequence[Metadata | Metric]) -> tuple:
        return tuple(replace(item, guidance=clean_text(guidance.get(item.name.casefold(), ""), 400)) for item in items)

    done = CriteriaSet(metadata=guided(chosen.metadata), metrics=guided(chosen.metrics))
    if without := [item.name for item in (*done.metadata, *done.metrics) if not item.guidance]:
        remarks.append(
            f"no guidance for {len(without)} of {len(done.metadata) + len(done.metrics)} criteria; their definitions "
            "stand instead"
        )
    return done

"""Stages 1 to 4: B criteria sets, proposed by the judge or loaded from a file, and fixed before the first grouping.

They may repeat text of hostile samples. So they are untrusted: cleaned, cut, and shown to judges as data.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from diversity_jax.cluster_agent.config import AgentConfig
from diversity_jax.cluster_agent.sampling import draw_proposals, draw_texts
from diversity_jax.cluster_agent.text_cleaning import child_seed, clean_text
from diversity_jax.cluster_agent.types import (
    AnswerError,
    CallTotals,
    CriteriaSet,
    Criterion,
    Judge,
    RequestLog,
    SampledCorpus,
    describe_failures,
    request_with_repair,
)
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import content_hash, read_json

_NAME_CHARACTERS = 80
_TEXT_CHARACTERS = 400
_MOST_DEFINITIONS = 5  # of one proposed name, shown for the summary
_TRIES = 5  # of each call of stages 2 to 4, as new questions: a set depends on them


@dataclass(frozen=True, kw_only=True)
class Criteria:
    """B independent criteria sets, and where they come from: "judge", "file" or "scorecard"."""

    sets: tuple[CriteriaSet, ...]
    origin: str = field(compare=False)

    def __post_init__(self):
        if not self.sets:
            raise InputError("criteria: no criteria set; a judge that proposes none cannot group by any")

    @property
    def hash(self) -> str:
        """SHA-256 of the sets: scores with equal hashes have the same criteria."""
        return content_hash(self.to_json())

    def to_json(self) -> list[dict[str, Any]]:
        return [criteria_set.to_json() for criteria_set in self.sets]


@dataclass(frozen=True, kw_only=True)
class ProposedCriteria:
    """Criteria with the use of the calls that proposed them."""

    criteria: Criteria
    usage: CallTotals = field(default_factory=CallTotals)
    warnings: tuple[str, ...] = ()

    def without_usage(self) -> "ProposedCriteria":
        """The same criteria for a further corpus, whose scorecard does not count the calls again."""
        return replace(self, usage=CallTotals())


def load_criteria(path: str) -> Criteria:
    """Reads criteria written by hand, or those of a scorecard.

    A file written by hand is a JSON object with `metadata` and `metrics`, lists of objects with `name`, `definition`,
    `guidance` and, for metrics, `levels` (five texts); or a list of such objects, one a criteria set.

    Raises:
      InputError: no such file, not JSON, or a set without a usable criterion.
    """
    value = read_json(path)
    origin = "file"
    if isinstance(value, Mapping) and "criteria" in value:
        value, origin = value["criteria"], "scorecard"
    sets = tuple(map(read_criteria_set, value if isinstance(value, list) else [value]))
    for number, criteria_set in enumerate(sets, start=1):
        if not criteria_set:
            raise InputError(f"{path}: criteria set {number} has neither `metadata` nor `metrics` with a `name`")
    return Criteria(sets=sets, origin=origin)


def read_criteria_set(value: Any) -> CriteriaSet:
    """The criteria set of a JSON value; `metadata` and `metrics` are empty where they are missing or malformed."""
    value = value if isinstance(value, Mapping) else {}
    metadata, metrics = _read_criteria(value.get("metadata"), False), _read_criteria(value.get("metrics"), True)
    return CriteriaSet(metadata=metadata, metrics=metrics)


def _read_criteria(value: Any, with_levels: bool) -> tuple[Criterion, ...]:
    """The objects with a name in a list, each name once."""
    criteria: dict[str, Criterion] = {}
    for item in value if isinstance(value, Sequence) and not isinstance(value, str) else ():
        if isinstance(item, Mapping) and (name := _line(item.get("name"), _NAME_CHARACTERS)):
            levels = _levels(item.get("levels")) if with_levels else None
            definition, guidance = _line(item.get("definition")), _line(item.get("guidance"))
            criterion = Criterion(name=name, definition=definition, levels=levels, guidance=guidance)
            criteria.setdefault(name.casefold(), criterion)
    return tuple(criteria.values())


def _levels(value: Any) -> tuple[str, ...]:
    if isinstance(value, Mapping):
        value = [value[key] for key in sorted(value, key=str)]
    return tuple(map(_line, value[:5])) if isinstance(value, Sequence) and not isinstance(value, str) else ()


def _line(text: Any, most: int = _TEXT_CHARACTERS) -> str:
    return " ".join(clean_text(text, most).split()) if isinstance(text, str) else ""


async def propose_criteria(corpora: Sequence[SampledCorpus], judge: Judge, config: AgentConfig) -> ProposedCriteria:
    """Criteria for one corpus, or for several to be compared, with an equal part of the samples from each.

    Raises:
      InputError: a corpus is empty, or no criteria set was proposed.
      RunEnded: no further call can succeed.
    """
    if config.criteria is not None:
        return ProposedCriteria(criteria=load_criteria(config.criteria))
    if (fixed := getattr(judge, "criteria", None)) is not None:  # those of an embedding judge
        return ProposedCriteria(criteria=fixed)
    texts = await asyncio.to_thread(proposal_texts, corpora, config)
    jobs = [_propose_set(number, texts, judge, config) for number in range(config.criteria_sets)]
    sets: list[CriteriaSet] = []
    warnings: list[str] = []
    results = await asyncio.gather(*jobs)
    for number, (criteria_set, _, remarks) in enumerate(results, start=1):
        sets += [criteria_set] if criteria_set else []
        warnings += [f"criteria set {number}: {remark}" for remark in remarks]
    if not sets:
        why = f"no criteria set was proposed ({warnings[0]})"
        raise InputError(f"judge {judge.label}: {why}; try another judge, or give criteria in a file")
    criteria, usage = Criteria(sets=tuple(sets), origin="judge"), CallTotals.of(used for _, used, _ in results)
    return ProposedCriteria(criteria=criteria, usage=usage, warnings=tuple(warnings))


def proposal_texts(
    corpora: Sequence[SampledCorpus], config: AgentConfig, *, store: bool = False
) -> list[tuple[str, str]]:
    """(document id, text) of documents for proposals, an equal part from each corpus. `store` as in `draw_texts`."""
    wanted = config.criteria_sets * config.proposals * config.samples_per_proposal
    texts: list[tuple[str, str]] = []
    for number, corpus in enumerate(corpora):
        seed = child_seed(config.seed, "proposals", number)
        drawn, _ = draw_texts(corpus, max(1, wanted // len(corpora)), seed, config.max_characters, store=store)
        if not drawn:
            name = getattr(corpus, "name", "corpus")
            raise InputError(f"{name}: holds no document with text; check its path and text field")
        texts += drawn
    return texts


async def _propose_set(
    number: int, texts: Sequence[tuple[str, str]], judge: Judge, config: AgentConfig
) -> tuple[CriteriaSet | None, CallTotals, list[str]]:
    """Criteria set `number` or None, the use of its calls, and remarks."""
    drawn = draw_proposals(
        texts, criteria_set=number, proposals=config.proposals, samples=config.samples_per_proposal, seed=config.seed
    )
    # A log for each request, so that usage is added in a fixed order whatever order answers come in.
    logs = [RequestLog() for _ in range(len(drawn) + 3)]
    jobs = []
    for replicate, samples in enumerate(drawn):
        task = config.task("propose_criteria", criteria_set=number, replicate=replicate, samples=samples)
        jobs.append(request_with_repair(judge, task, _usable, logs[replicate]))
    proposals = [proposal for proposal in await asyncio.gather(*jobs) if proposal]
    remarks: list[str] = []
    if missing := len(drawn) - len(proposals):
        failures = [failure for log in logs for failure in log.failures]
        counts = Counter(reason for reason, _ in failures)
        details = {} if proposals else dict(reversed(failures))  # the first of each reason
        remarks.append(f"{missing} of {len(drawn)} proposals were not usable ({describe_failures(counts, details)})")
    criteria_set = await _merge(number, proposals, judge, config, logs[len(drawn) :], remarks) if proposals else None
    return criteria_set, CallTotals.of(log.usage for log in logs), remarks


async def _merge(
    number: int,
    proposals: Sequence[CriteriaSet],
    judge: Judge,
    config: AgentConfig,
    logs: Sequence[RequestLog],
    remarks: list[str],
) -> CriteriaSet | None:
    """Stages 2, 3 and 4 of one set. A kind without a usable answer is left out; without both there is no set."""

    async def request(stage: str, check: Callable[[Any], CriteriaSet], log: RequestLog, **content: Any) -> CriteriaSet:
        for replicate in range(_TRIES):
            task = config.task(stage, criteria_set=number, replicate=replicate, **content)
            if (answered := await request_with_repair(judge, task, check, log)) is not None:
                return answered
        return CriteriaSet()

    async def summarize(kind: str, log: RequestLog) -> tuple[Criterion, ...]:
        names = merge_names([item for proposal in proposals for item in getattr(proposal, kind)])
        if not names:
            return ()
        answered = await request(f"summarize_{kind}", lambda value: _usable(value, (kind,)), log, proposals=names)
        return getattr(answered, kind)[: config.criteria_count]

    metadata, metrics = await asyncio.gather(summarize("metadata", logs[0]), summarize("metrics", logs[1]))
    chosen = CriteriaSet(metadata=metadata, metrics=metrics)
    unusable = [kind for kind in ("metadata", "metrics") if not getattr(chosen, kind)]
    remarks += [f"summarize_{kind} gave no usable answer; the set has no {kind}" for kind in unusable]
    if not chosen:
        return None
    defined = await request("define_criteria", _object, logs[2], criteria=chosen)
    return _with_guidance(chosen, defined, remarks)


def _usable(value: Any, kinds: Sequence[str] = ("metadata", "metrics")) -> CriteriaSet:
    """The criteria of an answer; `AnswerError` where it has none of `kinds`."""
    criteria_set = read_criteria_set(value)
    if not any(getattr(criteria_set, kind) for kind in kinds):
        raise AnswerError("no entry with a `name` in " + " or ".join(f"`{kind}`" for kind in kinds))
    return criteria_set


def _object(value: Any) -> CriteriaSet:
    if not isinstance(value, Mapping):
        raise AnswerError("expected a JSON object")
    return read_criteria_set(value)


def _with_guidance(chosen: CriteriaSet, defined: CriteriaSet, remarks: list[str]) -> CriteriaSet:
    """`chosen` with the guidance of stage 4, matched by name; empty where there is none."""
    guidance = {item.name.casefold(): item.guidance or item.definition for item in defined}

    def guided(items: Sequence[Criterion]) -> tuple[Criterion, ...]:
        given = [guidance.get(item.name.casefold(), "") for item in items]
        texts = [clean_text(text, _TEXT_CHARACTERS) for text in given]
        return tuple(replace(item, guidance=text) for item, text in zip(items, texts, strict=True))

    result = CriteriaSet(metadata=guided(chosen.metadata), metrics=guided(chosen.metrics))
    if without := sum(not item.guidance for item in result):
        remarks.append(f"no guidance for {without} of {len([*result])} criteria; judges see their definitions instead")
    return result


def merge_names(items: Sequence[Criterion]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Every proposed name with its different definitions, the most often proposed first (ties in their order)."""
    by_name: dict[str, list[Criterion]] = {}
    for item in items:
        by_name.setdefault(item.name.casefold(), []).append(item)
    merged = []
    for same in sorted(by_name.values(), key=len, reverse=True):
        definitions = dict.fromkeys(item.definition for item in same if item.definition)
        merged.append((same[0].name, tuple(definitions)[:_MOST_DEFINITIONS]))
    return tuple(merged)

"""A language model as judge: turns tasks into requests by prompts and JSON schemas, and parses completions.

The texts of the six stages are in `prompts.toml`. Instructions and criteria are in the system prompt, criteria first,
since models give most weight to what they read first. Samples are data in the user message.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
import functools
import json
from pathlib import Path
import tomllib
from types import MappingProxyType
from typing import Any

from diversity_jax.cluster_agent.text_cleaning import as_data, clean_text
from diversity_jax.cluster_agent.types import Cluster, CriteriaSet, JudgeAnswer, Task
from diversity_jax.llm import CallFailed, Engine, Request, Schema, read_json_answer

_TEXTS: Mapping[str, Any] = tomllib.loads(Path(__file__).with_name("prompts.toml").read_text(encoding="utf-8"))
PROMPT_VERSION: str = _TEXTS["version"]
_PREVIOUS_CHARACTERS = 6000
_NAME_CHARACTERS = 60  # in schemas with limits
_CHARACTERS_OF_A_WORD = 8  # in limits of lengths, to which 40 are added: 160 for 15 words of reasoning

_json = json.JSONEncoder(ensure_ascii=False).encode


def _encode(value: Any) -> str:
    """JSON of texts, lists and objects, with `as_data` of all texts."""
    return _json(_data(value))


def _data(value: Any) -> Any:
    if isinstance(value, str):
        return as_data(value)
    if isinstance(value, Mapping):
        return {name: _data(item) for name, item in value.items()}
    return [_data(item) for item in value] if isinstance(value, list | tuple) else value


def _lines(values: Iterable[Mapping[str, Any]]) -> str:
    """One line of JSON for each value."""
    return "\n".join(map(_encode, values))


@functools.lru_cache(maxsize=64)
def _criteria(criteria: CriteriaSet) -> str:
    metadata = [{"metadata": m.name, "guidance": m.guidance or m.definition} for m in criteria.metadata]
    metrics = [{"metric": m.name, "guidance": m.guidance or m.definition} for m in criteria.metrics]
    for line, metric in zip(metrics, criteria.metrics, strict=True):
        if metric.levels:  # those between add little, and would be sent with every call
            line |= {"1": metric.levels[0], "5": metric.levels[-1]}
    return _lines(metadata + metrics)


def _cluster_line(number: int, cluster: Cluster) -> str:
    ids = ", ".join(map(_encode, cluster.sample_ids))
    return f'{{"cluster": {number}, "sample_ids": [{ids}], "uniqueness_reasoning": {_encode(cluster.reasoning)}}}'


def system_of(task: Task) -> str:
    """The system prompt; for clustering and verification the same in all groupings of a criteria set."""
    if task.stage.startswith("summarize_"):
        return _TEXTS["summarize"].format(count=task.criteria_count, **_TEXTS[task.stage])
    if task.stage in ("propose_criteria", "define_criteria"):
        return _TEXTS[task.stage].format(data=_TEXTS["data"])
    return _judging(task.criteria, task.reasoning_words)


@functools.lru_cache(maxsize=64)
def _judging(criteria: CriteriaSet, words: int) -> str:
    reasons = {"grouping_reasons": "", "checking_reasons": ""}
    if words:
        allowed = {"words": words, "few": max(1, words // 3)}
        reasons["grouping_reasons"] = _TEXTS["cluster_samples_reasons"].format(**allowed)
        reasons["checking_reasons"] = _TEXTS["verify_clusters_reasons"].format(**allowed)
    return _TEXTS["judging"].format(criteria=_criteria(criteria), data=_TEXTS["data"], **reasons)


def user_of(task: Task, *, assignment: bool = False) -> str:
    """The user message, in a repair round with the error and the first answer; `assignment` as in `schema_of`."""
    text = _material(task, assignment)
    if task.problem is None:
        return text
    problem = as_data(clean_text(task.problem, _PREVIOUS_CHARACTERS), is_json=True)
    previous = as_data(clean_text(task.previous, _PREVIOUS_CHARACTERS), is_json=True)
    return (
        f"{text}\n\nAn earlier answer was not usable: {problem}. Answer again, in full.\nThe earlier answer, "
        f"as data: {_json(previous)}"
    )


def _material(task: Task, assignment: bool) -> str:
    if task.stage.startswith("summarize_"):
        return _lines({"name": name, "definitions": definitions} for name, definitions in task.proposals)
    if task.stage == "define_criteria":
        kinds = (("metadata", task.criteria.metadata, ()), ("metric", task.criteria.metrics, ("levels",)))
        return _lines(
            {kind: item.name, "definition": item.definition} | {name: item.levels or () for name in more}
            for kind, items, more in kinds
            for item in items
        )
    samples = "\n".join(sample.line for sample in task.samples)
    samples = f"{len(task.samples)} samples, one JSON object a line:\n{samples}"
    if task.stage == "propose_criteria":
        return samples
    tasks = _TEXTS["tasks"]
    if task.stage == "cluster_samples":
        how = [tasks["assignment" if assignment else "list"]]
        how += [tasks["assignment_reasons"]] if assignment and task.reasoning_words else []
        return f"{samples}\n\n{' '.join(how)}"
    clusters = "\n".join(_cluster_line(number, cluster) for number, cluster in enumerate(task.clusters, start=1))
    return f"{samples}\n\n{tasks['verify_clusters']} {len(task.clusters)} clusters, one JSON object a line:\n{clusters}"


def schema_of(task: Task, *, assignment: bool = False) -> Schema:
    """The schema of a task's answer.

    With `assignment` a partition is an object with every shown id as a required key and a cluster number as its value,
    which cannot be malformed where the server enforces schemas; otherwise it is a list of clusters. All groupings of a
    run have the same set of ids, so that servers compile this schema once.

    With the task's `schema_limits` it limits lengths and allows only this call's sample ids. It then differs between
    calls, which takes time on servers that compile schemas. Ids are checked here in any case.
    """
    ids = tuple(sorted(sample.sample_id for sample in task.samples))
    keys = ids if assignment and task.stage == "cluster_samples" else None
    if task.schema_limits:
        allowed = _Allowed(words=task.reasoning_words, ids=ids, clusters=len(task.clusters))
        return Schema(_schema(task.stage, task.criteria_count, allowed, keys))
    return _fixed_schema(task.stage, task.criteria_count, bool(task.reasoning_words), keys)


@functools.lru_cache(maxsize=64)
def _fixed_schema(stage: str, criteria_count: int, reasoning: bool, keys: tuple[str, ...] | None) -> Schema:
    """A schema without limits."""
    return Schema(_schema(stage, criteria_count, _Allowed(words=int(reasoning)), keys))


@dataclass(frozen=True, kw_only=True)
class _Allowed:
    """Limits of an answer: words of a reason, sample ids (None: no limits at all), number of clusters to verify."""

    words: int
    ids: Sequence[str] | None = None
    clusters: int = 0

    def limited(self, schema: dict[str, Any], **limits: Any) -> dict[str, Any]:
        return schema if self.ids is None else schema | limits

    def array(self, items: Mapping[str, Any], most: int, least: int = 1) -> dict[str, Any]:
        return self.limited({"type": "array", "items": items}, minItems=least, maxItems=most)

    @property
    def name(self) -> dict[str, Any]:
        """A short text."""
        return self.limited({"type": "string"}, maxLength=_NAME_CHARACTERS)

    @property
    def line(self) -> dict[str, Any]:
        """A reason or definition."""
        return self.limited({"type": "string"}, maxLength=max(1, self.words) * _CHARACTERS_OF_A_WORD + 40)

    @property
    def sample_id(self) -> dict[str, Any]:
        return self.limited({"type": "string"}, enum=list(self.ids or ()))


def _object(**properties: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _schema(stage: str, count: int, allowed: _Allowed, keys: Sequence[str] | None) -> dict[str, Any]:
    """The schema of a stage; that of a partition as an assignment of `keys`, or None as a list of clusters."""
    name, line, array = allowed.name, allowed.line, allowed.array
    metadata, guided = _object(name=name, definition=line), _object(name=name, guidance=line)
    metric = _object(name=name, definition=line, levels=array(line, 5, 5))
    if stage == "propose_criteria":
        return _object(metadata=array(metadata, 5, 3), metrics=array(metric, 5, 3))
    if stage == "summarize_metadata":
        return _object(metadata=array(metadata, count))
    if stage == "summarize_metrics":
        return _object(metrics=array(metric, count))
    if stage == "define_criteria":
        return _object(metadata=array(guided, count, 0), metrics=array(guided, count, 0))
    if stage == "cluster_samples":
        return _partition_schema(count, allowed, keys)
    number = allowed.limited({"type": "integer"}, enum=list(range(1, allowed.clusters + 1)))
    verdict = {"cluster": number, "valid": {"type": "integer", "enum": [0, 1]}}
    verdict["misplaced"] = array(allowed.sample_id, len(allowed.ids or ()), 0)
    verdict |= {"reasoning": line} if allowed.words else {}
    return _object(validation=array(_object(**verdict), allowed.clusters, allowed.clusters))


def _partition_schema(count: int, allowed: _Allowed, keys: Sequence[str] | None) -> dict[str, Any]:
    name, line, array, shown = allowed.name, allowed.line, allowed.array, len(allowed.ids or ())
    number = allowed.limited({"type": "integer"}, minimum=1, maximum=shown)
    cluster: dict[str, Any] = {"cluster": number}
    if keys is None:
        cluster["sample_ids"] = array(allowed.sample_id, shown)
    if allowed.words:
        score = {"type": "integer", "enum": [1, 2, 3, 4, 5]}
        cluster |= {
            "uniqueness_reasoning": line,
            "cluster_metadata": array(_object(name=name, value=name), count, 0),
            "cluster_metrics": array(_object(name=name, reasoning=line, score=score), count, 0),
        }
    if keys is None:
        return _object(clusters=array(_object(**cluster), shown))
    assignment = _object(**dict.fromkeys(keys, number))
    return _object(assignment=assignment, **({"clusters": array(_object(**cluster), shown)} if allowed.words else {}))


_STAGES_OF_A_SET = ("propose_criteria", "summarize_metadata", "summarize_metrics", "define_criteria")
_REPLICATES_OF_A_SET = 1_000_000
# Under a cap on calls one grouping for so many calls left is begun at once, so that few remain unverified at its end.
_CALLS_LEFT_PER_GROUPING = 8


class LlmJudge:
    """Asks the model behind an engine.

    Args:
      engine: makes the calls. Enter the judge, which enters the engine, or enter the engine itself.
    """

    prompt_version = PROMPT_VERSION

    def __init__(self, engine: Engine):
        self.engine = engine
        self.label = engine.name
        self._assignment: bool | None = None  # form of partitions; None until the first one is asked for
        # Besides model and wording only the fields of `body` change answers; the server's address does not.
        self.identity: Mapping[str, Any] = MappingProxyType({"body": engine.body} if engine.body else {})

    async def __aenter__(self) -> "LlmJudge":
        await self.engine.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self.engine.__aexit__(*error)

    def expect(self, calls: int) -> None:
        """Passes the expected number of calls to the engine, for its forecast of time and price."""
        self.engine.expect(calls)

    @property
    def gathers_calls(self) -> bool:
        """Whether calls are sent in batches, so that all groupings have to be begun at once."""
        return self.engine.config.batch

    @property
    def groupings_at_once(self) -> int | None:
        """How many groupings to begin at once; None without a cap on calls."""
        left = self.engine.calls_left
        return None if left is None else max(left // _CALLS_LEFT_PER_GROUPING, 1)

    def request(self, task: Task, *, assignment: bool = False) -> Request:
        """The request of a task, a pure function of it, so that a replay finds its answer; `assignment` as in
        `schema_of`.
        """
        replicate = task.replicate
        if task.stage in _STAGES_OF_A_SET:
            # Equal questions of two criteria sets are separate calls, since the sets have to be independent.
            replicate += task.criteria_set * _REPLICATES_OF_A_SET
        return Request(
            stage=task.stage,
            system=system_of(task),
            user=user_of(task, assignment=assignment),
            schema=schema_of(task, assignment=assignment),
            replicate=replicate,
            max_output_tokens=task.max_output_tokens,
            temperature=task.temperature,
            # Where a cap may end the run, begun groupings are finished first, since an unverified one cannot be used.
            # Otherwise calls go in order: with verification first, the last clusterings would run at the end, with idle
            # slots.
            urgent=task.stage == "verify_clusters" and self.engine.budget.capped,
        )

    async def _request_in_form(self, task: Task) -> Request:
        """The request; for a partition in one form throughout a run: as an assignment where the server enforces schemas
        at the first partition, unless the cache holds that one in the other form; and in the other form where only its
        answer is in the cache.
        """
        if task.stage != "cluster_samples":
            return self.request(task)
        if self._assignment is None:
            self._assignment = self.engine.enforces_schema
            decided = self.request(task, assignment=self._assignment)
            if await self.engine.answers_other(decided, self.request(task, assignment=not self._assignment)):
                self._assignment = not self._assignment
        forms = [self.request(task, assignment=form) for form in (self._assignment, not self._assignment)]
        return forms[1] if await self.engine.answers_other(*forms) else forms[0]

    async def ask(self, task: Task) -> JudgeAnswer:
        """See `Judge.ask`."""
        request = await self._request_in_form(task)
        try:
            completion = await self.engine.complete(request)
        except CallFailed as error:
            return JudgeAnswer(
                value=None, failure=error.reason, detail=error.detail, ends_run=error.ends_run, **_use(error)
            )
        value, fits_schema = read_json_answer(completion.text, request.schema)
        if not fits_schema:
            self.engine.report_broken_schema(request.stage)
        if not isinstance(value, Mapping):
            return JudgeAnswer(
                value=None, failure="garbled", detail="not one JSON object", text=completion.text, **_use(completion)
            )
        return JudgeAnswer(value=value, text=completion.text, **_use(completion))


def _use(call: Any) -> dict[str, Any]:
    return {name: getattr(call, name) for name in ("prompt_tokens", "completion_tokens", "cost_usd")}

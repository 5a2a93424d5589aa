"""What the six stages say to a language model (`prompts.toml`), and the JSON schemas of their answers.

Instructions and criteria are in the system prompt, the criteria first, since what is read first weighs most. Samples
are in the user message, one JSON object a line, as data only. Providers cache equal beginnings of prompts and charge
less for them: clustering and verification have the same system prompt in all groupings of a criteria set, byte for
byte, and the verification of a grouping begins as its clustering did, up to the last sample. What differs comes last.

Schemas use the subset that every server enforcing schemas accepts: closed objects, every property required, maps as
lists of entries with a name. Limits of length are left out unless asked for: OpenAI refuses them, while llama.cpp and
vLLM enforce them, which stops a weak model from writing without end.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
import functools
import json
from pathlib import Path
import tomllib
from typing import Any

from diversity_jax.cluster_agent.text_cleaning import as_data, clean_text
from diversity_jax.cluster_agent.types import Cluster, CriteriaSet, Task
from diversity_jax.llm import Schema

_TEXTS: Mapping[str, Any] = tomllib.loads(Path(__file__).with_name("prompts.toml").read_text(encoding="utf-8"))
PROMPT_VERSION: str = _TEXTS["version"]
_PREVIOUS_CHARACTERS = 6000
_NAME_CHARACTERS = 60  # in schemas with limits
_CHARACTERS_OF_A_WORD = 8  # so that 15 words of reasoning have 160 characters

_json = json.JSONEncoder(ensure_ascii=False).encode


def _encode(value: Any) -> str:
    """JSON of a text, or of lists and objects of texts, in which no special token can be formed."""
    return _json(_data(value))


def _data(value: Any) -> Any:
    if isinstance(value, str):
        return as_data(value)
    if isinstance(value, Mapping):
        return {name: _data(item) for name, item in value.items()}
    return [_data(item) for item in value] if isinstance(value, list | tuple) else value


def _lines(values: Iterable[Mapping[str, Any]]) -> str:
    """One line of JSON for each; text stays readable, and no text can end its line."""
    return "\n".join(map(_encode, values))


@functools.lru_cache(maxsize=64)
def _criteria(criteria: CriteriaSet) -> str:
    metadata = [{"metadata": m.name, "guidance": m.guidance or m.definition} for m in criteria.metadata]
    metrics = [{"metric": m.name, "guidance": m.guidance or m.definition} for m in criteria.metrics]
    for line, metric in zip(metrics, criteria.metrics, strict=True):
        if metric.levels:  # the steps between would be sent with every call, and add little to the guidance
            line |= {"1": metric.levels[0], "5": metric.levels[-1]}
    return _lines(metadata + metrics)


def _cluster_line(number: int, cluster: Cluster) -> str:
    ids = ", ".join(map(_encode, cluster.sample_ids))
    return f'{{"cluster": {number}, "sample_ids": [{ids}], "uniqueness_reasoning": {_encode(cluster.reasoning)}}}'


def system_of(task: Task) -> str:
    """The system prompt: for clustering and verification equal in all groupings of a criteria set."""
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
    """The user message, with what was wrong before where this is a repair; `assignment` as in `schema_of`."""
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

    With `assignment` a partition is asked for as an object with every shown id as a required key and a cluster number
    as its value, which cannot be malformed where the server enforces it; otherwise as a list of clusters. The ids of a
    run are dealt from one pool, so that this schema is one in all its groupings and servers compile it once.

    With the task's `schema_limits` it limits lengths and allows only this call's sample ids. It then differs from call
    to call, which costs time on servers that compile schemas; ids are checked here in any case.
    """
    ids = tuple(sorted(sample.sample_id for sample in task.samples))
    keys = ids if assignment and task.stage == "cluster_samples" else None
    if task.schema_limits:
        allowed = _Allowed(words=task.reasoning_words, ids=ids, clusters=len(task.clusters))
        return Schema(_schema(task.stage, task.criteria_count, allowed, keys))
    return _fixed_schema(task.stage, task.criteria_count, bool(task.reasoning_words), keys)


@functools.lru_cache(maxsize=64)
def _fixed_schema(stage: str, criteria_count: int, reasoning: bool, keys: tuple[str, ...] | None) -> Schema:
    """Without limits a schema depends on nothing else."""
    return Schema(_schema(stage, criteria_count, _Allowed(words=int(reasoning)), keys))


@dataclass(frozen=True, kw_only=True)
class _Allowed:
    """What an answer may hold: words of a reason, sample ids (None: any, and no limits at all), clusters to check."""

    words: int
    ids: Sequence[str] | None = None
    clusters: int = 0

    def limited(self, schema: dict[str, Any], **limits: Any) -> dict[str, Any]:
        """The schema, with the limits where there are any."""
        return schema if self.ids is None else schema | limits

    def array(self, items: Mapping[str, Any], most: int, least: int = 1) -> dict[str, Any]:
        """A list."""
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
        """One of the ids."""
        return self.limited({"type": "string"}, enum=list(self.ids or ()))


def _object(**properties: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _schema(stage: str, count: int, allowed: _Allowed, keys: Sequence[str] | None) -> dict[str, Any]:
    """The schema of a stage; a partition is an assignment of the `keys` where they are given."""
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

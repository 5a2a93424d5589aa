"""JSON schemas of the six stages, in the subset that every server enforcing schemas takes: closed objects, every
property required.

Open maps become lists of entries with a name. Limits of length are left out unless asked for: OpenAI refuses them,
while llama.cpp and vLLM enforce them, which keeps a weak model from writing without end.
"""

from collections.abc import Mapping, Sequence
import functools
from typing import Any

from diversity_jax.cluster_agent.types import Task
from diversity_jax.llm import Schema

_NAME_CHARACTERS = 60
_CHARACTERS_OF_A_WORD = 8


def _text(limits: bool, characters: int) -> dict[str, Any]:
    return {"type": "string", "maxLength": characters} if limits else {"type": "string"}


def _object(**properties: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _list(limits: bool, items: Mapping[str, Any], most: int, least: int = 1) -> dict[str, Any]:
    bounds = {"minItems": least, "maxItems": most} if limits else {}
    return {"type": "array", "items": items, **bounds}


def schema_of(task: Task) -> Schema:
    """The schema of a task's answer.

    With the task's `schema_limits` it has limits of lengths, and this call's sample ids as the only ones possible. It
    then differs from call to call, which servers that prepare a schema for long do not like; ids are checked here in
    any case.
    """
    if task.schema_limits:
        return Schema(_schema(task))
    return _fixed_schema(task.stage, task.criteria_count, bool(task.reasoning_words))


@functools.cache
def _fixed_schema(stage: str, criteria_count: int, reasoning: bool) -> Schema:
    """Without limits a schema depends on nothing else."""
    task = Task(stage=stage, replicate=0, criteria_set=0, criteria_count=criteria_count, reasoning_words=int(reasoning))
    return Schema(_schema(task))


def _schema(task: Task) -> dict[str, Any]:
    limits = task.schema_limits
    name, line = (
        _text(limits, _NAME_CHARACTERS),
        _text(limits, max(1, task.reasoning_words) * _CHARACTERS_OF_A_WORD + 40),
    )
    metadata = _object(name=name, definition=line)
    metric = _object(name=name, definition=line, levels=_list(limits, line, 5, 5))
    count = task.criteria_count
    if task.stage == "propose_criteria":
        return _object(metadata=_list(limits, metadata, 5, 3), metrics=_list(limits, metric, 5, 3))
    if task.stage == "summarize_metadata":
        return _object(metadata=_list(limits, metadata, count))
    if task.stage == "summarize_metrics":
        return _object(metrics=_list(limits, metric, count))
    if task.stage == "define_criteria":
        guided = _object(name=name, guidance=line)
        return _object(metadata=_list(limits, guided, count, 0), metrics=_list(limits, guided, count, 0))
    if task.stage == "cluster_samples":
        return _object(clusters=_list(limits, _cluster(task, name, line), len(task.samples)))
    number = {"type": "integer", "enum": list(range(1, len(task.clusters) + 1))} if limits else {"type": "integer"}
    verdict = {"cluster": number, "valid": {"type": "integer", "enum": [0, 1]}}
    reasoning = {"reasoning": line} if task.reasoning_words else {}
    return _object(validation=_list(limits, _object(**verdict, **reasoning), len(task.clusters), len(task.clusters)))


def _cluster(task: Task, name: Mapping[str, Any], line: Mapping[str, Any]) -> dict[str, Any]:
    limits = task.schema_limits
    ids: Sequence[str] = [sample.sample_id for sample in task.samples]
    one = {"type": "string", "enum": ids} if limits else {"type": "string"}
    placed = {"cluster": {"type": "integer"}, "sample_ids": _list(limits, one, len(ids))}
    if not task.reasoning_words:
        return _object(**placed)
    score = {"type": "integer", "enum": [1, 2, 3, 4, 5]}
    return _object(
        **placed,
        uniqueness_reasoning=line,
        cluster_metadata=_list(
            limits, _object(name=name, value=_text(limits, _NAME_CHARACTERS)), task.criteria_count, 0
        ),
        cluster_metrics=_list(limits, _object(name=name, reasoning=line, score=score), task.criteria_count, 0),
    )

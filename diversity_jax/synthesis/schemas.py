"""JSON schemas of what generators answer: closed objects with every property required, which every server that enforces schemas takes.

Limits of length and number are left out unless asked for: OpenAI refuses them, while llama.cpp and vLLM enforce them, which keeps a weak
model from writing without end.
"""

from collections.abc import Mapping
from typing import Any

_LINE_CHARACTERS = 160
_TEXT_CHARACTERS = 2400


def _text(limits: bool, characters: int = _LINE_CHARACTERS) -> dict[str, Any]:
    return {"type": "string", "minLength": 1, "maxLength": characters} if limits else {"type": "string"}


def _object(**properties: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _list(limits: bool, items: Mapping[str, Any], least: int, most: int) -> dict[str, Any]:
    return {"type": "array", "items": items, **({"minItems": least, "maxItems": most} if limits else {})}


def passages_schema(*, passages: tuple[int, int], question: bool, personas: int, topics: int, limits: bool) -> dict[str, Any]:
    """Of a generation. `personas` and `topics` are how many are offered by number; 0 leaves the field out."""
    line, text = _text(limits), _text(limits, _TEXT_CHARACTERS)
    properties: dict[str, Any] = {}
    if topics:
        properties["topics_used"] = _list(limits, {"type": "integer", "enum": list(range(1, topics + 1))}, 1, topics)
    if personas:
        properties["persona"] = {"type": "integer", "enum": list(range(1, personas + 1))}
    properties["passages"] = _list(limits, _object(concepts=_list(limits, line, 1, 8), text=text), *passages)
    if question:
        # No schema can say "one of the options above", so where limits are enforced the answer is an option's number.
        answer = {"type": "integer", "enum": [1, 2, 3, 4]} if limits else line
        properties["question"] = _object(question=line, options=_list(limits, line, 4, 4), answer=answer, explanation=text)
    return _object(**properties)


def extract_topics_schema(levels: int, most: int, limits: bool) -> dict[str, Any]:
    """Of `extract_topics`: `{"topics": [{"path": [...], "keywords": [...]}]}`."""
    line = _text(limits)
    topic = _object(path=_list(limits, line, 1, levels), keywords=_list(limits, line, 3, 8))
    return _object(topics=_list(limits, topic, 1, most))


def expand_topic_schema(branching: int, limits: bool) -> dict[str, Any]:
    """Of `expand_topic`: `{"subtopics": [{"name": ..., "keywords": [...]}]}`."""
    line = _text(limits)
    return _object(subtopics=_list(limits, _object(name=line, keywords=_list(limits, line, 3, 8)), 1, branching))


def write_personas_schema(count: int, limits: bool) -> dict[str, Any]:
    """Of `write_personas`: `{"personas": [...]}`."""
    return _object(personas=_list(limits, _text(limits), 1, count))

"""JSON in the answers of models: one reader for judges and generators.

A model may think aloud before its answer, put it between fences, or add a remark. What is meant is the object that has
the shape that was asked for and stands last: a draft in the thoughts may be longer than the answer.
"""

from collections.abc import Iterator, Mapping
import json
import re
from typing import Any, NamedTuple

_decoder = json.JSONDecoder(strict=False)  # line breaks inside strings are common, and do not make them ambiguous
_THOUGHTS_END = "</think>"
# Objects that are tried at most, and text read for objects that turn out to be none, in lengths of the answer: formulas
# and code in thoughts are full of braces.
_OBJECTS_TRIED, _LENGTHS_READ = 10_000, 20
_MOST_RANK = 3
_FIRST_NAME = re.compile(r'\{\s*"([^"\\]*)"\s*:')
_KINDS: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


class JsonAnswer(NamedTuple):
    """An answer as JSON.

    Attributes:
      value: the object that is meant, or another JSON value where the text is that alone; None where there is none, or
        where it breaks off.
      kept_schema: whether the text is that object alone and fits the schema, as every answer of a server does that
        enforces schemas.
    """

    value: Any
    kept_schema: bool


def read_json_answer(text: str, schema: Mapping[str, Any] | None = None) -> JsonAnswer:
    """Reads an answer; without a schema the last object is meant.

    The value need not fit the schema: it is the last object that has all required properties, else the last that has
    one of the properties, else the last one.
    """
    schema = schema or {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return JsonAnswer(_last_object(text, schema), False)
    return JsonAnswer(value, fits(value, schema))


def fits(value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether a value has the types, properties and enumerated values of a JSON schema; limits are not checked."""
    kinds = schema.get("type", ())
    kinds = (kinds,) if isinstance(kinds, str) else kinds
    if kinds and not any(_is_kind(value, kind) for kind in kinds):
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        if not all(name in value for name in schema.get("required", ())):
            return False
        if schema.get("additionalProperties", True) is False and not all(name in properties for name in value):
            return False
        return all(fits(item, properties[name]) for name, item in value.items() if name in properties)
    return not isinstance(value, list) or all(fits(item, schema.get("items", {})) for item in value)


def _is_kind(value: Any, kind: str) -> bool:
    return isinstance(value, _KINDS.get(kind, (object,))) and (kind == "boolean" or not isinstance(value, bool))


def _last_object(text: str, schema: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The object that is meant in a text that is not JSON alone; see `read_json_answer`."""
    answer_begins = text.rfind(_THOUGHTS_END)  # an object that ends before is a thought
    best, best_rank = None, 1
    names = schema.get("properties", {})
    for start, end, value in _objects(text):
        if end <= answer_begins:
            continue
        if value is None:
            # An answer that breaks off: no draft before it is meant, nor a part of it, only a whole one after it.
            first = _FIRST_NAME.match(text, start)
            if first and (not names or first.group(1) in names):
                best, best_rank = None, _MOST_RANK
            continue
        rank = 1 + any(name in value for name in names)
        rank += rank == 2 and all(name in value for name in schema.get("required", ()))
        if value and rank >= best_rank:
            best, best_rank = value, rank
    return best


def _objects(text: str) -> Iterator[tuple[int, int, Mapping[str, Any] | None]]:
    """Start, end and value of the outermost objects in a text; the value is None where one breaks off."""
    start, left = text.find("{"), _LENGTHS_READ * len(text)
    for _ in range(_OBJECTS_TRIED):
        if start < 0 or left < 0:
            return
        try:
            value, end = _decoder.raw_decode(text, start)
            yield start, end, value
        except (ValueError, RecursionError) as error:
            read = error.pos - start if isinstance(error, json.JSONDecodeError) else len(text) - start
            left -= read
            yield start, start + max(read, 1), None
            end = start + 1
        start = text.find("{", end)

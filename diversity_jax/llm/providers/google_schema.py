"""JSON schema as Gemini takes it: a part of OpenAPI 3.0."""

from collections.abc import Mapping
from typing import Any

from diversity_jax.core.errors import InputError

_KEPT = ("description", "format", "minItems", "maxItems", "required", "propertyOrdering")


def gemini_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Converts a JSON schema: upper-case type names, `nullable` for a null among the types, references written out;
    what Gemini does not know (`additionalProperties`, `minimum`, `pattern`, `title`, ...) is left away, so check
    answers against the full schema.

    Raises:
      InputError: the schema refers to itself or has alternatives, which Gemini cannot express.
    """
    return _convert(schema, schema, ())


def _convert(schema: Mapping[str, Any], root: Mapping[str, Any], seen: tuple[str, ...]) -> dict[str, Any]:
    reference = schema.get("$ref")
    if reference is not None:
        if reference in seen:
            raise InputError(
                f"Request.schema: {reference} refers to itself, which Gemini cannot enforce; write the schema without "
                "recursion"
            )
        return _convert(_resolve(reference, root), root, (*seen, reference))
    kind, nullable, schema = _kind(schema)
    converted: dict[str, Any] = {"type": kind.upper()}
    if nullable:
        converted["nullable"] = True
    converted |= {name: schema[name] for name in _KEPT if name in schema}
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    # Gemini has enumerations of strings only.
    if values is not None and kind == "string":
        converted |= {"enum": list(values), "format": "enum"}
    if kind == "object":
        converted["properties"] = {
            name: _convert(value, root, seen) for name, value in schema.get("properties", {}).items()
        }
    if kind == "array":
        converted["items"] = _convert(schema.get("items", {"type": "string"}), root, seen)
    return converted


def _resolve(reference: str, root: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Any = root
    for part in reference.removeprefix("#/").split("/"):
        try:
            found = found[part]
        except (KeyError, TypeError):
            raise InputError(f"Request.schema: {reference} points at nothing; define it under $defs") from None
    return found


def _kind(schema: Mapping[str, Any]) -> tuple[str, bool, Mapping[str, Any]]:
    """A schema's single type, whether null is allowed too, and the part that describes it."""
    for word in ("anyOf", "oneOf"):
        if word in schema:
            others = [part for part in schema[word] if part.get("type") != "null"]
            if len(others) != 1:
                raise InputError(
                    f"Request.schema: {word} has {len(others)} kinds of value, which Gemini cannot enforce; choose one"
                )
            kind, _, inner = _kind(others[0])
            return kind, len(others) < len(schema[word]), inner
    kinds = schema.get("type", "object")
    kinds = [kinds] if isinstance(kinds, str) else list(kinds)
    named = [kind for kind in kinds if kind != "null"]
    if len(named) != 1:
        raise InputError(
            f"Request.schema: type {kinds} is not one kind of value, which Gemini cannot enforce; choose one"
        )
    return named[0], len(named) < len(kinds), schema

"""Objects read from JSON, with every field checked against its type."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import os
import sys
import types
import typing
from typing import Any

from diversity_jax.core.errors import InputError
from diversity_jax.core.field_docs import default_of
from diversity_jax.core.files import read_json


def read_fields(path: str | os.PathLike, **hints: Any) -> dict[str, Any]:
    """Reads a JSON object whose fields have these types; other fields are returned unchecked.

    Args:
      hints: the type of each field; a field that may be None may also be missing.

    Raises:
      InputError: there is no such file, it is no object, or a field is of another type.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise InputError(f"{path}: is {_json_kind(value)}; expected an object")
    return value | {name: converted(hint, value.get(name), f"{path}: {name}") for name, hint in hints.items()}


Fields = dict[str, Any]
"""An object with fields of any type, as a hint for `read_fields`."""
T = typing.TypeVar("T")


def from_json(kind: type[T], value: Any, where: str, **given: Any) -> T:
    """Makes a dataclass from a JSON object, with every field checked against its type.

    Args:
      where: begins every error line: the file, and the field in it where the object is a part of it.
      given: fields that the JSON does not hold.

    Raises:
      InputError: a field is missing, unknown or of another type, or a number is not finite or beyond 64 bits.
    """
    if not isinstance(value, dict):
        raise InputError(f"{where}: is {_json_kind(value)}; expected an object")
    hints, fields = _hints(kind), {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown := [name for name in value if name not in fields or name in given]:
        raise InputError(f"{where}: has a field {unknown[0][:80]!r} that is not known here")
    missing = [
        name
        for name, field in fields.items()
        if name not in value and name not in given and default_of(field) is dataclasses.MISSING
    ]
    if missing:
        raise InputError(f"{where}: has no field {missing[0]!r}")
    return kind(**{name: converted(hints[name], item, f"{where}: {name}") for name, item in value.items()}, **given)


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def converted(hint: Any, value: Any, where: str) -> Any:
    """A JSON value converted to a type: lists to tuples, objects to dataclasses."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return converted(next(part for part in arguments if part is not type(None)), value, where)
    if dataclasses.is_dataclass(hint):
        return from_json(typing.cast(type, hint), value, where)
    if origin in (tuple, list, Sequence) and isinstance(value, list | tuple):
        items = [converted(arguments[0] if arguments else Any, item, f"{where}[{i}]") for i, item in enumerate(value)]
        return items if origin is list else tuple(items)
    if origin in (dict, Mapping) and isinstance(value, dict):
        return {name: converted(arguments[1], item, f"{where}[{name[:80]!r}]") for name, item in value.items()}
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if hint is float and is_number and abs(value) < _LARGEST:
        return value
    if hint is int and is_number and isinstance(value, int) and -(2**63) <= value < 2**63:
        return value
    if hint in (str, bool) and isinstance(value, hint):
        return value
    wanted = getattr(origin or hint, "__name__", str(hint))
    raise InputError(f"{where} is {_json_kind(value)}; expected {_JSON_NAMES.get(wanted, wanted)}")


_LARGEST = sys.float_info.max
_JSON_NAMES = {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false"}
_JSON_NAMES |= {"tuple": "a list", "list": "a list", "Sequence": "a list", "dict": "an object", "Mapping": "an object"}


def _json_kind(value: Any) -> str:
    """A description of a JSON value: a number, boolean or null itself, else its type."""
    if value is None or isinstance(value, bool | int | float):
        return str(value)[:40].lower()
    return _JSON_NAMES.get(type(value).__name__, type(value).__name__)

"""Typed configurations from `--config FILE.py` and overrides `--config.field=value`.

Configurations are frozen dataclasses that check themselves when they are made. ml_collections applies overrides to a
mutable twin of the same fields and types, from which the frozen ones are made again, so that checks see all overrides.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import decimal
import importlib.util
import inspect
import math
import numbers
import os
from pathlib import Path
import sys
import types
import typing
from typing import Any

from diversity_jax.core.commands import line_of, nearest, nearest_argument, of_config, packaged_path, share_configs
from diversity_jax.core.errors import InputError, without_secrets
from diversity_jax.core.field_docs import default_of
from diversity_jax.core.json_fields import converted

# Metadata of a field that a later version added to a dataclass: see `fields_for_keys`.
ADDED: Mapping[str, Any] = types.MappingProxyType({"added": True})


def parse(argv: Sequence[str], expected: type) -> Any:
    """Reads the configuration of a command line.

    Args:
      argv: without the program's name: `--config FILE` or `--config=FILE`, and overrides `--config.a.b=value`. Items of
        tuples go by number, of mappings by key: `--config.mixture.components[0].share=2`.
      expected: the dataclass that `get_config()` must return.

    Raises:
      InputError: no such file, an unknown field (the nearest known one is suggested), or a value of the wrong type.
    """
    path, overrides = _split(list(argv))
    config = load_file(path, expected)
    if not overrides:
        return config
    return _from_twin(_apply(_mutable_twin(config), overrides))


def with_values(config: Any, values: Mapping[str, Any]) -> Any:
    """A configuration with some fields, named with dots as on the command line, set to values.

    Raises:
      InputError: an unknown field, named with the nearest known one, or a value that the configuration refuses.
    """
    from ml_collections.config_flags import config_path

    twin = _mutable_twin(config)
    for field, value in values.items():
        _check_known(twin, field)
        config_path.set_value(field, twin, _mutable_twin(value))
    return _from_twin(twin)


C = typing.TypeVar("C")


def configuration(given: Any, default: str, expected: type[C]) -> C:
    """The configuration that a caller gives: itself, the path of its file, or None for the packaged file `default`."""
    if isinstance(given, expected):
        return given
    if given is not None and not isinstance(given, str | os.PathLike):
        raise InputError(
            f"config: is of type {type(given).__name__}; give a configuration of {of_config(expected)}, or its file"
        )
    return load_file(default if given is None else os.fspath(given), expected)


def with_fields(config: C, values: Mapping[str, Any], where: str = "") -> C:
    """A configuration with some fields set to values that are checked by type; a part may be a mapping of its fields.

    Args:
      where: the part's own name with a dot, for messages.

    Raises:
      InputError: an unknown field, named with the nearest known one, or a value of another type or refused.
    """
    hints, changed = typing.get_type_hints(type(config)), {}
    known = [field.name for field in dataclasses.fields(config)]  # type: ignore[arg-type]
    for name, value in values.items():
        if name not in known:
            raise InputError(f"{where}{name}: there is no such setting{nearest(name, known)}")
        before = getattr(config, name)
        if isinstance(value, Mapping) and dataclasses.is_dataclass(before):
            changed[name] = with_fields(before, value, f"{where}{name}.")
        elif dataclasses.is_dataclass(value):
            changed[name] = value
        else:
            value = list(value) if isinstance(value, tuple) else plain_number(value)
            changed[name] = converted(hints[name], value, f"{where}{name}")
    return dataclasses.replace(config, **changed)  # type: ignore[type-var]


def load_file(path: str, expected: type) -> Any:
    """What `get_config()` of a configuration file returns; `FILE.py:WORD` calls `get_config("WORD")`."""
    arguments: list[str] = []
    if not Path(path).is_file() and ".py:" in path:
        file, _, word = path.partition(".py:")
        path, arguments = f"{file}.py", [word]
    path = packaged_path(path)
    is_file = Path(path).is_file()
    specification = importlib.util.spec_from_file_location(f"config_{Path(path).stem}", path) if is_file else None
    if specification is None or specification.loader is None:
        what = "is not a Python file" if is_file else "no such file"
        raise InputError(f"--config {path}: {what}; give one with get_config(), such as configs/quickstart.py")
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    share_configs(path)
    try:
        specification.loader.exec_module(module)
    except (SyntaxError, ImportError, NameError, AttributeError, TypeError) as error:
        raise InputError(f"--config {path}: cannot be read ({type(error).__name__}: {error})") from error
    if not hasattr(module, "get_config"):
        raise InputError(f"--config {path}: has no get_config(); see configs/quickstart.py for the form")
    try:
        inspect.signature(module.get_config).bind(*arguments)
    except TypeError:
        wants = f"takes no word such as {arguments[0]!r}" if arguments else "needs a word behind it, as FILE.py:WORD"
        raise InputError(f"--config {path}: get_config() {wants}") from None
    try:
        config = module.get_config(*arguments)
    except (TypeError, NameError, AttributeError) as error:
        raise InputError(f"--config {path}{line_of(error, path)}: {error}{nearest_argument(error)}") from error
    if not isinstance(config, expected):
        kinds = f"is a configuration of {of_config(type(config))}, not of {of_config(expected)}"
        raise InputError(f"--config {path}: {kinds}")
    return config


def file_named(argv: Sequence[str]) -> str | None:
    """The configuration file that a command line names; nothing else in it is checked."""
    for at, word in enumerate(argv):
        if word == "--config" and at + 1 < len(argv):
            return argv[at + 1]
        if word.startswith("--config="):
            return word.removeprefix("--config=")
    return None


def _split(argv: list[str]) -> tuple[str, list[tuple[str, str]]]:
    """The file, and (field, value) of each override."""
    path, overrides = None, []
    while argv:
        argument = argv.pop(0)
        name, equals, value = argument.partition("=")
        if not name.startswith("--config") or name[8:9] not in ("", "."):
            raise InputError(f"{argument}: is not understood; expected --config FILE or --config.FIELD=VALUE")
        if not equals:
            if not argv:
                raise InputError(f"{argument}: a value is missing; write {argument}=VALUE")
            value = argv.pop(0)
        if name == "--config":
            path = value
        else:
            overrides.append((name[9:], value))
    if path is None:
        raise InputError("--config is missing; give a configuration file, such as --config configs/quickstart.py")
    return path, overrides


def _apply(twin: Any, overrides: Sequence[tuple[str, str]]) -> Any:
    """The twin with values set, each parsed by ml_collections according to its field's type."""
    from absl import flags
    from ml_collections import config_flags
    from ml_collections.config_flags import config_path

    emptied = []
    for field, value in overrides:
        _check_known(twin, field)
        if value.lower() == "none" and _may_be_none(twin, field):
            emptied.append(field)
            continue
        values = flags.FlagValues()
        argv = ["command", f"--config.{field}={_as_literal(value, config_path.get_type(field, twin))}"]
        try:
            config_flags.DEFINE_config_dataclass("config", twin, flag_values=values, sys_argv=argv)
            values(argv)
        except (flags.Error, ValueError, TypeError, KeyError, IndexError):
            wanted = config_path.get_type(field, twin, normalize=False)
            kind = getattr(wanted, "__name__", wanted)
            raise InputError(f"--config.{field}={value}: is not a value of type {kind}") from None
        twin = values["config"].value
    for field in emptied:  # last, since ml_collections defines a flag for every field of a nested configuration
        config_path.set_value(field, twin, None)
    return twin


def _may_be_none(twin: Any, field: str) -> bool:
    from ml_collections.config_flags import config_path

    holder, _, name = field.rpartition(".")
    owner = config_path.get_value(holder, twin) if holder else twin
    return config_path.is_optional(field, twin) or name in getattr(owner, _OPTIONAL, ())


def _as_literal(value: str, wanted: Any) -> str:
    """Words joined by commas as a tuple of strings: `--config.grid.templates=topic,topic_styles`."""
    if wanted != tuple[str, ...] or value.lstrip()[:1] in ("(", "[", "'", '"'):
        return value
    return repr(tuple(filter(None, map(str.strip, value.split(",")))))


def _check_known(twin: Any, field: str) -> None:
    """Refuses a dotted field that the configuration does not have; the error suggests the nearest known one."""
    from ml_collections.config_flags import config_path

    holder, passed = twin, ""
    try:
        steps = config_path.split(field)
    except ValueError:
        message = f"--config.{field}: is not a field name; write names joined by dots, such as train.steps"
        raise InputError(message) from None
    for step in steps:
        if dataclasses.is_dataclass(holder):
            known = [f.name for f in dataclasses.fields(holder)]
            if step not in known:
                owner = passed or "the configuration"
                raise InputError(f"--config.{field}: {owner} has no field {step!r}{nearest(step, known)}")
            holder = getattr(holder, step)
        elif isinstance(holder, list):
            if not isinstance(step, int) or not -len(holder) <= step < len(holder):
                raise InputError(f"--config.{field}: {passed} has items 0 to {len(holder) - 1}, not {step!r}")
            holder = holder[step]
        elif isinstance(holder, dict):
            holder = holder.setdefault(step, 0.0)
        else:
            what = "not set (None)" if holder is None else f"a {type(holder).__name__}"
            raise InputError(f"--config.{field}: {passed} is {what}, it has no field {step!r}")
        passed += f"[{step!r}]" if isinstance(holder, dict) or isinstance(step, int) else f".{step}" if passed else step


_ORIGINAL, _OPTIONAL = "_frozen_original", "_fields_that_may_be_none"


def _mutable_twin(value: Any) -> Any:
    """A mutable twin: dataclasses with the same fields and types, lists for tuples of dataclasses."""
    if dataclasses.is_dataclass(value):
        hints = typing.get_type_hints(type(value))
        values = {field.name: _mutable_twin(getattr(value, field.name)) for field in dataclasses.fields(value)}
        fields = [
            (name, type(inner) if dataclasses.is_dataclass(inner) or isinstance(inner, list) else hints[name])
            for name, inner in values.items()
        ]
        optional = frozenset(name for name, hint in hints.items() if type(None) in typing.get_args(hint))
        namespace = {_ORIGINAL: type(value), _OPTIONAL: optional}
        return dataclasses.make_dataclass(type(value).__name__, fields, namespace=namespace)(**values)
    if isinstance(value, tuple) and any(dataclasses.is_dataclass(item) for item in value):
        return [_mutable_twin(item) for item in value]
    return dict(value) if isinstance(value, dict | types.MappingProxyType) else value


def _from_twin(twin: Any) -> Any:
    if dataclasses.is_dataclass(twin):
        values = {field.name: _from_twin(getattr(twin, field.name)) for field in dataclasses.fields(twin)}
        return getattr(twin, _ORIGINAL)(**values)
    return tuple(map(_from_twin, twin)) if isinstance(twin, list) else twin


def check_least(config: Any, prefix: str, /, **bounds: float) -> None:
    """Checks that fields are finite and not below a bound; None is no value and passes.

    Args:
      prefix: of the fields' names in messages, such as `train.`.

    Raises:
      InputError: a field is below its bound, or not a finite number.
    """
    for name, bound in bounds.items():
        value = getattr(config, name)
        if value is not None and not bound <= value < math.inf:
            finite = "" if value != math.inf else "finite and "
            optional = ", or None" if getattr(type(config), name, bound) is None else ""
            raise InputError(f"{prefix}{name}={value}: must be {finite}at least {bound:g}{optional}")


def is_real_number(value: Any) -> bool:
    """Whether a value is a real number of Python or NumPy; booleans are none."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def plain_number(value: Any) -> Any:
    """A value as JSON has it where it is a number of NumPy, a fraction or a decimal; any other value as it is."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real | decimal.Decimal):
        return value
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def check_whole(config: Any, prefix: str, /) -> None:
    """Converts the fields of type `int` of a dataclass to it: 5e9 or a NumPy number too; None stays.

    Raises:
      InputError: one is not a whole number, or needs more than 64 bits.
    """
    for name, hint in typing.get_type_hints(type(config)).items():
        value = getattr(config, name, None)
        if value is None or hint not in (int, int | None):
            continue
        if not is_real_number(value) or value % 1 != 0 or not -(2**63) <= value < 2**63:
            raise InputError(f"{prefix}{name}={value!r}: must be a whole number of at most 64 bits")
        object.__setattr__(config, name, int(value))


def check_kinds(config: Any, prefix: str, /, *exact: str) -> None:
    """Converts the fields of a dataclass to plain values of their types, so that equal settings have equal keys:
    numbers of NumPy, fractions, decimals, whole numbers such as 5e9, paths as texts, lists as tuples.

    Args:
      exact: fields that are left as they are.

    Raises:
      InputError: a value is of another type, or a whole number needs more than 64 bits.
    """
    hints = typing.get_type_hints(type(config))
    for name in [field.name for field in dataclasses.fields(config) if field.name not in exact]:
        object.__setattr__(config, name, _plain(hints[name], getattr(config, name), f"{prefix}{name}"))


_KINDS: dict[Any, str] = {
    int: "a whole number of at most 64 bits",
    float: "a number",
    bool: "True or False",
    str: "a text",
}


def _plain(hint: Any, value: Any, where: str) -> Any:
    """A value as the plain one of its type; mappings and other types are not checked."""
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    parts = tuple(kind for kind in kinds if isinstance(kind, type) and dataclasses.is_dataclass(kind))
    names = dict(_KINDS) | {kind: f"of type {kind.__name__}" for kind in parts} | {type(None): "None"}
    names |= {kind: "a tuple or list" for kind in kinds if typing.get_origin(kind) is tuple}
    items = next((typing.get_args(kind) for kind in kinds if typing.get_origin(kind) is tuple), ())
    if not all(kind in names for kind in kinds) or isinstance(value, parts):
        return value
    if value is None and type(None) in kinds:
        return None
    number = plain_number(value) if is_real_number(value) or isinstance(value, decimal.Decimal) else None
    if items and isinstance(value, Sequence) and not isinstance(value, str | bytes):
        hints = items if len(items) == len(value) and items[-1] is not ... else items[:1] * len(value)
        return tuple(_plain(hints[at], item, f"{where}[{at}]") for at, item in enumerate(value))
    if float in kinds and number is not None:
        return number
    if int in kinds and number is not None and number % 1 == 0 and -(2**63) <= number < 2**63:
        return int(number)
    if bool in kinds and type(value).__name__ in ("bool", "bool_"):  # NumPy's too
        return bool(value)
    if str in kinds and isinstance(value, str | os.PathLike):
        return str(os.fspath(value))
    wanted = " or ".join(names[kind] for kind in kinds)
    raise InputError(f"{where}={repr(value)[:80]}: must be {wanted}")


def fields_for_keys(config: Any) -> dict[str, Any]:
    """The fields that make the key of finished work: all but those `ADDED` and at their default, so that a new field
    does not invalidate work of earlier versions.
    """
    named = [(getattr(config, field.name), field) for field in dataclasses.fields(config)]
    return {field.name: value for value, field in named if "added" not in field.metadata or value != default_of(field)}


def plain_for_keys(value: Any) -> Any:
    """A configuration as nested plain values, with `fields_for_keys` of every dataclass, and without passwords."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: plain_for_keys(item) for name, item in fields_for_keys(value).items()}
    if isinstance(value, Mapping):
        return {name: plain_for_keys(item) for name, item in value.items()}
    if isinstance(value, str):
        return without_secrets(value)
    return type(value)(map(plain_for_keys, value)) if isinstance(value, list | tuple) else plain_number(value)

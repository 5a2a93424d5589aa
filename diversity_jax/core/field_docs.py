"""The fields of configurations for `--help`, completion and the reference: name, type, default and documentation.

The documentation of a field is written once, at its dataclass: under `Attributes:` in the docstring, or as a comment
before or behind the field.
"""

import ast
from collections.abc import Iterable, Iterator, Mapping
import dataclasses
from dataclasses import dataclass
import difflib
import functools
import inspect
import io
import re
import shutil
import textwrap
import tokenize
import types
import typing
from typing import Any

from diversity_jax.core.errors import InputError

_TYPES = {str: "text", int: "int", float: "float", bool: "true or false", type(None): "none"}
_ATTRIBUTE = re.compile(r"(\w+(?:, \w+)*): (.*)")
_MOST_COLUMNS = 110  # of `--help`


@dataclass(frozen=True, kw_only=True)
class FieldDoc:
    """One field.

    Attributes:
      name: with dots, as on the command line; an item of a tuple of parts is `[0]`.
      type: in a few words.
      default: the value, or `dataclasses.MISSING`.
      text: its documentation, one paragraph.
      part: whether it is a part with fields of its own, which follow.
    """

    name: str
    type: str
    default: Any
    text: str
    part: bool = False

    @property
    def default_text(self) -> str:
        """The default as it is written on a command line."""
        if self.default is dataclasses.MISSING:
            return "must be given"
        return "" if self.part else "none" if self.default is None else shown(self.default)


def shown(value: Any) -> str:
    """A value as it is written on a command line."""
    if isinstance(value, bool | int | float):
        return str(value)
    if isinstance(value, str):
        return value or '""'
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {shown(item)}" for name, item in value.items()) or "empty"
    return ",".join(shown(item) for item in value) or "empty" if isinstance(value, tuple | list) else str(value)


def fields_of(kind: type, config: Any = None, prefix: str = "") -> Iterator[FieldDoc]:
    """All fields of a configuration, those of its parts after each part.

    Args:
      config: its values are the defaults; None: those of the dataclass.
      prefix: of all names.
    """
    hints, texts = typing.get_type_hints(kind), texts_of(kind)
    for field in dataclasses.fields(kind):
        value = getattr(config, field.name) if config is not None else default_of(field)
        part, is_many = part_of(hints[field.name])
        name = prefix + field.name
        text = texts.get(field.name) or (summary(part) if part else "")
        yield FieldDoc(name=name, type=type_text(hints[field.name]), default=value, text=text, part=part is not None)
        if part is None:
            continue
        if is_many and isinstance(value, tuple) and value:
            for number, item in enumerate(value):
                yield from fields_of(type(item), item, f"{name}[{number}].")
        elif is_many:
            yield from fields_of(part, None, f"{name}[0].")
        else:
            inner = value if dataclasses.is_dataclass(value) else None
            yield from fields_of(part if inner is None else type(inner), inner, f"{name}.")


def default_of(field: "dataclasses.Field[Any]") -> Any:
    """The default of a dataclass's field; `dataclasses.MISSING` where it has none."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def part_of(hint: Any) -> tuple[type | None, bool]:
    """The dataclass in a field's type, and whether the field holds a tuple of them; None where it holds none."""
    arguments = [each for each in typing.get_args(hint) if each not in (type(None), Ellipsis)]
    if dataclasses.is_dataclass(hint):
        return typing.cast(type, hint), False
    if typing.get_origin(hint) is tuple and arguments and dataclasses.is_dataclass(arguments[0]):
        return typing.cast(type, arguments[0]), True
    if typing.get_origin(hint) in (types.UnionType, typing.Union) and len(arguments) == 1:
        return part_of(arguments[0])
    return None, False


def type_text(hint: Any) -> str:
    """A type in a few words, without names of classes."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(type_text(each) for each in arguments)
    if dataclasses.is_dataclass(hint):
        return "part"
    if origin is tuple and arguments[-1:] == (Ellipsis,):
        return "parts" if dataclasses.is_dataclass(arguments[0]) else f"{type_text(arguments[0])}, ..."
    if origin is tuple:
        return ", ".join(type_text(each) for each in arguments)
    if origin in (dict, Mapping) or getattr(origin, "__name__", "") == "Mapping":
        return f"{type_text(arguments[0])}: {type_text(arguments[1])}, ..."
    return _TYPES.get(hint, "value")


def summary(kind: type) -> str:
    """The first paragraph of a dataclass's docstring, in one line."""
    paragraph = inspect.cleandoc(kind.__doc__ or "").partition("\n\n")[0]
    return " ".join(paragraph.split())


@functools.cache
def texts_of(kind: type) -> dict[str, str]:
    """The documentation of each field of a dataclass, inherited ones included."""
    texts: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        if dataclasses.is_dataclass(each):
            texts |= {name: of_field[-1] for name, of_field in all_texts(typing.cast(type, each)).items()}
    return texts


@functools.cache
def all_texts(kind: type) -> dict[str, list[str]]:
    """All texts that document a field in the source of the class itself: one each, unless it is documented twice."""
    source, classes = _module_classes(inspect.getfile(kind))
    node = classes[kind.__qualname__]
    texts: dict[str, list[str]] = {}
    for name, text in _attributes(ast.get_docstring(node) or ""):
        texts.setdefault(name, []).append(text)
    fields = [each for each in node.body if isinstance(each, ast.AnnAssign)]
    begin = node.body[0].end_lineno or 0 if ast.get_docstring(node) else node.lineno  # a docstring holds no comments
    comments = _comments(source, begin, fields[-1].end_lineno or 0) if fields else {}
    for statement in fields:
        if isinstance(statement.target, ast.Name):
            before, line = list[str](), statement.lineno - 1
            while line in comments and comments[line][1]:
                before.insert(0, comments[line][0])
                line -= 1
            behind = comments.get(statement.end_lineno or 0, ("", False))
            text = " ".join([*before, behind[0]]).strip()
            if text:
                texts.setdefault(statement.target.id, []).append(_sentence(text))
    return texts


@functools.cache
def _module_classes(path: str) -> tuple[str, dict[str, ast.ClassDef]]:
    """The source of a module, and its classes by name."""
    with open(path, encoding="utf-8") as file:
        source = file.read()
    return source, {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}


def _comments(source: str, begin: int, end: int) -> dict[int, tuple[str, bool]]:
    """Comments behind line `begin` up to line `end`, by line, and whether the line holds nothing else."""
    body = "\n".join(source.splitlines()[begin:end])
    if "#" not in body:
        return {}
    return {
        token.start[0] + begin: (token.string.lstrip("# "), not token.line[: token.start[1]].strip())
        for token in tokenize.generate_tokens(io.StringIO(textwrap.dedent(body) + "\n").readline)
        if token.type == tokenize.COMMENT
    }


def _attributes(docstring: str) -> Iterator[tuple[str, str]]:
    """Names and texts below `Attributes:`; a text with several names is yielded for each."""
    _, marker, section = docstring.partition("Attributes:\n")
    names, words = "", list[str]()
    for line in [*section.splitlines(), "  end: "] if marker else []:
        attribute = _ATTRIBUTE.match(line[2:]) if line.startswith("  ") and line[2:3] != " " else None
        if attribute or (line and not line.startswith("  ")):
            yield from ((name, _sentence(" ".join(words))) for name in names.split(", ") if names)
            names, words = (attribute[1], [attribute[2]]) if attribute else ("", [])
        else:
            words.append(line.strip())


def _sentence(text: str) -> str:
    text = " ".join(text.replace("``", "`").split())
    return text[:1].upper() + text[1:] if text[:1].islower() and not text.startswith("`") else text


def fields_text(fields: Iterable[FieldDoc], part: str, prefix: str, letters: Mapping[str, str]) -> str:
    """Fields as indented paragraphs.

    Args:
      part: a part, such as `agent.`, or a field; empty: all.
      prefix: of the options, `--` or `--config.`.
      letters: of fields that have a short option.

    Raises:
      InputError: there is no such part or field.
    """
    fields = list(fields)
    wanted = part.lstrip("-").removeprefix("config.").replace("-", "_")
    chosen = [field for field in fields if _is_in(field.name, wanted)]
    if not chosen:
        close = difflib.get_close_matches(wanted.rstrip("."), [field.name for field in fields], 1, 0.5)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise InputError(f"--help {part}: there is no such field or part{hint}")
    width = min(shutil.get_terminal_size((_MOST_COLUMNS, 24)).columns, _MOST_COLUMNS)
    return "\n".join(_paragraph(field, prefix, letters.get(field.name), width) for field in chosen)


def _is_in(name: str, wanted: str) -> bool:
    plain = re.sub(r"\[\d+\]", "", name)
    stem = wanted.rstrip(".")
    return not wanted or any(each == stem or each.startswith(f"{stem}.") for each in (name, plain))


def _paragraph(field: FieldDoc, prefix: str, letter: str | None, width: int) -> str:
    shown = field.name.replace("_", "-") if prefix == "--" else field.name
    head = f"  -{letter}, {prefix}{shown}" if letter else f"  {prefix}{shown}"
    default = field.default_text
    about = f"{field.type}, {default}" if default else field.type
    head += "." if field.part else f"  ({about if len(about) <= 70 else about[:67] + '...'})"
    body = textwrap.wrap(field.text, width, initial_indent="      ", subsequent_indent="      ")
    return "\n".join([head, *body])

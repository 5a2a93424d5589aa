"""Configurations field by field, for `--help` and the reference: name, type, default and what the source says of it.

What a field means is written once, where its dataclass is: under `Attributes:` in the docstring, or as a comment before
the field or behind it.
"""

import ast
from collections.abc import Iterator, Mapping
import dataclasses
from dataclasses import dataclass
import functools
import inspect
import io
import re
import textwrap
import tokenize
import types
import typing
from typing import Any

_TYPES = {str: "text", int: "int", float: "float", bool: "true or false", type(None): "none"}
_ENTRY = re.compile(r"(\w+(?:, \w+)*): (.*)")
REQUIRED = object()
"""The default of a field that has none."""


@dataclass(frozen=True, kw_only=True)
class FieldDoc:
    """One field.

    Attributes:
      name: with dots, as on the command line; an item of a tuple of parts is `[0]`.
      type: in a few words.
      default: the value, or `REQUIRED`.
      text: what it means, one paragraph.
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
        if self.default is REQUIRED:
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
      config: whose values are shown as defaults; None: those of the dataclass.
      prefix: of all names.
    """
    hints, texts = typing.get_type_hints(kind), texts_of(kind)
    for field in dataclasses.fields(kind):
        value = getattr(config, field.name) if config is not None else _default(field)
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


def _default(field: "dataclasses.Field[Any]") -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return REQUIRED if field.default is dataclasses.MISSING else field.default


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
    """What the source says of each field of a dataclass, those that it inherits too."""
    texts: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        if dataclasses.is_dataclass(each):
            texts |= {name: of_field[-1] for name, of_field in all_texts(typing.cast(type, each)).items()}
    return texts


@functools.cache
def all_texts(kind: type) -> dict[str, list[str]]:
    """Every text about a field that stands in the class itself: one, where it is documented once."""
    source, node = _class_source(kind)
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


def _class_source(kind: type) -> tuple[str, ast.ClassDef]:
    source, nodes = _module_classes(inspect.getfile(kind))
    return source, nodes[kind.__qualname__]


@functools.cache
def _module_classes(path: str) -> tuple[str, dict[str, ast.ClassDef]]:
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
    """Names and texts below `Attributes:`; an entry of several names is the text of each."""
    _, marker, section = docstring.partition("Attributes:\n")
    names, words = "", list[str]()
    for line in [*section.splitlines(), "  end: "] if marker else []:
        entry = _ENTRY.match(line[2:]) if line.startswith("  ") and line[2:3] != " " else None
        if entry or (line and not line.startswith("  ")):
            yield from ((name, _sentence(" ".join(words))) for name in names.split(", ") if names)
            names, words = (entry[1], [entry[2]]) if entry else ("", [])
        else:
            words.append(line.strip())


def _sentence(text: str) -> str:
    text = " ".join(text.replace("``", "`").split())
    return text[:1].upper() + text[1:] if text[:1].islower() and not text.startswith("`") else text

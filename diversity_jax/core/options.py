"""The command line of `diversity-jax COMMAND`: positional arguments, short options, fields of a configuration, and
`--help`.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import difflib
import functools
import os
from pathlib import Path
import re
import shutil
import textwrap
from typing import Any

from diversity_jax.core.commands import COMMANDS, Command, ready_made
from diversity_jax.core.errors import InputError
from diversity_jax.core.field_docs import FieldDoc, fields_of

_BOOLEANS = ("true", "false", "1", "0")
_CONFIG_FILE = re.compile(r"\.py(:.*)?$", re.DOTALL)


class Options:
    """What one command line says.

    Attributes:
      fields: (name, value) of each field, in order.
      config: the configuration file; None where none is named.
      others: arguments that the command reads itself.
      help: what help is asked for: a part's or field's name, empty for all; None: it is not.
    """

    def __init__(self, command: Command, argv: Sequence[str]):
        self.fields: list[tuple[str, str]] = []
        self.config: str | None = None
        self.others: list[str] = []
        self.help: str | None = None
        self._command, self._positional = command, list[str]()
        self._rest = list(argv)
        self._names = [field.name for field in dataclasses.fields(command.config_type())]
        self._hands_on = any(word.partition("=")[0] == f"--{command.others}" for word in argv if command.others)
        while self._rest:
            self._take(self._rest.pop(0))
        self._place()

    @functools.cached_property
    def _booleans(self) -> set[str]:
        fields = fields_of(self._command.config_type())
        return {_pattern(field.name) for field in fields if field.type == "true or false"}

    @property
    def canonical(self) -> list[str]:
        """The same as `python -m` takes it."""
        words = ["--help", *([self.help] if self.help else [])] if self.help is not None else []
        words += ["--config", self.config] if self.config is not None else []
        return [*words, *(f"--config.{name}={value}" for name, value in self.fields), *self.others]

    def _take(self, word: str) -> None:
        name, equals, value = word.partition("=")
        if word == "--":
            self._positional += self._rest
            self._rest = []
        elif word in ("-h", "--help"):
            self.help = self._rest.pop(0) if self._rest and not self._rest[0].startswith("-") else ""
        elif name == "--config":
            self.config = value if equals else self._value(word)
        elif name.startswith("--config."):
            self._set(name[9:], value if equals else None, word)
        elif name.startswith("--"):
            self._long(name[2:], value if equals else None, word)
        elif word.startswith("-") and len(word) > 1 and not word[1].isdigit() and not word.startswith("-:"):
            self._short(word)
        else:
            self._positional.append(word)

    def _short(self, word: str) -> None:
        field = self._command.short.get(word[1])
        if field is None:
            known = ", ".join(f"-{letter} (--{name})" for letter, name in self._command.short.items())
            raise InputError(f"{word}: is no option; the short ones are {known or 'none'}")
        rest = word[2:].removeprefix("=")
        self._set(field, rest or None, word[:2])

    def _long(self, name: str, value: str | None, word: str) -> None:
        name = name.replace("-", "_")
        own = self._command.own.get(name)
        if own is not None:
            self.others.append(word)
            if own and value is None:
                self.others.append(self._value(word))
        elif re.split(r"[.\[]", name)[0] in self._names:
            self._set(name, value, word)
        elif name.startswith("no_") and value is None and _pattern(name[3:]) in self._booleans:
            self.fields.append((name[3:], "False"))
        elif self._hands_on:
            self.others.append(word)
            if value is None and self._rest and not self._rest[0].startswith("-"):
                self.others.append(self._rest.pop(0))
        else:
            raise InputError(f"{word.partition('=')[0]}: there is no such option{self._nearest(name)}")

    def _nearest(self, name: str) -> str:
        """A field of that name inside a part, or else one that is spelt like it."""
        leaves = [field.name for field in fields_of(self._command.config_type()) if "[" not in field.name]
        same = [leaf for leaf in leaves if leaf.rpartition(".")[2] == name]
        known = [*leaves, *self._command.own]
        alike = difflib.get_close_matches(name, [leaf.rpartition(".")[2] for leaf in leaves], 1, 0.8)
        close = (
            same[:3]
            or difflib.get_close_matches(name, known, 1, 0.8)
            or [leaf for leaf in leaves if leaf.rpartition(".")[2] in alike][:2]
            or difflib.get_close_matches(name, known, 1, 0.6)
        )
        listed = " or ".join(written(field) for field in close)
        return f"; did you mean {listed}?" if close else "; --help lists all"

    def _set(self, name: str, value: str | None, word: str) -> None:
        name = name.replace("-", "_")
        if value is None and _pattern(name) in self._booleans:
            is_value = bool(self._rest) and self._rest[0].lower() in _BOOLEANS
            value = self._rest.pop(0) if is_value else "True"
        self.fields.append((name, self._value(word) if value is None else value))

    def _value(self, word: str) -> str:
        if not self._rest or (self._rest[0].startswith("--") and len(self._rest[0]) > 2):
            raise InputError(f"{word}: a value is missing; write {word} VALUE")
        return self._rest.pop(0)

    def _place(self) -> None:
        """Gives positional arguments their meaning: a configuration file first, then fields in their order."""
        words, command = self._positional, self._command
        if words and self.config is None and (path := config_named(words[0])):
            self.config = path
            words = words[1:]
        if words and self.config is None and command.ready_for_data:
            self.config = f"{command.ready_for_data}:{words[0]}"
            words = words[1:]
        places = list(command.positional)
        while words and places:
            position = places.pop(0)
            taken, words = (words, []) if position.endswith("*") else (words[:1], words[1:])
            if len(taken) > 1 and any("," in word for word in taken):
                raise InputError(
                    f"{next(word for word in taken if ',' in word)}: has a comma, which divides sources here"
                )
            self.fields.insert(0, (position.rstrip("*"), ",".join(taken)))
        if words:
            takes = "a configuration file" if not command.positional else ", ".join(map(metavar, command.positional))
            raise InputError(f"{words[0]}: is one argument too many; this command takes {takes}")
        if self.config is None:
            self.config = command.ready or None


def _pattern(name: str) -> str:
    """A field's name without the numbers of items."""
    return re.sub(r"\[[^\[\]]*\]", "[]", name)


def config_named(word: str) -> str | None:
    """The configuration file that a positional argument names: its path, or the bare name of a ready-made one."""
    if _CONFIG_FILE.search(word) and not os.path.isdir(word):
        return word
    if re.fullmatch(r"[a-z_0-9]+(/[a-z_0-9]+)?", word) and not os.path.exists(word):
        path = f"configs/{word}.py"
        return path if os.path.exists(ready_made(path)) else None
    return None


def ready_configs() -> Iterable[str]:
    """Names of the ready-made configuration files, such as `quickstart` and `studies/tiny`."""
    folder = Path(ready_made("configs/score.py")).parent
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.py") if path.stem[0] != "_")


def written(name: str) -> str:
    """A field as an option: `--agent.samples-per-grouping`."""
    return f"--{name.replace('_', '-')}"


def metavar(argument: str) -> str:
    """A positional argument in a usage line."""
    name = argument.rstrip("*").split(".")[0 if argument.endswith("source") else -1].upper()
    return f"{name} [{name} ...]" if argument.endswith("*") else name


_WIDEST = 110


def overview() -> str:
    """The list of commands."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: diversity-jax COMMAND [ARGUMENTS] [--FIELD VALUE ...] [--config FILE]",
            "",
            *lines,
            f"  {'completion':<{width}}  completion of commands, fields and values for bash, zsh or fish",
            "",
            "diversity-jax COMMAND --help lists all fields of a command, --help PART. those of a part.",
            "Without a file a command takes a ready-made configuration; a path or name of one comes first.",
        ]
    )


def command_help(name: str, command: Command, usage: str, config: Any, part: str) -> str:
    """Help of a command in the form of `diversity-jax`."""
    letters = {field: letter for letter, field in command.short.items()}
    kind = command.config_type()
    fields = fields_text(fields_of(kind, config), part, "--", letters)
    if part:
        return fields
    takes = " ".join(f"[{metavar(argument)}]" for argument in command.positional) or (
        "[TEXT | CONFIG]" if command.ready_for_data else "CONFIG"
    )
    own = "".join(f" [--{option.replace('_', '-')}]" for option in command.own)
    begin = f"usage: diversity-jax {name} {takes}{own} [--FIELD VALUE ...] [--config FILE]"
    ready = f", defaults of {command.ready}" if command.ready and config is not None else ""
    return f"{begin}\n\n{as_command(usage.strip())}\n\nFields{ready} (--help PART. shows those of a part):\n\n{fields}"


def module_help(usage: str, kind: type, config: Any, part: str) -> str:
    """Help of a command in the form of `python -m`."""
    fields = fields_text(fields_of(kind, config), part, "--config.", {})
    return fields if part else f"{usage.strip()}\n\nFields (--help PART. shows those of a part):\n\n{fields}"


def as_command(text: str) -> str:
    """A text with commands as `diversity-jax` writes them."""
    for name, command in COMMANDS.items():
        module = rf"python -m diversity_jax\.{re.escape(command.module)}(?![\w.])"
        if command.ready:
            text = re.sub(rf"{module} --config {re.escape(command.ready)}(?= )", f"diversity-jax {name}", text)
        text = re.sub(module, f"diversity-jax {name}", text)
    return re.sub(r"--config\.(?=[a-z])", "--", text)


def fields_text(fields: Any, part: str, prefix: str, letters: Mapping[str, str]) -> str:
    """Fields as indented paragraphs.

    Args:
      part: the beginning of names: `agent.`, or one field; empty: all.

    Raises:
      InputError: no field's name begins so.
    """
    everything: list[FieldDoc] = list(fields)
    wanted = part.lstrip("-").removeprefix("config.").replace("-", "_")
    chosen = [field for field in everything if _is_in(field.name, wanted)]
    if not chosen:
        close = difflib.get_close_matches(wanted.rstrip("."), [field.name for field in everything], 1, 0.5)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise InputError(f"--help {part}: there is no such field or part{hint}")
    width = min(shutil.get_terminal_size((_WIDEST, 24)).columns, _WIDEST)
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
    head += f"  ({shortened_default(about)})" if not field.part else "."
    body = textwrap.wrap(field.text, width, initial_indent="      ", subsequent_indent="      ")
    return "\n".join([head, *body])


def shortened_default(text: str) -> str:
    return text if len(text) <= 70 else text[:67] + "..."


def split_help(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """The part that help is asked for (empty: all; None: no help is asked for), and the other arguments."""
    for at, word in enumerate(argv):
        if word in ("-h", "--help"):
            following = argv[at + 1] if at + 1 < len(argv) and not argv[at + 1].startswith("-") else None
            return following or "", [*argv[:at], *argv[at + (1 if following is None else 2) :]]
    return None, list(argv)

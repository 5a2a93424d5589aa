"""The command line of `diversity-jax COMMAND`: positional arguments, short options, fields, `--help`, completion.

For completion, `diversity-jax completion SHELL` prints a script that runs `diversity-jax --complete WORDS`.
"""

from collections.abc import Sequence
import dataclasses
import difflib
import functools
import importlib
import os
from pathlib import Path
import re
import sys
from typing import Any

from diversity_jax.core.commands import COMMANDS, Command, packaged_path
from diversity_jax.core.errors import InputError
from diversity_jax.core.field_docs import fields_of, fields_text

_BOOLEANS = ("true", "false", "1", "0")
_CONFIG_FILE = re.compile(r"\.py(:.*)?$", re.DOTALL)


class Options:
    """One parsed command line.

    Attributes:
      fields: (name, value) of each field, in order.
      config: the configuration file; None where none is named.
      others: arguments that the command parses itself.
      help: the part or field that help is asked for, empty for all; None where no help is asked for.
    """

    def __init__(self, command: Command, argv: Sequence[str]):
        self.fields: list[tuple[str, str]] = []
        self.config: str | None = None
        self.others: list[str] = []
        self.help: str | None = None
        self._command, self._positional = command, list[str]()
        self._rest = list(argv)
        self._names = [field.name for field in dataclasses.fields(command.config_type())]
        named = {word.partition("=")[0] for word in argv}
        self._passes_on = bool(command.pass_through) and f"--{command.pass_through}" in named
        while self._rest:
            self._parse_word(self._rest.pop(0))
        self._assign_positional()

    @functools.cached_property
    def _booleans(self) -> set[str]:
        fields = fields_of(self._command.config_type())
        return {_pattern(field.name) for field in fields if field.type == "true or false"}

    @property
    def canonical(self) -> list[str]:
        """The arguments in the form of `python -m`."""
        words = ["--help", *([self.help] if self.help else [])] if self.help is not None else []
        words += ["--config", self.config] if self.config is not None else []
        return [*words, *(f"--config.{name}={value}" for name, value in self.fields), *self.others]

    def _parse_word(self, word: str) -> None:
        name, equals, value = word.partition("=")
        if word == "--":
            self._positional += self._rest
            self._rest = []
        elif word in ("-h", "--help"):
            self.help = self._rest.pop(0) if self._rest and not self._rest[0].startswith("-") else ""
        elif name == "--config":
            self.config = value if equals else self._next_value(word)
        elif name.startswith("--config."):
            self._set_field(name[9:], value if equals else None, word)
        elif name.startswith("--"):
            self._parse_long(name[2:], value if equals else None, word)
        elif word.startswith("-") and len(word) > 1 and not word[1].isdigit() and not word.startswith("-:"):
            self._parse_short(word)
        else:
            self._positional.append(word)

    def _parse_short(self, word: str) -> None:
        field = self._command.short.get(word[1])
        if field is None:
            known = ", ".join(f"-{letter} (--{name})" for letter, name in self._command.short.items())
            raise InputError(f"{word}: is no option; the short ones are {known or 'none'}")
        rest = word[2:].removeprefix("=")
        self._set_field(field, rest or None, word[:2])

    def _parse_long(self, name: str, value: str | None, word: str) -> None:
        name = name.replace("-", "_")
        own = self._command.own_options.get(name)
        if own is not None:
            self.others.append(word)
            if own and value is None:
                self.others.append(self._next_value(word))
        elif re.split(r"[.\[]", name)[0] in self._names:
            self._set_field(name, value, word)
        elif name.startswith("no_") and value is None and _pattern(name[3:]) in self._booleans:
            self.fields.append((name[3:], "False"))
        elif self._passes_on:
            self.others.append(word)
            if value is None and self._rest and not self._rest[0].startswith("-"):
                self.others.append(self._rest.pop(0))
        else:
            raise InputError(f"{word.partition('=')[0]}: there is no such option{self._nearest(name)}")

    def _nearest(self, name: str) -> str:
        """The end of a message: fields of that name inside a part, or else fields spelt like it."""
        leaves = [field.name for field in fields_of(self._command.config_type()) if "[" not in field.name]
        same = [leaf for leaf in leaves if leaf.rpartition(".")[2] == name]
        known = [*leaves, *self._command.own_options]
        alike = difflib.get_close_matches(name, [leaf.rpartition(".")[2] for leaf in leaves], 1, 0.8)
        close = (
            same[:3]
            or difflib.get_close_matches(name, known, 1, 0.8)
            or [leaf for leaf in leaves if leaf.rpartition(".")[2] in alike][:2]
            or difflib.get_close_matches(name, known, 1, 0.6)
        )
        listed = " or ".join(as_option(field) for field in close)
        return f"; did you mean {listed}?" if close else "; --help lists all"

    def _set_field(self, name: str, value: str | None, word: str) -> None:
        name = name.replace("-", "_")
        if value is None and _pattern(name) in self._booleans:
            is_value = bool(self._rest) and self._rest[0].lower() in _BOOLEANS
            value = self._rest.pop(0) if is_value else "True"
        self.fields.append((name, self._next_value(word) if value is None else value))

    def _next_value(self, word: str) -> str:
        if not self._rest or (self._rest[0].startswith("--") and len(self._rest[0]) > 2):
            raise InputError(f"{word}: a value is missing; write {word} VALUE")
        return self._rest.pop(0)

    def _assign_positional(self) -> None:
        """Assigns positional arguments: a configuration file first, then fields in their order."""
        words, command = self._positional, self._command
        if words and self.config is None and (path := config_named(words[0])):
            self.config = path
            words = words[1:]
        if words and self.config is None and command.default_config_for_text:
            self.config = f"{command.default_config_for_text}:{words[0]}"
            words = words[1:]
        fields = list(command.positional)
        while words and fields:
            field = fields.pop(0)
            taken, words = (words, []) if field.endswith("*") else (words[:1], words[1:])
            if len(taken) > 1 and (divided := [word for word in taken if "," in _BRACES.sub("", word)]):
                raise InputError(f"{divided[0]}: has a comma, which divides sources here")
            self.fields.insert(0, (field.rstrip("*"), ",".join(taken)))
        if words:
            takes = "a configuration file" if not command.positional else ", ".join(map(metavar, command.positional))
            raise InputError(f"{words[0]}: is one argument too many; this command takes {takes}")
        if self.config is None:
            self.config = command.default_config or None


_BRACES = re.compile(r"\{[^{}]*\}")  # of a pattern; their commas divide no sources


def _pattern(name: str) -> str:
    """A field's name without the numbers of items."""
    return re.sub(r"\[[^\[\]]*\]", "[]", name)


def config_named(word: str) -> str | None:
    """The configuration file that a positional argument names: its path, or the bare name of a packaged one."""
    if _CONFIG_FILE.search(word) and not os.path.isdir(word):
        return word
    if re.fullmatch(r"[a-z_0-9]+(/[a-z_0-9]+)?", word) and not os.path.exists(word):
        path = f"configs/{word}.py"
        return path if os.path.exists(packaged_path(path)) else None
    return None


def packaged_configs() -> list[str]:
    """Names of the packaged configuration files, such as `quickstart` and `studies/tiny`."""
    folder = Path(packaged_path("configs/score.py")).parent
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.py") if path.stem[0] != "_")


def as_option(name: str) -> str:
    """The option of a field: `--agent.samples-per-grouping`."""
    return f"--{name.replace('_', '-')}"


def metavar(argument: str) -> str:
    """A positional argument in a usage line."""
    name = argument.rstrip("*").split(".")[0 if argument.endswith("source") else -1].upper()
    return f"{name} [{name} ...]" if argument.endswith("*") else name


def overview() -> str:
    """The text of `diversity-jax --help`: all commands."""
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
        "[TEXT | CONFIG]" if command.default_config_for_text else "CONFIG"
    )
    own = "".join(f" [--{option.replace('_', '-')}]" for option in command.own_options)
    begin = f"usage: diversity-jax {name} {takes}{own} [--FIELD VALUE ...] [--config FILE]"
    ready = f", defaults of {command.default_config}" if command.default_config and config is not None else ""
    return f"{begin}\n\n{as_command(usage.strip())}\n\nFields{ready} (--help PART. shows those of a part):\n\n{fields}"


def module_help(usage: str, kind: type, config: Any, part: str) -> str:
    """Help of a command in the form of `python -m`."""
    fields = fields_text(fields_of(kind, config), part, "--config.", {})
    return fields if part else f"{usage.strip()}\n\nFields (--help PART. shows those of a part):\n\n{fields}"


def as_command(text: str) -> str:
    """A text in which `python -m` command lines are replaced by those of `diversity-jax`."""
    for name, command in COMMANDS.items():
        module = rf"python -m diversity_jax\.{re.escape(command.module)}(?![\w.])"
        if command.default_config:
            text = re.sub(rf"{module} --config {re.escape(command.default_config)}(?= )", f"diversity-jax {name}", text)
        text = re.sub(module, f"diversity-jax {name}", text)
    return re.sub(r"--config\.(?=[a-z])", "--", text)


def split_help(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """The part or field that help is asked for (empty: all; None: no help), and the other arguments."""
    for at, word in enumerate(argv):
        if word in ("-h", "--help"):
            following = argv[at + 1] if at + 1 < len(argv) and not argv[at + 1].startswith("-") else None
            return following or "", [*argv[:at], *argv[at + (1 if following is None else 2) :]]
    return None, list(argv)


_COMPLETION_SCRIPTS = {
    "bash": """_diversity_jax() {
  local IFS=$'\\n' word="${COMP_WORDS[COMP_CWORD]}"
  [ "$word" = "=" ] && word=""
  COMPREPLY=($(compgen -W "$(diversity-jax --complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)" -- "$word"))
  [[ "${COMPREPLY[0]}" == *. ]] && compopt -o nospace
  type __ltrim_colon_completions &>/dev/null && __ltrim_colon_completions "$word"
}
complete -o default -o bashdefault -F _diversity_jax diversity-jax
""",
    "zsh": """#compdef diversity-jax
_diversity_jax() {
  local -a found
  found=("${(@f)$(diversity-jax --complete "${(@)words[2,CURRENT]}" 2>/dev/null)}")
  if [[ -n "${found[1]}" ]]; then
    compadd -- ${found:#*[.:]}
    compadd -S '' -- ${(M)found:#*[.:]}
  else
    _files
  fi
}
compdef _diversity_jax diversity-jax
""",
    "fish": """function __diversity_jax
  set -l words (commandline -opc) (commandline -ct)
  set -l found (diversity-jax --complete $words[2..-1] 2>/dev/null | string match -v '')
  if set -q found[1]
    string join \\n -- $found
  else
    __fish_complete_path (commandline -ct)
  end
end
complete -c diversity-jax -f -a '(__diversity_jax)'
""",
}
_COMPLETION_FILES = {
    "bash": "~/.bashrc",
    "zsh": "~/.zshrc, after compinit",
    "fish": "~/.config/fish/completions/diversity-jax.fish",
}


def complete(name: str, argv: Sequence[str]) -> None:
    """The commands `completion SHELL`, which prints a script, and `--complete WORDS`, which the script runs."""
    if name == "--complete":
        print("\n".join(candidates(argv or [""])))
    elif len(argv) == 1 and argv[0] in _COMPLETION_SCRIPTS:
        print(_COMPLETION_SCRIPTS[argv[0]], end="")
    else:
        print("usage: diversity-jax completion bash|zsh|fish; put its output where the shell reads it:")
        for shell, where in _COMPLETION_FILES.items():
            print(f"  {shell:<5}{where}")
        sys.exit(0 if not argv or argv[0] in ("-h", "--help") else 2)


def candidates(words: Sequence[str]) -> list[str]:
    """Completions of the last word; the words are those after `diversity-jax`."""
    *before, word = words
    if not before:
        return [name for name in [*COMMANDS, "completion"] if name.startswith(word)]
    command = COMMANDS.get(before[0])
    if command is None or not command.config:
        shells = list(_COMPLETION_SCRIPTS) if before == ["completion"] else []
        return [shell for shell in shells if shell.startswith(word)]
    if word == "=" or before[-1] == "=":  # bash takes `--judge=off` for three words
        before, word = (before, "") if word == "=" else (before[:-1], word)
    option = before[-1]
    if word.startswith("--") and "=" in word:
        option, _, start = word.partition("=")
        return [f"{option}={value}" for value in _known_values(command, option) if value.startswith(start)]
    if option in ("-h", "--help"):
        parts = {field.name for field in fields_of(command.config_type()) if field.part}
        return sorted(f"{part}." for part in parts if part.startswith(word))
    if word.startswith("-"):
        return _matching_options(command, word)
    if option.startswith("-") and (values := _known_values(command, option)):
        return [value for value in values if value.startswith(word)]
    if len(before) == 1 or option == "--config":
        return [name for name in packaged_configs() if name.startswith(word)] if not command.positional else []
    return []


def _matching_options(command: Command, word: str) -> list[str]:
    """Options that begin with the word; a part ends in a dot until that is typed."""
    typed = word[2:].replace("-", "_").rpartition(".")[0]
    flags = [option for option in ("--config", "--help", *(f"--{name}" for name in command.own_options)) if not typed]
    fields = [field for field in fields_of(command.config_type()) if field.name.rpartition(".")[0] == typed]
    flags += [as_option(field.name) + ("." if field.part else "") for field in fields]
    wanted = word.replace("_", "-")
    return [option for option in flags if option.startswith(wanted)]


def _registered(module: str) -> Any:
    """A module with a registry, imported by name since it is in a higher layer."""
    return importlib.import_module(f"diversity_jax.{module}")


def _known_values(command: Command, option: str) -> Sequence[str]:
    """Values of an option, where they are known."""
    name = option.lstrip("-").removeprefix("config.").replace("-", "_")
    name = command.short.get(name, name) if len(name) == 1 else name
    if name == "config":
        return list(packaged_configs())
    if name.rpartition(".")[2] == "judge":
        return _registered("cluster_agent.registry").known_judges()
    if name == "metrics":
        return ("all", *_registered("metrics.registry").GROUPS)
    field = next((field for field in fields_of(command.config_type()) if field.name == name), None)
    return ("true", "false") if field and field.type == "true or false" else ()

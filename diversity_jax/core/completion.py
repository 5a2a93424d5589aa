"""Completion in shells: `diversity-jax completion SHELL` prints a script that asks `diversity-jax --complete`."""

from collections.abc import Iterable, Sequence
import importlib
import sys
from typing import Any

from diversity_jax.core.commands import COMMANDS, Command
from diversity_jax.core.field_docs import FieldDoc, fields_of
from diversity_jax.core.options import ready_configs, written

_SCRIPTS = {
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
_WHERE = {
    "bash": "~/.bashrc",
    "zsh": "~/.zshrc, after compinit",
    "fish": "~/.config/fish/completions/diversity-jax.fish",
}


def main(name: str, argv: Sequence[str]) -> None:
    """`completion SHELL` prints a script; `--complete WORDS` what may stand in place of the last word."""
    if name == "--complete":
        print("\n".join(candidates(argv or [""])))
    elif len(argv) == 1 and argv[0] in _SCRIPTS:
        print(_SCRIPTS[argv[0]], end="")
    else:
        print("usage: diversity-jax completion bash|zsh|fish; put its output where the shell reads it:")
        for shell, where in _WHERE.items():
            print(f"  {shell:<5}{where}")
        sys.exit(0 if not argv or argv[0] in ("-h", "--help") else 2)


def candidates(words: Sequence[str]) -> list[str]:
    """What may stand in place of the last word; the words are those after `diversity-jax`."""
    *before, word = words
    if not before:
        return [name for name in [*COMMANDS, "completion"] if name.startswith(word)]
    command = COMMANDS.get(before[0])
    if command is None or not command.config:
        shells = list(_SCRIPTS) if before == ["completion"] else []
        return [shell for shell in shells if shell.startswith(word)]
    if word == "=" or before[-1] == "=":  # bash takes `--judge=off` for three words
        before, word = (before, "") if word == "=" else (before[:-1], word)
    option = before[-1]
    if word.startswith("--") and "=" in word:
        option, _, start = word.partition("=")
        return [f"{option}={value}" for value in _values(command, option) if value.startswith(start)]
    if option in ("-h", "--help"):
        return sorted(
            {f"{part}." for field in _fields(command) if field.part and (part := field.name).startswith(word)}
        )
    if word.startswith("-"):
        return _options(command, word)
    if option.startswith("-") and (values := _values(command, option)):
        return [value for value in values if value.startswith(word)]
    if len(before) == 1 or option == "--config":
        return [name for name in ready_configs() if name.startswith(word)] if not command.positional else []
    return []


def _fields(command: Command) -> Iterable[FieldDoc]:
    return fields_of(command.config_type())


def _options(command: Command, word: str) -> list[str]:
    """Options that begin so, parts with a dot behind them until it is typed."""
    typed = word[2:].replace("-", "_").rpartition(".")[0]
    flags = [option for option in ("--config", "--help", *(f"--{name}" for name in command.own)) if not typed]
    fields = [field for field in _fields(command) if field.name.rpartition(".")[0] == typed]
    flags += [written(field.name) + ("." if field.part else "") for field in fields]
    wanted = word.replace("_", "-")
    return [option for option in flags if option.startswith(wanted)]


def _registered(module: str) -> Any:
    """A module with a registry, found by name as configurations are: this package is below it."""
    return importlib.import_module(f"diversity_jax.{module}")


def _values(command: Command, option: str) -> Sequence[str]:
    """Values of an option, where they are known."""
    name = option.lstrip("-").removeprefix("config.").replace("-", "_")
    name = command.short.get(name, name) if len(name) == 1 else name
    if name == "config":
        return list(ready_configs())
    if name.rpartition(".")[2] == "judge":
        return _registered("cluster_agent.registry").known_judges()
    if name == "metrics":
        return ("all", *_registered("metrics.registry").GROUPS)
    field = next((field for field in _fields(command) if field.name == name), None)
    return ("true", "false") if field and field.type == "true or false" else ()

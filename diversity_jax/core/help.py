"""`--help` of a command: its description, and every field with type, default and meaning; or one part of them."""

from collections.abc import Mapping, Sequence
import difflib
import re
import shutil
import textwrap
from typing import Any

from diversity_jax.core.commands import COMMANDS, Command
from diversity_jax.core.errors import InputError
from diversity_jax.core.field_docs import FieldDoc, fields_of
from diversity_jax.core.options import metavar

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
    takes = " ".join(f"[{metavar(place)}]" for place in command.positional) or (
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

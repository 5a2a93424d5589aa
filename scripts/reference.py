"""Writes docs/reference: every field of every command, from the dataclasses themselves.

python scripts/reference.py            writes what has changed
python scripts/reference.py --check    says what would change, status 1 where anything would
"""

from collections.abc import Iterator
from pathlib import Path
import sys
import typing

from diversity_jax.core.commands import COMMANDS, Command
from diversity_jax.core.config import load_file
from diversity_jax.core.field_docs import FieldDoc, fields_of, part_of

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "reference"
_OWN_PAGE = {command.config: name for name, command in reversed(COMMANDS.items()) if command.config}


def pages() -> dict[Path, str]:
    """Every page by its path."""
    configured = {name: command for name, command in COMMANDS.items() if command.config}
    found = {FOLDER / f"{name}.md": page(name, command) for name, command in configured.items()}
    return {FOLDER / "README.md": index(), **found}


def index() -> str:
    """The list of commands."""
    lines = [
        "# Reference",
        "",
        "Commands and the fields of their configurations, written by `scripts/reference.py` from the source. Every",
        "field is an option of `diversity-jax COMMAND`, such as `--agent.groupings=300`, and of the module that is",
        "named beside it, such as `--config.agent.groupings=300` behind `--config FILE`. `--help` lists all fields of",
        "a command, `--help agent.` those of a part.",
        "",
        "| `diversity-jax` | does | `python -m` |",
        "|---|---|---|",
    ]
    for name, command in COMMANDS.items():
        shown = f"[{name}]({name}.md)" if command.config else name
        lines.append(f"| {shown} | {command.summary} | `diversity_jax.{command.module}` |")
    return "\n".join(lines) + "\n"


def page(name: str, command: Command) -> str:
    """The fields of one command: a table of its own, and one of each part."""
    kind = command.config_type()
    config = load_file(command.ready, kind) if command.ready else None
    lines = [f"# {name}", "", f"`diversity-jax {name}`: {command.summary}.", ""]
    if command.ready:
        lines += [f"Defaults are those of `{command.ready}`, which stands where no file is named.", ""]
    if command.short:
        short = ", ".join(f"`-{letter}` is `--{field}`" for letter, field in command.short.items())
        lines += [f"Short options: {short}.", ""]
    tables: dict[str, list[FieldDoc]] = {}
    skipped = tuple(f"{field.name}." for field in _elsewhere(kind, config))
    for field in fields_of(kind, config):
        if not field.name.startswith(skipped):
            tables.setdefault(field.name.rpartition(".")[0], []).append(field)
    for part, fields in tables.items():
        lines += [f"## `{part}.`", ""] if part else []
        lines += ["| field | type | default | |", "|---|---|---|---|", *map(_row, fields), ""]
    return "\n".join(lines).rstrip() + "\n"


def _elsewhere(kind: type, config: object) -> Iterator[FieldDoc]:
    """Parts that are another command's whole configuration, with a page of their own."""
    hints = typing.get_type_hints(kind)
    for field in fields_of(kind, config):
        owner, _, last = field.name.rpartition(".")
        holder = kind if not owner else part_of(hints[owner])[0] if owner in hints else None
        if field.part and holder is not None:
            part, _ = part_of(typing.get_type_hints(holder)[last])
            if part is not None and f"{part.__module__.removeprefix('diversity_jax.')}:{part.__name__}" in _OWN_PAGE:
                yield field


def _row(field: FieldDoc) -> str:
    name = field.name.rpartition(".")[2]
    default = "" if field.part else field.default_text
    shown = f"`{_cell(default)}`" if default and default != "must be given" else default
    return (
        f"| `{name}{'.' if field.part else ''}` | {'' if field.part else field.type} | {shown} | {_cell(field.text)} |"
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def outdated() -> list[str]:
    """Pages that are not as the source has them, and pages too many."""
    wanted = pages()
    changed = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    return [str(path.relative_to(ROOT)) for path in [*changed, *sorted({*FOLDER.glob("*.md")} - {*wanted})]]


def main() -> int:
    """Writes or checks the pages."""
    changed = outdated()
    if "--check" in sys.argv[1:]:
        print("\n".join([*changed, f"{len(changed)} pages are not current" if changed else "the reference is current"]))
        return int(bool(changed))
    FOLDER.mkdir(exist_ok=True)
    wanted = pages()
    for path in [*wanted, *FOLDER.glob("*.md")]:
        if path in wanted:
            path.write_text(wanted[path])
        else:
            path.unlink()
    print("\n".join(changed) or "nothing has changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Writes docs/reference: every field of every command from the dataclasses, and the Python interface from its source.

python scripts/reference.py            writes what has changed
python scripts/reference.py --check    says what would change, status 1 where anything would
"""

import ast
from collections.abc import Iterator
import inspect
from pathlib import Path
import re
import sys
import textwrap
import typing

import diversity_jax
from diversity_jax.api import mixtures, scoring
from diversity_jax.core.commands import COMMANDS, Command
from diversity_jax.core.config import load_file
from diversity_jax.core.field_docs import FieldDoc, fields_of, part_of
from diversity_jax.core.intervals import Estimate

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "reference"
# The Python interface: its functions, and what they return
FUNCTIONS = (
    *(scoring.score, scoring.compare, scoring.measure),
    *(mixtures.build_mixture, mixtures.load_mixture, mixtures.load_model),
)
RETURNED = (
    *(scoring.Scorecard, scoring.CorporaComparison, scoring.MetricsReport, Estimate),
    *(mixtures.MixtureRows, mixtures.Model, mixtures.Likelihood),
)
ALIASES = ((scoring, "Data"), (mixtures, "Row"), (mixtures, "Messages"))
_INTERNAL = ("to_json", "from_json", "table", "series_at")  # of files and displays
_SECTION = re.compile(r"(Args|Attributes|Raises):")
_ENTRY = re.compile(r"  (\w+(?:, \w+)*): (.*)")
_OWN_PAGE = {command.config: name for name, command in reversed(COMMANDS.items()) if command.config}


def pages() -> dict[Path, str]:
    """Every page by its path."""
    configured = {name: command for name, command in COMMANDS.items() if command.config}
    command_pages = {FOLDER / f"{name}.md": page(name, command) for name, command in configured.items()}
    return {FOLDER / "README.md": index(), FOLDER / "python.md": python_page(), **command_pages}


def index() -> str:
    """The list of commands."""
    lines = [
        "# Reference",
        "",
        "Commands and the fields of their configurations, written by `scripts/reference.py` from the source. Every",
        "field is an option of `diversity-jax COMMAND`, such as `--agent.groupings=300`, and of the module that is",
        "named beside it, such as `--config.agent.groupings=300` behind `--config FILE`. `--help` lists all fields of",
        "a command, `--help agent.` those of a part. The same for a program: [the Python interface](python.md).",
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
    config = load_file(command.default_config, kind) if command.default_config else None
    lines = [f"# {name}", "", f"`diversity-jax {name}`: {command.summary}.", ""]
    if command.default_config:
        lines += [f"Defaults are those of `{command.default_config}`, which stands where no file is named.", ""]
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


def python_page() -> str:
    """What `import diversity_jax as dj` offers: its functions, and what they return."""
    assert sorted(each.__name__ for each in FUNCTIONS) == diversity_jax.__all__
    lines = ["# Python", "", "`import diversity_jax as dj` takes a moment: everything loads when it is first used.", ""]
    for function in FUNCTIONS:
        lines += [f"## `dj.{function.__name__}`", "", *_signature(function), *_docstring(function)]
    lines += ["# What they return", "", "All of them show themselves as a table, in a console and in a notebook.", ""]
    for kind in RETURNED:
        lines += [f"## `{kind.__name__}`", "", *_docstring(kind)]
        for name, member in vars(kind).items():
            shown = getattr(member, "fget", None) or getattr(member, "__func__", member)
            if name.startswith("_") or name in _INTERNAL or not inspect.isfunction(shown):
                continue
            is_method = not isinstance(member, property)
            lines += [f"### `.{name}{'()' * is_method}`", "", *(_signature(shown) if is_method else [])]
            lines += _docstring(shown)
    lines += ["# Names of types", ""]
    for module, name in ALIASES:
        lines += [f"- `{name}`: {_alias_text(module, name)}"]
    return "\n".join(lines).rstrip() + "\n"


def _signature(function: typing.Any) -> list[str]:
    """A function's first lines as its source has them, on one line or one line an argument."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    assert isinstance(node, ast.FunctionDef)
    result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    arguments = re.sub(r"(?<=[\w\]])=(?=\S)", " = ", ast.unparse(node.args))
    arguments = re.sub(r"^(self|cls)(, |$)", "", arguments)
    text = f"{node.name}({arguments}){result}"
    if len(text) > 100:
        parts = re.split(r", (?![^\[]*\])", arguments)
        text = f"{node.name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){result}"
    return ["```python", text, "```", ""]


def _alias_text(module: typing.Any, name: str) -> str:
    """The text behind the definition of a name of a type."""
    body = ast.parse(inspect.getsource(module)).body
    at = next(i for i, each in enumerate(body) if isinstance(each, ast.Assign) and ast.unparse(each.targets[0]) == name)
    text = body[at + 1]
    assert isinstance(text, ast.Expr)
    assert isinstance(text.value, ast.Constant)
    return " ".join(str(text.value.value).split())


def _docstring(documented: typing.Any) -> list[str]:
    """A docstring in Markdown: paragraphs, examples as code, arguments, attributes and errors as lists."""
    lines = list[str]()
    for block in inspect.cleandoc(documented.__doc__ or "").split("\n\n"):
        head, _, rest = block.partition("\n")
        if section := _SECTION.fullmatch(head):
            items = [_ENTRY.fullmatch(line) for line in rest.split("\n")]
            lines += [f"**{section[1].replace('Args', 'Arguments')}**", ""]
            for item, line in zip(items, rest.split("\n"), strict=True):
                lines += [f"- {_names(item[1])}: {_cell(item[2])}"] if item else [f"  {_cell(line.strip())}"]
            lines.append("")
        elif block.startswith(">>>"):
            lines += ["```pycon", block, "```", ""]
        else:
            lines += [block.replace("<", "&lt;"), ""]
    return lines


def _names(names: str) -> str:
    return ", ".join(f"`{name}`" for name in names.split(", "))


def _elsewhere(kind: type, config: object) -> Iterator[FieldDoc]:
    """Parts that are the complete configuration of another command, with a page of their own."""
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
    """Pages that differ from what the source gives, and pages that it does not give."""
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

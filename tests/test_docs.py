"""Paths, commands, modules, names and link targets in the documentation exist."""

import ast
import functools
from pathlib import Path
import re

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
PATH = re.compile(r"(?<![\w/.:-])(?:scripts|configs|docs|tests|diversity_jax)/[\w./*-]+")
COMMAND = re.compile(r"python -m (diversity_jax(?:\.\w+)+)")
DOTTED = re.compile(r"(?<![\w/.-])diversity_jax(?:\.\w+)+")
LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")


def module_file(parts: list[str]) -> Path | None:
    """The file of a module, or of a package."""
    base = ROOT.joinpath(*parts)
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.exists()), None)


@functools.cache
def names_in(path: Path) -> set[str]:
    """What a module defines or imports at its top level."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def is_known(dotted: str) -> bool:
    """Whether a dotted name is a module, or a name in the longest module that begins it."""
    parts = dotted.split(".")
    if module_file(parts):
        return True
    for length in range(len(parts) - 1, 0, -1):
        if path := module_file(parts[:length]):
            return parts[length] in names_in(path)
    return False


def is_command(module: str) -> bool:
    """Whether `python -m` can run a module."""
    parts = module.split(".")
    return ROOT.joinpath(*parts).with_suffix(".py").exists() or ROOT.joinpath(*parts, "__main__.py").exists()


def is_path(name: str) -> bool:
    """Whether a path of the repository exists; capitals mark a part that the reader fills in."""
    name = name.rstrip(".-")
    return bool(re.search(r"(?:^|[/_-])[A-Z]{2,}", Path(name).stem)) or any(ROOT.glob(name.rstrip("/")))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_exists(page):
    text = page.read_text()
    missing = {f"python -m {module}" for module in COMMAND.findall(text) if not is_command(module)}
    missing |= {name for name in DOTTED.findall(text) if not is_known(name)}
    missing |= {name for name in PATH.findall(text) if not is_path(name)}
    missing |= {target for target in LINK.findall(text) if not (page.parent / target).exists()}
    assert not missing


def test_a_name_that_does_not_exist_is_noticed():
    assert is_known("diversity_jax.metrics.lexical.mtld")
    assert not is_known("diversity_jax.metrics.lexical.no_such")
    assert is_command("diversity_jax.train")
    assert not is_command("diversity_jax.core.no_such")
    assert is_path("configs/quickstart.py")
    assert is_path("docs/benchmarks/DEVICE-DATE.md")
    assert not is_path("scripts/bench_loader.py")

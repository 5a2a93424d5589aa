"""Counts imports that go up a layer and import cycles, and prints every one.

    python scripts/checks/layers.py

Every module belongs to exactly one layer: by its own name where it is listed, otherwise by its package. Imports inside
functions and under TYPE_CHECKING count like all others. Packages of one layer do not import each other.
"""

import ast
from collections.abc import Iterator, Mapping
import functools
from pathlib import Path
import sys

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "diversity_jax"
LAYERS: tuple[tuple[str, ...], ...] = (
    ("core",),
    ("corpus", "llm", "tokenizers"),
    ("model",),
    ("embedders",),
    ("cluster_agent", "metrics", "prepare"),
    ("scoring", "synthesis"),
    ("mixtures",),
    ("evaluation",),
    ("training",),
    ("serving", "aot"),
    ("report",),
    ("study",),
    ("api",),
    ("commands",),
)
COMMANDS = ("mixtures.build", "mixtures.prepare", "mixtures.show", "training.compile", "study.__main__", "study.page")
"""Commands at public paths inside a package: on top, like the modules directly under `diversity_jax`."""


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name without `diversity_jax.`; the package itself is the empty name."""
    results = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        results[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return results


def layer_of(module: str) -> int:
    """The number of a module's layer, 0 the lowest.

    Raises:
      KeyError: the module belongs to no layer.
    """
    if module in COMMANDS or ("." not in module and not (PACKAGE / module / "__init__.py").exists()):
        return len(LAYERS) - 1
    package = module.split(".")[0]
    for number, packages in enumerate(LAYERS):
        if package in packages:
            return number
    raise KeyError(f"{module}: package {package} is in no layer of scripts/checks/layers.py")


@functools.cache
def _import_statements(path: Path) -> tuple[ast.Import | ast.ImportFrom, ...]:
    return tuple(
        node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)
    )


def imports_of(path: Path, known: Mapping[str, Path]) -> Iterator[tuple[str, int]]:
    """Modules of this package that a file imports, each with its line."""
    for node in _import_statements(path):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "diversity_jax":
            base = (node.module or "").removeprefix("diversity_jax").lstrip(".")
            for alias in node.names:
                full = f"{base}.{alias.name}".lstrip(".")
                yield (full if full in known else base), node.lineno
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("diversity_jax."):
                    yield alias.name.removeprefix("diversity_jax."), node.lineno


def upward_imports(known: Mapping[str, Path]) -> list[str]:
    """Imports of a higher layer or of another package of the same one, as `importer:line imports module`."""
    results = []
    for module, path in known.items():
        for other, line in imports_of(path, known):
            if not module or not other:
                continue  # the package itself holds the version alone
            own, theirs = layer_of(module), layer_of(other)
            same_package = (
                module.split(".")[0] == other.split(".")[0] and module not in COMMANDS and other not in COMMANDS
            )
            if theirs > own or (theirs == own and not same_package):
                results.append(f"{path.relative_to(ROOT)}:{line} imports {other}")
    return results


def cycles(known: Mapping[str, Path]) -> list[list[str]]:
    """Groups of modules that import each other, directly or in a circle (Tarjan's strongly connected components)."""
    edges = {module: {other for other, _ in imports_of(path, known)} - {""} for module, path in known.items()}
    index: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    results: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = lowest[module] = len(index)
        stack.append(module)
        for other in sorted(edges.get(module, ())):
            if other not in index:
                visit(other)
                lowest[module] = min(lowest[module], lowest[other])
            elif other in stack:
                lowest[module] = min(lowest[module], index[other])
        if lowest[module] == index[module]:
            group = []
            while not group or group[-1] != module:
                group.append(stack.pop())
            if len(group) > 1 or module in edges.get(module, ()):
                results.append(sorted(group))

    for module in known:
        if module not in index:
            visit(module)
    return results


def summary(known: Mapping[str, Path]) -> str:
    """One line: modules, layers, lines, and how many imports go up or in circles."""
    lines = sum(path.read_text().count("\n") for path in known.values())
    upward, circles = len(upward_imports(known)), len(cycles(known))
    return (
        f"{len(known)} modules, {lines} lines, {len(LAYERS)} layers, {upward} upward imports, {circles} import cycles"
    )


def main() -> int:
    """Prints the summary and every violation; the exit status is 1 where there is one."""
    sys.setrecursionlimit(10_000)
    known = modules()
    violations = upward_imports(known) + [" <-> ".join(group) for group in cycles(known)]
    print("\n".join([*violations, summary(known)]))
    return int(bool(violations))


if __name__ == "__main__":
    sys.exit(main())

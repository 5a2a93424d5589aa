"""Public names of a package that are imported when they are first used, so that a configuration costs no JAX."""

import ast
from collections.abc import Callable
import importlib
from pathlib import Path
import sys
from typing import Any


def exports(package: str) -> Callable[[str], Any]:
    """The `__getattr__` (PEP 562) of a package whose `__init__.py` imports its public names under TYPE_CHECKING.

    Those imports, which type checkers read, are all there is to maintain. A name must not be that of a module of the
    package: once that is imported, it takes the name's place.
    """
    homes: dict[str, str | None] = {}
    for statement in ast.parse(Path(str(sys.modules[package].__file__)).read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.If) and getattr(statement.test, "id", None) == "TYPE_CHECKING":
            for line in statement.body:
                if isinstance(line, ast.ImportFrom):
                    homes |= {alias.name: line.module for alias in line.names}

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(str(homes[name])), name)
        setattr(sys.modules[package], name, value)
        return value

    return find

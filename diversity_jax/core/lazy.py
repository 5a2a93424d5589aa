"""Imports that wait until they are used, so that a configuration costs no JAX, or that are made cheaper."""

import ast
from collections.abc import Callable
import functools
import importlib
from pathlib import Path
import sys
from types import ModuleType
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


@functools.cache
def special_functions() -> Any:
    """`scipy.special`, without the Fortran compiler's front end (`numpy.f2py`) that SciPy otherwise loads by copying
    every public name of NumPy: two fifths of what this import takes.
    """
    import numpy as np

    stand_in = "f2py" not in vars(np)
    if stand_in:
        vars(np)["f2py"] = ModuleType("numpy.f2py")
    try:
        return importlib.import_module("scipy.special")
    finally:
        if stand_in:
            del vars(np)["f2py"]

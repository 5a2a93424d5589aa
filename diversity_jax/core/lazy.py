"""Imports that wait for their first use, are redirected from a module's former path, or are made cheaper."""

import ast
from collections.abc import Callable, Sequence
import functools
import importlib
import importlib.abc
import importlib.machinery
from pathlib import Path
import sys
from types import ModuleType
from typing import Any
import warnings

MOVED: dict[str, tuple[str, ...]] = {
    "config": ("training.run", "mixtures.config", "synthesis.config", "scoring.config"),
    "score_config": ("scoring.config",),
    "mixtures.component": ("mixtures.config",),
    "mixtures.preparation": ("prepare.config",),
    "model.lora": ("model.config",),
    "model.mesh": ("model.config",),
    "training.optimizer": ("training.config", "training.step"),
    "training.settings": ("training.config",),
    "synthesis.grammar": ("synthesis.demo_grammar",),
    "synthesis.settings": ("synthesis.config",),
    "study.recipe": ("study.config",),
    "evaluation.settings": ("evaluation.config",),
    "evaluation.continuations": ("evaluation.config",),
}
"""Former module paths below `diversity_jax`, which configuration files may import -> the modules that hold their public
names now.
"""


def exports(package: str) -> Callable[[str], Any]:
    """The `__getattr__` (PEP 562) of a package whose `__init__.py` imports its public names under TYPE_CHECKING.

    Those imports, which type checkers read, are the only list of the names; `__all__` is made of them. A name must not
    be that of a module of the package: importing the module would replace it.
    """
    modules: dict[str, str | None] = {}
    for statement in ast.parse(Path(str(sys.modules[package].__file__)).read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.If) and getattr(statement.test, "id", None) == "TYPE_CHECKING":
            for line in statement.body:
                if isinstance(line, ast.ImportFrom):
                    modules |= {alias.name: line.module for alias in line.names}
    vars(sys.modules[package])["__all__"] = sorted(modules)

    def load(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(str(modules[name])), name)
        setattr(sys.modules[package], name, value)
        return value

    return load


class _MovedLoader(importlib.abc.Loader):
    def exec_module(self, module: ModuleType) -> None:
        names = [f"diversity_jax.{name}" for name in MOVED[module.__name__.partition(".")[2]]]
        warnings.warn(f"{module.__name__} has moved; import from {', '.join(names)}", DeprecationWarning, stacklevel=2)
        for present in map(importlib.import_module, names):
            for name, value in vars(present).items():
                if not name.startswith("_"):
                    vars(module).setdefault(name, value)


class _MovedFinder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The former path as a module of its own, or None for every other name."""
        package, _, name = fullname.partition(".")
        if package != "diversity_jax" or name not in MOVED:
            return None
        return importlib.machinery.ModuleSpec(fullname, _MovedLoader())


def install_moved_modules() -> None:
    """Makes the paths of `MOVED` importable, with a DeprecationWarning; a second call changes nothing.

    The finder comes last in `sys.meta_path`, so it is asked only for modules that do not exist.
    """
    if not any(isinstance(finder, _MovedFinder) for finder in sys.meta_path):
        sys.meta_path.append(_MovedFinder())


@functools.cache
def special_functions() -> Any:
    """`scipy.special`, without the Fortran compiler's front end (`numpy.f2py`) that SciPy otherwise loads by copying
    every public name of NumPy: two fifths of what this import takes.
    """
    import numpy as np

    is_missing = "f2py" not in vars(np)
    if is_missing:
        vars(np)["f2py"] = ModuleType("numpy.f2py")
    try:
        return importlib.import_module("scipy.special")
    finally:
        if is_missing:
            del vars(np)["f2py"]

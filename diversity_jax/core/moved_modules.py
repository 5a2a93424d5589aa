"""Former module paths that configuration files import: they still work, with a DeprecationWarning."""

from collections.abc import Sequence
import importlib
import importlib.abc
import importlib.machinery
import sys
from types import ModuleType
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
"""Old path below `diversity_jax` -> the modules that hold its public names now."""


class _MovedLoader(importlib.abc.Loader):
    def __init__(self, homes: Sequence[str]):
        self._homes = homes

    def exec_module(self, module: ModuleType) -> None:
        homes = ", ".join(f"diversity_jax.{home}" for home in self._homes)
        warnings.warn(f"{module.__name__} has moved; import from {homes}", DeprecationWarning, stacklevel=2)
        for home in self._homes:
            for name, value in vars(importlib.import_module(f"diversity_jax.{home}")).items():
                if not name.startswith("_"):
                    vars(module).setdefault(name, value)


class _MovedFinder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The old path as a module of its own, or None for every other name."""
        package, _, name = fullname.partition(".")
        if package != "diversity_jax" or name not in MOVED:
            return None
        return importlib.machinery.ModuleSpec(fullname, _MovedLoader(MOVED[name]))


def install() -> None:
    """Makes the old paths importable in this process; a second call changes nothing.

    The finder comes last in `sys.meta_path`, so it is asked only for modules that do not exist.
    """
    if not any(isinstance(finder, _MovedFinder) for finder in sys.meta_path):
        sys.meta_path.append(_MovedFinder())

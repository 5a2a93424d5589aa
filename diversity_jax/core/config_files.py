"""Configuration files: where ready-made ones are, and what an error in one is about."""

from collections.abc import Sequence
import dataclasses
import difflib
import importlib
import os
from pathlib import Path
import re
import sys
import traceback
from types import ModuleType


def ready_made(path: str) -> str:
    """A path of a configuration file; one that is not there and begins with `configs/` is the package's own."""
    if not os.path.exists(path) and path.replace("\\", "/").startswith("configs/"):
        package = Path(__file__).resolve().parents[1]
        for folder in (package, package.parent):
            if (folder / path).is_file():
                return str(folder / path)
    return path


def share_configs(path: str) -> None:
    """Makes `from configs.quickstart import ...` in a configuration below a folder `configs` mean that folder, whatever
    the working directory is.
    """
    folder = next((str(each) for each in Path(path).resolve().parents if each.name == "configs"), None)
    if folder is None:
        return
    try:
        package = importlib.import_module("configs")
    except ModuleNotFoundError:
        package = sys.modules["configs"] = ModuleType("configs")
    package.__path__ = [folder, *(each for each in getattr(package, "__path__", ()) if each != folder)]


def nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, 1, 0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; its fields are {', '.join(known)}"


def line_of(error: Exception, path: str) -> str:
    """`:17`, the last line of a file that an error came through."""
    frames, path = traceback.extract_tb(error.__traceback__), os.path.realpath(path)
    lines = [frame.lineno for frame in frames if os.path.realpath(frame.filename) == path]
    return f":{lines[-1]}" if lines else ""


def nearest_argument(error: Exception) -> str:
    """What a misspelt field of a dataclass may have meant."""
    wrong = re.search(r"^(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    frames = traceback.walk_tb(error.__traceback__)
    kinds = [value for frame, _ in frames for value in (*frame.f_globals.values(), *frame.f_locals.values())]
    kind = next((each for each in kinds if wrong and getattr(each, "__name__", "") == wrong[1]), None)
    if kind is None or wrong is None or not dataclasses.is_dataclass(kind):
        return ""
    return nearest(wrong[2], [field.name for field in dataclasses.fields(kind)])

"""The samples that commit fdaef38 wrote, and how tests read them and run commands on them.

The samples lie in `golden/written_by_fdaef38`; its README says how they were made. Nearly everything is driven by the
public commands."""

import contextlib
from dataclasses import dataclass
import hashlib
import io
import json
import logging
from pathlib import Path
import runpy
import shutil
import sys
import tarfile
import warnings

import pytest

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = Path(__file__).parent / "golden" / "written_by_fdaef38"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    """All samples; every file carries the modification time 0."""
    folder = tmp_path_factory.mktemp("written_by_fdaef38")
    for archive in sorted(GOLDEN.glob("*.tar.gz")):
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
    shutil.copytree(GOLDEN / "settings", folder / "settings")
    return folder


@pytest.fixture
def world(unpacked, tmp_path, monkeypatch) -> Path:
    """A copy of all samples as the working directory, since paths in their configurations are relative."""
    folder = shutil.copytree(unpacked, tmp_path / "world")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-a-key")
    return folder


@dataclass(frozen=True)
class CommandOutput:
    """What a command printed and logged."""

    out: str
    err: str


def run(module: str, *words: str) -> CommandOutput:
    """Runs `python -m diversity_jax.MODULE WORDS` inside this process; a failure fails the test."""
    root, argv = logging.getLogger(), sys.argv
    handlers, level = root.handlers[:], root.level
    out, err, code = io.StringIO(), io.StringIO(), 0
    sys.argv = [module, *map(str, words)]
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            warnings.simplefilter("ignore", RuntimeWarning)  # runpy's, about modules that are imported already
            runpy.run_module(f"diversity_jax.{module}", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        code = ended.code or 0
    finally:
        sys.argv = argv
        root.handlers[:] = handlers
        root.setLevel(level)
    assert code == 0, err.getvalue()
    return CommandOutput(out.getvalue(), err.getvalue())


def config(name: str) -> tuple[str, str]:
    """The words that name one of the samples' configurations."""
    return "--config", f"settings/{name}.py"


def read(path: str | Path):
    """The JSON value in a file."""
    return json.loads(Path(path).read_text())


def flat(value, where: str = "") -> dict[str, float]:
    """All numbers in a JSON value, by their place in it."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {path: number for key, item in items for path, number in flat(item, f"{where}/{key}").items()}
    return {where: float(value)} if isinstance(value, int | float) else {}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def rewritten(folder: Path) -> list[str]:
    """Files written since the samples were unpacked."""
    return [
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and path.stat().st_mtime
    ]

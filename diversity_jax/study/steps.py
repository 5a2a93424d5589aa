"""What runs each kind of step, and which code that is."""

from collections.abc import Callable, Mapping
import functools
import hashlib
import importlib
from pathlib import Path
from typing import Any

from diversity_jax.study.config import Recipe

STOPPED = 143  # as a shell reports a process that SIGTERM ended: Slurm and Kubernetes start it again
_PACKAGE = Path(__file__).resolve().parents[1]
_COMMANDS = {
    "benchmark": ("diversity_jax.evaluation.continuations", "write"),
    "generate": ("diversity_jax.generate", "main"),
    "score": ("diversity_jax.score", "main"),
    "build": ("diversity_jax.mixtures.build", "main"),
    "train": ("diversity_jax.train", "main"),
    "sft": ("diversity_jax.train", "main"),
    "evaluate": ("diversity_jax.evaluate", "main"),
    "evaluate_sft": ("diversity_jax.evaluate", "main"),
}
_ROOMS = {
    "benchmark": ("evaluation/continuations.py", "corpus"),
    "generate": ("generate.py", "synthesis", "llm", "corpus"),
    "score": ("score.py", "scoring", "cluster_agent", "metrics", "llm", "corpus"),
    "build": ("scoring", "mixtures", "prepare", "tokenizers", "cluster_agent", "corpus"),
    "train": ("train.py", "training", "model", "mixtures"),
    "sft": ("train.py", "training", "model", "mixtures"),
    "evaluate": ("evaluate.py", "evaluation", "tokenizers", "model"),
    "evaluate_sft": ("evaluate.py", "evaluation", "tokenizers", "model"),
}
assert set(_COMMANDS) == set(_ROOMS) == set(Recipe.__dataclass_fields__)


def commands() -> Mapping[str, Callable[[Any], None]]:
    """What runs a step of each kind, given its configuration; modules load when they are first needed."""
    return {kind: functools.partial(_run, module, name) for kind, (module, name) in _COMMANDS.items()}


def _run(module: str, name: str, config: Any) -> None:
    if module == "diversity_jax.evaluate":  # trainings keep theirs themselves, once they have found the other hosts
        from diversity_jax.training.runtime import keep_programs

        keep_programs("user")
    result = getattr(importlib.import_module(module), name)(config)
    if getattr(result, "interrupted", False):  # a training that SIGTERM stopped has saved itself, and is not done
        raise SystemExit(STOPPED)


@functools.cache
def codes() -> Mapping[str, Mapping[str, str]]:
    """For each kind, a hash of the source of every room, and file outside of one, that its command runs and its result
    depends on.
    """
    return {kind: {room: _source_hash(room) for room in rooms} for kind, rooms in _ROOMS.items()}


@functools.cache
def _source_hash(room: str) -> str:
    path = _PACKAGE / room
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
        digest.update(str(file.relative_to(_PACKAGE)).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()

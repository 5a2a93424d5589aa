"""Builds small mixtures of made-up instruction data for tests."""

from collections.abc import Mapping
import json
from pathlib import Path
import random
from typing import Any

from diversity_jax.corpus import CorpusConfig
from diversity_jax.mixtures.builder import build
from diversity_jax.mixtures.config import Component, GatePolicy, MixtureConfig
from diversity_jax.mixtures.mixture import Mixture

WORDS = ("oak", "elm", "ash", "fir", "yew", "bay", "fig", "box")


def write_examples(path: Path, count: int, *, seed: int = 0, longest: int = 6) -> Path:
    """Writes Alpaca records that ask for words in reverse order."""
    draw = random.Random(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        for _ in range(count):
            words = draw.choices(WORDS, k=draw.randint(1, longest))
            record = {"instruction": "Turn round.", "input": " ".join(words), "output": " ".join(reversed(words))}
            file.write(json.dumps(record) + "\n")
    return path


def write_text(path: Path, count: int, *, seed: int = 0) -> Path:
    """Writes documents of the same words, for pre-training."""
    draw = random.Random(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": " ".join(draw.choices(WORDS, k=20))}) + "\n" for _ in range(count)))
    return path


def build_components(
    folder: Path, sources: Mapping[str, CorpusConfig], shares: Mapping[str, float], **fields: Any
) -> Mixture:
    """A mixture of ungated components, its rows of 256 tokens unless told otherwise."""
    components = tuple(
        Component(name=name, kind="real", corpus=corpus, share=shares[name], policy=GatePolicy(ungated=True))
        for name, corpus in sources.items()
    )
    settings = {"sequence_length": 256, "validation_share": 0.1, "processes": 1} | fields
    return build(MixtureConfig(name="tuning", components=components, **settings), folder, lambda corpora: {})

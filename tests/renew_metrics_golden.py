"""Writes the figures of the `diversity` and `vendi-score` packages that tests/test_metrics_compatible.py compares with
ours.

    python -m venv /tmp/peers
    /tmp/peers/bin/pip install diversity==0.3.1 vendi-score==0.0.3 numpy scipy scikit-learn nltk rouge-score evaluate
    /tmp/peers/bin/python -m tests.renew_metrics_golden > tests/metrics_golden.json

Their modules are loaded one by one: the package's own `__init__` wants spacy, sentence-transformers and a download.
"""

import importlib.util
import json
from pathlib import Path
import random
import sys
import types

import numpy as np

_ODD = (
    "Don't",
    "x-y",
    "e\u0301t\u00e9",
    "\u03b3\u03ac\u03bc\u03bc\u03b1",
    "\u6570\u636e \u96c6",
    "\u0130z",
    "STOP!",
    "3.14",
    "\n",
    "",
    "tab\tbed",
)


def corpora() -> dict[str, list[str]]:
    """Small seeded corpora: plain words, odd words with double spaces and other scripts, repeats, and one without any
    overlap.
    """
    draw = random.Random(20240523)
    plain = [" ".join(f"w{int(draw.paretovariate(0.7)) % 90}" for _ in range(draw.randrange(5, 60))) for _ in range(60)]
    odd = [" ".join(draw.choice((*_ODD, "the", "a", "of")) for _ in range(draw.randrange(0, 40))) for _ in range(40)]
    repeats = [f"Write a short story about topic {number % 7} in the style of a fable" for number in range(50)]
    return {"plain": plain, "odd": odd, "repeats": repeats, "apart": ["aa bb cc dd", "ee ff gg hh", "ii jj kk ll"]}


def vectors() -> np.ndarray:
    """Seeded vectors, float64 [40, 12], of which some are nearly equal."""
    draw = np.random.default_rng(7)
    return draw.normal(size=(8, 12))[draw.integers(8, size=40)] + 0.3 * draw.normal(size=(40, 12))


def peer_modules() -> dict:
    """Functions of the `diversity` package by name, without running its `__init__`.

    Raises:
      ImportError: it is not installed.
    """
    spec = importlib.util.find_spec("diversity")
    if spec is None:
        raise ImportError("the diversity package is not installed")
    package = types.ModuleType("diversity")
    package.__path__ = [str(Path(spec.origin).parent)]
    sys.modules["diversity"] = package
    names = {
        "ngram_diversity": "ngram_diversity_score",
        "self_repetition": "self_repetition_score",
        "compression": "compression_ratio",
        "homogenization": "homogenization_score",
    }
    return {
        function: getattr(importlib.import_module(f"diversity.{module}"), function)
        for module, function in names.items()
    }


def golden() -> dict:
    """Everything that the test compares."""
    from sklearn.metrics.pairwise import cosine_distances
    from vendi_score import vendi

    theirs = peer_modules()
    result = {}
    for name, texts in corpora().items():
        result[name] = {
            "ngram_diversity_score": theirs["ngram_diversity_score"](texts),
            "self_repetition_score": float(theirs["self_repetition_score"](texts, verbose=False)),
            "compression_ratio_gzip": theirs["compression_ratio"](texts, "gzip"),
            "compression_ratio_xz": theirs["compression_ratio"](texts, "xz"),
            "homogenization_score_rougel": theirs["homogenization_score"](texts, verbose=False),
        }
    points = vectors()
    distances = cosine_distances(
        points
    )  # the two lines after the embedding in diversity/embedding.py, whose import wants a download
    result["vectors"] = {
        "vendi_score_X": float(vendi.score_X(points)),
        "vendi_score_dual_1": float(vendi.score_dual(points, q=1)),
        "vendi_score_dual_2": float(vendi.score_dual(points, q=2)),
        "vendi_score_dual_inf": float(vendi.score_dual(points, q="inf")),
        "vendi_score_K_half": float(vendi.score_K(_cosines(points), q=0.5)),
        "remote_clique": float(np.mean(np.mean(distances, axis=1)).round(3)),
        "chamfer_dist": float(np.mean(np.min(distances + np.eye(len(distances)) * 1e9, axis=1)).round(3)),
    }
    return result


def _cosines(points: np.ndarray) -> np.ndarray:
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    return unit @ unit.T


if __name__ == "__main__":
    print(json.dumps(golden(), indent=2))

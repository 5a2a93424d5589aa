"""Measure how diverse training data is, mix it by that measurement, and train Llama models on the mixture in JAX.

    import diversity_jax as dj

    scorecard = dj.score(["one text", ...])          how diverse a corpus is
    dj.compare("a.jsonl", "b.jsonl")                 which of two is the more diverse
    dj.measure("a.jsonl")                            baseline metrics
    mixture = dj.build_mixture("config.py")          score, gate, prepare
    mixture = dj.load_mixture("runs/mixture")        rows as NumPy, grain, tf.data, torch
    model = dj.load_model("runs/quickstart")         generate, loglikelihood

Everything loads when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from diversity_jax.core import lazy

if TYPE_CHECKING:
    from diversity_jax.api.mixtures import build_mixture, load_mixture, load_model
    from diversity_jax.api.scoring import compare, measure, score
else:
    _load = lazy.exports(__name__)

    def __getattr__(name: str) -> Any:
        """A function of the Python interface, loaded when it is first used."""
        # `score` names both a function and the module of the command, which is callable as the function.
        return importlib.import_module("diversity_jax.score") if name == "score" else _load(name)


__version__ = "0.1.0"
__all__ = ["build_mixture", "compare", "load_mixture", "load_model", "measure", "score"]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


lazy.install_moved_modules()

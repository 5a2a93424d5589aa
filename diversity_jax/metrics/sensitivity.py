"""How much each metric moves with the number of documents and with their length: what a comparison must hold equal."""

from collections.abc import Mapping, Sequence
import math
from typing import Any, Protocol

import numpy as np

from diversity_jax.metrics.registry import METRICS
from diversity_jax.metrics.sample import READS, STAGES, Ruler, Sample
from diversity_jax.metrics.text import Words

_STEPS = 4  # sizes, each twice the one before
_MOST_DOCUMENTS = 20_000
_PAIRS = 1000


class Measurer(Protocol):
    """What measures a sample."""

    metrics: Sequence[str]
    documents: int

    def prepare(self, texts: Sequence[str], costs: list[dict[str, Any]]) -> Sample: ...

    def values(self, sample: Sample, costs: list[dict[str, Any]], seed: int) -> dict[str, float | None]: ...


def dependence(pool: Sample, run: Measurer, *, seed: int) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """How metrics change over doublings of size and of length.

    Returns:
      By metric, `documents` and `words`, each with `sizes`, `values` and `slope`; and the costs of the sizes. A slope
      is that of log value over log size, by least squares: 0 does not depend, 1 grows in proportion. It is None where a
      value is not above 0. Length is followed for lexical metrics only, on documents that have the longest length, cut
      to each.
    """
    costs: list[dict[str, Any]] = []
    most = min(run.documents, _MOST_DOCUMENTS, len(pool.texts))
    sizes = [most >> step for step in reversed(range(_STEPS)) if most >> step >= 4]
    order = np.random.default_rng([seed, 0xDE9]).permutation(len(pool.texts))
    by_size = [run.values(pool.take(order[:size]), costs, seed) for size in sizes]
    lexical = [
        name
        for name in run.metrics
        if METRICS[name].group == "lexical" and not name.startswith(("context", "compression"))
    ]
    lengths, by_length = _lengths(pool, run, lexical, most, seed)
    result = {}
    for name in run.metrics:
        entry = {"documents": _entry(sizes, [values[name] for values in by_size])}
        if name in lexical and lengths:
            entry["words"] = _entry(lengths, [values[name] for values in by_length])
        result[name] = entry
    return result, costs


def _lengths(
    pool: Sample, run: Measurer, lexical: Sequence[str], most: int, seed: int
) -> tuple[list[int], list[dict[str, float | None]]]:
    base = pool.words if pool.words is not None else pool.folded
    if not lexical or base is None:
        return [], []
    longest = int(np.median(base.lengths))
    lengths = [longest >> step for step in reversed(range(_STEPS)) if longest >> step >= 8]
    if len(lengths) < 2:
        return [], []
    long_enough = base.lengths >= longest
    if pool.words is not None and pool.folded is not None:
        long_enough &= pool.folded.lengths >= longest
    chosen = np.flatnonzero(long_enough)[:most]
    if len(chosen) < 4:
        return [], []
    kept = pool.take(chosen)
    stages = {METRICS[name].stage for name in lexical} & {*READS["words"], *READS["folded"]}
    ruler = Ruler(pairs=_PAIRS, seed=seed)
    found = []
    for length in lengths:
        cut = Sample(
            texts=kept.texts,
            words=kept.words and cut_words(kept.words, length),
            folded=kept.folded and cut_words(kept.folded, length),
        )
        values: dict[str, float | None] = {}
        for stage in stages:
            values |= STAGES[stage](cut, ruler)
        found.append(values)
    return lengths, found


def cut_words(words: Words, length: int) -> Words:
    """The first `length` words of every document."""
    kept = np.minimum(words.lengths, length)
    inside = np.arange(len(words.ids)) - np.repeat(words.offsets[:-1], words.lengths)
    return Words(ids=words.ids[inside < length], offsets=np.concatenate([[0], np.cumsum(kept)]), types=words.types)


def _entry(sizes: Sequence[int], values: Sequence[float | None]) -> Mapping[str, Any]:
    return {"sizes": list(sizes), "values": list(values), "slope": slope(sizes, values)}


def slope(sizes: Sequence[float], values: Sequence[float | None]) -> float | None:
    """Of log value over log size, by least squares; None with fewer than two values above 0."""
    if len(sizes) < 2 or any(value is None or value <= 0 for value in values):
        return None
    x, y = np.log(sizes), np.log(values)
    x = x - x.mean()
    found = float(x @ y / (x @ x))
    return found if math.isfinite(found) else None

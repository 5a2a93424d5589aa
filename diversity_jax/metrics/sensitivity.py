"""How much each metric moves with the size and length of documents, and how far metrics rank corpora alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import itertools
import math
from typing import Any, Protocol

import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.core.intervals import Estimate
from diversity_jax.metrics.card import MetricsCard
from diversity_jax.metrics.registry import METRICS, STAGES, Figures, Sample, StageSettings
from diversity_jax.metrics.text import Words

_STEPS = 4  # sizes, each twice the one before
_MOST_DOCUMENTS = 20_000
_PAIRS = 1000
FEWEST_CORPORA = 5
_Z95 = 1.959964


class Measurer(Protocol):
    """What measures a sample: the chosen metrics, and documents of a draw."""

    metrics: Sequence[str]
    documents: int

    def values(self, sample: Sample, costs: list[dict[str, Any]], seed: int) -> Figures: ...


def size_dependence(
    pool: Sample, run: Measurer, *, seed: int
) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
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
    result: dict[str, dict[str, Any]] = {}
    for name in run.metrics:
        entry = {"documents": _entry(sizes, [values[name] for values in by_size])}
        if name in lexical and lengths:
            entry["words"] = _entry(lengths, [values[name] for values in by_length])
        result[name] = entry
    return result, costs


def _lengths(
    pool: Sample, run: Measurer, lexical: Sequence[str], most: int, seed: int
) -> tuple[list[int], list[Figures]]:
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
    long_texts = pool.take(chosen)
    stages = {METRICS[name].stage for name in lexical}
    settings = StageSettings(pairs=_PAIRS, seed=seed)
    by_length = []
    for length in lengths:
        cut = Sample(
            texts=long_texts.texts,
            words=long_texts.words and cut_words(long_texts.words, length),
            folded=long_texts.folded and cut_words(long_texts.folded, length),
        )
        values: Figures = {}
        for stage in stages:
            values |= STAGES[stage].measure(cut, settings)
        by_length.append(values)
    return lengths, by_length


def cut_words(words: Words, length: int) -> Words:
    """The first `length` words of every document."""
    lengths = np.minimum(words.lengths, length)
    inside = np.arange(len(words.ids)) - np.repeat(words.offsets[:-1], words.lengths)
    return Words(ids=words.ids[inside < length], offsets=np.concatenate([[0], np.cumsum(lengths)]), types=words.types)


def _entry(sizes: Sequence[int], values: Sequence[float | None]) -> Mapping[str, Any]:
    return {"sizes": list(sizes), "values": list(values), "slope": log_log_gradient(sizes, values)}


def log_log_gradient(sizes: Sequence[float], values: Sequence[float | None]) -> float | None:
    """Of log value over log size, by least squares; None with fewer than two values above 0."""
    if len(sizes) < 2 or any(value is None or value <= 0 for value in values):
        return None
    x, y = np.log(sizes), np.log(np.array(values, float))
    x = x - x.mean()
    gradient = float(x @ y / (x @ x))
    return gradient if math.isfinite(gradient) else None


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Two metrics over the same corpora; both signed so that more means more diverse. None where one of them is
    constant.
    """

    first: str
    second: str
    corpora: int
    kendall: Estimate | None
    spearman: Estimate | None


def agreements(columns: Mapping[str, Sequence[float | None]]) -> list[Agreement]:
    """Every pair of columns over the corpora that both have.

    Args:
      columns: by metric, one value a corpus, signed so that more means more diverse; None where a corpus has none.

    Intervals are those of Fieller, Hartley and Pearson (1957): on the scale of the inverse hyperbolic tangent, variance
    0.437 / (n - 4) for Kendall's tau and 1.06 / (n - 3) for Spearman's rho. A value of +-1 is treated as half a step
    from it.

    Raises:
      InputError: fewer corpora than 5, for which no interval is known.
    """
    lengths = {len(column) for column in columns.values()}
    if len(lengths) > 1 or not columns or max(lengths) < FEWEST_CORPORA:
        raise InputError(
            f"agreement: {max(lengths, default=0)} corpora are too few; rank correlations need at least "
            f"{FEWEST_CORPORA}"
        )
    result = []
    for first, second in itertools.combinations(columns, 2):
        pairs = zip(columns[first], columns[second], strict=True)
        x, y = np.array([pair for pair in pairs if None not in pair], float).reshape(-1, 2).T
        tau, rho = (kendall(x, y), spearman(x, y)) if len(x) >= FEWEST_CORPORA else (None, None)
        result.append(
            Agreement(
                first=first,
                second=second,
                corpora=len(x),
                kendall=None if tau is None else _interval(tau, 0.437 / max(len(x) - 4, 1), len(x)),
                spearman=None if rho is None else _interval(rho, 1.06 / max(len(x) - 3, 1), len(x)),
            )
        )
    return result


def kendall(x: np.ndarray, y: np.ndarray) -> float | None:
    """Kendall's tau-b, which allows for ties; None where either is constant."""
    from scipy.stats import kendalltau

    return float(kendalltau(x, y).statistic) if np.ptp(x) and np.ptp(y) else None


def spearman(x: np.ndarray, y: np.ndarray) -> float | None:
    """Spearman's rho: the correlation of mid-ranks; None where either is constant."""
    from scipy.stats import spearmanr

    return float(spearmanr(x, y).statistic) if np.ptp(x) and np.ptp(y) else None


def _interval(value: float, variance: float, corpora: int) -> Estimate:
    value = max(-1.0, min(1.0, value))
    step = 1 / (corpora * (corpora - 1))
    centre = math.atanh(max(-1 + step, min(1 - step, value)))
    reach = _Z95 * math.sqrt(variance)
    low, high = math.tanh(centre - reach), math.tanh(centre + reach)
    return Estimate(value=value, low=min(low, value), high=max(high, value))


def columns_of(
    cards: Mapping[str, MetricsCard], judged: Mapping[str, float] | None = None
) -> dict[str, list[float | None]]:
    """Signed values of every metric that says something of diversity, over the cards in their order.

    Args:
      judged: effective clusters by corpus, where a judge has scored them too; they make a column of their own.
    """
    columns: dict[str, list[float | None]] = {}
    if judged:
        columns["effective_clusters"] = [judged.get(name) for name in cards]
    for metric, about in METRICS.items():
        figures = [card.metrics.get(metric) for card in cards.values()]
        if about.sign and any(figure is not None for figure in figures):
            columns[metric] = [None if figure is None else about.sign * figure.value for figure in figures]
    return columns

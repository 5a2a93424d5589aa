"""How far metrics rank corpora alike: Kendall's and Spearman's rank correlations over many corpora, with intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import itertools
import math

import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.metrics.card import MetricsCard
from diversity_jax.metrics.registry import METRICS

FEWEST_CORPORA = 5
_Z95 = 1.959964


@dataclass(frozen=True, kw_only=True)
class RankCorrelation:
    """A rank correlation in [-1, 1] and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Two metrics over the same corpora; both signed so that more means more diverse. None where one of them is
    constant.
    """

    first: str
    second: str
    corpora: int
    kendall: RankCorrelation | None
    spearman: RankCorrelation | None


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
    found = []
    for first, second in itertools.combinations(columns, 2):
        both = [(x, y) for x, y in zip(columns[first], columns[second], strict=True) if x is not None and y is not None]
        x, y = np.array(both, float).reshape(-1, 2).T
        tau, rho = (kendall(x, y), spearman(x, y)) if len(x) >= FEWEST_CORPORA else (None, None)
        found.append(
            Agreement(
                first=first,
                second=second,
                corpora=len(x),
                kendall=None if tau is None else _interval(tau, 0.437 / max(len(x) - 4, 1), len(x)),
                spearman=None if rho is None else _interval(rho, 1.06 / max(len(x) - 3, 1), len(x)),
            )
        )
    return found


def kendall(x: np.ndarray, y: np.ndarray) -> float | None:
    """Kendall's tau-b, which allows for ties; None where either is constant."""
    above = np.triu_indices(len(x), 1)
    one, other = np.sign(x[:, None] - x)[above], np.sign(y[:, None] - y)[above]
    norm = math.sqrt(float(one @ one) * float(other @ other))
    return float(one @ other) / norm if norm else None


def spearman(x: np.ndarray, y: np.ndarray) -> float | None:
    """Spearman's rho: the correlation of mid-ranks; None where either is constant."""
    from scipy.stats import rankdata

    one, other = rankdata(x) - (len(x) + 1) / 2, rankdata(y) - (len(y) + 1) / 2
    norm = math.sqrt(float(one @ one) * float(other @ other))
    return float(one @ other) / norm if norm else None


def _interval(value: float, variance: float, corpora: int) -> RankCorrelation:
    value = max(-1.0, min(1.0, value))
    step = 1 / (corpora * (corpora - 1))
    centre = math.atanh(max(-1 + step, min(1 - step, value)))
    reach = _Z95 * math.sqrt(variance)
    low, high = math.tanh(centre - reach), math.tanh(centre + reach)
    return RankCorrelation(value=value, low=min(low, value), high=max(high, value))


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

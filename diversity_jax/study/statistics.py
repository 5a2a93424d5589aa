"""Does diversity predict the outcome? Slopes and correlations over recipes, never without their n and interval.

The unit is the recipe: its seeds are averaged first, since runs of one recipe share their data and are no independent
  evidence. Slopes
carry HC3 intervals with a t quantile, which keep their level where the noise differs between recipes; bootstrap
intervals at the same sizes were measured too narrow (docs/study.md).

What each factor of a grid does to an outcome: main effects and interactions by least squares, saturation, and power.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import itertools
import math
from typing import Any

import numpy as np
from scipy import optimize, stats

from diversity_jax.core.errors import InputError

Values = Sequence[float] | np.ndarray


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate, its interval at `level`, and the number of recipes it rests on. `low` and `high` are nan where n
    allows none.
    """

    value: float
    low: float
    high: float
    n: int
    level: float = 0.95

    @property
    def decided(self) -> bool:
        """Whether zero lies outside."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A least-squares fit: coefficients by name (`intercept` among them), the share of variance explained, and
    residuals (n).
    """

    coefficients: dict[str, Interval]
    r_squared: float
    residuals: np.ndarray
    residual_degrees: int

    def __getitem__(self, name: str) -> Interval:
        return self.coefficients[name]


def _columns(outcome: Values, predictors: Mapping[str, Values]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    y = np.asarray(outcome, float)
    columns = {name: np.asarray(values, float) for name, values in predictors.items()}
    for name, x in columns.items():
        if x.shape != y.shape or y.ndim != 1:
            raise InputError(f"{name}: {x.shape} values for {y.shape} outcomes; give one of each for every recipe")
        if not np.isfinite(x).all():
            raise InputError(
                f"{name}: not finite in recipe {int(np.flatnonzero(~np.isfinite(x))[0])}; leave that recipe out of "
                "the analysis"
            )
        if np.ptp(x) == 0:
            raise InputError(
                f"{name}: the same in all {len(x)} recipes, so nothing can be learnt about it; vary it or leave it out"
            )
    if not np.isfinite(y).all():
        raise InputError(
            f"outcome: not finite in recipe {int(np.flatnonzero(~np.isfinite(y))[0])}; leave that recipe out of the "
            "analysis"
        )
    return y, columns


def least_squares(outcome: Values, predictors: Mapping[str, Values], *, level: float = 0.95) -> Fit:
    """Regresses the outcome on an intercept and the predictors.

    Args:
      outcome: One value a recipe.
      predictors: Values by name, one a recipe each.
      level: Of the intervals: HC3 (MacKinnon and White 1985), t with n - p degrees.

    Raises:
      InputError: lengths differ, a value is not finite, a predictor is constant or follows from the others, or there
        are too few recipes.
    """
    y, columns = _columns(outcome, predictors)
    names = ["intercept", *columns]
    design = np.stack([np.ones_like(y), *columns.values()], axis=1)
    n, p = design.shape
    if n <= p:
        raise InputError(
            f"regression on {', '.join(columns)}: {n} recipes for {p} coefficients; it needs at least {p + 1} recipes"
        )
    scale = np.abs(design).max(axis=0)
    if np.linalg.matrix_rank(design / scale) < p:
        raise InputError(
            f"regression on {', '.join(columns)}: one of them follows from the others in these recipes; leave it out"
        )
    inverse = np.linalg.pinv(design / scale) / scale[:, None]
    coefficients = inverse @ y
    residuals = y - design @ coefficients
    # A recipe that alone fixes a coefficient has leverage 1 and no residual; it says nothing about the noise.
    leverage = np.minimum(np.einsum("ij,ji->i", design, inverse), 1 - 1e-9)
    errors = np.sqrt((inverse**2) @ (residuals / (1 - leverage)) ** 2)
    half = stats.t.ppf((1 + level) / 2, n - p) * errors
    total = np.sum((y - y.mean()) ** 2)
    return Fit(
        coefficients={
            name: Interval(value=float(b), low=float(b - h), high=float(b + h), n=n, level=level)
            for name, b, h in zip(names, coefficients, half, strict=True)
        },
        r_squared=float(1 - residuals @ residuals / total) if total > 0 else math.nan,
        residuals=residuals,
        residual_degrees=n - p,
    )


def _fisher(correlation: float, error: float, n: int, level: float) -> Interval:
    """The interval of a correlation whose arctanh has this standard error."""
    if not math.isfinite(error):
        return Interval(value=correlation, low=math.nan, high=math.nan, n=n, level=level)
    centre = math.atanh(min(max(correlation, -1 + 1e-12), 1 - 1e-12))
    half = stats.norm.ppf((1 + level) / 2) * error
    return Interval(value=correlation, low=math.tanh(centre - half), high=math.tanh(centre + half), n=n, level=level)


def _inverse_root(amount: float) -> float:
    return 1 / math.sqrt(amount) if amount > 0 else math.nan


def partial_correlation(
    x: Values, y: Values, controls: Mapping[str, Values] | None = None, *, level: float = 0.95
) -> Interval:
    """Pearson's correlation of what the controls leave unexplained in x and y; without controls the plain one.

    The interval is Fisher's, with n - k - 3 for k controls.

    Raises:
      InputError: as in `least_squares`.
    """
    controls = controls or {}
    y_values, columns = _columns(y, {"x": x, **controls})
    n = len(y_values)
    if controls:
        rest_x = least_squares(columns["x"], controls).residuals
        rest_y = least_squares(y_values, controls).residuals
    else:
        rest_x, rest_y = columns["x"] - columns["x"].mean(), y_values - y_values.mean()
    size = math.sqrt((rest_x @ rest_x) * (rest_y @ rest_y))
    if rest_x @ rest_x <= 1e-18 * max(1.0, float(columns["x"] @ columns["x"])):
        raise InputError(
            f"x: follows from {', '.join(controls)} in these recipes, so its own part cannot be told; leave a control "
            "out"
        )
    correlation = float(rest_x @ rest_y / size) if size > 0 else math.nan
    return _fisher(correlation, _inverse_root(n - len(controls) - 3), n, level)


def rank_correlation(x: Values, y: Values, *, kind: str = "spearman", level: float = 0.95) -> Interval:
    """Spearman's rho or Kendall's tau-b with the intervals of Bonett and Wright (2000), made on the arctanh scale.

    Raises:
      InputError: another kind, or values as refused by `least_squares`.
    """
    y_values, columns = _columns(y, {"x": x})
    n = len(y_values)
    if np.ptp(y_values) == 0:
        raise InputError(f"outcome: the same in all {n} recipes, so nothing can go with it")
    if kind == "spearman":
        correlation = float(stats.spearmanr(columns["x"], y_values).statistic)
        return _fisher(correlation, math.sqrt(1 + correlation**2 / 2) * _inverse_root(n - 3), n, level)
    if kind == "kendall":
        return _fisher(
            float(stats.kendalltau(columns["x"], y_values).statistic), math.sqrt(0.437) * _inverse_root(n - 4), n, level
        )
    raise InputError(f"kind {kind!r}: expected 'spearman' or 'kendall'")


@dataclass(frozen=True, kw_only=True)
class Term:
    """One line of an analysis of variance (type II): a factor, or two joined as "a:b"."""

    name: str
    degrees: int
    sum_of_squares: float
    share: float  # of the total sum of squares
    f: float
    p: float  # nan without residual degrees


@dataclass(frozen=True, kw_only=True)
class Effects:
    """`terms` of the grid, and for each level of each factor its mean `levels[factor][level]`, adjusted for the other
    factors.
    """

    terms: list[Term]
    levels: dict[str, dict[Any, Interval]]
    residual_degrees: int
    residual_variance: float


def _coded(values: Sequence[Any], levels: list[Any]) -> np.ndarray:
    """Effect coding, n x (levels - 1): columns sum to zero over a balanced grid, so that main effects mean averages."""
    code = np.concatenate([np.eye(len(levels) - 1), -np.ones((1, len(levels) - 1))])
    return code[[levels.index(value) for value in values]]


def _residual(columns: list[np.ndarray], y: np.ndarray) -> tuple[float, int]:
    design = np.concatenate([np.ones((len(y), 1)), *columns], axis=1)
    coefficients, _, rank, _ = np.linalg.lstsq(design, y, rcond=None)
    rest = y - design @ coefficients
    return float(rest @ rest), int(rank)


def factor_effects(
    runs: Sequence[Mapping[str, Any]],
    outcome: str,
    factors: Sequence[str],
    *,
    block: str | None = None,
    interactions: bool = True,
    level: float = 0.95,
) -> Effects:
    """Analysis of variance of a grid of runs.

    Args:
      runs: One mapping a run, holding the outcome, every factor's level, and the block.
      outcome: The key of the number to explain.
      factors: Keys of the factors; those with one level only are left out.
      block: A key whose levels shift the outcome without interest, such as the seed; None: runs are exchangeable.
      interactions: Whether pairs of factors are terms of their own.
      level: Of the intervals of level means.

    Raises:
      InputError: no run, a missing key, or no factor that varies.
    """
    keys = [outcome, *factors, *([block] if block else [])]
    for index, run in enumerate(runs):
        if missing := [key for key in keys if key not in run]:
            raise InputError(f"run {index}: no {missing[0]!r}; every run needs {', '.join(keys)}")
    if not runs:
        raise InputError("effects: no finished run to analyse")
    y = np.array([float(run[outcome]) for run in runs])
    found = {
        factor: list(dict.fromkeys(run[factor] for run in runs)) for factor in [*factors, *([block] if block else [])]
    }
    varying = [factor for factor in factors if len(found[factor]) > 1]
    if not varying:
        raise InputError(f"effects: none of {', '.join(factors)} takes two levels in the finished runs")
    coded = {name: _coded([run[name] for run in runs], levels) for name, levels in found.items() if len(levels) > 1}
    terms = {name: coded[name] for name in varying}
    if interactions:
        terms |= {f"{a}:{b}": _products(coded[a], coded[b]) for a, b in itertools.combinations(varying, 2)}
    base = [coded[block]] if block in coded else []
    whole, rank = _residual([*base, *terms.values()], y)
    degrees = len(y) - rank
    variance = whole / degrees if degrees > 0 else math.nan
    total = float(np.sum((y - y.mean()) ** 2))
    return Effects(
        terms=[_term(name, terms, base, y, degrees, variance, total) for name in terms],
        levels={name: _level_means(name, found[name], varying, coded, base, y, level) for name in varying},
        residual_degrees=degrees,
        residual_variance=variance,
    )


def _products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a[:, :, None] * b[:, None, :]).reshape(len(a), -1)


def _term(name: str, terms: Mapping[str, np.ndarray], base, y, degrees: int, variance: float, total: float) -> Term:
    """Type II: what the term adds to all terms that do not contain it."""
    parts = set(name.split(":"))
    others = [columns for other, columns in terms.items() if not parts <= set(other.split(":"))]
    without, rank_without = _residual([*base, *others], y)
    having, rank_with = _residual([*base, *others, terms[name]], y)
    added, own = max(without - having, 0.0), rank_with - rank_without
    f = added / own / variance if own and degrees > 0 and variance > 0 else math.nan
    p = float(stats.f.sf(f, own, degrees)) if math.isfinite(f) else math.nan
    return Term(name=name, degrees=own, sum_of_squares=added, share=added / total if total > 0 else math.nan, f=f, p=p)


def _level_means(name, levels, varying, coded, base, y, level) -> dict[Any, Interval]:
    """Mean of the outcome at each level of a factor in the model of main effects, the other factors averaged over their
    levels.
    """
    columns = [*base, *(coded[factor] for factor in varying)]
    design = np.concatenate([np.ones((len(y), 1)), *columns], axis=1)
    inverse = np.linalg.pinv(design)
    coefficients = inverse @ y
    rest = y - design @ coefficients
    degrees = len(y) - int(np.linalg.matrix_rank(design))
    variance = rest @ rest / degrees if degrees > 0 else math.nan
    quantile = stats.t.ppf((1 + level) / 2, degrees) if degrees > 0 else math.nan
    start = (
        1
        + sum(part.shape[1] for part in base)
        + sum(coded[factor].shape[1] for factor in varying[: varying.index(name)])
    )
    means = {}
    for value in levels:
        row = np.zeros(design.shape[1])
        row[0] = 1
        row[start : start + coded[name].shape[1]] = _coded([value], levels)[0]
        mean, half = (
            float(row @ coefficients),
            float(quantile * math.sqrt(variance * (row @ inverse) @ (row @ inverse))),
        )
        means[value] = Interval(value=mean, low=mean - half, high=mean + half, n=len(y), level=level)
    return means


@dataclass(frozen=True, kw_only=True)
class Saturation:
    """outcome = top - gain * exp(-amount / scale). `scale` is nan where the data show no bend."""

    top: Interval
    gain: float
    scale: Interval
    better_than_a_line: bool  # by corrected Akaike information


def saturation(amounts: Sequence[float], outcomes: Sequence[float], *, level: float = 0.95) -> Saturation:
    """Fits how an outcome levels off with an amount (topics, generations, synthetic tokens); intervals by profile
    likelihood.

    Raises:
      InputError: fewer than five points or fewer than four different amounts.
    """
    x, y = np.asarray(amounts, float), np.asarray(outcomes, float)
    n = len(y)
    if n < 5 or len(np.unique(x)) < 4:
        raise InputError(f"saturation: {n} points at {len(np.unique(x))} amounts; it needs five points at four amounts")
    span = float(np.ptp(x))

    def fit(log_scale: float) -> tuple[float, float, float]:
        """Squares left, top and gain at a scale."""
        design = np.stack([np.ones(n), -np.exp(-(x - x.min()) / math.exp(log_scale))], axis=1)
        (top, gain), *_ = np.linalg.lstsq(design, y, rcond=None)
        rest = y - design @ [top, gain]
        return float(rest @ rest), float(top), float(gain)

    grid = np.linspace(math.log(span / 100), math.log(span * 100), 4000)
    bend_GxN = np.exp(-(x - x.min())[None] / np.exp(grid)[:, None])
    bend_GxN -= bend_GxN.mean(axis=1, keepdims=True)
    values = np.sum((y - y.mean()) ** 2) - (bend_GxN @ y) ** 2 / np.sum(bend_GxN**2, axis=1)
    k = int(values.argmin())
    around = (grid[max(k - 1, 0)], grid[min(k + 1, len(grid) - 1)])
    best = float(optimize.minimize_scalar(lambda g: fit(g)[0], bounds=around, method="bounded").x)
    least, top, gain = fit(best)
    allowed = least * (1 + stats.f.ppf(level, 1, n - 3) / (n - 3))
    inside = grid[values <= allowed] if (values <= allowed).any() else np.array([best])
    low, high = float(inside[0]), float(inside[-1])
    scale = Interval(
        value=math.exp(best),
        low=math.exp(low) if low > grid[0] else 0.0,
        high=math.exp(high) if high < grid[-1] else math.inf,
        n=n,
        level=level,
    )
    line = np.polyval(np.polyfit(x, y, 1), x)
    return Saturation(
        top=_top_interval(x, y, grid, top, allowed, level),
        gain=gain * math.exp(x.min() / math.exp(best)),
        scale=scale,
        better_than_a_line=_akaike(least, n, 4) < _akaike(float((y - line) @ (y - line)), n, 3),
    )


def _top_interval(x, y, grid, top: float, allowed: float, level: float) -> Interval:
    """The tops at which some scale of the grid, with its best gain, leaves no more than the allowed squares."""
    bend_GxN = -np.exp(-(x - x.min())[None] / np.exp(grid)[:, None])
    # With the gain at its best, what is left is quadratic in the top: a t^2 - 2 b t + c <= allowed between its two
    # roots.
    own_G = np.sum(bend_GxN**2, axis=1)
    ones, outcome = np.sum(bend_GxN, axis=1), bend_GxN @ y
    a, b, c = len(y) - ones**2 / own_G, y.sum() - ones * outcome / own_G, y @ y - outcome**2 / own_G
    room = b**2 - a * (c - allowed)
    fits = (room >= 0) & (a > 1e-12)
    if not fits.any():
        return Interval(value=top, low=top, high=top, n=len(y), level=level)
    lows, highs = (b - np.sqrt(np.maximum(room, 0))) / a, (b + np.sqrt(np.maximum(room, 0))) / a
    open_end = fits[-1]  # a straight line will do: no top is to be seen
    rising = y[np.argmax(x)] >= y[np.argmin(x)]
    return Interval(
        value=top,
        low=-math.inf if open_end and not rising else float(lows[fits].min()),
        high=math.inf if open_end and rising else float(highs[fits].max()),
        n=len(y),
        level=level,
    )


def _akaike(squares: float, n: int, parameters: int) -> float:
    if n - parameters - 1 <= 0:
        return math.inf
    return (
        n * math.log(max(squares, 1e-300) / n)
        + 2 * parameters
        + 2 * parameters * (parameters + 1) / (n - parameters - 1)
    )


def power(correlation: float, recipes: int, *, level: float = 0.95) -> float:
    """Chance that a true correlation is told from zero by a t test over this many recipes (noncentral t, fixed
    design).
    """
    if not -1 < correlation < 1 or recipes < 3:
        raise InputError(
            f"power: correlation {correlation} over {recipes} recipes; expected one inside (-1, 1) and at least 3 "
            "recipes"
        )
    shift = abs(correlation) / math.sqrt(1 - correlation**2) * math.sqrt(recipes)
    limit = stats.t.ppf((1 + level) / 2, recipes - 2)
    return float(stats.nct.sf(limit, recipes - 2, shift) + stats.nct.cdf(-limit, recipes - 2, shift))


def recipes_needed(correlation: float, *, wanted_power: float = 0.8, level: float = 0.95) -> int:
    """The fewest recipes over which a true correlation is told from zero with the wanted chance.

    Raises:
      InputError: a correlation of zero, or outside (-1, 1), or a power outside (0, 1).
    """
    if correlation == 0 or not 0 < wanted_power < 1:
        raise InputError(
            f"recipes needed: correlation {correlation} at power {wanted_power}; no number of recipes gives that"
        )
    high = 4
    while power(correlation, high, level=level) < wanted_power:
        high *= 2
    low = max(high // 2, 3)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(correlation, middle, level=level) >= wanted_power else (middle, high)
    return low if power(correlation, low, level=level) >= wanted_power else high

"""Does diversity predict the outcome? Slopes and correlations over recipes, never without their n and interval.

The unit is the recipe: its seeds are averaged first, since runs of one recipe share their data and are no independent evidence. Slopes
carry HC3 intervals with a t quantile, which keep their level where the noise differs between recipes; bootstrap intervals at the same
sizes were measured too narrow (docs/study.md).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import math

import numpy as np
from scipy import stats

from diversity_jax.errors import InputError

Values = Sequence[float] | np.ndarray


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate, its interval at `level`, and the number of recipes it rests on. `low` and `high` are nan where n allows none."""

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
    """A least-squares fit: coefficients by name (`intercept` among them), the share of variance explained, and residuals (n)."""

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
                f"{name}: not finite in recipe {int(np.flatnonzero(~np.isfinite(x))[0])}; leave that recipe out of the analysis"
            )
        if np.ptp(x) == 0:
            raise InputError(f"{name}: the same in all {len(x)} recipes, so nothing can be learnt about it; vary it or leave it out")
    if not np.isfinite(y).all():
        raise InputError(f"outcome: not finite in recipe {int(np.flatnonzero(~np.isfinite(y))[0])}; leave that recipe out of the analysis")
    return y, columns


def least_squares(outcome: Values, predictors: Mapping[str, Values], *, level: float = 0.95) -> Fit:
    """Regresses the outcome on an intercept and the predictors.

    Args:
      outcome: One value a recipe.
      predictors: Values by name, one a recipe each.
      level: Of the intervals: HC3 (MacKinnon and White 1985), t with n - p degrees.

    Raises:
      InputError: lengths differ, a value is not finite, a predictor is constant or follows from the others, or there are too few recipes.
    """
    y, columns = _columns(outcome, predictors)
    names = ["intercept", *columns]
    design = np.stack([np.ones_like(y), *columns.values()], axis=1)
    n, p = design.shape
    if n <= p:
        raise InputError(f"regression on {', '.join(columns)}: {n} recipes for {p} coefficients; it needs at least {p + 1} recipes")
    scale = np.abs(design).max(axis=0)
    if np.linalg.matrix_rank(design / scale) < p:
        raise InputError(f"regression on {', '.join(columns)}: one of them follows from the others in these recipes; leave it out")
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


def partial_correlation(x: Values, y: Values, controls: Mapping[str, Values] | None = None, *, level: float = 0.95) -> Interval:
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
        raise InputError(f"x: follows from {', '.join(controls)} in these recipes, so its own part cannot be told; leave a control out")
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
        return _fisher(float(stats.kendalltau(columns["x"], y_values).statistic), math.sqrt(0.437) * _inverse_root(n - 4), n, level)
    raise InputError(f"kind {kind!r}: expected 'spearman' or 'kendall'")

"""Statistics of a study: regression, correlations, analysis of variance and power, with n and intervals.

The unit of regressions and correlations is the recipe, with its seeds averaged: runs of a recipe share their data and
are not independent. Intervals of slopes use HC3 errors and a t quantile; bootstrap intervals at the same numbers of
recipes were too narrow (docs/study.md).
"""

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import itertools
import math
from typing import Any
import warnings

import numpy as np
from scipy import stats
from statsmodels.regression.linear_model import OLS
from statsmodels.tools.sm_exceptions import SingularMatrixWarning

from diversity_jax.core.errors import InputError

Values = Sequence[float] | np.ndarray
LEVEL = 0.95  # of every interval and test
_FULL_LEVERAGE = 1 - 1e-9
_EXACT = 1e-20  # residual squares over total squares at most this are rounding errors
_SAME = 1e-12  # differences relative to the largest value at most this are rounding errors


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate, its interval at `level`, and the number n of recipes or runs it is from.

    `low` and `high` are nan where no interval can be computed (too few recipes, or no residual variance), and infinite
    where the data give no bound.
    """

    value: float
    low: float
    high: float
    n: int
    level: float = LEVEL

    @classmethod
    def around(cls, value: float, half: float, n: int) -> "Interval":
        """The interval from `value - half` to `value + half`."""
        return cls(value=float(value), low=float(value - half), high=float(value + half), n=n)

    @property
    def decided(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A least-squares fit: coefficients by name, including `intercept`, and the share of variance explained."""

    coefficients: dict[str, Interval]
    r_squared: float

    def __getitem__(self, name: str) -> Interval:
        return self.coefficients[name]


def is_constant(values: Values) -> bool:
    """Whether values differ by rounding errors only."""
    return bool(np.ptp(values) <= _SAME * np.abs(values).max())


def _columns(outcome: Values, predictors: Mapping[str, Values]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The outcome and the predictors as arrays, checked to be finite, not constant and of one length."""
    y = np.asarray(outcome, float)
    columns = {name: np.asarray(values, float) for name, values in predictors.items()}
    for name, x in columns.items():
        if x.shape != y.shape or y.ndim != 1:
            raise InputError(f"{name}: {x.shape} values for {y.shape} outcomes; give one of each for every recipe")
    for name, x in {**columns, "outcome": y}.items():
        if not np.isfinite(x).all():
            recipe = int(np.flatnonzero(~np.isfinite(x))[0])
            raise InputError(f"{name}: not finite in recipe {recipe}; leave that recipe out of the analysis")
        if is_constant(x):
            remedy = "vary it or leave it out" if name in columns else "nothing can go with it"
            raise InputError(f"{name}: the same in all {len(x)} recipes; {remedy}")
    return y, columns


def _ordinary_fit(y: np.ndarray, columns: Mapping[str, np.ndarray]) -> tuple[Any, np.ndarray]:
    """statsmodels' fit on an intercept and the columns, each divided by its scale; and the scales."""
    design = np.stack([np.ones_like(y), *columns.values()], axis=1)
    n, p = design.shape
    regression = f"regression on {', '.join(columns)}"
    if n <= p:
        raise InputError(f"{regression}: {n} recipes for {p} coefficients; it needs at least {p + 1} recipes")
    scale = np.abs(design).max(axis=0)  # tokens and document lengths differ by eight orders of magnitude
    if np.linalg.matrix_rank(design / scale) < p:
        raise InputError(f"{regression}: one of them follows from the others in these recipes; leave it out")
    return OLS(y, design / scale).fit(), scale


def least_squares(outcome: Values, predictors: Mapping[str, Values]) -> Fit:
    """Regresses the outcome on an intercept and the predictors, with HC3 standard errors (MacKinnon and White 1985) and
    t quantiles with n - p degrees of freedom.

    Intervals are nan where the residual variance cannot be seen: all recipes lie on the fit, or a single recipe
    determines a coefficient (its leverage is 1, its residual 0).

    Args:
      outcome: a value for each recipe.
      predictors: by name, a value for each recipe.

    Raises:
      InputError: lengths differ, a value is not finite, the outcome or a predictor is constant, a predictor follows
        from the others, or there are too few recipes.
    """
    y, columns = _columns(outcome, predictors)
    fit, scale = _ordinary_fit(y, columns)
    n, p = fit.model.exog.shape
    influence, inverse = fit.get_influence(), fit.model.pinv_wexog
    is_alone = influence.hat_matrix_diag >= _FULL_LEVERAGE  # statsmodels' own HC3 divides by zero there
    errors = np.sqrt(inverse**2 @ np.where(is_alone, 0.0, influence.resid_press) ** 2)
    half = stats.t.ppf((1 + LEVEL) / 2, n - p) * errors
    rests_on_one = (np.abs(inverse[:, is_alone]) > _SAME * np.abs(inverse).max(axis=1, keepdims=True)).any(axis=1)
    half[rests_on_one | (fit.ssr <= _EXACT * fit.centered_tss)] = math.nan
    coefficients = {
        name: Interval.around(value, width, n)
        for name, value, width in zip(["intercept", *columns], fit.params / scale, half / scale, strict=True)
    }
    return Fit(coefficients=coefficients, r_squared=float(fit.rsquared))


def _fisher(correlation: float, n: int, degrees: int, factor: float = 1.0) -> Interval:
    """The interval of a correlation whose arctanh has the variance `factor / degrees`; nan for 1 and -1, of which it
    is infinite.
    """
    if abs(correlation) > 1 - _SAME:
        return Interval.around(math.copysign(1.0, correlation), math.nan, n)
    centre = math.atanh(correlation)
    half = stats.norm.ppf((1 + LEVEL) / 2) * math.sqrt(factor / degrees)
    return Interval(value=correlation, low=math.tanh(centre - half), high=math.tanh(centre + half), n=n)


def partial_correlation(x: Values, y: Values, controls: Mapping[str, Values] | None = None) -> Interval:
    """The partial correlation of x and y given the controls; Pearson's correlation without controls.

    The interval is Fisher's, with the variance 1 / (n - k - 3) for k controls.

    Raises:
      InputError: as in `least_squares`.
    """
    controls = controls or {}
    y_values, columns = _columns(y, {"x": x, **controls})
    x_values, n, names = columns.pop("x"), len(y_values), ", ".join(controls)
    residual_x, residual_y = (
        _ordinary_fit(values, columns)[0].resid if controls else values - values.mean()
        for values in (x_values, y_values)
    )
    for name, values, residual in (("x", x_values, residual_x), ("outcome", y_values, residual_y)):
        if residual @ residual <= 1e-18 * max(1.0 if name == "x" else 0.0, float(values @ values)):
            raise InputError(f"{name}: follows from {names} in these recipes; leave a control out")
    if (degrees := n - len(controls) - 3) < 1:
        always = " it is always 1 or -1;" if degrees < 0 else ""
        given = f" given {names}" if controls else ""
        raise InputError(f"correlation of {n} recipes{given}:{always} an interval needs at least {n - degrees + 1}")
    correlation = float(residual_x @ residual_y / math.sqrt((residual_x @ residual_x) * (residual_y @ residual_y)))
    return _fisher(correlation, n, degrees)


def rank_correlation(x: Values, y: Values, *, kind: str = "spearman") -> Interval:
    """Spearman's rho or Kendall's tau-b with the intervals of Bonett and Wright (2000), computed on the arctanh scale.

    Raises:
      InputError: another kind, or values as refused by `least_squares`.
    """
    if kind not in ("spearman", "kendall"):
        raise InputError(f"kind {kind!r}: expected 'spearman' or 'kendall'")
    y_values, columns = _columns(y, {"x": x})
    n, lost = len(y_values), 4 if kind == "kendall" else 3
    if n <= lost:
        raise InputError(f"rank correlation of {n} recipes: an interval needs at least {lost + 1}")
    if kind == "kendall":
        return _fisher(float(stats.kendalltau(columns["x"], y_values).statistic), n, n - lost, 0.437)
    correlation = float(stats.spearmanr(columns["x"], y_values).statistic)
    return _fisher(correlation, n, n - lost, 1 + correlation**2 / 2)


@dataclass(frozen=True, kw_only=True)
class Term:
    """A row of an analysis of variance (type II): a factor, or the interaction of two, named "a:b"."""

    name: str
    degrees: int
    sum_of_squares: float
    share: float  # of the total sum of squares; nan where the term or the residual has no degrees of freedom
    f: float
    p: float  # nan where the share is, and where there is no residual variance; f likewise


@dataclass(frozen=True, kw_only=True)
class Effects:
    """Terms of a grid, and the adjusted mean `levels[factor][level]` at each level of each factor.

    `withheld` holds the reasons why factors, means, shares or tests are missing.
    """

    terms: list[Term]
    levels: dict[str, dict[Any, Interval]]
    withheld: list[str]
    residual_degrees: int
    residual_variance: float


def factor_effects(
    runs: Sequence[Mapping[str, Any]], outcome: str, factors: Sequence[str], *, block: str | None = None
) -> Effects:
    """Analysis of variance (type II) of a grid of runs, which may have empty cells.

    Args:
      runs: a mapping for each run, with the outcome, the level of every factor, and the block.
      outcome: the key of the number to explain.
      factors: keys of the factors; those with a single level are left out.
      block: the key of a blocking variable, such as the seed; None where there is none.

    Raises:
      InputError: no run, a missing key, an outcome that is not finite or is constant, or no factor that varies.
    """
    keys = [*factors, *([block] if block else [])]
    for index, run in enumerate(runs):
        if missing := [key for key in (outcome, *keys) if key not in run]:
            raise InputError(f"run {index}: no {missing[0]!r}; every run needs {', '.join((outcome, *keys))}")
    if not runs:
        raise InputError("effects: no finished run to analyse")
    y = np.array([float(run[outcome]) for run in runs])
    if not np.isfinite(y).all():
        index = int(np.flatnonzero(~np.isfinite(y))[0])
        raise InputError(f"run {index}: {outcome} is not finite; leave that run out of the analysis")
    levels = {key: list(dict.fromkeys(run[key] for run in runs)) for key in keys}
    coded = {key: _effect_coding([run[key] for run in runs], levels[key]) for key in keys if len(levels[key]) > 1}
    terms = {factor: coded[factor] for factor in factors if factor in coded}
    if not terms:
        raise InputError(f"effects: none of {', '.join(factors)} takes two levels in the finished runs")
    if is_constant(y):
        raise InputError(f"effects: {outcome} is the same in all {len(y)} runs, so no factor moves it")
    base = [coded[block]] if block in coded else []
    means = _level_means(y, base, terms, levels)
    for a, b in itertools.combinations(list(terms), 2):
        terms[f"{a}:{b}"] = (coded[a][:, :, None] * coded[b][:, None, :]).reshape(len(y), -1)
    full = _fit(y, [*base, *terms.values()])
    degrees, effects = int(full.df_resid), [_term(name, terms, base, y, full) for name in terms]
    aliased = [term.name for term in effects if not term.degrees]
    reasons = {
        f"{', '.join(factor for factor in factors if factor not in coded)}: one level only": any(
            factor not in coded for factor in factors
        ),
        f"{', '.join(aliased)}: cannot be told from the other terms in these runs": aliased,
        f"means of {', '.join(factor for factor in coded if factor not in means and factor != block)}: they depend on "
        "factors that cannot be told apart": any(factor in coded and factor not in means for factor in factors),
        f"shares, F and p: {len(y)} runs leave no degrees of freedom beside the terms": degrees <= 0,
        "F and p: the terms explain every run exactly": degrees > 0 and not _has_noise(full),
    }
    return Effects(
        terms=effects,
        levels=means,
        withheld=[reason for reason, holds in reasons.items() if holds],
        residual_degrees=degrees,
        residual_variance=float(full.ssr / degrees) if degrees > 0 else math.nan,
    )


def _effect_coding(values: Sequence[Any], levels: list[Any]) -> np.ndarray:
    """Effect coding [n, levels - 1]: columns sum to zero over a balanced grid, so that the intercept is the mean."""
    code = np.concatenate([np.eye(len(levels) - 1), -np.ones((1, len(levels) - 1))])
    return code[[levels.index(value) for value in values]]


def _fit(y: np.ndarray, columns: Sequence[np.ndarray]) -> Any:
    with warnings.catch_warnings():  # with empty cells coefficients are not unique; squares and degrees still are
        warnings.simplefilter("ignore", SingularMatrixWarning)
        return OLS(y, np.concatenate([np.ones((len(y), 1)), *columns], axis=1)).fit()


def _has_noise(fit: Any) -> bool:
    """Whether the residuals exceed rounding errors."""
    return bool(fit.ssr > _EXACT * fit.centered_tss)


def _term(name: str, terms: Mapping[str, np.ndarray], base: Sequence[np.ndarray], y: np.ndarray, full: Any) -> Term:
    """The reduction in squares by adding the term to all terms that do not contain it (type II), by two nested fits.

    Not by `anova_lm(typ=2)`, whose sums of squares are wrong for a grid with an empty cell (statsmodels 0.15).
    """
    factors = set(name.split(":"))
    others = [*base, *(columns for other, columns in terms.items() if not factors <= set(other.split(":")))]
    without, including = _fit(y, others), _fit(y, [*others, terms[name]])
    added, degrees = max(float(without.ssr - including.ssr), 0.0), int(without.df_resid - including.df_resid)
    has_share = degrees > 0 and full.df_resid > 0
    testable = has_share and _has_noise(full)
    f = added / degrees / (full.ssr / full.df_resid) if testable else math.nan
    return Term(
        name=name,
        degrees=degrees,
        sum_of_squares=added,
        share=float(added / full.centered_tss) if has_share else math.nan,
        f=float(f),
        p=float(stats.f.sf(f, degrees, full.df_resid)) if testable else math.nan,
    )


def _level_means(
    y: np.ndarray, base: Sequence[np.ndarray], factors: Mapping[str, np.ndarray], levels: Mapping[str, list[Any]]
) -> dict[str, dict[Any, Interval]]:
    """The mean outcome at each level of each factor in the model of main effects, averaged over the levels of the other
    factors; factors for which it is not estimable are left out.
    """
    fit = _fit(y, [*base, *factors.values()])
    covariance, degrees = fit.normalized_cov_params, fit.df_resid
    is_noisy = degrees > 0 and _has_noise(fit)
    quantile = math.sqrt(fit.ssr / degrees) * stats.t.ppf((1 + LEVEL) / 2, degrees) if is_noisy else math.nan
    estimable = fit.model.pinv_wexog @ fit.model.exog  # projects on the estimable contrasts
    means: dict[str, dict[Any, Interval]] = {}
    start = 1 + sum(columns.shape[1] for columns in base)
    for name, columns in factors.items():
        means[name] = {}
        for value, code in zip(levels[name], _effect_coding(levels[name], levels[name]), strict=True):
            row = np.zeros(len(fit.params))
            row[0], row[start : start + len(code)] = 1, code
            if not np.allclose(row @ estimable, row, atol=1e-8):
                del means[name]
                break
            half = quantile * math.sqrt(row @ covariance @ row)
            means[name][value] = Interval.around(row @ fit.params, half, len(y))
        start += columns.shape[1]
    return means


def power(correlation: float, recipes: int) -> float:
    """The power of the two-sided t test of a correlation over so many recipes (noncentral t, fixed design)."""
    if not -1 < correlation < 1 or recipes < 3:
        raise InputError(f"power at correlation {correlation}, {recipes} recipes: needs one inside (-1, 1), 3 or more")
    shift = abs(correlation) / math.sqrt(1 - correlation**2) * math.sqrt(recipes)
    limit = stats.t.ppf((1 + LEVEL) / 2, recipes - 2)
    return float(stats.nct.sf(limit, recipes - 2, shift) + stats.nct.cdf(-limit, recipes - 2, shift))


def recipes_needed(correlation: float, *, wanted_power: float = 0.8) -> int:
    """The fewest recipes at which the t test of a true correlation has the wanted power.

    Raises:
      InputError: a correlation of zero, or outside (-1, 1), or a power outside (0, 1).
    """
    if correlation == 0 or not 0 < wanted_power < 1:
        raise InputError(f"power {wanted_power} at correlation {correlation}: no number of recipes gives that")
    most = 4
    while power(correlation, most) < wanted_power:
        most *= 2
    return 3 + bisect.bisect_left(range(3, most), wanted_power, key=lambda recipes: power(correlation, recipes))

"""Fits a saturation curve of an outcome over an amount, with intervals by profile likelihood."""

from collections.abc import Sequence
from dataclasses import dataclass
import math

import numpy as np
from scipy import optimize, stats
from statsmodels.tools.eval_measures import aicc_sigma

from diversity_jax.core.errors import InputError
from diversity_jax.study.statistics import LEVEL, Interval, is_constant


@dataclass(frozen=True, kw_only=True)
class Saturation:
    """outcome = top - gain * exp(-amount / scale)."""

    top: Interval
    gain: float
    scale: Interval
    better_than_a_line: bool  # by Akaike's information criterion corrected for small samples


def saturation(amounts: Sequence[float], outcomes: Sequence[float]) -> Saturation:
    """Fits a saturation curve of an outcome over an amount (topics, generations, tokens) by least squares.

    The scale is found on a grid and refined. The grid also gives the intervals: values whose sum of squares is at
    most 1 + F(0.95; 1, n - 3) / (n - 3) times the least.

    Raises:
      InputError: fewer than five points, fewer than four different amounts, a value that is not finite, or equal
        outcomes.
    """
    x, y = np.asarray(amounts, float), np.asarray(outcomes, float)
    n = len(y)
    if n < 5 or len(np.unique(x)) < 4:
        raise InputError(f"saturation: {n} points at {len(np.unique(x))} amounts; it needs five points at four amounts")
    if not np.isfinite([x, y]).all() or is_constant(y):
        what = "the outcome is the same in all points" if np.isfinite([x, y]).all() else "a point is not finite"
        raise InputError(f"saturation: {what}, so that no curve can be fitted")

    def fit(log_scale: float) -> tuple[float, float, float]:
        """Residual sum of squares, top and gain at a scale."""
        design = np.stack([np.ones(n), -np.exp(-(x - x.min()) / math.exp(log_scale))], axis=1)
        (top, gain), *_ = np.linalg.lstsq(design, y, rcond=None)
        residuals = y - design @ [top, gain]
        return float(residuals @ residuals), float(top), float(gain)

    span = math.log(float(np.ptp(x)))
    log_scales = np.linspace(span - math.log(100), span + math.log(100), 4000)
    bend_GxN = -np.exp(-(x - x.min())[None] / np.exp(log_scales)[:, None])
    centred_GxN = bend_GxN - bend_GxN.mean(axis=1, keepdims=True)
    squares_G = np.sum((y - y.mean()) ** 2) - (centred_GxN @ y) ** 2 / np.sum(centred_GxN**2, axis=1)
    k = int(squares_G.argmin())
    around = (log_scales[max(k - 1, 0)], log_scales[min(k + 1, len(log_scales) - 1)])
    best = float(optimize.minimize_scalar(lambda log_scale: fit(log_scale)[0], bounds=around, method="bounded").x)
    least, top, gain = fit(best)
    allowed = least * (1 + stats.f.ppf(LEVEL, 1, n - 3) / (n - 3))
    inside = log_scales[squares_G <= allowed] if (squares_G <= allowed).any() else np.array([best])
    low, high = float(inside[0]), float(inside[-1])
    scale = Interval(
        value=math.exp(best),
        low=math.exp(low) if low > log_scales[0] else 0.0,
        high=math.exp(high) if high < log_scales[-1] else math.inf,
        n=n,
    )
    line = np.polyval(np.polyfit(x, y, 1), x)
    return Saturation(
        top=_top_interval(x, y, bend_GxN, top, allowed),
        gain=gain * math.exp(x.min() / math.exp(best)),
        scale=scale,
        # With five points the corrected criterion of four parameters is infinite.
        better_than_a_line=n > 5 and bool(aicc_sigma(least / n, n, 4) < aicc_sigma(np.mean((y - line) ** 2), n, 3)),
    )


def _top_interval(x: np.ndarray, y: np.ndarray, bend_GxN: np.ndarray, top: float, allowed: float) -> Interval:
    """The range of tops for which a scale of the grid, with its best gain, has at most the allowed sum of squares.

    With the best gain the sum is quadratic in the top t: a t^2 - 2 b t + c, at most `allowed` between two roots.
    """
    own_G = np.sum(bend_GxN**2, axis=1)
    ones_G, outcome_G = np.sum(bend_GxN, axis=1), bend_GxN @ y
    a, b, c = len(y) - ones_G**2 / own_G, y.sum() - ones_G * outcome_G / own_G, y @ y - outcome_G**2 / own_G
    discriminant = b**2 - a * (c - allowed)
    fits = (discriminant >= 0) & (a > 1e-12)
    if not fits.any():
        return Interval(value=top, low=top, high=top, n=len(y))
    root = np.sqrt(np.maximum(discriminant, 0))
    low, high = float(((b - root) / a)[fits].min()), float(((b + root) / a)[fits].max())
    if fits[-1]:  # the largest scale, nearly a straight line, fits too: the data do not bound the top
        low, high = (low, math.inf) if y[np.argmax(x)] >= y[np.argmin(x)] else (-math.inf, high)
    return Interval(value=top, low=low, high=high, n=len(y))

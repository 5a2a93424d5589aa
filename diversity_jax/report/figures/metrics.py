"""Figures of many metrics at once: which tell two corpora apart, and how far they rank corpora alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import math

import numpy as np

from diversity_jax.core.formats import shortened, significant
from diversity_jax.report.plotting import Canvas, x_ticks
from diversity_jax.report.style import LIGHT

_ROW = 26


@dataclass(frozen=True, kw_only=True)
class Separation:
    """One row of `separations`.

    Attributes:
      title: the metric.
      whole, controlled: how far apart two corpora are, in units of the difference's own 95 % half-width, above 0 where
        the first is more
        diverse: beyond +-1 is decided. At whole length, and at equal length; None where not measured.
    """

    title: str
    whole: float | None
    controlled: float | None


def _squeezed(value: float) -> float:
    """Linear up to 1, then logarithmic, so that 1 and 100 fit on one axis."""
    return math.copysign(min(abs(value), 1.0) + math.log10(max(abs(value), 1.0)), value)


def separations(rows: Sequence[Separation], first: str, second: str, width: int) -> Canvas:
    """For every metric, in which direction and how clearly two corpora differ; the band is where nothing is decided."""
    narrow = width < 600
    left, right, top, bottom = (150 if narrow else 240), 12, 54, 34
    canvas = Canvas(width, top + _ROW * len(rows) + bottom)
    axes = canvas.axes(left, top, width - left - right, _ROW * len(rows))
    values = [value for row in rows for value in (row.whole, row.controlled) if value is not None]
    most = max([2.2, *(abs(_squeezed(value)) + 0.2 for value in values)])
    axes.set_xlim(-most, most)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks([])
    axes.axvspan(-1, 1, color=LIGHT["band"], linewidth=0, zorder=0)
    axes.axvline(0, color=LIGHT["muted"], linewidth=1)
    marks = [
        mark
        for mark in (-100, -10, -3, -1, 1, 3, 10, 100)
        if abs(_squeezed(mark)) < most and (not narrow or abs(mark) != 3)
    ]
    x_ticks(axes, [_squeezed(mark) for mark in marks], lambda x: significant(_unsqueezed(x)), ruled=True)
    for place, row in enumerate(rows):
        canvas.text(
            0, top + _ROW * (place + 0.5), shortened(row.title, 20 if narrow else 32), size=12 if narrow else 13
        )
        for value, height, face in ((row.whole, -0.14, LIGHT["c1"]), (row.controlled, 0.14, LIGHT["paper"])):
            if value is not None:
                mark = {"marker": "o", "markersize": 8, "markeredgewidth": 2, "markerfacecolor": face}
                axes.plot([_squeezed(value)], [place + height], color=LIGHT["c1"], **mark)
    names = 16 if narrow else 40
    canvas.text(left, 12, f"\u2190 {shortened(second, names)} more diverse", "muted", size=12)
    canvas.text(
        width - right,
        32 if narrow else 12,
        f"{shortened(first, names)} more diverse \u2192",
        "muted",
        align="right",
        size=12,
    )
    canvas.text(left, canvas.height - 8, "difference over its 95 % half-width", "muted", size=12)
    return canvas


def _unsqueezed(place: float) -> float:
    return math.copysign(abs(place) if abs(place) <= 1 else 10 ** (abs(place) - 1), place)


def correlations(names: Sequence[str], values: Mapping[tuple[str, str], float], width: int) -> Canvas:
    """Rank correlations between all metrics as a triangle of dots: area for strength, one colour for agreement, another
    for opposition.
    """
    narrow = width < 600
    left = 150 if narrow else 240
    cell = min(34.0, (width - left - 8) / max(len(names) - 1, 1))
    size = cell * len(names)
    canvas = Canvas(width, round(size + 44))
    axes = canvas.axes(left, 8, cell * len(names), size)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xticks([])
    axes.set_yticks([])
    for row, name in enumerate(names):
        y = 8 + cell * (row + 0.5)
        canvas.text(0, y, f"{row + 1}  {shortened(name, 17 if narrow else 30)}", size=11 if narrow else 13)
        if cell >= 20:
            axes.text(row, row, str(row + 1), color=LIGHT["muted"], ha="center", va="center", fontsize=11)
        for column in range(row):
            value = values.get((names[column], name), values.get((name, names[column])))
            if value is None or not np.isfinite(value):
                continue
            largest = 0.86 * cell  # a dot of area 1 nearly fills its cell
            mark = {"marker": "o", "markersize": max(largest * math.sqrt(abs(value)), 1.0), "markeredgewidth": 0}
            axes.plot([column], [row], color=LIGHT["c1" if value > 0 else "c2"], **mark)
            if cell >= 30:
                ink = LIGHT["paper"] if abs(value) > 0.55 else LIGHT["ink"]
                axes.text(
                    column,
                    row,
                    f"{abs(value):.1f}".lstrip("0") if abs(value) < 0.95 else "1",
                    color=ink,
                    ha="center",
                    va="center",
                    fontsize=10,
                )
    canvas.text(left, canvas.height - 12, "area: strength; blue agrees, orange opposes", "muted", size=12)
    return canvas

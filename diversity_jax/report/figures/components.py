"""Figures that set components side by side: the gate's decisions, the clusters a judge saw, and token shares.

Each function lays its figure out for a width in pixels and gives back the canvas. Components are named beside their
marks instead of in a legend, and keep their colour from figure to figure.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
import math
from typing import Any

import numpy as np

from diversity_jax.core.formats import estimate, percent, significant
from diversity_jax.report.data import Distribution, Estimate, Share
from diversity_jax.report.plotting import Canvas, label, label_px, log_ticks, tick_values, x_ticks
from diversity_jax.report.style import LIGHT, Palette


@dataclass(frozen=True, kw_only=True)
class Whisker:
    """One row of `whiskers`: a component's estimate.

    Attributes:
      name: the component.
      interval: the estimate, above 0; without an upper end it is drawn as an arrow from its lower bound.
      note: a word at the row's end.
      mark: how the dot is filled: "full", "half" or "hollow".
      required: where the interval had to lie above; None where nothing was asked for.
    """

    name: str
    interval: Estimate
    note: str = ""
    mark: str = "full"
    required: float | None = None


@dataclass(frozen=True, kw_only=True)
class Band:
    """An interval that others are compared with, drawn behind all rows."""

    name: str
    interval: Estimate


def whiskers(rows: Sequence[Whisker], band: Band | None, palette: Palette, width: int) -> Canvas:
    """Effective clusters of every component as a dot with its interval on a log axis, over what was required and
    compared with.
    """
    narrow = width < 600
    row, top, bottom = 60 if narrow else 42, 46 if band or any(one.required for one in rows) else 12, 46
    left = 4 if narrow else label_px([one.name for one in rows])
    right = 8 if narrow else 300 if any(one.note for one in rows) else 190
    canvas = Canvas(width, top + row * len(rows) + bottom)
    axes = canvas.axes(left, top, width - left - right, row * len(rows))
    low, high = _log_limits(rows, band)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks([])
    x_ticks(axes, log_ticks(low, high, 5 if narrow else 7), significant, ruled=True)

    def x_px(value: float) -> float:
        return left + (math.log(value / low) / math.log(high / low)) * (width - left - right)

    taken = _draw_band(canvas, axes, band, x_px, top, palette) if band else None
    _draw_required(canvas, axes, rows, x_px, top, taken)
    canvas.text(left, canvas.height - 8, "effective clusters, log scale", "muted", size=12)
    for place, one in enumerate(rows):
        _draw_whisker(axes, one, place + (0.22 if narrow else 0), high, LIGHT[palette.slot(one.name)])
        y = top + row * (place + 0.5) - (16 if narrow else 0)
        canvas.text(0, y, label(one.name, 16 if narrow else 20), palette.slot(one.name), bold=True)
        if narrow:
            canvas.text(
                width, y, ", ".join(part for part in (estimate(one.interval), one.note) if part), align="right", size=12
            )
        else:
            canvas.text(width - right + 28, y, estimate(one.interval))
            canvas.text(width, y, one.note, align="right", bold=one.mark == "hollow")
    return canvas


def _log_limits(rows: Sequence[Whisker], band: Band | None) -> tuple[float, float]:
    """Limits with room around every interval, at least a factor of four apart."""
    intervals = [one.interval for one in rows] + ([band.interval] if band else [])
    seen = [interval.low for interval in intervals] + [interval.high or 1.6 * interval.low for interval in intervals]
    seen += [interval.value for interval in intervals if interval.high is not None]
    seen += [one.required for one in rows if one.required]
    low, high = min(seen) / 1.35, max(seen) * 1.35
    widen = max(1.0, 4 / (high / low)) ** 0.5
    return low / widen, high * widen


def _draw_band(
    canvas: Canvas, axes: Any, band: Band, x_px: Callable[[float], float], top: int, palette: Palette
) -> tuple[float, float]:
    """Draws the band with its name above; gives back from where to where the name stands, in pixels."""
    low, high = band.interval.low, band.interval.high or axes.get_xlim()[1]
    axes.axvspan(low, high, color=LIGHT["band"], linewidth=0, zorder=0)
    on_right = x_px(low) > 0.6 * canvas.width
    x, says = x_px(high if on_right else low), f"{label(band.name)}, the reference"
    canvas.text(x, top - 12, says, palette.slot(band.name), align="right" if on_right else "left", size=12)
    return (x - 7.2 * len(says), x) if on_right else (x, x + 7.2 * len(says))


def _draw_required(
    canvas: Canvas,
    axes: Any,
    rows: Sequence[Whisker],
    x_px: Callable[[float], float],
    top: int,
    taken: tuple[float, float] | None,
) -> None:
    """What was asked for as a dashed line: one through all rows, named above, where all rows have it in common; else
    one a row.
    """
    required = sorted({one.required for one in rows if one.required is not None})
    if len(required) == 1:
        axes.axvline(required[0], color=LIGHT["ink"], linewidth=1.2, linestyle=(0, (4, 3)))
        x, says = x_px(required[0]), f"needed: {significant(required[0])}"
        on_right = x > 0.3 * canvas.width
        start = x - 7.2 * len(says) if on_right else x
        overlaps = taken is not None and start < taken[1] + 8 and start + 7.2 * len(says) > taken[0] - 8
        canvas.text(x, top - (29 if overlaps else 12), says, "muted", align="right" if on_right else "left", size=12)
        return
    for place, one in enumerate(rows):
        if one.required is not None:
            low, high = (place, place + 0.44) if canvas.narrow else (place - 0.36, place + 0.36)
            axes.plot([one.required] * 2, [low, high], color=LIGHT["ink"], linewidth=1.2, linestyle=(0, (4, 3)))


def _draw_whisker(axes: Any, one: Whisker, y: float, limit: float, colour: str) -> None:
    """The interval as a line and the estimate as a dot; an arrow for a lower bound."""
    interval = one.interval
    if interval.high is None:
        arrow = {"arrowstyle": "->", "color": colour, "linewidth": 2, "shrinkA": 0, "shrinkB": 2}
        axes.annotate("", (limit, y), (interval.low, y), arrowprops=arrow)
        axes.plot([interval.low] * 2, [y - 0.13, y + 0.13], color=colour, linewidth=2)
        return
    axes.plot([interval.low, interval.high], [y, y], color=colour, linewidth=2.6)
    face = LIGHT["paper"] if one.mark == "hollow" else colour
    fill = "left" if one.mark == "half" else "full"
    dot = {
        "marker": "o",
        "markersize": 10,
        "markeredgewidth": 2.2,
        "markerfacecolor": face,
        "markerfacecoloralt": LIGHT["paper"],
    }
    axes.plot([interval.value], [y], color=colour, fillstyle=fill, **dot)


@dataclass(frozen=True, kw_only=True)
class Ridge:
    """One column of a ridge figure: a title, the unit of its axis and one distribution a component."""

    title: str
    axis: str
    distributions: Sequence[Distribution]


def ridges(columns: Sequence[Ridge], palette: Palette, width: int) -> Canvas:
    """Distributions one below the other on a common axis, a column for each quantity; columns stand below each other on
    narrow screens.
    """
    narrow = width < 600
    names = list(dict.fromkeys(distribution.name for column in columns for distribution in column.distributions))
    row, head, foot, gap = (96, 26, 64, 0) if narrow else (76, 26, 50, 48)
    left = 0 if narrow else label_px(names)
    block = head + row * len(names) + foot
    canvas = Canvas(width, block * len(columns) if narrow else block)
    across = width if narrow else (width - left - gap * (len(columns) - 1)) / len(columns)
    for place, column in enumerate(columns):
        x = 0 if narrow else left + place * (across + gap)
        y = place * block if narrow else 0
        canvas.text(x, y + 10, column.title, bold=True)
        _ridge_column(canvas, column, names, (x, y + head, across, row), palette)
    for place, name in enumerate(names if not narrow else ()):
        canvas.text(0, head + row * (place + 1) - 12, label(name), palette.slot(name), bold=True)
    return canvas


def _ridge_column(
    canvas: Canvas, column: Ridge, names: Sequence[str], box: tuple[float, float, float, float], palette: Palette
) -> None:
    x, y, width, row = box
    by_name = {distribution.name: distribution for distribution in column.distributions if distribution.counts.sum()}
    values = (
        np.concatenate([distribution.values for distribution in by_name.values()]) if by_name else np.arange(1.0, 3.0)
    )
    step = min((np.diff(found.values).min() for found in by_name.values() if len(found.values) > 1), default=1.0)
    low, high = float(values.min() - step / 2), float(values.max() + step / 2)
    tallest = max((distribution.shares.max() for distribution in by_name.values()), default=1.0)
    line = 18 if canvas.narrow else 0  # where the name stands above the bars
    for place, name in enumerate(names):
        axes = canvas.axes(x, y + row * place + line, width, row - line)
        axes.set_xlim(low, high)
        axes.set_ylim(0, 1.52 * tallest)
        axes.set_yticks([])
        axes.axhline(0, color=LIGHT["rule"], linewidth=1)
        ticks = tick_values(low, high, 7, whole=bool(step >= 1)) if place == len(names) - 1 else ()
        x_ticks(axes, ticks, significant)
        if name in by_name:
            mean_on_left = by_name[name].mean > low + 0.7 * (high - low)
            _ridge(axes, by_name[name], step, tallest, LIGHT[palette.slot(name)], mean_on_left)
        else:
            canvas.text(x + width, y + row * (place + 1) - 12, "nothing seen", "muted", align="right", size=12)
        if line:
            canvas.text(x, y + row * place + 12, label(name), palette.slot(name), bold=True)
    canvas.text(x, y + row * len(names) + 38, column.axis, "muted", size=12)


def _ridge(axes: Any, distribution: Distribution, step: float, tallest: float, colour: str, on_left: bool) -> None:
    """Bars of the shares, and the mean as an upright line with its value."""
    axes.bar(distribution.values, distribution.shares, width=0.82 * step, color=colour, linewidth=0)
    axes.plot([distribution.mean] * 2, [0, 1.34 * tallest], color=LIGHT["ink"], linewidth=1)
    says, place = f"mean {significant(distribution.mean)}", (distribution.mean, 1.24 * tallest)
    words = {
        "textcoords": "offset points",
        "va": "center",
        "fontsize": 12,
        "color": LIGHT["ink"],
        "ha": "right" if on_left else "left",
    }
    axes.annotate(says, place, xytext=(-6 if on_left else 6, 0), **words)


def shares(parts: Sequence[Share], palette: Palette, width: int) -> Canvas:
    """Realised token shares as bars with a mark at what was asked for; before training, the granted shares stand for
    the realised.
    """
    narrow = width < 600
    row, head, foot = 54 if narrow else 38, 0 if narrow else 30, 34
    left = 0 if narrow else label_px([part.name for part in parts])
    right = 4 if narrow else 330
    canvas = Canvas(width, head + row * len(parts) + foot)
    axes = canvas.axes(left, head, width - left - right, row * len(parts))
    most = 1.04 * max([max(part.asked, part.granted, part.realised or 0) for part in parts] + [0.01])
    axes.set_xlim(0, most)
    axes.set_ylim(len(parts) - 0.5, -0.5)
    axes.set_yticks([])
    x_ticks(
        axes, tick_values(0, most, 4 if narrow else 5), lambda tick: percent(tick, 0 if most > 0.05 else 1), ruled=True
    )
    columns = (("asked", width - 210), ("granted", width - 105), ("realised", width))
    for title, x in () if narrow else columns:
        canvas.text(x, 9, title, "muted", align="right", size=12)
    for place, part in enumerate(parts):
        half, y = (0.16, place + 0.22) if narrow else (0.24, place)
        got, pale = (part.granted, 0.55) if part.realised is None else (part.realised, 1.0)
        axes.barh([y], [got], height=2 * half, color=LIGHT[palette.slot(part.name)], alpha=pale, linewidth=0)
        axes.plot([part.asked] * 2, [y - 1.45 * half, y + 1.45 * half], color=LIGHT["ink"], linewidth=2)
        line = head + row * (place + 0.5) - (15 if narrow else 0)
        canvas.text(0, line, label(part.name), palette.slot(part.name), bold=True)
        if narrow:
            canvas.text(width - right, line, f"asked {percent(part.asked)}, got {percent(got)}", align="right", size=12)
            continue
        realised = "\u2013" if part.realised is None else percent(part.realised, 2)
        for (title, x), says in zip(columns, (percent(part.asked), percent(part.granted), realised), strict=True):
            canvas.text(x, line, says, "ink" if title == "realised" else "muted", align="right")
    return canvas

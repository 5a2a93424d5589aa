"""Figures of measured diversity: effective clusters, distributions of clusters, convergence, metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from diversity_jax.core.errors import InputError
from diversity_jax.core.formats import count, estimate, shortened, significant
from diversity_jax.core.intervals import Estimate
from diversity_jax.report.html import LIGHT, Palette
from diversity_jax.report.plotting import Canvas, end_labels, for_phone, label, label_px, log_ticks, set_ticks

_ROW = 26  # pixels of a metric's row


@dataclass(frozen=True, kw_only=True)
class Whisker:
    """One row of `whiskers`: a component's estimate.

    Attributes:
      name: of the component.
      interval: the estimate, above 0; without an upper end it is drawn as an arrow from its lower bound.
      note: text at the end of the row.
      fill: of the dot: "full", "left" (half) or "none".
      required: a value that the interval had to lie above; None where there was none.
    """

    name: str
    interval: Estimate
    note: str = ""
    fill: str = "full"
    required: float | None = None


def whiskers(rows: Sequence[Whisker], reference: Whisker | None, palette: Palette, width: int) -> Canvas:
    """Effective clusters of every component as a dot with its interval on a log axis.

    The interval of `reference` is a band behind all rows, and required values are dashed lines.
    """
    phone = for_phone(width)
    required = sorted({row.required for row in rows if row.required is not None})
    height, top = 60 if phone else 42, 46 if reference or required else 12
    left = 4 if phone else label_px([row.name for row in rows])
    right = 8 if phone else 300 if any(row.note for row in rows) else 190
    canvas = Canvas(width, top + height * len(rows) + 46)
    axes = canvas.rows(len(rows), (left, top, right, height))
    low, high = _log_limits([*rows, *([reference] if reference else [])])
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    set_ticks(axes.xaxis, log_ticks(low, high, 5 if phone else 7), significant, ruled=True)

    def x_px(value: float) -> float:
        return left + math.log(value / low) / math.log(high / low) * (width - left - right)

    taken = (0.0, 0.0)  # pixels of the x axis that the reference's name covers
    if reference:
        start, end = reference.interval.low or low, reference.interval.high or high
        axes.axvspan(start, end, color=LIGHT["band"], linewidth=0, zorder=0)
        text, at_right = f"{label(reference.name)}, the reference", x_px(start) > 0.6 * width
        x = x_px(end if at_right else start)
        taken = _text_above(canvas, x, top - 12, text, palette.slot(reference.name), at_right=at_right)
    if len(required) == 1:
        axes.axvline(required[0], color=LIGHT["ink"], linewidth=1.2, linestyle=(0, (4, 3)))
        x, text = x_px(required[0]), f"needed: {significant(required[0])}"
        at_right = x > 0.3 * width
        start, end = (x - 7.2 * len(text), x) if at_right else (x, x + 7.2 * len(text))
        overlaps = taken[1] > 0 and start < taken[1] + 8 and end > taken[0] - 8
        _text_above(canvas, x, top - (29 if overlaps else 12), text, "muted", at_right=at_right)
    canvas.note(left, canvas.height - 8, "effective clusters, log scale")
    for index, row in enumerate(rows):
        _whisker(axes, row, index + (0.22 if phone else 0), palette.colour(row.name))
        if row.required is not None and len(required) > 1:
            ends = (index, index + 0.44) if phone else (index - 0.36, index + 0.36)
            axes.plot([row.required] * 2, ends, color=LIGHT["ink"], linewidth=1.2, linestyle=(0, (4, 3)))
        y = top + height * (index + 0.5) - (16 if phone else 0)
        canvas.text(0, y, label(row.name, 16 if phone else 20), palette.slot(row.name), bold=True)
        if phone:
            canvas.text(width, y, ", ".join(filter(None, (estimate(row.interval), row.note))), align="right", size=12)
        else:
            canvas.text(width - right + 28, y, estimate(row.interval))
            canvas.text(width, y, row.note, align="right", bold=row.fill == "none")
    return canvas


def _log_limits(rows: Sequence[Whisker]) -> tuple[float, float]:
    """Limits of the axis: around every interval, and at least a factor of four apart."""
    values = [row.required for row in rows if row.required]
    for interval in (row.interval for row in rows):
        least = interval.low or interval.value
        values += [least, 1.6 * least] if interval.high is None else [least, interval.value, interval.high]
    low, high = min(values) / 1.35, max(values) * 1.35
    widen = max(1.0, 4 / (high / low)) ** 0.5
    return low / widen, high * widen


def _text_above(canvas: Canvas, x: float, y: float, text: str, role: str, *, at_right: bool) -> tuple[float, float]:
    """Writes small text that ends (`at_right`) or begins at `x`; returns where it begins and ends, in pixels."""
    canvas.text(x, y, text, role, align="right" if at_right else "left", size=12)
    return (x - 7.2 * len(text), x) if at_right else (x, x + 7.2 * len(text))


def _whisker(axes: Any, row: Whisker, y: float, colour: str) -> None:
    """The interval as a line and the estimate as a dot; an arrow for a lower bound."""
    interval, low = row.interval, row.interval.low or row.interval.value
    if interval.high is None:
        arrow = {"arrowstyle": "->", "color": colour, "linewidth": 2, "shrinkA": 0, "shrinkB": 2}
        axes.annotate("", (axes.get_xlim()[1], y), (low, y), arrowprops=arrow)
        axes.plot([low] * 2, [y - 0.13, y + 0.13], color=colour, linewidth=2)
        return
    axes.plot([low, interval.high], [y, y], color=colour, linewidth=2.6)
    face = LIGHT["paper"] if row.fill == "none" else colour
    fill = "full" if row.fill == "none" else row.fill  # a hollow dot hides the line behind it
    axes.plot(interval.value, y, "o", color=colour, fillstyle=fill, markersize=10, markeredgewidth=2.2,
              markerfacecolor=face, markerfacecoloralt=LIGHT["paper"])  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """How often each value occurred.

    Attributes:
      name: of the component.
      values: [n], ascending.
      counts: [n], not negative.
      exact_mean: of the values before they were binned; None where they were not.
    """

    name: str
    values: np.ndarray
    counts: np.ndarray
    exact_mean: float | None = None

    def __post_init__(self):
        for axis in ("values", "counts"):
            object.__setattr__(self, axis, np.asarray(getattr(self, axis), float))
        if self.values.ndim != 1 or self.values.shape != self.counts.shape:
            shapes = f"{self.values.shape} values and {self.counts.shape} counts"
            raise InputError(f"distribution of {self.name}: {shapes}; expected equal lengths")
        if not (np.isfinite(self.values).all() and np.isfinite(self.counts).all() and (self.counts >= 0).all()):
            raise InputError(f"distribution of {self.name}: values must be finite and counts not negative")
        if (np.diff(self.values) <= 0).any():
            raise InputError(f"distribution of {self.name}: values must ascend, each once")

    @classmethod
    def binned(
        cls, name: str, values: ArrayLike, counts: ArrayLike, *, low: float, high: float, most: int = 40
    ) -> "Distribution":
        """Counts of values in [low, high] in at most `most` bins of equal width, a whole number where all values are
        whole numbers.
        """
        values, counts = np.asarray(values, float), np.asarray(counts, float)
        inside = np.isfinite(values) & (values >= low) & (values <= high)
        if values.shape != counts.shape or not inside.all():
            expected = f"expected as many counts as values, and values from {low:g} to {high:g}"
            raise InputError(f"distribution of {name}: {expected}")
        integers = bool((values == np.round(values)).all())
        width = math.ceil((high - low + 1) / most) if integers else (high - low) / most
        bins = math.ceil((high - low + 1) / width) if integers else most
        index = np.minimum((values - low) // width, bins - 1).astype(int)
        middle = low + width * np.arange(bins) + (width - 1 if integers else width) / 2
        mean = float(values @ counts / counts.sum()) if counts.sum() else None
        return cls(name=name, values=middle, counts=np.bincount(index, counts, bins), exact_mean=mean)

    @property
    def shares(self) -> np.ndarray:
        """Counts over their sum; zeros where there are none."""
        return self.counts / max(self.counts.sum(), 1e-300)

    @property
    def mean(self) -> float:
        """The mean value; NaN where there are no counts."""
        if self.exact_mean is not None:
            return self.exact_mean
        return float(self.values @ self.shares) if self.counts.sum() else math.nan


@dataclass(frozen=True, kw_only=True)
class Ridge:
    """One column of `ridges`: a title, the unit of its axis and one distribution a component."""

    title: str
    axis: str
    distributions: Sequence[Distribution]

    @classmethod
    def of_histograms(
        cls, title: str, axis: str, histograms: Mapping[str, Mapping[str, Sequence[float]]], *, high: float, bins: int
    ) -> "Ridge":
        """From `values` and `counts` by component, in at most `bins` bins between 1 and `high`."""
        distributions = [
            Distribution.binned(name, part["values"], part["counts"], low=1, high=high, most=bins)
            for name, part in histograms.items()
        ]
        return cls(title=title, axis=axis, distributions=distributions)


def ridges(columns: Sequence[Ridge], palette: Palette, width: int) -> Canvas:
    """Distributions one below the other on a common axis, a column for each quantity; on a telephone one column below
    the other.
    """
    phone = for_phone(width)
    names = list(dict.fromkeys(distribution.name for column in columns for distribution in column.distributions))
    row, head, foot, gap = (96, 26, 64, 0) if phone else (76, 26, 50, 48)
    left = 0 if phone else label_px(names)
    block = head + row * len(names) + foot
    canvas = Canvas(width, block * len(columns) if phone else block)
    across = width if phone else (width - left - gap * (len(columns) - 1)) / len(columns)
    for index, column in enumerate(columns):
        x, y = (0, index * block) if phone else (left + index * (across + gap), 0)
        canvas.text(x, y + 10, column.title, bold=True)
        _ridge_column(canvas, column, names, (x, y + head, across, row), palette)
    for index, name in enumerate(names if not phone else ()):
        canvas.text(0, head + row * (index + 1) - 12, label(name), palette.slot(name), bold=True)
    return canvas


def _ridge_column(
    canvas: Canvas, column: Ridge, names: Sequence[str], box: tuple[float, float, float, float], palette: Palette
) -> None:
    x, y, width, row = box
    by_name = {distribution.name: distribution for distribution in column.distributions if distribution.counts.sum()}
    distributions = list(by_name.values()) or [Distribution(name="", values=np.arange(1, 3), counts=np.zeros(2))]
    values = np.concatenate([distribution.values for distribution in distributions])
    step = min((np.diff(part.values).min() for part in distributions if len(part.values) > 1), default=1.0)
    low, high = float(values.min() - step / 2), float(values.max() + step / 2)
    tallest = max(distribution.shares.max() for distribution in distributions) or 1.0
    line = 18 if for_phone(canvas.width) else 0  # pixels for the name above the bars
    for index, name in enumerate(names):
        axes = canvas.axes(x, y + row * index + line, width, row - line, ylim=(0, 1.52 * tallest))
        axes.set_xlim(low, high)
        axes.axhline(0, color=LIGHT["rule"], linewidth=1)
        if index == len(names) - 1:
            set_ticks(axes.xaxis, 7, significant, integer=bool(step >= 1))
        if name in by_name:
            _ridge(axes, by_name[name], step, tallest, palette.colour(name))
        else:
            canvas.note(x + width, y + row * (index + 1) - 12, "nothing seen", align="right")
        if line:
            canvas.text(x, y + row * index + 12, label(name), palette.slot(name), bold=True)
    canvas.note(x, y + row * len(names) + 38, column.axis)


def _ridge(axes: Any, distribution: Distribution, step: float, tallest: float, colour: str) -> None:
    """Bars of the shares, and the mean as an upright line with its value."""
    low, high = axes.get_xlim()
    mean, on_left = distribution.mean, distribution.mean > low + 0.7 * (high - low)
    axes.bar(distribution.values, distribution.shares, width=0.82 * step, color=colour, linewidth=0)
    axes.plot([mean] * 2, [0, 1.34 * tallest], color=LIGHT["ink"], linewidth=1)
    axes.annotate(
        f"mean {significant(mean)}",
        (mean, 1.24 * tallest),
        (-6 if on_left else 6, 0),
        textcoords="offset points",
        ha="right" if on_left else "left",
        va="center",
        fontsize=12,
        color=LIGHT["ink"],
    )


def convergence(runs: Mapping[str, Mapping[str, Sequence[float | None]]], palette: Palette, width: int) -> Canvas:
    """Effective clusters over the number of groupings, on log axes: the estimate with its interval, or a dotted bound.

    Args:
      runs: by name, `groupings`, `value`, `low` and `high` of equal lengths; `high` is None where `low` is a bound.
    """
    series = {name: {key: np.array(run[key], float) for key in CONVERGENCE} for name, run in runs.items()}
    phone, right = for_phone(width), label_px(list(runs))
    left, head, height = 48, 34, 240 if phone else 300
    canvas = Canvas(width, head + height + 46)
    canvas.text(0, 10, "Effective clusters", bold=True)
    axes = canvas.axes(left, head, width - left - right, height)
    bounds = [run["value"][np.isfinite(run["high"])] for run in series.values()]
    bounds += [run[key] for run in series.values() for key in ("low", "high")]
    values = np.concatenate(bounds)
    values = values[np.isfinite(values) & (values > 0)]
    low, high = (float(values.min()) / 1.15, float(values.max()) * 1.15) if len(values) else (1.0, 10.0)
    first, last = (float(pick(pick(run["groupings"]) for run in series.values())) for pick in (min, max))
    axes.set(xscale="log", yscale="log", xlim=(first, max(last, 1.01 * first)), ylim=(low, high))
    set_ticks(axes.yaxis, log_ticks(low, high, 6), significant, ruled=True)
    set_ticks(axes.xaxis, log_ticks(first, last, 4 if phone else 8), count)
    canvas.note(left, canvas.height - 8, "groupings, log scale")
    ends = {}
    for name, run in series.items():
        x, colour, bounded = run["groupings"], palette.colour(name), np.isfinite(run["high"])
        value, bound = (np.where(shown, run[key], np.nan) for shown, key in ((bounded, "value"), (~bounded, "low")))
        axes.fill_between(x, run["low"], run["high"], where=bounded, color=colour, alpha=0.16, linewidth=0)
        axes.plot(x, value, color=colour, linewidth=2, linestyle=palette.dash(name))
        axes.plot(x, bound, color=colour, linewidth=1.6, linestyle=(0, (1, 2)))
        end = value[-1] if bounded[-1] else bound[-1]
        ends[name] = head + height * math.log(high / end) / math.log(high / low)
    end_labels(canvas, width - right + 9, ends, (head, head + height - 12), palette)
    return canvas


CONVERGENCE = ("groupings", "value", "low", "high")
"""Fields of a scorecard's `convergence`."""


@dataclass(frozen=True, kw_only=True)
class Separation:
    """One row of `separations`.

    Attributes:
      title: the metric.
      full_length, equal_length: the difference of two corpora over the half-width of its 95 % interval, above 0 where
        the first is more diverse; beyond +-1 is decided. For complete documents, and for documents cut to equal
        length; None where not measured.
    """

    title: str
    full_length: float | None
    equal_length: float | None


def _squeezed(value: float) -> float:
    """Linear up to 1, then logarithmic, so that 1 and 100 fit on one axis."""
    return math.copysign(min(abs(value), 1.0) + math.log10(max(abs(value), 1.0)), value)


def _unsqueezed(value: float) -> float:
    """The inverse of `_squeezed`."""
    return math.copysign(abs(value) if abs(value) <= 1 else 10 ** (abs(value) - 1), value)


def separations(rows: Sequence[Separation], first: str, second: str, width: int) -> Canvas:
    """For each metric the difference of two corpora over its interval's half-width; inside the band it is undecided."""
    phone = for_phone(width)
    left, right, top = (172 if phone else 240), 12, 54
    canvas = Canvas(width, top + _ROW * len(rows) + 46)
    axes = canvas.rows(len(rows), (left, top, right, _ROW))
    values = [value for row in rows for value in (row.full_length, row.equal_length) if value is not None]
    most = max([2.2, *(abs(_squeezed(value)) + 0.2 for value in values)])
    axes.set_xlim(-most, most)
    axes.axvspan(-1, 1, color=LIGHT["band"], linewidth=0, zorder=0)
    axes.axvline(0, color=LIGHT["muted"], linewidth=1)
    sample_sizes = (1, 10, 100) if phone else (1, 3, 10, 100)
    ticks = [sign * _squeezed(mark) for sign in (-1, 1) for mark in sample_sizes if _squeezed(mark) < most]
    set_ticks(axes.xaxis, sorted(ticks), lambda tick: significant(_unsqueezed(tick)), ruled=True)
    for index, row in enumerate(rows):
        title = shortened(row.title, 25 if phone else 32)
        canvas.text(0, top + _ROW * (index + 0.5), title, size=12 if phone else 13)
        for value, shift, face in ((row.full_length, -0.14, "c1"), (row.equal_length, 0.14, "paper")):
            if value is not None:
                axes.plot(_squeezed(value), index + shift, "o", color=LIGHT["c1"], markersize=8, markeredgewidth=2,
                          markerfacecolor=LIGHT[face])  # fmt: skip
    first, second = (shortened(name, 16 if phone else 40) for name in (first, second))
    canvas.note(left, 12, f"\u2190 {second} more diverse")
    canvas.note(width - right, 32 if phone else 12, f"{first} more diverse \u2192", align="right")
    canvas.note(left, canvas.height - 8, "difference over its 95 % half-width")
    return canvas


def correlations(names: Sequence[str], values: Mapping[tuple[str, str], float], width: int) -> Canvas:
    """Rank correlations between all metrics as a triangle of dots: area for strength, blue for positive, orange for
    negative ones.
    """
    phone = for_phone(width)
    left = 150 if phone else 240
    cell = min(34.0, (width - left - 8) / max(len(names) - 1, 1))
    size = cell * len(names)
    canvas = Canvas(width, round(size + 44))
    axes = canvas.axes(left, 8, size, size, ylim=(len(names) - 0.5, -0.5))
    axes.set_xlim(-0.5, len(names) - 0.5)
    middle = {"ha": "center", "va": "center"}
    for row, name in enumerate(names):
        text = f"{row + 1}  {shortened(name, 17 if phone else 30)}"
        canvas.text(0, 8 + cell * (row + 0.5), text, size=11 if phone else 13)
        if cell >= 20:
            axes.text(row, row, str(row + 1), color=LIGHT["muted"], fontsize=11, **middle)
        for column in range(row):
            value = values.get((names[column], name), values.get((name, names[column])))
            if value is None or not np.isfinite(value):
                continue
            diameter = max(0.86 * cell * math.sqrt(abs(value)), 1.0)  # a dot of strength 1 nearly fills its cell
            colour = LIGHT["c1" if value > 0 else "c2"]
            axes.plot(column, row, "o", color=colour, markersize=diameter, markeredgewidth=0)
            if cell >= 30:
                ink = LIGHT["paper" if abs(value) > 0.55 else "ink"]
                text = f"{abs(value):.1f}".lstrip("0") if abs(value) < 0.95 else "1"
                axes.text(column, row, text, color=ink, fontsize=10, **middle)
    canvas.note(left, canvas.height - 12, "area: strength; blue agrees, orange opposes")
    return canvas

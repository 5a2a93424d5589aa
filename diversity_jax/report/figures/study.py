"""Figures of a study: outcomes against diversity with the line that fits them, what each factor does, and curves over
amounts.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diversity_jax.core.formats import significant
from diversity_jax.report.plotting import Canvas, label, log_ticks, tick_values, x_ticks, y_ticks
from diversity_jax.report.style import LIGHT, Palette

_HEIGHT = 210
_GAP = 64


def _room(values: np.ndarray, share: float = 0.08) -> tuple[float, float]:
    """Limits with room around the values."""
    low, high = float(values.min()), float(values.max())
    margin = share * (high - low) or share * abs(high) or 1.0
    return low - margin, high + margin


def against_diversity(
    relations: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    palette: Palette,
    factor: str,
    axis: str,
    width: int,
) -> Canvas:
    """Outcomes over one diversity figure (log axis), a panel each: every run a pale dot, every recipe a dot, the fitted
    line through them.

    Args:
      relations: of the analysis, all of one predictor.
      rows: runs of their stage.
      palette, factor: recipes are coloured by their level of this factor.
      axis: what the diversity figure is called.
    """
    names = list(dict.fromkeys(str(row["levels"].get(factor, "")) for row in rows))
    legend = 30 if len(names) > 1 else 0
    across = 1 if width < 600 else min(2, len(relations))
    left, head, foot, gap = 56, 26, 40, 28
    panel = (width - across * left - (across - 1) * gap) / across
    block = head + _HEIGHT + foot
    canvas = Canvas(width, legend + block * -(-len(relations) // across) + 20)
    place = 0
    for name in names if legend else ():
        canvas.text(place, 10, f"\u25cf {factor} {label(name, 18)}", palette.slot(name), size=12, bold=True)
        place += 40 + 8 * len(f"{factor} {label(name, 18)}")
    level_of = {row["recipe"]: str(row["levels"].get(factor, "")) for row in rows}
    slots = {recipe: palette.slot(level) if legend else "c1" for recipe, level in level_of.items()}
    for number, relation in enumerate(relations):
        x = left + (number % across) * (panel + gap + left)
        y = legend + (number // across) * block
        canvas.text(x - left, y + 10, relation["outcome"], bold=True)
        _against(canvas.axes(x, y + head, panel, _HEIGHT), relation, rows, slots)
    canvas.text(left, canvas.height - 8, axis, "muted", size=12)
    return canvas


def _against(
    axes: Any, relation: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], slots: Mapping[str, str]
) -> None:
    x, y = np.array(relation["x"]), np.array(relation["y"])
    predictor, outcome = relation["predictor"], relation["outcome"]
    runs = [row for row in rows if predictor in row["diversity"] and outcome in row["outcomes"]]
    points = np.array([(row["diversity"][predictor], row["outcomes"][outcome]) for row in runs])
    low, high = x.min() / 1.15, x.max() * 1.15
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.set_ylim(*_room(np.concatenate([points[:, 1], y])))
    x_ticks(axes, log_ticks(low, high, 5), significant)
    y_ticks(axes, tick_values(*axes.get_ylim(), 5), significant)
    axes.scatter(*points.T, s=18, color=[LIGHT[slots[row["recipe"]]] for row in runs], alpha=0.3, linewidths=0)
    line = relation["log_line"]
    if "slope" in line:
        ends = np.array([x.min(), x.max()])
        axes.plot(
            ends, line["intercept"]["value"] + line["slope"]["value"] * np.log(ends), color=LIGHT["ink"], linewidth=1.2
        )
    axes.scatter(x, y, s=48, color=[LIGHT[slots[recipe]] for recipe in relation["recipes"]], linewidths=0, zorder=3)


def factor_levels(factors: Mapping[str, Sequence[Mapping[str, Any]]], width: int) -> Canvas:
    """A figure's mean at every level of every factor, with its interval or the values it is of: a panel a factor on one
    common axis.
    """
    narrow = width < 600
    across = 1 if narrow else min(len(factors), 3)
    left, head, foot = 60, 30, 40
    panel = (width - left - (across - 1) * _GAP / 2) / across
    block = head + 200 + foot
    canvas = Canvas(width, block * -(-len(factors) // across))
    means_ = [mean for means in factors.values() for mean in means]
    ends = [mean[end] for mean in means_ for end in ("low", "high", "value") if mean.get(end) is not None]
    limits = _room(np.array(ends + [value for mean in means_ for value in mean.get("values", ())]))
    for place, (factor, means) in enumerate(factors.items()):
        x, y = left + (place % across) * (panel + _GAP / 2), (place // across) * block
        canvas.text(x, y + 10, label(factor, 30), bold=True)
        axes = canvas.axes(x, y + head, panel, 200)
        axes.set_xlim(-0.6, len(means) - 0.4)
        axes.set_ylim(*limits)
        ticks = tick_values(*limits, 5)
        y_ticks(axes, ticks, significant if place % across == 0 else lambda tick: "")
        x_ticks(axes, range(len(means)), lambda tick, means=means: label(str(means[int(tick)]["name"]), 12))
        values = [mean["value"] for mean in means]
        axes.plot(range(len(means)), values, color=LIGHT["muted"], linewidth=1)
        for spot, mean in enumerate(means):
            axes.scatter(
                [spot] * len(mean.get("values", ())),
                mean.get("values", ()),
                s=18,
                color=LIGHT["c1"],
                alpha=0.3,
                linewidths=0,
            )
            if mean.get("low") is not None:
                axes.plot([spot, spot], [mean["low"], mean["high"]], color=LIGHT["c1"], linewidth=2.5)
            axes.scatter([spot], [mean["value"]], s=52, color=LIGHT["c1"], linewidths=0, zorder=3)
    return canvas


def over_amounts(effects: Sequence[Mapping[str, Any]], factor: str, width: int) -> Canvas:
    """Outcomes over a factor that is an amount, a panel each: means with their intervals, and the curve that levels off
    through them.
    """
    across = 1 if width < 600 else min(2, len(effects))
    left, head, foot, gap = 60, 26, 40, 28
    panel = (width - across * left - (across - 1) * gap) / across
    block = head + _HEIGHT + foot
    canvas = Canvas(width, block * -(-len(effects) // across) + 20)
    for number, one in enumerate(effects):
        x, y = left + (number % across) * (panel + gap + left), (number // across) * block
        canvas.text(x - left, y + 10, f"{one['outcome']}, {one['stage']}", bold=True)
        _over_amounts(canvas.axes(x, y + head, panel, _HEIGHT), one["levels"][factor], one["saturation"][factor])
    canvas.text(left, canvas.height - 8, factor, "muted", size=12)
    return canvas


def _over_amounts(axes: Any, means: Sequence[Mapping[str, Any]], bend: Mapping[str, Any]) -> None:
    amounts = np.array([float(mean["name"]) for mean in means])
    ends = [mean[end] for mean in means for end in ("low", "high", "value") if mean.get(end) is not None]
    axes.set_xlim(*_room(amounts))
    axes.set_ylim(*_room(np.array(ends)))
    x_ticks(axes, tick_values(0, amounts.max(), 6), significant)
    y_ticks(axes, tick_values(*axes.get_ylim(), 5), significant)
    if "top" in bend and bend["scale"]["value"] is not None:
        fine = np.linspace(amounts.min(), amounts.max(), 200)
        curve = bend["top"]["value"] - bend["gain"] * np.exp(-fine / bend["scale"]["value"])
        axes.plot(fine, curve, color=LIGHT["ink"], linewidth=1.2)
    for amount, mean in zip(amounts, means, strict=True):
        if mean.get("low") is not None:
            axes.plot([amount, amount], [mean["low"], mean["high"]], color=LIGHT["c1"], linewidth=2.5)
    axes.scatter(amounts, [mean["value"] for mean in means], s=52, color=LIGHT["c1"], linewidths=0, zorder=3)

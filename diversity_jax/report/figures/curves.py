"""Figures of something over time: loss and speed over training steps, an estimate over groupings.

Each function lays its figure out for a width in pixels and gives back the canvas; lines are named at their right ends.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
import math
from typing import Any

import numpy as np

from diversity_jax.core.formats import count, significant
from diversity_jax.report.data import Convergence, Curve
from diversity_jax.report.plotting import (
    Canvas,
    dodged,
    label,
    label_px,
    log_ticks,
    resampled,
    smoothed,
    tick_values,
    x_ticks,
    y_ticks,
)
from diversity_jax.report.style import LIGHT, Palette


def _step(tick: float) -> str:
    """A tick of the step axis; the first one says what the axis counts."""
    return "step 0" if tick == 0 else count(tick)


def losses(total: Curve | None, components: Sequence[Curve], palette: Palette, width: int) -> Canvas:
    """Training loss, in nats a token, over steps: the whole and each component, held-out points as circles on the same
    scale.
    """
    narrow = width < 600
    panels = [panel for panel in ([total] if total else [], list(components)) if panel]
    right = label_px([curve.name for curve in components]) if components else 16
    left, height, head, foot = 40, 230 if narrow else 290, 34, 58 if narrow else 40
    gap = left + 20
    block = head + height + foot
    canvas = Canvas(width, block * len(panels) if narrow else block)
    across = width - left - right if narrow else (width - left - right - gap * (len(panels) - 1)) / len(panels)
    everything = [curve for panel in panels for curve in panel]
    limits = _limits(np.concatenate([np.concatenate([curve.y, curve.held_out_y]) for curve in everything]))
    last = max((float(curve.x.max()) for curve in everything if len(curve.x)), default=1.0)
    for place, panel in enumerate(panels):
        x = left if narrow else left + place * (across + gap)
        y = place * block if narrow else 0
        is_total = place == 0 and total is not None
        canvas.text(x - left, y + 10, "All components" if is_total else "Each component", bold=True)
        axes = canvas.axes(x, y + head, across, height)
        axes.set_xlim(0, last)
        axes.set_ylim(*limits)
        x_ticks(axes, tick_values(0, last, 4), _step)
        y_ticks(axes, tick_values(*limits, 5), lambda tick: significant(tick))
        for curve in panel:
            _loss_line(
                axes, curve, "ink" if is_total else palette.slot(curve.name), palette.dash(curve.name), raw=is_total
            )
        if not is_total:
            _end_labels(canvas, panel, palette, (x + across + 9, y + head, height), limits)
    return canvas


def _limits(values: np.ndarray) -> tuple[float, float]:
    """The range of the finite values with a little room."""
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    room = 0.04 * (high - low) or 0.1 * (abs(high) or 1.0)
    return low - room, high + room


def _loss_line(axes: Any, curve: Curve, role: str, dash: object, *, raw: bool) -> None:
    x, y = resampled(curve.x, curve.y, 600)
    if raw:
        axes.plot(x, y, color=LIGHT[role], linewidth=1, alpha=0.25)
    axes.plot(x, smoothed(y), color=LIGHT[role], linewidth=2, linestyle=dash)
    axes.plot(curve.held_out_x, curve.held_out_y, linestyle="none", marker="o", markersize=6.5, markerfacecolor=LIGHT["paper"],
              markeredgecolor=LIGHT[role], markeredgewidth=1.7, clip_on=False, zorder=5)  # fmt: skip


def _end_labels(
    canvas: Canvas,
    curves: Sequence[Curve],
    palette: Palette,
    box: tuple[float, float, float],
    limits: tuple[float, float],
) -> None:
    """Names at the lines' right ends, moved apart where they would touch."""
    x, top, height = box
    ends = [(curve, smoothed(curve.y)) for curve in curves]
    ends = [(curve, values[np.isfinite(values)][-1]) for curve, values in ends if np.isfinite(values).any()]
    heights = [top + height * (limits[1] - value) / (limits[1] - limits[0]) for _, value in ends]
    for (curve, _), y in zip(ends, dodged(heights, 17, top, top + height - 12), strict=True):
        canvas.text(x, y, label(curve.name), palette.slot(curve.name), bold=True)


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A small figure of one quantity: its title, its curve, and how its values are written."""

    title: str
    curve: Curve
    form: Callable[[float], str]
    from_zero: bool = True


def small_multiples(panels: Sequence[Panel], width: int) -> Canvas:
    """Quantities of a run over its steps, a panel each, with the median written beside the title."""
    narrow = width < 600
    across = 1 if narrow else 2
    left, head, height, foot, gap = 66, 34, 110 if narrow else 120, 54, 44
    rows = math.ceil(len(panels) / across)
    canvas = Canvas(width, rows * (head + height + foot) - 12)
    panel_width = (width - gap * (across - 1)) / across
    last = max((float(panel.curve.x.max()) for panel in panels if len(panel.curve.x)), default=1.0)
    for place, panel in enumerate(panels):
        x = (place % across) * (panel_width + gap)
        y = place // across * (head + height + foot)
        finite = panel.curve.y[np.isfinite(panel.curve.y)]
        canvas.text(x, y + 10, panel.title, bold=True)
        if len(finite):
            canvas.text(
                x + panel_width - 8, y + 10, f"median {panel.form(float(np.median(finite)))}", "muted", align="right"
            )
        axes = canvas.axes(x + left, y + head, panel_width - left - 8, height)
        low, high = _limits(panel.curve.y)
        axes.set_xlim(0, last)
        axes.set_ylim(0 if panel.from_zero else low, high if high > 0 else 1)
        x_ticks(axes, tick_values(0, last, 4), _step)
        y_ticks(axes, tick_values(*axes.get_ylim(), 3), panel.form)
        x_values, y_values = resampled(panel.curve.x, panel.curve.y, 400)
        axes.plot(x_values, y_values, color=LIGHT["ink"], linewidth=1, alpha=0.28)
        axes.plot(x_values, smoothed(y_values), color=LIGHT["ink"], linewidth=1.8)
    return canvas


def convergence(runs: Sequence[Convergence], palette: Palette, width: int) -> Canvas:
    """Effective clusters as groupings come in, both on log axes: the estimate in its interval, or a dotted lower
    bound.
    """
    right = label_px([run.name for run in runs])
    left, head, height, foot = 48, 10, 240 if width < 600 else 300, 46
    canvas = Canvas(width, head + height + foot)
    axes = canvas.axes(left, head, width - left - right, height)
    seen = np.concatenate([np.concatenate([run.value[np.isfinite(run.high)], run.low, run.high]) for run in runs])
    seen = seen[np.isfinite(seen) & (seen > 0)]
    low, high = (float(seen.min()) / 1.15, float(seen.max()) * 1.15) if len(seen) else (1.0, 10.0)
    first, last = min(float(run.groupings.min()) for run in runs), max(float(run.groupings.max()) for run in runs)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(first, max(last, 1.01 * first))
    axes.set_ylim(low, high)
    y_ticks(axes, log_ticks(low, high, 6), significant)
    x_ticks(axes, log_ticks(first, last, 4 if width < 600 else 8), count)
    canvas.text(left, canvas.height - 8, "groupings, log scale", "muted", size=12)
    ends = []
    for run in runs:
        colour, bounded = LIGHT[palette.slot(run.name)], np.isfinite(run.high)
        axes.fill_between(run.groupings, run.low, run.high, where=bounded, color=colour, alpha=0.16, linewidth=0)
        axes.plot(
            run.groupings,
            np.where(bounded, run.value, np.nan),
            color=colour,
            linewidth=2,
            linestyle=palette.dash(run.name),
        )
        axes.plot(run.groupings, np.where(bounded, np.nan, run.low), color=colour, linewidth=1.6, linestyle=(0, (1, 2)))
        end = run.value[-1] if bounded[-1] else run.low[-1]
        ends.append(head + height * math.log(high / end) / math.log(high / low))
    for run, y in zip(runs, dodged(ends, 17, head, head + height - 12), strict=True):
        canvas.text(width - right + 9, y, label(run.name), palette.slot(run.name), bold=True)
    return canvas

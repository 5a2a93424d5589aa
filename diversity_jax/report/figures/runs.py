"""Figures over several runs: their losses on common axes."""

from collections.abc import Mapping

import numpy as np

from diversity_jax.core.formats import significant
from diversity_jax.report.html import Palette
from diversity_jax.report.plotting import Canvas, dodged, for_phone, label, label_px, limits, resampled, set_ticks

Curve = tuple[np.ndarray, np.ndarray]


def overlaid(curves: Mapping[str, Curve], what: str, palette: Palette, width: int) -> Canvas:
    """Losses of runs over their steps, a line each, named at its end.

    Args:
      curves: by run, steps [n] and values [n], n at least 1.
      what: the quantity, written above the axes.
    """
    phone = for_phone(width)
    left, head, height, right = 46, 34, 250 if phone else 320, label_px(list(curves))
    canvas = Canvas(width, head + height + 46)
    canvas.text(0, 10, what, bold=True)
    low, high = limits(np.concatenate([values for _, values in curves.values()]))
    last = max(float(steps.max()) for steps, _ in curves.values()) or 1.0
    axes = canvas.axes(left, head, width - left - right, height, ylim=(low, high))
    axes.set_xlim(0, last)
    set_ticks(axes.xaxis, 4, lambda tick: "step 0" if tick == 0 else f"{tick:,.0f}")
    set_ticks(axes.yaxis, 5, significant, ruled=True)
    ends = []
    for name, (steps, values) in curves.items():
        x, y = resampled(steps, values, 400)
        axes.plot(x, y, color=palette.colour(name), linewidth=2, linestyle=palette.dash(name),
                  marker="o" if len(x) < 12 else None, markersize=4)  # fmt: skip
        ends.append(head + height * (high - float(y[np.isfinite(y)][-1])) / (high - low))
    for name, text_y in zip(curves, dodged(ends, 17, head, head + height - 12), strict=True):
        canvas.text(width - right + 9, text_y, label(name), palette.slot(name), bold=True)
    return canvas

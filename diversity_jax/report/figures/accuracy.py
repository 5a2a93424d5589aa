"""Accuracies of tasks as dots with their intervals beside what guessing would reach, and differences of two models
around zero.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from diversity_jax.core.formats import percent, signed
from diversity_jax.report.plotting import Canvas, label, label_px, x_ticks
from diversity_jax.report.style import LIGHT

_WIDE = 600  # pixels from which words stand beside the marks


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """One row: a task's accuracy from 0 to 1, its interval where it has one, and the accuracy of guessing where that is
    known.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    guessing: float | None = None
    note: str = ""


def accuracies(rows: Sequence[Accuracy], width: int) -> Canvas:
    """The figure, laid out for a width in pixels."""
    canvas, axes, heights = _rows([one.name for one in rows], width, room=230)
    narrow = width < _WIDE
    axes.set_xlim(0, 1)
    x_ticks(axes, (0, 0.25, 0.5, 0.75, 1), lambda tick: percent(tick, 0), ruled=True)
    for one, (y, line) in zip(rows, heights, strict=True):
        if one.guessing is not None:
            axes.plot([one.guessing] * 2, [y - 0.24, y + 0.24], color=LIGHT["muted"], linewidth=2)
        if one.low is not None:
            axes.plot([max(one.low, 0), min(one.high, 1)], [y, y], color=LIGHT["c1"], linewidth=2.6)
        axes.plot([one.value], [y], "o", color=LIGHT["c1"], markersize=9)
        said = (
            f"{100 * one.value:.1f} %"
            if one.low is None
            else f"{100 * one.value:.1f} % \u00b1 {50 * (one.high - one.low):.1f}"
        )
        canvas.text(width - (0 if narrow else 110), line, said, align="right")
        if not narrow:
            canvas.text(width, line, one.note, "muted", align="right", size=12)
    return canvas


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One row: how many points more of 100 items one model has right than another, and its interval; `total` rows stand
    apart.
    """

    name: str
    points: float
    low: float
    high: float
    total: bool = False


def differences(rows: Sequence[Difference], width: int) -> Canvas:
    """The figure, laid out for a width in pixels; an interval that holds zero is drawn pale."""
    canvas, axes, heights = _rows([one.name for one in rows], width, room=200)
    reach = next(
        (step for step in (1, 2, 5, 10, 20, 50) if step >= max(max(abs(one.low), abs(one.high)) for one in rows)),
        100,
    )
    axes.set_xlim(-reach, reach)
    x_ticks(
        axes, (-reach, -reach / 2, 0, reach / 2, reach), lambda tick: signed(tick, 0 if reach > 1 else 1), ruled=True
    )
    axes.plot([0, 0], [-0.5, len(rows) - 0.5], color=LIGHT["muted"], linewidth=1.4)
    for one, (y, line) in zip(rows, heights, strict=True):
        color = LIGHT["c1"] if one.low > 0 or one.high < 0 else LIGHT["muted"]
        axes.plot([one.low, one.high], [y, y], color=color, linewidth=4 if one.total else 2.6)
        axes.plot([one.points], [y], "D" if one.total else "o", color=color, markersize=9)
        canvas.text(width, line, f"{signed(one.points)} [{signed(one.low)}, {signed(one.high)}]", align="right")
    return canvas


def _rows(names: Sequence[str], width: int, *, room: int) -> tuple[Canvas, Any, list[tuple[float, float]]]:
    """A canvas with a named row each and `room` pixels at the right, or on a narrow one words above the marks.

    Returns:
      The canvas; its axes, row n at height n; and for each row the height of its marks in axes and that of its words in
      pixels.
    """
    narrow = width < _WIDE
    row, top, bottom = 54 if narrow else 34, 6, 34
    left, right = (4, 8) if narrow else (label_px(names), room)
    canvas = Canvas(width, top + row * len(names) + bottom)
    axes = canvas.axes(left, top, width - left - right, row * len(names))
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks([])
    heights = [
        (place + (0.22 if narrow else 0), top + row * (place + 0.5) - (14 if narrow else 0))
        for place in range(len(names))
    ]
    for name, (_, line) in zip(names, heights, strict=True):
        canvas.text(0, line, label(name), bold=True)
    return canvas, axes, heights

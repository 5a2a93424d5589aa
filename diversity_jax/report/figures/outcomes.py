"""Figures of training, evaluation and studies: token shares, loss, speed, accuracies, outcomes against diversity."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
import math
from typing import Any

import numpy as np

from diversity_jax.core.formats import count, percent, signed, significant
from diversity_jax.core.intervals import Estimate
from diversity_jax.mixtures.mixture import MixtureComponent
from diversity_jax.report.html import LIGHT, Palette
from diversity_jax.report.plotting import (
    Canvas,
    end_labels,
    for_phone,
    label,
    label_px,
    limits,
    log_ticks,
    resampled,
    set_ticks,
    smoothed,
)
from diversity_jax.training.log import TrainingLog


def shares(
    components: Sequence[MixtureComponent], realised: Mapping[str, float] | None, palette: Palette, width: int
) -> Canvas:
    """Token shares as bars with a mark at the share asked for: realised ones, or granted ones in paler bars."""
    phone = for_phone(width)
    row, head = (54, 0) if phone else (38, 30)
    left = 0 if phone else label_px([component.name for component in components])
    right = 4 if phone else 330
    canvas = Canvas(width, head + row * len(components) + 34)
    axes = canvas.rows(len(components), (left, head, right, row))
    shown = [float(part.share_granted) if realised is None else realised.get(part.name, 0.0) for part in components]
    most = 1.04 * max([0.01, *shown, *(float(max(part.share_asked, part.share_granted)) for part in components)])
    axes.set_xlim(0, most)
    set_ticks(axes.xaxis, 4 if phone else 5, lambda tick: percent(tick, 0 if most > 0.05 else 1), ruled=True)
    columns = {"asked": width - 210, "granted": width - 105, "realised": width}
    for title, x in columns.items() if not phone else ():
        canvas.note(x, 9, title, align="right")
    for index, (component, share) in enumerate(zip(components, shown, strict=True)):
        asked, granted = float(component.share_asked), float(component.share_granted)
        half, y, colour = 0.16 if phone else 0.24, index + (0.22 if phone else 0), palette.colour(component.name)
        axes.barh([y], [share], height=2 * half, color=colour, alpha=0.55 if realised is None else 1, linewidth=0)
        axes.plot([asked] * 2, [y - 1.45 * half, y + 1.45 * half], color=LIGHT["ink"], linewidth=2)
        line = head + row * (index + 0.5) - (15 if phone else 0)
        canvas.text(0, line, label(component.name), palette.slot(component.name), bold=True)
        if phone:
            text = f"asked {percent(asked)}, got {percent(share)}"
            canvas.text(width - right, line, text, align="right", size=12)
            continue
        canvas.text(columns["asked"], line, percent(asked), "muted", align="right")
        canvas.text(columns["granted"], line, percent(granted), "muted", align="right")
        canvas.text(width, line, "\u2013" if realised is None else percent(share, 2), align="right")
    return canvas


def _step(tick: float) -> str:
    """The label of a tick of the step axis; the first one names the unit."""
    return "step 0" if tick == 0 else count(tick)


def losses(log: TrainingLog, components: Sequence[str], palette: Palette, width: int) -> Canvas:
    """Loss in nats a token over steps: a panel of all text, one of its components; held-out losses as circles."""
    phone = for_phone(width)
    panels = {"All components": {"": ("loss", "eval/loss")}}
    if components:
        panels["Each component"] = {name: (f"loss/{name}", f"eval/{name}/loss") for name in components}
    right = label_px(components) if components else 16
    left, height, head, foot = 50, 230 if phone else 290, 34, 58 if phone else 40
    gap, block = left + 20, head + height + foot
    canvas = Canvas(width, block * len(panels) if phone else block)
    across = width - left - right if phone else (width - left - right - gap * (len(panels) - 1)) / len(panels)
    columns = [column for panel in panels.values() for pair in panel.values() for column in pair]
    low, high = limits(np.concatenate([log.seen(column)[1] for column in columns]))
    last = max((float(log.seen(column)[0].max()) for column in columns if len(log.seen(column)[0])), default=1.0)
    for index, (title, panel) in enumerate(panels.items()):
        x, y = (left, index * block) if phone else (left + index * (across + gap), 0)
        canvas.text(x - left, y + 10, title, bold=True)
        axes = canvas.axes(x, y + head, across, height, ylim=(low, high))
        axes.set_xlim(0, last)
        set_ticks(axes.xaxis, 4, _step)
        set_ticks(axes.yaxis, 5, significant, ruled=True)
        ends = {}
        for name, (trained, held_out) in panel.items():
            end = _loss_line(axes, log.seen(trained), log.seen(held_out), palette.colour(name), palette.dash(name))
            ends[name] = y + head + height * (high - end) / (high - low)
        if index:
            end_labels(canvas, x + across + 9, ends, (y + head, y + head + height - 12), palette)
    return canvas


def _loss_line(
    axes: Any,
    trained: tuple[np.ndarray, np.ndarray],
    held_out: tuple[np.ndarray, np.ndarray],
    colour: str,
    dash: object,
) -> float:
    """A smoothed curve, over the unsmoothed one where its colour is ink; returns the last value."""
    x, y = resampled(*trained, 600)
    if colour == LIGHT["ink"]:
        axes.plot(x, y, color=colour, linewidth=1, alpha=0.25)
    axes.plot(x, smoothed(y), color=colour, linewidth=2, linestyle=dash)
    axes.plot(*held_out, "o", markersize=6.5, markerfacecolor=LIGHT["paper"], markeredgecolor=colour,
              markeredgewidth=1.7, clip_on=False, zorder=5)  # fmt: skip
    return float(smoothed(trained[1])[-1])


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A small figure of one quantity over steps: title, steps [n], values [n], and the format of a value."""

    title: str
    steps: np.ndarray
    values: np.ndarray
    form: Callable[[float], str]


def small_multiples(panels: Sequence[Panel], width: int) -> Canvas:
    """Quantities of a run over its steps, a panel each, with the median written beside the title."""
    phone = for_phone(width)
    across = 1 if phone else 2
    left, head, height, foot, gap = 66, 34, 110 if phone else 120, 54, 44
    block = head + height + foot
    canvas = Canvas(width, math.ceil(len(panels) / across) * block - 12)
    panel_px = (width - gap * (across - 1)) / across
    last = max((float(panel.steps.max()) for panel in panels if len(panel.steps)), default=1.0)
    for index, panel in enumerate(panels):
        x, y = (index % across) * (panel_px + gap), index // across * block
        canvas.text(x, y + 10, panel.title, bold=True)
        finite = panel.values[np.isfinite(panel.values)]
        if len(finite):
            median = f"median {panel.form(float(np.median(finite)))}"
            canvas.text(x + panel_px - 8, y + 10, median, "muted", align="right")
        high = limits(panel.values)[1]
        axes = canvas.axes(x + left, y + head, panel_px - left - 8, height, ylim=(0, high if high > 0 else 1))
        axes.set_xlim(0, last)
        set_ticks(axes.xaxis, 4, _step)
        set_ticks(axes.yaxis, 3, panel.form, ruled=True)
        steps, values = resampled(panel.steps, panel.values, 400)
        axes.plot(steps, values, color=LIGHT["ink"], linewidth=1, alpha=0.28)
        axes.plot(steps, smoothed(values), color=LIGHT["ink"], linewidth=1.8)
    return canvas


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """One row of `accuracies`: a task's accuracy from 0 to 1 with its interval, and that of guessing, where known."""

    name: str
    interval: Estimate
    guessing: float | None = None
    note: str = ""


def accuracies(rows: Sequence[Accuracy], width: int) -> Canvas:
    """Accuracies of tasks as dots with their intervals, and a mark at the accuracy of guessing."""
    phone = for_phone(width)
    canvas, axes, heights = _named_rows([row.name for row in rows], width, margin=280)
    axes.set_xlim(0, 1)
    chance = next(((row.guessing, y) for row, (y, _) in zip(rows, heights, strict=True) if row.guessing), None)
    if chance is not None:  # only the first mark is labelled
        axes.annotate("chance", chance, (0, -17), textcoords="offset points", ha="center", fontsize=10,
                      color=LIGHT["muted"])  # fmt: skip
    set_ticks(axes.xaxis, (0, 0.25, 0.5, 0.75, 1), lambda tick: percent(tick, 0), ruled=True)
    for row, (y, line) in zip(rows, heights, strict=True):
        value, low, high = row.interval.value, row.interval.low, row.interval.high
        low, high = (end if end is None else min(max(end, 0.0), 1.0) for end in (low, high))
        if row.guessing is not None:
            axes.plot([row.guessing] * 2, [y - 0.24, y + 0.24], color=LIGHT["muted"], linewidth=2)
        text = f"{100 * value:.1f} %"
        if low is not None and high is not None:
            axes.plot([low, high], [y, y], color=LIGHT["c1"], linewidth=2.6)
            text += f" [{100 * low:.1f}, {100 * high:.1f}]"
        axes.plot(value, y, "o", color=LIGHT["c1"], markersize=9)
        canvas.text(width - (0 if phone else 110), line, text, align="right")
        if not phone:
            canvas.note(width, line, row.note, align="right")
    return canvas


def accuracy_differences(rows: Mapping[str, tuple[float, float, float]], width: int) -> Canvas:
    """Differences of two models' accuracies in percentage points, with intervals; grey where they hold zero.

    Args:
      rows: by title, the difference and the ends of its interval; the last row is the average.
    """
    canvas, axes, heights = _named_rows(list(rows), width, margin=200)
    largest = max(abs(end) for row in rows.values() for end in row)
    reach = next((step for step in (1, 2, 5, 10, 20, 50) if step >= largest), 100)
    axes.set_xlim(-reach, reach)
    ticks = (-reach, -reach / 2, 0, reach / 2, reach)
    set_ticks(axes.xaxis, ticks, lambda tick: signed(tick, 0 if reach > 1 else 1), ruled=True)
    axes.plot([0, 0], [-0.5, len(rows) - 0.5], color=LIGHT["muted"], linewidth=1.4)
    for index, ((points, low, high), (y, line)) in enumerate(zip(rows.values(), heights, strict=True)):
        average = index == len(rows) - 1
        colour = LIGHT["c1"] if low > 0 or high < 0 else LIGHT["muted"]
        axes.plot([low, high], [y, y], color=colour, linewidth=4 if average else 2.6)
        axes.plot(points, y, "D" if average else "o", color=colour, markersize=9)
        canvas.text(width, line, f"{signed(points)} [{signed(low)}, {signed(high)}]", align="right")
    return canvas


def _named_rows(names: Sequence[str], width: int, *, margin: int) -> tuple[Canvas, Any, list[tuple[float, float]]]:
    """A canvas with a row for each name and `margin` pixels at the right; on a telephone names are above the marks.

    Returns:
      The canvas; its axes, with row n at height n; and for each row the height of its marks in the axes and that of its
      text in pixels.
    """
    phone, top = for_phone(width), 6
    row = 54 if phone else 34
    canvas = Canvas(width, top + row * len(names) + 34)
    axes = canvas.rows(len(names), (4, top, 8, row) if phone else (label_px(names), top, margin, row))
    heights = [
        (index + (0.22 if phone else 0), top + row * (index + 0.5) - (14 if phone else 0))
        for index in range(len(names))
    ]
    for name, (_, line) in zip(names, heights, strict=True):
        canvas.text(0, line, label(name), bold=True)
    return canvas, axes, heights


_PANEL_PX = 210  # height of a study's panel


def _panels(number: int, width: int, *, most: int, left: int, gap: int, head: int, top: int = 0, bottom: int = 0,
            height: int = _PANEL_PX) -> tuple[Canvas, list[tuple[float, float, float]]]:  # fmt: skip
    """A canvas for panels in rows of at most `most`, or one below the other on a telephone.

    Returns:
      The canvas; left, top and width of each panel's axes, with `left` pixels to their left and `head` above them.
    """
    across = 1 if for_phone(width) else min(most, number)
    panel = (width - across * left - (across - 1) * gap) / across
    block = head + height + 40
    canvas = Canvas(width, top + block * math.ceil(number / across) + bottom)
    return canvas, [
        (left + (index % across) * (panel + gap + left), top + index // across * block + head, panel)
        for index in range(number)
    ]


def against_diversity(
    relations: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    palette: Palette,
    factor: str,
    axis: str,
    width: int,
) -> Canvas:
    """Outcomes over one diversity figure (log axis), a panel each: runs as pale dots, recipes as dots, the fitted line.

    Args:
      relations: of the analysis, all of one predictor.
      rows: runs of the relations' stage.
      palette: colours by level of `factor`.
      factor: recipes are coloured by their level of it.
      axis: title of the x axis.
    """
    level_of = {row["recipe"]: str(row["levels"].get(factor, "")) for row in rows}
    levels = list(dict.fromkeys(level_of.values())) if len(set(level_of.values())) > 1 else []
    positions, end = _legend([f"{factor} {label(level, 18)}" for level in levels], width)
    canvas, boxes = _panels(len(relations), width, most=2, left=56, gap=28, head=26, top=end, bottom=20)
    for level, (x, y, text) in zip(levels, positions, strict=True):
        canvas.text(x, y, f"\u25cf {text}", palette.slot(level), size=12, bold=True)
    colours = {recipe: palette.colour(level) if levels else LIGHT["c1"] for recipe, level in level_of.items()}
    for relation, (left, top, panel) in zip(relations, boxes, strict=True):
        canvas.text(left - 56, top - 16, relation["outcome"], bold=True)
        _against(canvas.axes(left, top, panel, _PANEL_PX), relation, rows, colours)
    canvas.note(56, canvas.height - 8, axis)
    return canvas


def _legend(texts: Sequence[str], width: int) -> tuple[list[tuple[float, float, str]], int]:
    """Position (x, y) of each text of a legend, in as many lines as needed, and the legend's height; in pixels."""
    positions: list[tuple[float, float, str]] = []
    x, y = 0.0, 10.0
    for text in texts:
        needed = 24 + 7.6 * len(text)
        if x and x + needed > width:
            x, y = 0.0, y + 20
        positions.append((x, y, text))
        x += needed + 12
    return positions, round(y) + 20 if texts else 0


def _against(
    axes: Any, relation: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], colours: Mapping[str, str]
) -> None:
    x, y = np.array(relation["x"]), np.array(relation["y"])
    predictor, outcome = relation["predictor"], relation["outcome"]
    runs = [row for row in rows if predictor in row["diversity"] and outcome in row["outcomes"]]
    points = np.array([(row["diversity"][predictor], row["outcomes"][outcome]) for row in runs])
    low, high = x.min() / 1.15, x.max() * 1.15
    ends, fitted, line = np.zeros(0), np.zeros(0), relation["log_line"]
    if "slope" in line:
        ends = np.array([x.min(), x.max()])
        fitted = line["intercept"]["value"] + line["slope"]["value"] * np.log(ends)
    axes.set(xscale="log", xlim=(low, high), ylim=limits([*points[:, 1], *y, *fitted], 0.08))
    set_ticks(axes.xaxis, log_ticks(low, high, 5), significant)
    set_ticks(axes.yaxis, 5, significant, ruled=True)
    axes.scatter(*points.T, s=18, color=[colours[row["recipe"]] for row in runs], alpha=0.3, linewidths=0)
    axes.plot(ends, fitted, color=LIGHT["ink"], linewidth=1.2)
    axes.scatter(x, y, s=48, color=[colours[recipe] for recipe in relation["recipes"]], linewidths=0, zorder=3)


def _ends(means: Sequence[Mapping[str, Any]]) -> list[float]:
    """All values and interval ends of means."""
    return [mean[end] for mean in means for end in ("low", "high", "value") if mean.get(end) is not None]


def _means(axes: Any, positions: Sequence[float], means: Sequence[Mapping[str, Any]]) -> None:
    """Draws means as dots with their intervals, where they have any."""
    for x, mean in zip(positions, means, strict=True):
        if mean.get("low") is not None:
            axes.plot([x, x], [mean["low"], mean["high"]], color=LIGHT["c1"], linewidth=2.5)
    axes.scatter(positions, [mean["value"] for mean in means], s=52, color=LIGHT["c1"], linewidths=0, zorder=3)


def factor_levels(factors: Mapping[str, Sequence[Mapping[str, Any]]], width: int) -> Canvas:
    """A figure's mean at every level of every factor, with its interval or the averaged values; a panel a factor, on a
    common axis.
    """
    canvas, boxes = _panels(len(factors), width, most=3, left=60, gap=0, head=30, height=200)
    all_means = [mean for means in factors.values() for mean in means]
    low, high = limits(_ends(all_means) + [value for mean in all_means for value in mean.get("values", ())], 0.08)
    for (factor, means), (left, top, panel) in zip(factors.items(), boxes, strict=True):
        canvas.text(left, top - 20, label(factor, 30), bold=True)
        axes = canvas.axes(left, top, panel, 200, ylim=(low, high))
        axes.set_xlim(-0.6, len(means) - 0.4)
        first = left == boxes[0][0]
        set_ticks(axes.yaxis, 5, significant if first else lambda _: "", ruled=True)
        axes.set_xticks(range(len(means)), [label(str(mean["name"]), 12) for mean in means])
        axes.plot([mean["value"] for mean in means], color=LIGHT["muted"], linewidth=1)
        for position, mean in enumerate(means):
            values = mean.get("values", ())
            axes.scatter([position] * len(values), values, s=18, color=LIGHT["c1"], alpha=0.3, linewidths=0)
        _means(axes, range(len(means)), means)
    return canvas


def over_amounts(effects: Sequence[Mapping[str, Any]], factor: str, width: int) -> Canvas:
    """Outcomes over a factor whose levels are numbers, a panel each: means with intervals, and the saturation curve."""
    canvas, boxes = _panels(len(effects), width, most=2, left=60, gap=28, head=26, bottom=20)
    for effect, (left, top, panel) in zip(effects, boxes, strict=True):
        canvas.text(left - 60, top - 16, f"{effect['outcome']}, {effect['stage']}", bold=True)
        means, saturation = effect["levels"][factor], effect["saturation"][factor]
        amounts = np.array([float(mean["name"]) for mean in means])
        x, y = np.zeros(0), np.zeros(0)
        if "top" in saturation and saturation["scale"]["value"] is not None:
            x = np.linspace(amounts.min(), amounts.max(), 200)
            y = saturation["top"]["value"] - saturation["gain"] * np.exp(-x / saturation["scale"]["value"])
        axes = canvas.axes(left, top, panel, _PANEL_PX, ylim=limits([*_ends(means), *y], 0.08))
        axes.set_xlim(*limits(amounts, 0.08))
        set_ticks(axes.xaxis, 6, significant)
        set_ticks(axes.yaxis, 5, significant, ruled=True)
        axes.plot(x, y, color=LIGHT["ink"], linewidth=1.2)
        _means(axes, amounts.tolist(), means)
    canvas.note(60, canvas.height - 8, factor)
    return canvas

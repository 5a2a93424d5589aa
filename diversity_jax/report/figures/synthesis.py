"""Figures of a synthesis: what topics there are, how they lie, and how diversity and spending went."""

from collections import Counter
from collections.abc import Mapping, Sequence
import math
from typing import Any

import numpy as np

from diversity_jax.core.formats import compact, count, money, percent, significant
from diversity_jax.report.plotting import Canvas, dodged, label, tick_values, x_ticks, y_ticks
from diversity_jax.report.style import LIGHT, Palette
from diversity_jax.synthesis.topic_deduplication import embed
from diversity_jax.synthesis.topics import MOST_LEVELS, Topic

_MAPPED = 1500
_NAMED_ON_MAP = 6
_NAME_CHARACTERS = 30
_ARM_CHARACTERS = 36


def top_by_level(topics: Sequence[Topic], most: int = 8) -> list[list[tuple[str, int]]]:
    """For each level that occurs, its most frequent names with their numbers of topics."""
    found = []
    for level in range(MOST_LEVELS):
        counts = Counter(topic.path[level] for topic in topics if len(topic.path) > level)
        if counts and (level == 0 or max(counts.values()) > 1):  # where every name is there once, bars say nothing
            found.append(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:most])
    return found


def level_bars(levels: Sequence[Sequence[tuple[str, int]]], width: int) -> Canvas:
    """Bars of the most frequent names of each level, a block a level (the paper's Figs. 3 and 12)."""
    narrow = width < 600
    across = 1 if narrow else 2
    head, row, foot, gap = 26, 24, 26, 48
    panel = (width - gap * (across - 1)) / across
    heights = [
        head + row * max(map(len, levels[start : start + across])) + foot for start in range(0, len(levels), across)
    ]
    canvas = Canvas(width, sum(heights))
    for place, names in enumerate(levels):
        x, y = (place % across) * (panel + gap), sum(heights[: place // across])
        canvas.text(x, y + 10, f"Level {place + 1}", bold=True)
        left = 0.52 * panel
        axes = canvas.axes(x + left, y + head, panel - left - 44, row * len(names))
        axes.set_xlim(0, max(number for _, number in names))
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.barh(range(len(names)), [number for _, number in names], height=0.62, color=LIGHT["c1"], linewidth=0)
        for line, (name, number) in enumerate(names):
            middle = y + head + row * (line + 0.5)
            canvas.text(x, middle, label(name, _NAME_CHARACTERS if not narrow else 24), size=12)
            share = number / names[0][1]
            canvas.text(
                x + left + (panel - left - 44) * share + 6,
                middle,
                compact(number) if number > 99_999 else count(number),
                "muted",
                size=12,
            )
    return canvas


def topic_map(topics: Sequence[Topic], *, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """Places [n, 2] in the plane of a sample of topics, near ones near (t-SNE of their embeddings), and their first
    names.
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    chosen = np.sort(np.random.default_rng(seed).permutation(len(topics))[:_MAPPED])
    shown = [topics[place] for place in chosen.tolist()]
    vectors = embed(shown)
    with threadpool_limits(1):  # threads that wait for each other on a busy machine take many times as long
        if vectors.shape[1] > 40 and len(shown) > 40:
            vectors = TruncatedSVD(40, random_state=seed).fit_transform(vectors)
        nearby = min(30.0, max(2.0, (len(shown) - 1) / 4))
        places = TSNE(2, perplexity=nearby, init="pca", random_state=seed, max_iter=500).fit_transform(vectors)
    return places, [topic.path[0] for topic in shown]


def map_figure(places: np.ndarray, names: Sequence[str], palette: Palette, width: int) -> Canvas:
    """Topics as dots in the colour of their first name, the most frequent names written below (the paper's Fig. 11)."""
    common = [name for name, _ in Counter(names).most_common(_NAMED_ON_MAP)]
    height = 420 if width < 600 else 560
    per_line = 2 if width < 600 else 3
    legend = 24 * math.ceil(len(common) / per_line) + 10
    canvas = Canvas(width, height + legend)
    axes = canvas.axes(0, 0, width, height)
    axes.set_xticks([])
    axes.set_yticks([])
    kinds = np.array([name if name in common else "" for name in names])
    for name in ["", *common]:
        here = kinds == name
        colour = LIGHT[palette.slot(name)] if name else LIGHT["muted"]
        axes.scatter(
            *places[here].T, s=9 if width >= 600 else 6, color=colour, alpha=0.75 if name else 0.35, linewidths=0
        )
    for place, name in enumerate(common):
        x, y = (place % per_line) * width / per_line, height + 18 + 24 * (place // per_line)
        canvas.text(x, y, "\u25cf " + label(name, 34 if width >= 600 else 22), palette.slot(name), size=12, bold=True)
    return canvas


def clusters_by_round(rounds: Sequence[Mapping[str, Any]]) -> list[float]:
    """Effective clusters after every round, as far back as can be by the latest clusters."""
    clusters = [one["effective_clusters"] for one in rounds]
    for one in reversed(rounds):
        if one.get("curve"):
            return one["curve"] + clusters[len(one["curve"]) :]
    return clusters


def diversity_curve(rounds: Sequence[Mapping[str, Any]], width: int) -> Canvas:
    """Effective clusters by words over documents and over dollars, a panel each."""
    narrow = width < 600
    made = np.cumsum([one["documents"] for one in rounds])
    dollars = np.cumsum([one["paid_dollars"] for one in rounds])
    clusters = np.array(clusters_by_round(rounds), float)
    panels = [("over documents", made, count)] + ([("over dollars", dollars, money)] if dollars[-1] > 0 else [])
    left, head, height, foot, gap = 46, 30, 210 if narrow else 260, 46, 70
    block = head + height + foot
    stacked = narrow and len(panels) > 1
    canvas = Canvas(width, block * (2 if stacked else 1))
    across = width - left - 10 if narrow or len(panels) == 1 else (width - 2 * left - gap - 10) / 2
    for place, (title, x, form) in enumerate(panels):
        offset_x, offset_y = (0, place * block) if narrow else (place * (left + across + gap), 0)
        canvas.text(offset_x, offset_y + 10, f"Effective clusters {title}", bold=True)
        axes = canvas.axes(offset_x + left, offset_y + head, across, height)
        axes.set_xlim(0, float(x[-1]) or 1)
        axes.set_ylim(0, 1.08 * max(clusters.max(), 1))
        x_ticks(axes, tick_values(0, float(x[-1]) or 1, 4), form)
        y_ticks(axes, tick_values(0, 1.08 * max(clusters.max(), 1), 5), significant)
        axes.plot(np.append(0, x), np.append(0, clusters), color=LIGHT["c1"], linewidth=2)
        axes.plot(x, clusters, linestyle="none", marker="o", markersize=4 if len(rounds) < 60 else 0, color=LIGHT["c1"])
    return canvas


def arm_shares(rounds: Sequence[Mapping[str, Any]], arms: Sequence[str], palette: Palette, width: int) -> Canvas:
    """Each arm's share of every round's documents, stacked, with names at the right end."""
    right = 24 + round(8.2 * max(len(label(arm, _ARM_CHARACTERS)) for arm in arms)) if width >= 600 else 0
    head, height, foot = 10, 230, 46 if width >= 600 else 46 + 20 * len(arms)
    left = 46
    canvas = Canvas(width, head + height + foot)
    axes = canvas.axes(left, head, width - left - right - 4, height)
    shares = np.array([[one["arm_documents"].get(arm, 0) for arm in arms] for one in rounds], float)
    shares /= np.maximum(shares.sum(axis=1, keepdims=True), 1)
    edges = np.arange(len(rounds) + 1)
    axes.set_xlim(0, len(rounds))
    axes.set_ylim(0, 1)
    y_ticks(axes, [0, 0.5, 1], lambda tick: percent(tick, 0))
    x_ticks(axes, tick_values(0, len(rounds), 6, whole=True), lambda tick: "round 0" if tick == 0 else count(tick))
    base = np.zeros(len(rounds))
    ends = []
    for place, arm in enumerate(arms):
        top = base + shares[:, place]
        axes.stairs(
            top,
            edges,
            baseline=base,
            fill=True,
            color=LIGHT[palette.slot(arm)],
            alpha=0.85,
            linewidth=0.6,
            edgecolor=LIGHT["paper"],
        )
        ends.append(head + height * (1 - (base[-1] + top[-1]) / 2))
        base = top
    if width >= 600:
        for arm, y in zip(arms, dodged(ends, 17, head, head + height - 8), strict=True):
            canvas.text(width - right + 8, y, label(arm, _ARM_CHARACTERS), palette.slot(arm), bold=True)
    else:
        for place, arm in enumerate(arms):
            canvas.text(0, head + height + 46 + 20 * place, label(arm, 44), palette.slot(arm), bold=True, size=12)
    return canvas

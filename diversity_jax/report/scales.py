"""Ticks, thinning and smoothing: the arithmetic of the figures, free of any drawing."""

from collections.abc import Sequence
import math

import numpy as np


def tick_values(low: float, high: float, most: int, *, whole: bool = False) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten apart) inside [low, high], at most `most` + 1 of them."""
    span = high - low
    if not span > 0:
        return [low]
    step = 10.0 ** math.floor(math.log10(span / most))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= most)
    step = max(step, 1.0) if whole else step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(place * step, 12) for place in range(first, last + 1)]


def log_ticks(low: float, high: float, most: int) -> list[float]:
    """Round values inside [low, high] for a log axis: 1-2-5 in each decade, or fewer where that would crowd it."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9), (1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = [factor * 10.0**decade for decade in decades for factor in factors]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= most:
            break
    return ticks[:: math.ceil(len(ticks) / most)] if len(ticks) > 1 else tick_values(low, high, most)


def resampled(x: np.ndarray, y: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Long curves as at most `most` means of neighbouring points, so that a page stays small; NaN are left out of the means."""
    if len(x) <= most:
        return x, y
    edges = np.linspace(0, len(x), most + 1).astype(int)
    finite = np.isfinite(y)
    seen = np.add.reduceat(finite.astype(float), edges[:-1])
    total = np.add.reduceat(np.where(finite, y, 0.0), edges[:-1])
    middle = np.add.reduceat(x, edges[:-1]) / np.diff(edges)
    return middle, np.divide(total, seen, out=np.full(most, np.nan), where=seen > 0)


def smoothed(y: np.ndarray, share: float = 0.02) -> np.ndarray:
    """A centred running mean over `share` of the curve on either side, narrower at its ends; NaN are left out."""
    reach = max(1, round(share * len(y)))
    if len(y) < 12:
        return y
    finite = np.isfinite(y)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, y, 0.0))])
    seen = np.concatenate([[0], np.cumsum(finite)])
    place = np.arange(len(y))
    reach_here = np.minimum(np.minimum(place, len(y) - 1 - place), reach)
    low, high = place - reach_here, place + reach_here + 1
    count = seen[high] - seen[low]
    return np.divide(sums[high] - sums[low], count, out=np.full(len(y), np.nan), where=count > 0)


def dodged(heights: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Heights moved as little as they need to stand `gap` apart inside [low, high], in the order they had.

    Neighbours that touch form a block that stands around the mean of its members' wishes; where everything does not fit the gap shrinks.
    """
    if len(heights) > 1:
        gap = min(gap, (high - low) / (len(heights) - 1))
    order = sorted(range(len(heights)), key=lambda place: heights[place])
    blocks: list[list[float]] = []  # start, members, sum of (wish - offset in the block)
    for place in order:
        blocks.append([heights[place], 1, heights[place]])
        while True:
            _, members, wishes = blocks[-1]
            blocks[-1][0] = min(max(wishes / members, low), high - gap * (members - 1))
            if len(blocks) < 2 or blocks[-2][0] + gap * blocks[-2][1] <= blocks[-1][0] + 1e-9:
                break
            _, more, their = blocks.pop()
            blocks[-1][2] += their - gap * blocks[-1][1] * more
            blocks[-1][1] += more
    places = [start + gap * member for start, members, _ in blocks for member in range(int(members))]
    result = [0.0] * len(heights)
    for place, height in zip(order, places, strict=True):
        result[place] = height
    return result

"""Ticks, thinning and smoothing: the arithmetic of the figures, free of any drawing.

Figures drawn once per width by matplotlib, handed on as compact inline SVG and as PNG.

Drawing happens in pixels from the top left, so that a figure for a telephone is a figure of its own and not a shrunken
one. Text stays text, in the page's font; colours become the page's CSS variables, so that one SVG serves light and
dark.
"""

from collections.abc import Callable, Sequence
import contextlib
from dataclasses import dataclass
import io
import math
import re
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from diversity_jax.core.formats import clean, shortened
from diversity_jax.report.html import Html
from diversity_jax.report.style import LIGHT, NARROW_PX, WIDE_PX


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
    """Long curves as at most `most` means of neighbouring points, so that a page stays small; NaN are left out of the
    means.
    """
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

    Neighbours that touch form a block that stands around the mean of its members' wishes; where everything does not fit
    the gap shrinks.
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


_SETTINGS = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "text.usetex": False,
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 13.0,
    "path.simplify": True,
    "figure.dpi": 72.0,
    "savefig.dpi": 72.0,
    "lines.solid_capstyle": "round",
}
_ROLE_OF = {colour: f"var(--{role})" for role, colour in LIGHT.items()}
_DROPPED = ("metadata", "style", "title")
_COLOUR = re.compile(r"#[0-9a-f]{6}")
_DECIMALS = re.compile(r"-?\d+\.\d+")


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A finished figure: inline SVG for wide and narrow screens, the wide one as files of its own, and what it shows in
    words.
    """

    name: str
    alt: str
    wide: Html
    narrow: Html
    png: bytes
    svg: bytes


class Canvas:
    """A figure of `width` x `height` pixels with its origin at the top left."""

    def __init__(self, width: int, height: int):
        from matplotlib.figure import Figure

        self.width, self.height = width, height
        self.figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        self.figure.patch.set_visible(False)

    @property
    def narrow(self) -> bool:
        """Whether it is drawn for a telephone."""
        return self.width < 0.6 * WIDE_PX

    def text(
        self,
        x: float,
        y: float,
        text: Any,
        role: str = "ink",
        *,
        align: str = "left",
        bold: bool = False,
        size: float = 13,
    ) -> None:
        """One line of text whose middle is at height `y`."""
        self.figure.text(
            x / self.width, 1 - (y + 0.35 * size) / self.height, clean(text).replace("\n", " "), color=LIGHT[role], ha=align, va="baseline",
            fontsize=size, fontweight="bold" if bold else "normal",
        )  # fmt: skip

    def axes(self, left: float, top: float, width: float, height: float) -> Any:
        """Bare matplotlib axes over a rectangle: no frame, no ticks, nothing drawn yet."""
        axes = self.figure.add_axes(
            (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height)
        )
        axes.patch.set_visible(False)
        axes.spines[:].set_visible(False)
        axes.tick_params(which="both", length=0, pad=8, labelsize=12, labelcolor=LIGHT["muted"])
        return axes


def label(name: str, most: int = 20) -> str:
    """A component's name as figures write it, at most `most` characters."""
    return shortened(name, most)


def label_px(names: Sequence[str]) -> int:
    """Room for the longest name at 13 px, bold, in the widest of the fonts a page may meet."""
    return 24 + round(8.2 * max((len(label(name)) for name in names), default=0))


def x_ticks(axes: Any, ticks: Sequence[float], form: Callable[[float], str], *, ruled: bool = False) -> None:
    """Labels below the axes at `ticks`, and with `ruled` a pale line up from each."""
    _ticks(axes.xaxis, ticks, form, ruled)
    axes.set_axisbelow(True)


def y_ticks(axes: Any, ticks: Sequence[float], form: Callable[[float], str], *, ruled: bool = True) -> None:
    """Labels left of the axes at `ticks`, and with `ruled` a pale line across from each."""
    _ticks(axes.yaxis, ticks, form, ruled)
    axes.set_axisbelow(True)


def _ticks(axis: Any, ticks: Sequence[float], form: Callable[[float], str], ruled: bool) -> None:
    from matplotlib.ticker import NullLocator

    axis.set_ticks(list(ticks), [form(tick) for tick in ticks])
    axis.set_minor_locator(NullLocator())
    if ruled:
        axis.grid(True, color=LIGHT["rule"], linewidth=0.8)


def render(name: str, alt: str, draw: Callable[[int], Canvas]) -> Drawing:
    """Draws a figure for wide and for narrow screens.

    Args:
      name: letters, digits and hyphens: the PNG's name and the prefix of ids inside the SVG.
      alt: what the figure shows, for readers who cannot see it.
      draw: makes the canvas for a width in pixels.
    """
    import matplotlib

    with _quiet_matplotlib():
        wide = draw(WIDE_PX)
        narrow = draw(NARROW_PX)
        png = io.BytesIO()
        wide.figure.savefig(
            png,
            format="png",
            dpi=144,
            bbox_inches="tight",
            pad_inches=1 / 3,
            facecolor=LIGHT["paper"],
            metadata={"Software": None},
        )
        svg = io.BytesIO()
        with matplotlib.rc_context({"svg.hashsalt": name}):
            wide.figure.savefig(
                svg,
                format="svg",
                bbox_inches="tight",
                pad_inches=1 / 3,
                facecolor=LIGHT["paper"],
                metadata={"Date": None, "Creator": None},
            )
        return Drawing(
            name=name, alt=clean(alt), png=png.getvalue(), svg=svg.getvalue(),
            wide=_inline_svg(wide, "wide", f"{name}-w", alt), narrow=_inline_svg(narrow, "narrow", f"{name}-n", alt),
        )  # fmt: skip


@contextlib.contextmanager
def _quiet_matplotlib():
    """Our settings over matplotlib's defaults, whatever the user's matplotlibrc says, and no warning about glyphs a
    PNG's font lacks.
    """
    import warnings

    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        yield


def _inline_svg(canvas: Canvas, css_class: str, prefix: str, alt: str) -> Html:
    """The canvas as an `<svg>` element that can stand in a page beside others: no ids in common, no global style, no
    fixed colours.
    """
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": prefix}):
        canvas.figure.savefig(
            file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    root = ElementTree.fromstring(file.getvalue().encode())
    wanted = set(
        re.findall(
            r"#([\w.-]+)",
            " ".join(value for node in root.iter() for key, value in node.attrib.items() if key != "style"),
        )
    )
    names = {old: f"{prefix}-{place}" for place, old in enumerate(sorted(wanted))}
    inside = "".join(_serialised(child, names) for child in root)
    box = f'viewBox="0 0 {canvas.width} {canvas.height}"'
    return Html(f'<svg class="figure {css_class}" {box} role="img" aria-label={quoteattr(clean(alt))}>{inside}</svg>')


def _serialised(node: ElementTree.Element, names: dict[str, str]) -> str:
    tag = node.tag.rpartition("}")[2]
    if tag in _DROPPED:
        return ""
    inside = escape(node.text or "").strip() if tag != "text" else escape(node.text or "")
    inside += "".join(_serialised(child, names) for child in node)
    if tag in ("g", "defs") and not inside:
        return ""
    attributes = "".join(_attribute(key.rpartition("}")[2], value, names) for key, value in node.attrib.items())
    if tag == "g" and not attributes:
        return inside
    return f"<{tag}{attributes}>{inside}</{tag}>"


def _attribute(key: str, value: str, names: dict[str, str]) -> str:
    """One attribute with ids renamed, colours as roles, coordinates at a hundredth of a pixel and the font left to the
    page.
    """
    if key == "id":
        return f' id="{names[value]}"' if value in names else ""
    if key == "style":
        parts = [part.strip() for part in value.split(";")]
        parts = [part for part in parts if not part.startswith("font-family")]
        value = ";".join(parts).replace("font-weight: 700", "font-weight: 600")
        value = _COLOUR.sub(lambda colour: _ROLE_OF.get(colour.group(), colour.group()), value).replace(": ", ":")
    elif key == "transform" and value.startswith("rotate(-0 "):
        return ""
    elif key in ("href", "clip-path"):
        value = re.sub(r"#([\w.-]+)", lambda found: "#" + names[found.group(1)], value)
    if key in ("d", "x", "y", "width", "height", "transform"):
        value = _DECIMALS.sub(
            lambda number: f"{float(number.group()):.2f}".rstrip("0").rstrip("."), value.replace("\n", "")
        )
    return f" {key}={quoteattr(value)}"

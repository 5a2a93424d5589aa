"""Draws figures with matplotlib, once for wide screens and once for telephones: inline SVG, and PNG and SVG files.

Positions are in pixels from the top left; the figure for telephones has a layout of its own instead of being scaled.
Inline SVG keeps text as text in the page's font and uses the page's CSS variables as colours, so that one SVG serves
light and dark mode.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
from dataclasses import dataclass
import functools
import io
import math
import re
import sys
from typing import Any

import numpy as np

from diversity_jax.core.formats import clean, shortened, significant
from diversity_jax.report.html import LIGHT, PHONE_PX, WIDE_PX, Html, Palette, html

_SETTINGS: dict[Any, Any] = {
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
_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}
_MARGIN_INCHES = 1 / 3  # around a figure in a file


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A finished figure: inline SVG for two widths, and the wide one as the content of `name`.png and `name`.svg."""

    name: str
    wide: Html
    phone: Html
    png: bytes
    svg: bytes


class Canvas:
    """A figure of `width` x `height` pixels with its origin at the top left."""

    def __init__(self, width: int, height: float):
        self.width, self.height = width, height
        self.figure = _figure_class()(figsize=(width / 72, height / 72), dpi=72)
        self.figure.patch.set_visible(False)

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
        """Writes one line of text, vertically centred at `y`."""
        self.figure.text(
            x / self.width,
            1 - (y + 0.35 * size) / self.height,
            clean(text).replace("\n", " "),
            color=LIGHT[role],
            ha=align,
            va="baseline",
            fontsize=size,
            fontweight="bold" if bold else "normal",
        )

    def note(self, x: float, y: float, text: str, *, align: str = "left") -> None:
        """Writes small grey text: units, column heads, titles of axes."""
        self.text(x, y, text, "muted", align=align, size=12)

    def axes(self, left: float, top: float, width: float, height: float, *, ylim: Sequence[float] | None = None) -> Any:
        """matplotlib axes over a rectangle, without frame and ticks."""
        rectangle = left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height
        axes = self.figure.add_axes(rectangle)
        axes.patch.set_visible(False)
        axes.spines[:].set_visible(False)
        axes.tick_params(which="both", length=0, pad=8, labelsize=12, labelcolor=LIGHT["muted"])
        axes.set(xticks=[], yticks=[], axisbelow=True)
        if ylim is not None:
            axes.set_ylim(*ylim)
        return axes

    def rows(self, count: int, box: tuple[float, float, float, float]) -> Any:
        """Axes of `count` rows: y = n is row n from the top. `box` is left, top, right margin and a row's height."""
        left, top, right, row = box
        return self.axes(left, top, self.width - left - right, row * count, ylim=(count - 0.5, -0.5))


@functools.cache
def _figure_class() -> Any:
    """matplotlib's `Figure`, imported without generating the signatures and docstrings of its `set` methods, which is
    half of the import's time; in an interactive Python they are generated.
    """
    import matplotlib.artist

    artist: Any = matplotlib.artist  # its private names have no types
    if hasattr(sys, "ps1") or "IPython" in sys.modules:
        from matplotlib.figure import Figure

        return Figure
    property_table, signature = artist.kwdoc, vars(artist.Artist)["_update_set_signature_and_docstring"]
    vars(artist)["kwdoc"] = lambda artist: ""
    artist.Artist._update_set_signature_and_docstring = classmethod(lambda artist: None)
    try:
        from matplotlib.figure import Figure
    finally:
        vars(artist)["kwdoc"] = property_table
        artist.Artist._update_set_signature_and_docstring = signature
    return Figure


def for_phone(width: int) -> bool:
    """Whether a width in pixels is that of a telephone."""
    return width < 0.6 * WIDE_PX


def label(name: str, most: int = 20) -> str:
    """A component's name as figures show it, in at most `most` characters."""
    return shortened(name, most)


def label_px(names: Sequence[str], most: int = 20) -> int:
    """Pixels for the longest of the names in bold at 13 px, in the widest of the fonts that the page names."""
    return 24 + round(8.2 * max((len(label(name, most)) for name in names), default=0))


def set_ticks(
    axis: Any, ticks: int | Sequence[float], form: Callable[[float], str], *, ruled: bool = False, integer: bool = False
) -> None:
    """Sets ticks and their labels on a matplotlib axis.

    Args:
      ticks: their values, or the largest number of intervals between round values (1, 2 or 5 times a power of ten).
      form: formats a value.
      ruled: whether to draw a grid line at each.
      integer: whether to allow whole numbers only.
    """
    from matplotlib.ticker import FixedLocator, Formatter, MaxNLocator, NullLocator

    class Labels(Formatter):
        def __call__(self, value: float, position: int | None = None) -> str:
            return form(value)

        def format_ticks(self, values: Sequence[float]) -> list[str]:
            return distinct_labels(list(values), form)

    rounds = (1, 2, 5, 10)
    locator = MaxNLocator(ticks, steps=rounds, integer=integer) if isinstance(ticks, int) else FixedLocator(ticks)
    axis.set_major_locator(locator)
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(Labels())
    if ruled:
        axis.grid(True, color=LIGHT["rule"], linewidth=0.8)


_MOST_DIGITS = 9


def distinct_labels(values: Sequence[float], form: Callable[[float], str]) -> list[str]:
    """Labels of an axis, all different: `significant` gets as many digits as that takes, since with three 7.912, 7.914
    and 7.916 are the same; of equal labels in other formats the second and later ones become empty.
    """
    labels = [form(value) for value in values]
    if form is significant and len(values) > 1:
        allowed = 0.05 * min(abs(float(gap)) for gap in np.diff(values))
        for digits in range(3, _MOST_DIGITS + 1):
            labels = [significant(value, digits) for value in values]
            if all(abs(float(f"{value:.{digits - 1}e}") - value) <= allowed for value in values):
                break
    return ["" if label in labels[:position] else label for position, label in enumerate(labels)]


def log_ticks(low: float, high: float, most: int) -> list[float]:
    """Ticks of a log axis: at most `most` round values in [low, high], equally many in each decade.

    matplotlib's own locator sets hardly any in ranges below a decade.
    """
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9), (1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = [factor * 10.0**decade for decade in decades for factor in factors]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= most:
            break
    return ticks[:: math.ceil(len(ticks) / most)] if len(ticks) > 1 else [low, high]


def limits(values: Any, margin: float = 0.04) -> tuple[float, float]:
    """The range of the finite values, widened by the share `margin` on either side."""
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    added = margin * (high - low) or 0.1 * (abs(high) or 1.0)
    return low - added, high + added


def resampled(x: np.ndarray, y: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """A long curve reduced to `most` means of neighbouring points, so that a page stays small; NaN are ignored."""
    if len(x) <= most:
        return x, y
    edges = np.linspace(0, len(x), most + 1).astype(int)[:-1]
    finite = np.isfinite(y)
    points = np.add.reduceat(finite.astype(float), edges)
    total = np.add.reduceat(np.where(finite, y, 0.0), edges)
    middle = np.add.reduceat(x, edges) / np.diff(edges, append=len(x))
    return middle, np.divide(total, points, out=np.full(most, np.nan), where=points > 0)


def smoothed(y: np.ndarray, share: float = 0.02) -> np.ndarray:
    """A centred running mean over `share` of the curve on either side, narrower at its ends; NaN are ignored."""
    if len(y) < 12:
        return y
    finite = np.isfinite(y)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, y, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    index = np.arange(len(y))
    reach = np.minimum(np.minimum(index, len(y) - 1 - index), max(1, round(share * len(y))))
    low, high = index - reach, index + reach + 1
    points = counts[high] - counts[low]
    return np.divide(sums[high] - sums[low], points, out=np.full(len(y), np.nan), where=points > 0)


def dodged(heights: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Heights of labels moved as little as possible so that they are `gap` apart inside [low, high], in the same order.

    Least squares by the pool-adjacent-violators algorithm: neighbours that are too close form a block at the mean of
    the heights its members were given. Where [low, high] is too short for all, the gap is reduced.
    """
    if len(heights) > 1:
        gap = min(gap, (high - low) / (len(heights) - 1))
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    blocks: list[list[float]] = []  # start, number of members, sum of (given height - offset in the block)
    for index in order:
        blocks.append([heights[index], 1, heights[index]])
        while True:
            _, members, total = blocks[-1]
            blocks[-1][0] = min(max(total / members, low), high - gap * (members - 1))
            if len(blocks) < 2 or blocks[-2][0] + gap * blocks[-2][1] <= blocks[-1][0] + 1e-9:
                break
            blocks.pop()
            blocks[-1][2] += total - gap * blocks[-1][1] * members
            blocks[-1][1] += members
    moved = [start + gap * member for start, members, _ in blocks for member in range(int(members))]
    result = [0.0] * len(heights)
    for index, height in zip(order, moved, strict=True):
        result[index] = height
    return result


def end_labels(
    canvas: Canvas, x: float, heights: Mapping[str, float], span: tuple[float, float], palette: Palette, most: int = 20
) -> None:
    """Writes names at `x`, at the heights of their curves' ends, moved apart inside `span`; all in pixels."""
    for name, y in zip(heights, dodged(list(heights.values()), 17, *span), strict=True):
        canvas.text(x, y, label(name, most), palette.slot(name), bold=True)


def render(name: str, alt: str, draw: Callable[[int], Canvas]) -> Plot:
    """Draws a figure for wide screens and for telephones.

    Args:
      name: letters, digits and hyphens: the name of its files and the prefix of ids inside the SVG.
      alt: the description for screen readers.
      draw: returns the canvas for a width in pixels.
    """
    with _matplotlib_settings():
        wide, phone = draw(WIDE_PX), draw(PHONE_PX)
        inline = _inline(wide, "wide", f"{name}-w", alt)
        box = wide.figure.get_tightbbox().padded(_MARGIN_INCHES)
        framed = {"bbox_inches": box, "facecolor": LIGHT["paper"]}
        return Plot(
            name=name,
            wide=inline,
            phone=_inline(phone, "phone", f"{name}-p", alt),
            png=_saved(wide, name, format="png", dpi=144, metadata={"Software": None}, **framed),
            svg=_saved(wide, name, format="svg", metadata=_NO_METADATA, **framed),
        )


@contextlib.contextmanager
def _matplotlib_settings() -> Iterator[None]:
    """matplotlib's defaults with `_SETTINGS`, regardless of the user's matplotlibrc, and without warnings about glyphs
    that a PNG's font lacks.
    """
    import warnings

    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        # As matplotlib.rcdefaults(), which would validate its 300 defaults again: 0.05 s a figure.
        defaults = {name: value for name, value in dict.items(matplotlib.rcParamsDefault) if "backend" not in name}
        dict.update(matplotlib.rcParams, defaults)
        matplotlib.rcParams.update(_SETTINGS)
        yield


def _saved(canvas: Canvas, salt: str, **options: Any) -> bytes:
    """The content of the canvas's file; `salt` determines the ids in SVG."""
    import matplotlib

    file = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": salt}):
        canvas.figure.savefig(file, **options)
    return file.getvalue()


def _inline(canvas: Canvas, css_class: str, prefix: str, alt: str) -> Html:
    """The canvas as an `<svg>` element for a page with others: prefixed ids, no style element, no fixed colours and
    fonts.
    """
    svg = _saved(canvas, prefix, format="svg", metadata=_NO_METADATA).decode()
    inside = svg[svg.index(">", svg.index("<svg")) + 1 : svg.rindex("</svg>")]
    inside = re.sub(r"<style.*?</style>", "", inside, flags=re.DOTALL)
    inside = re.sub(r"<[^/>][^>]*>", lambda tag: _page_tag(tag.group(), prefix), inside)
    root = '<svg class="figure {}" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>'
    return html(root, css_class, canvas.width, f"{canvas.height:g}", alt, Html(inside))


def _page_tag(tag: str, prefix: str) -> str:
    """A tag of matplotlib's SVG with ids prefixed, colours as CSS variables, no font family, and two decimals."""
    tag = re.sub(r"( id=\"|xlink:href=\"#|url\(#)", rf"\g<1>{prefix}-", tag).replace("xlink:href", "href")
    tag = re.sub(r"#[0-9a-f]{6}\b", lambda colour: _ROLE_OF.get(colour.group(), colour.group()), tag)
    tag = re.sub(r"(\.\d\d)\d+", r"\1", tag)
    return re.sub(r"font-family: [^;\"]*;? ?", "", tag).replace("font-weight: 700", "font-weight: 600")

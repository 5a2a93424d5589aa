"""Figures drawn once per width by matplotlib, handed on as compact inline SVG and as PNG.

Drawing happens in pixels from the top left, so that a figure for a telephone is a figure of its own and not a shrunken one. Text stays
text, in the page's font; colours become the page's CSS variables, so that one SVG serves light and dark.
"""

from collections.abc import Callable, Sequence
import contextlib
from dataclasses import dataclass
import io
import re
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import escape, quoteattr

from diversity_jax.report.formats import clean, shortened
from diversity_jax.report.html import Html
from diversity_jax.report.theme import LIGHT, NARROW_PX, WIDE_PX

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
    """A finished figure: inline SVG for wide and narrow screens, the wide one as files of its own, and what it shows in words."""

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

    def text(self, x: float, y: float, text: Any, role: str = "ink", *, align: str = "left", bold: bool = False, size: float = 13) -> None:
        """One line of text whose middle is at height `y`."""
        self.figure.text(
            x / self.width, 1 - (y + 0.35 * size) / self.height, clean(text).replace("\n", " "), color=LIGHT[role], ha=align, va="baseline",
            fontsize=size, fontweight="bold" if bold else "normal",
        )  # fmt: skip

    def axes(self, left: float, top: float, width: float, height: float) -> Any:
        """Bare matplotlib axes over a rectangle: no frame, no ticks, nothing drawn yet."""
        axes = self.figure.add_axes((left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height))
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
            png, format="png", dpi=144, bbox_inches="tight", pad_inches=1 / 3, facecolor=LIGHT["paper"], metadata={"Software": None}
        )
        svg = io.BytesIO()
        with matplotlib.rc_context({"svg.hashsalt": name}):
            wide.figure.savefig(
                svg, format="svg", bbox_inches="tight", pad_inches=1 / 3, facecolor=LIGHT["paper"], metadata={"Date": None, "Creator": None}
            )
        return Drawing(
            name=name, alt=clean(alt), png=png.getvalue(), svg=svg.getvalue(),
            wide=_inline_svg(wide, "wide", f"{name}-w", alt), narrow=_inline_svg(narrow, "narrow", f"{name}-n", alt),
        )  # fmt: skip


@contextlib.contextmanager
def _quiet_matplotlib():
    """Our settings over matplotlib's defaults, whatever the user's matplotlibrc says, and no warning about glyphs a PNG's font lacks."""
    import warnings

    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        yield


def _inline_svg(canvas: Canvas, css_class: str, prefix: str, alt: str) -> Html:
    """The canvas as an `<svg>` element that can stand in a page beside others: no ids in common, no global style, no fixed colours."""
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": prefix}):
        canvas.figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    root = ElementTree.fromstring(file.getvalue().encode())
    wanted = set(re.findall(r"#([\w.-]+)", " ".join(value for node in root.iter() for key, value in node.attrib.items() if key != "style")))
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
    """One attribute with ids renamed, colours as roles, coordinates at a hundredth of a pixel and the font left to the page."""
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
        value = _DECIMALS.sub(lambda number: f"{float(number.group()):.2f}".rstrip("0").rstrip("."), value.replace("\n", ""))
    return f" {key}={quoteattr(value)}"

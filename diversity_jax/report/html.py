"""HTML from jinja2 templates, which clean and escape every value and format numbers; colours of pages and figures.

The six component colours have a contrast of at least 4.5 to the page in light and dark mode and stay distinguishable
under simulated deuteranopia, protanopia and tritanopia (a test measures both). From the seventh component on the
colours repeat with another dash pattern. The style sheet is `templates/style.css.j2`.
"""

from collections.abc import Sequence
import contextlib
import functools
import os
import re
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from diversity_jax.core import formats
from diversity_jax.core.files import user_cache

if TYPE_CHECKING:
    import jinja2


LIGHT = {
    "ink": "#1c2126",
    "muted": "#5b646d",
    "rule": "#d3d8dd",
    "band": "#e9ecef",
    "paper": "#fdfdfb",
    "c1": "#0077c4",
    "c2": "#b05d08",
    "c3": "#1b5a42",
    "c4": "#945f99",
    "c5": "#6b430f",
    "c6": "#43305c",
}
DARK = {
    "ink": "#e9ebee",
    "muted": "#9ba5af",
    "rule": "#343b43",
    "band": "#262c33",
    "paper": "#15181c",
    "c1": "#559be3",
    "c2": "#eda345",
    "c3": "#5fd3a6",
    "c4": "#e3bdf0",
    "c5": "#a3865a",
    "c6": "#8790ba",
}
SLOTS = ("c1", "c2", "c3", "c4", "c5", "c6")
DASHES = ("solid", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))

# Widths of figures in CSS pixels: the page's text column, and a telephone.
WIDE_PX = 936
PHONE_PX = 380


class Palette:
    """A colour for each component, by its position in `names`; the same in all figures and tables of a page."""

    def __init__(self, names: Sequence[str]):
        self._position = {name: position for position, name in enumerate(dict.fromkeys(names))}

    def slot(self, name: str) -> str:
        """The colour's name, `c1` to `c6`; `ink` for a name that is not in `names`."""
        return SLOTS[self._position[name] % len(SLOTS)] if name in self._position else "ink"

    def colour(self, name: str) -> str:
        """The colour of light mode, in which figures are drawn."""
        return LIGHT[self.slot(name)]

    def dash(self, name: str) -> object:
        """The line style: components of one colour have different ones."""
        return DASHES[self._position.get(name, 0) // len(SLOTS) % len(DASHES)]


Html = Markup
"""Text that is not escaped again: what templates and `html` return."""
_FILTERS = (
    formats.compact,
    formats.count,
    formats.duration,
    formats.estimate,
    formats.money,
    formats.percent,
    formats.shortened,
    formats.signed,
    formats.significant,
)
_COLUMN_KINDS = {"#": "number", "~": "wordy"}


def _cleaned(value: Any) -> Any:
    """Markup unchanged, None as "", any other value as text without control characters; jinja2 escapes it later."""
    return value if hasattr(value, "__html__") else "" if value is None else formats.clean(value)


def html(pattern: str, *values: Any) -> Html:
    """HTML from a pattern whose `{}` are replaced by the values, cleaned and escaped."""
    return Markup(pattern).format(*map(_cleaned, values))


def _compiled_templates() -> "jinja2.BytecodeCache | None":
    """A cache of compiled templates under ~/.cache, or None where it is not writable; compiling takes 0.25 s a page."""
    import jinja2

    folder = user_cache("templates")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None

    class Cache(jinja2.FileSystemBytecodeCache):
        def dump_bytecode(self, bucket: Any) -> None:
            with contextlib.suppress(OSError):  # a full disk: the page itself may go to another
                super().dump_bytecode(bucket)

    return Cache(str(folder)) if os.access(folder, os.W_OK) else None


@functools.cache
def environment() -> "jinja2.Environment":
    """jinja2's environment for the templates of this package; an undefined name in a template is an error."""
    import jinja2

    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("diversity_jax.report"),
        autoescape=True,
        finalize=_cleaned,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.do"],
        bytecode_cache=_compiled_templates(),
    )
    templates.filters |= {function.__name__: function for function in _FILTERS}
    templates.globals |= {"light": LIGHT, "dark": DARK, "slots": SLOTS, "wide_px": WIDE_PX, "dash": "\u2013"}
    templates.globals |= {"counted": formats.counted, "listed": formats.listed, "named": named, "table": HtmlTable}
    return templates


@functools.cache
def _module(template: str) -> Any:
    return environment().get_template(f"{template}.html.j2").module


def macro(template: str, name: str, *arguments: Any, **values: Any) -> Html:
    """Calls the macro `name` of `templates/TEMPLATE.html.j2`."""
    return getattr(_module(template), name)(*arguments, **values)


class HtmlTable:
    """A table to which templates add rows. A title that begins with `#` heads a right-aligned column of numbers, one
    that begins with `~` a wide column of sentences.
    """

    def __init__(self, titles: Sequence[str], rows: Sequence[Sequence[Any]] = ()):
        self.columns = [
            (title[1:], _COLUMN_KINDS[title[0]]) if title[:1] in _COLUMN_KINDS else (title, "") for title in titles
        ]
        self.rows = list(rows)

    def add(self, cells: Sequence[Any]) -> None:
        """Appends a row, whose first cell is its heading."""
        self.rows.append(cells)

    def __html__(self) -> str:
        return macro("macros", "table", self.columns, self.rows)


def named(name: str, palette: Palette) -> Html:
    """A component's name after a dot in its colour; a long name may break after `_`, `/`, `.` and `-`."""
    return macro("macros", "name", re.split(r"(?<=[_/.-])(?=.)", formats.clean(name)), palette.slot(name))

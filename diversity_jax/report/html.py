"""Parts of a page as markup: jinja2 templates that clean and escape every value which is not markup already."""

from collections.abc import Iterable, Sequence
import functools
import re
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from diversity_jax.core.formats import clean
from diversity_jax.report.style import DARK, LIGHT, SLOTS, WIDE_PX, Palette

if TYPE_CHECKING:
    import jinja2

Html = Markup
"""Text that is markup already: what templates and `html` made."""
_COLUMN_KINDS = {"#": "number", "~": "wordy"}


def _cleaned(value: Any) -> Any:
    """Markup as it is, anything else as harmless text; the escaping itself follows."""
    return value if hasattr(value, "__html__") else "" if value is None else clean(value)


def html(pattern: str, *values: Any) -> Html:
    """Markup from a pattern with `{}` for values, which are cleaned and escaped."""
    return Markup(pattern).format(*map(_cleaned, values))


@functools.cache
def environment() -> "jinja2.Environment":
    """The templates of this package; an undefined name in one is an error."""
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.PackageLoader("diversity_jax.report"),
        autoescape=True,
        finalize=_cleaned,
        undefined=jinja2.StrictUndefined,
    )
    made.globals |= {"light": LIGHT, "dark": DARK, "slots": SLOTS, "wide_px": WIDE_PX}
    return made


@functools.cache
def _macros() -> Any:
    return environment().get_template("macros.html.j2").module


def macro(name: str, *arguments: Any) -> Html:
    """What a macro of `macros.html.j2` writes."""
    return getattr(_macros(), name)(*arguments)


def table(titles: Iterable[str], rows: Iterable[Sequence[Any]]) -> Html:
    """A table. `#` before a title means a column of numbers (set right), `~` one of sentences (wide enough to read)."""
    columns = [(title[1:], _COLUMN_KINDS[title[0]]) if title[:1] in _COLUMN_KINDS else (title, "") for title in titles]
    return macro("table", columns, rows)


def named(name: str, palette: Palette) -> Html:
    """A component's name behind a dot of its colour; a long one breaks where its words end."""
    return macro("name", re.split(r"(?<=[_/.-])(?=.)", clean(name)), palette.slot(name))


def details(summary: Any, aside: str, *body: Any, slot: str = "", opened: bool = False) -> Html:
    """Something folded behind its summary; `aside` stands at the right of the summary's line."""
    return macro("details", summary, aside, body, slot, opened)


def heading(title: str) -> Html:
    """A heading inside a section."""
    return html("<h3>{}</h3>", title)


def muted(note: str) -> Html | None:
    """A paragraph of less weight; None where there is nothing to say."""
    return html('<p class="muted">{}</p>', note) if note else None

"""HTML that escapes by construction: a plain string becomes text, and only what these functions made is markup."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
import html as escaping
from typing import Any

from diversity_jax.core.formats import clean

_EMPTY = ("meta", "link", "br", "wbr")


class Html(str):
    """Markup made here, safe to put into a page as it is."""

    __slots__ = ()


def text(value: Any) -> Html:
    """Foreign text, cleaned and escaped, safe inside elements and attributes alike."""
    return value if isinstance(value, Html) else Html(escaping.escape(clean(value), quote=True))


def joined(*parts: Any) -> Html:
    """Parts one after the other; nested lists are opened, None is left out, anything that is not `Html` is escaped."""
    return Html("".join(_flat(parts)))


def _flat(parts: Iterable[Any]) -> Iterable[str]:
    for part in parts:
        if part is None:
            continue
        if isinstance(part, (list, tuple)):
            yield from _flat(part)
        else:
            yield text(part)


def element(tag: str, *children: Any, **attributes: Any) -> Html:
    """An element; `class_` and `data_label` stand for `class` and `data-label`, an attribute that is None is left
    out.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{text(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{tag}{written}>") if tag in _EMPTY else Html(f"<{tag}{written}>{joined(*children)}</{tag}>")


@dataclass(frozen=True, kw_only=True)
class Column:
    """A table's column: its heading and whether it holds numbers (set right) or sentences (kept wide enough to
    read).
    """

    title: str
    kind: str = "word"

    @property
    def css_class(self) -> str | None:
        """The class of its cells."""
        return {"number": "number", "wordy": "wordy"}.get(self.kind)


def columns(*titles: str) -> tuple[Column, ...]:
    """Columns by title: `#` before a title means numbers, `~` sentences."""
    kinds = {"#": "number", "~": "wordy"}
    return tuple(Column(title=title.lstrip("#~"), kind=kinds.get(title[0], "word")) for title in titles)


def table(columns: Sequence[Column], rows: Iterable[Sequence[Any]]) -> Html:
    """A table whose first cell heads its row; on a narrow screen each row becomes a small list with the headings beside
    the values.
    """
    head = element("tr", [element("th", column.title, scope="col", class_=column.css_class) for column in columns])
    body = [
        element(
            "tr",
            element("th", row[0], scope="row"),
            [
                element("td", element("span", cell), class_=column.css_class, data_label=column.title)
                for column, cell in zip(columns[1:], row[1:], strict=True)
            ],
        )
        for row in rows
    ]
    return element("div", element("table", element("thead", head), element("tbody", body)), class_="scroll stack")

"""One self-contained HTML page: a verdict first, then sections; nothing in it is fetched, and nothing in it runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
import re

from diversity_jax.core.files import writing
from diversity_jax.report.data import Fact
from diversity_jax.report.html import Html, element, joined, text
from diversity_jax.report.plotting import Drawing
from diversity_jax.report.style import Palette, style_sheet

# Even if some text escaped its escaping, the browser would neither run it nor fetch anything for it.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


@dataclass(frozen=True, kw_only=True)
class KeyFigure:
    """A number worth seeing first: what it is, its value, and a note beneath."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a page: its anchor (letters and hyphens), its title, its body, and the figures drawn in it."""

    anchor: str
    title: str
    body: Html
    drawings: tuple[Drawing, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Page:
    """Everything a page says.

    Attributes:
      kind: what sort of page this is, such as "Training run".
      name: the run or corpus.
      verdict: one sentence, the page's headline.
      lede: a sentence or two that follow from it; may be empty.
      key_figures: up to six numbers of the first screen.
      sections: in reading order.
      footer: one line at the end.
    """

    kind: str
    name: str
    verdict: str
    lede: str = ""
    key_figures: tuple[KeyFigure, ...] = ()
    sections: tuple[Section, ...] = ()
    footer: str = ""


def named(name: str, palette: Palette) -> Html:
    """A component's name behind a dot of its colour; a long one breaks where its words end."""
    dot = element("span", class_=f"swatch {palette.slot(name)}", aria_hidden="true")
    words = re.split(r"(?<=[_/.-])(?=.)", name)
    label = element("span", words[0], [[element("wbr"), word] for word in words[1:]])
    return element("span", dot, label, class_="name")


def figure(drawing: Drawing, caption: object) -> Html:
    """A figure with its caption; the style sheet shows the wide or the narrow drawing."""
    return element("figure", drawing.wide, drawing.narrow, element("figcaption", caption))


def absent(anchor: str, title: str, why: str) -> Section:
    """A section that says why it has nothing to show."""
    return Section(anchor=anchor, title=title, body=element("p", why, class_="absent"))


def facts(entries: Sequence[Fact], title: str = "Facts", intro: str = "") -> Section:
    """What one needs to repeat the run; `intro` stands above it."""
    rows = [
        [element("dt", fact.name), element("dd", element("code", fact.value) if fact.code else fact.value)]
        for fact in entries
    ]
    body = joined(element("p", intro) if intro else None, element("dl", rows, class_="facts"))
    return Section(anchor="facts", title=title, body=body)


def document(page: Page) -> str:
    """The page as HTML text."""
    head = joined(
        Html('<meta charset="utf-8">'),
        element("meta", http_equiv="Content-Security-Policy", content=Html(_POLICY)),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("link", rel="icon", href="data:,"),
        element("title", f"{page.name} \u00b7 {page.kind.lower()}"),
        Html(f"<style>\n{style_sheet()}\n</style>"),
    )
    links = [element("li", element("a", section.title, href=f"#{section.anchor}")) for section in page.sections]
    header = element(
        "header",
        element("p", f"{page.kind} ", element("b", page.name), class_="overline"),
        element("h1", page.verdict),
        element("p", page.lede, class_="lede") if page.lede else None,
        _key_figures(page.key_figures) if page.key_figures else None,
        element("nav", element("ul", links), aria_label="Sections") if links else None,
    )
    main = element("main", [_section(section) for section in page.sections])
    footer = element("footer", element("p", page.footer)) if page.footer else None
    body = element("body", header, main, footer)
    return f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n</head>\n{body}\n</html>\n'


def _section(section: Section) -> Html:
    return joined(Html("\n"), element("section", element("h2", section.title), section.body, id=text(section.anchor)))


def _key_figures(key_figures: Sequence[KeyFigure]) -> Html:
    entries = [
        element(
            "div",
            element("dt", key.label),
            element("dd", key.value, element("span", key.note, class_="note") if key.note else None),
        )
        for key in key_figures
    ]
    return element("dl", entries, class_="key")


def write(page: Page, folder: str | Path) -> Path:
    """Writes `report.html`, `figures/NAME.png` and `figures/NAME.svg` into `folder`, each whole or not at all.

    Returns:
      The path of the page.

    Raises:
      InputError: the disk is full.
    """
    folder = Path(folder)
    for drawing in (drawing for section in page.sections for drawing in section.drawings):
        for ending, content in (("png", drawing.png), ("svg", drawing.svg)):
            with writing(folder / "figures" / f"{drawing.name}.{ending}") as file:
                file.write(content)
    path = folder / "report.html"
    with writing(path, "w") as file:
        file.write(document(page))
    return path

"""One self-contained HTML page: a verdict first, then sections; nothing in it is fetched, and nothing in it runs."""

from collections.abc import Sequence
from dataclasses import dataclass
import os
from pathlib import Path
from typing import Any

from diversity_jax.core.files import writing
from diversity_jax.core.run_info import Fact
from diversity_jax.report.html import Html, environment, macro
from diversity_jax.report.plotting import Plot


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a page: its anchor (letters and hyphens), its title, its body, and the plots that the body shows."""

    anchor: str
    title: str
    body: Html
    plots: tuple[Plot, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Page:
    """Everything a page says.

    Attributes:
      kind: what sort of page this is, such as "Training run".
      name: the run or corpus.
      verdict: one sentence, the page's headline.
      lede: a sentence or two that follow from it; may be empty.
      key_figures: up to six numbers of the first screen, written by the macro `key`.
      sections: in reading order.
      footer: one line at the end.
    """

    kind: str
    name: str
    verdict: str
    lede: str = ""
    key_figures: Html | None = None
    sections: tuple[Section, ...] = ()
    footer: str = ""


def section(template: str, anchor: str, title: str, *, name: str | None = None, **values: Any) -> Section:
    """A section whose body a macro of a template writes.

    Args:
      name: of the macro; by default the anchor's, with `_` for `-`.
      values: the macro's arguments. Plots among them, alone or in a sequence, are written as files too.
    """
    parts = [part for value in values.values() for part in (value if isinstance(value, list | tuple) else [value])]
    return Section(
        anchor=anchor,
        title=title,
        body=macro(template, name or anchor.replace("-", "_"), **values),
        plots=tuple(part for part in parts if isinstance(part, Plot)),
    )


def absent(anchor: str, title: str, why: str) -> Section:
    """A section that says why it has nothing to show."""
    return section("macros", anchor, title, name="absent", why=why)


def facts(entries: Sequence[Fact], intro: str = "") -> Section:
    """What one needs to repeat the run; `intro` stands above it."""
    return section("macros", "facts", "Facts", entries=entries, intro=intro)


def document(page: Page) -> str:
    """The page as HTML text."""
    return environment().get_template("page.html.j2").render(page=page)


def write(page: Page, folder: str | os.PathLike, *, name: str = "report.html", figures: bool = True) -> Path:
    """Writes `report.html`, `figures/NAME.png` and `figures/NAME.svg` into `folder`, each complete or not at all.

    Args:
      name: of the page's file; figures: whether they are written as files too.

    Returns:
      The path of the page.

    Raises:
      InputError: the disk is full.
    """
    folder = Path(folder)
    for plot in (plot for section in page.sections for plot in section.plots if figures):
        for ending, content in (("png", plot.png), ("svg", plot.svg)):
            with writing(folder / "figures" / f"{plot.name}.{ending}") as file:
                file.write(content)
    path = folder / name
    with writing(path, "w") as file:
        file.write(document(page))
    return path

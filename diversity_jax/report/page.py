"""One self-contained HTML page: a verdict, key figures, sections; no scripts, and nothing loaded from elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass
import os
from pathlib import Path
from typing import Any

from diversity_jax.core.files import writing
from diversity_jax.core.run_info import Fact, RunInfo
from diversity_jax.report.html import Html, environment, macro
from diversity_jax.report.plotting import Plot


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a page: its anchor (letters, digits and hyphens), title, body, and the plots that the body shows."""

    anchor: str
    title: str
    body: Html
    plots: tuple[Plot, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Page:
    """The content of a page.

    Attributes:
      kind: the kind of page, such as "Training run".
      name: of the run or corpus.
      verdict: the headline, one sentence.
      lede: a sentence or two below it; may be empty.
      key_figures: up to six numbers for the first screen, written by the macro `key`.
      sections: in order; None among them is left out.
      footer: one line at the end.
    """

    kind: str
    name: str
    verdict: str
    lede: str = ""
    key_figures: Html | None = None
    sections: Sequence[Section | None] = ()
    footer: str = ""


def section(template: str, anchor: str, title: str, *, name: str | None = None, **values: Any) -> Section:
    """A section whose body is written by a macro of a template.

    Args:
      name: of the macro; by default the anchor with `_` for `-`.
      values: the macro's arguments. Plots among them, single or in a list or tuple, become the section's plots.
    """
    parts = [part for value in values.values() for part in (value if isinstance(value, list | tuple) else [value])]
    return Section(
        anchor=anchor,
        title=title,
        body=macro(template, name or anchor.replace("-", "_"), **values),
        plots=tuple(part for part in parts if isinstance(part, Plot)),
    )


def absent(anchor: str, title: str, why: str) -> Section:
    """A section that only states why there is nothing to show."""
    return section("macros", anchor, title, name="absent", why=why)


def facts(listed: Sequence[Fact], intro: str = "") -> Section:
    """The section "Facts", what is needed to repeat the run, below the sentence `intro`."""
    return section("macros", "facts", "Facts", facts=listed, intro=intro)


def run_facts(folder: str | os.PathLike) -> list[Fact]:
    """Command line, hardware and versions from the folder's `run.json`; empty where it has none."""
    path = Path(folder) / "run.json"
    return RunInfo.load(path).facts() if path.exists() else []


def document(page: Page) -> str:
    """The page as HTML."""
    return environment().get_template("page.html.j2").render(page=page)


def write(page: Page, folder: str | os.PathLike, *, name: str = "report.html", figures: bool = True) -> Path:
    """Writes `report.html`, `figures/NAME.png` and `figures/NAME.svg` into `folder`; each file is replaced atomically.

    Args:
      name: of the page's file.
      figures: whether to write the files in `figures/`.

    Returns:
      The path of the page.

    Raises:
      InputError: the disk is full.
    """
    folder = Path(folder)
    for plot in (plot for section in page.sections if section for plot in section.plots if figures):
        for ending, content in (("png", plot.png), ("svg", plot.svg)):
            with writing(folder / "figures" / f"{plot.name}.{ending}") as file:
                file.write(content)
    path = folder / name
    with writing(path, "w") as file:
        file.write(document(page))
    return path

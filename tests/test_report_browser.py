"""Pages in a browser: no console errors, no requests, everything drawn, no overflow."""

from pathlib import Path

import pytest

from diversity_jax.report.pages import score, training_run
from tests import example_run
from tests.chromium import browser

pytestmark = pytest.mark.browser

# Every figure that is displayed: what is drawn in it, text that leaves the screen, and texts that lie on each other.
_FIGURES = """
const clashes = texts => texts.flatMap((one, place) => texts.slice(place + 1).filter(other => {
  const a = one.getBoundingClientRect(), b = other.getBoundingClientRect();
  const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
  const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
  return across > 0.5 && down > 0.3 * Math.min(a.height, b.height);
}).map(other => one.textContent + ' / ' + other.textContent));
[...document.querySelectorAll('svg.figure')].filter(svg => getComputedStyle(svg).display !== 'none').map(svg => {
  const box = svg.getBoundingClientRect(), inside = svg.getBBox();
  const extent = node => { const b = node.getBBox(); return b.width + b.height; };
  const drawn = [...svg.querySelectorAll('path, use, rect')].filter(node => extent(node) > 0);
  const texts = [...svg.querySelectorAll('text')];
  const outside = b => b.left < -0.5 || b.right > innerWidth + 0.5;
  const over = texts.filter(one => outside(one.getBoundingClientRect()));
  const scale = box.width / svg.viewBox.baseVal.width;
  return {width: box.width, height: box.height, inside: inside.width * inside.height,
          drawn: drawn.length, texts: texts.length,
          smallest: Math.min(...texts.map(one => parseFloat(getComputedStyle(one).fontSize) * scale)),
          over: over.map(one => one.textContent), clash: clashes(texts)};
})
"""
# Colours of the page and of what is drawn, to see that figures follow light and dark.
_COLOURS = """
[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.querySelector('svg.figure text')).fill]
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, tuple[Path, int]]:
    """A page of each sort with the number of its figures."""
    folder = tmp_path_factory.mktemp("pages")
    scorecards = {
        name: example_run.make_scorecard(name, true, groupings=300) for name, true in example_run.TRUE_CLUSTERS.items()
    }
    return {
        "run": (training_run.write(example_run.write_run(folder / "run", groupings=300)), 5),
        "scores": (score.write(folder / "scores", scorecards), 3),
        "hostile": (score.write(folder / "hostile", {example_run.HOSTILE: example_run.make_hostile_scorecard()}), 2),
        "one": (score.write(folder / "one", {"a": scorecards["web"]}), 2),
    }


@pytest.fixture(scope="module")
def tab():
    with browser() as opened:
        yield opened


@pytest.mark.parametrize("name", ["run", "scores", "one", "hostile"])
@pytest.mark.parametrize("width", [1280, 768, 420, 320])
def test_page_is_drawn_without_a_complaint_or_a_request(tab, pages, name, width):
    path, count = pages[name]
    tab.open(path, width=width)
    assert tab.complaints == []
    assert tab.requests == [path.resolve().as_uri()]
    figures = tab.evaluate(_FIGURES)
    assert len(figures) == count
    for figure in figures:
        assert min(figure["width"], figure["height"], figure["inside"], figure["drawn"], figure["texts"]) > 0
        assert figure["smallest"] >= 8
        assert figure["over"] == []
        assert figure["clash"] == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("width", [1280, 420])
def test_page_and_figures_follow_light_and_dark(tab, pages, width):
    path, _ = pages["run"]
    tab.open(path, width=width)
    light = tab.evaluate(_COLOURS)
    tab.open(path, width=width, dark=True)
    dark = tab.evaluate(_COLOURS)
    assert light[0] != dark[0]
    assert light[1] != dark[1]
    tab.open(path, width=width, dark=True, media="print")
    assert tab.evaluate(_COLOURS)[0] == "rgb(255, 255, 255)"
    assert tab.complaints == []


def test_printed_page_shows_what_is_folded_on_screen(tab, pages):
    path, _ = pages["run"]
    shown = "[...document.querySelectorAll('details:not([open]) .grouping')].every(one => one.checkVisibility())"
    tab.open(path, media="print", width=690)
    assert tab.evaluate(shown)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 690
    assert tab.pdf().startswith(b"%PDF")
    tab.open(path)
    assert not tab.evaluate(shown)


def test_folded_examples_open_without_a_script(tab, pages):
    path, _ = pages["run"]
    tab.open(path)
    before = tab.evaluate("document.querySelectorAll('details[open]').length")
    tab.evaluate("document.querySelector('details:not([open]) summary').click()")
    assert tab.evaluate("document.querySelectorAll('details[open]').length") == before + 1
    assert tab.evaluate("document.scripts.length") == 0

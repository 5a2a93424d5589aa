"""Figures: distinguishable colours, labels that do not overlap, smoothed curves, and SVG that can be embedded."""

from fractions import Fraction
import itertools
import re
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from diversity_jax.core.intervals import Estimate
from diversity_jax.mixtures.mixture import MixtureComponent
from diversity_jax.report.figures import diversity, outcomes
from diversity_jax.report.figures.diversity import Distribution
from diversity_jax.report.html import DARK, LIGHT, SLOTS, Palette
from diversity_jax.report.plotting import dodged, log_ticks, render, resampled, smoothed
from diversity_jax.training.log import TrainingLog

# Linear RGB as seen with full colour-blindness of each kind (Machado, Oliveira and Fernandes 2009, severity 1).
_SIGHT = {
    "typical": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def _linear(colour: str) -> np.ndarray:
    channels = np.array([int(colour[start : start + 2], 16) for start in (1, 3, 5)]) / 255
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def _contrast(first: str, second: str) -> float:
    lighter, darker = sorted((_linear(colour) @ [0.2126, 0.7152, 0.0722] for colour in (first, second)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _lab(linear: np.ndarray) -> np.ndarray:
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ np.clip(
        linear, 0, 1
    )
    x, y, z = np.cbrt(np.maximum(xyz / [0.9505, 1, 1.089], 0.008856))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_text_colours_contrast_with_the_page(colours):
    for role in ("ink", "muted", *SLOTS):
        assert _contrast(colours[role], colours["paper"]) >= 4.5, role


@pytest.mark.parametrize("sight", _SIGHT)
@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_component_colours_stay_apart(colours, sight):
    seen = {slot: _lab(np.array(_SIGHT[sight]) @ _linear(colours[slot])) for slot in SLOTS}
    for first, second in itertools.combinations(SLOTS, 2):
        assert np.linalg.norm(seen[first] - seen[second]) >= 17, (first, second)


def test_palette_gives_each_component_one_look():
    names = [f"component {number}" for number in range(20)]
    palette = Palette(names)
    assert len({(palette.slot(name), str(palette.dash(name))) for name in names}) == 20
    assert palette.slot("no component") == "ink"


@given(st.lists(st.floats(0, 100), max_size=12))
def test_dodged_labels_stand_apart_in_order_and_inside(heights):
    moved = dodged(heights, 9, 0, 100)
    order = np.argsort(heights, kind="stable")
    gaps = np.diff(np.array(moved)[order]) if heights else np.zeros(0)
    assert (gaps >= min(9, 100 / max(len(heights) - 1, 1)) - 1e-6).all()
    assert all(-1e-6 <= height <= 100 + 1e-6 for height in moved)


def test_labels_that_do_not_touch_stay_where_they_are():
    assert dodged([50, 10, 30], 9, 0, 100) == [50, 10, 30]


@given(st.floats(0.01, 1e5), st.floats(1.05, 1e6), st.integers(3, 9))
def test_log_ticks_lie_inside_and_are_few(low, factor, most):
    ticks = log_ticks(low, low * factor, most)
    assert 1 <= len(ticks) <= most + 1
    assert all(low * 0.999 <= tick <= low * factor * 1.001 for tick in ticks)


def test_resampling_keeps_the_mean_and_leaves_out_what_is_not_finite():
    y = np.random.default_rng(0).normal(size=12_000)
    x, means = resampled(np.arange(12_000.0), y, 600)
    assert len(x) == 600
    assert means.mean() == pytest.approx(y.mean())
    y[100] = np.nan
    assert np.isfinite(resampled(np.arange(12_000.0), y, 600)[1]).all()
    assert np.isfinite(smoothed(y)).all()


def test_smoothing_keeps_a_straight_line():
    line = np.linspace(3, 1, 300)
    np.testing.assert_allclose(smoothed(line), line, atol=1e-12)


def _estimate(value: float, low: float, high: float | None) -> Estimate:
    return Estimate(value=value, low=low, high=high)


NAMES = ("web", "few $\\frac topics</text><script>", "um\u202elaut \u4e2d\u6587", "a" * 300)
_STEPS = np.arange(1.0, 51.0)
_COLUMNS = {"loss": 3 + 1 / _STEPS, "eval/loss": np.where(_STEPS % 25 == 0, 3.1, np.nan)}
_COLUMNS |= {f"loss/{name}": _COLUMNS["loss"] for name in NAMES}
_COLUMNS |= {f"eval/{name}/loss": _COLUMNS["eval/loss"] for name in NAMES}
_LOG = TrainingLog(steps=_STEPS, columns=_COLUMNS)
_PANEL = outcomes.Panel(title="x", steps=_STEPS, values=_COLUMNS["loss"], form=str)
_WHISKERS = [
    diversity.Whisker(name=NAMES[0], interval=_estimate(50, 40, 60), note="registered"),
    diversity.Whisker(name=NAMES[1], interval=_estimate(4, 3, 5), note="rejected", fill="none", required=25.0),
    diversity.Whisker(name=NAMES[2], interval=_estimate(1, 1, 1), note="down-weighted", fill="left", required=10.0),
    diversity.Whisker(name=NAMES[3], interval=_estimate(500, 300, None)),
]
_BAND = diversity.Whisker(name=NAMES[0], interval=_estimate(50, 40, 60))
_COUNTS = [Distribution(name=name, values=np.arange(1, 11), counts=np.arange(10)) for name in NAMES[:3]]
_NOTHING = Distribution(name=NAMES[3], values=np.arange(1, 11), counts=np.zeros(10))
_RIDGES = [diversity.Ridge(title=title, axis="number", distributions=[*_COUNTS, _NOTHING]) for title in ("C", "S")]
_RUNS = {
    NAMES[0]: {"groupings": [5, 10, 20], "value": [4, 5, 5], "low": [2, 4, 4.5], "high": [None, 8, 6]},
    NAMES[1]: {"groupings": [5], "value": [3], "low": [2], "high": [None]},
}
_PARTS = [
    MixtureComponent(
        name=name,
        kind="real",
        share_asked=Fraction(1, 4),
        share_granted=Fraction(3, 10),
        decision={},
        manifest=None,
    )
    for name in NAMES
]
PALETTE = Palette(NAMES)
DRAWN = {
    "gate": lambda width: diversity.whiskers(_WHISKERS, _BAND, PALETTE, width),
    "gate-one-requirement": lambda width: diversity.whiskers(_WHISKERS[:2], _BAND, PALETTE, width),
    "scores": lambda width: diversity.whiskers(_WHISKERS[:1], None, PALETTE, width),
    "clusters": lambda width: diversity.ridges(_RIDGES, PALETTE, width),
    "shares": lambda width: outcomes.shares(_PARTS, dict.fromkeys(NAMES, 0.3), PALETTE, width),
    "shares-before": lambda width: outcomes.shares(_PARTS, None, PALETTE, width),
    "loss": lambda width: outcomes.losses(_LOG, NAMES, PALETTE, width),
    "loss-total-only": lambda width: outcomes.losses(_LOG, [], PALETTE, width),
    "convergence": lambda width: diversity.convergence(_RUNS, PALETTE, width),
    "speed": lambda width: outcomes.small_multiples([_PANEL] * 3, width),
}


@pytest.mark.parametrize("name", DRAWN)
def test_figures_are_self_contained_and_take_their_colours_from_the_page(name):
    rendered = render(name, "a <figure>", DRAWN[name])
    assert rendered.png.startswith(b"\x89PNG")
    assert ElementTree.fromstring(rendered.svg).tag.endswith("svg")
    assert rendered.svg == render(name, "a <figure>", DRAWN[name]).svg
    for svg in (rendered.wide, rendered.phone):
        root = ElementTree.fromstring(svg)
        nodes = list(root.iter())
        assert root.get("role") == "img"
        assert not {node.tag for node in nodes} & {"script", "style", "image", "metadata", "foreignObject"}
        styles = " ".join(node.get("style", "") for node in nodes)
        assert not re.search(r"#[0-9a-fA-F]{3,}|rgb|font-family", styles)
        assert set(re.findall(r"var\(--(\w+)\)", styles)) <= set(LIGHT)
        ids = [node.get("id") for node in nodes if node.get("id")]
        used = re.findall(r"#([\w-]+)", " ".join(node.get(key, "") for node in nodes for key in ("href", "clip-path")))
        assert len(ids) == len(set(ids))
        assert set(used) <= set(ids)
        assert not any(character in "".join(root.itertext()) for character in "\u202e\x00")
    assert not set(re.findall(r' id="([^"]+)"', rendered.wide)) & set(re.findall(r' id="([^"]+)"', rendered.phone))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(2, 60))
def test_binning_keeps_counts_and_mean(values, most):
    values, counts = np.unique(values, return_counts=True)
    binned = Distribution.binned("web", values, counts, low=1, high=50, most=most)
    assert len(binned.values) <= most
    assert binned.counts.sum() == counts.sum()
    assert binned.mean == pytest.approx(values @ counts / counts.sum())
    assert abs(binned.values @ binned.shares - binned.mean) <= np.ceil(50 / most) / 2 + 1e-9


def test_binning_of_means_between_whole_numbers():
    binned = Distribution.binned("web", [1, 10 / 9, 10], [5, 3, 1], low=1, high=10, most=20)
    assert len(binned.values) == 20
    assert binned.counts[0] == 8
    assert binned.counts[-1] == 1


def test_the_same_data_gives_the_same_bytes():
    first, second = (render("gate", "x", DRAWN["gate"]) for _ in range(2))
    assert first == second


def test_a_reader_s_own_matplotlib_settings_do_not_reach_the_figures():
    import matplotlib

    plain = render("loss", "x", DRAWN["loss"])
    with matplotlib.rc_context(
        {"lines.linewidth": 9, "axes.facecolor": "red", "svg.fonttype": "path", "text.parse_math": True}
    ):
        assert render("loss", "x", DRAWN["loss"]) == plain

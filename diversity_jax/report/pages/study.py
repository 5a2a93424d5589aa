"""The page of a study, drawn from analysis.json alone, so that it can be drawn again without computing anything."""

from collections.abc import Mapping, Sequence
from pathlib import Path
import re
from typing import Any

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import is_remote, read_json
from diversity_jax.core.formats import counted, significant
from diversity_jax.core.run_info import RunInfo
from diversity_jax.metrics.registry import METRICS
from diversity_jax.report import page
from diversity_jax.report.data import Distribution, Fact
from diversity_jax.report.figures import study
from diversity_jax.report.figures.components import Ridge
from diversity_jax.report.html import Html, columns, element, joined, table
from diversity_jax.report.page import KeyFigure, Page, Section
from diversity_jax.report.pages import diversity
from diversity_jax.report.plotting import render
from diversity_jax.report.style import Palette

FORMAT_VERSION = 2  # of analysis.json
_MOST_DENSITIES = 8
_MOST_PANELS = 6
_NONE = "\u2013"
_JOINT = " \u00b7 "
_SLOPE_NOTE = (
    "Slopes are of the outcome over the natural logarithm of the figure, one point a recipe, seeds averaged. "
    "Intervals hold 95 % (HC3, t). "
    "A correlation over few recipes is weak evidence whatever its size; the power table says how weak."
)


def draw(folder: Path) -> Path:
    """Draws `report.html` and `figures/` from `analysis.json` and `run.json`.

    Raises:
      InputError: one of the two is not there, or another version of this package wrote it.
    """
    path = folder / "analysis.json"
    analysis = read_json(path)
    if analysis.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{path}: another version of this package wrote it; run the study again, steps that stand are not repeated"
        )
    return page.write(_page(analysis, RunInfo.load(folder / "run.json").facts()), folder)


def _page(analysis: Mapping[str, Any], facts: Sequence[Fact]) -> Page:
    headline, trained = _headline(analysis["relations"]), bool(analysis["relations"])
    sections = [
        *_relations(analysis),
        *_effects(analysis),
        *(_amounts(analysis, factor) for factor in analysis["factors"]),
        _figures(analysis) if trained else None,
        _densities(analysis["densities"]),
        _failures(analysis["failures"]),
        _runs(analysis),
        _power(analysis["power"]) if analysis["relations"] else None,
        _published(analysis["published"]),
        page.facts(facts),
    ]
    return Page(
        kind="Study",
        name=analysis["study"],
        verdict=_verdict(headline, trained),
        lede=_lede(analysis, headline),
        key_figures=_key_figures(headline),
        sections=tuple(section for section in sections if section is not None),
        footer="Written by diversity_jax from analysis.json.",
    )


def _headline(relations: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The first relation that could be fitted: the first outcome of the first stage over the first predictor."""
    return next((one for one in relations if "slope" in one.get("log_line", {})), None)


def _lede(analysis: Mapping[str, Any], one: Mapping[str, Any] | None) -> str:
    what = "judged model" if analysis["relations"] else "scoring"
    lede = f"{counted(analysis['power']['recipes'], 'recipe')}, {counted(len(analysis['runs']), what)}."
    return (
        lede
        if one is None
        else (
            f"{lede} Below: {one['outcome']} of {one['stage']} models over the logarithm of {_title(one['predictor'])}."
        )
    )


def _title(figure: str) -> str:
    """A diversity figure as people write it: of the baseline metrics its title, of the scorecard its words."""
    name = figure.removeprefix("metrics.")
    return METRICS[name].title if name in METRICS else name.replace("_", " ")


def _verdict(one: Mapping[str, Any] | None, trained: bool) -> str:
    if not trained:
        return "What moves the score"
    if one is None:
        return "Too few runs are finished to say whether diversity paid"
    slope = one["log_line"]["slope"]
    better = (slope["value"] > 0) == _more_is_better(one["outcome"])
    if slope["low"] <= 0 <= slope["high"]:
        return f"These runs do not decide whether more diverse data changes {one['outcome']}"
    return f"More diverse data went with {'better' if better else 'worse'} {one['outcome']}"


def _more_is_better(outcome: str) -> bool:
    return outcome.startswith("accuracy")


def _key_figures(one: Mapping[str, Any] | None) -> tuple[KeyFigure, ...]:
    if one is None:
        return ()
    slope = one["log_line"]["slope"]
    return (
        KeyFigure(label="slope", value=significant(slope["value"]), note=f"95 %: {_range(slope)}"),
        KeyFigure(label="Spearman", value=_value(one["spearman"]), note=_note(one["spearman"])),
        KeyFigure(
            label="share explained",
            value=significant(one["log_line"]["r_squared"], 2),
            note=f"n = {slope['n']} recipes",
        ),
    )


def _range(one: Mapping[str, Any], digits: int = 2) -> str:
    if one.get("low") is None or one.get("high") is None:
        return "no interval"
    return f"{significant(one['low'], digits)} to {significant(one['high'], digits)}"


def _number(value: float | None, digits: int = 3) -> str:
    return _NONE if value is None else significant(value, digits)


def _percent(share: float | None) -> str:
    return _NONE if share is None else f"{100 * share:.1f} %"


def _chance(p: float | None) -> str:
    return _NONE if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _value(one: Mapping[str, Any]) -> str:
    return significant(one["value"], 2) if one.get("value") is not None else _NONE


def _note(one: Mapping[str, Any]) -> str:
    return f"95 %: {_range(one)}" if "reason" not in one else one["reason"]


def _cell(one: Mapping[str, Any]) -> str:
    return f"{_value(one)} ({_range(one)})" if "reason" not in one else _NONE


def _anchor(*words: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")


def _relations(analysis: Mapping[str, Any]) -> list[Section]:
    """A section for each stage: a table of all relations, and a figure of those of the first predictor."""
    found = []
    for stage in dict.fromkeys(one["stage"] for one in analysis["relations"]):
        mine = [one for one in analysis["relations"] if one["stage"] == stage]
        rows = [row for row in analysis["runs"] if row["stage"] == stage]
        factor = next(iter(analysis["factors"]), "")
        palette = Palette(list(dict.fromkeys(str(row["levels"].get(factor, "")) for row in rows)))
        first = mine[0]["predictor"]
        shown = [one for one in mine if one["predictor"] == first and "x" in one][:_MOST_PANELS]
        drawings, body = [], []
        if shown:
            drawings.append(
                render(
                    _anchor("against", stage),
                    f"{', '.join(one['outcome'] for one in shown)} of {stage} models over {_title(first)}",
                    lambda width, shown=shown, rows=rows, palette=palette, factor=factor, first=first: (
                        study.against_diversity(shown, rows, palette, factor, f"{_title(first)} (log scale)", width)
                    ),
                )
            )
            body.append(
                page.figure(
                    drawings[0],
                    "Large dots are recipes, their seeds averaged; pale ones single runs; the line is fitted.",
                )
            )
        listed = table(
            columns("outcome", "figure", "#n", "#slope", "#Spearman", "#partial"),
            [
                [one["outcome"], _title(one["predictor"]), len(one["recipes"]), _cell(one["log_line"].get("slope", one["log_line"])),
                 _cell(one["spearman"]), _cell(one["partial"])]
                for one in mine if "x" in one
            ],
        )  # fmt: skip
        controls = sorted({name for one in mine for name in one.get("controls", ())})
        note = f" Partial: Pearson's, controlling for {', '.join(controls)}." if controls else ""
        fitted = sum("slope" in one.get("log_line", {}) for one in mine)
        if fitted >= 10:
            note += f" Of {fitted} intervals at 95 %, {fitted / 20:.0f} or so leave zero out by chance alone."
        whole = joined(*body, element("p", _SLOPE_NOTE + note), listed, _reasons(mine))
        found.append(
            Section(
                anchor=_anchor(stage),
                title=f"Does diversity predict it? {stage.capitalize()}",
                body=whole,
                drawings=tuple(drawings),
            )
        )
    return found


def _reasons(parts: Sequence[Mapping[str, Any]]) -> Html | None:
    """What could not be computed, and why."""
    reasons = dict.fromkeys(
        part[key]["reason"] if key else part["reason"]
        for part in parts
        for key in ("", "log_line", "spearman")
        if "reason" in (part.get(key, {}) if key else part)
    )
    return element("p", "Left out: " + "; ".join(reasons) + ".", class_="absent") if reasons else None


def _effects(analysis: Mapping[str, Any]) -> list[Section]:
    drawings, body = [], []
    for one in [one for one in analysis["effects"] if "terms" in one][:4]:
        drawing = render(
            _anchor("factors", one["stage"], one["outcome"]),
            f"Mean {one['outcome']} at each level of each factor, {one['stage']}",
            lambda width, one=one: study.factor_levels(_ordered(one["levels"], analysis), width),
        )
        drawings.append(drawing)
        rows = [
            [term["name"], term["degrees"], _percent(term["share"]), _number(term["f"]), _chance(term["p"])]
            for term in one["terms"]
        ]
        body += [
            element("h3", f"{one['outcome'].capitalize()}, {one['stage']}"),
            page.figure(drawing, "Mean at each level, other factors averaged; bars hold 95 %."),
            table(columns("term", "#degrees", "#share of variance", "#F", "#p"), rows),
        ]
    if not drawings:
        reason = next((one["reason"] for one in analysis["effects"] if "reason" in one), "no run is finished")
        return [page.absent("factors", "What each factor does", f"Not computed: {reason}.")]
    return [Section(anchor="factors", title="What each factor does", body=joined(*body), drawings=tuple(drawings))]


def _ordered(levels: Mapping[str, Any], analysis: Mapping[str, Any]) -> dict[str, Any]:
    """By factor, in the order in which the study names them."""
    return {factor: levels[factor] for factor in analysis["factors"] if factor in levels}


def _amounts(analysis: Mapping[str, Any], factor: str) -> Section | None:
    """The curve of each outcome over a factor that is an amount, such as the paper's ratio."""
    shown = [one for one in analysis["effects"] if factor in one.get("saturation", {})][:_MOST_PANELS]
    if not shown:
        return None
    drawing = render(
        _anchor("over", factor),
        f"{', '.join(one['outcome'] for one in shown)} over {factor}",
        lambda width: study.over_amounts(shown, factor, width),
    )
    told = [element("p", f"{one['outcome'].capitalize()}, {one['stage']}: {_bend(one, factor)}") for one in shown]
    caption = (
        "Means at each amount, other factors averaged; bars hold 95 %. The curve is the one that levels off and "
        "fits best."
    )
    body = joined(page.figure(drawing, caption), *told)
    return Section(anchor=_anchor("over", factor), title=f"Over {factor}", body=body, drawings=(drawing,))


def _figures(analysis: Mapping[str, Any]) -> Section | None:
    """Each diversity figure at the levels of the factors that the corpora differ by."""
    drawings, body = [], []
    for one in analysis["figures"][:_MOST_PANELS]:
        drawing = render(
            _anchor("figure", one["figure"]),
            f"{_title(one['figure'])} of the corpora at each level of each factor",
            lambda width, one=one: study.factor_levels(_ordered(one["levels"], analysis), width),
        )
        drawings.append(drawing)
        body += [element("h3", _title(one["figure"]).capitalize()), page.figure(drawing, "")]
    if not drawings:
        return None
    intro = element("p", "Large dots are means over the corpora at a level, pale ones corpora.")
    return Section(
        anchor="figures", title="What the factors do to diversity", body=joined(intro, *body), drawings=tuple(drawings)
    )


def _densities(densities: Mapping[str, Any]) -> Section | None:
    """Densities of C and of S = n / C over groupings, a row a corpus, as in the paper's Fig. 10."""
    found = densities["corpora"]
    if not found:
        return None
    shown = found[:_MOST_DENSITIES]
    most = max(one["samples_per_grouping"] for one in shown)

    def column(kind: str, title: str, axis: str, bins: int) -> Ridge:
        return Ridge(
            title=title,
            axis=axis,
            distributions=[
                Distribution.binned(one["name"], one[kind]["values"], one[kind]["counts"], low=1, high=most, most=bins)
                for one in shown
            ],
        )

    columns_ = [
        column("clusters", "Clusters in a grouping, C", "number of clusters", 50),
        column("samples_per_cluster", "Their mean size, S = n / C", "samples", 24),
    ]
    explained = (
        "How finely the judge told each corpus's samples apart: the more diverse, the more clusters and the "
        "fewer samples in each."
    )
    if densities["factors"]:
        explained += f" Each row: {', '.join(densities['factors'])}."
    if len(shown) < len(found):
        explained += f" The first {len(shown)} of {len(found)} corpora."
    return diversity.clusters(columns_, Palette([one["name"] for one in shown]), explained)


def _failures(failures: Sequence[Mapping[str, Any]]) -> Section | None:
    if not failures:
        return None
    body = table(
        columns("step", "reason", "log"),
        [[element("code", one["step"]), one["reason"], element("code", one["log"])] for one in failures],
    )
    intro = element("p", "What needs them was not run. The same command tries them again.")
    return Section(anchor="failures", title="Steps that failed", body=joined(intro, body))


def _bend(effects: Mapping[str, Any], factor: str) -> str:
    bend, means = effects["saturation"][factor], effects["levels"][factor]
    if "reason" in bend:
        return f"{bend['reason']}."
    lowest, highest = (pick(means, key=lambda mean: mean["value"])["name"] for pick in (min, max))
    ends = f"Lowest at {lowest}, highest at {highest}; "
    if not bend["better_than_a_line"]:
        return f"{ends}a curve that levels off explains the runs no better than a straight line."
    return f"{ends}levels off at {significant(bend['top']['value'])} (95 %: {_range(bend['top'], 3)})."


def _runs(analysis: Mapping[str, Any]) -> Section:
    rows, factors = analysis["runs"], analysis["factors"]
    if not rows:
        return page.absent("runs", "Runs", "No run is finished.")
    measured = list(dict.fromkeys(one["predictor"] for one in analysis["relations"]))
    measured = (measured or list(dict.fromkeys(name for row in rows for name in row["diversity"])))[:1]
    told = dict.fromkeys(name for row in rows for name in row["outcomes"])
    outcomes = [name for name in told if name not in measured and not name.startswith("loss on ")][:4]
    stages = len({row["stage"] for row in rows}) > 1
    listed = table(
        columns(_JOINT.join(factors) or "recipe", "#seed", *["stage"] * stages, *(f"#{_title(name)}" for name in (*measured, *outcomes))),
        [
            [_JOINT.join(str(row["levels"][factor]) for factor in factors) or "base", row["seed"], *[row["stage"]] * stages,
             *(significant(row["diversity"][name]) if name in row["diversity"] else _NONE for name in measured),
             *(significant(row["outcomes"][name], 4) if name in row["outcomes"] else _NONE for name in outcomes)]
            for row in rows
        ],
    )  # fmt: skip
    return Section(anchor="runs", title="Runs", body=listed)


def _power(power: Mapping[str, Any]) -> Section:
    rows = [
        [f"{float(true):g}", f"{100 * power['chance'][true]:.0f} %" if true in power["chance"] else _NONE, needed]
        for true, needed in power["needed"].items()
    ]
    intro = element(
        "p",
        (
            f"Chance that {power['recipes']} recipes tell a true correlation from zero, and how many do so in 80 % of "
            "studies."
        ),
    )
    return Section(
        anchor="power",
        title="How much these runs can see",
        body=joined(
            intro, table(columns("true correlation", f"#chance with {power['recipes']}", "#recipes for 80 %"), rows)
        ),
    )


def _published(found: Sequence[Mapping[str, Any]]) -> Section | None:
    if not found:
        return None
    rows = [
        [
            f"{one['factor']} {one['level']}",
            one["figure"],
            significant(one["published"], 4),
            _number(one["ours"], 4),
            one["runs"],
        ]
        for one in found
    ]
    body = table(columns("level", "figure", "#published", "#here", "#runs"), rows)
    note = element("p", "Published: as reported in arXiv 2410.15226, with its data, models and judge.")
    return Section(anchor="published", title="Beside the paper's figures", body=joined(note, body))


def draw_again(words: Sequence[str]) -> None:
    """The page of each folder named, from what stands there; prints its path."""
    for folder in words:
        if is_remote(folder):
            raise InputError(f"{folder}: is in a bucket; copy analysis.json and run.json to a folder, and name that")
        print(draw(Path(folder)))

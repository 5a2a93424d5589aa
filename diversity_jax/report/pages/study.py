"""The page of a study, written from `analysis.json` and `run.json` alone, so that it can be written again later."""

from collections.abc import Mapping, Sequence
from pathlib import Path
import re
from typing import Any

from diversity_jax.core.formats import counted
from diversity_jax.core.run_info import Fact, RunInfo
from diversity_jax.metrics.registry import METRICS
from diversity_jax.report import page
from diversity_jax.report.figures import outcomes
from diversity_jax.report.figures.diversity import Ridge
from diversity_jax.report.html import Html, Palette, macro
from diversity_jax.report.page import Page, Section
from diversity_jax.report.pages import score
from diversity_jax.report.plotting import Plot, render

_MOST_DENSITIES = 8
_MOST_PANELS = 6
_MOST_EFFECTS = 4
_FITS = ("log_line", "spearman")
Json = Mapping[str, Any]


def write(folder: Path, analysis: Json) -> Path:
    """Writes `report.html` and `figures/` from an analysis and the folder's `run.json`.

    Returns:
      The page's path.
    """
    return page.write(_compose(analysis, RunInfo.load(folder / "run.json").facts()), folder)


def _compose(analysis: Json, facts: Sequence[Fact]) -> Page:
    headline, trained = _headline(analysis["relations"]), bool(analysis["relations"])
    failures, power, published = (analysis[name] for name in ("failures", "power", "published"))
    return Page(
        kind="Study",
        name=analysis["study"],
        verdict=_verdict(headline, trained),
        lede=_lede(analysis, headline),
        key_figures=_key_figures(headline, power),
        sections=(
            *_relations(analysis),
            _effects(analysis),
            *(_amounts(analysis, factor) for factor in analysis["factors"]),
            _figures(analysis) if trained else None,
            _verdicts(analysis.get("verdicts", ())),
            _densities(analysis["densities"]),
            page.section("study", "failures", "Steps that failed", steps=failures) if failures else None,
            _runs(analysis),
            page.section("study", "power", "How much these runs can see", power=power) if trained else None,
            page.section("study", "published", "Beside the paper's figures", levels=published) if published else None,
            page.facts(facts),
        ),
        footer="Written by diversity_jax from analysis.json.",
    )


def _headline(relations: Sequence[Json]) -> Json | None:
    """The relation that the page leads with: the first that rests on several recipes."""
    return next((relation for relation in relations if len(relation.get("x", ())) > 1), None)


def _lede(analysis: Json, headline: Json | None) -> str:
    judged = counted(len(analysis["runs"]), "judged model" if analysis["relations"] else "scoring")
    lede = f"{counted(analysis['power']['recipes'], 'recipe')}, {judged}."
    if headline is None:
        return lede
    predictor = _title(headline["predictor"])
    return f"{lede} Below: {headline['outcome']} of {headline['stage']} models over the logarithm of {predictor}."


def _title(figure: str) -> str:
    """A diversity figure's title: of a metric its own, of a scorecard's field its name in words."""
    if figure.startswith("second_score."):
        return f"{_title(figure.removeprefix('second_score.'))} by the second judge"
    name = figure.removeprefix("metrics.")
    return METRICS[name].title if name in METRICS else name.replace("_", " ")


def _verdict(headline: Json | None, trained: bool) -> str:
    if not trained:
        return "What moves the score"
    if headline is None:
        return "Too few runs are finished to say whether diversity paid"
    slope, outcome = headline["log_line"].get("slope", {}), headline["outcome"]
    low, high = slope.get("low"), slope.get("high")
    if low is None or high is None or low <= 0 <= high:
        return f"These runs do not decide whether more diverse data changes {outcome}"
    better = (slope["value"] > 0) == outcome.startswith("accuracy")
    return f"More diverse data went with {'better' if better else 'worse'} {outcome}"


def _key_figures(headline: Json | None, power: Json) -> Html | None:
    if headline is None:
        return None
    line = headline["log_line"]
    chance = power["chance"].get("0.5")
    return macro("study", "key_figures", line.get("slope", line), headline["spearman"], len(headline["x"]), chance)


def _anchor(*words: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")


def _relations(analysis: Json) -> list[Section]:
    """A section for each stage: a table of all relations, and a plot of those to the first predictor."""
    stages = dict.fromkeys(relation["stage"] for relation in analysis["relations"])
    return [_relations_of_stage(analysis, stage) for stage in stages]


def _relations_of_stage(analysis: Json, stage: str) -> Section:
    relations = [relation for relation in analysis["relations"] if relation["stage"] == stage]
    fitted = [relation for relation in relations if "x" in relation]
    parts = [part for relation in relations for part in (relation, *(relation.get(key, {}) for key in _FITS))]
    parts += [relation["partial"] for relation in relations if relation.get("controls")]
    return page.section(
        "study",
        _anchor(stage),
        f"Does diversity predict it? {stage.capitalize()}",
        name="relations",
        fitted=fitted,
        controls=sorted({name for relation in relations for name in relation.get("controls", ())}),
        slopes=sum("slope" in relation.get("log_line", {}) for relation in relations),
        reasons=list(
            dict.fromkeys(
                [part["reason"] for part in parts if "reason" in part]
                + [reason for relation in relations for reason in relation.get("missing", ())]
            )
        ),
        plot=_relations_plot(analysis, stage, relations[0]["predictor"], fitted),
        title_of=_title,
    )


def _relations_plot(analysis: Json, stage: str, predictor: str, fitted: Sequence[Json]) -> Plot | None:
    """The outcomes over one predictor; None where no run has it."""
    shown = [relation for relation in fitted if relation["predictor"] == predictor][:_MOST_PANELS]
    if not shown:
        return None
    rows = [row for row in analysis["runs"] if row["stage"] == stage]
    factor, title = next(iter(analysis["factors"]), ""), _title(predictor)
    palette = Palette([str(row["levels"].get(factor, "")) for row in rows])
    return render(
        _anchor("against", stage),
        f"{', '.join(relation['outcome'] for relation in shown)} of {stage} models over {title}",
        lambda width: outcomes.against_diversity(shown, rows, palette, factor, f"{title} (log scale)", width),
    )


def _effects(analysis: Json) -> Section:
    title = "What each factor does"
    effects = [effect for effect in analysis["effects"] if "terms" in effect][:_MOST_EFFECTS]
    if not effects:
        reason = next((part["reason"] for part in analysis["effects"] if "reason" in part), "no run is finished")
        return page.absent("factors", title, f"Not computed: {reason}.")
    plots = [
        effect["levels"]
        and _levels_plot(
            _anchor("factors", effect["stage"], effect["outcome"]),
            f"Mean {effect['outcome']} at each level of each factor, {effect['stage']}",
            effect["levels"],
            analysis,
        )
        for effect in effects
    ]
    return page.section("study", "factors", title, effects=effects, plots=plots)


def _levels_plot(name: str, alt: str, levels: Json, analysis: Json) -> Plot:
    """A figure's mean at each level of each factor; factors in the study's order."""
    ordered = {factor: levels[factor] for factor in analysis["factors"] if factor in levels}
    return render(name, alt, lambda width: outcomes.factor_levels(ordered, width))


def _amounts(analysis: Json, factor: str) -> Section | None:
    """Each outcome over a factor whose levels are numbers; None for other factors."""
    effects = [effect for effect in analysis["effects"] if factor in effect.get("saturation", {})]
    effects = [effect for effect in effects if factor in effect["levels"]][:_MOST_PANELS]
    if not effects:
        return None
    plot = render(
        _anchor("over", factor),
        f"{', '.join(effect['outcome'] for effect in effects)} over {factor}",
        lambda width: outcomes.over_amounts(effects, factor, width),
    )
    return page.section(
        "study",
        _anchor("over", factor),
        f"Over {factor}",
        name="amounts",
        effects=effects,
        factor=factor,
        plot=plot,
        lowest_and_highest=_lowest_and_highest,
    )


def _lowest_and_highest(means: Sequence[Json]) -> list[str]:
    """Names of the levels with the lowest and the highest mean."""
    return [pick(means, key=lambda mean: mean["value"])["name"] for pick in (min, max)]


def _figures(analysis: Json) -> Section | None:
    """Each diversity figure at the levels of the factors by which the corpora differ."""
    figures = analysis["figures"][:_MOST_PANELS]
    if not figures:
        return None
    titles = [_title(figure["figure"]) for figure in figures]
    plots = [
        _levels_plot(
            _anchor("figure", figure["figure"]),
            f"{title} of the corpora at each level of each factor",
            figure["levels"],
            analysis,
        )
        for figure, title in zip(figures, titles, strict=True)
    ]
    title = "What the factors do to diversity"
    return page.section("study", "figures", title, titles=titles, plots=plots)


def _verdicts(verdicts: Sequence[Json]) -> Section | None:
    """The verdict on every scoring's judge, with reasons; None where all are fit."""
    if all(verdict["verdict"] == "fit" for verdict in verdicts):
        return None
    return page.section("study", "verdicts", "Whether the judges can be believed", verdicts=verdicts)


def _densities(densities: Json) -> Section | None:
    """Distributions of C and of S = n / C over groupings, a row a corpus, as in Fig. 10 of arXiv 2410.15226."""
    corpora = densities["corpora"]
    if not corpora:
        return None
    shown = corpora[:_MOST_DENSITIES]
    largest = max(corpus["samples_per_grouping"] for corpus in shown)

    def ridge(kind: str, title: str, axis: str, bins: int) -> Ridge:
        histograms = {corpus["name"]: corpus[kind] for corpus in shown}
        return Ridge.of_histograms(title, axis, histograms, high=largest, bins=bins)

    columns = [
        ridge("clusters", "Clusters in a grouping, C", "number of clusters", 50),
        ridge("samples_per_cluster", "Their mean size, S = n / C", "samples", 24),
    ]
    intro = (
        "How finely the judge told each corpus's samples apart: the more diverse, the more clusters and the fewer "
        "samples in each."
    )
    if densities["factors"]:
        intro += f" Each row: {', '.join(densities['factors'])}."
    if len(shown) < len(corpora):
        intro += f" The first {len(shown)} of {len(corpora)} corpora."
    return score.clusters_section(columns, Palette([corpus["name"] for corpus in shown]), intro)


def _runs(analysis: Json) -> Section:
    rows, factors = analysis["runs"], analysis["factors"]
    if not rows:
        return page.absent("runs", "Runs", "No run is finished.")
    predictors = [relation["predictor"] for relation in analysis["relations"]]
    predictors = predictors[:1] or list(dict.fromkeys(name for row in rows for name in row["diversity"]))[:1]
    names = dict.fromkeys(name for row in rows for name in row["outcomes"])
    shown = [name for name in names if name not in predictors and not name.startswith("loss on ")][:4]
    several = len({row["stage"] for row in rows}) > 1
    return page.section(
        "study",
        "runs",
        "Runs",
        rows=rows,
        factors=list(factors),
        predictors=predictors,
        outcomes=shown,
        stages=["stage"] if several else [],
        title_of=_title,
    )

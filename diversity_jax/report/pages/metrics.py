"""The page of baseline metrics: values, differences between corpora, dependence on size, agreement, and cost."""

from collections.abc import Mapping, Sequence
import itertools
import os
from pathlib import Path

from diversity_jax.core import formats
from diversity_jax.core.formats import counted, significant
from diversity_jax.core.run_info import Fact
from diversity_jax.metrics import METRICS, Figure, MetricsReport, difference
from diversity_jax.metrics.report import FEWEST_CORPORA, Difference, agreements, columns_of
from diversity_jax.report import page
from diversity_jax.report.figures import diversity
from diversity_jax.report.html import Palette, macro
from diversity_jax.report.page import Page, Section
from diversity_jax.report.plotting import render

_MOST_COMPARED = 6  # pairs of corpora that get a section
_DASH = "\u2013"
_JUDGED = "Effective clusters (judge)"
_KEY_METRICS = ("ngram_diversity", "self_repetition", "compression_ratio_gzip", "mtld", "vendi_1", "perplexity")
_SIZES = ("draws", "draw_documents", "control_words", "control_documents")
_FOOTER = (
    "Written by diversity_jax. Intervals are 95 %, over draws without replacement, widened as the corpus is itself a "
    "sample."
)


def write(
    output_dir: str | os.PathLike, measured: Mapping[str, MetricsReport], pairs: Sequence[tuple[str, str]] | None = None
) -> Path:
    """Writes the page of a scoring by metrics alone, without a judge.

    Args:
      output_dir: folder of `report.html` and `figures/`; a `run.json` there adds the command line and versions.
      pairs: of corpora to compare; by default all pairs. The first six get a section.

    Returns:
      The path of `report.html`.
    """
    facts = page.run_facts(output_dir)
    facts += [
        Fact(name=f"Scorecard {formats.shortened(name, 40)}", value=scorecard.content_hash, code=True)
        for name, scorecard in measured.items()
    ]
    first = next(iter(measured.values()))
    parameters = ", ".join(f"{name}={value}" for name, value in sorted(first.parameters.items()))
    facts.append(Fact(name="Parameters", value=parameters, code=True))
    few, key_metrics = len(measured) <= 3, {name: METRICS[name] for name in _KEY_METRICS}
    composed = Page(
        kind="Baseline metrics of",
        name=formats.listed(list(measured)) if few else counted(len(measured), "corpus", "corpora"),
        verdict=_verdict(measured, pairs),
        lede=_sizes_sentence(measured),
        key_figures=macro("metrics", "key_figures", first, key_metrics) if len(measured) == 1 else None,
        sections=(
            *all_sections(measured, Palette(list(measured)), {}, pairs),
            page.facts(facts, intro="What one needs to measure again and get the same."),
        ),
        footer=_FOOTER,
    )
    return page.write(composed, output_dir)


def all_sections(
    measured: Mapping[str, MetricsReport],
    palette: Palette,
    judged: Mapping[str, float],
    pairs: Sequence[tuple[str, str]] | None = None,
) -> list[Section | None]:
    """All sections, None for those without data; empty where nothing was measured.

    Args:
      judged: effective clusters by corpus, whose ranks are compared with those of the metrics.
    """
    if not measured:
        return []
    chosen = list(pairs if pairs is not None else itertools.combinations(measured, 2))[:_MOST_COMPARED]
    return [
        _warnings(measured),
        _values(measured),
        *(_apart(measured, pair, number) for number, pair in enumerate(chosen, 1)),
        _dependence(measured),
        _agreement(measured, judged),
        _compatible(measured, palette),
        _cost(measured),
    ]


def _verdict(measured: Mapping[str, MetricsReport], pairs: Sequence[tuple[str, str]] | None) -> str:
    chosen = list(pairs if pairs is not None else itertools.combinations(measured, 2))
    if len(chosen) != 1:
        metrics = counted(len(next(iter(measured.values())).metrics), "metric")
        return f"{metrics} of {counted(len(measured), 'corpus', 'corpora')}."
    first, second = chosen[0]
    decisions = [_decided(measured[first].metrics, measured[second].metrics, name) for name in METRICS]
    for_first, for_second = decisions.count(True), decisions.count(False)
    undecided = sum(bool(METRICS[name].sign) for name in measured[first].metrics) - for_first - for_second
    others = f"{undecided} {'does' if undecided == 1 else 'do'} not decide"
    if for_first and for_second:
        return f"{for_first} metrics call {first} more diverse, {for_second} call {second}; {others}."
    winner, loser, votes = (first, second, for_first) if for_first else (second, first, for_second)
    if not votes:
        return f"No metric tells {first} from {second}."
    return f"{votes} metrics call {winner} more diverse than {loser}, none the other way; {others}."


def _sizes_sentence(measured: Mapping[str, MetricsReport]) -> str:
    """Says how many draws of how many documents the figures are means of."""
    used = next(iter(measured.values())).parameters
    if any(scorecard.parameters[name] != used[name] for scorecard in measured.values() for name in _SIZES):
        return "Each figure is a mean over draws of equal size; the size is given with each comparison."
    sentence = f"Each figure is the mean of {counted(used['draws'], 'draw')} of "
    sentence += counted(used["draw_documents"], "document")
    if used["control_words"]:
        documents = counted(used["control_documents"], "document")
        sentence += f"; at equal length, of {documents} cut to their first {counted(used['control_words'], 'word')}"
    return sentence + "."


def _warnings(measured: Mapping[str, MetricsReport]) -> Section | None:
    if not any(scorecard.warnings for scorecard in measured.values()):
        return None
    return page.section("metrics", "metric-warnings", "Of the metrics", measured=measured)


def _values(measured: Mapping[str, MetricsReport]) -> Section:
    """Every figure of every corpus."""
    return page.section(
        "metrics",
        "metrics",
        "Baseline metrics",
        measured=measured,
        sizes=_sizes_sentence(measured),
        controlled=any(scorecard.controlled for scorecard in measured.values()),
        embedder=next(iter(measured.values())).parameters.get("embedder"),
        registry={
            name: metric
            for name, metric in METRICS.items()
            if any(name in scorecard.metrics for scorecard in measured.values())
        },
    )


def _difference(first: Mapping[str, Figure], second: Mapping[str, Figure], name: str) -> Difference | None:
    """The difference of two corpora in a metric; None where one lacks it or it has no interval."""
    return difference(first[name], second[name], METRICS[name].sign) if name in first and name in second else None


def _decided(first: Mapping[str, Figure], second: Mapping[str, Figure], name: str) -> bool | None:
    """Whether a metric calls the first corpus more diverse; None where it does not decide."""
    gap = _difference(first, second, name)
    return gap.first_is_more_diverse if gap else None


def _reach(first: Mapping[str, Figure], second: Mapping[str, Figure], name: str) -> float | None:
    """The difference over its interval's half-width, above 0 where the first is more diverse; beyond +-1 is decided."""
    gap = _difference(first, second, name)
    if gap is None or gap.high <= gap.low:
        return None
    return METRICS[name].sign * gap.difference / ((gap.high - gap.low) / 2)


def separations(first: MetricsReport, second: MetricsReport) -> list[diversity.Separation]:
    """How far two corpora are apart in each metric whose sign is not 0."""
    return [
        diversity.Separation(
            title=METRICS[name].title,
            full_length=_reach(first.metrics, second.metrics, name),
            equal_length=_reach(first.controlled, second.controlled, name),
        )
        for name in _signed(first)
    ]


def _signed(scorecard: MetricsReport) -> list[str]:
    """The measured metrics of which more, or less, means more diverse."""
    measured = scorecard.metrics.keys() | scorecard.controlled.keys()
    return [name for name, metric in METRICS.items() if metric.sign and name in measured]


def _ratio_and_verdict(
    first: Mapping[str, Figure], second: Mapping[str, Figure], name: str, pair: tuple[str, str]
) -> tuple[str, str]:
    """The first corpus's figure over the second's, and which of the two the metric calls more diverse."""
    if name not in first or name not in second:
        return _DASH, _DASH
    ratio = significant(first[name].value / second[name].value) if second[name].value else _DASH
    decided = _decided(first, second, name)
    return ratio, "not decided" if decided is None else pair[0] if decided else pair[1]


def _apart(measured: Mapping[str, MetricsReport], pair: tuple[str, str], number: int) -> Section:
    """Which metrics tell two corpora apart."""
    first, second = (measured[name] for name in pair)
    rows = [
        (
            METRICS[name].title,
            *_ratio_and_verdict(first.metrics, second.metrics, name, pair),
            *_ratio_and_verdict(first.controlled, second.controlled, name, pair),
        )
        for name in _signed(first)
    ]
    chosen = [row for row in separations(first, second) if row.full_length is not None or row.equal_length is not None]
    plot = None
    if chosen:
        alt = "; ".join(f"{row.title}: {significant(row.full_length)}" for row in chosen if row.full_length is not None)
        plot = render(f"apart-{number}", alt, lambda width: diversity.separations(chosen, *pair, width))
    title = " against ".join(formats.shortened(name, 18) for name in pair)
    sizes = _sizes_sentence({name: measured[name] for name in pair})
    return page.section("metrics", f"apart-{number}", title, name="apart", rows=rows, sizes=sizes, plot=plot)


def _dependence(measured: Mapping[str, MetricsReport]) -> Section | None:
    """Slopes of the logarithm of each metric over those of documents and of words a document, over all corpora."""
    if not any(scorecard.dependence for scorecard in measured.values()):
        return None
    rows = []
    for name, metric in METRICS.items():
        fits = [scorecard.dependence[name] for scorecard in measured.values() if name in scorecard.dependence]
        cells = [_range([fit[axis]["slope"] for fit in fits if axis in fit]) for axis in ("documents", "words")]
        if any(cell != _DASH for cell in cells):
            rows.append((metric.title, *cells))
    return page.section("metrics", "dependence", "What size and length do", rows=rows)


def _range(slopes: Sequence[float | None]) -> str:
    values = [slope for slope in slopes if slope is not None]
    if not values:
        return _DASH
    low, high = (f"{round(value, 2) + 0.0:+.2f}".replace("-", "\u2212") for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def _agreement(measured: Mapping[str, MetricsReport], judged: Mapping[str, float]) -> Section | None:
    """Rank correlations between metrics over the corpora; None where these are too few."""
    if len(measured) < FEWEST_CORPORA:
        return None
    values = columns_of(measured, judged)
    if len(values) < 2:
        return None
    titles = {name: METRICS[name].title if name in METRICS else _JUDGED for name in values}
    pairs = agreements(values)
    taus = {(titles[pair.first], titles[pair.second]): pair.kendall.value for pair in pairs if pair.kendall}
    alt = "; ".join(f"{first} and {second}: {value:.2f}" for (first, second), value in taus.items())
    names = list(titles.values())
    return page.section(
        "metrics",
        "agreement",
        "Agreement between metrics",
        corpora=len(measured),
        pairs=pairs,
        titles=titles,
        plot=render("agreement", alt, lambda width: diversity.correlations(names, taus, width)),
    )


def _compatible(measured: Mapping[str, MetricsReport], palette: Palette) -> Section | None:
    names = list(dict.fromkeys(name for scorecard in measured.values() for name in scorecard.compatible))
    if not names:
        return None
    title = "As the diversity package counts"
    return page.section("metrics", "compatible", title, measured=measured, names=names, palette=palette)


def _cost(measured: Mapping[str, MetricsReport]) -> Section | None:
    """Seconds, memory and dollars of each stage at its largest size, and at one of at most a quarter of that."""
    costs = [cost for scorecard in measured.values() for cost in scorecard.cost]
    if not costs:
        return None
    stages = []
    for stage in dict.fromkeys(cost["stage"] for cost in costs):
        of_stage = [cost for cost in costs if cost["stage"] == stage]
        largest = max(of_stage, key=lambda cost: cost["documents"])
        smaller = [cost for cost in of_stage if 4 * cost["documents"] <= largest["documents"]]
        stages.append((largest, max(smaller, key=lambda cost: cost["documents"], default=None)))
    return page.section("metrics", "metric-cost", "What the metrics cost", stages=stages)

"""The baseline metrics on a page: every corpus's figures, what tells corpora apart, what moves them, agreement, cost."""

from collections.abc import Mapping, Sequence
import itertools
import os
from pathlib import Path

from diversity_jax.core import formats
from diversity_jax.core.formats import count, counted, significant
from diversity_jax.core.intervals import Estimate
from diversity_jax.core.run_info import Fact, RunInfo
from diversity_jax.metrics import METRICS, Figure, MetricsCard, difference
from diversity_jax.metrics.sensitivity import FEWEST_CORPORA, agreements, columns_of
from diversity_jax.report import page
from diversity_jax.report.figures import diversity
from diversity_jax.report.html import Html, details, html, macro, named, table
from diversity_jax.report.page import KeyFigure, Page, Section
from diversity_jax.report.plotting import render
from diversity_jax.report.style import Palette

_MOST_COMPARED = 6  # pairs of corpora with a table of their own
_DASH = "\u2013"
_JUDGED = "Effective clusters (judge)"
_SIZES = ("draws", "draw_documents", "control_words", "control_documents")
_DIRECTIONS = {1: "higher", -1: "lower", 0: _DASH}
_FOOTER = (
    "Written by diversity_jax. Intervals are 95 %, over draws without replacement, widened as the corpus is itself a "
    "sample."
)


def write(
    output_dir: str | os.PathLike,
    measured: Mapping[str, MetricsCard],
    pairs: Sequence[tuple[str, str]] | None = None,
) -> Path:
    """Writes the page of a run without a judge.

    Args:
      output_dir: folder of `report.html` and `figures/`; a `run.json` there adds the command line and versions.
      pairs: of corpora to compare; all of them, the first few, where not given.

    Returns:
      The path of `report.html`.
    """
    path = Path(output_dir) / "run.json"
    facts = RunInfo.load(path).facts() if path.exists() else []
    facts += [
        Fact(name=f"Scorecard {formats.shortened(name, 40)}", value=card.content_hash, code=True)
        for name, card in measured.items()
    ]
    first = next(iter(measured.values()))
    parameters = ", ".join(f"{name}={value}" for name, value in sorted(first.parameters.items()))
    facts.append(Fact(name="Parameters", value=parameters, code=True))
    few = len(measured) <= 3
    composed = Page(
        kind="Baseline metrics of",
        name=formats.listed(list(measured)) if few else counted(len(measured), "corpus", "corpora"),
        verdict=_verdict(measured, pairs),
        lede=_sizes_sentence(measured),
        key_figures=_key_figures(first) if len(measured) == 1 else (),
        sections=(
            *all_sections(measured, Palette(list(measured)), {}, pairs),
            page.facts(facts, intro="What one needs to measure again and get the same."),
        ),
        footer=_FOOTER,
    )
    return page.write(composed, output_dir)


def all_sections(
    measured: Mapping[str, MetricsCard],
    palette: Palette,
    judged: Mapping[str, float],
    pairs: Sequence[tuple[str, str]] | None = None,
) -> list[Section]:
    """Every section that the figures allow; none where nothing was measured.

    Args:
      judged: effective clusters by corpus, to be set beside the metrics' ranks.
    """
    if not measured:
        return []
    chosen = list(pairs if pairs is not None else itertools.combinations(measured, 2))[:_MOST_COMPARED]
    sections = [_warnings(measured), _values(measured, palette)]
    sections += [_apart(measured, pair, number) for number, pair in enumerate(chosen, 1)]
    sections += [_dependence(measured), _agreement(measured, judged), _compatible(measured, palette), _cost(measured)]
    return [section for section in sections if section is not None]


def _verdict(measured: Mapping[str, MetricsCard], pairs: Sequence[tuple[str, str]] | None) -> str:
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


def _sizes_sentence(measured: Mapping[str, MetricsCard]) -> str:
    """What the figures are means of."""
    used = next(iter(measured.values())).parameters
    if any(card.parameters[name] != used[name] for card in measured.values() for name in _SIZES):
        return "Each figure is a mean over draws of equal size; the size is given with each comparison."
    sentence = f"Each figure is the mean of {counted(used['draws'], 'draw')} of "
    sentence += counted(used["draw_documents"], "document")
    if used["control_words"]:
        documents = f"{count(used['control_documents'])} documents"
        sentence += f"; at equal length, of {documents} cut to their first {used['control_words']} words"
    return sentence + "."


def _key_figures(card: MetricsCard) -> tuple[KeyFigure, ...]:
    names = ("ngram_diversity", "self_repetition", "compression_ratio_gzip", "mtld", "vendi_1", "perplexity")
    figures = []
    for name in names:
        if (figure := card.metrics.get(name)) is None:
            continue
        note = "one draw, no interval"
        if figure.low is not None and figure.high is not None:
            note = f"95 %: {significant(figure.low)} to {significant(figure.high)}"
        figures.append(KeyFigure(label=METRICS[name].title, value=significant(figure.value), note=note))
    return tuple(figures)


def _with_interval(figure: Figure | None) -> str:
    """A figure with its interval, where it has one."""
    if figure is None:
        return _DASH
    return formats.estimate(Estimate(value=figure.value, low=figure.low, high=figure.high))


def _warnings(measured: Mapping[str, MetricsCard]) -> Section | None:
    lines = [f"{name}: {warning}" for name, card in measured.items() for warning in card.warnings]
    return Section(anchor="metric-warnings", title="Of the metrics", body=[macro("list", lines)]) if lines else None


def _values(measured: Mapping[str, MetricsCard], palette: Palette) -> Section:
    """Every figure of every corpus: at whole length, and at equal length beneath it."""
    controlled = any(card.controlled for card in measured.values())
    rows = []
    for name, metric in METRICS.items():
        if any(name in card.metrics for card in measured.values()):
            cells = [_cell(card, name, controlled=controlled) for card in measured.values()]
            rows.append((metric.title, *cells, _DIRECTIONS[metric.sign]))
    titles = ("Metric", *(f"#{formats.shortened(name, 24)}" for name in measured), "More diverse is")
    intro = _sizes_sentence(measured) + (" The second line of a cell is at equal length." if controlled else "")
    embedder = next(iter(measured.values())).parameters.get("embedder")
    intro += f" Embedding metrics: {embedder}." if embedder else ""
    return Section(anchor="metrics", title="Baseline metrics", body=[intro, table(titles, rows)])


def _cell(card: MetricsCard, name: str, *, controlled: bool) -> Html | str:
    first = _with_interval(card.metrics.get(name))
    second = _with_interval(card.controlled.get(name))
    return html('{}<br><span class="muted">{}</span>', first, second) if controlled else first


def _decided(first: Mapping[str, Figure], second: Mapping[str, Figure], name: str) -> bool | None:
    """Whether a metric calls the first corpus more diverse; None where it does not decide."""
    gap = difference(first[name], second[name], METRICS[name].sign) if name in first and name in second else None
    return gap.first_is_more_diverse if gap else None


def _reach(first: Mapping[str, Figure], second: Mapping[str, Figure], name: str) -> float | None:
    """The signed difference in units of its half-width: beyond +-1 it is decided."""
    gap = difference(first[name], second[name], METRICS[name].sign) if name in first and name in second else None
    if gap is None or gap.high <= gap.low:
        return None
    return METRICS[name].sign * gap.difference / ((gap.high - gap.low) / 2)


def separations(first: MetricsCard, second: MetricsCard) -> list[diversity.Separation]:
    """For every metric that says something of diversity, how far two corpora are apart."""
    return [
        diversity.Separation(
            title=metric.title,
            full_length=_reach(first.metrics, second.metrics, name),
            equal_length=_reach(first.controlled, second.controlled, name),
        )
        for name, metric in METRICS.items()
        if metric.sign and (name in first.metrics or name in first.controlled)
    ]


def _ratio_and_verdict(
    first: Mapping[str, Figure], second: Mapping[str, Figure], name: str, pair: tuple[str, str]
) -> tuple[str, str]:
    """The first corpus's figure over the second's, and which of the two the metric calls more diverse."""
    if name not in first or name not in second:
        return _DASH, _DASH
    ratio = significant(first[name].value / second[name].value) if second[name].value else _DASH
    decided = _decided(first, second, name)
    return ratio, "not decided" if decided is None else pair[0] if decided else pair[1]


def _apart(measured: Mapping[str, MetricsCard], pair: tuple[str, str], number: int) -> Section:
    """Which metrics tell two corpora apart."""
    first, second = (measured[name] for name in pair)
    rows = [
        (
            metric.title,
            *_ratio_and_verdict(first.metrics, second.metrics, name, pair),
            *_ratio_and_verdict(first.controlled, second.controlled, name, pair),
        )
        for name, metric in METRICS.items()
        if metric.sign and (name in first.metrics or name in first.controlled)
    ]
    marks = [row for row in separations(first, second) if row.full_length is not None or row.equal_length is not None]
    drawing = None
    if marks:
        alt = "; ".join(f"{row.title}: {significant(row.full_length)}" for row in marks if row.full_length is not None)
        caption = (
            "Filled: whole documents. Hollow: cut to equal length. Inside the grey band the 95 % interval of the "
            "difference holds 0."
        )
        drawing = render(f"apart-{number}", alt, lambda width: diversity.separations(marks, *pair, width), caption)
    titles = ("Metric", "#Ratio", "More diverse", "#Ratio, equal length", "More diverse, equal length")
    intro = _sizes_sentence({name: measured[name] for name in pair})
    title = " against ".join(formats.shortened(name, 18) for name in pair)
    return Section(anchor=f"apart-{number}", title=title, body=[intro, drawing, table(titles, rows)])


def _dependence(measured: Mapping[str, MetricsCard]) -> Section | None:
    """Slopes of log value over log size and log length."""
    if not any(card.dependence for card in measured.values()):
        return None
    rows = []
    for name, metric in METRICS.items():
        entries = [card.dependence[name] for card in measured.values() if name in card.dependence]
        cells = [
            _range([entry[axis]["slope"] for entry in entries if axis in entry]) for axis in ("documents", "words")
        ]
        if any(cell != _DASH for cell in cells):
            rows.append((metric.title, *cells))
    intro = (
        "How much a figure moves when a corpus holds more documents, or longer ones: the slope of its logarithm over "
        "the logarithm of the size, lowest to highest over corpora. 0 does not depend; 1 grows in proportion; "
        "\u22120.3 loses 19 % with every doubling. What moves must be compared at equal size and equal length."
    )
    titles = ("Metric", "#Slope over documents", "#Slope over words of a document")
    return Section(anchor="dependence", title="What size and length do", body=[intro, table(titles, rows)])


def _range(slopes: Sequence[float | None]) -> str:
    known = [slope for slope in slopes if slope is not None]
    if not known:
        return _DASH
    low, high = (f"{round(value, 2) + 0.0:+.2f}".replace("-", "\u2212") for value in (min(known), max(known)))
    return low if low == high else f"{low} to {high}"


def _agreement(measured: Mapping[str, MetricsCard], judged: Mapping[str, float]) -> Section | None:
    """Rank correlations between metrics over the corpora."""
    if len(measured) < FEWEST_CORPORA:
        return None
    values = columns_of(measured, judged)
    if len(values) < 2:
        return None
    titles = {name: METRICS[name].title if name in METRICS else _JUDGED for name in values}
    found = agreements(values)
    taus = {(titles[pair.first], titles[pair.second]): pair.kendall.value for pair in found if pair.kendall}
    alt = "; ".join(f"{first} and {second}: {value:.2f}" for (first, second), value in taus.items())
    caption = "Kendall's tau between all pairs of metrics."
    drawing = render(
        "agreement", alt, lambda width: diversity.correlations(list(titles.values()), taus, width), caption
    )
    rows = [
        (f"{titles[pair.first]} and {titles[pair.second]}", _correlation(pair.kendall), _correlation(pair.spearman))
        for pair in found
    ]
    intro = (
        f"How far metrics put {len(measured)} corpora into the same order; each is signed so that more is more "
        "diverse. With few corpora intervals are wide: one that holds 0 shows no agreement."
    )
    pairs = table(("Metrics", "#Kendall's tau", "#Spearman's rho"), rows)
    body = [intro, drawing, details(f"All {len(rows)} pairs with intervals", "", pairs)]
    return Section(anchor="agreement", title="Agreement between metrics", body=body)


def _correlation(correlation: Estimate | None) -> str:
    if correlation is None:
        return "constant"
    text = f"{correlation.value:.2f} [{correlation.low:.2f}, {correlation.high:.2f}]"
    return text.replace("-", "\u2212")


def _compatible(measured: Mapping[str, MetricsCard], palette: Palette) -> Section | None:
    names = list(dict.fromkeys(name for card in measured.values() for name in card.compatible))
    if not names:
        return None
    rows = []
    for corpus, card in measured.items():
        values = (card.compatible.get(name) for name in names)
        rows.append((named(corpus, palette), *(_DASH if value is None else f"{round(value, 3):g}" for value in values)))
    intro = "What the diversity package (0.3.1) gives for the first documents of each corpus, to the digits it prints."
    body = [intro, table(("Corpus", *(f"#{name}" for name in names)), rows)]
    return Section(anchor="compatible", title="As the diversity package counts", body=body)


def _cost(measured: Mapping[str, MetricsCard]) -> Section | None:
    """Seconds, memory and dollars of every stage over the sizes at which it was run."""
    entries = [entry for card in measured.values() for entry in card.cost]
    if not entries:
        return None
    rows = []
    for stage in dict.fromkeys(entry["stage"] for entry in entries):
        runs = [entry for entry in entries if entry["stage"] == stage]
        largest = max(runs, key=lambda entry: entry["documents"])
        smaller = [entry for entry in runs if 4 * entry["documents"] <= largest["documents"]]
        before = max(smaller, key=lambda entry: entry["documents"], default=None)
        rows.append(
            (
                stage,
                f"{formats.duration(before['seconds'])} for {count(before['documents'])}" if before else _DASH,
                formats.duration(largest["seconds"]),
                count(largest["documents"]),
                formats.duration(1e6 * largest["seconds"] / max(largest["documents"], 1)),
                formats.compact(max(largest["memory_bytes"], 0), "B"),
                formats.money(largest["dollars"]),
            )
        )
    titles = (
        "Stage", "#At a smaller size", "#Seconds", "#Documents", "#Per million documents", "#Memory on top", "#Dollars"
    )  # fmt: skip
    intro = "What each stage took at the largest size it was run at, and in proportion for a million documents."
    return Section(anchor="metric-cost", title="What the metrics cost", body=[intro, table(titles, rows)])

"""The baseline metrics on a page: figures of every corpus, what tells corpora apart, what moves them, how they agree,
what they cost.
"""

from collections.abc import Mapping, Sequence
import itertools
from pathlib import Path

from diversity_jax.core import formats
from diversity_jax.core.run_info import RunInfo
from diversity_jax.metrics import METRICS, Figure, MetricsCard, difference
from diversity_jax.metrics.agreement import FEWEST_CORPORA, RankCorrelation, agreements, columns_of
from diversity_jax.report import data, page
from diversity_jax.report.figures import metrics as metric_figures
from diversity_jax.report.html import Html, columns, element, joined, table
from diversity_jax.report.page import KeyFigure, Page, Section, figure, named
from diversity_jax.report.plotting import Drawing, render
from diversity_jax.report.style import Palette

_MOST_COMPARED = 6  # pairs of corpora with a table of their own
_DASH = "\u2013"
_JUDGED = "Effective clusters (judge)"


def write(output_dir: str | Path, measured: Mapping[str, MetricsCard]) -> Path:
    """Writes the page of a run without a judge; returns the path of `report.html`."""
    record = Path(output_dir) / "run.json"
    return page.write(compose(measured, RunInfo.load(record) if record.exists() else None), output_dir)


def compose(
    measured: Mapping[str, MetricsCard], record: RunInfo | None, pairs: Sequence[tuple[str, str]] | None = None
) -> Page:
    """The page of a run without a judge.

    Args:
      pairs: of corpora to compare; all of them, the first few, where not given.
    """
    palette = Palette(list(measured))
    first = next(iter(measured.values()))
    facts = record.facts() if record else []
    facts += [
        data.Fact(name=f"Scorecard {formats.shortened(name, 40)}", value=card.content_hash, code=True)
        for name, card in measured.items()
    ]
    facts.append(
        data.Fact(
            name="Parameters",
            value=", ".join(f"{name}={value}" for name, value in sorted(first.parameters.items())),
            code=True,
        )
    )
    return Page(
        kind="Baseline metrics of",
        name=formats.listed(list(measured))
        if len(measured) <= 3
        else formats.counted(len(measured), "corpus", "corpora"),
        verdict=_verdict(measured, pairs),
        lede=_drawn(measured),
        key_figures=_key_figures(first) if len(measured) == 1 else (),
        sections=(
            *all_sections(measured, palette, {}, pairs),
            page.facts(facts, intro="What one needs to measure again and get the same."),
        ),
        footer=(
            "Written by diversity_jax. Intervals are 95 %, over draws without replacement, widened as the corpus "
            "is itself a sample."
        ),
    )


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
    count = formats.counted(len(next(iter(measured.values())).metrics), "metric")
    if len(chosen) != 1:
        return f"{count} of {formats.counted(len(measured), 'corpus', 'corpora')}."
    first, second = chosen[0]
    says = [_decided(measured[first].metrics, measured[second].metrics, name) for name in METRICS]
    for_first, for_second = says.count(True), says.count(False)
    undecided = sum(bool(METRICS[name].sign) for name in measured[first].metrics) - for_first - for_second
    undecided_says = f"{undecided} {'does' if undecided == 1 else 'do'} not decide"
    if for_first and for_second:
        return f"{for_first} metrics call {first} more diverse, {for_second} call {second}; {undecided_says}."
    winner, loser, votes = (first, second, for_first) if for_first else (second, first, for_second)
    if not votes:
        return f"No metric tells {first} from {second}."
    return f"{votes} metrics call {winner} more diverse than {loser}, none the other way; {undecided_says}."


def _drawn(measured: Mapping[str, MetricsCard]) -> str:
    used = next(iter(measured.values())).parameters
    sizes = ("draws", "draw_documents", "control_words", "control_documents")
    if any(card.parameters[name] != used[name] for card in measured.values() for name in sizes):
        return "Each figure is a mean over draws of equal size; the size is given with each comparison."
    said = (
        f"Each figure is the mean of {formats.counted(used['draws'], 'draw')} of "
        f"{formats.counted(used['draw_documents'], 'document')}"
    )
    if used["control_words"]:
        said += (
            f"; at equal length, of {formats.count(used['control_documents'])} documents cut to their first "
            f"{used['control_words']} words"
        )
    return said + "."


def _key_figures(card: MetricsCard) -> tuple[KeyFigure, ...]:
    names = ("ngram_diversity", "self_repetition", "compression_ratio_gzip", "mtld", "vendi_1", "perplexity")
    return tuple(
        KeyFigure(
            label=METRICS[name].title,
            value=formats.significant(card.metrics[name].value),
            note=_interval(card.metrics[name]),
        )
        for name in names
        if name in card.metrics
    )


def _interval(value: Figure) -> str:
    if value.low is None or value.high is None:
        return "one draw, no interval"
    return f"95 %: {formats.significant(value.low)} to {formats.significant(value.high)}"


def said(value: Figure | None) -> str:
    """A figure with its interval, where it has one."""
    if value is None:
        return _DASH
    if value.low is None or value.high is None:
        return formats.significant(value.value)
    return formats.estimate(data.Estimate(value=value.value, low=value.low, high=value.high))


def _warnings(measured: Mapping[str, MetricsCard]) -> Section | None:
    lines = [element("li", f"{name}: {warning}") for name, card in measured.items() for warning in card.warnings]
    return Section(anchor="metric-warnings", title="Of the metrics", body=element("ul", lines)) if lines else None


def _values(measured: Mapping[str, MetricsCard], palette: Palette) -> Section:
    """Every figure of every corpus: at whole length, and at equal length beneath it."""
    controlled = any(card.controlled for card in measured.values())
    rows = []
    for name, about in METRICS.items():
        if not any(name in card.metrics for card in measured.values()):
            continue
        cells = [_stacked(card, name, controlled) for card in measured.values()]
        rows.append((about.title, *cells, _direction(about.sign)))
    titles = columns("Metric", *(f"#{formats.shortened(name, 24)}" for name in measured), "More diverse is")
    intro = _drawn(measured) + (" The second line of a cell is at equal length." if controlled else "")
    embedder = next(iter(measured.values())).parameters.get("embedder")
    intro += f" Embedding metrics: {embedder}." if embedder else ""
    return Section(anchor="metrics", title="Baseline metrics", body=joined(element("p", intro), table(titles, rows)))


def _stacked(card: MetricsCard, name: str, controlled: bool) -> Html:
    above = said(card.metrics.get(name))
    return (
        joined(above, element("br"), element("span", said(card.controlled.get(name)), class_="muted"))
        if controlled
        else joined(above)
    )


def _direction(sign: int) -> str:
    return {1: "higher", -1: "lower", 0: _DASH}[sign]


def _decided(first: Mapping[str, Figure], second: Mapping[str, Figure], name: str) -> bool | None:
    gap = difference(first[name], second[name], METRICS[name].sign) if name in first and name in second else None
    return gap.first_is_more_diverse if gap else None


def _reach(first: Mapping[str, Figure], second: Mapping[str, Figure], name: str) -> float | None:
    """The signed difference in units of its half-width: beyond +-1 it is decided."""
    gap = difference(first[name], second[name], METRICS[name].sign) if name in first and name in second else None
    if gap is None or gap.high <= gap.low:
        return None
    return METRICS[name].sign * gap.difference / ((gap.high - gap.low) / 2)


def separations(first: MetricsCard, second: MetricsCard) -> list[metric_figures.Separation]:
    """For every metric that says something of diversity, how far two corpora are apart."""
    return [
        metric_figures.Separation(
            title=about.title,
            whole=_reach(first.metrics, second.metrics, name),
            controlled=_reach(first.controlled, second.controlled, name),
        )
        for name, about in METRICS.items()
        if about.sign and (name in first.metrics or name in first.controlled)
    ]


def verdict(first: Mapping[str, Figure], second: Mapping[str, Figure], name: str, names: tuple[str, str]) -> str:
    """Which of two corpora a metric calls more diverse, in a word."""
    if name not in first or name not in second:
        return _DASH
    decided = _decided(first, second, name)
    return "not decided" if decided is None else names[0] if decided else names[1]


def _apart(measured: Mapping[str, MetricsCard], pair: tuple[str, str], number: int) -> Section:
    """Which metrics tell two corpora apart."""
    first, second = (measured[name] for name in pair)
    rows = [
        (
            about.title,
            _ratio(first.metrics, second.metrics, name),
            verdict(first.metrics, second.metrics, name, pair),
            _ratio(first.controlled, second.controlled, name),
            verdict(first.controlled, second.controlled, name, pair),
        )
        for name, about in METRICS.items()
        if about.sign and (name in first.metrics or name in first.controlled)
    ]
    marks = [one for one in separations(first, second) if one.whole is not None or one.controlled is not None]
    drawing: Drawing | None = None
    if marks:
        alt = "; ".join(f"{one.title}: {formats.significant(one.whole)}" for one in marks if one.whole is not None)
        drawing = render(f"apart-{number}", alt, lambda width: metric_figures.separations(marks, *pair, width))
    short = [formats.shortened(name, 18) for name in pair]
    titles = columns("Metric", "#Ratio", "More diverse", "#Ratio, equal length", "More diverse, equal length")
    caption = (
        "Filled: whole documents. Hollow: cut to equal length. Inside the grey band the 95 % interval of the "
        "difference holds 0."
    )
    intro = element("p", _drawn({name: measured[name] for name in pair}))
    body = joined(intro, figure(drawing, caption) if drawing else None, table(titles, rows))
    drawings = (drawing,) if drawing else ()
    return Section(anchor=f"apart-{number}", title=f"{short[0]} against {short[1]}", body=body, drawings=drawings)


def _ratio(first: Mapping[str, Figure], second: Mapping[str, Figure], name: str) -> str:
    if name not in first or name not in second or not second[name].value:
        return _DASH
    return formats.significant(first[name].value / second[name].value)


def _dependence(measured: Mapping[str, MetricsCard]) -> Section | None:
    """Slopes of log value over log size and log length."""
    if not any(card.dependence for card in measured.values()):
        return None
    rows = []
    for name, about in METRICS.items():
        entries = [card.dependence[name] for card in measured.values() if name in card.dependence]
        cells = [
            _range([entry[axis]["slope"] for entry in entries if axis in entry]) for axis in ("documents", "words")
        ]
        if any(cell != _DASH for cell in cells):
            rows.append((about.title, *cells))
    intro = (
        "How much a figure moves when a corpus holds more documents, or longer ones: the slope of its logarithm over "
        "the logarithm of the "
        "size, lowest to highest over corpora. 0 does not depend; 1 grows in proportion; \u22120.3 loses 19 % with "
        "every doubling. What "
        "moves must be compared at equal size and equal length."
    )
    body = joined(
        element("p", intro), table(columns("Metric", "#Slope over documents", "#Slope over words of a document"), rows)
    )
    return Section(anchor="dependence", title="What size and length do", body=body)


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
    titled = {name: METRICS[name].title if name in METRICS else _JUDGED for name in values}
    found = agreements(values)
    taus = {(titled[one.first], titled[one.second]): one.kendall.value for one in found if one.kendall}
    alt = "; ".join(f"{first} and {second}: {value:.2f}" for (first, second), value in taus.items())
    drawing = render("agreement", alt, lambda width: metric_figures.correlations(list(titled.values()), taus, width))
    rows = [
        (f"{titled[one.first]} and {titled[one.second]}", _correlation(one.kendall), _correlation(one.spearman))
        for one in found
    ]
    intro = (
        f"How far metrics put {len(measured)} corpora into the same order; each is signed so that more is more "
        "diverse. With few corpora "
        "intervals are wide: one that holds 0 shows no agreement."
    )
    pairs_table = table(columns("Metrics", "#Kendall's tau", "#Spearman's rho"), rows)
    folded = element("details", element("summary", f"All {len(rows)} pairs with intervals"), pairs_table)
    body = joined(element("p", intro), figure(drawing, "Kendall's tau between all pairs of metrics."), folded)
    return Section(anchor="agreement", title="Agreement between metrics", body=body, drawings=(drawing,))


def _correlation(one: RankCorrelation | None) -> str:
    if one is None:
        return "constant"
    return " ".join(
        f"{value:.2f}".replace("-", "\u2212") for value in (one.value,)
    ) + f" [{one.low:.2f}, {one.high:.2f}]".replace("-", "\u2212")


def _compatible(measured: Mapping[str, MetricsCard], palette: Palette) -> Section | None:
    names = list(dict.fromkeys(name for card in measured.values() for name in card.compatible))
    if not names:
        return None
    rows = [
        (named(corpus, palette), *(_number(card.compatible.get(name)) for name in names))
        for corpus, card in measured.items()
    ]
    intro = "What the diversity package (0.3.1) gives for the first documents of each corpus, to the digits it prints."
    body = joined(element("p", intro), table(columns("Corpus", *(f"#{name}" for name in names)), rows))
    return Section(anchor="compatible", title="As the diversity package counts", body=body)


def _number(value: float | None) -> str:
    return _DASH if value is None else f"{round(value, 3):g}"


def _cost(measured: Mapping[str, MetricsCard]) -> Section | None:
    """Seconds, memory and dollars of every stage over the sizes at which it was run."""
    entries = [entry for card in measured.values() for entry in card.cost]
    if not entries:
        return None
    rows = []
    for stage in dict.fromkeys(entry["stage"] for entry in entries):
        largest = max((entry for entry in entries if entry["stage"] == stage), key=lambda entry: entry["documents"])
        smaller = [
            entry for entry in entries if entry["stage"] == stage and 4 * entry["documents"] <= largest["documents"]
        ]
        before = max(smaller, key=lambda entry: entry["documents"]) if smaller else None
        rows.append(
            (
                stage,
                f"{formats.duration(before['seconds'])} for {formats.count(before['documents'])}" if before else _DASH,
                formats.duration(largest["seconds"]),
                formats.count(largest["documents"]),
                formats.duration(1e6 * largest["seconds"] / max(largest["documents"], 1)),
                formats.compact(max(largest["memory_bytes"], 0), "B"),
                formats.money(largest["dollars"]),
            )
        )
    titles = columns(
        "Stage", "#At a smaller size", "#Seconds", "#Documents", "#Per million documents", "#Memory on top", "#Dollars"
    )
    intro = "What each stage took at the largest size it was run at, and in proportion for a million documents."
    return Section(
        anchor="metric-cost", title="What the metrics cost", body=joined(element("p", intro), table(titles, rows))
    )

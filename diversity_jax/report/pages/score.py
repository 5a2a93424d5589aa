"""The page of a scoring: one corpus, or several compared; written beside their scorecards as `report.html` with
`figures/*.png`.
"""

from collections.abc import Mapping, Sequence
import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np

from diversity_jax.cluster_agent import Draws, Estimate, PairComparison, Scorecard, compare_pairs
from diversity_jax.core import formats
from diversity_jax.core.errors import InputError
from diversity_jax.core.run_info import RunInfo
from diversity_jax.metrics import MetricsCard
from diversity_jax.report import data, page
from diversity_jax.report.figures.components import Ridge, Whisker
from diversity_jax.report.html import Html, columns, element, joined, table
from diversity_jax.report.page import KeyFigure, Page, Section, named
from diversity_jax.report.pages import diversity, metrics
from diversity_jax.report.style import Palette
from diversity_jax.scoring.checks import Checks

_BINS = 20
_ALPHA = 0.05
_EXAMPLE_CHARACTERS = 320
_ORIGINS = {
    "judge": "proposed by the judge from samples",
    "file": "written by hand",
    "scorecard": "taken from another scorecard",
}


def write(
    output_dir: str | os.PathLike,
    scorecards: Mapping[str, Scorecard] | Sequence[str | os.PathLike],
    measured: Mapping[str, MetricsCard] | None = None,
    checks: Checks = Checks(),
    differences: Sequence[PairComparison] | None = None,
) -> Path:
    """Writes the page of one or several scorecards.

    Args:
      output_dir: folder of `report.html` and `figures/`; a `run.json` there adds the command line and versions.
      scorecards: by the name they are to be shown under, or paths of scorecard files, which carry their corpus's name.
      measured: baseline metrics of the same corpora, shown in sections of their own.
      checks: draws and drift, likewise.
      differences: of every pair; None compares them as scored at a size fixed beforehand.

    Returns:
      The path of `report.html`.

    Raises:
      InputError: no scorecard, or one that cannot be read; the message names the file.
    """
    cards = dict(scorecards) if isinstance(scorecards, Mapping) else load(scorecards)
    if not cards:
        raise InputError(f"{output_dir}: no scorecard to show; give at least one")
    record = Path(output_dir) / "run.json"
    differences = compare_pairs(cards) if differences is None else differences
    composed = _compose(cards, RunInfo.load(record) if record.exists() else None, measured or {}, checks, differences)
    return page.write(composed, output_dir)


def load(paths: Sequence[str | os.PathLike]) -> dict[str, Scorecard]:
    """Scorecards by their corpus's name; where two share a name, the later ones are numbered."""
    cards: dict[str, Scorecard] = {}
    for path in paths:
        card = Scorecard.load(path)
        name = str(card.corpus.get("name") or Path(path).stem)
        numbered = (f"{name} ({number})" for number in itertools.count(2))
        cards[name if name not in cards else next(other for other in numbered if other not in cards)] = card
    return cards


def _compose(
    cards: Mapping[str, Scorecard],
    record: RunInfo | None,
    measured: Mapping[str, MetricsCard],
    checks: Checks,
    differences: Sequence[PairComparison],
) -> Page:
    palette = Palette(list(cards))
    several = len(cards) > 1
    return Page(
        kind="Diversity of",
        name=formats.listed(list(cards)) if len(cards) <= 3 else formats.counted(len(cards), "corpus", "corpora"),
        verdict=_verdict(cards, differences),
        lede=judge_note(cards.values()),
        key_figures=() if several else _key_figures(next(iter(cards.values()))),
        sections=tuple(
            section
            for section in (
                _warnings(cards, palette),
                _scores(cards, palette) if several else None,
                _differences_section(differences, palette) if several else None,
                *_check_sections(checks, palette),
                clusters(cards, palette, with_sizes=True),
                _convergence(cards, palette),
                examples(cards, palette, most=4),
                _criteria(cards),
                _judge(cards, palette),
                *metrics.all_sections(
                    measured, palette, {name: card.effective_clusters.value for name, card in cards.items()}
                ),
                _facts(cards, record),
            )
            if section is not None
        ),
        footer=_FOOTER,
    )


_FOOTER = (
    "Written by diversity_jax. Effective clusters are Hill numbers of order 2, estimated from pairs of samples "
    "that a judge put together."
)


def judge_note(cards: Any) -> str:
    """Who judged, and for the offline judge what that is worth."""
    cards = list(cards)
    judges = sorted({card.judge for card in cards})
    groupings = formats.counted(sum(card.groupings for card in cards), "grouping")
    sizes = sorted({card.series.samples_per_grouping for card in cards})
    said = (
        f"Judged by {formats.listed(judges)} in {groupings} of "
        f"{formats.listed([formats.count(size) for size in sizes])} samples."
    )
    if any(judge.startswith("offline") for judge in judges):
        said += (
            " The offline judge groups texts by the words they share: a baseline, not a stand-in for a language "
            "model's judgement."
        )
    return said


def interval(estimate: Estimate | Mapping[str, Any]) -> data.Estimate:
    """An estimate of a scorecard or of its JSON as pages take it."""
    value = estimate if isinstance(estimate, Mapping) else estimate.to_json()
    return data.Estimate(value=value["value"], low=value["low"], high=value["high"])


def _verdict(cards: Mapping[str, Scorecard], differences: Sequence[PairComparison]) -> str:
    if len(cards) == 1:
        [(name, card)] = cards.items()
        return f"{formats.shortened(name, 60)} holds {_held(card)}."
    first = max(cards, key=lambda name: cards[name].effective_clusters.value)
    decided = sum(difference.higher is not None for difference in differences)
    if len(cards) > 2:
        of_all = (
            f"{decided} of {formats.counted(len(differences), 'difference')} {'is' if decided == 1 else 'are'} decided"
        )
        return f"{formats.shortened(first, 40)} reads as the most diverse, with {_held(cards[first])}; {of_all}."
    [difference] = differences
    if difference.ratio is None:
        return f"{difference.first} and {difference.second} were measured by different rulers and cannot be compared."
    if difference.higher is None:
        return (
            f"Which of {difference.first} and {difference.second} is more diverse is not decided: their ratio is "
            f"{difference.text}."
        )
    lower = difference.second if difference.higher == difference.first else difference.first
    return (
        f"{difference.higher} is more diverse than {lower}: {_held(cards[difference.higher])} against "
        f"{_held(cards[lower])}."
    )


def _held(card: Scorecard) -> str:
    return formats.estimate(interval(card.effective_clusters), "effective clusters")


def _key_figures(card: Scorecard) -> tuple[KeyFigure, ...]:
    size = formats.count(card.series.samples_per_grouping)
    ceiling = (card.canaries.get("ceiling") or {}).get("value")
    documents = card.corpus.get("documents")
    return (
        KeyFigure(
            label="Effective clusters",
            value=formats.significant(card.effective_clusters.value),
            note=f"95 %: {_range(card)}",
        ),
        KeyFigure(
            label=f"Paper's score at K = {size}",
            value=formats.significant(card.cluster_score.value),
            note=_paper_range(card),
        ),
        KeyFigure(
            label="Groupings",
            value=formats.count(card.groupings),
            note=f"{formats.count(card.corpus.get('sampled') or 0)} documents shown"
            + (f" of {formats.count(documents)}" if documents else ""),
        ),
        KeyFigure(
            label="Judge's ceiling",
            value=formats.significant(ceiling) if ceiling else "none seen",
            note="effective clusters it could still tell apart",
        ),
        KeyFigure(label="Cost", value=formats.money(card.cost_usd), note=formats.counted(card.calls, "call")),
    )


def _range(card: Scorecard) -> str:
    estimate = card.effective_clusters
    high = "no upper bound" if estimate.high is None else formats.significant(estimate.high)
    return f"{formats.significant(estimate.low)} to {high}"


def _paper_range(card: Scorecard) -> str:
    size = card.series.samples_per_grouping
    return f"mean C / S, from {formats.significant(1 / size)} to {formats.count(size)}"


def _warnings(cards: Mapping[str, Scorecard], palette: Palette) -> Section | None:
    lines = [
        element("li", joined(named(name, palette), ": ") if len(cards) > 1 else None, warning)
        for name, card in cards.items()
        for warning in card.warnings
    ]
    return (
        Section(anchor="warnings", title="Read this first", body=element("ul", lines, class_="warnings"))
        if lines
        else None
    )


def _scores(cards: Mapping[str, Scorecard], palette: Palette) -> Section:
    titles = ["#Effective clusters", "#Paper's C / S", "#Clusters per sample", "#Groupings", "#K"]
    corrected = any(card.effective_clusters_corrected for card in cards.values())
    if corrected:
        titles.insert(1, "#Corrected for the judge")
    rows = []
    for name, card in cards.items():
        figures = (
            [card.effective_clusters]
            + [card.effective_clusters_corrected] * corrected
            + [card.cluster_score, card.clusters_per_sample]
        )
        cells = [formats.estimate(interval(figure)) if figure else "\u2013" for figure in figures]
        cells += [formats.count(card.groupings), formats.count(card.series.samples_per_grouping)]
        rows.append((Whisker(name=name, interval=interval(card.effective_clusters)), cells))
    note = (
        "The paper's C / S depends on K, the samples in a grouping: compare it at equal K only. Effective clusters "
        "do not."
    )
    return diversity.scores(rows, titles, palette, note)


def clusters(cards: Mapping[str, Scorecard], palette: Palette, *, with_sizes: bool) -> Section:
    """Densities of C and of samples in a cluster; with `with_sizes` also of S = n / C, a grouping's mean, as in the
    paper's Fig. 10.
    """
    most = max(card.series.samples_per_grouping for card in cards.values())

    def distributions(kind: str, bins: int, high: float | None = None) -> list[data.Distribution]:
        found = {name: card.histogram(kind) for name, card in cards.items()}
        high = high or min(most, max([5.0, *(value for one in found.values() for value in one["values"])]))
        return [
            data.Distribution.binned(name, one["values"], one["counts"], low=1, high=high, most=bins)
            for name, one in found.items()
        ]

    quantities = [
        Ridge(
            title="Clusters in a grouping, C",
            axis="number of clusters",
            distributions=distributions("clusters", 50, most),
        )
    ]
    if with_sizes:
        means = distributions("samples_per_cluster", _BINS)
        quantities.append(Ridge(title="Their mean size, S = n / C", axis="samples", distributions=means))
    sizes = distributions("cluster_sizes", 50)
    quantities.append(Ridge(title="Samples in a cluster", axis="number of samples", distributions=sizes))
    invalid = sum(card.invalid_clusters for card in cards.values())
    explained = (
        "How finely the judge told samples apart. The more diverse a corpus, the more clusters and the fewer "
        "samples in each."
    )
    if invalid:
        were = "cluster is" if invalid == 1 else "clusters are"
        explained += (
            f" {formats.count(invalid)} {were} left out because the judge called them invalid on its second look."
        )
    return diversity.clusters(quantities, palette, explained)


def _convergence(cards: Mapping[str, Scorecard], palette: Palette) -> Section:
    runs = []
    for name, card in cards.items():
        series = {
            key: [np.nan if value is None else value for value in card.convergence.get(key, ())] for key in _CONVERGENCE
        }
        if series["groupings"]:
            runs.append(data.Convergence(name=name, **series))
    if not runs:
        return page.absent("convergence", "Convergence", "These scorecards do not hold how the estimate settled.")
    return diversity.convergence(runs, palette)


_CONVERGENCE = ("groupings", "value", "low", "high")


def examples(cards: Mapping[str, Scorecard], palette: Palette, *, most: int, opened: str | None = None) -> Section:
    """Up to `most` groupings of each scorecard as the judge sorted them; `opened` is shown unfolded."""
    groupings = {name: [_grouping(example) for example in card.examples[:most]] for name, card in cards.items()}
    asides = {name: _held(card) for name, card in cards.items()}
    if not any(groupings.values()):
        return page.absent("examples", "Example clusters", "No example groupings were kept (agent.examples=0).")
    return diversity.examples(groupings, palette, asides, opened or next(iter(groupings)))


def _grouping(example: Mapping[str, Any]) -> data.Grouping:
    clusters_ = tuple(
        data.Cluster(
            texts=tuple(formats.shortened(sample, _EXAMPLE_CHARACTERS) for sample in cluster.get("texts", ())),
            reason=str(cluster.get("reasoning", "")),
            valid=cluster.get("valid"),
            validation=str(cluster.get("validation", "")),
        )
        for cluster in sorted(example.get("clusters", ()), key=lambda cluster: -len(cluster.get("texts", ())))
    )
    return data.Grouping(number=int(example.get("grouping", 0)) + 1, clusters=clusters_)


def _criteria(cards: Mapping[str, Scorecard]) -> Section:
    """The criteria, once; where corpora were scored by different ones, those of the first with a word on it."""
    card = next(iter(cards.values()))
    sets = [data.CriteriaSet(entries=tuple(_entries(one))) for one in card.criteria]
    origin = _ORIGINS.get(card.criteria_origin, card.criteria_origin)
    if len({one.criteria_hash for one in cards.values()}) > 1:
        origin += f"; these are the ones of {next(iter(cards))}, other corpora were grouped by others"
    return diversity.criteria(sets, origin, card.criteria_hash)


def _entries(one: Mapping[str, Any]) -> list[data.Criterion]:
    kinds = (("metadata", "attribute"), ("metrics", "scale from 1 to 5"))
    return [
        data.Criterion(
            name=str(entry.get("name", "")),
            kind=kind,
            definition=str(entry.get("definition", "")),
            guidance=str(entry.get("guidance", "")),
            levels=tuple(str(level) for level in entry.get("levels", ())),
        )
        for field, kind in kinds
        for entry in one.get(field, ())
    ]


def _judge(cards: Mapping[str, Scorecard], palette: Palette) -> Section:
    """What the canaries say of the judge, what was dropped, and what it cost."""
    rows = []
    for name, card in cards.items():
        rates = [card.canaries.get(kind) for kind in ("false_merge", "false_split")]
        shares = [_share(rate) if rate else "\u2013" for rate in rates]
        ceiling = card.canaries.get("ceiling") or {}
        top = f"{formats.significant(ceiling['value'])}" if ceiling.get("value") else "\u2013"
        least = f"at least {formats.significant(ceiling['low'])}" if ceiling.get("low") else "not measured"
        rows.append((named(name, palette), formats.count(card.canaries.get("shown", 0)), *shares, top, least))
    titles = columns("Corpus", "#Canaries shown", "#False merges", "#False splits", "#Ceiling", "#95 % bound")
    costs = [
        (
            named(name, palette),
            formats.count(card.calls),
            formats.compact(card.tokens.get("prompt", 0)),
            formats.compact(card.tokens.get("completion", 0)),
            formats.money(card.cost_usd),
            formats.count(card.repairs),
            ", ".join(f"{reason}: {formats.count(number)}" for reason, number in card.drops.items()) or "none",
        )
        for name, card in cards.items()
    ]
    cost_titles = columns(
        "Corpus", "#Calls", "#Prompt tokens", "#Answer tokens", "#Cost", "#Asked again", "~Groupings dropped"
    )
    intro = (
        "Canaries are a copy of a sample and a foreign text, planted in groupings; they never enter a figure. A judge "
        "that merges the "
        "foreign text one time in a hundred cannot tell more than a hundred clusters apart: that is the ceiling."
    )
    body = joined(
        element("p", intro), table(titles, rows), element("h3", "What it took"), table(cost_titles, costs)
    )  # fmt: skip
    return Section(anchor="judge", title="The judge", body=body)


def _share(rate: Mapping[str, float]) -> str:
    return f"{formats.percent(rate['value'])} [{formats.percent(rate['low'])}, {formats.percent(rate['high'])}]"


def _facts(cards: Mapping[str, Scorecard], record: RunInfo | None) -> Section:
    first = next(iter(cards.values()))
    facts = record.facts() if record else []
    facts += [
        data.Fact(name="Judge", value=formats.listed(sorted({card.judge for card in cards.values()}))),
        data.Fact(
            name="Prompts", value=formats.listed(sorted({card.prompt_version for card in cards.values()})), code=True
        ),
        data.Fact(name="Seed", value=formats.listed(sorted({formats.count(card.seed) for card in cards.values()}))),
        data.Fact(
            name="Parameters",
            value=", ".join(f"{name}={value}" for name, value in sorted(first.parameters.items())),
            code=True,
        ),
        data.Fact(name="Ruler", value="\n".join(sorted({card.ruler for card in cards.values()})), code=True),
    ]
    for name, card in cards.items():
        facts.append(
            data.Fact(
                name=f"Corpus {formats.shortened(name, 40)}", value=str(card.corpus.get("fingerprint", "")), code=True
            )
        )
        facts.append(data.Fact(name=f"Scorecard {formats.shortened(name, 40)}", value=card.content_hash, code=True))
    return page.facts(facts, intro="What one needs to score again and get the same.")


def _differences_section(differences: Sequence[PairComparison], palette: Palette) -> Section:
    """The table of which differences are decided."""
    rows = []
    for one in differences:
        if one.comparison is None:
            decision: Html | str = "not comparable: different rulers"
        elif one.higher is None:
            decision = "not decided"
        else:
            decision = joined(named(one.higher, palette), " is more diverse")
        rows.append((named(one.first, palette), named(one.second, palette), one.text, decision))
    titles = columns("First", "Second", "#Ratio of effective clusters", "Decision")
    intro = f"A difference is decided where the interval of the ratio leaves out 1. {_error_note(differences)}"
    return Section(
        anchor="comparison",
        title="Which differences are decided",
        body=joined(element("p", intro), table(titles, rows)),
    )


def _error_note(differences: Sequence[PairComparison]) -> str:
    found = [one.comparison for one in differences if one.comparison]
    if len(found) == 1 and found[0].looks > 1:
        [one] = found
        return (
            f"The run was to stop at the first of {one.looks} looks that decides, and took {one.look}; the interval "
            "is that look's own, "
            f"and all looks together err at most {formats.percent(one.alpha, 0)} of the time."
        )
    if len(differences) > 1:
        number = formats.counted(len(differences), "comparison")
        return f"The intervals are widened for {number}, so that all together err at most 5 times in 100."
    return f"The comparison errs at most {formats.percent(found[0].alpha if found else _ALPHA, 0)} of the time."


def _check_sections(checks: Checks, palette: Palette) -> list[Section]:
    """The checks as sections of a page; none for what was not asked."""
    return [
        *([_draws_section(checks.draws, palette)] if checks.draws else []),
        *([_drift_section(checks, palette)] if checks.drift else []),
    ]


def _draws_section(draws: Mapping[str, Draws], palette: Palette) -> Section:
    rows: list[tuple[Html | str, ...]] = []
    for name, one in draws.items():
        values = ", ".join(formats.significant(card.effective_clusters.value) for card in one.scorecards)
        figures = (_draws_interval(one.effective_clusters), _draws_interval(one.cluster_score))
        rows.append((named(name, palette), formats.count(len(one.scorecards)), *figures, values))
    titles = columns("Corpus", "#Draws", "#Effective clusters", "#Paper's C / S", "~Effective clusters of each draw")
    intro = (
        "Each draw has documents, criteria and groupings of its own. The interval is that of the mean over draws, "
        "by their spread alone."
    )
    return Section(
        anchor="draws", title="Over independent draws", body=joined(element("p", intro), table(titles, rows))
    )


def _draws_interval(estimate: Any) -> str:
    return (
        f"{formats.significant(estimate.value)} [{formats.significant(estimate.low)}, "
        f"{formats.significant(estimate.high)}]"
    )


def _drift_section(checks: Checks, palette: Palette) -> Section:
    rows = []
    for name, one in checks.drift.items():
        small, large = one.sizes
        verdict = f"drifts: keep K = {small}" if one.comparison.decided else "no drift seen"
        rows.append(
            (named(name, palette), formats.count(small), formats.count(large), one.comparison.ratio_text, verdict)
        )
    titles = columns("Corpus", "#Smaller K", "#Larger K", "#Ratio of effective clusters", "Verdict")
    intro = (
        "Effective clusters do not depend on K, the samples in a grouping. A judge that reads the same corpus "
        "otherwise when it is shown "
        "more at once has begun to lump or to split; the largest K without drift is the cheapest one to trust."
    )
    return Section(
        anchor="drift", title="Does the judge drift with K", body=joined(element("p", intro), table(titles, rows))
    )

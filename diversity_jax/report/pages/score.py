"""The page of a scoring: one corpus, or several compared; and the sections on clusters that other pages have too."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
import itertools
import os
from pathlib import Path
from typing import Any

from diversity_jax.cluster_agent import PairComparison, Scorecard, compare_pairs, registry
from diversity_jax.core import formats
from diversity_jax.core.errors import InputError
from diversity_jax.core.formats import count, counted, estimate, shortened, significant
from diversity_jax.core.run_info import Fact, RunInfo
from diversity_jax.metrics import MetricsCard
from diversity_jax.report import page
from diversity_jax.report.figures import diversity
from diversity_jax.report.figures.diversity import Distribution, Ridge, Whisker
from diversity_jax.report.html import macro
from diversity_jax.report.page import Page, Section
from diversity_jax.report.pages import metrics
from diversity_jax.report.plotting import Drawing, render
from diversity_jax.report.style import Palette
from diversity_jax.scoring.run import Checks

_FOOTER = (
    "Written by diversity_jax. Effective clusters are Hill numbers of order 2, estimated from pairs of samples "
    "that a judge put together."
)
_ALPHA = 0.05
_EXAMPLE_CHARACTERS = 320
_ORIGINS = {
    "judge": "proposed by the judge from samples",
    "file": "written by hand",
    "scorecard": "taken from another scorecard",
}
_CRITERION_KINDS = (("metadata", "attribute"), ("metrics", "scale from 1 to 5"))


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
    path, palette, several = Path(output_dir) / "run.json", Palette(list(cards)), len(cards) > 1
    info = RunInfo.load(path) if path.exists() else None
    differences = compare_pairs(cards) if differences is None else differences
    judged = {name: card.effective_clusters.value for name, card in cards.items()}
    sections = (
        _warnings(cards, palette),
        _scores(cards, palette) if several else None,
        _comparison(differences, palette) if several else None,
        *_checks(checks, palette),
        clusters(cards, palette, with_sizes=True),
        _convergence(cards, palette),
        examples(cards, palette, most=4),
        _criteria(cards),
        page.section("score", "judge", "The judge", cards=cards, palette=palette),
        *metrics.all_sections(measured or {}, palette, judged),
        _facts(cards, info),
    )
    composed = Page(
        kind="Diversity of",
        name=formats.listed(list(cards)) if len(cards) <= 3 else counted(len(cards), "corpus", "corpora"),
        verdict=_verdict(cards, differences),
        lede=judge_note(cards.values()),
        key_figures=None if several else macro("score", "key_figures", next(iter(cards.values()))),
        sections=tuple(section for section in sections if section is not None),
        footer=_FOOTER,
    )
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


def judge_note(cards: Iterable[Scorecard]) -> str:
    """Who judged, and for the offline judge what that is worth."""
    cards = list(cards)
    judges = sorted({card.judge for card in cards})
    groupings = counted(sum(card.groupings for card in cards), "grouping")
    sizes = formats.listed([count(size) for size in sorted({card.series.samples_per_grouping for card in cards})])
    note = f"Judged by {formats.listed(judges)} in {groupings} of {sizes} samples."
    return " ".join([note, *filter(None, map(registry.judge_note, judges))])


def _verdict(cards: Mapping[str, Scorecard], differences: Sequence[PairComparison]) -> str:
    if len(cards) == 1:
        [(name, card)] = cards.items()
        return f"{shortened(name, 60)} holds {_measured(card)}."
    first = max(cards, key=lambda name: cards[name].effective_clusters.value)
    if len(cards) > 2:
        decided = sum(difference.higher is not None for difference in differences)
        of_all = f"{decided} of {counted(len(differences), 'difference')} {'is' if decided == 1 else 'are'} decided"
        return f"{shortened(first, 40)} reads as the most diverse, with {_measured(cards[first])}; {of_all}."
    [difference] = differences
    names = difference.first, difference.second
    if difference.ratio is None:
        return f"{names[0]} and {names[1]} were measured by different rulers and cannot be compared."
    if difference.higher is None:
        which = f"Which of {names[0]} and {names[1]} is more diverse is not decided"
        return f"{which}: their ratio is {difference.text}."
    higher, lower = names if difference.higher == names[0] else names[::-1]
    return f"{higher} is more diverse than {lower}: {_measured(cards[higher])} against {_measured(cards[lower])}."


def _measured(card: Scorecard) -> str:
    return estimate(card.effective_clusters, "effective clusters")


def _warnings(cards: Mapping[str, Scorecard], palette: Palette) -> Section | None:
    if not any(card.warnings for card in cards.values()):
        return None
    return page.section("score", "warnings", "Read this first", cards=cards, palette=palette)


def _scores(cards: Mapping[str, Scorecard], palette: Palette) -> Section:
    whiskers = [Whisker(name=name, interval=card.effective_clusters) for name, card in cards.items()]
    return page.section(
        "score",
        "scores",
        "Scores",
        cards=cards,
        palette=palette,
        drawing=whiskers_drawing("scores", whiskers, None, palette),
        corrected=any(card.effective_clusters_corrected for card in cards.values()),
    )


def whiskers_drawing(name: str, rows: Sequence[Whisker], reference: Whisker | None, palette: Palette) -> Drawing:
    """The estimates of several components on one axis."""
    alt = "; ".join(
        f"{row.name}: {estimate(row.interval)} effective clusters" + (f", {row.note}" if row.note else "")
        for row in rows
    )
    return render(name, alt, lambda width: diversity.whiskers(rows, reference, palette, width))


def _comparison(differences: Sequence[PairComparison], palette: Palette) -> Section:
    """The table of which differences are decided."""
    return page.section(
        "score",
        "comparison",
        "Which differences are decided",
        differences=differences,
        error_note=_error_note(differences),
        palette=palette,
    )


def _error_note(differences: Sequence[PairComparison]) -> str:
    comparisons = [difference.comparison for difference in differences if difference.comparison]
    alpha = comparisons[0].alpha if comparisons else _ALPHA
    if len(comparisons) == 1 and comparisons[0].looks > 1:
        return (
            f"The run was to stop at the first of {comparisons[0].looks} looks that decides, and took "
            f"{comparisons[0].look}; the interval is that look's own, and all looks together err at most "
            f"{formats.percent(alpha, 0)} of the time."
        )
    if len(differences) > 1:
        number = counted(len(differences), "comparison")
        return f"The intervals are widened for {number}, so that all together err at most 5 times in 100."
    return f"The comparison errs at most {formats.percent(alpha, 0)} of the time."


def _checks(checks: Checks, palette: Palette) -> list[Section]:
    """What else was asked for: independent draws, and the same corpus at another K."""
    sections = []
    if checks.draws:
        sections.append(page.section("score", "draws", "Over independent draws", scored=checks.draws, palette=palette))
    if checks.drift:
        sections.append(
            page.section("score", "drift", "Does the judge drift with K", checks=checks.drift, palette=palette)
        )
    return sections


def clusters(cards: Mapping[str, Scorecard], palette: Palette, *, with_sizes: bool) -> Section:
    """Densities of C and of samples in a cluster; with `with_sizes` also of S = n / C, a grouping's mean, as in Fig. 10
    of arXiv 2410.15226.
    """
    largest = max(card.series.samples_per_grouping for card in cards.values())

    def ridge(kind: str, title: str, axis: str, bins: int, high: float | None = None) -> Ridge:
        histograms = {name: card.histogram(kind) for name, card in cards.items()}
        high = high or min(largest, max([5.0, *(value for part in histograms.values() for value in part["values"])]))
        distributions = [
            Distribution.binned(name, part["values"], part["counts"], low=1, high=high, most=bins)
            for name, part in histograms.items()
        ]
        return Ridge(title=title, axis=axis, distributions=distributions)

    columns = [ridge("clusters", "Clusters in a grouping, C", "number of clusters", 50, largest)]
    if with_sizes:
        columns.append(ridge("samples_per_cluster", "Their mean size, S = n / C", "samples", 20))
    columns.append(ridge("cluster_sizes", "Samples in a cluster", "number of samples", 50))
    intro = (
        "How finely the judge told samples apart. The more diverse a corpus, the more clusters and the fewer samples "
        "in each."
    )
    if invalid := sum(card.invalid_clusters for card in cards.values()):
        are = "cluster is" if invalid == 1 else "clusters are"
        intro += f" {count(invalid)} {are} left out because the judge called them invalid on its second look."
    return clusters_section(columns, palette, intro)


def clusters_section(columns: Sequence[Ridge], palette: Palette, intro: str) -> Section:
    """How many clusters the judge saw in a grouping, and how large they were; `intro` says what was counted."""
    alt = "; ".join(
        f"{column.title} of {distribution.name}: {significant(distribution.mean)} on average"
        for column in columns
        for distribution in column.distributions
        if distribution.counts.sum()
    )
    drawing = render("clusters", alt, lambda width: diversity.ridges(columns, palette, width))
    return page.section("score", "clusters", "Clusters", intro=intro, drawing=drawing)


def _convergence(cards: Mapping[str, Scorecard], palette: Palette) -> Section:
    """The estimate as groupings come in."""
    runs = {name: card.convergence for name, card in cards.items() if card.convergence.get("groupings")}
    if not runs:
        return page.absent("convergence", "Convergence", "These scorecards do not hold how the estimate settled.")
    alt = "; ".join(f"{name}: {count(run['groupings'][-1] or 0)} groupings" for name, run in runs.items())
    drawing = render("convergence", alt, lambda width: diversity.convergence(runs, palette, width))
    return page.section("score", "convergence", "Convergence", drawing=drawing)


def examples(cards: Mapping[str, Scorecard], palette: Palette, *, most: int, opened: str | None = None) -> Section:
    """Up to `most` groupings of each scorecard as the judge sorted them; `opened` is shown unfolded."""
    if not any(card.examples for card in cards.values()):
        return page.absent("examples", "Example clusters", "No example groupings were kept (agent.examples=0).")
    return page.section(
        "score",
        "examples",
        "Example clusters",
        cards=cards,
        groupings={name: [_grouping(example) for example in card.examples[:most]] for name, card in cards.items()},
        opened=opened or next(iter(cards)),
        palette=palette,
    )


def _grouping(example: Mapping[str, Any]) -> dict[str, Any]:
    """Its number, clusters of several samples, the largest first, and samples left alone, each with its reason."""
    clusters = [
        {**cluster, "texts": [shortened(text, _EXAMPLE_CHARACTERS) for text in cluster.get("texts", ())]}
        for cluster in sorted(example.get("clusters", ()), key=lambda cluster: -len(cluster.get("texts", ())))
    ]
    alone = [(cluster.get("reasoning", ""), cluster["texts"][0]) for cluster in clusters if len(cluster["texts"]) == 1]
    # A reason that several samples share ("unlike the others") says nothing about any of them.
    times = Counter(reason for reason, _ in alone)
    return {
        "number": int(example.get("grouping", 0)) + 1,
        "samples": sum(len(cluster["texts"]) for cluster in clusters),
        "shared": [cluster for cluster in clusters if len(cluster["texts"]) > 1],
        "alone": [(reason if times[reason] == 1 else "", text) for reason, text in alone],
    }


def _criteria(cards: Mapping[str, Scorecard]) -> Section:
    """By what the judge grouped: every criteria set, once; where corpora were scored by different ones, those of the
    first with a word on it.
    """
    name, card = next(iter(cards.items()))
    origin = _ORIGINS.get(card.criteria_origin, card.criteria_origin)
    if len({other.criteria_hash for other in cards.values()}) > 1:
        origin += f"; these are the ones of {name}, other corpora were grouped by others"
    sets = [
        [(entry, kind) for field, kind in _CRITERION_KINDS for entry in criteria.get(field, ())]
        for criteria in card.criteria
    ]
    return page.section("score", "criteria", "Criteria", sets=sets, origin=origin, hash=card.criteria_hash)


def judge_facts(cards: Mapping[str, Scorecard], prompts: str, seed: str) -> list[Fact]:
    """Judges, prompt versions and seeds of scorecards; `prompts` and `seed` name the latter two."""
    judges, versions, seeds = (
        formats.listed(sorted({str(value(card)) for card in cards.values()}))
        for value in (lambda card: card.judge, lambda card: card.prompt_version, lambda card: count(card.seed))
    )
    return [
        Fact(name="Judge", value=judges),
        Fact(name=prompts, value=versions, code=True),
        Fact(name=seed, value=seeds),
    ]


def _facts(cards: Mapping[str, Scorecard], info: RunInfo | None) -> Section:
    first = next(iter(cards.values()))
    parameters = ", ".join(f"{name}={value}" for name, value in sorted(first.parameters.items()))
    facts = [
        *(info.facts() if info else []),
        *judge_facts(cards, "Prompts", "Seed"),
        Fact(name="Parameters", value=parameters, code=True),
        Fact(name="Ruler", value="\n".join(sorted({card.ruler for card in cards.values()})), code=True),
    ]
    for name, card in cards.items():
        fingerprint = str(card.corpus.get("fingerprint", ""))
        facts.append(Fact(name=f"Corpus {shortened(name, 40)}", value=fingerprint, code=True))
        facts.append(Fact(name=f"Scorecard {shortened(name, 40)}", value=card.content_hash, code=True))
    return page.facts(facts, intro="What one needs to score again and get the same.")

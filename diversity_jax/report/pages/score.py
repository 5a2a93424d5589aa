"""The page of a scoring of one or several corpora; its sections on clusters and examples are on other pages too."""

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
from diversity_jax.core.run_info import Fact
from diversity_jax.metrics import MetricsReport
from diversity_jax.report import page
from diversity_jax.report.figures import diversity
from diversity_jax.report.figures.diversity import Ridge, Whisker
from diversity_jax.report.html import Palette, macro
from diversity_jax.report.page import Page, Section
from diversity_jax.report.pages import audit, metrics
from diversity_jax.report.plotting import Plot, render
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
    measured: Mapping[str, MetricsReport] | None = None,
    checks: Checks = Checks(),
    differences: Sequence[PairComparison] | None = None,
) -> Path:
    """Writes the page of one or several scorecards.

    Args:
      output_dir: folder of `report.html` and `figures/`; a `run.json` there adds the command line and versions.
      scorecards: by the name to show, or paths of scorecard files, which hold the name of their corpus.
      measured: baseline metrics of the same corpora.
      checks: independent draws, and scores at another K.
      differences: of every pair; by default they are compared as scores of a fixed number of groupings.

    Returns:
      The path of `report.html`.

    Raises:
      InputError: no scorecard, or one that cannot be read; the message names the file.
    """
    scorecards = dict(scorecards) if isinstance(scorecards, Mapping) else load(scorecards)
    if not scorecards:
        raise InputError(f"{output_dir}: no scorecard to show; give at least one")
    palette, several = Palette(list(scorecards)), len(scorecards) > 1
    differences = compare_pairs(scorecards) if differences is None else differences
    judged = {name: scorecard.effective_clusters.value for name, scorecard in scorecards.items()}
    composed = Page(
        kind="Diversity of",
        name=formats.listed(list(scorecards))
        if len(scorecards) <= 3
        else counted(len(scorecards), "corpus", "corpora"),
        verdict=" ".join(filter(None, (audit.headline(scorecards), _verdict(scorecards, differences)))),
        lede=judge_note(scorecards.values()),
        key_figures=None if several else macro("score", "key_figures", next(iter(scorecards.values()))),
        sections=(
            audit.section(scorecards, palette),
            _warnings(scorecards, palette),
            _scores(scorecards, palette) if several else None,
            _comparison(differences, palette) if several else None,
            *_checks(checks, palette),
            clusters(scorecards, palette, with_sizes=True),
            _convergence(scorecards, palette),
            examples(scorecards, palette, most=4),
            _criteria(scorecards),
            page.section("score", "judge", "The judge", scorecards=scorecards, palette=palette),
            *metrics.all_sections(measured or {}, palette, judged),
            page.facts(
                page.run_facts(output_dir) + _facts(scorecards), intro="What one needs to score again and get the same."
            ),
        ),
        footer=_FOOTER,
    )
    return page.write(composed, output_dir)


def load(paths: Sequence[str | os.PathLike]) -> dict[str, Scorecard]:
    """Scorecards by their corpus's name; where two share a name, the later ones are numbered."""
    scorecards: dict[str, Scorecard] = {}
    for path in paths:
        scorecard = Scorecard.load(path)
        name = str(scorecard.corpus.get("name") or Path(path).stem)
        numbered = (f"{name} ({number})" for number in itertools.count(2))
        scorecards[name if name not in scorecards else next(other for other in numbered if other not in scorecards)] = (
            scorecard
        )
    return scorecards


def judge_note(scorecards: Iterable[Scorecard]) -> str:
    """The judges, groupings and samples of scorecards, and what a judge's kind has to be told of."""
    scorecards = list(scorecards)
    judges = sorted({scorecard.judge for scorecard in scorecards})
    groupings = counted(sum(scorecard.groupings for scorecard in scorecards), "grouping")
    sizes = formats.listed(
        [count(size) for size in sorted({scorecard.series.samples_per_grouping for scorecard in scorecards})]
    )
    note = f"Judged by {formats.listed(judges)} in {groupings} of {sizes} samples."
    return " ".join(filter(None, [note, _reading_note(scorecards), *map(registry.judge_note, judges)]))


def _reading_note(scorecards: Sequence[Scorecard]) -> str:
    """How much an embedding judge read of each document."""
    lengths = sorted({scorecard.reading_words for scorecard in scorecards if scorecard.reading_words})
    if not lengths:
        return ""
    if len(lengths) == 1:
        return f"It read the first {lengths[0]} words of each document."
    read = f"It read the first {formats.listed(list(map(str, lengths)))} words of documents, as most of a corpus have"
    return f"{read}. Figures at different lengths do not compare; comparisons are made at the smaller of two."


def _verdict(scorecards: Mapping[str, Scorecard], differences: Sequence[PairComparison]) -> str:
    if len(scorecards) == 1:
        [(name, scorecard)] = scorecards.items()
        return f"{shortened(name, 60)} holds {_measured(scorecard)}."
    first = max(scorecards, key=lambda name: scorecards[name].effective_clusters.value)
    if len(scorecards) > 2:
        decided = sum(difference.higher is not None for difference in differences)
        of_all = f"{decided} of {counted(len(differences), 'difference')} {'is' if decided == 1 else 'are'} decided"
        return f"{shortened(first, 40)} reads as the most diverse, with {_measured(scorecards[first])}; {of_all}."
    [difference] = differences
    names = difference.first, difference.second
    if difference.ratio is None:
        return f"{names[0]} and {names[1]} were measured by different rulers and cannot be compared."
    if difference.higher is None:
        which = f"Which of {names[0]} and {names[1]} is more diverse is not decided"
        return f"{which}: their ratio is {difference.text}."
    higher, lower = names if difference.higher == names[0] else names[::-1]
    lengths = {scorecards[name].reading_words for name in names}
    if len(lengths) > 1 and None not in lengths:  # their own figures are at two lengths
        words = min(filter(None, lengths))
        read = f"at {words} words of each document the ratio is {difference.text}"
        return f"{higher} is more diverse than {lower}: {read}."
    figures = f"{_measured(scorecards[higher])} against {_measured(scorecards[lower])}"
    return f"{higher} is more diverse than {lower}: {figures}."


def _measured(scorecard: Scorecard) -> str:
    return estimate(scorecard.effective_clusters, "effective clusters")


def _warnings(scorecards: Mapping[str, Scorecard], palette: Palette) -> Section | None:
    if not any(scorecard.warnings for scorecard in scorecards.values()):
        return None
    return page.section("score", "warnings", "Read this first", scorecards=scorecards, palette=palette)


def _scores(scorecards: Mapping[str, Scorecard], palette: Palette) -> Section:
    whiskers = [Whisker(name=name, interval=scorecard.effective_clusters) for name, scorecard in scorecards.items()]
    return page.section(
        "score",
        "scores",
        "Scores",
        scorecards=scorecards,
        palette=palette,
        plot=whiskers_plot("scores", whiskers, None, palette),
        corrected=any(scorecard.effective_clusters_corrected for scorecard in scorecards.values()),
    )


def whiskers_plot(name: str, rows: Sequence[Whisker], reference: Whisker | None, palette: Palette) -> Plot:
    """The estimates of several components on one axis."""
    alt = "; ".join(
        f"{row.name}: {estimate(row.interval, 'effective clusters')}" + (f", {row.note}" if row.note else "")
        for row in rows
    )
    return render(name, alt, lambda width: diversity.whiskers(rows, reference, palette, width))


def _comparison(differences: Sequence[PairComparison], palette: Palette) -> Section:
    """A table of the ratios of all pairs, and which of them are decided."""
    return page.section(
        "score",
        "comparison",
        "Which differences are decided",
        differences=differences,
        error_note=_error_note(differences),
        palette=palette,
    )


def _error_note(differences: Sequence[PairComparison]) -> str:
    """The error rate at which the differences are decided."""
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
    """Scores over independent draws and at another K, where these were asked for."""
    sections = []
    if checks.draws:
        sections.append(page.section("score", "draws", "Over independent draws", scored=checks.draws, palette=palette))
    if checks.drift:
        title = "Does the judge drift with K"
        sections.append(page.section("score", "drift", title, checks=checks.drift, palette=palette))
    return sections


def clusters(scorecards: Mapping[str, Scorecard], palette: Palette, *, with_sizes: bool) -> Section:
    """Distributions of C, the clusters in a grouping, and of samples in a cluster; with `with_sizes` also of S = n / C,
    the mean size of a grouping's clusters (Fig. 10 of arXiv 2410.15226).
    """
    largest = max(scorecard.series.samples_per_grouping for scorecard in scorecards.values())

    def ridge(kind: str, title: str, axis: str, bins: int, high: float | None = None) -> Ridge:
        histograms = {name: scorecard.histogram(kind) for name, scorecard in scorecards.items()}
        high = high or min(largest, max([5.0, *(value for part in histograms.values() for value in part["values"])]))
        return Ridge.of_histograms(title, axis, histograms, high=high, bins=bins)

    columns = [ridge("clusters", "Clusters in a grouping, C", "number of clusters", 50, largest)]
    if with_sizes:
        columns.append(ridge("samples_per_cluster", "Their mean size, S = n / C", "samples", 20))
    columns.append(ridge("cluster_sizes", "Samples in a cluster", "number of samples", 50))
    intro = (
        "How finely the judge told samples apart. The more diverse a corpus, the more clusters and the fewer samples "
        "in each."
    )
    if invalid := sum(scorecard.invalid_clusters for scorecard in scorecards.values()):
        are = "cluster is" if invalid == 1 else "clusters are"
        intro += f" {count(invalid)} {are} left out because the judge called them invalid on its second look."
    return clusters_section(columns, palette, intro)


def clusters_section(columns: Sequence[Ridge], palette: Palette, intro: str) -> Section:
    """The section "Clusters" with a figure of the columns; `intro` is the text above it."""
    alt = "; ".join(
        f"{column.title} of {distribution.name}: {significant(distribution.mean)} on average"
        for column in columns
        for distribution in column.distributions
        if distribution.counts.sum()
    )
    plot = render("clusters", alt, lambda width: diversity.ridges(columns, palette, width))
    return page.section("score", "clusters", "Clusters", intro=intro, plot=plot)


def _convergence(scorecards: Mapping[str, Scorecard], palette: Palette) -> Section:
    """The estimate over the number of groupings."""
    runs = {
        name: scorecard.convergence for name, scorecard in scorecards.items() if scorecard.convergence.get("groupings")
    }
    if not runs:
        return page.absent("convergence", "Convergence", "These scorecards do not hold how the estimate settled.")
    alt = "; ".join(f"{name}: {count(run['groupings'][-1] or 0)} groupings" for name, run in runs.items())
    plot = render("convergence", alt, lambda width: diversity.convergence(runs, palette, width))
    return page.section("score", "convergence", "Convergence", plot=plot)


def examples(scorecards: Mapping[str, Scorecard], palette: Palette, *, most: int, opened: str | None = None) -> Section:
    """Up to `most` groupings of each scorecard with their clusters; those of `opened`, or the first, are unfolded."""
    if not any(scorecard.examples for scorecard in scorecards.values()):
        return page.absent("examples", "Example clusters", "No example groupings were kept (agent.examples=0).")
    return page.section(
        "score",
        "examples",
        "Example clusters",
        scorecards=scorecards,
        groupings={
            name: [_grouping(example) for example in scorecard.examples[:most]]
            for name, scorecard in scorecards.items()
        },
        opened=opened or next(iter(scorecards)),
        palette=palette,
    )


def _grouping(example: Mapping[str, Any]) -> dict[str, Any]:
    """A grouping for the template: number, clusters of several samples, the largest first, and single samples, each
    with the judge's reason.
    """
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


def _criteria(scorecards: Mapping[str, Scorecard]) -> Section:
    """The criteria sets by which the judge grouped; where corpora were scored by different ones, those of the first."""
    name, scorecard = next(iter(scorecards.items()))
    origin = _ORIGINS.get(scorecard.criteria_origin, scorecard.criteria_origin)
    if len({other.criteria_hash for other in scorecards.values()}) > 1:
        origin += f"; these are the ones of {name}, other corpora were grouped by others"
    sets = [
        [(criterion, kind) for field, kind in _CRITERION_KINDS for criterion in criteria.get(field, ())]
        for criteria in scorecard.criteria
    ]
    return page.section("score", "criteria", "Criteria", sets=sets, origin=origin, hash=scorecard.criteria_hash)


def judge_facts(scorecards: Mapping[str, Scorecard], prompts: str, seed: str) -> list[Fact]:
    """Judges, prompt versions and seeds of scorecards; `prompts` and `seed` are the names of the last two facts."""
    judges, versions, seeds = zip(
        *((scorecard.judge, scorecard.prompt_version, count(scorecard.seed)) for scorecard in scorecards.values()),
        strict=True,
    )
    return [
        Fact(name="Judge", value=formats.listed(sorted(set(judges)))),
        Fact(name=prompts, value=formats.listed(sorted(set(versions))), code=True),
        Fact(name=seed, value=formats.listed(sorted(set(seeds)))),
    ]


def _facts(scorecards: Mapping[str, Scorecard]) -> list[Fact]:
    first = next(iter(scorecards.values()))
    parameters = ", ".join(f"{name}={value}" for name, value in sorted(first.parameters.items()))
    facts = [
        *judge_facts(scorecards, "Prompts", "Seed"),
        Fact(name="Parameters", value=parameters, code=True),
        Fact(name="Ruler", value="\n".join(sorted({scorecard.ruler for scorecard in scorecards.values()})), code=True),
    ]
    for name, scorecard in scorecards.items():
        fingerprint = str(scorecard.corpus.get("fingerprint", ""))
        facts.append(Fact(name=f"Corpus {shortened(name, 40)}", value=fingerprint, code=True))
        facts.append(Fact(name=f"Scorecard {shortened(name, 40)}", value=scorecard.content_hash, code=True))
    return facts

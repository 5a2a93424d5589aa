"""Sections about measured diversity: decisions, clusters, convergence, criteria, judges. Plain data in, headed text
out.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

from diversity_jax.core.formats import count, counted, estimate, significant
from diversity_jax.report.data import ACTIONS, Cluster, Convergence, CriteriaSet, Criterion, Decision, Grouping
from diversity_jax.report.figures import components, curves
from diversity_jax.report.html import Html, columns, element, joined, table
from diversity_jax.report.page import Section, figure, named
from diversity_jax.report.plotting import Drawing, render
from diversity_jax.report.style import Palette

_MARKS = {"reject": "hollow", "downweight": "half"}
_MEASURE = (
    "The effective number of clusters, the same measure at any grouping size, with its 95 % interval; an arrow says "
    "that only a lower "
    "bound is known."
)


def whiskers(name: str, rows: Sequence[components.Whisker], band: components.Band | None, palette: Palette) -> Drawing:
    """The estimates of several components on one axis."""
    alt = "; ".join(
        f"{one.name}: {estimate(one.interval)} effective clusters" + (f", {one.note}" if one.note else "")
        for one in rows
    )
    return render(name, alt, lambda width: components.whiskers(rows, band, palette, width))


def gate(decisions: Sequence[Decision], band: components.Band | None, palette: Palette, note: str = "") -> Section:
    """What the gate decided of each component, and from what; `band` is the reference, `note` a caveat about the
    judge.
    """
    marks = [
        components.Whisker(
            name=one.name,
            interval=one.effective_clusters,
            note=ACTIONS[one.action],
            mark=_MARKS.get(one.action, "full"),
            required=one.required,
        )
        for one in decisions
        if one.effective_clusters is not None
    ]
    drawings = (whiskers("gate", marks, band, palette),) if marks else ()
    caption = _MEASURE + " A hollow dot is a rejected component, a half-filled one a down-weighted one."
    if band is not None:
        caption += f" The grey band is the interval of {band.name}."
    if any(one.required for one in marks):
        caption += " The dashed line is where the policy asks the interval to lie above."
    rows = [
        (
            named(one.name, palette),
            one.kind,
            estimate(one.effective_clusters) if one.effective_clusters else "not scored",
            estimate(one.ratio) if one.ratio else "\u2013",
            element("span", ACTIONS[one.action], class_=f"verdict verdict-{one.action}"),
            one.reason,
        )
        for one in decisions
    ]
    titles = columns("Component", "Kind", "#Effective clusters", "#Ratio to reference", "Decision", "~Reason")
    intro = (
        "The gate compares intervals, never bare points. A component passes when all of its interval lies above what "
        "its policy asks "
        "for and fails when all of it lies below; in between nothing is decided, and it is taken with a warning."
    )
    body = joined(
        element("p", intro),
        element("p", note, class_="muted") if note else None,
        [figure(drawing, caption) for drawing in drawings],
        table(titles, rows),
    )
    return Section(anchor="gate", title="Gate decisions", body=body, drawings=drawings)


def scores(
    rows: Sequence[tuple[components.Whisker, Sequence[str]]], titles: Sequence[str], palette: Palette, note: str = ""
) -> Section:
    """The scores of several corpora: a figure of their effective clusters, and a table with the columns `titles` after
    the name.
    """
    marks = [mark for mark, _ in rows]
    drawing = whiskers("scores", marks, None, palette)
    body = joined(
        element("p", note, class_="muted") if note else None,
        figure(drawing, _MEASURE),
        table(columns("Corpus", *titles), [(named(mark.name, palette), *cells) for mark, cells in rows]),
    )
    return Section(anchor="scores", title="Scores", body=body, drawings=(drawing,))


def clusters(quantities: Sequence[components.Ridge], palette: Palette, explained: str) -> Section:
    """How many clusters the judge saw in a grouping, and how large they were; `explained` says what was counted."""
    alt = "; ".join(
        f"{quantity.title} of {found.name}: {significant(found.mean)} on average"
        for quantity in quantities
        for found in quantity.distributions
        if found.counts.sum()
    )
    drawing = render("clusters", alt, lambda width: components.ridges(quantities, palette, width))
    caption = "Height: share of what was counted. All rows of a column share one scale; the upright line is the mean."
    body = joined(element("p", explained), figure(drawing, caption))
    return Section(anchor="clusters", title="Clusters", body=body, drawings=(drawing,))


def examples(
    groupings: Mapping[str, Sequence[Grouping]], palette: Palette, asides: Mapping[str, str], opened: str | None = None
) -> Section:
    """What the judge put together, with its reasons; `asides` are shown at the right of each component's line."""
    blocks = [
        element(
            "details",
            element("summary", named(name, palette), element("span", asides.get(name, ""), class_="aside")),
            element("div", [_grouping(grouping) for grouping in shown], class_=f"inside {palette.slot(name)}"),
            open="" if name == opened else None,
        )
        for name, shown in groupings.items()
    ]
    intro = element(
        "p", "Groupings as the judge sorted them. Texts and reasons are quoted as they are, cut where they are long."
    )
    return Section(anchor="examples", title="Example clusters", body=joined(intro, blocks))


def _grouping(grouping: Grouping) -> Html:
    """Clusters of several samples one by one; samples that stand alone together at the end, since there are often
    many.
    """
    samples = sum(len(cluster.texts) for cluster in grouping.clusters)
    head = (
        f"Grouping {count(grouping.number)}: {counted(samples, 'sample')} in "
        f"{counted(len(grouping.clusters), 'cluster')}"
    )
    shared = [_cluster(cluster) for cluster in grouping.clusters if len(cluster.texts) > 1]
    alone = [cluster for cluster in grouping.clusters if len(cluster.texts) == 1]
    if alone:
        # A reason that several samples share ("unlike the others") says nothing about any of them.
        repeated = {reason for reason, times in Counter(one.reason for one in alone).items() if times > 1 or not reason}
        reasons = [
            None if one.reason in repeated else element("span", one.reason, class_="reason", dir="auto")
            for one in alone
        ]
        entries = [element("li", reason, _sample(one.texts[0])) for reason, one in zip(reasons, alone, strict=True)]
        title = f"{counted(len(alone), 'sample')} on {'its' if len(alone) == 1 else 'their'} own"
        shared.append(element("div", element("h4", title), element("ul", entries), class_="cluster alone"))
    return element("div", element("p", head), element("div", shared, class_="clusters"), class_="grouping")


def _cluster(cluster: Cluster) -> Html:
    title = counted(len(cluster.texts), "sample") + " together" + (", found invalid" if cluster.valid is False else "")
    return element(
        "div",
        element("h4", title),
        element("p", cluster.reason, class_="reason", dir="auto") if cluster.reason else None,
        element("p", f"Second look: {cluster.validation}", class_="reason check", dir="auto")
        if cluster.validation
        else None,
        element("ul", [element("li", _sample(sample)) for sample in cluster.texts]),
        class_="cluster invalid" if cluster.valid is False else "cluster",
    )


def _sample(sample: str) -> Html:
    return element("span", sample, class_="sample", dir="auto")


def convergence(runs: Sequence[Convergence], palette: Palette) -> Section:
    """The estimate as groupings come in."""
    alt = "; ".join(f"{run.name}: {count(run.groupings[-1])} groupings" for run in runs)
    drawing = render("convergence", alt, lambda width: curves.convergence(runs, palette, width))
    intro = (
        "How the estimate settled as groupings came in. A level that still drifts at the end would be a reason to "
        "doubt it."
    )
    caption = (
        "Effective clusters after so many groupings, with the 95 % interval, which holds the spread between criteria "
        "sets too. "
        "Dotted: a lower bound, where too few samples had been grouped together for an estimate."
    )
    return Section(
        anchor="convergence",
        title="Convergence",
        body=joined(element("p", intro), figure(drawing, caption)),
        drawings=(drawing,),
    )


def criteria(sets: Sequence[CriteriaSet], origin: str, hash_: str) -> Section:
    """By what the judge grouped: every criteria set with its attributes and scales."""
    blocks = [
        element(
            "details",
            element("summary", f"Criteria set {place}", element("span", ", ".join(one.names), class_="aside")),
            element("div", [_criterion(entry) for entry in one.entries], class_="inside"),
            open="" if place == 1 else None,
        )
        for place, one in enumerate(sets, 1)
    ]
    intro = joined(
        f"{counted(len(sets), 'independent criteria set')}, {origin}. Frozen before the first grouping, as ",
        element("code", hash_),
        ".",
    )
    return Section(anchor="criteria", title="Criteria", body=joined(element("p", intro), blocks))


def _criterion(entry: Criterion) -> Html:
    levels = element("ol", [element("li", level, dir="auto") for level in entry.levels]) if entry.levels else None
    return element(
        "div",
        element("h4", entry.name, element("span", f" {entry.kind}", class_="muted")),
        element("p", entry.definition, dir="auto") if entry.definition else None,
        element("p", entry.guidance, class_="muted", dir="auto") if entry.guidance else None,
        levels,
        class_="criterion",
    )

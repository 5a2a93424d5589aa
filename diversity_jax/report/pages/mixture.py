"""The page of a built mixture; its sections on gate and token shares are on the page of a training run too."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from diversity_jax.cluster_agent import Scorecard
from diversity_jax.core import formats
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import canonical_path, exists, join_path
from diversity_jax.core.formats import count, percent, significant
from diversity_jax.core.intervals import Estimate
from diversity_jax.core.run_info import Fact
from diversity_jax.mixtures.config import ACTION_TITLES
from diversity_jax.mixtures.mixture import Mixture, MixtureComponent
from diversity_jax.mixtures.replay import MixtureView, without_middle
from diversity_jax.mixtures.shares import train_rows
from diversity_jax.report import page
from diversity_jax.report.figures import diversity, outcomes
from diversity_jax.report.html import Html, HtmlTable, Palette, macro, named
from diversity_jax.report.page import Page, Section
from diversity_jax.report.pages import score
from diversity_jax.report.plotting import render

_FILL = {"reject": "none", "downweight": "left"}  # of a component's dot, by the gate's action
_REAL = "real text"  # the name shown for the pooled real components
_NAMED_IN_VERDICT = 2  # rejected, down-weighted or warned-of components that the headline names
_DASH = "\u2013"
_LENGTHS_DIFFER = (
    "Documents of other lengths than the reference's are compared at the words that both have: the figure draws their "
    "ratio times the reference's effective clusters."
)


@dataclass(frozen=True, kw_only=True)
class GateFigures:
    """The figures behind the gate's decision on a component.

    Attributes:
      effective_clusters: the component's.
      ratio: of these to the reference's.
      required: effective clusters that the interval had to lie above.
    """

    effective_clusters: Estimate | None
    ratio: Estimate | None
    required: float | None


def gate_figures(component: MixtureComponent, scorecards: Mapping[str, Scorecard]) -> GateFigures:
    """Reads a component's decision; a required ratio is multiplied by the reference's effective clusters.

    Raises:
      InputError: the decision lacks a field, or a figure is not an estimate.
    """
    decision = component.decision
    try:
        if decision["action"] not in ACTION_TITLES or not isinstance(decision["reason"], str):
            raise InputError(f"action is {decision['action']!r}; expected one of {', '.join(ACTION_TITLES)}")
        required = []
        for finding in decision.get("findings", ()):
            reference = finding["figure"].partition(":")[2]
            if not reference:
                required.append(finding["required"])
            elif reference in scorecards:
                required.append(finding["required"] * scorecards[reference].effective_clusters.value)
        clusters, ratio = (
            Estimate.from_json(decision[name], where=name) if decision.get(name) else None
            for name in ("effective_clusters", "ratio")
        )
        if clusters is not None and clusters.bounds[0] <= 0:
            raise InputError(f"effective_clusters.low is {clusters.low!r}; expected more than 0")
        return GateFigures(effective_clusters=clusters, ratio=ratio, required=max(required, default=None))
    except (InputError, KeyError, TypeError, AttributeError) as error:
        why = str(error) if isinstance(error, InputError) else repr(error)
        raise InputError(
            f"mixture.json: the decision on {component.name} cannot be read ({why}); build the mixture again"
        ) from None


def load_scorecards(mixture: Mixture) -> dict[str, Scorecard]:
    """The scorecards behind the decisions, by component; under `real` that of all real text, where it was a reference.

    Raises:
      InputError: a scorecard cannot be read, or its hash is not the decision's.
    """
    scorecards = {}
    for component in mixture.components:
        file = component.decision.get("scorecard")
        path = join_path(mixture.folder, file) if isinstance(file, str) else None
        if path is None or not exists(path):
            continue
        scorecards[component.name] = Scorecard.load(path)
        if scorecards[component.name].content_hash != component.decision.get("scorecard_hash"):
            raise InputError(
                f"{path}: is not the scorecard that the decision on {component.name} rests on; build the mixture again"
            )
    pooled = join_path(mixture.folder, "scorecards", "real.json")
    if exists(pooled) and any(component.decision.get("reference") == "real" for component in mixture.components):
        scorecards["real"] = Scorecard.load(pooled)
    return scorecards


def verdict(components: Sequence[MixtureComponent]) -> str:
    """How many components were registered, and which were rejected, down-weighted or warned of, with the reason."""
    taken = sum(component.decision["action"] != "reject" for component in components)
    clauses = [
        _clause(component, words)
        for action, words in (("reject", "rejected"), ("downweight", "down-weighted"), ("warn", "with a warning"))
        for component in components
        if component.decision["action"] == action
    ]
    if (others := len(clauses) - _NAMED_IN_VERDICT) > 0:
        clauses = [*clauses[:_NAMED_IN_VERDICT], f"{formats.counted(others, 'other')} not taken as they are"]
    return "; ".join([f"{taken} of {formats.counted(len(components), 'component')} registered", *clauses]) + "."


def _clause(component: MixtureComponent, words: str) -> str:
    """`words` says what the gate did with the component."""
    name, figures = formats.shortened(component.name, 40), gate_figures(component, {})
    if figures.effective_clusters is None:
        return f"{name} {words}: not scored"
    clause = f"{name} {words}: {formats.estimate(figures.effective_clusters, 'effective clusters')}"
    if figures.ratio is None:
        return clause
    reference = component.decision.get("reference") or "the reference"
    reference = _REAL if reference == "real" else formats.shortened(reference, 40)
    return f"{clause}, {significant(figures.ratio.value, 2)} of {reference}"


def gate_sections(mixture: Mixture, scorecards: Mapping[str, Scorecard], palette: Palette) -> list[Section]:
    """The gate's decisions, and the clusters and example groupings of the scored components."""
    shown = {_REAL if name == "real" else name: scorecard for name, scorecard in scorecards.items()}
    references = [component.decision.get("reference") for component in mixture.components]
    references = [_REAL if name == "real" else name for name in references]
    reference = next((name for name in references if name in shown), None)
    band = diversity.Whisker(name=reference, interval=shown[reference].effective_clusters) if reference else None
    sections = [_gate(mixture.components, scorecards, band, palette)]
    if not shown:
        why = "No scorecard lies beside the mixture, so the clusters behind the decisions cannot be shown."
        return [*sections, page.absent("clusters", "Clusters", why)]
    not_as_they_are = [
        component.name for component in mixture.components if component.decision["action"] in ("reject", "downweight")
    ]
    opened = next((name for name in not_as_they_are if name in shown), None)
    return [
        *sections,
        score.clusters(shown, palette, with_sizes=False),
        score.examples(shown, palette, most=2, opened=opened),
    ]


def _gate(
    components: Sequence[MixtureComponent],
    scorecards: Mapping[str, Scorecard],
    band: diversity.Whisker | None,
    palette: Palette,
) -> Section:
    """The gate's decision on each component, its reason and figures; `band` is the reference."""
    figures = {component.name: gate_figures(component, scorecards) for component in components}
    note = score.judge_note(scorecards.values()) if scorecards else ""
    whiskers = []
    for component in components:
        measured, action = figures[component.name], component.decision["action"]
        if measured.effective_clusters is not None:
            comparable = _at_the_references_length(component, measured, scorecards)
            if comparable is not None and _LENGTHS_DIFFER not in note:
                note = f"{note} {_LENGTHS_DIFFER}".strip()
            whisker = diversity.Whisker(
                name=component.name,
                interval=comparable or measured.effective_clusters,
                note=ACTION_TITLES[action],
                fill=_FILL.get(action, "full"),
                required=measured.required,
            )
            whiskers.append(whisker)
    return page.section(
        "mixture",
        "gate",
        "Gate decisions",
        components=components,
        figures=figures,
        actions=ACTION_TITLES,
        band=band,
        note=note,
        plot=score.whiskers_plot("gate", whiskers, band, palette) if whiskers else None,
        palette=palette,
    )


def _at_the_references_length(
    component: MixtureComponent, measured: GateFigures, scorecards: Mapping[str, Scorecard]
) -> Estimate | None:
    """The ratio times the reference's effective clusters, where a judge read the two corpora at different lengths."""
    scorecard, reference = (scorecards.get(str(name)) for name in (component.name, component.decision.get("reference")))
    if scorecard is None or reference is None or measured.ratio is None:
        return None
    if scorecard.reading_words == reference.reading_words:
        return None
    low, high = measured.ratio.bounds
    if low <= 0:
        return None
    clusters = reference.effective_clusters.value
    high_end = None if measured.ratio.high is None else clusters * high
    return Estimate(value=clusters * measured.ratio.value, low=clusters * low, high=high_end)


def shares_section(
    components: Sequence[MixtureComponent],
    realised: Mapping[str, float] | None,
    palette: Palette,
    intro: str,
    caption: str,
    prepared: HtmlTable,
    *,
    verb: str = "realised",
) -> Section:
    """Token shares as asked for, granted and realised.

    Args:
      realised: by component; None before training.
      prepared: documents, rows and tokens of each component.
      verb: the word for "realised" in the figure's description.
    """
    parts = []
    for component in components:
        part = f"{component.name}: asked {percent(float(component.share_asked))}, "
        part += f"granted {percent(float(component.share_granted))}"
        if realised is not None:
            part += f", {verb} {percent(realised.get(component.name, 0.0), 2)}"
        parts.append(part)
    plot = render("shares", "; ".join(parts), lambda width: outcomes.shares(components, realised, palette, width))
    title = "Token shares"
    return page.section("mixture", "shares", title, intro=intro, caption=caption, plot=plot, prepared=prepared)


def write(view: MixtureView, folder: Path) -> Path:
    """Writes `report.html` and `figures/` into `folder`; returns the page's path."""
    mixture = view.mixture
    palette = Palette([component.name for component in mixture.components])
    intro = (
        f"Shares count {mixture.unit}; rows are dealt by a fixed schedule. Over the first "
        f"{count(view.rows)} rows no component is further than {significant(view.deviation, 2)} rows from its share."
    )
    caption = f"Bars: rows dealt among the first {count(view.rows)}."
    prepared = _prepared(mixture, palette)
    return page.write(
        Page(
            kind="Mixture",
            name=mixture.name,
            verdict=verdict(mixture.components),
            lede=view.replay_summary.capitalize() + ".",
            key_figures=_key_figures(view),
            sections=(
                shares_section(mixture.as_asked, view.realised, palette, intro, caption, prepared, verb="dealt"),
                page.section(
                    "mixture", "rows", "Sample rows", view=view, without_middle=without_middle, palette=palette
                ),
                *gate_sections(mixture, load_scorecards(mixture), palette),
                page.facts(_facts(mixture)),
            ),
            footer="Written by diversity_jax from mixture.json, manifests, scorecards and rows.",
        ),
        folder,
    )


def _prepared(mixture: Mixture, palette: Palette) -> HtmlTable:
    """Documents, rows, tokens and epochs of each component that the gate let in."""
    total = train_rows(mixture.asked.get("train_tokens"), mixture.sequence_length)
    rows = []
    for component in mixture.taken:
        train = component.prepared.splits["train"]
        epochs = _DASH if total is None else significant(float(component.share_granted) * total / train.rows)
        amounts = count(train.documents), count(train.rows), formats.compact(train.tokens), epochs
        rows.append((named(component.name, palette), *amounts))
    return HtmlTable(("Component", "#Documents", "#Rows", "#Training tokens", "#Epochs"), rows)


def _key_figures(view: MixtureView) -> Html:
    trains = [component.prepared.splits["train"] for component in view.mixture.taken]
    synthetic = [component for component in view.mixture.as_asked if component.kind == "synthetic"]
    return macro(
        "mixture",
        "key_figures",
        view,
        tokens=sum(train.tokens for train in trains),
        rows=sum(train.rows for train in trains),
        granted=float(sum(component.share_granted for component in synthetic)),
        asked=float(sum(component.share_asked for component in synthetic)),
        unit=view.mixture.unit,
    )


def _facts(mixture: Mixture) -> list[Fact]:
    code = mixture.code.get("version", "unknown")
    facts = [
        Fact(name="Folder", value=canonical_path(mixture.folder), code=True),
        Fact(name="Mixture", value=mixture.content_hash, code=True),
        Fact(name="Code version", value=f"{code} {mixture.code.get('source_sha256', '')}".strip(), code=True),
        Fact(name="Vocabulary", value=mixture.vocabulary.hash, code=True),
        Fact(name="Seed", value=str(mixture.seed)),
    ]
    facts += [
        Fact(name=f"Manifest of {part.name}", value=part.prepared.content_hash, code=True) for part in mixture.taken
    ]
    hashes = {part.part_of or part.name: part.decision.get("scorecard_hash") for part in mixture.components}
    return facts + [
        Fact(name=f"Scorecard of {name}", value=value, code=True) for name, value in hashes.items() if value
    ]

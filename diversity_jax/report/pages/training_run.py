"""Sections about training: token shares, loss and speed. Plain data in, headed text with figures and tables out.

The page of a training run: what the gate decided, what was trained on, and how it went; composed from files of the
  run's folder.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
import os
from pathlib import Path
from typing import Any

import numpy as np

from diversity_jax.cluster_agent import Scorecard
from diversity_jax.core import formats
from diversity_jax.core.errors import InputError
from diversity_jax.core.formats import compact, count, counted, percent, significant
from diversity_jax.core.run_info import RunInfo
from diversity_jax.mixtures.mixture import Mixture, MixtureComponent
from diversity_jax.report import data, page
from diversity_jax.report.data import Curve, Prepared, Share
from diversity_jax.report.figures import components as figures
from diversity_jax.report.figures import curves
from diversity_jax.report.figures.components import Band
from diversity_jax.report.html import Html, columns, element, joined, table
from diversity_jax.report.page import Page, Section, figure, named
from diversity_jax.report.pages import diversity as diversity_sections
from diversity_jax.report.pages import score, training_run_speed, training_run_verdict
from diversity_jax.report.plotting import render
from diversity_jax.report.style import Palette
from diversity_jax.training import log as training_log
from diversity_jax.training.log import TrainingLog

_STEPS_SHOWN = 6  # of a prompt's samples


def shares(parts: Sequence[Share], prepared: Sequence[Prepared], palette: Palette, explained: str) -> Section:
    """Requested against realised token shares, and what was prepared of each component."""
    alt = "; ".join(
        f"{part.name}: asked {percent(part.asked)}, granted {percent(part.granted)}"
        + (f", realised {percent(part.realised, 2)}" if part.realised is not None else "")
        for part in parts
    )
    drawing = render("shares", alt, lambda width: figures.shares(parts, palette, width))
    trained = any(part.realised is not None for part in parts)
    caption = (
        "Bars: tokens trained on." if trained else "Bars: the share granted by the gate; nothing has been trained yet."
    ) + (" Upright mark: the share asked for before the gate.")
    rows = [
        (
            named(one.name, palette),
            count(one.documents),
            compact(one.tokens),
            compact(one.held_out_tokens),
            "\u2013" if one.passes is None else significant(one.passes),
        )
        for one in prepared
    ]
    titles = columns("Component", "#Documents", "#Training tokens", "#Held-out tokens", "#Passes made")
    body = joined(
        element("p", explained),
        figure(drawing, caption),
        [element("h3", "What was prepared"), table(titles, rows)] if rows else None,
    )
    return Section(anchor="shares", title="Token shares", body=body, drawings=(drawing,))


def losses(total: Curve | None, components: Sequence[Curve], palette: Palette, explained: str) -> Section:
    """Loss over steps, whole and per component."""
    lines = ([total] if total else []) + list(components)
    alt = "; ".join(
        f"{curve.name}: from {significant(curve.y[0])} to {significant(curve.y[-1])}" for curve in lines if len(curve.y)
    )
    drawing = render("loss", alt, lambda width: curves.losses(total, components, palette, width))
    caption = (
        "Cross-entropy in nats a token. Lines: training loss, smoothed over a fiftieth of the run on either "
        "side (pale: as it was)."
    )
    if any(len(curve.held_out_x) for curve in lines):
        caption += " Circles: held-out text."
    return Section(
        anchor="loss", title="Loss", body=joined(element("p", explained), figure(drawing, caption)), drawings=(drawing,)
    )


def speed(
    panels: Sequence[curves.Panel], explained: str, caption: str, single: Sequence[tuple[str, str, str]] = ()
) -> Section:
    """Throughput, time and utilisation over steps, and single figures: what it is, its value, and what it means."""
    alt = "; ".join(f"{panel.title} over {count(len(panel.curve.x))} log lines" for panel in panels)
    drawing = render("speed", alt, lambda width: curves.small_multiples(panels, width))
    body = joined(
        element("p", explained),
        figure(drawing, caption),
        [element("h3", "What the time went into"), table(columns("Figure", "#Value", "~Meaning"), single)]
        if single
        else None,
    )
    return Section(anchor="speed", title="Speed", body=body, drawings=(drawing,))


def samples(texts_of_prompt: Mapping[str, Mapping[int, str]]) -> Section:
    """What the model wrote after each prompt, step by step: the first, the last, and some between."""
    blocks = []
    for place, (prompt, texts) in enumerate(texts_of_prompt.items()):
        steps = _spread(list(texts), _STEPS_SHOWN)
        rows = [(f"step {count(step)}", _written(texts[step])) for step in steps]
        title = element("span", prompt, dir="auto") if prompt else "The start of a document"
        aside = element("span", counted(len(texts), "sample"), class_="aside")
        inside = element("div", table(columns("Step", "~Text"), rows), class_="inside")
        blocks.append(element("details", element("summary", title, aside), inside, open="" if place == 0 else None))
    intro = "The model was given the start of a text now and then, always the same, and went on from there."
    return Section(anchor="samples", title="What the model writes", body=joined(element("p", intro), blocks))


def _written(sample: str) -> Html:
    return element("span", sample if sample.strip() else "(nothing but white space)", class_="sample", dir="auto")


def _spread(steps: list[int], most: int) -> list[int]:
    """At most so many of the steps, evenly apart, the first and the last among them."""
    if len(steps) <= most:
        return steps
    return [steps[round(place * (len(steps) - 1) / (most - 1))] for place in range(most)]


_REAL = "real text"  # how the real components pooled are shown
_FOOTER = "Written by diversity_jax from mixture.json, scorecards and metrics.jsonl."


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run's folder holds; None or empty where it does not.

    Attributes:
      folder: the run's folder.
      mixture: what was trained on, with the gate's decisions.
      scorecards: what the decisions rest on, by component; `real` is the real components pooled.
      log: the figures training wrote.
      samples: what the model wrote, by prompt and step.
      summary: how fast the last sitting was, and what its time went into.
      record: command line, settings and versions.
    """

    folder: Path
    mixture: Mixture | None
    scorecards: Mapping[str, Scorecard]
    log: TrainingLog | None
    record: RunInfo | None
    samples: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    summary: Mapping[str, Any] | None = None

    @property
    def decisions(self) -> list[data.Decision]:
        """What the gate decided of each component."""
        return [_decision(component, self.scorecards) for component in self.mixture.components] if self.mixture else []

    @property
    def shares(self) -> list[data.Share]:
        """Token shares asked for, granted, and realised so far: rows read, since every row holds as many tokens."""
        realised = self._rows()
        total = sum(realised.values())
        return [
            data.Share(
                name=one.name,
                asked=float(one.share_asked),
                granted=float(one.share_granted),
                realised=realised.get(one.name, 0.0) / total if total else None,
            )
            for one in (self.mixture.components if self.mixture else ())
        ]

    @property
    def tokens(self) -> float:
        """Tokens trained on so far; 0 before training."""
        return sum(self._rows().values()) * self.mixture.sequence_length if self.mixture else 0.0

    def prepared(self) -> list[data.Prepared]:
        """What was prepared of each component that the gate took."""
        rows, found = self._rows(), []
        for one in self.mixture.taken if self.mixture else ():
            train, held_out = one.manifest.splits["train"], one.manifest.splits.get("validation")
            passes = rows[one.name] / train.rows if one.name in rows and train.rows else None
            tokens = {"tokens": train.tokens, "held_out_tokens": held_out.tokens if held_out else 0}
            documents = train.documents + (held_out.documents if held_out else 0)
            found.append(data.Prepared(name=one.name, documents=documents, passes=passes, **tokens))
        return found

    def _rows(self) -> dict[str, float]:
        """Rows read so far by component."""
        seen = {name: self.log.seen(f"rows/{name}")[1] for name in self.log.components("rows/")} if self.log else {}
        return {name: float(values[-1]) for name, values in seen.items() if len(values)}


def write(run_dir: str | os.PathLike, *, mixture_dir: str | os.PathLike | None = None) -> Path:
    """Writes the page of a run into its folder: `report.html`, and `figures/*.png`.

    Args:
      run_dir: folder with `metrics.jsonl` and `run.json`, each where it exists.
      mixture_dir: folder of `mixture.json` and `scorecards/`; by default `run_dir`, its subfolder `mixture`, or the
        prepared mixture that `run.json` names.

    Returns:
      The path of `report.html`.

    Raises:
      InputError: there is neither a mixture nor a log, or a file is broken; the message names it.
    """
    run = read(run_dir, mixture_dir=mixture_dir)
    return page.write(_compose(run), run.folder)


def read(run_dir: str | os.PathLike, *, mixture_dir: str | os.PathLike | None = None) -> Run:
    """Reads what there is of a run."""
    folder = Path(run_dir)
    record = RunInfo.load(folder / "run.json") if (folder / "run.json").exists() else None
    prepared = record.settings.get("prepared") if record else None
    candidates = [folder, folder / "mixture", *([Path(prepared)] if isinstance(prepared, str) else [])]
    candidates = [Path(mixture_dir)] if mixture_dir is not None else candidates
    found = [candidate for candidate in candidates if (candidate / "mixture.json").exists()]
    if mixture_dir is not None and not found:
        raise InputError(f"{mixture_dir}: holds no mixture.json; name the folder of a built mixture")
    log = folder / "metrics.jsonl"
    if not found and not log.exists():
        raise InputError(f"{folder}: holds neither mixture.json nor metrics.jsonl; name the folder of a run")
    mixture = Mixture.load(found[0]) if found else None
    return Run(
        folder=folder,
        mixture=mixture,
        scorecards=_scorecards(mixture) if mixture else {},
        log=training_log.read(log) if log.exists() else None,
        record=record,
        samples=training_log.read_samples(folder / "samples.jsonl"),
        summary=training_log.read_summary(folder / "summary.json"),
    )


def _scorecards(mixture: Mixture) -> dict[str, Scorecard]:
    """Scorecards the decisions rest on, in the order of components, and of the pooled real text where it was a
    reference.

    Raises:
      InputError: a scorecard is broken, or is not the one that was decided by.
    """
    cards = {}
    for component in mixture.components:
        wanted = component.decision.get("scorecard")
        path = mixture.folder / wanted if isinstance(wanted, str) else None
        if path is None or not path.exists():
            continue
        cards[component.name] = Scorecard.load(path)
        if cards[component.name].content_hash != component.decision.get("scorecard_hash"):
            raise InputError(
                f"{path}: is not the scorecard that the decision on {component.name} rests on; build the mixture again"
            )
    pooled = mixture.folder / "scorecards" / "real.json"
    if pooled.exists() and any(component.decision.get("reference") == "real" for component in mixture.components):
        cards["real"] = Scorecard.load(pooled)
    return cards


def _decision(component: MixtureComponent, scorecards: Mapping[str, Scorecard]) -> data.Decision:
    """A decision as pages take it; what was required of a ratio becomes effective clusters by way of the reference's
    score.
    """
    decision = component.decision
    try:
        required = []
        for finding in decision.get("findings", ()):
            reference = finding["figure"].partition(":")[2]
            if not reference:
                required.append(finding["required"])
            elif reference in scorecards:
                required.append(finding["required"] * scorecards[reference].effective_clusters.value)
        measured, ratio = decision.get("effective_clusters"), decision.get("ratio")
        return data.Decision(
            name=component.name,
            kind=component.kind,
            action=decision["action"],
            reason=decision["reason"],
            effective_clusters=score.interval(measured) if measured else None,
            ratio=score.interval(ratio) if ratio else None,
            reference=decision.get("reference"),
            required=max(required, default=None),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"mixture.json: the decision on {component.name} cannot be read ({error!r}); build the mixture again"
        ) from None


def _compose(run: Run) -> Page:
    names = [component.name for component in run.mixture.components] if run.mixture else run.log.components("loss/")
    palette = Palette(names)
    name = run.mixture.name if run.mixture else run.folder.resolve().name
    return Page(
        kind="Training run" if run.log else "Mixture",
        name=name,
        verdict=training_run_verdict.verdict(run.decisions, run.log),
        lede=training_run_verdict.lede(run.decisions, run.shares, run.log, run.tokens),
        key_figures=training_run_verdict.key_figures(run.decisions, run.log, run.tokens),
        sections=(
            *diversity(run, palette),
            _shares(run, palette),
            _loss(run, palette),
            *([samples(run.samples)] if run.samples else []),
            training_run_speed.section(run.log, run.summary),
            _facts(run),
        ),
        footer=_FOOTER,
    )


def diversity(run: Run, palette: Palette) -> list[Section]:
    """Decisions, and of the components that were scored their clusters and examples."""
    if not run.mixture:
        return [
            page.absent(
                "gate",
                "Gate decisions",
                "There is no mixture.json in the run's folder, so nothing is known of the gate.",
            )
        ]
    decisions = run.decisions
    cards = {_REAL if name == "real" else name: card for name, card in run.scorecards.items()}
    wanted = [
        _REAL if decision.reference == "real" else decision.reference for decision in decisions if decision.reference
    ]
    band = next(
        (Band(name=name, interval=score.interval(cards[name].effective_clusters)) for name in wanted if name in cards),
        None,
    )
    note = score.judge_note(run.scorecards.values()) if run.scorecards else ""
    sections = [diversity_sections.gate(decisions, band, palette, note)]
    if not cards:
        why = "No scorecard lies beside the mixture, so the clusters behind the decisions cannot be shown."
        return [*sections, page.absent("clusters", "Clusters", why)]
    rejected = [
        decision.name
        for decision in decisions
        if decision.action in ("reject", "downweight") and decision.name in cards
    ]
    opened = rejected[0] if rejected else None
    return [
        *sections,
        score.clusters(cards, palette, with_sizes=False),
        score.examples(cards, palette, most=2, opened=opened),
    ]


def _shares(run: Run, palette: Palette) -> Section:
    if not run.mixture:
        return page.absent(
            "shares", "Token shares", "There is no mixture.json in the run's folder, so no shares were asked for."
        )
    explained = (
        "Shares count tokens, not documents: every row of a batch is full, and rows are dealt by a fixed schedule."
    )
    return shares(run.shares, run.prepared(), palette, explained)


def _loss(run: Run, palette: Palette) -> Section:
    log = run.log
    if log is None or not len(log.seen("loss")[0]):
        return page.absent("loss", "Loss", "Nothing has been trained yet: there is no metrics.jsonl with a loss.")
    total = _curve(log, "All components", "loss", "eval/loss")
    parts = [_curve(log, name, f"loss/{name}", f"eval/{name}/loss") for name in log.components("loss/")]
    parts = [curve for curve in parts if len(curve.x)]
    explained = training_run_verdict.loss_sentence(log)
    skipped = int(log.seen("skipped")[1].sum())
    if skipped:
        were = "update was" if skipped == 1 else "updates were"
        explained += f" {formats.count(skipped)} {were} skipped because loss or gradient was not finite."
    return losses(total, parts, palette, explained)


def _curve(log: TrainingLog, name: str, trained: str, held_out: str) -> data.Curve:
    (x, y), (held_out_x, held_out_y) = log.seen(trained), log.seen(held_out)
    return data.Curve(name=name, x=x, y=y, held_out_x=held_out_x, held_out_y=held_out_y)


def _facts(run: Run) -> Section:
    facts: list[data.Fact] = []
    if run.record:
        facts += run.record.facts()
    if run.mixture:
        vocabulary = run.mixture.vocabulary
        facts += [
            data.Fact(name="Mixture", value=run.mixture.content_hash, code=True),
            data.Fact(
                name="Rows",
                value=f"{formats.count(run.mixture.sequence_length)} tokens to predict, seed {run.mixture.seed}",
            ),
            data.Fact(name="Vocabulary", value=f"{vocabulary.kind}, {formats.count(vocabulary.size)} ids"),
            data.Fact(name="Vocabulary hash", value=vocabulary.hash, code=True),
        ]
    facts += _judge_facts(run.scorecards)
    for component in run.mixture.taken if run.mixture else ():
        facts.append(data.Fact(name=f"Rows of {component.name}", value=component.manifest.content_hash, code=True))
    for name, card in run.scorecards.items():
        facts.append(data.Fact(name=f"Scorecard of {name}", value=card.content_hash, code=True))
    memory = run.log.seen("device_memory_bytes")[1] if run.log else np.zeros(0)
    if len(memory):
        facts.insert(
            2 if run.record else 0,
            data.Fact(name="Device memory", value=f"{training_run_speed.gibibytes(float(memory.max()))} at most"),
        )
    return page.facts(
        facts,
        intro=""
        if run.record
        else "The run's folder holds no run.json, so its command line and versions are not known.",
    )


def _judge_facts(cards: Mapping[str, Scorecard]) -> Sequence[data.Fact]:
    if not cards:
        return []
    return [
        data.Fact(name="Judge", value=formats.listed(sorted({card.judge for card in cards.values()}))),
        data.Fact(
            name="Prompt version",
            value=formats.listed(sorted({card.prompt_version for card in cards.values()})),
            code=True,
        ),
        data.Fact(name="Criteria", value="\n".join(sorted({card.criteria_hash for card in cards.values()})), code=True),
        data.Fact(
            name="Seed of the scores",
            value=formats.listed(sorted({formats.count(card.seed) for card in cards.values()})),
        ),
    ]

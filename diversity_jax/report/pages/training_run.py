"""The page of a training run, from the files in its folder: the gate's decisions, token shares, losses, speed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
import os
from pathlib import Path
from typing import Any

import numpy as np

from diversity_jax.cluster_agent import Scorecard
from diversity_jax.core import formats
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import exists, join_path
from diversity_jax.core.formats import count, counted, duration, percent, significant
from diversity_jax.core.run_info import Fact, RunInfo, folders_read
from diversity_jax.mixtures.mixture import Mixture
from diversity_jax.report import page
from diversity_jax.report.figures import outcomes
from diversity_jax.report.html import Html, HtmlTable, Palette, macro, named
from diversity_jax.report.page import Page, Section
from diversity_jax.report.pages import mixture as mixture_page
from diversity_jax.report.pages import score
from diversity_jax.report.plotting import render
from diversity_jax.training import log as training_log
from diversity_jax.training.log import TrainingLog

_STEPS_SHOWN = 6  # at which samples of a prompt are shown
_COMPILING = 3.0  # times the median step: a first log window slower than that holds the compilation
_FOOTER = "Written by diversity_jax from mixture.json, scorecards and metrics.jsonl."
_PANELS = (
    ("Tokens a second", "tokens_per_second", formats.compact),
    ("Time of a step", "step_seconds", duration),
    ("Waiting for input", "input wait", percent),
    ("MFU", "mfu", percent),
)


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """The content of a training run's folder; None or empty where a file is not there.

    Attributes:
      folder: its path.
      mixture: what was trained on, with the gate's decisions.
      scorecards: behind the decisions, by component; `real` is that of all real components pooled.
      log: `metrics.jsonl`, the figures of training.
      info: `run.json`: command line, settings and versions.
      samples: `samples.jsonl`: texts that the model wrote, by prompt and step.
      summary: `summary.json`: speed and use of time since training was last started.
    """

    folder: Path
    mixture: Mixture | None
    scorecards: Mapping[str, Scorecard]
    log: TrainingLog | None
    info: RunInfo | None
    samples: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    summary: Mapping[str, Any] | None = None

    @property
    def rows(self) -> dict[str, float]:
        """Rows read so far by component."""
        if self.log is None:
            return {}
        columns = {name: self.log.seen(f"rows/{name}")[1] for name in self.log.components("rows/")}
        return {name: float(values[-1]) for name, values in columns.items() if len(values)}

    @property
    def realised(self) -> dict[str, float] | None:
        """Shares so far, counted as they were asked for; None before training."""
        rows = self.rows
        if not any(rows.values()):
            return None
        return self.mixture.counted_shares(rows) if self.mixture else None

    @property
    def tokens(self) -> float:
        """Tokens trained on so far; 0 before training."""
        return sum(self.rows.values()) * self.mixture.sequence_length if self.mixture else 0.0


def write(run_dir: str | os.PathLike, *, mixture_dir: str | os.PathLike | None = None) -> Path:
    """Writes `report.html` and `figures/` into a run's folder.

    Args:
      run_dir: the run's folder, with those of the files that exist.
      mixture_dir: folder of `mixture.json` and `scorecards/`; by default `run_dir`, its subfolder `mixture`, or the
        prepared mixture that `run.json` names.

    Returns:
      The path of `report.html`.

    Raises:
      InputError: there is neither a mixture nor a log, or a file cannot be read; the message names it.
    """
    run = read(run_dir, mixture_dir=mixture_dir)
    mixture, log = run.mixture, run.log
    if mixture:
        palette = Palette([component.name for component in mixture.components])
        headline = mixture_page.verdict(mixture.components)
        gate = mixture_page.gate_sections(mixture, run.scorecards, palette)
    else:
        palette = Palette(log.components("loss/") if log else [])
        headline = loss_sentence(log) if log else "Nothing is known of this run yet."
        why = "There is no mixture.json in the run's folder, so nothing is known of the gate."
        gate = [page.absent("gate", "Gate decisions", why)]
    composed = Page(
        kind="Training run" if log else "Mixture",
        name=mixture.name if mixture else run.folder.resolve().name,
        verdict=headline,
        lede=_lede(run),
        key_figures=_key_figures(run),
        sections=(
            *gate,
            _shares(run, palette),
            _loss(log, palette),
            *_samples(run.samples),
            _speed(log, run.summary),
            _facts(run),
        ),
        footer=_FOOTER,
    )
    return page.write(composed, run.folder)


def read(run_dir: str | os.PathLike, *, mixture_dir: str | os.PathLike | None = None) -> RunFolder:
    """Reads a run's folder; arguments and errors as for `write`."""
    folder = Path(run_dir)
    info = RunInfo.load(folder / "run.json") if (folder / "run.json").exists() else None
    prepared = info.settings.get("prepared") if info else None
    candidates: list[str | os.PathLike] = [
        folder,
        folder / "mixture",
        *(folders_read(folder, info.settings, prepared) if info and isinstance(prepared, str) else []),
    ]
    if mixture_dir is not None:
        candidates = [mixture_dir]
    mixture_folder = next((path for path in candidates if exists(join_path(path, "mixture.json"))), None)
    if mixture_dir is not None and mixture_folder is None:
        raise InputError(f"{mixture_dir}: holds no mixture.json; name the folder of a built mixture")
    log = folder / "metrics.jsonl"
    if mixture_folder is None and not log.exists():
        raise InputError(f"{folder}: holds neither mixture.json nor metrics.jsonl; name the folder of a run")
    mixture = Mixture.load(os.fspath(mixture_folder)) if mixture_folder else None
    return RunFolder(
        folder=folder,
        mixture=mixture,
        scorecards=mixture_page.load_scorecards(mixture) if mixture else {},
        log=training_log.read(log) if log.exists() else None,
        info=info,
        samples=training_log.read_samples(folder / "samples.jsonl"),
        summary=training_log.read_summary(folder / "summary.json"),
    )


def loss_sentence(log: TrainingLog) -> str:
    """First and last loss in words: the held-out loss where it was measured, otherwise the training loss."""
    for column, what in (("eval/loss", "Held-out loss"), ("loss", "Training loss")):
        steps, values = log.seen(column)
        if len(values) > 1:
            over = counted(int(steps[-1] - steps[0]), "step")
            digits = 2 if abs(values[-1] - values[0]) >= 0.02 else 4
            first, last = f"{values[0]:.{digits}f}", f"{values[-1]:.{digits}f}"
            if first == last:
                return f"{what} stayed at {first} nats a token over {over}."
            way = "fell" if values[-1] < values[0] else "rose"
            return f"{what} {way} from {first} to {last} nats a token over {over}."
        if len(values) == 1:
            return f"{what} is {values[0]:.2f} nats a token at step {count(steps[0])}."
    return "No loss has been written yet."


def _lede(run: RunFolder) -> str:
    """Loss, tokens, and the largest difference between realised and granted shares, in words."""
    if run.log is None:
        return "Nothing has been trained on it yet."
    sentences = [loss_sentence(run.log)] if run.mixture else []
    if run.tokens:
        sentences.append(f"{formats.compact(run.tokens, 'tokens')} were trained on.")
    realised = run.realised
    if run.mixture and realised is not None:
        off = [abs(realised.get(part.name, 0.0) - float(part.share_granted)) for part in run.mixture.as_asked]
        points = significant(max(0.01, 100 * max(off)), 2)
        sentences.append(
            f"Every component's share of them lies within {points} percentage points of what the gate granted."
        )
    return " ".join(sentences)


def _key_figures(run: RunFolder) -> Html:
    actions = [part.decision["action"] for part in run.mixture.components] if run.mixture else []
    log = run.log or TrainingLog(steps=np.zeros(0), columns={})
    losses = {label: log.seen(column) for label, column in (("Held-out loss", "eval/loss"), ("Training loss", "loss"))}
    medians = (log.seen(name)[1] for name in ("tokens_per_second", "mfu"))
    speed, mfu = (float(np.median(values)) if len(values) else None for values in medians)
    return macro(
        "training_run",
        "key_figures",
        actions=actions,
        loss=next(((label, *loss) for label, loss in losses.items() if len(loss[0])), None),
        tokens=run.tokens if run.log else 0,
        steps=int(log.steps[-1]) if len(log.steps) else 0,
        speed=speed,
        mfu=mfu,
    )


def _shares(run: RunFolder, palette: Palette) -> Section:
    """Requested against realised token shares, and what was prepared of each component that the gate took."""
    if not run.mixture:
        why = "There is no mixture.json in the run's folder, so no shares were asked for."
        return page.absent("shares", "Token shares", why)
    rows, read_rows = [], run.rows
    for component in run.mixture.taken:
        splits = component.prepared.splits
        train, held_out = splits["train"], splits.get("validation")
        passes = read_rows[component.name] / train.rows if component.name in read_rows and train.rows else None
        rows.append(
            (
                named(component.name, palette),
                count(train.documents + (held_out.documents if held_out else 0)),
                formats.compact(train.tokens),
                formats.compact(held_out.tokens if held_out else 0),
                "\u2013" if passes is None else significant(passes),
            )
        )
    titles = ("Component", "#Documents", "#Training tokens", "#Held-out tokens", "#Passes made")
    intro = f"Shares count {run.mixture.unit}; rows are dealt by a fixed schedule."
    granted = "Bars: the share granted by the gate; nothing has been trained yet."
    caption = granted if run.realised is None else "Bars: tokens trained on."
    prepared = HtmlTable(titles, rows)
    return mixture_page.shares_section(run.mixture.as_asked, run.realised, palette, intro, caption, prepared)


def _loss(log: TrainingLog | None, palette: Palette) -> Section:
    """Loss over steps, of all components together and of each."""
    if log is None or not len(log.seen("loss")[0]):
        return page.absent("loss", "Loss", "Nothing has been trained yet: there is no metrics.jsonl with a loss.")
    components = [name for name in log.components("loss/") if len(log.seen(f"loss/{name}")[0])]
    intro = loss_sentence(log)
    if skipped := int(log.seen("skipped")[1].sum()):
        were = "update was" if skipped == 1 else "updates were"
        intro += f" {count(skipped)} {were} skipped because loss or gradient was not finite."
    curves = {"All components": log.seen("loss")[1]} | {name: log.seen(f"loss/{name}")[1] for name in components}
    alt = "; ".join(f"{name}: from {significant(y[0])} to {significant(y[-1])}" for name, y in curves.items())
    held_out = any(len(log.seen(column)[0]) for column in ("eval/loss", *(f"eval/{name}/loss" for name in components)))
    plot = render("loss", alt, lambda width: outcomes.losses(log, components, palette, width))
    return page.section("training_run", "loss", "Loss", intro=intro, plot=plot, held_out=held_out)


def _samples(texts_of_prompt: Mapping[str, Mapping[int, str]]) -> list[Section]:
    """The model's texts for each prompt at several steps; empty where no samples were written."""
    if not texts_of_prompt:
        return []
    title = "What the model writes"
    return [page.section("training_run", "samples", title, texts_of_prompt=texts_of_prompt, shown_steps=_shown_steps)]


def _shown_steps(texts: Mapping[int, str]) -> list[int]:
    """At most `_STEPS_SHOWN` of the steps at which a prompt was continued, evenly spread from the first to the last."""
    steps = list(texts)
    if len(steps) <= _STEPS_SHOWN:
        return steps
    return [steps[index] for index in np.linspace(0, len(steps) - 1, _STEPS_SHOWN).round().astype(int)]


def _speed(log: TrainingLog | None, summary: Mapping[str, Any] | None) -> Section:
    """Speed over steps, and what the time was used for."""
    if log is None or not len(log.seen("step_seconds")[0]):
        why = "Nothing has been timed yet: there is no metrics.jsonl with step times."
        return page.absent("speed", "Speed", why)
    steps, seconds = log.seen("step_seconds")
    compiling = len(steps) > 2 and seconds[0] > _COMPILING * np.median(seconds)
    start = steps[0] if compiling else 0.0
    wait = log.columns.get("input_wait_seconds", np.full(len(log.steps), np.nan)) / log.columns["step_seconds"]
    derived = TrainingLog(steps=log.steps, columns={**log.columns, "input wait": wait})
    panels = []
    for title, column, form in _PANELS:
        steps, values = derived.seen(column)
        if (later := steps > start).any():
            panels.append(outcomes.Panel(title=title, steps=steps[later], values=values[later], form=form))
    alt = "; ".join(f"{panel.title} over {count(len(panel.steps))} log lines" for panel in panels)
    return page.section(
        "training_run",
        "speed",
        "Speed",
        intro=_speed_sentence(log, start),
        plot=render("speed", alt, lambda width: outcomes.small_multiples(panels, width)),
        compiling_seconds=seconds[0] if compiling else None,
        mfu="mfu" in log.columns,
        summary=summary,
    )


def _speed_sentence(log: TrainingLog, start: float) -> str:
    """Median step time, tokens a second and MFU over the log lines after step `start`, in words."""
    medians = {}
    for column in ("tokens_per_second", "step_seconds", "mfu", "mfu_causal"):
        steps, values = log.seen(column)
        if (steps > start).any():
            medians[column] = float(np.median(values[steps > start]))
    text = f"A step took {duration(medians['step_seconds'])} in the median"
    if "tokens_per_second" in medians:
        text += f", {formats.compact(medians['tokens_per_second'], 'tokens')} a second"
    text += "."
    if "mfu" in medians and "mfu_causal" in medians:
        causal = f"{percent(medians['mfu_causal'])} where only causal pairs are counted"
        text += f" MFU {percent(medians['mfu'])}; {causal}."
    return text


def _facts(run: RunFolder) -> Section:
    facts = run.info.facts() if run.info else []
    memory = run.log.seen("device_memory_bytes")[1] if run.log else np.zeros(0)
    if len(memory):
        at_most = f"{memory.max() / (1 << 30):.2f} GiB at most"
        facts.insert(2 if run.info else 0, Fact(name="Device memory", value=at_most))
    taken: Sequence = ()
    if run.mixture:
        vocabulary, taken = run.mixture.vocabulary, run.mixture.taken
        rows = f"{count(run.mixture.sequence_length)} tokens to predict, seed {run.mixture.seed}"
        facts += [
            Fact(name="Mixture", value=run.mixture.content_hash, code=True),
            Fact(name="Rows", value=rows),
            Fact(name="Vocabulary", value=f"{vocabulary.kind}, {count(vocabulary.size)} ids"),
            Fact(name="Vocabulary hash", value=vocabulary.hash, code=True),
        ]
    if run.scorecards:
        *judge, seeds = score.judge_facts(run.scorecards, "Prompt version", "Seed of the scores")
        criteria = "\n".join(sorted({scorecard.criteria_hash for scorecard in run.scorecards.values()}))
        facts += [*judge, Fact(name="Criteria", value=criteria, code=True), seeds]
    facts += [Fact(name=f"Rows of {part.name}", value=part.prepared.content_hash, code=True) for part in taken]
    facts += [
        Fact(name=f"Scorecard of {name}", value=scorecard.content_hash, code=True)
        for name, scorecard in run.scorecards.items()
    ]
    missing = "The run's folder holds no run.json, so its command line and versions are not known."
    return page.facts(facts, intro="" if run.info else missing)

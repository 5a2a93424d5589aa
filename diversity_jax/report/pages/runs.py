"""The page over all runs of a folder: a list of them, losses on common axes, scores by judge, evaluations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from diversity_jax.cluster_agent import Scorecard
from diversity_jax.core import formats
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import read_json
from diversity_jax.core.formats import counted, listed, significant
from diversity_jax.report import page
from diversity_jax.report.figures import diversity
from diversity_jax.report.html import Html, Palette, html
from diversity_jax.report.page import Page, Section
from diversity_jax.report.pages.evaluation import points
from diversity_jax.report.plotting import (
    Canvas,
    Plot,
    end_labels,
    for_phone,
    label_px,
    limits,
    render,
    resampled,
    set_ticks,
)
from diversity_jax.training import log as training_log

Curve = tuple[np.ndarray, np.ndarray]


def overlaid(curves: Mapping[str, Curve], what: str, palette: Palette, width: int) -> Canvas:
    """Losses of several runs over their steps, a curve each, with its name at its end.

    Args:
      curves: by run, steps [n] and values [n], n at least 1.
      what: the quantity, written above the axes.
    """
    phone = for_phone(width)
    left, head, height, right = 46, 34, 250 if phone else 320, label_px(list(curves))
    canvas = Canvas(width, head + height + 46)
    canvas.text(0, 10, what, bold=True)
    low, high = limits(np.concatenate([values for _, values in curves.values()]))
    last = max(float(steps.max()) for steps, _ in curves.values()) or 1.0
    axes = canvas.axes(left, head, width - left - right, height, ylim=(low, high))
    axes.set_xlim(0, last)
    set_ticks(axes.xaxis, 4, lambda tick: "step 0" if tick == 0 else f"{tick:,.0f}")
    set_ticks(axes.yaxis, 5, significant, ruled=True)
    ends = {}
    for name, (steps, values) in curves.items():
        x, y = resampled(steps, values, 400)
        axes.plot(x, y, color=palette.colour(name), linewidth=2, linestyle=palette.dash(name),
                  marker="o" if len(x) < 12 else None, markersize=4)  # fmt: skip
        ends[name] = head + height * (high - float(y[np.isfinite(y)][-1])) / (high - low)
    end_labels(canvas, width - right + 9, ends, (head, head + height - 12), palette)
    return canvas


_FOOTER = "Written by diversity-jax report from the files of the runs; write it again to bring it up to date."
_LOSSES = (("eval/loss", "Held-out loss"), ("loss", "Training loss"))
_MOST_CURVES = 18  # colours and dashes that can be told apart
_SKIPPED = {"steps", "checkpoints", "components", "profile", "tensorboard", "wandb", "mlflow", "samples", "requests"}
"""Folders in which no run is looked for; the runs in a study's `steps` are on the study's page."""
_DASH = "\u2013"


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """What the files in a run's folder say of it.

    Attributes:
      name: the folder's path relative to the folder of all runs.
      kinds: what it holds: some of `training`, `scores`, `evaluation` and `mixture`, or `other`.
      page: path of its `report.html` relative to the folder of all runs; None where it has none.
      changed: when one of its files was last written, in seconds since the epoch.
      steps: number of the last step trained.
      losses: steps and values, by column of `_LOSSES`.
      scores: scorecards by corpus or component.
      results: the `results.json` of an evaluation.
      problem: why one of its files could not be read; empty where all could.
    """

    name: str
    kinds: Sequence[str]
    page: str | None
    changed: float
    steps: int = 0
    losses: Mapping[str, Curve] = field(default_factory=dict)
    scores: Mapping[str, Scorecard] = field(default_factory=dict)
    results: Mapping[str, Any] | None = None
    problem: str = ""

    @property
    def link(self) -> Html:
        """Its name, linked to its page."""
        if self.page is None:
            return html("{}", self.name)
        return html('<a href="{}">{}</a>', quote(self.page), self.name)


def read(folder: str | os.PathLike) -> list[RunSummary]:
    """All runs below a folder, the latest first, including those with a file that cannot be read.

    Raises:
      InputError: there is no such folder, or no run in it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"{folder}: no such folder; name the one that holds runs, such as runs/")
    runs = []
    for inside, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED and not name.startswith("."))
        path = Path(inside)
        if kinds := _kinds(path, set(names) | set(folders)):
            folders[:] = [name for name in folders if name not in ("mixture", "scorecards", "figures")]
            runs.append(_summary(path, root, kinds))
    if not runs:
        raise InputError(f"{folder}: holds no run; name the output_dir of a run, or the folder of several")
    return sorted(runs, key=lambda run: run.changed, reverse=True)


def _kinds(folder: Path, names: set[str]) -> list[str]:
    """What the names in a folder show it to hold; empty where it is no run's."""
    markers = {
        "training": "metrics.jsonl" in names,
        "scores": bool({"scorecard.json", "scorecards"} & names) or (folder / "mixture" / "scorecards").is_dir(),
        "evaluation": "results.json" in names,
        "mixture": "mixture.json" in names,
        "page": {"run.json", "report.html"} <= names,
    }
    return [kind for kind, exists in markers.items() if exists]


def _summary(folder: Path, root: Path, kinds: Sequence[str]) -> RunSummary:
    report = folder / "report.html"
    values: dict[str, Any] = {
        "name": folder.relative_to(root).as_posix() if folder != root else folder.resolve().name,
        "kinds": [kind for kind in kinds if kind != "page"] or ["other"],
        "page": report.relative_to(root).as_posix() if report.exists() else None,
        "changed": max(
            path.stat().st_mtime for path in folder.iterdir() if path.is_file() or path == folder / "mixture"
        ),
    }
    try:
        if "training" in kinds:
            log = training_log.read(folder / "metrics.jsonl")
            seen = {column: log.seen(column) for column, _ in _LOSSES}
            losses = {column: curve for column, curve in seen.items() if len(curve[0])}
            values |= {"losses": losses, "steps": int(log.steps[-1]) if len(log.steps) else 0}
        if "scores" in kinds:
            values["scores"] = {path.stem: Scorecard.load(path) for path in _scorecards(folder)}
        if "evaluation" in kinds:
            values["results"] = _results(folder / "results.json")
    except InputError as error:
        values["problem"] = str(error)
    return RunSummary(**values)


def _scorecards(folder: Path) -> list[Path]:
    paths = [*(folder / "scorecards").glob("*.json"), *(folder / "mixture" / "scorecards").glob("*.json")]
    return sorted(paths) or [path for path in [folder / "scorecard.json"] if path.exists()]


def _results(path: Path) -> Mapping[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict) or not {"tasks", "average", "held_out", "model"} <= set(value):
        raise InputError(f"{path}: is not an evaluation of this version; run that evaluation again")
    return value


def write(folder: str | os.PathLike) -> Path:
    """Writes `index.html` into the folder of all runs.

    Returns:
      Its path.

    Raises:
      InputError: as `read`.
    """
    runs = read(folder)
    composed = Page(
        kind="Runs in",
        name=Path(folder).resolve().name,
        verdict=_verdict(runs),
        lede=_lede(runs),
        sections=(
            page.section("runs", "runs", "Runs", runs=runs, loss_of=_loss_of),
            _losses(runs),
            _scores(runs),
            _evaluations(runs),
        ),
        footer=_FOOTER,
    )
    return page.write(composed, folder, name="index.html", figures=False)


def _verdict(runs: Sequence[RunSummary]) -> str:
    kinds = {"training": "training run", "scores": "scoring", "evaluation": "evaluation"}
    numbers = {kind: sum(kind in run.kinds for run in runs) for kind in kinds}
    parts = [counted(number, kinds[kind]) for kind, number in numbers.items() if number]
    return f"{counted(len(runs), 'run')}: {listed(parts)}." if parts else f"{counted(len(runs), 'run')}."


def _lede(runs: Sequence[RunSummary]) -> str:
    best = min(
        ((float(curve[1][-1]), run.name) for run in runs if (curve := run.losses.get("eval/loss"))), default=None
    )
    if best is None:
        return ""
    return f"The lowest held-out loss at the end is {best[0]:.3f} nats a token, of {best[1]}."


def _loss_of(run: RunSummary) -> str:
    """A run's first and last held-out loss, or training loss where none was held out."""
    for column, _ in _LOSSES:
        if curve := run.losses.get(column):
            values = curve[1]
            return f"{values[0]:.3f} to {values[-1]:.3f}" if len(values) > 1 else f"{values[0]:.3f}"
    return _DASH


def _losses(runs: Sequence[RunSummary]) -> Section:
    plots, left_out = [], 0
    for column, what in _LOSSES:
        curves = {run.name: run.losses[column] for run in runs if column in run.losses}
        left_out = max(left_out, len(curves) - _MOST_CURVES)
        curves = dict(list(curves.items())[:_MOST_CURVES])
        if curves:
            plots.append(_overlaid(column, what, curves))
    if not plots:
        return page.absent("losses", "Losses", "No run in this folder has trained anything yet.")
    return page.section("runs", "losses", "Losses", plots=plots, left_out=max(left_out, 0))


def _overlaid(column: str, what: str, curves: Mapping[str, Curve]) -> Plot:
    palette, title = Palette(list(curves)), f"{what}, nats a token"
    alt = f"{title}: " + "; ".join(f"{name} ends at {curve[1][-1]:.3f}" for name, curve in curves.items())
    return render(column.replace("/", "-"), alt, lambda width: overlaid(curves, title, palette, width))


def _scores(runs: Sequence[RunSummary]) -> Section:
    """Effective clusters of all corpora, a figure for each judge: scores of different judges are not comparable."""
    judges: dict[str, dict[str, diversity.Whisker]] = {}
    for run in runs:
        for name, scorecard in run.scores.items():
            is_only = name == "scorecard" or len(run.scores) == 1
            row = diversity.Whisker(
                name=run.name if is_only else f"{run.name}: {name}",
                interval=scorecard.effective_clusters,
                note=formats.counted(scorecard.groupings, "grouping"),
            )
            judges.setdefault(scorecard.judge, {})[row.name] = row
    if not judges:
        return page.absent("scores", "Scores", "No corpus was scored in this folder.")
    plots = [_whiskers(f"scores-{number}", rows) for number, rows in enumerate(judges.values())]
    return page.section("runs", "scores", "Scores", plots=plots, judges=list(judges))


def _whiskers(name: str, rows: Mapping[str, diversity.Whisker]) -> Plot:
    palette = Palette([row.split(": ")[0] for row in rows] if len(rows) < 2 else list(rows))
    alt = "Effective clusters: " + "; ".join(f"{row.name} {row.interval.value or 0:.3g}" for row in rows.values())
    return render(name, alt, lambda width: diversity.whiskers(list(rows.values()), None, palette, width))


def _evaluations(runs: Sequence[RunSummary]) -> Section:
    """A row for each evaluated model: average, accuracy in each task, mean bits a byte of held-out text."""
    evaluated = [(run, run.results) for run in runs if run.results is not None]
    if not evaluated:
        return page.absent("evaluations", "Evaluations", "No model was evaluated in this folder.")
    titles: dict[str, str] = {}  # of tasks, by name
    for _, results in evaluated:
        for name, task in results["tasks"].items():
            titles.setdefault(name, task["title"])
    rows = []
    for run, results in evaluated:
        average = points(results["average"]) if results["average"] else _DASH
        accuracies = [_accuracy(results["tasks"].get(name)) for name in titles]
        bits = [loss["bits_per_byte"] for loss in results["held_out"].values() if loss.get("bits_per_byte")]
        rows.append([run.link, average, *accuracies, f"{np.mean(bits):.4f}" if bits else _DASH])
    return page.section("runs", "evaluations", "Evaluations", titles=list(titles.values()), rows=rows)


def _accuracy(task: Mapping[str, Any] | None) -> str:
    return _DASH if task is None else f"{100 * task['metrics'][task['metric']]['value']:.1f}"

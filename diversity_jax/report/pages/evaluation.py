"""The page of an evaluation: accuracies with intervals, the paper's beside them, held-out loss, a comparison."""

from collections.abc import Mapping, Sequence
import dataclasses
import os
from pathlib import Path
from typing import Any

from diversity_jax.core import formats
from diversity_jax.core.run_info import RunInfo
from diversity_jax.evaluation.results import PAPER_AVERAGES, PAPER_MODELS
from diversity_jax.report import page
from diversity_jax.report.data import Fact
from diversity_jax.report.figures.accuracy import Accuracy, Difference, accuracies, differences
from diversity_jax.report.html import Html, columns, element, joined, table
from diversity_jax.report.page import KeyFigure, Page, Section, figure
from diversity_jax.report.plotting import render

_FOOTER = "Written by diversity_jax. Intervals are at 95 %; benchmarks were run by lm-evaluation-harness."


def write(output_dir: str | os.PathLike, results: Mapping[str, Any]) -> Path:
    """Writes `report.html` and `figures/` beside `results.json`; a `run.json` there adds the command line.

    Returns:
      The path of the page.
    """
    record = Path(output_dir) / "run.json"
    facts = RunInfo.load(record).facts() if record.exists() else []
    sections = [
        _benchmarks(results),
        _paper(results),
        _comparison(results),
        _held_out(results),
        page.facts(facts + _facts(results), intro="What one needs to measure again and get the same."),
    ]
    return page.write(
        Page(
            kind="Evaluation of",
            name=results["model"]["name"],
            verdict=_verdict(results),
            lede=_lede(results),
            key_figures=_key_figures(results),
            sections=tuple(section for section in sections if section is not None),
            footer=_FOOTER,
        ),
        output_dir,
    )


def points(one: Mapping[str, Any]) -> str:
    """A share in per cent with its interval."""
    if one["low"] is None:
        return f"{100 * one['value']:.1f}"
    return f"{100 * one['value']:.1f} [{100 * one['low']:.1f}, {100 * one['high']:.1f}]"


def _main(task: Mapping[str, Any]) -> Mapping[str, Any]:
    return task["metrics"][task["metric"]]


def _verdict(results: Mapping[str, Any]) -> str:
    name = formats.shortened(results["model"]["name"], 50)
    if results["average"]:
        return f"{name} answers {points(results['average'])} % right on average over the paper's eight."
    if len(results["tasks"]) == 1:
        [task] = results["tasks"].values()
        return f"{name} reaches {points(_main(task))} % on {task['title']}."
    if results["tasks"]:
        return f"{name} was judged on {formats.counted(len(results['tasks']), 'task')}."
    loss = next(iter(results["held_out"].values()), None)
    if loss is None:
        return f"{name} was judged on held-out text."
    return f"{name} needs {loss['bits_per_byte']:.3f} bits a byte of held-out text."


def _lede(results: Mapping[str, Any]) -> str:
    limit = results.get("limit")
    part = (
        f"A trial: only the first {formats.counted(limit, 'item')} of each task. " if limit and results["tasks"] else ""
    )
    if not (comparison := results.get("comparison")):
        return part
    one, other = comparison["average"], comparison["model"]["name"]
    difference, interval = _difference(one)
    said = f"{difference} points {interval}"
    if one["low"] > 0 or one["high"] < 0:
        return f"{part}That is {'better' if one['difference'] > 0 else 'worse'} than {other} on the same items: {said}."
    return f"{part}Against {other} on the same items nothing is decided: {said}."


def _difference(one: Mapping[str, Any]) -> tuple[str, str]:
    """Points with their sign, and their interval."""
    value, low, high = (formats.signed(100 * one[name], 2) for name in ("difference", "low", "high"))
    return value, f"[{low}, {high}]"


def _key_figures(results: Mapping[str, Any]) -> tuple[KeyFigure, ...]:
    shown = [
        KeyFigure(
            label="Parameters",
            value=formats.compact(results["model"]["parameters"]),
            note=results["model"]["compute_dtype"],
        )
    ]
    if results["average"]:
        one = results["average"]
        note = "" if one["low"] is None else f"95 %: {100 * one['low']:.2f} to {100 * one['high']:.2f}"
        shown.insert(0, KeyFigure(label="Average accuracy", value=f"{100 * one['value']:.2f} %", note=note))
    if results["tasks"]:
        items = sum(task["items"] for task in results["tasks"].values())
        shown.append(
            KeyFigure(label="Items", value=formats.count(items), note=formats.counted(len(results["tasks"]), "task"))
        )
    for name, loss in list(results["held_out"].items())[:2]:
        shown.append(
            KeyFigure(label=formats.shortened(name, 24), value=f"{loss['bits_per_byte']:.3f}", note="bits a byte")
        )
    return tuple(shown)


def _benchmarks(results: Mapping[str, Any]) -> Section | None:
    tasks = list(results["tasks"].values())
    if not tasks:
        return None
    rows = [
        (
            task["title"],
            task["metric"],
            points(_main(task)),
            _other_metric(task),
            formats.count(task["items"]),
            str(task["num_fewshot"]),
        )
        for task in tasks
    ]
    if results["average"]:
        rows.append((element("b", "Average"), "", element("b", points(results["average"])), "", "", ""))
    drawn = [_bar(task) for task in tasks if 0 <= _main(task)["value"] <= 1]
    drawing = render("accuracy", _alt(drawn), lambda width: accuracies(drawn, width)) if drawn else None
    caption = "Dots are accuracies, lines their 95 % intervals; the small mark is what guessing would reach."
    titles = columns("Task", "Metric", "#Accuracy in %", "#Other metric in %", "#Items", "#Examples shown")
    intro = (
        "acc is the share of items whose right answer is the likeliest; acc_norm first divides log-likelihoods by "
        "the answers' lengths."
    )
    body = joined(figure(drawing, caption) if drawing else None, element("p", intro), table(titles, rows))
    return Section(anchor="benchmarks", title="Benchmarks", body=body, drawings=(drawing,) if drawing else ())


def _other_metric(task: Mapping[str, Any]) -> str:
    """The accuracy that does not count here, where a task has both."""
    other = "acc_norm" if task["metric"] == "acc" else "acc"
    return points(task["metrics"][other]) if other in task["metrics"] else "\u2013"


_BETWEEN_THE_PAPERS_SIZES = 700_000_000  # parameters: the geometric mean of 350M and 1.4B
_GUESSING = {
    "arc_challenge": 0.25,
    "arc_easy": 0.25,
    "boolq": 0.5,
    "social_iqa": 1 / 3,
    "winogrande": 0.5,
    "piqa": 0.5,
    "copa": 0.5,
    "hellaswag": 0.25,
}
_TITLES = {
    "ARC-Challenge": "arc_challenge",
    "ARC-Easy": "arc_easy",
    "BoolQ": "boolq",
    "SIQA": "social_iqa",
    "WinoGrande": "winogrande",
}


def _bar(task: Mapping[str, Any]) -> Accuracy:
    one, title = _main(task), task["title"]
    name = _TITLES.get(title, title.lower())
    return Accuracy(
        name=title,
        value=one["value"],
        low=one["low"],
        high=one["high"],
        guessing=_GUESSING.get(name),
        note=task["metric"],
    )


def _alt(drawn: Sequence[Accuracy]) -> str:
    return "Accuracy with 95 % interval: " + "; ".join(f"{one.name} {100 * one.value:.1f} %" for one in drawn)


def _paper(results: Mapping[str, Any]) -> Section | None:
    if not results["average"]:
        return None
    model = results["model"]
    nearest = 2 * (model["parameters"] > _BETWEEN_THE_PAPERS_SIZES) + bool(model.get("fine_tuned"))
    own = ["" if place != nearest else element("b", points(results["average"])) for place in range(len(PAPER_MODELS))]
    rows: list[Any] = [(element("b", f"this model ({formats.compact(model['parameters'])})"), *own)]
    rows += [(name, *(f"{one:.2f}" for one in figures)) for name, figures in PAPER_AVERAGES.items()]
    intro = (
        "Average accuracy in per cent over the same eight tasks, with the same metrics. The paper's rows are named by "
        "what was trained on "
        "beside real text; it gives no intervals. This model stands in the column of the paper's model that is "
        "nearest in size."
    )
    titles = columns("Training data", *(f"#{name}" for name in PAPER_MODELS))
    return Section(
        anchor="paper", title="Beside the paper's figures", body=joined(element("p", intro), table(titles, rows))
    )


def _comparison(results: Mapping[str, Any]) -> Section | None:
    if not (comparison := results.get("comparison")):
        return None

    def cells(one: Mapping[str, Any]) -> list[Html | str]:
        return [" ".join(_difference(one)), formats.significant(one["p_value"])]

    rows = [
        (
            results["tasks"][name]["title"],
            formats.count(one["only_this"]),
            formats.count(one["only_other"]),
            *cells(one),
            formats.count(one["items"]),
        )
        for name, one in comparison["tasks"].items()
    ]
    rows.append((element("b", "Average"), "", "", *cells(comparison["average"]), ""))
    drawn = [_row(results["tasks"][name]["title"], one) for name, one in comparison["tasks"].items()]
    drawn.append(dataclasses.replace(_row("Average", comparison["average"]), total=True))
    alt = "Difference with 95 % interval: " + "; ".join(
        f"{one.name} {formats.signed(one.points)} points" for one in drawn
    )
    drawing = render("comparison", alt, lambda width: differences(drawn, width))
    caption = (
        f"Points by which this model is ahead of {comparison['model']['name']}, with 95 % intervals; grey where the "
        "interval holds zero. "
        "The diamond is the average."
    )
    intro = (
        f"Item by item against {comparison['model']['name']}. For each task p is McNemar's exact test on the items "
        "that only one "
        "of the two gets right; intervals, and p of the average, are a paired bootstrap's over items. Eight tests at "
        "5 % find something "
        "by chance one time in three: decide by the average."
    )
    titles = columns("Task", "#Only this right", "#Only the other right", "#Difference in points", "#p", "#Items")
    body = joined(element("p", intro), figure(drawing, caption), table(titles, rows))
    return Section(anchor="comparison", title="Against another checkpoint", body=body, drawings=(drawing,))


def _row(title: str, one: Mapping[str, Any]) -> Difference:
    return Difference(name=title, points=100 * one["difference"], low=100 * one["low"], high=100 * one["high"])


def _held_out(results: Mapping[str, Any]) -> Section | None:
    if not results["held_out"]:
        return None
    rows = [
        (
            name,
            loss["kind"],
            _with_error(loss["nats_per_token"], loss["nats_error"]),
            _with_error(loss["bits_per_byte"], loss["bits_error"]),
            formats.count(loss["tokens"]),
            formats.count(loss["units"]),
        )
        for name, loss in results["held_out"].items()
    ]
    intro = (
        "Loss on text that was not trained on, \u00b1 its standard error. Bits per byte compare models with different "
        "tokenizers; "
        "nats per token do not."
    )
    titles = columns("Text", "Kind", "#Nats per token", "#Bits per byte", "#Tokens", "#Rows or documents")
    return Section(anchor="held-out", title="Held-out text", body=joined(element("p", intro), table(titles, rows)))


def _with_error(value: float, error: float | None) -> str:
    return f"{value:.4f}" if error is None else f"{value:.4f} \u00b1 {error:.4f}"


def _facts(results: Mapping[str, Any]) -> list[Fact]:
    model, code = results["model"], results["code"]
    facts = [
        Fact(name="Weights, SHA-256", value=model["weights_sha256"], code=True),
        Fact(name="Tokenizer", value=model["tokenizer_hash"], code=True),
        Fact(name="Context", value=f"{formats.count(model['max_length'])} tokens, {model['compute_dtype']}"),
        Fact(name="Commit", value=code["commit"] or "not a git checkout", code=True),
        Fact(name="Evaluated with", value=", ".join(f"{name} {version}" for name, version in code["versions"].items())),
    ]
    for name, source in results["data"].items():
        files = source.get("files", {}).values()
        said = "\n".join(
            [f"{one['file']}: {one['sha256']}" for one in files] + [f"documents: {source['documents_sha256']}"]
        )
        facts.append(Fact(name=f"Data of {name}", value=said, code=True))
    return facts

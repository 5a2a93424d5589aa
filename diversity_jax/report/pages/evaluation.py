"""The page of an evaluation: accuracies with intervals, the paper's beside them, held-out loss, a comparison."""

from collections.abc import Mapping, Sequence
import os
from pathlib import Path
from typing import Any

from diversity_jax.core import formats
from diversity_jax.core.formats import count, counted, signed
from diversity_jax.core.intervals import Estimate
from diversity_jax.core.run_info import Fact, RunInfo
from diversity_jax.evaluation.results import PAPER_AVERAGES, PAPER_MODELS
from diversity_jax.report import page
from diversity_jax.report.figures import outcomes
from diversity_jax.report.html import Html, html, table
from diversity_jax.report.page import KeyFigure, Page, Section
from diversity_jax.report.plotting import render

_FOOTER = "Written by diversity_jax. Intervals are at 95 %; benchmarks were run by lm-evaluation-harness."
_BETWEEN_THE_PAPERS_SIZES = 700_000_000  # parameters: the geometric mean of 350M and 1.4B
_GUESSING = {
    "ARC-Challenge": 0.25,
    "ARC-Easy": 0.25,
    "BoolQ": 0.5,
    "SIQA": 1 / 3,
    "WinoGrande": 0.5,
    "PIQA": 0.5,
    "COPA": 0.5,
    "HellaSwag": 0.25,
}


def write(output_dir: str | os.PathLike, results: Mapping[str, Any]) -> Path:
    """Writes `report.html` and `figures/` beside `results.json`; a `run.json` there adds the command line.

    Returns:
      The path of the page.
    """
    path = Path(output_dir) / "run.json"
    facts = (RunInfo.load(path).facts() if path.exists() else []) + _facts(results)
    sections = (
        _benchmarks(results),
        _paper(results),
        _comparison(results),
        _held_out(results),
        page.facts(facts, intro="What one needs to measure again and get the same."),
    )
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


def points(figure: Mapping[str, Any]) -> str:
    """A share in per cent with its interval."""
    if figure["low"] is None:
        return f"{100 * figure['value']:.1f}"
    return f"{100 * figure['value']:.1f} [{100 * figure['low']:.1f}, {100 * figure['high']:.1f}]"


def _main(task: Mapping[str, Any]) -> Mapping[str, Any]:
    return task["metrics"][task["metric"]]


def _verdict(results: Mapping[str, Any]) -> str:
    name, tasks = formats.shortened(results["model"]["name"], 50), results["tasks"]
    if results["average"]:
        return f"{name} answers {points(results['average'])} % right on average over the paper's eight."
    if len(tasks) == 1:
        [task] = tasks.values()
        return f"{name} reaches {points(_main(task))} % on {task['title']}."
    if tasks:
        return f"{name} was judged on {counted(len(tasks), 'task')}."
    loss = next(iter(results["held_out"].values()), None)
    if loss is None:
        return f"{name} was judged on held-out text."
    return f"{name} needs {loss['bits_per_byte']:.3f} bits a byte of held-out text."


def _lede(results: Mapping[str, Any]) -> str:
    limit, lede = results.get("limit"), ""
    if limit and results["tasks"]:
        lede = f"A trial: only the first {counted(limit, 'item')} of each task. "
    if not (comparison := results.get("comparison")):
        return lede
    average, other = comparison["average"], comparison["model"]["name"]
    text = _difference(average).replace(" [", " points [")
    if average["low"] > 0 or average["high"] < 0:
        return f"{lede}That is {'better' if average['difference'] > 0 else 'worse'} than {other} on the same items: {text}."
    return f"{lede}Against {other} on the same items nothing is decided: {text}."


def _difference(figure: Mapping[str, Any]) -> str:
    """Points with their sign, and their interval."""
    value, low, high = (signed(100 * figure[name], 2) for name in ("difference", "low", "high"))
    return f"{value} [{low}, {high}]"


def _key_figures(results: Mapping[str, Any]) -> tuple[KeyFigure, ...]:
    model, average, tasks = results["model"], results["average"], results["tasks"]
    figures = []
    if average:
        value = f"{100 * average['value']:.2f} %"
        note = "" if average["low"] is None else f"95 %: {100 * average['low']:.2f} to {100 * average['high']:.2f}"
        figures.append(KeyFigure(label="Average accuracy", value=value, note=note))
    parameters = formats.compact(model["parameters"])
    figures.append(KeyFigure(label="Parameters", value=parameters, note=model["compute_dtype"]))
    if tasks:
        items = sum(task["items"] for task in tasks.values())
        figures.append(KeyFigure(label="Items", value=count(items), note=counted(len(tasks), "task")))
    for name, loss in list(results["held_out"].items())[:2]:
        value = f"{loss['bits_per_byte']:.3f}"
        figures.append(KeyFigure(label=formats.shortened(name, 24), value=value, note="bits a byte"))
    return tuple(figures)


def _benchmarks(results: Mapping[str, Any]) -> Section | None:
    tasks = list(results["tasks"].values())
    if not tasks:
        return None
    rows: list[Sequence[Any]] = []
    for task in tasks:
        other = task["metrics"].get("acc_norm" if task["metric"] == "acc" else "acc")
        accuracies = points(_main(task)), points(other) if other else "\u2013"
        rows.append((task["title"], task["metric"], *accuracies, count(task["items"]), str(task["num_fewshot"])))
    if results["average"]:
        rows.append((_bold("Average"), "", _bold(points(results["average"])), "", "", ""))
    bars = [_bar(task) for task in tasks if 0 <= _main(task)["value"] <= 1]
    alt = "Accuracy with 95 % interval: " + "; ".join(f"{bar.name} {100 * bar.interval.value:.1f} %" for bar in bars)
    caption = "Dots are accuracies, lines their 95 % intervals; the small mark is what guessing would reach."
    drawing = render("accuracy", alt, lambda width: outcomes.accuracies(bars, width), caption) if bars else None
    titles = ("Task", "Metric", "#Accuracy in %", "#Other metric in %", "#Items", "#Examples shown")
    intro = (
        "acc is the share of items whose right answer is the likeliest; acc_norm first divides log-likelihoods by "
        "the answers' lengths."
    )
    body = [drawing, intro, table(titles, rows)]
    return Section(anchor="benchmarks", title="Benchmarks", body=body)


def _bold(text: str) -> Html:
    return html("<b>{}</b>", text)


def _bar(task: Mapping[str, Any]) -> outcomes.Accuracy:
    figure, title = _main(task), task["title"]
    return outcomes.Accuracy(
        name=title,
        interval=Estimate(value=figure["value"], low=figure["low"], high=figure["high"]),
        guessing=_GUESSING.get(title),
        note=task["metric"],
    )


def _paper(results: Mapping[str, Any]) -> Section | None:
    if not results["average"]:
        return None
    model = results["model"]
    nearest = 2 * (model["parameters"] > _BETWEEN_THE_PAPERS_SIZES) + bool(model.get("fine_tuned"))
    cells: list[str] = [""] * len(PAPER_MODELS)
    cells[nearest] = _bold(points(results["average"]))
    rows: list[Sequence[str]] = [(_bold(f"this model ({formats.compact(model['parameters'])})"), *cells)]
    rows += [(name, *(f"{average:.2f}" for average in averages)) for name, averages in PAPER_AVERAGES.items()]
    intro = (
        "Average accuracy in per cent over the same eight tasks, with the same metrics. The paper's rows are named by "
        "what was trained on beside real text; it gives no intervals. This model stands in the column of the paper's "
        "model that is nearest in size."
    )
    titles = ("Training data", *(f"#{name}" for name in PAPER_MODELS))
    return Section(anchor="paper", title="Beside the paper's figures", body=[intro, table(titles, rows)])


def _comparison(results: Mapping[str, Any]) -> Section | None:
    if not (comparison := results.get("comparison")):
        return None
    titles = {name: results["tasks"][name]["title"] for name in comparison["tasks"]}
    rows: list[Sequence[Any]] = []
    for name, task in comparison["tasks"].items():
        only = count(task["only_this"]), count(task["only_other"])
        tested = _difference(task), formats.significant(task["p_value"])
        rows.append((titles[name], *only, *tested, count(task["items"])))
    average = comparison["average"]
    rows.append((_bold("Average"), "", "", _difference(average), formats.significant(average["p_value"]), ""))
    differences = {
        title: (100 * figure["difference"], 100 * figure["low"], 100 * figure["high"])
        for title, figure in [
            *((titles[name], task) for name, task in comparison["tasks"].items()),
            ("Average", average),
        ]
    }
    alt = "; ".join(f"{title} {signed(difference)} points" for title, (difference, _, _) in differences.items())
    other = comparison["model"]["name"]
    caption = (
        f"Points by which this model is ahead of {other}, with 95 % intervals; grey where the interval holds zero. "
        "The diamond is the average."
    )
    drawing = render(
        "comparison",
        f"Difference with 95 % interval: {alt}",
        lambda width: outcomes.accuracy_differences(differences, width),
        caption,
    )
    intro = (
        f"Item by item against {other}. For each task p is McNemar's exact test on the items that only one of the two "
        "gets right; intervals, and p of the average, are a paired bootstrap's over items. Eight tests at 5 % find "
        "something by chance one time in three: decide by the average."
    )
    heads = ("Task", "#Only this right", "#Only the other right", "#Difference in points", "#p", "#Items")
    body = [intro, drawing, table(heads, rows)]
    return Section(anchor="comparison", title="Against another checkpoint", body=body)


def _held_out(results: Mapping[str, Any]) -> Section | None:
    if not results["held_out"]:
        return None
    rows = []
    for name, loss in results["held_out"].items():
        nats = _with_error(loss["nats_per_token"], loss["nats_error"])
        bits = _with_error(loss["bits_per_byte"], loss["bits_error"])
        rows.append((name, loss["kind"], nats, bits, count(loss["tokens"]), count(loss["units"])))
    intro = (
        "Loss on text that was not trained on, \u00b1 its standard error. Bits per byte compare models with different "
        "tokenizers; nats per token do not."
    )
    titles = ("Text", "Kind", "#Nats per token", "#Bits per byte", "#Tokens", "#Rows or documents")
    return Section(anchor="held-out", title="Held-out text", body=[intro, table(titles, rows)])


def _with_error(value: float, error: float | None) -> str:
    return f"{value:.4f}" if error is None else f"{value:.4f} \u00b1 {error:.4f}"


def _facts(results: Mapping[str, Any]) -> list[Fact]:
    model, code = results["model"], results["code"]
    versions = ", ".join(f"{name} {version}" for name, version in code["versions"].items())
    facts = [
        Fact(name="Weights, SHA-256", value=model["weights_sha256"], code=True),
        Fact(name="Tokenizer", value=model["tokenizer_hash"], code=True),
        Fact(name="Context", value=f"{count(model['max_length'])} tokens, {model['compute_dtype']}"),
        Fact(name="Commit", value=code["commit"] or "not a git checkout", code=True),
        Fact(name="Evaluated with", value=versions),
    ]
    for name, source in results["data"].items():
        hashes = [f"{file['file']}: {file['sha256']}" for file in source.get("files", {}).values()]
        hashes.append(f"documents: {source['documents_sha256']}")
        facts.append(Fact(name=f"Data of {name}", value="\n".join(hashes), code=True))
    return facts

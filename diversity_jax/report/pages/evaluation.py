"""The page of an evaluation: accuracies with intervals, the paper's figures, held-out loss, a comparison."""

from collections.abc import Mapping
import os
from pathlib import Path
from typing import Any

from diversity_jax.core import formats
from diversity_jax.core.formats import count, counted, signed, significant
from diversity_jax.core.intervals import Estimate
from diversity_jax.core.run_info import Fact
from diversity_jax.evaluation.results import PAPER_AVERAGES, PAPER_MODELS, is_accuracy
from diversity_jax.report import page
from diversity_jax.report.figures import outcomes
from diversity_jax.report.html import macro
from diversity_jax.report.page import Page, Section
from diversity_jax.report.plotting import render

_FOOTER = "Written by diversity_jax. Intervals are at 95 %; benchmarks were run by lm-evaluation-harness."
_BETWEEN_THE_PAPERS_SIZES = 700_000_000  # parameters: the geometric mean of 350M and 1.4B
# Accuracy of guessing: one over the number of choices.
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
    model, average, tasks, held_out = (results[name] for name in ("model", "average", "tasks", "held_out"))
    facts = page.run_facts(output_dir) + _facts(results)
    composed = Page(
        kind="Evaluation of",
        name=model["name"],
        verdict=_verdict(results),
        lede=_lede(results),
        key_figures=macro("evaluation", "key_figures", model, average, tasks, held_out),
        sections=(
            _benchmarks(results),
            _paper(results),
            _comparison(results),
            page.section("evaluation", "held-out", "Held-out text", losses=held_out) if held_out else None,
            page.facts(facts, intro="What one needs to measure again and get the same."),
        ),
        footer=_FOOTER,
    )
    return page.write(composed, output_dir)


def points(share: Mapping[str, Any]) -> str:
    """A share in per cent with its interval, where it has one."""
    if share["low"] is None:
        return f"{100 * share['value']:.1f}"
    return f"{100 * share['value']:.1f} [{100 * share['low']:.1f}, {100 * share['high']:.1f}]"


def _shown(task: Mapping[str, Any]) -> str:
    """A task's main figure: a share in per cent, others as they are."""
    main = _main(task)
    return points(main) if is_accuracy(task) else f"{significant(main['value'])} (not in %)"


def _difference(tested: Mapping[str, Any], unit: str = "") -> str:
    """A difference in percentage points with its sign and interval."""
    value, low, high = (signed(100 * tested[name], 2) for name in ("difference", "low", "high"))
    return f"{value}{unit} [{low}, {high}]"


def _main(task: Mapping[str, Any]) -> Mapping[str, Any]:
    """The task's main metric."""
    return task["metrics"][task["metric"]]


def _verdict(results: Mapping[str, Any]) -> str:
    name, tasks = formats.shortened(results["model"]["name"], 50), results["tasks"]
    if results["average"]:
        return f"{name} answers {points(results['average'])} % right on average over the paper's eight."
    if len(tasks) == 1:
        [task] = tasks.values()
        unit = " %" if is_accuracy(task) else ""
        return f"{name} reaches {_shown(task)}{unit} on {task['title']}."
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
    text = _difference(average, " points")
    if average["p_value"] < 0.05 and (average["low"] > 0 or average["high"] < 0):
        better = "better" if average["difference"] > 0 else "worse"
        return f"{lede}That is {better} than {other} on the same items: {text}."
    return f"{lede}Against {other} on the same items nothing is decided: {text}."


def _benchmarks(results: Mapping[str, Any]) -> Section | None:
    tasks = list(results["tasks"].values())
    if not tasks:
        return None
    bars = [_bar(task) for task in tasks if is_accuracy(task)]
    alt = "Accuracy with 95 % interval: " + "; ".join(f"{bar.name} {100 * bar.interval.value:.1f} %" for bar in bars)
    plot = render("accuracy", alt, lambda width: outcomes.accuracies(bars, width)) if bars else None
    return page.section(
        "evaluation",
        "benchmarks",
        "Benchmarks",
        tasks=tasks,
        average=results["average"],
        plot=plot,
        points=points,
        shown=_shown,
    )


def _bar(task: Mapping[str, Any]) -> outcomes.Accuracy:
    figure, title = _main(task), task["title"]
    return outcomes.Accuracy(
        name=title,
        interval=Estimate(value=figure["value"], low=figure["low"], high=figure["high"]),
        guessing=_GUESSING.get(title),
        note=task["metric"],
    )


def _paper(results: Mapping[str, Any]) -> Section | None:
    """This model's average in a table of the paper's; None unless all of its benchmarks were run."""
    if not results["average"]:
        return None
    model = results["model"]
    nearest = 2 * (model["parameters"] > _BETWEEN_THE_PAPERS_SIZES) + bool(model.get("fine_tuned"))
    return page.section(
        "evaluation",
        "paper",
        "Beside the paper's figures",
        parameters=model["parameters"],
        nearest=nearest,
        average=results["average"],
        models=PAPER_MODELS,
        averages=PAPER_AVERAGES,
        points=points,
    )


def _comparison(results: Mapping[str, Any]) -> Section | None:
    if not (comparison := results.get("comparison")):
        return None
    titles = {name: results["tasks"][name]["title"] for name in comparison["tasks"]}
    average = comparison["average"]
    differences = {
        title: (100 * figure["difference"], 100 * figure["low"], 100 * figure["high"])
        for title, figure in [
            *((titles[name], task) for name, task in comparison["tasks"].items()),
            ("Average", average),
        ]
    }
    alt = "; ".join(f"{title} {signed(difference)} points" for title, (difference, _, _) in differences.items())
    alt = f"Difference with 95 % interval: {alt}"
    plot = render("comparison", alt, lambda width: outcomes.accuracy_differences(differences, width))
    return page.section(
        "evaluation",
        "comparison",
        "Against another checkpoint",
        comparison=comparison,
        titles=titles,
        plot=plot,
        difference=_difference,
    )


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

"""Results of an evaluation: scores with standard errors and intervals, and comparisons of two checkpoints."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import gzip
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from diversity_jax.core.compression import read_lines
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import path_inside, read_json, writing
from diversity_jax.core.json_text import parse_json
from diversity_jax.evaluation.tasks import BY_TASK

Z_95 = 1.959963984540054  # 97.5 % quantile of the normal distribution
FORMAT_VERSION = 1

# Average accuracy over the paper's eight benchmarks in percent (Chen et al., arXiv 2410.15226), by training data, in
# the order of PAPER_MODELS.
PAPER_MODELS = ("350M", "350M SFT", "1.4B", "1.4B SFT")
PAPER_AVERAGES = {
    "real only": (48.94, 50.00, 54.76, 57.16),
    "Cosmopedia v0.1": (51.61, 52.64, 56.25, 59.46),
    "Topic": (51.40, 53.03, 56.15, 59.88),
    "Topic Styles": (51.81, 53.37, 56.74, 60.97),
    "Topic Styles Persona": (51.92, 54.29, 57.82, 61.32),
    "Multi-Topic Styles Persona": (51.74, 54.06, 56.99, 60.59),
}


def figure(value: float, error: Any, *, is_share: bool = False, items: int | None = None) -> dict[str, float | None]:
    """A figure with its standard error and 95 % interval, which are None where the error is no finite number.

    Args:
      is_share: the interval is clipped to [0, 1].
      items: of a share; the interval is Wilson's (1927), which has a width where all items agree.
    """
    if not isinstance(error, int | float) or not math.isfinite(error):
        return {"value": value, "stderr": None, "low": None, "high": None}
    low, high = value - Z_95 * error, value + Z_95 * error
    if is_share and items:
        prior = Z_95**2 / items
        centre, spread = value + prior / 2, Z_95 * math.sqrt(value * (1 - value) / items + prior / 4 / items)
        low, high = (centre - spread) / (1 + prior), (centre + spread) / (1 + prior)
    if is_share:
        low, high = max(low, 0.0), min(high, 1.0)
    return {"value": value, "stderr": float(error), "low": low, "high": high}


_SHARES = ("acc", "exact_match", "em", "f1", "pass")  # prefixes of the names of metrics between 0 and 1


def is_share(metric: str, value: float) -> bool:
    """Whether a figure is a share of the items by its name and value; others, such as perplexities, are not."""
    return (metric.startswith(_SHARES) or metric.endswith(("_acc", "accuracy"))) and 0 <= value <= 1


def is_accuracy(task: Mapping[str, Any]) -> bool:
    """Whether the main metric of a task, as `summarise` returns it, is a share."""
    return is_share(task["metric"], task["metrics"][task["metric"]]["value"])


def summarise(results: Mapping[str, Any]) -> dict[str, Any]:
    """Tasks of the harness's results, each with its metrics and the name of its main one; without groups of tasks."""
    tasks = {}
    for name, metrics in results["results"].items():
        if name not in results["n-samples"]:
            continue
        figures = {
            key.removesuffix(",none"): figure(
                float(value),
                metrics.get(key.replace(",", "_stderr,", 1)),
                is_share=is_share(key.removesuffix(",none"), value),
                items=results["n-samples"][name]["effective"],
            )
            for key, value in metrics.items()  # such as `acc,none` and `acc_stderr,none`
            if "," in key and "_stderr" not in key and isinstance(value, int | float)
        }
        benchmark = BY_TASK.get(name)
        usual = [metric for metric in ("acc_norm", "acc", "exact_match", *figures) if metric in figures]
        tasks[name] = {
            "title": benchmark.title if benchmark else name,
            "metric": benchmark.metric if benchmark else next(iter(usual), None),
            "metrics": figures,
            "items": results["n-samples"][name]["effective"],
            "version": results["versions"].get(name),
            "num_fewshot": results["n-shot"].get(name),
        }
    return tasks


def paper_average(tasks: Mapping[str, Any]) -> dict[str, Any] | None:
    """The unweighted mean over the paper's eight benchmarks, with its standard error; None where one is missing."""
    if not all(name in tasks for name in BY_TASK):
        return None
    figures = [tasks[name]["metrics"][benchmark.metric] for name, benchmark in BY_TASK.items()]
    errors = [main["stderr"] for main in figures]
    error = None if None in errors else math.sqrt(sum(error**2 for error in errors)) / len(errors)
    return figure(sum(main["value"] for main in figures) / len(figures), error, is_share=True)


def outcomes(samples: Sequence[Mapping[str, Any]], metric: str) -> dict[str, float]:
    """Every item's score under one metric, by the hash of its content and its number."""
    return {
        f"{sample['doc_hash'][:16]}-{sample['doc_id']}": float(sample[metric])
        for sample in samples
        if isinstance(sample.get(metric), int | float)
    }


def write_samples(folder: Path, name: str, samples: Sequence[Mapping[str, Any]]) -> None:
    """Writes one gzipped JSON line per item: its question, the log-likelihoods or answers, and the scores."""
    with writing(folder / f"{name}.jsonl.gz") as file, gzip.GzipFile(fileobj=file, mode="wb", mtime=0) as packed:
        for sample in samples:
            packed.write(json.dumps(sample, default=str, ensure_ascii=False).encode() + b"\n")


def read_samples(folder: Path, name: str) -> list[dict[str, Any]]:
    """Reads what `write_samples` wrote.

    Raises:
      InputError: the file is missing or damaged.
    """
    path = path_inside(folder / "samples", f"{name}.jsonl.gz", f"{folder / 'results.json'}: tasks")
    lines = itertools.chain.from_iterable(read_lines(str(path)))
    return [parse_json(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line]


def load_results(folder: Path) -> dict[str, Any]:
    """Reads an evaluation's `results.json`.

    Raises:
      InputError: no such file, or it is not of this version.
    """
    value = read_json(folder / "results.json")
    if not isinstance(value, dict) or value.get("format_version") != FORMAT_VERSION or "tasks" not in value:
        raise InputError(f"{folder / 'results.json'}: is not an evaluation of this version; run that evaluation again")
    return value


@dataclass(frozen=True, kw_only=True)
class AverageComparison:
    """Difference of two models' means over tasks, this minus the other, with a 95 % interval by a paired bootstrap and
    the p-value of a sign-flip test.
    """

    difference: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True, kw_only=True)
class TaskComparison(AverageComparison):
    """Difference of two models' scores in one task.

    Attributes:
      items: number of items.
      only_this, only_other: items on which this or the other model has the higher score.
      p_value: McNemar's exact test for scores of 0 and 1, else of a sign-flip test.
    """

    items: int
    only_this: int
    only_other: int


def mcnemar(only_this: int, only_other: int) -> float:
    """Two-sided exact p-value of McNemar's test: a binomial test of the discordant items with probability 1/2."""
    from scipy import stats

    discordant = only_this + only_other
    return float(stats.binomtest(only_this, discordant).pvalue) if discordant else 1.0


def compare(
    this: Mapping[str, Mapping[str, float]], other: Mapping[str, Mapping[str, float]], *, draws: int, seed: int = 0
) -> tuple[dict[str, TaskComparison], AverageComparison]:
    """Compares two evaluations task by task and on average, over the tasks that both have.

    Args:
      this, other: the `outcomes` of each task.
      draws: resamples of the paired bootstrap, which draws items within each task.

    Raises:
      InputError: no task in common, or the items of a task differ.
    """
    shared = [task for task in this if task in other]
    if not shared:
        raise InputError("the two evaluations have no task in common with an accuracy; evaluate both on the same tasks")
    generator = np.random.default_rng(seed)
    compared: dict[str, TaskComparison] = {}
    resampled, flipped = [], []
    for task in shared:
        both = np.array(_paired(task, this[task], other[task]))
        differences = both[0] - both[1]
        is_share = np.logical_and(both >= 0, both <= 1).all()
        resampled.append(
            _bootstrap_means(differences, 1.0 if is_share else np.abs(differences).max(), draws, generator)
        )
        flipped.append(_flipped_means(differences, draws, generator))
        figures = _comparison(float(differences.mean()), resampled[-1], flipped[-1])
        only_this, only_other = int((differences > 0).sum()), int((differences < 0).sum())
        if np.isin(both, (0, 1)).all():
            figures["p_value"] = mcnemar(only_this, only_other)
        compared[task] = TaskComparison(items=len(differences), only_this=only_this, only_other=only_other, **figures)
    difference = float(np.mean([comparison.difference for comparison in compared.values()]))
    return compared, AverageComparison(**_comparison(difference, np.mean(resampled, axis=0), np.mean(flipped, axis=0)))


def _paired(task: str, ours: Mapping[str, float], theirs: Mapping[str, float]) -> tuple[np.ndarray, np.ndarray]:
    if set(ours) != set(theirs) or not ours:
        counts = f"{len(ours):,} and {len(theirs):,} items, {len(set(ours) & set(theirs)):,} of them the same"
        raise InputError(f"{task}: the evaluations judged {counts}; evaluate both on the same data with the same limit")
    items = sorted(ours)
    return np.array([ours[item] for item in items]), np.array([theirs[item] for item in items])


def _bootstrap_means(values: np.ndarray, most: float, draws: int, generator: np.random.Generator) -> np.ndarray:
    """Means of resamples, drawn as counts of distinct values, which needs no n x draws array.

    As in Agresti and Min (2005), two items are added, half of one at `most` and half at `-most`: otherwise few items
    that agree would seem to leave no doubt.
    """
    distinct, counts = np.unique(values, return_counts=True)
    distinct, weights = np.append(distinct, (-most, 0.0, most)), np.append(counts, (0.5, 1.0, 0.5))
    drawn = generator.multinomial(len(values) + 2, weights / weights.sum(), size=draws)
    return drawn @ distinct / (len(values) + 2)


def _flipped_means(values: np.ndarray, draws: int, generator: np.random.Generator) -> np.ndarray:
    """Means with random signs: of differences between models that do not differ."""
    distinct, counts = np.unique(np.abs(values), return_counts=True)
    return (2 * generator.binomial(counts, 0.5, (draws, len(counts))) - counts) @ distinct / len(values)


def _comparison(difference: float, resampled: np.ndarray, flipped: np.ndarray) -> dict[str, float]:
    """95 % interval of the resamples, and as p-value the share of sign-flipped means that are as far from zero."""
    low, high = np.quantile(resampled, (0.025, 0.975))
    as_far = int((np.abs(flipped) >= abs(difference) - 1e-12).sum())
    p_value = (1 + as_far) / (1 + len(flipped))
    return {
        **{"difference": difference, "low": min(float(low), difference), "high": max(float(high), difference)},
        "p_value": p_value,
    }

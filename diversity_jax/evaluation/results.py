"""What an evaluation found: accuracies with errors and intervals, their average, and every item's outcome for later
comparisons.

Two checkpoints on the same items: McNemar's exact test for each task, and a paired bootstrap of the average.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import read_json, writing
from diversity_jax.evaluation.tasks import BY_TASK

Z_95 = 1.959963984540054
FORMAT_VERSION = 1

# Average accuracy over the eight, in percent (Chen et al., arXiv 2410.15226), by training data and model.
PAPER_MODELS = ("350M", "350M SFT", "1.4B", "1.4B SFT")
PAPER_AVERAGES = {
    "real only": (48.94, 50.00, 54.76, 57.16),
    "Cosmopedia v0.1": (51.61, 52.64, 56.25, 59.46),
    "Topic": (51.40, 53.03, 56.15, 59.88),
    "Topic Styles": (51.81, 53.37, 56.74, 60.97),
    "Topic Styles Persona": (51.92, 54.29, 57.82, 61.32),
    "Multi-Topic Styles Persona": (51.74, 54.06, 56.99, 60.59),
}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One item's outcome, under the hash of its question and answers: equal hashes in two evaluations are one item."""

    item: str
    score: float


def figure(value: float, error: float | None) -> dict[str, float | None]:
    """A figure with its standard error and 95 % interval."""
    if error is None or not math.isfinite(error):
        return {"value": value, "stderr": None, "low": None, "high": None}
    return {"value": value, "stderr": error, "low": value - Z_95 * error, "high": value + Z_95 * error}


def summarise(found: Mapping[str, Any]) -> dict[str, Any]:
    """Tasks of the harness's results, each with its metrics and the one that counts; groups of tasks beside them."""
    tasks = {}
    for name, metrics in found["results"].items():
        if name not in found["n-samples"]:
            continue
        figures = {
            key.removesuffix(",none"): figure(float(value), _number(metrics.get(key.replace(",", "_stderr,", 1))))
            for key, value in metrics.items()
            if "," in key and "_stderr" not in key and isinstance(value, (int, float))
        }
        known = BY_TASK.get(name)
        main = (
            known.metric
            if known
            else next((one for one in ("acc_norm", "acc", "exact_match") if one in figures), next(iter(figures), None))
        )
        tasks[name] = {
            "title": known.title if known else name,
            "metric": main,
            "metrics": figures,
            "items": found["n-samples"][name]["effective"],
            "version": found["versions"].get(name),
            "num_fewshot": found["n-shot"].get(name),
        }
    return tasks


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None


def paper_average(tasks: Mapping[str, Any]) -> dict[str, Any] | None:
    """The mean over the paper's eight, each weighing the same, and its standard error; None where one is missing."""
    if not all(name in tasks for name in BY_TASK):
        return None
    figures = [tasks[name]["metrics"][benchmark.metric] for name, benchmark in BY_TASK.items()]
    errors = [one["stderr"] for one in figures]
    error = None if None in errors else math.sqrt(sum(one**2 for one in errors)) / len(errors)
    return figure(sum(one["value"] for one in figures) / len(figures), error)


def outcomes(samples: Sequence[Mapping[str, Any]], metric: str) -> list[Outcome]:
    """Every item's outcome under one metric, in the harness's order."""
    rows = []
    for sample in samples:
        value = sample.get(metric)
        if isinstance(value, (int, float)):
            rows.append(Outcome(item=f"{sample['doc_hash'][:16]}-{sample['doc_id']}", score=float(value)))
    return rows


def write_samples(folder: Path, name: str, samples: Sequence[Mapping[str, Any]]) -> None:
    """One gzipped JSON line an item: what was asked, the log-likelihoods or answers, and the scores."""
    with writing(folder / f"{name}.jsonl.gz") as file, gzip.GzipFile(fileobj=file, mode="wb", mtime=0) as packed:
        for sample in samples:
            packed.write(json.dumps(sample, default=str, ensure_ascii=False).encode() + b"\n")


def read_samples(folder: Path, name: str) -> list[dict[str, Any]]:
    """What `write_samples` wrote.

    Raises:
      InputError: the file is missing or damaged.
    """
    path = folder / "samples" / f"{name}.jsonl.gz"
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return [json.loads(line) for line in file]
    except (OSError, EOFError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); run that evaluation again") from None


def load_results(folder: Path) -> dict[str, Any]:
    """Another evaluation's `results.json`.

    Raises:
      InputError: no such file, or not what an evaluation writes.
    """
    value = read_json(folder / "results.json")
    if not isinstance(value, dict) or value.get("format_version") != FORMAT_VERSION or "tasks" not in value:
        raise InputError(
            f"{folder / 'results.json'}: is not an evaluation of this version; run python -m diversity_jax.evaluate "
            "again"
        )
    return value


@dataclass(frozen=True, kw_only=True)
class TaskComparison:
    """One task: this model against the other.

    Attributes:
      items: judged by both.
      only_this, only_other: items that one alone gets right.
      difference: this minus the other, with its 95 % interval by a paired bootstrap.
      p_value: that a difference so large arises between equals: McNemar's exact test for right-or-wrong scores, else
        the bootstrap's.
    """

    items: int
    only_this: int
    only_other: int
    difference: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True, kw_only=True)
class AverageComparison:
    """The mean over tasks, each weighing the same."""

    difference: float
    low: float
    high: float
    p_value: float


def mcnemar(only_this: int, only_other: int) -> float:
    """Two-sided exact p-value: the discordant items are fair coin throws between equals."""
    n, least = only_this + only_other, min(only_this, only_other)
    if n == 0:
        return 1.0
    logs = [
        math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2) for i in range(least + 1)
    ]
    return min(1.0, 2 * math.fsum(math.exp(one) for one in logs))


def compare(
    this: Mapping[str, Sequence[Outcome]], other: Mapping[str, Sequence[Outcome]], *, draws: int, seed: int = 0
) -> tuple[dict[str, TaskComparison], AverageComparison | None]:
    """Compares two evaluations task by task and on average, over the tasks that both have.

    Args:
      draws: of the bootstrap, which draws items, each with both outcomes, within every task.

    Raises:
      InputError: no task in common, or a task whose items are not the same.
    """
    shared = [task for task in this if task in other]
    if not shared:
        raise InputError("the two evaluations have no task in common; evaluate both on the same tasks")
    generator = np.random.default_rng(seed)
    compared, means = {}, []
    for task in shared:
        ours, theirs = _paired(task, this[task], other[task])
        differences = ours - theirs
        means.append(_bootstrap_means(differences, draws, generator))
        binary = bool(np.isin(ours, (0, 1)).all() and np.isin(theirs, (0, 1)).all())
        only_this, only_other = int((differences > 0).sum()), int((differences < 0).sum())
        compared[task] = TaskComparison(
            items=len(ours),
            only_this=only_this,
            only_other=only_other,
            difference=float(differences.mean()),
            **_interval(means[-1]),
            p_value=mcnemar(only_this, only_other) if binary else _p_value(means[-1]),
        )
    average = np.mean(means, axis=0)
    difference = float(np.mean([one.difference for one in compared.values()]))
    return compared, AverageComparison(difference=difference, **_interval(average), p_value=_p_value(average))


def _paired(task: str, ours: Sequence[Outcome], theirs: Sequence[Outcome]) -> tuple[np.ndarray, np.ndarray]:
    first, second = ({one.item: one.score for one in rows} for rows in (ours, theirs))
    if set(first) != set(second) or not first:
        both = len(set(first) & set(second))
        raise InputError(
            f"{task}: the evaluations judged {len(first):,} and {len(second):,} items, {both:,} of them the same; "
            "evaluate both on the same data and with the same limit"
        )
    items = sorted(first)
    return np.array([first[item] for item in items]), np.array([second[item] for item in items])


def _bootstrap_means(values: np.ndarray, draws: int, generator: np.random.Generator) -> np.ndarray:
    """Means of resamples; equal values are drawn together, which is the same and needs no n x draws array."""
    kinds, counts = np.unique(values, return_counts=True)
    drawn = generator.multinomial(len(values), counts / len(values), size=draws)
    return drawn @ kinds / len(values)


def _interval(means: np.ndarray) -> dict[str, float]:
    low, high = np.quantile(means, (0.025, 0.975))
    return {"low": float(low), "high": float(high)}


def _p_value(means: np.ndarray) -> float:
    """Twice the share of resamples on the far side of zero, never below what so many draws can tell."""
    tail = min((means <= 0).mean(), (means >= 0).mean())
    return float(min(1.0, max(2 * tail, 1 / len(means))))

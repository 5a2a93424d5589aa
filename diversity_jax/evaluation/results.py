"""What an evaluation found: accuracies with errors and intervals, their average, and every item's outcome for later comparisons."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import gzip
import json
import math
from pathlib import Path
from typing import Any

from diversity_jax.errors import InputError
from diversity_jax.evaluation.benchmarks import BY_TASK
from diversity_jax.storage import read_json, writing

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
        raise InputError(f"{folder / 'results.json'}: is not an evaluation of this version; run python -m diversity_jax.evaluate again")
    return value

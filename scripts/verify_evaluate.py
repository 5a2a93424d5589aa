"""Scores of a model trained here, beside those that lm-evaluation-harness's own Hugging Face backend gives its exported weights.

    python scripts/verify_evaluate.py runs/quickstart --data-dir FOLDER --items 100           (benchmark files as evaluate takes them)
    python scripts/verify_evaluate.py runs/quickstart --data-dir FOLDER --max-length 128      (contexts longer than the window)

Exports the weights with their tokenizer, asks both backends every request of the paper's eight tasks, ours at batch sizes 1, 8 and 64,
and prints for each task the largest difference of a log-likelihood and the accuracies. Ends with status 1 where a difference reaches
1e-3 or an accuracy differs. Needs torch and transformers.
"""

import argparse
from pathlib import Path
import subprocess
import sys
import tempfile
from typing import Any

BATCH_SIZES = (1, 8, 64)
TOLERANCE = 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path, help="a run's output folder")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--items", type=int, help="of each task; default: all")
    parser.add_argument("--max-length", type=int, help="window of both, shorter than the model's")
    parser.add_argument("--hf-batch-size", type=int, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / "exported"
        command = [sys.executable, "-m", "diversity_jax.model.convert", "export", str(options.checkpoint), str(exported)]
        subprocess.run(command, check=True)
        found = compare(
            options.checkpoint,
            exported,
            options.data_dir,
            items=options.items,
            max_length=options.max_length,
            batch_size=options.hf_batch_size,
        )
    for line in table(found):
        print(line)
    sys.exit(0 if all(one["largest"] < TOLERANCE and one["equal"] for one in found.values()) else 1)


def compare(
    checkpoint: Path, exported: Path, data_dir: Path, *, items: int | None, max_length: int | None, batch_size: int = 8
) -> dict[str, dict[str, Any]]:
    """By task: requests, the largest difference in nats, contexts cut by the window, and accuracies by backend."""
    from lm_eval.models.huggingface import HFLM

    from diversity_jax.evaluation.harness import HarnessModel
    from diversity_jax.model_files import open_model

    theirs = HFLM(pretrained=str(exported), device="cpu", dtype="float32", batch_size=batch_size, max_length=max_length)
    model = open_model(checkpoint, max_length=max_length)
    answers = {"hf": evaluate(theirs, data_dir, items)}
    for size in BATCH_SIZES:
        answers[f"ours, batch {size}"] = evaluate(HarnessModel(model, batch_size=size), data_dir, items)
    found = {}
    for task in answers["hf"]["results"]:
        likelihoods = {name: _likelihoods(one["samples"][task]) for name, one in answers.items()}
        ours = [likelihoods[name] for name in likelihoods if name != "hf"]
        metrics = {name: _accuracies(one["results"][task]) for name, one in answers.items()}
        lengths = [len(model.tokenizer.encode("".join(pair))) for pair in _pairs(answers["hf"]["samples"][task])]
        found[task] = {
            "requests": len(likelihoods["hf"]),
            "cut": sum(length > model.config.max_length + 1 for length in lengths),
            "largest": max(abs(a - b) for one in ours for a, b in zip(one, likelihoods["hf"], strict=True)),
            "equal": all(one == metrics["hf"] for one in metrics.values()),
            "same at every batch size": all(one == ours[0] for one in ours),
            "metrics": metrics,
        }
    return found


def evaluate(backend: Any, data_dir: Path, items: int | None) -> dict[str, Any]:
    """The harness's results and samples."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from diversity_jax.evaluation import benchmarks

    tasks, _ = benchmarks.build(benchmarks.task_names(["paper"]), data_dir)
    manager = TaskManager(include_defaults=False)
    return simple_evaluate(
        model=backend, tasks=tasks, task_manager=manager, num_fewshot=0, limit=items, log_samples=True, bootstrap_iters=0
    )


def _likelihoods(samples: list[dict[str, Any]]) -> list[float]:
    return [float(answer[0]) for sample in sorted(samples, key=lambda one: one["doc_id"]) for answer in sample["filtered_resps"]]


def _pairs(samples: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(pair[0], pair[1]) for sample in samples for pair in sample["arguments"]]


def _accuracies(results: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in results.items() if name.startswith(("acc,", "acc_norm,"))}


def table(found: dict[str, dict[str, Any]]) -> list[str]:
    """One aligned line a task."""
    lines = [f"{'task':<14} {'requests':>8} {'cut':>6} {'largest difference':>19}  {'hf':>7} {'ours':>7}  accuracies"]
    for task, one in found.items():
        hf, ours = (next(iter(one["metrics"][name].values())) for name in ("hf", f"ours, batch {BATCH_SIZES[0]}"))
        said = "identical" if one["equal"] else f"DIFFER: {one['metrics']}"
        same = "" if one["same at every batch size"] else "; ours depend on the batch size"
        lines.append(
            f"{task:<14} {one['requests']:>8,} {one['cut']:>6,} {one['largest']:>14.1e} nats  {hf:>7.4f} {ours:>7.4f}  {said}{same}"
        )
    return lines


if __name__ == "__main__":
    main()

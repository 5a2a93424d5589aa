"""Compares a model's benchmark scores with those of lm-evaluation-harness's Hugging Face backend on the exported
weights.

    python scripts/checks/verify_evaluate.py runs/quickstart --data-dir FOLDER
    python scripts/checks/verify_evaluate.py runs/quickstart --data-dir FOLDER --max-length 128

FOLDER holds benchmark files as `evaluate` reads them; with `--max-length`, contexts are longer than the window.

Exports the weights with their tokenizer and sends both backends every request of the paper's eight tasks, each at batch
sizes 1, 8 and 64: theirs reads one sequence at a time without padding at 1, and pads at 8 and 64. Then the likelihood
of complete texts (`--texts`, more than a window long where there are such) and greedy answers (`--answers`), ours and
theirs at batch sizes 1 and 8. Of complete texts ours are compared with theirs at 1: where windows of several lengths
share a batch, the harness's backend (0.4.13) does not always agree with itself. First the logits themselves, as
`model.convert check` compares them. Prints a table and ends with status 1 where they or a log-likelihood differ by more
than rounding (1e-4 of the spread of the task's log-likelihoods, since they are sums over answers of any length), or an
accuracy at all. Needs torch and transformers.

Where an answer alone does not fit into the window, the harness's backend stops with an assertion, since no truncation
of the context helps, and ours scores such an answer in parts. There is nothing to compare, so such items are left out
for both here, and counted.
"""

import argparse
from collections.abc import Sequence
import logging
from pathlib import Path
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from diversity_jax.evaluation.load_model import encode_pairs
from diversity_jax.model.convert import compare_with_transformers

BATCH_SIZES = (1, 8, 64)
TEXT_BATCH_SIZES = (1, 8)
ANSWER_TOKENS = 24
TOLERANCE = 1e-4  # of the standard deviation of the log-likelihoods


def main() -> None:
    options = _options()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / "exported"
        command = [
            sys.executable,
            "-m",
            "diversity_jax.model.convert",
            "export",
            str(options.checkpoint),
            str(exported),
        ]
        subprocess.run(command, check=True)
        paths = (options.checkpoint, exported, options.data_dir)
        window, sizes = options.max_length, options.batch_sizes
        comparisons = compare(*paths, items=options.items, max_length=window, tasks=options.tasks, batch_sizes=sizes)
        print("\n".join(table(comparisons)))
        logits = compare_with_transformers(exported)
        print(f"logits: {logits}")
        same = logits.is_same and all(item["relative"] < TOLERANCE and item["equal"] for item in comparisons.values())
        if options.texts:
            texts = compare_texts(*paths, max_length=options.max_length, texts=options.texts, answers=options.answers)
            print("\n".join(text_lines(texts)))
            same &= texts["relative"] < TOLERANCE
    sys.exit(0 if same else 1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path, help="a run's output folder")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--tasks", default="paper", help="of the paper's eight, joined by commas")
    parser.add_argument("--items", type=int, help="of each task; default: all")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=BATCH_SIZES)
    parser.add_argument("--max-length", type=int, help="window of both, shorter than the model's")
    parser.add_argument(
        "--texts", type=int, default=100, help="whole texts: passages of BoolQ, several joined; 0: none, nor answers"
    )
    parser.add_argument("--answers", type=int, default=100, help="greedy answers")
    return parser.parse_args()


def _backends(checkpoint: Path, exported: Path, max_length: int | None, sizes: Sequence[int]) -> dict[str, Any]:
    """One model each, under every batch size."""
    from lm_eval.models.huggingface import HFLM

    from diversity_jax.evaluation.lm_eval_model import HarnessModel
    from diversity_jax.evaluation.load_model import open_model

    model = open_model(checkpoint, max_length=max_length)
    theirs = {
        size: HFLM(pretrained=str(exported), device="cpu", dtype="float32", batch_size=size, max_length=max_length)
        for size in sizes
    }
    return {f"hf {size}": item for size, item in theirs.items()} | {
        f"ours {size}": HarnessModel(model, batch_size=size) for size in sizes
    }


def compare(
    checkpoint: Path,
    exported: Path,
    data_dir: Path,
    *,
    items: int | None,
    max_length: int | None,
    tasks: str = "paper",
    batch_sizes: Sequence[int] = BATCH_SIZES,
) -> dict[str, dict[str, Any]]:
    """By task: requests, the largest difference in nats, contexts cut by the window, items left out, and accuracies by
    backend.
    """
    backends = _backends(checkpoint, exported, max_length, batch_sizes)
    first = f"hf {batch_sizes[0]}"
    ours = backends[f"ours {batch_sizes[0]}"]
    prepared, left_out = _tasks(ours, data_dir, tasks)
    answers = {}
    for name, backend in backends.items():
        began = time.perf_counter()
        answers[name] = evaluate(backend, prepared, items)
        print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    comparisons = {}
    for task in answers[first]["results"]:
        likelihoods = {name: _likelihoods(item["samples"][task]) for name, item in answers.items()}
        choices = {name: _correct(item["samples"][task]) for name, item in answers.items()}
        metrics = {name: _accuracies(item["results"][task]) for name, item in answers.items()}
        lengths = [len(ours.tok_encode("".join(pair))) for pair in _pairs(answers[first]["samples"][task])]
        pairs = [
            (likelihoods[a], likelihoods[b]) for a in likelihoods for b in likelihoods if (a[0], b[0]) == ("o", "h")
        ]
        largest = max(abs(a - b) for item, other in pairs for a, b in zip(item, other, strict=True))
        comparisons[task] = {
            "requests": len(likelihoods[first]),
            "cut": sum(length > ours.max_length + 1 for length in lengths),
            "left_out": left_out[task],
            "largest": largest,
            "relative": largest / statistics.pstdev(likelihoods[first]),
            "theirs among themselves": _spread(
                [values for name, values in likelihoods.items() if name.startswith("hf")]
            ),
            "equal": all(item == metrics[first] for item in metrics.values()),
            "same at every batch size": not _spread(
                [values for name, values in likelihoods.items() if name.startswith("ours")]
            ),
            "metrics": metrics,
            "items": len(answers[first]["samples"][task]),
            "items that differ": sum(len(set(row)) > 1 for row in zip(*choices.values(), strict=True)),
        }
    return comparisons


def _tasks(model: Any, data_dir: Path, names: str) -> tuple[list[Any], dict[str, int]]:
    """The tasks without items whose answer is longer than the window, and how many those are."""
    from diversity_jax.evaluation import tasks as benchmarks

    tasks, _ = benchmarks.build(benchmarks.task_names(names.split(",")), data_dir)
    left_out = {}
    for task in tasks:
        task.set_config(key="num_fewshot", value=0)
        task.build_all_requests(limit=None, rank=0, world_size=1)
        asked = [(instance.doc_id, instance.args) for instance in task.instances]
        encoded = encode_pairs(model.model.tokenizer, [pair for _, pair in asked])
        long = {
            number for (number, _), (_, _, after) in zip(asked, encoded, strict=True) if len(after) > model.max_length
        }
        split = task.config.validation_split
        task.dataset[split] = task.dataset[split].select([i for i in range(len(task.dataset[split])) if i not in long])
        left_out[task.config.task] = len(long)
    return tasks, left_out


def evaluate(backend: Any, tasks: list[Any], items: int | None) -> dict[str, Any]:
    """The harness's results and samples."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=False)
    return simple_evaluate(
        model=backend,
        tasks=tasks,
        task_manager=manager,
        num_fewshot=0,
        limit=items,
        log_samples=True,
        bootstrap_iters=0,
    )


def compare_texts(
    checkpoint: Path, exported: Path, data_dir: Path, *, max_length: int | None, texts: int, answers: int
) -> dict[str, Any]:
    """Rolling likelihoods of whole texts, and greedy answers: the largest difference, and how many answers are the
    same.
    """
    from lm_eval.api.instance import Instance

    from diversity_jax.evaluation import tasks as benchmarks

    (task,), _ = benchmarks.build(["boolq"], data_dir)
    passages = list(dict.fromkeys(task.dataset[task.config.validation_split]["passage"]))
    wholes = [" ".join(passages[i : i + 1 + i % 4]) for i in range(min(texts, len(passages)))]
    settings = {"until": ["\n", "."], "max_gen_toks": ANSWER_TOKENS, "do_sample": False}
    rolling = [Instance("loglikelihood_rolling", {}, (text,), number) for number, text in enumerate(wholes)]
    asked = [
        Instance("generate_until", {}, (text, settings), number)
        for number, text in enumerate(passages[len(passages) - answers :])
    ]
    backends = _backends(checkpoint, exported, max_length, TEXT_BATCH_SIZES)
    likelihoods = {name: item.loglikelihood_rolling(rolling, disable_tqdm=True) for name, item in backends.items()}
    written = {name: item.generate_until(asked, disable_tqdm=True) for name, item in backends.items()}
    item = backends[f"ours {TEXT_BATCH_SIZES[0]}"]
    largest = _spread([values for name, values in likelihoods.items() if name != "hf 8"])
    return {
        "texts": len(wholes),
        "tokens": sum(len(item.tok_encode(text)) for text in wholes),
        "cut": sum(len(item.tok_encode(text)) > item.max_length for text in wholes),
        "largest": largest,
        "relative": largest / statistics.pstdev(likelihoods["hf 1"]),
        "theirs among themselves": sum(
            abs(a - b) >= 1e-3 for a, b in zip(likelihoods["hf 1"], likelihoods["hf 8"], strict=True)
        ),
        "answers": len(asked),
        "same": sum(len(set(row)) == 1 for row in zip(*written.values(), strict=True)),
    }


def _spread(rows: Sequence[Sequence[float]]) -> float:
    """The largest difference between any two of several lists, place by place."""
    return max((max(row) - min(row) for row in zip(*rows, strict=True)), default=0.0)


def _likelihoods(samples: list[dict[str, Any]]) -> list[float]:
    return [
        float(answer[0])
        for sample in sorted(samples, key=lambda item: item["doc_id"])
        for answer in sample["filtered_resps"]
    ]


def _correct(samples: list[dict[str, Any]]) -> list[tuple[float, ...]]:
    """What each item counts for, by every accuracy that the task has."""
    ordered = sorted(samples, key=lambda item: item["doc_id"])
    return [tuple(sample[name] for name in ("acc", "acc_norm") if name in sample) for sample in ordered]


def _pairs(samples: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(pair[0], pair[1]) for sample in samples for pair in sample["arguments"]]


def _accuracies(results: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in results.items() if name.startswith(("acc,", "acc_norm,"))}


def table(comparisons: dict[str, dict[str, Any]]) -> list[str]:
    """One aligned line a task."""
    names = f"{'task':<14} {'requests':>8} {'cut':>6} {'left out':>8} {'largest difference':>19} {'of spread':>9}"
    lines = [f"{names} {'theirs':>9}  {'hf':>6} {'ours':>6}  accuracies"]
    for task, item in comparisons.items():
        hf, ours = (
            next(next(iter(values.values())) for name, values in item["metrics"].items() if name.startswith(whose))
            for whose in ("hf", "ours")
        )
        differing = f"{item['items that differ']} of {item['items']} items differ"
        output = f"identical, {differing}" if item["equal"] else f"DIFFER: {item['metrics']}, {differing}"
        same = "" if item["same at every batch size"] else "; ours depend on the batch size"
        lines.append(
            f"{task:<14} {item['requests']:>8,} {item['cut']:>6,} {item['left_out']:>8,} {item['largest']:>14.1e} nats "
            f"{item['relative']:>9.1e} {item['theirs among themselves']:>9.1e}  {hf:>6.4f} {ours:>6.4f}  {output}{same}"
        )
    return [
        *lines,
        "cut: longer than the window; theirs: the largest difference between batch sizes of the harness's backend",
    ]


def text_lines(result: dict[str, Any]) -> list[str]:
    """The result of `compare_texts` for people."""
    return [
        f"whole texts: {result['texts']:,} of {result['tokens']:,} tokens, {result['cut']:,} longer than the window; "
        f"largest difference {result['largest']:.1e} nats, {result['relative']:.1e} of their spread, from the "
        f"harness's backend at batch size 1; its own at 1 and 8 differ in {result['theirs among themselves']:,}",
        f"greedy answers of {ANSWER_TOKENS} tokens at most: {result['same']:,} of {result['answers']:,} the same in "
        "all backends",
    ]


if __name__ == "__main__":
    main()

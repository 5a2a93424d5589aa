"""Judge a checkpoint: the paper's eight benchmarks or any task of lm-evaluation-harness, held-out text, and another
checkpoint beside it.

    python -m diversity_jax.evaluate --config configs/evaluate_paper.py --config.model.checkpoint=runs/quickstart
    python -m diversity_jax.evaluate --config configs/evaluate_paper.py --config.model.checkpoint=DIR --config.data_dir=FILES

Run again with the same output_dir to go on after an interruption; finished requests are not asked again.
"""

from collections.abc import Mapping
import dataclasses
import importlib.metadata
import logging
import os
from pathlib import Path
import subprocess
import sys
from typing import Any

from diversity_jax.core import cli
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import write_json
from diversity_jax.evaluation.config import EvaluateConfig

log = logging.getLogger(__name__)


def main(config: EvaluateConfig) -> None:
    """The whole evaluation."""
    from diversity_jax.core import run_info
    from diversity_jax.report.pages import evaluation

    config.model.check_named()
    os.environ.setdefault("TQDM_MININTERVAL", "10")  # the harness draws bars for everything, also into log files
    tasks, sources = _tasks(config)  # before the model: a bad file should not cost its loading
    other = _other(config)
    model = _open(config)
    import jax

    output_dir = Path(config.output_dir)
    log.info("model: %s, %s parameters", model.name, f"{model.config.parameter_count:,}")
    results = {
        "format_version": 1,
        "model": _model_facts(model),
        "code": _code_facts(),
        "limit": config.limit,
        "data": sources,
    }
    results |= {"tasks": {}, "average": None}
    if tasks:
        results |= _benchmarks(config, model, tasks, output_dir, sources)
    results["held_out"] = _held_out(config, model)
    if other is not None:
        results["comparison"] = _compare(config, output_dir, results, other)
    run_info.describe(sys.argv, config, jax.devices()).save(output_dir)
    write_json(output_dir / "results.json", results)
    for line in summary(results):
        log.info(line)
    print(evaluation.write(output_dir, results))


def _open(config: EvaluateConfig) -> Any:
    from diversity_jax.evaluation.load_model import open_model

    source = {field.name: getattr(config.model, field.name) for field in dataclasses.fields(config.model)}
    return open_model(source.pop("checkpoint"), **source)


def _tasks(config: EvaluateConfig) -> tuple[list[Any], dict[str, Any]]:
    """The harness's tasks, built, and where the local ones came from."""
    if not config.task_list:
        return [], {}
    _need_harness()
    for noisy in ("lm_eval", "datasets"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    from diversity_jax.evaluation import tasks as benchmarks

    if config.data_dir is not None and not Path(config.data_dir).is_dir():
        raise InputError(
            f"data_dir={config.data_dir}: no such folder; give one with benchmark files, or leave it out to use the hub"
        )
    return benchmarks.build(
        benchmarks.task_names(config.task_list),
        None if config.data_dir is None else Path(config.data_dir),
        num_fewshot=config.num_fewshot,
    )


def _need_harness() -> None:
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"benchmarks need lm-evaluation-harness ({error}); pip install 'diversity_jax[eval]'"
        ) from None


def _benchmarks(
    config: EvaluateConfig, model: Any, tasks: list[Any], output_dir: Path, sources: dict[str, Any]
) -> dict[str, Any]:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from diversity_jax.evaluation import results
    from diversity_jax.evaluation import tasks as benchmarks
    from diversity_jax.evaluation.lm_eval_model import HarnessModel

    store = output_dir / "requests" / f"{model.weights_hash[:16]}.jsonl"
    harness = HarnessModel(model, batch_size=config.batch_size, store=store, slots=config.slots)
    found = simple_evaluate(
        model=harness,
        tasks=tasks,
        task_manager=TaskManager(include_defaults=False),
        num_fewshot=config.num_fewshot,
        limit=config.limit,
        system_instruction=config.system_prompt,
        apply_chat_template=config.apply_chat_template,
        log_samples=True,
        random_seed=config.seed,
        numpy_random_seed=config.seed,
        torch_random_seed=config.seed,
        fewshot_random_seed=config.seed,
    )
    harness.store.close()
    summary_ = results.summarise(found)
    for name, samples in found["samples"].items():
        results.write_samples(output_dir / "samples", name, samples)
        documents = benchmarks.data_hash([sample["doc"] for sample in samples])
        sources.setdefault(name, {})["documents_sha256"] = documents
    return {"tasks": summary_, "average": results.paper_average(summary_), "data": sources}


def _held_out(config: EvaluateConfig, model: Any) -> dict[str, Any]:
    """Loss on the run's held-out rows and on out-of-distribution text, by name."""
    from diversity_jax.evaluation.held_out import documents_loss

    scorer = model.scorer(config.batch_size)
    found = _component_losses(config, model, scorer) if config.held_out else {}
    for one in config.out_of_distribution:
        from diversity_jax.corpus import open_corpus

        texts = [document.text for document in open_corpus(one.corpus)]
        loss = documents_loss(model, scorer, texts, name=one.name)
        found[one.name] = {"kind": "out of distribution", **dataclasses.asdict(loss)}
    return found


def _component_losses(config: EvaluateConfig, model: Any, scorer: Any) -> dict[str, Any]:
    import numpy as np

    from diversity_jax.evaluation.held_out import conversations_loss, rows_loss
    from diversity_jax.evaluation.load_model import mixture_folder, run_settings
    from diversity_jax.mixtures.mixture import Mixture
    from diversity_jax.prepare.rows import RowReader

    run = Path(config.model.checkpoint)
    if not (run / "run.json").exists():
        raise InputError(
            f"held_out needs a run's output folder; {run} is none: leave held_out off, or name texts in "
            "out_of_distribution"
        )
    mixture = Mixture.load(mixture_folder(run))
    apart = not (run_settings(run).get("train") or {}).get("attend_across_documents", True)
    found = {}
    for part in mixture.taken:
        split = part.manifest.splits.get("validation")
        if split is None or not split.rows:
            log.warning("%s: holds out no rows, so its loss is not measured", part.name)
            continue
        rows = RowReader(part.manifest, "validation").read_with_flags(np.arange(split.rows))
        if rows.targets is not None:
            size = {"answer_bytes": split.text_bytes, "max_length": model.config.max_length}
            loss = conversations_loss(scorer, rows.tokens, rows.targets, rows.starts, name=part.name, **size)
        else:
            loss = rows_loss(
                scorer,
                rows.tokens[:, -(model.config.max_length + 1) :],
                bytes_per_token=split.text_bytes / (split.tokens + split.dropped_tokens),
                separate_at=mixture.vocabulary.end_of_text_id if apart else None,
                name=part.name,
            )
        found[part.name] = {"kind": part.kind, **dataclasses.asdict(loss)}
    return found


def _other(config: EvaluateConfig) -> tuple[Path, dict[str, Any]] | None:
    if config.compare_with is None:
        return None
    from diversity_jax.evaluation.results import load_results

    folder = Path(config.compare_with)
    if folder.resolve() == Path(config.output_dir).resolve():
        raise InputError(f"compare_with={folder}: is this evaluation's own output_dir; name another evaluation's")
    return folder, load_results(folder)


def _compare(
    config: EvaluateConfig, output_dir: Path, found: Mapping[str, Any], other: tuple[Path, dict[str, Any]]
) -> dict[str, Any]:
    from diversity_jax.evaluation.results import compare, outcomes, read_samples

    folder, theirs = other
    shared = [name for name in found["tasks"] if name in theirs["tasks"]]
    ours, others = (
        {name: outcomes(read_samples(place, name), found["tasks"][name]["metric"]) for name in shared}
        for place in (output_dir, folder)
    )
    tasks, average = compare(ours, others, draws=config.bootstrap_samples, seed=config.seed)
    return {
        "with": str(folder),
        "model": theirs["model"],
        "tasks": {name: dataclasses.asdict(one) for name, one in tasks.items()},
        "average": dataclasses.asdict(average),
    }


def _model_facts(model: Any) -> dict[str, Any]:
    tokenizer = model.tokenizer
    return {
        "name": model.name,
        "parameters": model.config.parameter_count,
        "weights_sha256": model.weights_hash,
        "tokenizer_hash": tokenizer.vocabulary.hash,
        "max_length": model.config.max_length,
        "fine_tuned": tokenizer.chat_template is not None,
        "compute_dtype": model.config.compute_dtype,
        "mesh": dict(model.mesh.shape),
    }


def _code_facts() -> dict[str, Any]:
    """Versions, and the commit where the code lies in a git checkout."""
    versions = {"python": sys.version.split()[0]}
    for package in ("diversity_jax", "jax", "jaxlib", "flax", "numpy", "lm_eval", "tokenizers", "sentencepiece"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    here = Path(__file__).resolve().parent
    asked = [["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]]
    try:
        commit, changed = (
            subprocess.run(
                ["git", "-C", str(here), *one], capture_output=True, text=True, check=True, timeout=20
            ).stdout.strip()
            for one in asked
        )
    except (OSError, subprocess.SubprocessError):
        return {"versions": versions, "commit": None}
    return {"versions": versions, "commit": commit + (" with local changes" if changed else "")}


def summary(results: Mapping[str, Any]) -> list[str]:
    """The figures in a few aligned lines."""
    lines = []
    for task in results["tasks"].values():
        one = task["metrics"][task["metric"]]
        error = "" if one["stderr"] is None else f" ± {100 * one['stderr']:.2f}"
        lines.append(
            f"{task['title']:<16} {task['metric']:<9} {100 * one['value']:6.2f}{error}  ({task['items']:,} items)"
        )
    if results["average"]:
        one = results["average"]
        error = "" if one["stderr"] is None else f" ± {100 * one['stderr']:.2f}"
        lines.append(f"{'average':<16} {'':<9} {100 * one['value']:6.2f}{error}")
    for name, loss in results["held_out"].items():
        lines.append(
            f"{name:<16} {loss['nats_per_token']:.4f} nats/token, {loss['bits_per_byte']:.4f} bits/byte  "
            f"({loss['tokens']:,} tokens)"
        )
    if comparison := results.get("comparison"):
        one = comparison["average"]
        said = (
            f"{100 * one['difference']:+.2f} points [{100 * one['low']:+.2f}, {100 * one['high']:+.2f}], p = "
            f"{one['p_value']:.3g}"
        )
        lines.append(f"against {comparison['model']['name']}: {said}")
    return lines


if __name__ == "__main__":
    cli.run(main, EvaluateConfig, __doc__)

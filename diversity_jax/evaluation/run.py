"""Runs the commands `evaluate` and `generate_text`, from their configurations to their results."""

from collections.abc import Iterable, Mapping, Sequence
import contextlib
import dataclasses
import io
import json
import logging
import os
from pathlib import Path
import subprocess
from typing import TYPE_CHECKING, Any
import urllib.error
import urllib.request

from diversity_jax.core import run_info
from diversity_jax.core.buckets import local_copy
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import content_hash, exists, read_text, remove_tree
from diversity_jax.core.formats import counted
from diversity_jax.core.json_text import parse_json
from diversity_jax.corpus.document import refuse_lone_surrogate
from diversity_jax.evaluation.config import EvaluateConfig, GenerateTextConfig, ModelSource
from diversity_jax.evaluation.load_model import LanguageModel, open_model
from diversity_jax.evaluation.results import (
    FORMAT_VERSION,
    compare,
    is_accuracy,
    load_results,
    outcomes,
    paper_average,
    read_samples,
    summarise,
    write_samples,
)

if TYPE_CHECKING:
    from diversity_jax.evaluation.generate import Generator

log = logging.getLogger(__name__)
# Fields that may differ when an evaluation is resumed: they change what is measured and how fast, but no figure.
_FREE = (
    *("output_dir", "resume", "overwrite", "tasks", "held_out", "out_of_distribution", "compare_with"),
    *("bootstrap_samples", "batch_size", "slots", "model.config"),
)
_HUB_SECONDS = 10.0  # timeout of the test whether the hub can be reached
_PACKAGES = ("diversity_jax", "jax", "jaxlib", "flax", "numpy", "lm_eval", "tokenizers", "sentencepiece")


def open_source(source: ModelSource, name: str | None = None) -> LanguageModel:
    """Opens the model that a configuration names.

    Raises:
      InputError: it names none, or as `open_model`.
    """
    source.check_named()
    return open_model(**vars(source), name=name)


def check_folder(config: EvaluateConfig) -> None:
    """Raises `InputError` where `output_dir` holds another command's output or another evaluation; writes nothing."""
    config.model.check_named()
    if not config.overwrite:
        kind = "held_out", "evaluation"
        run_info.refuse_other_run(config.output_dir, config, *kind, free=_FREE, resume=config.resume)


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Runs an evaluation; returns the content of `results.json`.

    Raises:
      InputError: a bad file, an unknown task, a damaged model, or an evaluation to compare with that does not fit.
    """
    config.model.check_named()
    os.environ.setdefault("TQDM_MININTERVAL", "10")  # of the harness's progress bars, which also go to logs
    tasks, sources = _build_tasks(config)  # before the model is loaded, so that bad files fail early
    other = _load_other(config)
    model = open_source(config.model)
    log.info("model: %s, %s parameters", model.name, f"{model.config.parameter_count:,}")
    summaries, samples = _benchmarks(config, model, tasks, sources) if tasks else ({}, {})
    losses = _losses(config, model)
    if config.overwrite:
        remove_tree(Path(config.output_dir) / "samples")
    for name, items in samples.items():
        write_samples(Path(config.output_dir) / "samples", name, items)
    results = {
        "format_version": FORMAT_VERSION,
        "model": _model_facts(model),
        "code": _code_facts(),
        "limit": config.limit,
        "data": sources,
        "tasks": summaries,
        "average": paper_average(summaries),
        "held_out": losses,
    }
    return results if other is None else results | {"comparison": _compare(config, summaries, other)}


def _build_tasks(config: EvaluateConfig) -> tuple[list[Any], dict[str, Any]]:
    if not config.task_list:
        return [], {}
    for verbose in ("lm_eval", "datasets", "huggingface_hub", "httpx", "httpx2"):
        logging.getLogger(verbose).setLevel(logging.ERROR)
    if config.data_dir is None:
        _stay_offline_without_hub()
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise InputError(f"benchmarks need lm_eval ({error}); pip install 'diversity_jax[eval]'") from None
    from diversity_jax.evaluation import tasks

    folder = None if config.data_dir is None else local_copy(config.data_dir)
    if folder is not None and not folder.is_dir():
        raise InputError(f"data_dir={folder}: no such folder; give one with benchmark files, or None for the hub")
    return tasks.build(tasks.task_names(config.task_list), folder, num_fewshot=config.num_fewshot)


def _stay_offline_without_hub() -> None:
    """Switches the hub's clients to their cache where the hub cannot be reached; they would retry for minutes."""
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    if os.environ.get("HF_HUB_OFFLINE"):
        return
    try:
        with urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=_HUB_SECONDS):
            return
    except urllib.error.HTTPError:  # it answers
        return
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
    os.environ["HF_HUB_OFFLINE"] = "1"
    import datasets
    import huggingface_hub.constants

    datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True  # which were read at import
    log.warning("%s cannot be reached (%s): benchmarks are read from the cache on this disk alone", endpoint, reason)


def _benchmarks(
    config: EvaluateConfig, model: LanguageModel, tasks: list[Any], sources: dict[str, Any]
) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """Summaries of the tasks, and each task's samples."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from diversity_jax.evaluation.lm_eval_model import HarnessModel

    store = Path(config.output_dir) / "requests" / f"{model.weights_hash[:16]}.jsonl"
    harness = HarnessModel(model, batch_size=config.batch_size, store=store, slots=config.slots)
    try:
        harness_results = simple_evaluate(
            model=harness,
            tasks=tasks,
            task_manager=TaskManager(include_defaults=False),
            num_fewshot=config.num_fewshot,
            limit=config.limit,
            system_instruction=config.system_prompt,
            apply_chat_template=config.apply_chat_template,
            log_samples=True,
            **{f"{name}random_seed": config.seed for name in ("", "numpy_", "torch_", "fewshot_")},
        )
    except ValueError as error:
        if "Sample larger than population" not in str(error):  # of the examples that the harness draws
            raise
        raise InputError(f"num_fewshot={config.num_fewshot}: a task has fewer examples to show; lower it") from None
    harness.store.close()
    for name, samples in harness_results["samples"].items():
        documents = json.loads(json.dumps([sample["doc"] for sample in samples], default=str))
        sources.setdefault(name, {})["documents_sha256"] = content_hash(documents)
    return summarise(harness_results), harness_results["samples"]


def _losses(config: EvaluateConfig, model: LanguageModel) -> dict[str, Any]:
    """Losses on the run's held-out rows and on out-of-distribution text, by name."""
    from diversity_jax.corpus import open_corpus
    from diversity_jax.evaluation.held_out import component_losses, documents_loss

    scorer = model.scorer(config.batch_size)
    losses = component_losses(config.model.checkpoint, model, scorer) if config.held_out else {}
    if shared := [held_out.name for held_out in config.out_of_distribution if held_out.name in losses]:
        raise InputError(f"out_of_distribution: {shared[0]!r} is also a component of the run; choose another name")
    for held_out in config.out_of_distribution:
        texts = [document.text for document in open_corpus(held_out.corpus)]
        losses[held_out.name] = "out of distribution", documents_loss(model, scorer, texts, name=held_out.name)
    return {name: {"kind": kind, **dataclasses.asdict(loss)} for name, (kind, loss) in losses.items()}


def _load_other(config: EvaluateConfig) -> tuple[Path, dict[str, Any]] | None:
    if config.compare_with is None:
        return None
    folder = local_copy(config.compare_with)
    if folder.resolve() == Path(config.output_dir).resolve():
        raise InputError(f"compare_with={folder}: is this evaluation's own output_dir; name another evaluation's")
    return folder, load_results(folder)


def _compare(config: EvaluateConfig, tasks: Mapping[str, Any], other: tuple[Path, Mapping[str, Any]]) -> dict[str, Any]:
    other_folder, other_results = other
    both = [name for name in tasks if name in other_results["tasks"]]
    shared = [name for name in both if is_accuracy(tasks[name]) and is_accuracy(other_results["tasks"][name])]
    ours, theirs = (
        {name: outcomes(read_samples(folder, name), tasks[name]["metric"]) for name in shared}
        for folder in (Path(config.output_dir), other_folder)
    )
    compared, average = compare(ours, theirs, draws=config.bootstrap_samples, seed=config.seed)
    return {
        "with": str(config.compare_with),
        "model": other_results["model"],
        "tasks": {name: dataclasses.asdict(comparison) for name, comparison in compared.items()},
        "average": dataclasses.asdict(average),
    }


def _model_facts(model: LanguageModel) -> dict[str, Any]:
    return {
        "name": model.name,
        "parameters": model.config.parameter_count,
        "weights_sha256": model.weights_hash,
        "tokenizer_hash": model.tokenizer.vocabulary.hash,
        "max_length": model.config.max_length,
        "fine_tuned": model.tokenizer.chat_template is not None,
        "compute_dtype": model.config.compute_dtype,
        "mesh": dict(model.mesh.shape),
    }


def _code_facts() -> dict[str, Any]:
    """Versions of packages, and the commit where the code is in a git checkout."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).resolve().parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    commit = None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        changed = git("status", "--porcelain", "--untracked-files=no")
        commit = git("rev-parse", "HEAD") + (" with local changes" if changed else "")
    return {"versions": run_info.package_versions(_PACKAGES), "commit": commit}


def summary(results: Mapping[str, Any]) -> list[str]:
    """The figures in a few aligned lines."""

    def shown(figure: Mapping[str, float | None], *, in_percent: bool = True) -> str:
        unit = 100 if in_percent else 1
        error = "" if figure["stderr"] is None else f" (standard error {unit * figure['stderr']:.2f})"
        return f"{unit * (figure['value'] or 0.0):6.2f}{error}"

    lines = [
        f"{task['title']:<16} {task['metric']:<9} "
        f"{shown(task['metrics'][task['metric']], in_percent=is_accuracy(task))}  ({counted(task['items'], 'item')})"
        for task in results["tasks"].values()
    ]
    if results["average"]:
        lines.append(f"{'average':<16} {'':<9} {shown(results['average'])}")
    lines += [
        f"{name:<16} {loss['nats_per_token']:.4f} nats/token, {loss['bits_per_byte']:.4f} bits/byte  "
        f"({counted(loss['tokens'], 'token')})"
        for name, loss in results["held_out"].items()
    ]
    if comparison := results.get("comparison"):
        average = comparison["average"]
        difference, low, high = (100 * average[name] for name in ("difference", "low", "high"))
        lines.append(
            f"against {comparison['model']['name']}: {difference:+.2f} points [{low:+.2f}, {high:+.2f}], p = "
            f"{average['p_value']:.3g}"
        )
    return lines


def refuse_existing(config: GenerateTextConfig) -> None:
    """Raises `InputError` where the file of answers exists and `overwrite` is not set."""
    if config.output is not None and not config.overwrite and exists(config.output):
        raise InputError(f"output={config.output}: is there already; choose another name, or set overwrite=True")


def generate_text(
    model: LanguageModel,
    prompts: Iterable[Mapping[str, Any]],
    config: GenerateTextConfig,
    generator: "Generator | None" = None,
) -> list[dict[str, Any]]:
    """Generates `samples` answers per prompt; returns each prompt with `text`, `finish_reason` and `tokens` added.

    Args:
      prompts: each with `prompt` (text) or `messages` (a conversation).
      generator: of this model, to reuse its compiled programs; None: a new one.

    Raises:
      InputError: a prompt does not fit into the context, or the chat template fails.
    """
    from diversity_jax.evaluation.generate import Generator
    from diversity_jax.evaluation.sampling import Sampling

    names = ("max_tokens", "temperature", "top_k", "top_p", "stop")
    shared = {name: getattr(config, name) for name in names}
    settings = [Sampling(**shared, seed=config.seed + number) for number in range(config.samples)]
    prompts = list(prompts)

    def name(number: int) -> str:
        return f"prompt {number + 1} of {len(prompts)}" if len(prompts) > 1 else "the prompt"

    ids = []
    for number, prompt in enumerate(prompts):
        try:
            ids.append(_prompt_ids(model, prompt, config))
        except InputError as error:
            raise InputError(f"{name(number)}: {error}") from None
    repeated = [(prompt, sampling) for prompt in prompts for sampling in settings]
    generator = generator or Generator(model, slots=min(config.slots, len(repeated)))
    answers = generator.generate(
        [tokens for tokens in ids for _ in settings],
        [sampling for _, sampling in repeated],
        name=lambda number: name(number // len(settings)),
    )
    return [
        {**prompt, "text": answer.text, "finish_reason": answer.finish_reason, "tokens": len(answer.tokens)}
        for (prompt, _), answer in zip(repeated, answers, strict=True)
    ]


def _prompt_ids(model: LanguageModel, prompt: Mapping[str, Any], config: GenerateTextConfig) -> Sequence[int]:
    refuse_lone_surrogate(prompt.get("prompt") or "", "prompt")
    refuse_lone_surrogate(config.system_prompt or "", "system_prompt")
    messages = prompt.get("messages")
    if messages is None and not config.chat:
        return model.tokenizer.encode_prompt(prompt["prompt"])
    messages = list([{"role": "user", "content": prompt["prompt"]}] if messages is None else messages)
    if messages and config.system_prompt:
        messages.insert(0, {"role": "system", "content": config.system_prompt})
    return model.encode_chat(messages)[1]


def read_prompts(path: str) -> list[dict[str, Any]]:
    """Prompts of a file: JSON lines where its name ends in `.jsonl`, otherwise one per line.

    Raises:
      InputError: no such file, no prompt in it, or a bad line, which is named.
    """
    numbered = enumerate(io.StringIO(read_text(path)), 1)  # other line ends than \\n are part of a prompt
    lines = [(number, line.rstrip("\n")) for number, line in numbered if line.strip()]
    if not lines:
        raise InputError(f"{path}: holds no prompt")
    if not path.endswith(".jsonl"):
        return [{"prompt": line} for _, line in lines]
    prompts = []
    for number, line in lines:
        prompt = parse_json(line, f"{path}:{number}")
        given = prompt if isinstance(prompt, dict) else {}
        if not isinstance(given.get("prompt"), str) and not isinstance(given.get("messages"), list):
            raise InputError(f'{path}:{number}: expected an object with "prompt" (text) or "messages" (a list)')
        if None not in (given.get("prompt"), given.get("messages")):
            raise InputError(f'{path}:{number}: has both "prompt" and "messages"; take one out')
        prompts.append(prompt)
    return prompts

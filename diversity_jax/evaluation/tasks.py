"""Builds tasks of lm-evaluation-harness: the paper's eight benchmarks, others, and benchmarks made from a corpus."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
import itertools
import json
import logging
from pathlib import Path
import random
from typing import Any

from diversity_jax.core.compression import read_lines
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import file_hash, join_path, writing
from diversity_jax.core.formats import counted
from diversity_jax.core.json_text import parse_json
from diversity_jax.core.words import count_words, first_words
from diversity_jax.corpus import open_corpus
from diversity_jax.evaluation.config import ContinuationsConfig

log = logging.getLogger(__name__)
_ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".json.gz")
Item = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class ItemField:
    """Requirements of a field of an item.

    Attributes:
      types: allowed types; bool is not int.
      choices: allowed values, compared as texts; empty: any.
      nonempty: whether blank text is refused.
    """

    types: tuple[type, ...] = (str,)
    choices: tuple[Any, ...] = ()
    nonempty: bool = False

    def problem(self, name: str, value: Any) -> str | None:
        """What is wrong with a value of the field `name`; None: nothing."""
        if not isinstance(value, self.types) or isinstance(value, bool):
            expected = " or ".join(kind.__name__ for kind in self.types)
            return f"{name} is {type(value).__name__}; expected {expected}"
        if self.nonempty and not str(value).strip():
            return f"{name} is empty: an answer needs text"
        return _outside(name, value, self.choices) if self.choices else None


def _outside(name: str, value: Any, choices: Sequence[Any]) -> str | None:
    if str(value) in map(str, choices):
        return None
    return f"{name}={value!r} is not among its choices ({', '.join(map(str, choices))})"


_TEXT, _ANSWER = ItemField(), ItemField(nonempty=True)
_BINARY = ItemField(types=(int,), choices=(0, 1))


def _arc_problem(item: Item) -> str | None:
    labels, texts = item["choices"].get("label"), item["choices"].get("text")
    if not isinstance(labels, list) or not isinstance(texts, list) or len(labels) != len(texts):
        return "choices needs two lists of one length, text and label"
    if not all(isinstance(label, str) for label in labels) or len(set(labels)) < len(labels):
        return f"choices.label is {labels}; expected different texts, such as A and B"
    return _answers_problem("choices.text", texts) or _outside("answerKey", item["answerKey"], labels)


def _answers_problem(name: str, texts: Sequence[Any]) -> str | None:
    if not all(isinstance(text, str) and text.strip() for text in texts):
        return f"{name} holds an empty answer"
    return f"{name} holds {len(texts)} answers; at least two are needed to choose from" if len(texts) < 2 else None


def _winogrande_problem(item: Item) -> str | None:
    return None if "_" in item["sentence"] else "sentence has no gap (_) for the options"


def _hellaswag_problem(item: Item) -> str | None:
    return _answers_problem("endings", item["endings"]) or _outside("label", item["label"], range(len(item["endings"])))


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A task of the harness as the paper uses it.

    Attributes:
      task: the harness's name.
      definition: path of the task's YAML below `lm_eval/tasks`.
      fields: required fields of an item; others are ignored.
      aliases: other names of the task in names of local files.
      item_problem: further check of an item whose fields are valid, as `check`.
      metric: `acc`, or `acc_norm` where the paper normalises by length.
      split: the split to evaluate on.
    """

    task: str
    title: str
    definition: str
    fields: Mapping[str, ItemField]
    aliases: tuple[str, ...] = ()
    item_problem: Callable[[Item], str | None] = lambda item: None
    metric: str = "acc"
    split: str = "validation"

    @property
    def files(self) -> tuple[str, ...]:
        """Prefixes of local files' names, before `_SPLIT`."""
        return (*self.aliases, self.task)

    def check(self, item: Item) -> str | None:
        """What is wrong with an item; None: nothing."""
        for name, field in self.fields.items():
            if name not in item:
                return f"lacks the field {name!r} (expected {', '.join(self.fields)})"
            if problem := field.problem(name, item[name]):
                return problem
        return self.item_problem(item)


_ARC = {"question": _TEXT, "choices": ItemField(types=(dict,)), "answerKey": _TEXT}
PAPER = (
    Benchmark(
        task="arc_challenge",
        title="ARC-Challenge",
        definition="arc/arc_challenge.yaml",
        fields=_ARC,
        item_problem=_arc_problem,
        metric="acc_norm",
        split="test",
    ),
    Benchmark(
        task="arc_easy",
        title="ARC-Easy",
        definition="arc/arc_easy.yaml",
        fields=_ARC,
        item_problem=_arc_problem,
        split="test",
    ),
    Benchmark(
        task="boolq",
        title="BoolQ",
        definition="super_glue/boolq/default.yaml",
        fields={"passage": _TEXT, "question": _TEXT, "label": _BINARY},
    ),
    Benchmark(
        task="social_iqa",
        title="SIQA",
        definition="siqa/siqa.yaml",
        aliases=("siqa", "socialiqa"),
        fields={"context": _TEXT, "question": _TEXT, "answerA": _ANSWER, "answerB": _ANSWER, "answerC": _ANSWER}
        | {"label": ItemField(types=(str, int), choices=(1, 2, 3))},
    ),
    Benchmark(
        task="winogrande",
        title="WinoGrande",
        definition="winogrande/default.yaml",
        aliases=("winogrande_xl",),
        fields={"sentence": _TEXT, "option1": _ANSWER, "option2": _ANSWER, "answer": ItemField(choices=(1, 2))},
        item_problem=_winogrande_problem,
    ),
    Benchmark(
        task="piqa",
        title="PIQA",
        definition="piqa/piqa.yaml",
        fields={"goal": _TEXT, "sol1": _ANSWER, "sol2": _ANSWER, "label": _BINARY},
    ),
    Benchmark(
        task="copa",
        title="COPA",
        definition="super_glue/copa/default.yaml",
        fields={"premise": _TEXT, "question": ItemField(choices=("cause", "effect"))}
        | {"choice1": _ANSWER, "choice2": _ANSWER, "label": _BINARY},
    ),
    Benchmark(
        task="hellaswag",
        title="HellaSwag",
        definition="hellaswag/hellaswag.yaml",
        fields={"activity_label": _TEXT, "ctx_a": _TEXT, "ctx_b": _TEXT}
        | {"endings": ItemField(types=(list,)), "label": ItemField(types=(str, int))},
        item_problem=_hellaswag_problem,
        metric="acc_norm",
    ),
)
BY_TASK = {benchmark.task: benchmark for benchmark in PAPER}


def task_names(names: Sequence[str]) -> list[str]:
    """Task names, each once, with `paper` replaced by its eight.

    Raises:
      InputError: no task.
    """
    tasks = [task for name in names for task in (BY_TASK if name == "paper" else (name,))]
    if not tasks:
        raise InputError("tasks is empty; name tasks of lm-evaluation-harness, or paper for the eight of the paper")
    return list(dict.fromkeys(tasks))


def read_items(path: Path, check: Callable[[Item], str | None]) -> list[dict[str, Any]]:
    """Items of a JSON-lines file, each checked.

    Raises:
      InputError: the file cannot be read, or a line is no object or fails the check.
    """
    items = []
    for number, line in enumerate(itertools.chain.from_iterable(read_lines(str(path))), 1):
        if not line.strip():
            continue
        item = parse_json(line, f"{path}:{number}", remedy="mend the line or remove it")
        problem = check(item) if isinstance(item, dict) else f"is a {type(item).__name__}, not an object"
        if problem:
            raise InputError(f"{path}:{number}: {problem}; mend the line or remove it")
        items.append(item)
    if not items:
        raise InputError(f"{path}: holds no item; expected one JSON object a line")
    if repeated := len(items) - len({json.dumps(item, sort_keys=True) for item in items}):
        log.warning("%s: %s the same as an earlier one; each counts", path, counted(repeated, "item is", "items are"))
    return items


def local_file(folder: Path, benchmark: Benchmark, split: str) -> Path | None:
    """The file of a split: `NAME_SPLIT*.jsonl` or .json, possibly gzipped, in the folder or its `train_splits`."""
    for name in benchmark.files:
        for directory in (folder, folder / "train_splits"):
            paths = sorted(path for path in directory.glob(f"{name}_{split}*") if path.name.endswith(_ENDINGS))
            if len(paths) > 1:
                raise InputError(f"{directory}: {paths[0].name} and {paths[1].name} are of one split; keep one")
            if paths:
                return paths[0]
    return None


def _local_task(folder: Path, benchmark: Benchmark, num_fewshot: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """A task's configuration with data from local files, and file, SHA-256 and number of items of each split used."""
    import datasets

    name = benchmark.files[0]
    paths = {split: path for split in ("train", "validation", "test") if (path := local_file(folder, benchmark, split))}
    judged = next((split for split in (benchmark.split, "test", "validation") if split in paths), None)
    if judged is None:
        raise InputError(f"{folder}: holds no {name}_{benchmark.split}*.jsonl; add it, or leave {benchmark.task} out")
    if num_fewshot and "train" not in paths:
        raise InputError(f"{folder}: holds no {name}_train*.jsonl to take num_fewshot={num_fewshot} examples from")
    if judged != benchmark.split:
        log.warning("%s: judged on its %s split, %s has no %s split", benchmark.title, judged, folder, benchmark.split)
    used = {"validation": paths[judged]} | ({"train": paths["train"]} if num_fewshot else {})
    items = {split: read_items(path, benchmark.check) for split, path in used.items()}
    config = _definition(benchmark)
    for key in ("include", "tag", "dataset_path", "dataset_name", "training_split", "test_split"):
        config.pop(key, None)
    config["validation_split"] = "validation"
    config["custom_dataset"] = lambda **_: {
        split: datasets.Dataset.from_list(_uniform(rows)) for split, rows in items.items()
    }
    if num_fewshot:
        config |= {"training_split": "train", "fewshot_split": "train"}
    files = {
        split: {"file": path.name, "sha256": file_hash(path), "items": len(items[split])}
        for split, path in used.items()
    }
    return config, {"split": judged, "files": files}


def _uniform(items: Sequence[Item]) -> list[dict[str, Any]]:
    """Items with the fields that all have; a field with int and str becomes str, since a column needs one type."""
    shared = sorted(set.intersection(*(set(item) for item in items)))
    mixed = {name for name in shared if {type(item[name]) for item in items} == {int, str}}
    return [{name: str(item[name]) if name in mixed else item[name] for name in shared} for item in items]


def _definition(benchmark: Benchmark) -> dict[str, Any]:
    """A task's configuration as the harness defines it, with data from the hub or the hub's local cache."""
    import lm_eval.tasks
    from lm_eval.tasks._yaml_loader import load_yaml

    folder = Path(lm_eval.tasks.__file__).parent
    return dict(load_yaml(folder / benchmark.definition, resolve_func=True, recursive=True))


def build(names: Sequence[str], folder: Path | None, *, num_fewshot: int = 0) -> tuple[list[Any], dict[str, Any]]:
    """Built tasks of the harness, and the data files of each local one.

    Args:
      names: from `task_names`.
      folder: local files of the paper's tasks; None: all data comes from the hub.

    Raises:
      InputError: a task is unknown, a file is missing or bad, or a data set cannot be fetched.
    """
    import datasets
    from lm_eval.tasks import TaskManager

    datasets.disable_progress_bars()
    without_defaults, with_defaults = TaskManager(include_defaults=False), None
    tasks: list[Any] = []
    sources: dict[str, Any] = {}
    for name in names:
        benchmark = BY_TASK.get(name)
        try:
            if benchmark is None:
                with_defaults = with_defaults or TaskManager()  # takes seconds to read all definitions
                built = with_defaults.load([name])
            elif folder is None:
                built = without_defaults.load([_definition(benchmark)])
            else:
                config, sources[name] = _local_task(folder, benchmark, num_fewshot)
                built = without_defaults.load([config])
        except InputError:
            raise
        except KeyError as error:
            raise InputError(f"task {name!r}: unknown to lm_eval ({error}); see lm_eval ls tasks") from None
        except Exception as error:  # whatever clients of the hub raise for a data set that cannot be fetched
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise InputError(f"task {name!r}: cannot be built ({reason}); for local files set data_dir") from error
        tasks += built["tasks"].values()
    for task in tasks:
        if graded := metrics_made_binary(task):
            message = "task %r: answers have several references; lm_eval counts any %s but 0 as 1"
            log.warning(message, task.task_name, " or ".join(graded))
    return tasks, sources


def metrics_made_binary(task: Any) -> list[str]:
    """Metrics of a task whose scores the harness makes 0 or 1: those of answers with a list of references."""
    from lm_eval.api.task import ConfigurableTask

    if not isinstance(task, ConfigurableTask) or type(task).process_results is not ConfigurableTask.process_results:
        return []
    if task.OUTPUT_TYPE != "generate_until" or not task.multiple_target or callable(task.config.process_results):
        return []
    return sorted(set(task.aggregation()) - {"exact_match", "bypass"})


def write_continuations(config: ContinuationsConfig) -> None:
    """Writes items in HellaSwag's format, for `evaluate --config.tasks=hellaswag --config.data_dir=FOLDER`.

    Wrong passages are from the same position in other documents, so that neither length nor style identifies them.

    Raises:
      InputError: fewer different documents of sufficient length than choices.
    """
    least = config.context_words + config.ending_words
    endings_by_beginning: dict[str, str] = {}
    for document in itertools.islice(open_corpus(config.corpus), config.skip_documents, None):
        beginning = first_words(document.text, config.context_words)
        ending = first_words(document.text[len(beginning) :], config.ending_words)
        if count_words(beginning) == config.context_words and count_words(ending) == config.ending_words:
            endings_by_beginning.setdefault(" ".join(beginning.split()), " ".join(ending.split()))
        if len(endings_by_beginning) == config.items:
            break
    endings = sorted(set(endings_by_beginning.values()))
    if len(endings) < config.choices:
        counts = f"{len(endings)} documents of {least} words differ, {config.choices} choices need as many"
        raise InputError(f"{config.corpus.source}: {counts}; take a larger corpus or fewer words")
    generator = random.Random(config.seed)
    with writing(join_path(config.output_dir, "hellaswag_validation.jsonl"), "w") as file:
        for beginning, ending in endings_by_beginning.items():
            sampled = generator.sample(endings, config.choices)
            offered = [other for other in sampled if other != ending][: config.choices - 1]
            label = generator.randrange(config.choices)
            offered.insert(label, ending)
            item = {"activity_label": "Text", "ctx_a": beginning, "ctx_b": "", "endings": offered, "label": label}
            file.write(json.dumps(item) + "\n")

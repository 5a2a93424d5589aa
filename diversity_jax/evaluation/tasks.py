"""The paper's eight benchmarks, from the hub or from local files, and any other task of lm-evaluation-harness by
name.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
import gzip
import json
import logging
from pathlib import Path
from typing import Any

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import content_hash, file_hash

log = logging.getLogger(__name__)
_ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".json.gz")


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A task of the harness as the paper uses it.

    Attributes:
      task: the harness's name.
      title: as it is printed.
      metric: `acc`, or `acc_norm` where the paper normalises by length.
      definition: the task's YAML inside `lm_eval/tasks`.
      files: beginnings of local files' names, before `_SPLIT`.
      check: what is wrong with an item, or None.
      split: which is judged.
    """

    task: str
    title: str
    metric: str
    definition: str
    files: tuple[str, ...]
    check: Callable[[Mapping[str, Any]], str | None]
    split: str = "validation"


def _wrong(item: Mapping[str, Any], kinds: Mapping[str, type | tuple[type, ...]]) -> str | None:
    """A missing field, one of another type, or an empty text."""
    for name, kind in kinds.items():
        if name not in item:
            return f"lacks the field {name!r} (expected {', '.join(kinds)})"
        if not isinstance(item[name], kind) or isinstance(item[name], bool):
            expected = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
            return f"{name} is {type(item[name]).__name__}; expected {expected}"
    return None


def _empty(item: Mapping[str, Any], names: Sequence[str]) -> str | None:
    return next((f"{name} is empty: an answer needs text" for name in names if not item[name].strip()), None)


def _outside(name: str, value: Any, allowed: Sequence[Any]) -> str | None:
    return None if value in allowed else f"{name}={value!r} is not among its choices ({', '.join(map(str, allowed))})"


def _check_arc(item: Mapping[str, Any]) -> str | None:
    if wrong := _wrong(item, {"question": str, "choices": dict, "answerKey": str}):
        return wrong
    labels, texts = item["choices"].get("label"), item["choices"].get("text")
    if not isinstance(labels, list) or not isinstance(texts, list) or len(labels) != len(texts) or not texts:
        return "choices needs two lists of one length, text and label"
    if not all(isinstance(text, str) and text.strip() for text in texts):
        return "choices.text holds an empty answer"
    return _outside("answerKey", item["answerKey"], labels)


def _check_boolq(item: Mapping[str, Any]) -> str | None:
    return _wrong(item, {"passage": str, "question": str, "label": int}) or _outside("label", item["label"], (0, 1))


def _check_siqa(item: Mapping[str, Any]) -> str | None:
    answers = ("answerA", "answerB", "answerC")
    kinds = {"context": str, "question": str} | dict.fromkeys(answers, str) | {"label": (str, int)}
    return _wrong(item, kinds) or _empty(item, answers) or _outside("label", str(item["label"]), ("1", "2", "3"))


def _check_winogrande(item: Mapping[str, Any]) -> str | None:
    kinds = dict.fromkeys(("sentence", "option1", "option2", "answer"), str)
    wrong = (
        _wrong(item, kinds) or _empty(item, ("option1", "option2")) or _outside("answer", item["answer"], ("1", "2"))
    )
    return wrong or (None if item["sentence"].count("_") >= 1 else "sentence has no gap (_) for the options")


def _check_piqa(item: Mapping[str, Any]) -> str | None:
    kinds = {"goal": str, "sol1": str, "sol2": str, "label": int}
    return _wrong(item, kinds) or _empty(item, ("sol1", "sol2")) or _outside("label", item["label"], (0, 1))


def _check_copa(item: Mapping[str, Any]) -> str | None:
    kinds = {"premise": str, "question": str, "choice1": str, "choice2": str, "label": int}
    wrong = _wrong(item, kinds) or _empty(item, ("choice1", "choice2")) or _outside("label", item["label"], (0, 1))
    return wrong or _outside("question", item["question"], ("cause", "effect"))


def _check_hellaswag(item: Mapping[str, Any]) -> str | None:
    kinds = {"activity_label": str, "ctx_a": str, "ctx_b": str, "endings": list, "label": (str, int)}
    if wrong := _wrong(item, kinds):
        return wrong
    if not item["endings"] or not all(isinstance(text, str) and text.strip() for text in item["endings"]):
        return "endings holds an empty answer"
    return _outside("label", str(item["label"]), [str(number) for number in range(len(item["endings"]))])


PAPER = (
    Benchmark(
        task="arc_challenge",
        title="ARC-Challenge",
        metric="acc_norm",
        definition="arc/arc_challenge.yaml",
        files=("arc_challenge",),
        check=_check_arc,
        split="test",
    ),
    Benchmark(
        task="arc_easy",
        title="ARC-Easy",
        metric="acc",
        definition="arc/arc_easy.yaml",
        files=("arc_easy",),
        check=_check_arc,
        split="test",
    ),
    Benchmark(
        task="boolq",
        title="BoolQ",
        metric="acc",
        definition="super_glue/boolq/default.yaml",
        files=("boolq",),
        check=_check_boolq,
    ),
    Benchmark(
        task="social_iqa",
        title="SIQA",
        metric="acc",
        definition="siqa/siqa.yaml",
        files=("siqa", "social_iqa", "socialiqa"),
        check=_check_siqa,
    ),
    Benchmark(
        task="winogrande",
        title="WinoGrande",
        metric="acc",
        definition="winogrande/default.yaml",
        files=("winogrande_xl", "winogrande"),
        check=_check_winogrande,
    ),
    Benchmark(task="piqa", title="PIQA", metric="acc", definition="piqa/piqa.yaml", files=("piqa",), check=_check_piqa),
    Benchmark(
        task="copa",
        title="COPA",
        metric="acc",
        definition="super_glue/copa/default.yaml",
        files=("copa",),
        check=_check_copa,
    ),
    Benchmark(
        task="hellaswag",
        title="HellaSwag",
        metric="acc_norm",
        definition="hellaswag/hellaswag.yaml",
        files=("hellaswag",),
        check=_check_hellaswag,
    ),
)
BY_TASK = {benchmark.task: benchmark for benchmark in PAPER}


def task_names(asked: Sequence[str]) -> list[str]:
    """Task names, with `paper` opened into its eight, each once.

    Raises:
      InputError: no task.
    """
    names = [name for one in asked for name in (BY_TASK if one == "paper" else (one,))]
    if not names:
        raise InputError("tasks is empty; name tasks of lm-evaluation-harness, or paper for the eight of the paper")
    return list(dict.fromkeys(names))


def read_items(path: Path, check: Callable[[Mapping[str, Any]], str | None]) -> list[dict[str, Any]]:
    """Items of a JSON-lines file, every one checked.

    Raises:
      InputError: an unreadable file, a line that is no object, a missing field, or an answer outside its choices; file
        and line are named.
    """
    items = []
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    item = json.loads(line)
                except json.JSONDecodeError as error:
                    raise InputError(
                        f"{path}:{number}: is not JSON ({error.msg}); expected one object a line"
                    ) from None
                if not isinstance(item, dict):
                    raise InputError(f"{path}:{number}: is a {type(item).__name__}; expected one object a line")
                if wrong := check(item):
                    raise InputError(f"{path}:{number}: {wrong}; mend the line or remove it")
                items.append(item)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        if isinstance(error, FileNotFoundError):
            raise InputError(f"{path}: no such file; check the path") from None
        raise InputError(f"{path}: cannot be read ({error}); fetch the file again") from None
    if not items:
        raise InputError(f"{path}: holds no item; expected one JSON object a line")
    return items


def local_file(folder: Path, benchmark: Benchmark, split: str) -> Path | None:
    """The file of a split: `NAME_SPLIT*.jsonl`, also gzipped, in the folder or one below it."""
    for name in benchmark.files:
        for place in (folder, folder / "train_splits"):
            found = sorted(path for path in place.glob(f"{name}_{split}*") if path.name.endswith(_ENDINGS))
            if len(found) > 1:
                raise InputError(
                    f"{place}: both {found[0].name} and {found[1].name} could be {benchmark.title}'s {split} split; "
                    "keep one"
                )
            if found:
                return found[0]
    return None


def local_task(folder: Path, benchmark: Benchmark, *, num_fewshot: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """A task's configuration that reads local files, and what was read: file, SHA-256 and number of items of each
    split.

    Raises:
      InputError: no file for it, no examples to show where some are asked for, or a bad item.
    """
    import datasets
    from lm_eval.tasks._yaml_loader import load_yaml

    found = {split: path for split in ("train", "validation", "test") if (path := local_file(folder, benchmark, split))}
    judged = next((split for split in (benchmark.split, "test", "validation") if split in found), None)
    if judged is None:
        raise InputError(
            f"{folder}: holds no file {benchmark.files[0]}_{benchmark.split}*.jsonl for {benchmark.title}; add it, or "
            "leave it out"
        )
    if num_fewshot and "train" not in found:
        raise InputError(
            f"{folder}: holds no {benchmark.files[0]}_train*.jsonl to take num_fewshot={num_fewshot} examples from"
        )
    if judged != benchmark.split:
        log.warning("%s: judged on its %s split, %s has no %s split", benchmark.title, judged, folder, benchmark.split)
    used = {"validation": found[judged]} | ({"train": found["train"]} if num_fewshot else {})
    items = {split: read_items(path, benchmark.check) for split, path in used.items()}
    definition = Path(_tasks_folder()) / benchmark.definition
    config = dict(load_yaml(definition, resolve_func=True, recursive=True))
    for key in ("include", "tag", "dataset_path", "dataset_name", "training_split", "test_split"):
        config.pop(key, None)
    config |= {
        "validation_split": "validation",
        "custom_dataset": lambda **_: {split: datasets.Dataset.from_list(_even(rows)) for split, rows in items.items()},
    }
    if num_fewshot:
        config |= {"training_split": "train", "fewshot_split": "train"}
    sources = {
        "split": judged,
        "files": {
            split: {"file": path.name, "sha256": file_hash(path), "items": len(items[split])}
            for split, path in used.items()
        },
    }
    return config, sources


def _even(items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Items with the fields that all of them have, and a column of numbers and texts as texts: a column needs one
    type.
    """
    shared = sorted(set.intersection(*(set(item) for item in items)))
    mixed = {name for name in shared if {type(item[name]) for item in items} == {int, str}}
    return [{name: str(item[name]) if name in mixed else item[name] for name in shared} for item in items]


def _tasks_folder() -> str:
    import lm_eval.tasks

    return str(Path(lm_eval.tasks.__file__).parent)


def hub_task(benchmark: Benchmark) -> dict[str, Any]:
    """A task's configuration as the harness defines it: its data comes from the hub, or from the hub's cache on this
    machine.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    return dict(load_yaml(Path(_tasks_folder()) / benchmark.definition, resolve_func=True, recursive=True))


def data_hash(documents: Sequence[Mapping[str, Any]]) -> str:
    """SHA-256 of a task's documents as the harness holds them."""
    return content_hash([json.loads(json.dumps(document, default=str)) for document in documents])


def build(names: Sequence[str], folder: Path | None, *, num_fewshot: int = 0) -> tuple[list[Any], dict[str, Any]]:
    """Tasks of the harness, built, and of each local one where its data came from.

    Args:
      names: from `task_names`.
      folder: local files; those of the paper's tasks that it holds are used, and nothing else is asked of the hub for
        them.

    Raises:
      InputError: an unknown task, a missing or bad file, or a data set that cannot be fetched.
    """
    import datasets
    from lm_eval.tasks import TaskManager

    datasets.disable_progress_bars()
    light = TaskManager(include_defaults=False)
    whole = None
    tasks, sources = [], {}
    for name in names:
        benchmark = BY_TASK.get(name)
        try:
            if benchmark is not None and folder is not None:
                config, sources[name] = local_task(folder, benchmark, num_fewshot=num_fewshot)
                built = light.load([config])
            elif benchmark is not None:
                built = light.load([hub_task(benchmark)])
            else:
                whole = whole or TaskManager()  # reads the definitions of all tasks, which takes seconds
                built = whole.load([name])
        except InputError:
            raise
        except KeyError as error:
            raise InputError(
                f"task {name!r}: lm-evaluation-harness knows none of this name ({error}); see lm_eval ls tasks"
            ) from None
        except Exception as error:  # whatever hub clients raise for a data set that cannot be had
            said = " ".join(str(error).split())[:200]
            raise InputError(
                f"task {name!r}: cannot be built ({type(error).__name__}: {said}); for local files set data_dir"
            ) from error
        tasks += built["tasks"].values()
    return tasks, sources

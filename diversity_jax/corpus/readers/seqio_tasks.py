"""Reads SeqIO tasks and mixtures of any codebase as corpora: their text, and counts of what is not in it."""

from collections import Counter
from collections.abc import Iterator, Sequence
import copy
import difflib
import importlib
import inspect
import itertools
import logging
from typing import Any

import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.core.tensorflow import import_quietly
from diversity_jax.corpus.corpus import RecordCorpus
from diversity_jax.corpus.document import CorpusConfig, Document, Rejected, check_split, decode_utf8
from diversity_jax.corpus.readers.tensorflow import TensorRecords, flat_features, scalars

log = logging.getLogger(__name__)

_DEFAULT_FIELD, _USUAL_FEATURES = "text", ("inputs", "targets")
_TEXT_ENDING = "_pretokenized"  # of the feature in which `seqio.preprocessors.tokenize` puts the text of another
_TASK = "diversity_jax:task"  # feature with the number of the task that an example of a mixture is of
_SEED = 0  # of preprocessors that use random numbers, so that the text is the same in every run
_MOST_COUNTED = 1_000_000  # unread examples of one task of a mixture that are counted, at most


def open_seqio_task(config: CorpusConfig, name: str) -> RecordCorpus:
    """Opens `seqio:NAME` or `seqio:NAME@MODULE`, where importing MODULE registers the task or mixture.

    A task is read unshuffled, after its preprocessors, at full length; from SeqIO's cache if it requires that. Its text
    is its `inputs` and `targets`, those that it has, joined by an empty line, or else the feature `text`; `text_field`
    names others, several joined by `+`. Token ids are decoded with the task's vocabulary, sentinels too; if they are
    exactly the tokens of an example's `_pretokenized` text, that is used.

    A mixture is read as its own trainer would: examples sampled at its rates with a fixed seed, until the first of its
    tasks ends; with `every_task` each of its tasks is read once instead. What their trainer would be given and the text
    does not have is logged, and counted by kind in `Tally.left_out`.

    Raises:
      InputError: no such module, task, split or feature; its features are not text; or it cannot be read.
    """
    wanted = name.partition("@")[0]
    provider = find_provider(config.source)
    if provider is None:
        raise _unknown(wanted, config.source)
    tasks = getattr(provider, "tasks", None) or [provider]
    check_split(config.source, config.split, sorted({split for task in tasks for split in task.splits}))
    tasks = [task for task in tasks if config.split in task.splits]
    if config.every_task and provider not in tasks:
        parts = [TaskRecords(config, task.name, task, [task]) for task in tasks]
    else:
        parts = [TaskRecords(config, wanted, provider, tasks)]
    unused = sorted({name for part in parts for name in part.unused_features})
    if unused:
        used = " and ".join(parts[0].features)
        remedy = "name features in text_field, joined by +, to choose others"
        log.warning("%s: the text is made of %s; left out: %s; %s", config.source, used, ", ".join(unused), remedy)
    return RecordCorpus(config, parts, f"seqio:{wanted}:{config.split}")


def find_provider(source: str) -> Any | None:
    """The registered task or mixture that `seqio:NAME[@MODULE]` names, after importing MODULE; None: there is none.

    Raises:
      InputError: MODULE is missing or fails.
    """
    name, _, module = source.removeprefix("seqio:").partition("@")
    seqio = import_quietly("seqio")
    if module:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise InputError(f"{source}: cannot import {module} ({error}); check the name and PYTHONPATH") from None
        except InputError:
            raise
        except Exception as error:  # whatever the other codebase raises while it registers
            raise InputError(f"{source}: importing {module} fails ({_reason(error)}); try it by itself") from error
    registries = (seqio.TaskRegistry, seqio.MixtureRegistry)
    return next((registry.get(name) for registry in registries if name in registry.names()), None)


def _unknown(name: str, source: str) -> InputError:
    seqio = import_quietly("seqio")
    names = [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]
    close = difflib.get_close_matches(name, names)
    known = f"did you mean {' or '.join(close)}?" if close else f"none of {len(names)} has a similar name;"
    message = f"{source}: this SeqIO task is not registered; {known} name the module that registers it"
    return InputError(f"{message}: seqio:{name}@MODULE")


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


class TaskRecords(TensorRecords):
    """Examples of a task, or of a mixture sampled at its rates.

    Attributes:
      features: whose texts are joined, in order; empty: examples keep all features, for conversations.
      unused_features: further features that their trainer would be given.

    Args:
      label: names the records, `label:1` and so on.
      provider: the task or mixture; tasks: itself, or its tasks that have the split.
    """

    def __init__(self, config: CorpusConfig, label: str, provider: Any, tasks: Sequence[Any]):
        self._config, self._provider, self._tasks = config, provider, tasks
        self._output_features = tasks[0].output_features
        self._counts: Counter[str] = Counter()
        self._read_of: Counter[int] = Counter()
        self._unread: dict[int, int] = {}
        super().__init__(label, self._examples, "")
        specs = flat_features(self._dataset().element_spec)
        specs.pop(_TASK, None)
        self.features = self._chosen(specs) if config.record_field else ()
        used = self.features or _USUAL_FEATURES
        given = [name for name in specs if name.partition(".")[0] in self._output_features]
        self.unused_features = tuple(name for name in given if name not in used and name + _TEXT_ENDING not in used)

    def _examples(self) -> Any:
        """A new dataset, always the same."""
        length = self._config.feature_length
        names = {*_USUAL_FEATURES, *self._output_features}
        options = {
            "sequence_length": dict.fromkeys(names, length) if length else None,
            "split": self._config.split,
            "shuffle": False,
            "seed": _SEED,
            "num_epochs": 1,
            "trim_output_features": False,
            "try_in_mem_cache": False,
        }
        try:
            if self._provider in self._tasks:
                return self._provider.get_dataset(**options, use_cached=self._provider.requires_caching)
            return _numbered(self._provider, self._tasks).get_dataset(**options)
        except InputError:
            raise
        except Exception as error:  # whatever the preprocessors and rates of another codebase raise
            about = f"{self._config.source}: cannot be read ({_reason(error)})"
            raise InputError(f"{about}{self._remedy()}") from error

    def _remedy(self) -> str:
        """The end of the error message if a dataset cannot be made: what may help."""
        readers = [
            getattr(step, "func", step)
            for task in self._tasks
            for step in task.preprocessors
            if callable(step) and "sequence_length" in inspect.signature(step).parameters
        ]
        if readers and not self._config.feature_length:
            names = sorted({getattr(step, "__name__", type(step).__name__) for step in readers})
            return f"; {', '.join(names)} may need sequence_length: set feature_length, such as 512"
        if any(task.requires_caching and not task.cache_dir for task in self._tasks):
            return "; write the cache with seqio_cache_tasks, and name its folder with seqio.add_global_cache_dirs"
        if self._provider not in self._tasks:
            return "; name its tasks as components, or set every_task, which needs no rates"
        return ""

    def _chosen(self, specs: dict[str, Any]) -> tuple[str, ...]:
        """The features whose texts are joined."""
        field = self._config.record_field
        if field == _DEFAULT_FIELD:
            usual = [name for name in _USUAL_FEATURES if name in specs and self._problem(name, specs[name]) is None]
            pretokenized = [name + _TEXT_ENDING for name in _USUAL_FEATURES if name + _TEXT_ENDING in specs]
            names = tuple(usual or pretokenized or ["text" if "text" in specs else "targets"])
        else:
            names = (field,) if field in specs else tuple(name.strip() for name in field.split("+"))
        known = f"set text_field to one of: {', '.join(specs)}; or several, joined by +"
        for name in names:
            if name not in specs:
                missing = field if field == _DEFAULT_FIELD else name
                raise InputError(f"{self._label}: has no feature {missing!r}; {known}")
            if (problem := self._problem(name, specs[name])) is not None:
                raise InputError(f"{self._label}: feature {name!r} holds {problem}; {known}")
        return names

    def _problem(self, name: str, spec: Any) -> str | None:
        """Why a feature cannot be text; None: it can."""
        if spec.dtype.name == "string" and spec.shape.rank == 0:
            return None
        if not spec.dtype.is_integer or spec.shape.rank != 1 or name not in self._output_features:
            return f"{spec.dtype.name} of shape {spec.shape}, not text"
        vocabulary = self._output_features[name].vocabulary
        if isinstance(vocabulary, import_quietly("seqio").PassThroughVocabulary):
            return f"ids of {vocabulary}, which has no text for them"
        return None

    def batches(self) -> Iterator[list[dict[str, Any]]]:
        self._counts, self._read_of = Counter(), Counter()
        for batch in super().batches():
            if _TASK in batch[0]:
                self._read_of.update(int(example.pop(_TASK)) for example in batch)
            yield batch

    def left_out(self, *, is_complete: bool) -> Counter[str]:
        """Values of unused features and tokens without text in the latest reading; if that is complete, also the
        examples of a mixture's tasks that were not read when the first of them ended.
        """
        counts = Counter(self._counts)
        if is_complete and self._provider not in self._tasks:
            for number, task in enumerate(self._tasks):
                count = self._unread_examples(number)
                counted = f", counted to {_MOST_COUNTED:,}" if count == _MOST_COUNTED else ""
                counts[f"examples of task {task.name}{counted}"] = count
        return +counts

    def _unread_examples(self, number: int) -> int:
        if number not in self._unread:
            single = TaskRecords(self._config, self._label, self._tasks[number], [self._tasks[number]])
            rest = single._dataset().skip(self._read_of[number]).take(_MOST_COUNTED)
            self._unread[number] = int(rest.reduce(np.int64(0), lambda count, _: count + 1))
        return self._unread[number]

    def decode(self, raw: dict[str, Any], position: int) -> Document:
        where = f"{self._label}:{position + 1}"
        values = flat_features(raw)
        for name in self.unused_features:
            if name in values:
                self._counts[f"values of feature {name}"] += int(np.size(values[name]))
        if not self.features:
            texts_of_ids = {
                name: self._text(name, values, where) for name in _USUAL_FEATURES if self._is_ids(name, values)
            }
            all_values = {name: self._value(value, where) for name, value in values.items()}
            pretokenized = {
                name + _TEXT_ENDING: text for name, text in texts_of_ids.items() if name + _TEXT_ENDING in all_values
            }
            return Document(id=where, text="", meta={**all_values, **texts_of_ids, **pretokenized})
        texts = [self._text(name, values, where) for name in self.features]
        for name in self.features:
            values.pop(name, None)
            values.pop(name + _TEXT_ENDING, None)
        return Document(id=where, text="\n\n".join(filter(str.strip, texts)) or texts[0], meta=scalars(values))

    def _is_ids(self, name: str, values: dict[str, Any]) -> bool:
        return name in values and name in self._output_features and np.ndim(values[name]) == 1

    def _text(self, name: str, values: dict[str, Any], where: str) -> str:
        value = values[name]
        if isinstance(value, bytes):
            return decode_utf8(value, where)
        vocabulary, ids = self._output_features[name].vocabulary, value.tolist()
        try:
            pretokenized = values.get(name + _TEXT_ENDING)
            if isinstance(pretokenized, bytes) and list(vocabulary.encode(pretokenized.decode())) == _without_end(
                vocabulary, ids
            ):
                return pretokenized.decode()
            text, lost = decoded(vocabulary, ids)
        except Exception as error:  # a vocabulary may fail on foreign ids with whatever its library raises
            message = f"{where}: the vocabulary of {name!r} cannot decode it ({_reason(error)})"
            raise Rejected("not decodable", message) from None
        if lost:
            self._counts[f"tokens of feature {name} without text"] += lost
        return text


def _numbered(mixture: Any, tasks: Sequence[Any]) -> Any:
    """A copy of a mixture whose examples have the number of their task as a feature."""
    numbered, numbers = copy.copy(mixture), {task.name: number for number, task in enumerate(tasks)}

    def get_task_dataset(task: Any, *arguments: Any, **options: Any) -> Any:
        bound = inspect.signature(mixture.get_task_dataset).bind(task, *arguments, **options)
        bound.arguments["use_cached"] = task.requires_caching
        number = np.int32(numbers[task.name])
        return mixture.get_task_dataset(*bound.args, **bound.kwargs).map(lambda example: {**example, _TASK: number})

    numbered.get_task_dataset = get_task_dataset
    return numbered


def _without_end(vocabulary: Any, ids: list[int]) -> list[int]:
    """Ids without padding and one end-of-text id at their end."""
    end = len(ids)
    while end and ids[end - 1] == vocabulary.pad_id != vocabulary.eos_id:
        end -= 1
    return ids[: end - 1] if end and ids[end - 1] == vocabulary.eos_id else ids[:end]


def decoded(vocabulary: Any, ids: list[int]) -> tuple[str, int]:
    """The text of all ids, and how many of them have none (unknown, out of range, bytes of an incomplete character).

    `Vocabulary.decode` stops at the first end-of-text id, and some vocabularies drop sentinels: here the texts between
    end-of-text ids are joined by an empty line, and such sentinels are written `<extra_id_0>`, as in T5.
    """
    seqio = import_quietly("seqio")
    ids, size = _without_end(vocabulary, ids), vocabulary.vocab_size
    sentinels = range(size - vocabulary.extra_ids, size)
    are_dropped = any(i in sentinels for i in ids) and "extra_id" not in vocabulary.decode([size - 1])
    names = {i: f"<extra_id_{size - 1 - i}>" for i in ids if are_dropped and i in sentinels}
    lost, texts = sum(i == vocabulary.unk_id or not 0 <= i < size for i in ids), []
    for is_end, group in itertools.groupby(ids, lambda i: i == vocabulary.eos_id):
        if not is_end:
            runs = [(named, list(run)) for named, run in itertools.groupby(group, names.__contains__)]
            parts = ["".join(map(names.__getitem__, run)) if named else vocabulary.decode(run) for named, run in runs]
            texts.append("".join(parts))
    if isinstance(vocabulary, seqio.ByteVocabulary):  # it drops bytes of incomplete characters
        written = sum(len(text.encode()) for text in texts) - sum(len(names[i]) for i in ids if i in names)
        lost += sum(vocabulary.unk_id < i < sentinels.start for i in ids) - written
    return "\n\n".join(filter(str.strip, texts)), lost

"""The text of a SeqIO task or mixture, whether its preprocessors left it a string or made token ids of it."""

import difflib
import importlib
from typing import Any

from diversity_jax.corpus.document import CorpusConfig
from diversity_jax.corpus.record_corpus import RecordCorpus
from diversity_jax.corpus.tensor_records import TensorRecords
from diversity_jax.corpus.tensorflow_quietly import import_quietly
from diversity_jax.errors import InputError

_USUAL_FIELDS = ("text", "targets_pretokenized", "targets")
_SEED = 0  # of preprocessors that draw random numbers: the same text in every run


def open_seqio_task(config: CorpusConfig, name: str) -> RecordCorpus:
    """Opens `seqio:NAME` or `seqio:NAME@MODULE`, where importing MODULE registers the task or mixture.

    A task is read unshuffled, after its preprocessors, at full length. `text_field` names a feature; the default `text` also
    stands for `targets_pretokenized` and then `targets`, in which SeqIO language-modelling tasks keep their text. A feature of
    token ids is decoded with the task's own vocabulary. A mixture is read as its own trainer would see it: examples drawn at its
    rates with a fixed seed, until the first of its tasks has been read through.

    Raises:
      InputError: no such module, task, split or feature; or its source cannot be read.
    """
    seqio = import_quietly("seqio")
    name, _, module = name.partition("@")
    if module:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise InputError(f"{config.source}: cannot import {module} ({error}); check the name and PYTHONPATH") from None
    task = _find_task(seqio, name, config.source)
    if config.split not in task.splits:
        raise InputError(f"{config.source}: has no split {config.split!r}; set split to one of: {', '.join(sorted(task.splits))}")

    def dataset() -> Any:
        try:
            return task.get_dataset(sequence_length=None, split=config.split, shuffle=False, seed=_SEED, num_epochs=1)
        except (OSError, ValueError, AssertionError) as error:
            raise InputError(f"{config.source}: cannot be read ({str(error).partition(chr(10))[0]})") from None

    def decode(field: str, ids: list[int]) -> str:
        return task.output_features[field].vocabulary.decode(ids)

    fields = _USUAL_FIELDS if config.record_field == _USUAL_FIELDS[0] else (config.record_field,)
    records = TensorRecords(name, dataset, fields, decode)
    return RecordCorpus(config, [records], f"seqio:{name}:{config.split}")


def _find_task(seqio: Any, name: str, source: str) -> Any:
    tasks, mixtures = list(seqio.TaskRegistry.names()), list(seqio.MixtureRegistry.names())
    if name in tasks:
        return seqio.TaskRegistry.get(name)
    if name in mixtures:
        return seqio.MixtureRegistry.get(name)
    close = difflib.get_close_matches(name, [*tasks, *mixtures])
    known = f"did you mean {' or '.join(close)}?" if close else f"of {len(tasks)} that are, none is called alike;"
    raise InputError(f"{source}: this SeqIO task is not registered; {known} name the module that registers it: seqio:{name}@MODULE")

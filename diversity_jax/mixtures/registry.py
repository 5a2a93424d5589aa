"""Built mixtures as SeqIO tasks and mixtures, for any SeqIO codebase.

    DIVERSITY_JAX_MIXTURES=/data/mixtures/a:/data/mixtures/b python -m t5x.train \\
        --gin.MIXTURE_OR_TASK_MODULE="'diversity_jax.mixtures.registry'" ...

Importing this module registers what lies in those folders, from manifests on disk alone: no network and no JAX. A
component `prose` of the mixture `quickstart` becomes the task `quickstart.prose`; the mixture keeps its name. An example
is one prepared row: `targets`, int32 [sequence_length + 1]. Rates are token shares, and rows come in the order in which
the training loader reads them.
"""

from collections.abc import Sequence
import functools
import os
from pathlib import Path
from typing import Any

import numpy as np

from diversity_jax.errors import InputError
from diversity_jax.mixtures.manifest import Manifest
from diversity_jax.mixtures.mixture import Mixture
from diversity_jax.mixtures.schedule import Schedule
from diversity_jax.mixtures.tensorflow import seqio, tf
from diversity_jax.mixtures.vocabulary import prepared_tokenizer, seqio_vocabulary

ENVIRONMENT_VARIABLE = "DIVERSITY_JAX_MIXTURES"


class PreparedTask(seqio.Task):
    """A task over prepared rows.

    The rows already lie in a seeded permutation, so `shuffle=True`, which trainers pass for the train split, changes
    nothing: a second shuffle would cost a buffer and the order that makes token shares hold in every window.
    """

    def get_dataset(self, sequence_length=None, split="train", use_cached=False, shuffle=False, **options) -> Any:
        """As `seqio.Task.get_dataset`, in the permuted order that stands on disk."""
        return super().get_dataset(sequence_length, split, use_cached, shuffle=False, **options)


def register(folder: str | Path) -> list[str]:
    """Registers a built mixture and its components; registering the same one again does nothing.

    Args:
      folder: that holds `mixture.json`.

    Returns:
      Names registered: the mixture first, then its tasks.

    Raises:
      InputError: no built mixture there, or another mixture of that name is registered.
    """
    mixture = Mixture.load(folder)
    tasks = [_register_task(f"{mixture.name}.{component.name}", component.manifest) for component in mixture.taken]
    shares = [component.share_granted for component in mixture.taken]
    if mixture.name in seqio.MixtureRegistry.names():
        if getattr(seqio.MixtureRegistry.get(mixture.name), "content_hash", None) != mixture.content_hash:
            raise InputError(f"{folder}: another mixture named {mixture.name!r} is registered already; give this one another name")
    else:
        rates = [(task, float(share)) for task, share in zip(tasks, shares, strict=True)]
        sample = functools.partial(_by_schedule, tuple(tasks), tuple(shares))
        seqio.MixtureRegistry.add(mixture.name, rates, sample_fn=sample).content_hash = mixture.content_hash
    return [mixture.name, *tasks]


def _register_task(name: str, manifest: Manifest) -> str:
    if name in seqio.TaskRegistry.names():
        if getattr(seqio.TaskRegistry.get(name), "content_hash", None) != manifest.content_hash:
            raise InputError(f"{manifest.folder}: another task named {name!r} is registered already; rename the component")
        return name
    manifest.check_sizes()
    vocabulary = seqio_vocabulary(prepared_tokenizer(manifest))
    feature = seqio.Feature(vocabulary=vocabulary, add_eos=False, required=True, dtype=tf.int32, rank=1)
    task = PreparedTask(
        name,
        source=seqio.FunctionDataSource(
            functools.partial(_rows, manifest),
            splits=tuple(manifest.splits),
            num_input_examples={split: found.rows for split, found in manifest.splits.items()},
        ),
        output_features={"targets": feature},
        preprocessors=[],
    )
    task.content_hash = manifest.content_hash
    seqio.TaskRegistry.add_provider(name, task)
    return name


def _rows(manifest: Manifest, split: str, shuffle_files: bool = False, seed: int | None = None) -> "tf.data.Dataset":
    """Rows in the order on disk, read by TensorFlow's own kernels (so that iterators can be checkpointed)."""
    files = [str(manifest.folder / shard.file) for shard in manifest.splits[split].shards]
    records = tf.data.FixedLengthRecordDataset(files, manifest.row_bytes)
    dtype = tf.as_dtype(manifest.dtype)

    def parse(record: Any) -> dict[str, Any]:
        row = tf.cast(tf.io.decode_raw(record, dtype), tf.int32)
        return {"targets": tf.ensure_shape(row, [manifest.row_tokens])}

    return records.map(parse, num_parallel_calls=tf.data.AUTOTUNE)


def _by_schedule(tasks: Sequence[str], shares: Sequence, datasets: Sequence[Any], rates: Sequence[float], seed: int | None) -> Any:
    """SeqIO's `sample_fn`: the mixture's schedule instead of random draws; `rates` and `seed` say nothing it does not know.

    SeqIO hands datasets over in the order of task names, and leaves out tasks without the split.
    """
    positions = sorted(range(len(tasks)), key=lambda i: tasks[i])
    if len(datasets) != len(tasks):
        raise InputError(f"{len(tasks) - len(datasets)} of the tasks {', '.join(tasks)} have no such split; hold out documents in each")
    schedule = Schedule(shares)
    dataset_of_component = np.argsort(positions)
    choices = dataset_of_component[schedule.component(np.arange(schedule.period))].astype(np.int16)
    choice = tf.data.Dataset.from_tensor_slices(choices).map(lambda i: tf.cast(i, tf.int64)).repeat()
    return tf.data.Dataset.choose_from_datasets(list(datasets), choice, stop_on_empty_dataset=True)


def _register_from_environment() -> None:
    for folder in filter(None, os.environ.get(ENVIRONMENT_VARIABLE, "").split(os.pathsep)):
        register(folder)


_register_from_environment()

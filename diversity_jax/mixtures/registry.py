"""Built mixtures as SeqIO tasks and mixtures, for any SeqIO codebase.

    DIVERSITY_JAX_MIXTURES=/data/mixtures/a:/data/mixtures/b python -m t5x.train \\
        --gin.MIXTURE_OR_TASK_MODULE="'diversity_jax.mixtures.registry'" ...

Importing this module registers the mixtures in those folders (or in folders directly inside them), from manifests on
disk alone: no network and no JAX. A component `prose` of the mixture `quickstart` becomes the task `quickstart.prose`;
the mixture keeps its name. An example is one prepared row, `targets`, int32 [sequence_length + 1], and the features of
`decoder_features`. Rates are token shares, and rows come in the training loader's order with its loss weights.
"""

from collections.abc import Sequence
import functools
import os
from pathlib import Path
import re
from typing import Any

import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.core.tensorflow import seqio, tf
from diversity_jax.mixtures.mixture import Mixture, epoch_shuffle
from diversity_jax.mixtures.schedule import Schedule
from diversity_jax.prepare.manifest import Manifest, prepared_tokenizer
from diversity_jax.prepare.rows import ID_BITS, START
from diversity_jax.tokenizers.seqio import seqio_vocabulary

ENVIRONMENT_VARIABLE = "DIVERSITY_JAX_MIXTURES"


class PreparedTask(seqio.Task):
    """A task over the prepared rows of `manifest`.

    The rows already lie in a seeded permutation, so `shuffle=True`, which trainers pass for the train split, changes
    nothing: a second shuffle would cost a buffer and the order that makes token shares hold in every window. SeqIO's
    cache in memory is off too, since the page cache does the same.
    """

    manifest: Manifest

    def get_dataset(
        self,
        sequence_length: Any = None,
        split: str = "train",
        use_cached: bool = False,
        shuffle: bool = False,
        **options: Any,
    ) -> Any:
        """As `seqio.Task.get_dataset`, in the permuted order that the rows have on disk."""
        options |= {"shuffle": False, "try_in_mem_cache": False}
        epochs = options.get("num_epochs", 1)
        if self.repeat_seed is None or epochs == 1 or use_cached:
            return super().get_dataset(sequence_length, split, use_cached, **options)
        source = _source(self.manifest, functools.partial(_passes, self.manifest, self.repeat_seed, epochs))
        passes = seqio.Task(self.name, source, self.output_features, self.preprocessors)
        return passes.get_dataset(sequence_length, split, **options | {"num_epochs": 1})


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
    tasks = [
        _register_task(f"{mixture.name}.{component.name}", component.prepared, mixture.repeat_seed)
        for component in mixture.taken
    ]
    shares = [component.share_granted for component in mixture.taken]
    if mixture.name in seqio.MixtureRegistry.names():
        if getattr(seqio.MixtureRegistry.get(mixture.name), "content_hash", None) != mixture.content_hash:
            raise InputError(f"{folder}: another mixture named {mixture.name!r} is registered already; rename this")
    else:
        rates = [(task, float(share)) for task, share in zip(tasks, shares, strict=True)]
        sample = functools.partial(_by_schedule, tuple(tasks), tuple(shares))
        registered = seqio.MixtureRegistry.add(mixture.name, rates, sample_fn=sample)
        registered.content_hash, registered.folder = mixture.content_hash, mixture.folder
    return [mixture.name, *tasks]


def registered_folder(name: str) -> Path | None:
    """Where a registered mixture was built; None where another codebase registered it."""
    return getattr(seqio.MixtureRegistry.get(name), "folder", None)


def _register_task(name: str, manifest: Manifest, repeat_seed: int | None) -> str:
    if name in seqio.TaskRegistry.names():
        known = seqio.TaskRegistry.get(name)
        if getattr(known, "content_hash", None) != manifest.content_hash or known.repeat_seed != repeat_seed:
            raise InputError(f"{manifest.folder}: another task named {name!r} is registered already; rename this")
        return name
    manifest.check_sizes()
    task = PreparedTask(
        name,
        source=_source(manifest, functools.partial(_rows, manifest)),
        output_features=_features(manifest),
        preprocessors=[
            seqio.CacheDatasetPlaceholder(),
            functools.partial(
                decoder_features, end_of_text_id=manifest.vocabulary.end_of_text_id, row_tokens=manifest.row_tokens
            ),
        ],
    )
    task.content_hash, task.manifest, task.repeat_seed = manifest.content_hash, manifest, repeat_seed
    seqio.TaskRegistry.add_provider(name, task)
    return name


def _source(manifest: Manifest, read: Any) -> Any:
    """A data source whose splits `read(split, shuffle_files, seed)` gives."""
    return seqio.FunctionDataSource(
        read,
        splits=tuple(manifest.splits),
        num_input_examples={split: found.rows for split, found in manifest.splits.items()},
    )


_VOCABULARIES: dict[str, Any] = {}
"""By hash of the tokenizer: one that several components share is read once."""


def _features(manifest: Manifest) -> dict[str, Any]:
    info = manifest.vocabulary
    if info.hash not in _VOCABULARIES:
        _VOCABULARIES[info.hash] = seqio_vocabulary(prepared_tokenizer(manifest))
    options = {"add_eos": False, "dtype": tf.int32, "rank": 1}
    tokens = seqio.Feature(vocabulary=_VOCABULARIES[info.hash], required=True, **options)
    derived_tokens = seqio.Feature(vocabulary=_VOCABULARIES[info.hash], required=False, **options)
    numbers = seqio.Feature(vocabulary=seqio.PassThroughVocabulary(size=manifest.row_tokens), required=False, **options)
    return {
        "targets": tokens,
        "decoder_input_tokens": derived_tokens,
        "decoder_target_tokens": derived_tokens,
        "decoder_loss_weights": numbers,
        "decoder_positions": numbers,
        "decoder_segment_ids": numbers,
    }


def decoder_features(dataset: Any, sequence_length: Any = None, *, end_of_text_id: int, row_tokens: int) -> Any:
    """Adds to each row what `seqio.PrePackedLMFeatureConverter` hands to a decoder; all int32 [sequence_length].

    `decoder_input_tokens` are the row's tokens but the last, `decoder_target_tokens` the one after each: nothing is
    shifted in, and no token is lost. `decoder_loss_weights` are one on every token (SeqIO's other converters take id 0
    for padding), of conversations on every token of an answer; `decoder_segment_ids` count documents or conversations
    from 1, `decoder_positions` start at 0 in each. Beyond the row, where more tokens are asked for, all are zero.
    """
    wanted = (sequence_length or {}).get("targets")
    length = row_tokens - 1 if wanted is None else wanted
    used = min(length, row_tokens - 1)

    def add(example: dict[str, Any]) -> dict[str, Any]:
        row = example["targets"]
        inputs = row[:used]
        if "starts" in example:
            begins, weights = example.pop("starts")[:used], example.pop("weights")[1 : used + 1]
        else:
            begins = tf.concat([[1], tf.cast(inputs[:-1] == end_of_text_id, tf.int32)], 0)
            weights = tf.ones_like(inputs)
        segments = tf.cumsum(begins)
        derived = {
            "decoder_input_tokens": inputs,
            "decoder_target_tokens": row[1 : used + 1],
            "decoder_loss_weights": weights,
            "decoder_positions": tf.range(used) - tf.gather(tf.cast(tf.where(begins)[:, 0], tf.int32), segments - 1),
            "decoder_segment_ids": segments,
        }
        padded = {
            name: tf.ensure_shape(tf.pad(values, [[0, length - used]]), [length]) for name, values in derived.items()
        }
        return {**example, **padded}

    return dataset.map(add, num_parallel_calls=tf.data.AUTOTUNE)


def _rows(manifest: Manifest, split: str, shuffle_files: bool = False, seed: int | None = None) -> "tf.data.Dataset":
    """Rows in the order on disk, read by TensorFlow's own kernels (so that iterators can be checkpointed)."""
    files = [os.path.join(manifest.folder, shard.file) for shard in manifest.splits[split].shards]
    return _parsed(manifest, tf.data.FixedLengthRecordDataset(files, manifest.row_bytes))


def _passes(
    manifest: Manifest,
    repeat_seed: int,
    epochs: int | None,
    split: str,
    shuffle_files: bool = False,
    seed: int | None = None,
) -> "tf.data.Dataset":
    """Rows of so many passes (None: without end), each in its own order; read by TensorFlow's own kernels too."""
    shards, order = manifest.splits[split].shards, epoch_shuffle(manifest, split, repeat_seed)
    assert order is not None  # a seed was given
    files = tf.constant([os.path.join(manifest.folder, shard.file) for shard in shards])
    starts = tf.constant(np.cumsum([0] + [shard.rows for shard in shards[:-1]]), tf.int64)

    def record(position: Any) -> Any:
        epoch = position // order.rows
        row = tf.while_loop(
            lambda row: row >= order.rows,
            lambda row: (order.permuted(row, epoch),),
            (order.permuted(position % order.rows, epoch),),
        )[0]
        shard = tf.searchsorted(starts, row[None], side="right")[0] - 1
        skipped = (row - starts[shard]) * manifest.row_bytes
        one = tf.data.FixedLengthRecordDataset(
            files[shard], manifest.row_bytes, skipped, buffer_size=manifest.row_bytes
        )
        return one.take(1)

    end = np.iinfo(np.int64).max if epochs is None else epochs * order.rows
    later = _parsed(manifest, tf.data.Dataset.range(order.rows, end).flat_map(record))
    return _rows(manifest, split).concatenate(later)


def _parsed(manifest: Manifest, records: "tf.data.Dataset") -> "tf.data.Dataset":
    """Rows from their bytes on disk."""
    dtype = tf.as_dtype(manifest.dtype)

    def parse_with_flags(record: Any) -> dict[str, Any]:
        row = tf.ensure_shape(tf.io.decode_raw(record, tf.int32), [manifest.row_tokens])
        starts = tf.cast(tf.bitwise.bitwise_and(row, int(START)) != 0, tf.int32)
        ids = tf.bitwise.bitwise_and(row, int(ID_BITS))
        return {"targets": ids, "starts": starts, "weights": tf.cast(row < 0, tf.int32)}  # the highest bit is TARGET

    def parse(record: Any) -> dict[str, Any]:
        row = tf.cast(tf.io.decode_raw(record, dtype), tf.int32)
        return {"targets": tf.ensure_shape(row, [manifest.row_tokens])}

    return records.map(parse_with_flags if manifest.chat else parse, num_parallel_calls=tf.data.AUTOTUNE)


def _by_schedule(
    tasks: Sequence[str], shares: Sequence[Any], datasets: Sequence[Any], rates: Sequence[float], seed: int | None
) -> Any:
    """SeqIO's `sample_fn`: the mixture's schedule instead of random draws, so that `rates` and `seed` are not needed.

    SeqIO hands datasets over in the order of task names, and leaves out tasks without the split.
    """
    positions = sorted(range(len(tasks)), key=lambda i: tasks[i])
    if len(datasets) != len(tasks):
        missing = f"{len(tasks) - len(datasets)} of the tasks {', '.join(tasks)}"
        raise InputError(f"{missing} have no such split; hold out documents in each")
    schedule = Schedule(shares)
    dataset_of_component = np.argsort(positions)
    choices = dataset_of_component[schedule.component(np.arange(schedule.period))].astype(np.int16)
    choice = tf.data.Dataset.from_tensor_slices(choices).map(lambda i: tf.cast(i, tf.int64)).repeat()
    return tf.data.Dataset.choose_from_datasets(list(datasets), choice, stop_on_empty_dataset=True)


def folders_named(value: str) -> list[Path]:
    """Folders of mixtures in a list joined by colons; one without a mixture stands for the mixtures directly in it.

    Raises:
      InputError: a folder is missing, remote, or holds no mixture.
    """
    folders: list[Path] = []
    for name in filter(None, re.split(rf"{os.pathsep}(?!//)", value)):
        folder, about = Path(name), f"{ENVIRONMENT_VARIABLE}: {name}"
        if "://" in name:
            raise InputError(f"{about}: rows are read from local or mounted folders; copy the mixture there")
        if not folder.is_dir():
            raise InputError(f"{about}: no such folder; name folders of mixtures, joined by {os.pathsep!r}")
        own = folder / "mixture.json"
        inside = [own] if own.exists() else sorted(folder.glob("*/mixture.json"))
        if not inside:
            raise InputError(f"{about}: holds no mixture.json; build one there with diversity_jax.mixtures.build")
        folders += [path.parent for path in inside]
    return folders


for _folder in folders_named(os.environ.get(ENVIRONMENT_VARIABLE, "")):
    register(_folder)

"""Registers built mixtures as SeqIO tasks and mixtures, for any SeqIO codebase.

    DIVERSITY_JAX_MIXTURES=/data/mixtures/a:/data/mixtures/b python -m t5x.train \\
        --gin.MIXTURE_OR_TASK_MODULE="'diversity_jax.mixtures.registry'" ...

Importing this module registers the mixtures in those folders (or in folders directly inside them), from manifests on
disk alone: no network and no JAX. A mixture `small` with the component `prose` is registered as

    small            the mixture, rows in the training loader's order; tasks `small.prose`, ...
    small_exact      the same rows in the same order as one task, to be mixed with other tasks
    small_packed     the mixture with all features registered, for `PrePackedLMFeatureConverter` in other mixtures
    small_held_out   held-out rows as tasks with metrics, for `seqio.Evaluator`

An example is one prepared row: the feature `targets`, int32 [sequence_length + 1]. Examples also have the features of
`decoder_features`, unregistered, so that the tasks mix with others; our own mixtures pass them through.
"""

from collections.abc import Sequence
import functools
import os
from pathlib import Path
import re
from typing import Any
import warnings

import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.core.stores import is_remote
from diversity_jax.core.tensorflow import seqio, tf
from diversity_jax.mixtures.mixture import Mixture
from diversity_jax.mixtures.schedule import Schedule
from diversity_jax.mixtures.seqio_rows import (
    DECODER_FEATURES,
    counted_tokens,
    decoder_features,
    features_like,
    features_of,
    matching_features,
    passes_of,
    rows_of,
    token_loss,
)
from diversity_jax.prepare.manifest import SPLITS, Manifest

ENVIRONMENT_VARIABLE = "DIVERSITY_JAX_MIXTURES"


class PreparedTask(seqio.Task):
    """A task over the prepared rows of `manifest`.

    The rows already have a seeded permutation, so `shuffle=True`, which trainers pass for the train split, changes
    nothing: a second shuffle would need a buffer, and token shares would no longer hold in every window. SeqIO's cache
    in memory is off, since the page cache does the same; if its cache on disk is requested and was never written, the
    rows themselves are read.
    """

    manifest: Manifest
    content_hash: str
    repeat_seed: int | None

    def get_dataset(
        self,
        sequence_length: Any = None,
        split: str = "train",
        use_cached: bool = False,
        shuffle: bool = False,
        **options: Any,
    ) -> Any:
        """As `seqio.Task.get_dataset`, in the order that the rows have on disk, or that of `EpochShuffle`."""
        _warn_of_cut_rows(self.name, sequence_length, self.manifest)
        options |= {"shuffle": False, "try_in_mem_cache": False}
        epochs, use_cached = options.get("num_epochs", 1), use_cached and self.cache_dir is not None
        if self.repeat_seed is None or epochs == 1 or use_cached:
            return super().get_dataset(sequence_length, split, use_cached, **options)
        source = _source(self.manifest, functools.partial(passes_of, self.manifest, self.repeat_seed, epochs))
        passes = seqio.Task(self.name, source, self.output_features, self.preprocessors)
        return passes.get_dataset(sequence_length, split, **options | {"num_epochs": 1})


def _warn_of_cut_rows(name: str, sequence_length: Any, manifest: Manifest) -> None:
    wanted = (sequence_length or {}).get("targets")
    if wanted is not None and wanted < manifest.row_tokens - 1:
        lost = (
            f"the last {manifest.row_tokens - wanted:,} of the {manifest.row_tokens:,} tokens of every row are unused"
        )
        remedy = f"ask for {manifest.sequence_length:,}, or build the mixture with sequence_length={wanted}"
        warnings.warn(f"{name}: sequence_length['targets'] is {wanted:,}: {lost}; {remedy}", stacklevel=3)


class PreparedMixture(seqio.Mixture):
    """A built mixture: rows of its tasks in the order of its schedule, with the features of `decoder_features`.

    Another mixture that contains it uses only its tasks and rates, so that the schedule is lost, with a warning.
    """

    content_hash: str
    folder: Path | str
    _is_own_sampling = False

    def get_dataset(self, *arguments: Any, passthrough_features: Sequence[str] | None = None, **options: Any) -> Any:
        """As `seqio.Mixture.get_dataset`; `passthrough_features` are all of `DECODER_FEATURES` unless given."""
        given = DECODER_FEATURES if passthrough_features is None else passthrough_features
        self._is_own_sampling = True
        try:
            return super().get_dataset(*arguments, passthrough_features=given, **options)
        finally:
            self._is_own_sampling = False

    def get_rate(self, task: Any) -> float:
        """The share of a task; SeqIO calls this, too, when another mixture samples this one's tasks."""
        if not self._is_own_sampling:
            lost = "another mixture samples its tasks at random, and its exact schedule is lost"
            warnings.warn(f"{self.name}: {lost}; put the task {self.name}_exact there instead", stacklevel=2)
        return super().get_rate(task)


class ScheduledTask(seqio.Task):
    """A mixture as one task, whose rows keep the order of its schedule when it is mixed with others."""

    mixture: PreparedMixture

    def get_dataset(
        self,
        sequence_length: Any = None,
        split: str = "train",
        use_cached: bool = False,
        shuffle: bool = False,
        **options: Any,
    ) -> Any:
        """As `seqio.Task.get_dataset`, `shuffle` changing nothing; one epoch ends with the first component's."""
        options.pop("shuffle_buffer_size", None)
        return self.mixture.get_dataset(sequence_length, split, use_cached, shuffle, **{"num_epochs": 1, **options})


def register(folder: str | Path, *, like: str | None = None, name: str | None = None) -> list[str]:
    """Registers a built mixture and its components; registering the same one again does nothing.

    Args:
      folder: of `mixture.json`.
      like: a registered task or mixture that the rows will be mixed with: they get its features and vocabulary,
        `inputs` empty.
      name: to register it by; default: the mixture's name, with `like` followed by `_like_` and that name.

    Returns:
      Names registered: the mixture first, then its tasks. The first with `_exact` is the task of the mixture.

    Raises:
      InputError: no built mixture there, another mixture of that name is registered, or rows cannot have the features
        and vocabulary of `like`.
    """
    if name is not None and not re.fullmatch(r"[\w.:]+", name, re.ASCII):
        raise InputError(f"name={name!r}: SeqIO takes letters, digits and _ . : alone; choose another")
    mixture = Mixture.load(folder)
    manifest = mixture.taken[0].prepared
    for component in mixture.taken:
        component.prepared.check_sizes()
    has_weights = any(component.prepared.chat for component in mixture.taken)
    if like is not None:
        features = features_like(like, manifest)
        if has_weights and "decoder_loss_weights" not in features:
            lost = f"{like} has no decoder_loss_weights, so that questions are trained on as answers are"
            warnings.warn(f"{mixture.name}: {lost}", stacklevel=2)
        return _register(mixture, name or f"{mixture.name}_like_{like}", features)
    name = name or mixture.name
    names = _register(mixture, name, features_of(manifest))
    _register(mixture, f"{name}_packed", features_of(manifest, DECODER_FEATURES), is_derived=True)
    if not has_weights and any("validation" in component.prepared.splits for component in mixture.taken):
        scored = {"metric_fns": [token_loss], "postprocess_fn": counted_tokens}
        _register(mixture, f"{name}_held_out", features_of(manifest), ("validation",), is_derived=True, **scored)
    return names


def registered_folder(name: str) -> Path | str | None:
    """The folder of a registered mixture; None where another codebase registered it."""
    provider = seqio.get_mixture_or_task(name)
    return getattr(getattr(provider, "mixture", provider), "folder", None)


def _register(
    mixture: Mixture,
    name: str,
    features: dict[str, Any],
    splits: Sequence[str] = SPLITS,
    is_derived: bool = False,
    **options: Any,
) -> list[str]:
    """Registers tasks, mixture and the task of all rows under a name, or those of them that are not registered.

    A derived mixture is replaced by a named one, and by that of another mixture whose name had been removed.
    """
    parts = [part for part in mixture.taken if set(splits) & set(part.prepared.splits)]
    known = seqio.MixtureRegistry.get(name) if name in seqio.MixtureRegistry.names() else None
    is_other = known is not None and (
        getattr(known, "content_hash", None) != mixture.content_hash or set(known.output_features) != set(features)
    )
    if known is not None and getattr(known, "is_derived", False) and (is_other or not is_derived):
        seqio.MixtureRegistry.remove(name)
        for task in known.tasks:
            seqio.TaskRegistry.remove(task.name)
        known = None
    elif is_other:
        if is_derived:
            return []
        about = f"{mixture.folder}: another mixture named {name!r}, or with other features, is registered already"
        raise InputError(f"{about}; register this with another name=, or in another process")
    tasks = [
        _register_task(f"{name}.{part.name}", part.prepared, mixture, features, splits, **options) for part in parts
    ]
    registered = known
    if registered is None:
        shares = [part.share_granted for part in parts]
        rates = [(task, float(share)) for task, share in zip(tasks, shares, strict=True)]
        sample = functools.partial(_by_schedule, tuple(tasks), tuple(shares))
        registered = PreparedMixture(name, rates, sample_fn=sample)
        registered.content_hash, registered.folder = mixture.content_hash, mixture.folder
        registered.is_derived = is_derived
        seqio.MixtureRegistry.add_provider(name, registered)
    _register_exact(registered, features, parts)
    return [name, *tasks]


def _register_exact(mixture: PreparedMixture, features: dict[str, Any], parts: Sequence[Any]) -> None:
    """Registers a mixture as one task, unless others have taken its name or the mixture is for evaluation."""
    name = f"{mixture.name}_exact"
    before = seqio.TaskRegistry.get(name) if name in seqio.TaskRegistry.names() else None
    if isinstance(before, ScheduledTask) and before.mixture is not mixture and before.mixture.name == mixture.name:
        seqio.TaskRegistry.remove(name)  # of a mixture that is registered no more
    splits = [split for split in SPLITS if all(split in task.splits for task in mixture.tasks)]
    if "train" not in splits or name in {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}:
        return
    rows = {split: sum(part.prepared.splits[split].rows for part in parts) for split in splits}

    def read(split: str, shuffle_files: bool = False, seed: int | None = None) -> Any:
        return mixture.get_dataset(None, split, num_epochs=1)

    source = seqio.FunctionDataSource(read, splits=tuple(splits), num_input_examples=rows)
    task = ScheduledTask(name, source, features)
    task.mixture = mixture
    seqio.TaskRegistry.add_provider(name, task)


def _register_task(
    name: str,
    manifest: Manifest,
    mixture: Mixture,
    features: dict[str, Any],
    splits: Sequence[str],
    **options: Any,
) -> str:
    boundaries = mixture.boundaries(attend_across_documents=False)
    identity = manifest.content_hash, mixture.repeat_seed, boundaries
    if name in seqio.TaskRegistry.names():
        if getattr(seqio.TaskRegistry.get(name), "identity", None) != identity:
            about = f"{manifest.folder}: another task named {name!r} is registered already"
            raise InputError(f"{about}; register this with another name=")
        return name
    if is_remote(manifest.folder):
        raise InputError(
            f"{manifest.folder}: SeqIO reads rows from a disk; copy them with python -m diversity_jax.mixtures.fetch"
        )
    task = PreparedTask(
        name,
        source=_source(manifest, functools.partial(rows_of, manifest), splits),
        output_features=features,
        preprocessors=[
            seqio.CacheDatasetPlaceholder(),
            functools.partial(decoder_features, boundaries=boundaries, row_tokens=manifest.row_tokens),
            matching_features,
        ],
        **options,
    )
    task.identity, task.manifest, task.repeat_seed = identity, manifest, mixture.repeat_seed
    seqio.TaskRegistry.add_provider(name, task)
    return name


def _source(manifest: Manifest, read: Any, splits: Sequence[str] = SPLITS) -> Any:
    """A data source whose splits are read by `read(split, shuffle_files, seed)`."""
    rows = {split: rows_of_split.rows for split, rows_of_split in manifest.splits.items() if split in splits}
    return seqio.FunctionDataSource(read, splits=tuple(rows), num_input_examples=rows)


def _by_schedule(
    tasks: Sequence[str], shares: Sequence[Any], datasets: Sequence[Any], rates: Sequence[float], seed: int | None
) -> Any:
    """SeqIO's `sample_fn`: datasets mixed by the mixture's schedule, not at random; `rates` and `seed` are not used.

    SeqIO passes datasets in the order of task names, and leaves out tasks without the split.
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
    """Folders of mixtures in a list joined by colons; one without `mixture.json` stands for the mixtures inside it.

    Raises:
      InputError: a folder is missing, remote, or holds no mixture.
    """
    folders: list[Path] = []
    for name in filter(None, re.split(rf"{os.pathsep}(?!//)", value)):
        folder, about = Path(name), f"{ENVIRONMENT_VARIABLE}: {name}"
        if "://" in name:
            raise InputError(f"{about}: rows are read from a disk; copy them with diversity_jax.mixtures.fetch")
        if folder.name == "mixture.json" and folder.is_file():
            folder = folder.parent
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

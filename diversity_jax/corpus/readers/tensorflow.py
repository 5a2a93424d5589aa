"""Examples of a `tf.data` dataset as records: the text feature, and the plain features beside it.

The text of a SeqIO task or mixture, whether its preprocessors left it a string or made token ids of it.

A TensorFlow Datasets builder that was prepared on this disk; nothing is ever downloaded.
"""

from collections.abc import Callable, Iterator
import difflib
import importlib
import os
from pathlib import Path
import re
from typing import Any

import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.core.tensorflow import import_quietly
from diversity_jax.corpus.corpus import RecordCorpus
from diversity_jax.corpus.document import CorpusConfig, Document, Rejected, decode_utf8

_BATCH_EXAMPLES = 256


class TensorRecords:
    """Examples in the dataset's order. They can only be streamed; what identifies them is what comes out."""

    def __init__(
        self,
        label: str,
        dataset: Callable[[], Any],
        fields: tuple[str, ...],
        decode_ids: Callable[[str, list[int]], str] | None,
    ):
        """Chooses the text feature.

        Args:
          label: names the records, `label:1` and so on.
          dataset: makes the dataset anew, always in the same order.
          fields: acceptable text features, the first that exists is taken; dots reach into nested ones. `("",)`: none
            is, and examples stay whole, their ids decoded and their lists kept.
          decode_ids: text of token ids of a field, or None where a feature of numbers cannot be text.

        Raises:
          InputError: none of the fields exists, or it cannot be text; the message names those that do exist.
        """
        self._label = label
        self._dataset = dataset
        self._decode_ids = decode_ids
        self._is_whole, self._field = fields == ("",), ""
        if self._is_whole:
            return
        specs = _flat(dataset().element_spec)
        self._field = next((field for field in fields if field in specs), "")
        if not self._field:
            raise InputError(f"{label}: has no feature {fields[0]!r}; set text_field to one of: {', '.join(specs)}")
        spec = specs[self._field]
        is_text, is_ids = (
            spec.dtype.name == "string" and spec.shape.rank == 0,
            spec.dtype.is_integer and spec.shape.rank == 1,
        )
        if not (is_text or (is_ids and decode_ids)):
            kind = f"{spec.dtype.name} of shape {spec.shape}"
            raise InputError(
                f"{label}: feature {self._field!r} holds {kind}, not text; set text_field to another of: "
                f"{', '.join(specs)}"
            )

    def batches(self) -> Iterator[list[dict[str, Any]]]:
        batch = []
        for example in self._examples():
            batch.append(example)
            if len(batch) == _BATCH_EXAMPLES:
                yield batch
                batch = []
        if batch:
            yield batch

    def _examples(self) -> Iterator[dict[str, Any]]:
        from tensorflow import errors

        examples = self._dataset().as_numpy_iterator()
        while True:
            try:
                example = next(examples, None)
            except errors.OpError as error:
                raise InputError(
                    f"{self._label}: cannot be read ({error.message.splitlines()[0]}); check its files"
                ) from None
            if example is None:
                return
            yield example

    def decode(self, raw: dict[str, Any], position: int) -> Document:
        where = f"{self._label}:{position + 1}"
        features = _flat(raw)
        if self._is_whole:
            return Document(
                id=where, text="", meta={name: self._whole(name, value, where) for name, value in features.items()}
            )
        text = self._text(self._field, features.pop(self._field), where)
        return Document(
            id=where, text=text, meta={name: _plain(value) for name, value in features.items() if np.ndim(value) == 0}
        )

    def _text(self, field: str, value: Any, where: str) -> str:
        if isinstance(value, bytes):
            return decode_utf8(value, where)
        try:
            return self._decode_ids(field, value.tolist())
        except Exception as error:  # a vocabulary may fail on foreign ids with whatever its library raises
            reason = str(error).partition("\n")[0]
            raise Rejected(
                "not decodable", f"{where}: the vocabulary of {field!r} cannot decode it ({reason})"
            ) from None

    def _whole(self, name: str, value: Any, where: str) -> Any:
        """A feature as a record of another format would hold it."""
        is_ids = self._decode_ids is not None and name in ("inputs", "targets") and np.ndim(value) == 1
        if isinstance(value, bytes) or is_ids:
            return self._text(name, value, where)
        return [_plain(item) for item in value] if np.ndim(value) == 1 else _plain(value)

    def count(self) -> None:
        return None

    def fetch(self, positions: np.ndarray) -> Iterator[Any]:
        raise NotImplementedError("records without a count are streamed")

    def expected_bytes(self) -> None:
        return None

    def content_hash(self) -> None:
        return None


def _flat(features: Any, prefix: str = "") -> dict[str, Any]:
    """Nested features under dotted names."""
    flat = {}
    for name, value in features.items() if isinstance(features, dict) else [("example", features)]:
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _plain(value: Any) -> Any:
    return (
        value.decode(errors="replace")
        if isinstance(value, bytes)
        else value.item()
        if hasattr(value, "item")
        else value
    )


_USUAL_FIELDS = ("text", "targets_pretokenized", "targets")
_SEED = 0  # of preprocessors that draw random numbers: the same text in every run


def open_seqio_task(config: CorpusConfig, name: str) -> RecordCorpus:
    """Opens `seqio:NAME` or `seqio:NAME@MODULE`, where importing MODULE registers the task or mixture.

    A task is read unshuffled, after its preprocessors, at full length. `text_field` names a feature; the default `text`
    also stands for `targets_pretokenized` and then `targets`, in which SeqIO language-modelling tasks keep their text.
    A feature of token ids is decoded with the task's own vocabulary. A mixture is read as its own trainer would see it:
    examples drawn at its rates with a fixed seed, until the first of its tasks has been read through.

    Raises:
      InputError: no such module, task, split or feature; or its source cannot be read.
    """
    seqio = import_quietly("seqio")
    name, _, module = name.partition("@")
    if module:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise InputError(
                f"{config.source}: cannot import {module} ({error}); check the name and PYTHONPATH"
            ) from None
    task = _find_task(seqio, name, config.source)
    if config.split not in task.splits:
        raise InputError(
            f"{config.source}: has no split {config.split!r}; set split to one of: {', '.join(sorted(task.splits))}"
        )

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
    raise InputError(
        f"{source}: this SeqIO task is not registered; {known} name the module that registers it: seqio:{name}@MODULE"
    )


_INFO = "dataset_info.json"
_VERSION = re.compile(r"\d+\.\d+\.\d+$")


def open_tfds_builder(config: CorpusConfig, name: str) -> RecordCorpus:
    """Opens `tfds:NAME[/CONFIG][:VERSION]` below `TFDS_DATA_DIR`, or `~/tensorflow_datasets` where that is not set.

    The newest version is taken unless one is named. The folder is opened by itself, without the code that made it, so
    that neither that code nor a network is needed.

    Raises:
      InputError: there is no such prepared data set, configuration, version, split or feature.
    """
    root = Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    folder = _version_folder(root, name, config.source)
    tfds = import_quietly("tensorflow_datasets")
    builder = tfds.builder_from_directory(str(folder))
    if config.split not in builder.info.splits:
        raise InputError(
            f"{config.source}: has no split {config.split!r}; set split to one of: {', '.join(builder.info.splits)}"
        )

    def dataset() -> Any:
        read_config = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
        return builder.as_dataset(split=config.split, shuffle_files=False, read_config=read_config)

    label = f"{builder.info.full_name}:{config.split}"
    records = TensorRecords(label, dataset, (config.record_field,), None)
    return RecordCorpus(config, [records], f"tfds:{label}")


def _version_folder(root: Path, name: str, source: str) -> Path:
    """The folder of one version, which holds the files."""
    path, _, version = name.partition(":")
    folder = root / path
    if not folder.is_dir():
        there = (
            ", ".join(sorted(entry.name for entry in root.iterdir() if entry.is_dir())[:12]) if root.is_dir() else ""
        )
        remedy = (
            f"prepared there: {there or 'nothing'}; set TFDS_DATA_DIR, or prepare it with tfds build or "
            "download_and_prepare"
        )
        raise InputError(f"{source}: no folder {folder}; {remedy}")
    versions = [entry for entry in folder.iterdir() if (entry / _INFO).is_file() and _VERSION.match(entry.name)]
    if version:
        versions = [entry for entry in versions if entry.name == version]
    if versions:
        return max(versions, key=lambda entry: [int(number) for number in entry.name.split(".")])
    inside = ", ".join(sorted(entry.name for entry in folder.iterdir() if entry.is_dir())) or "nothing"
    raise InputError(
        f"{source}: no prepared version{' ' + version if version else ''} in {folder}, which holds: {inside}; name "
        "one of these"
    )

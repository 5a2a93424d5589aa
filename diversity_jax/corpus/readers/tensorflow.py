"""Readers of TFRecord files and prepared TensorFlow Datasets builders, by TensorFlow."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import functools
import itertools
import os
from pathlib import Path
import re
import tempfile
from typing import Any

import numpy as np

from diversity_jax.core.compression import compression, read_blocks
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import disk_errors_named, file_bytes, is_remote, open_file
from diversity_jax.core.tensorflow import import_quietly
from diversity_jax.corpus.corpus import RecordCorpus
from diversity_jax.corpus.document import (
    CorpusConfig,
    Document,
    FileRecords,
    Records,
    Rejected,
    check_split,
    decode_utf8,
    list_fields,
)

_BATCH_EXAMPLES = 256
_FRAME_BYTES = 16  # of a TFRecord besides its data: its length and two checksums
_OFFSET = re.compile(r"record at (\d+)")


class TFRecord(FileRecords):
    """Examples (`tf.train.Example`) of one TFRecord file, in order. They can only be streamed."""

    def batches(self) -> Iterator[list[bytes]]:
        tf = import_quietly("tensorflow")
        with open_file(self._path):  # raises a shorter error for a missing file than TensorFlow
            pass
        consumed_bytes = 0
        with _plain_file(self._path) as path:
            examples = tf.data.TFRecordDataset(path).batch(_BATCH_EXAMPLES).as_numpy_iterator()
            while True:
                try:
                    batch = list(next(examples, ()))
                except tf.errors.DataLossError as error:
                    raise self._damaged(error.message) from None
                if not batch:
                    break
                consumed_bytes += sum(map(len, batch)) + _FRAME_BYTES * len(batch)
                yield batch
            if consumed_bytes < file_bytes(path):  # TensorFlow ignores an incomplete header of 12 bytes at the end
                raise self._damaged(f"truncated record at {consumed_bytes}")

    def _damaged(self, message: str) -> InputError:
        offset = match[1] if (match := _OFFSET.search(message)) else "?"
        if "truncated" in message:
            return InputError(f"{self._path}: ends inside the record at byte {offset}; fetch or write it again")
        what = f"has no TFRecord at byte {offset} (wrong checksum): another format, or damaged"
        return InputError(f"{self._path}: {what}; fetch or write it again")

    def decode(self, raw: bytes, position: int) -> Document:
        where, name = self._where(position), self._field
        try:
            features = parse_example(raw)
        except ValueError:
            raise Rejected("not an Example", f"{where}: is not a tf.train.Example") from None
        if not name:
            meta = {key: plain(value[0] if len(value) == 1 else value) for key, value in features.items()}
            return Document(id=self._id(position), text="", meta=meta)
        if name not in features:
            message = f"{where}: has no feature {name!r}; set text_field to one of: {list_fields(features)}"
            raise Rejected("no text field", message)
        values = features.pop(name)
        if len(values) > 1 or not all(isinstance(value, bytes) for value in values):
            kind = f"{len(values)} values" if len(values) > 1 else "a number"
            message = f"{where}: feature {name!r} holds {kind}, not text; tokens are read by seqio:TASK"
            raise Rejected("text field is not text", message)
        meta = {key: plain(value[0]) for key, value in features.items() if len(value) == 1}
        return Document(id=self._id(position), text=decode_utf8(values[0], where) if values else "", meta=meta)


@contextlib.contextmanager
def _plain_file(path: str) -> Iterator[str]:
    """The path of a local, decompressed file: the file itself, or a temporary copy."""
    if not is_remote(path) and not compression(path):
        yield path
        return
    with tempfile.NamedTemporaryFile(suffix=".tfrecord") as copy:
        with disk_errors_named(copy.name):
            for block in read_blocks(path):
                copy.write(block)
            copy.flush()
        yield copy.name


@functools.cache
def _example_type() -> Any:
    return import_quietly("tensorflow").train.Example


def parse_example(data: bytes) -> dict[str, list[Any]]:
    """Features of a serialised `tf.train.Example` by name, in alphabetical order: a list of bytes, floats or ints each.

    Raises:
      ValueError: the bytes are not such a message.
    """
    try:
        features = _example_type().FromString(data).features.feature
    except Exception as error:  # protobuf's DecodeError, which has no public name that all its versions share
        raise ValueError(str(error)) from None
    kinds = {name: feature.WhichOneof("kind") for name, feature in sorted(features.items())}
    return {name: list(getattr(features[name], kind).value) if kind else [] for name, kind in kinds.items()}


class TensorRecords(Records):
    """Examples of a `tf.data` dataset, in its order. They can only be streamed.

    Args:
      label: names the records, `label:1` and so on.
      dataset: makes a new dataset, always in the same order.
      field: the text feature; dots name nested ones. Empty: examples keep all features, also lists.

    Raises:
      InputError: there is no such feature, or it is not text; the message names those that there are.
    """

    def __init__(self, label: str, dataset: Callable[[], Any], field: str):
        self._label, self._dataset, self._field = label, dataset, field
        if not field:
            return
        specs = flat_features(dataset().element_spec)
        known = f"set text_field to one of: {', '.join(specs)}"
        if field not in specs:
            raise InputError(f"{label}: has no feature {field!r}; {known}")
        spec = specs[field]
        if spec.dtype.name != "string" or spec.shape.rank != 0:
            kind = f"{spec.dtype.name} of shape {spec.shape}"
            raise InputError(f"{label}: feature {field!r} holds {kind}, not text; {known}")

    def batches(self) -> Iterator[list[dict[str, Any]]]:
        tf = import_quietly("tensorflow")
        examples = self._dataset().as_numpy_iterator()
        while True:
            try:
                batch = list(itertools.islice(examples, _BATCH_EXAMPLES))
            except tf.errors.OpError as error:
                reason = error.message.splitlines()[0]
                raise InputError(f"{self._label}: cannot be read ({reason}); check its files") from None
            if not batch:
                return
            yield batch

    def decode(self, raw: dict[str, Any], position: int) -> Document:
        where = f"{self._label}:{position + 1}"
        features = flat_features(raw)
        if not self._field:
            decoded = {name: self._value(value, where) for name, value in features.items()}
            return Document(id=where, text="", meta=decoded)
        text = decode_utf8(features.pop(self._field), where)
        return Document(id=where, text=text, meta=scalars(features))

    def _value(self, value: Any, where: str) -> Any:
        """A feature's value, bytes as text."""
        return decode_utf8(value, where) if isinstance(value, bytes) else plain(value)


def scalars(features: Mapping[str, Any]) -> dict[str, Any]:
    """Features of a single value, which are a document's metadata."""
    return {name: plain(value) for name, value in features.items() if np.ndim(value) == 0}


def flat_features(features: Any, prefix: str = "") -> dict[str, Any]:
    """Nested features under dotted names."""
    flat: dict[str, Any] = {}
    for name, value in features.items() if isinstance(features, dict) else [("example", features)]:
        flat |= flat_features(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def plain(value: Any) -> Any:
    """A feature's value as Python's own types, bytes as text."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, list) or np.ndim(value):
        return [plain(item) for item in value]
    return value.item() if hasattr(value, "item") else value


_INFO = "dataset_info.json"
_VERSION = re.compile(r"\d+\.\d+\.\d+$")


def open_tfds_builder(config: CorpusConfig, name: str) -> RecordCorpus:
    """Opens `tfds:NAME[/CONFIG][:VERSION]` in `TFDS_DATA_DIR`, or in `~/tensorflow_datasets` if that is not set.

    The newest version is used unless one is named. The folder is opened without the code that made it and without a
    network.

    Raises:
      InputError: there is no such prepared data set, configuration, version, split or feature.
    """
    root = Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    folder = _version_folder(root, name, config.source)
    tfds = import_quietly("tensorflow_datasets")
    builder = tfds.builder_from_directory(str(folder))
    check_split(config.source, config.split, builder.info.splits)

    def dataset() -> Any:
        read_config = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
        return builder.as_dataset(split=config.split, shuffle_files=False, read_config=read_config)

    label = f"{builder.info.full_name}:{config.split}"
    records = TensorRecords(label, dataset, config.record_field)
    return RecordCorpus(config, [records], f"tfds:{label}")


def _version_folder(root: Path, name: str, source: str) -> Path:
    """The folder of one version."""
    path, _, version = name.partition(":")
    folder = root / path
    if not folder.is_dir():
        message = f"{source}: no folder {folder}; prepared there: {_folders(root)}; set TFDS_DATA_DIR"
        raise InputError(f"{message}, or prepare it with tfds build")
    versions = [entry for entry in folder.iterdir() if (entry / _INFO).is_file() and _VERSION.match(entry.name)]
    if version:
        versions = [entry for entry in versions if entry.name == version]
    if versions:
        return max(versions, key=lambda entry: [int(number) for number in entry.name.split(".")])
    wanted = f"version {version}" if version else "version"
    raise InputError(f"{source}: no prepared {wanted} in {folder}, which holds: {_folders(folder)}; name one of these")


def _folders(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []
    return ", ".join(names[:12]) or "nothing"

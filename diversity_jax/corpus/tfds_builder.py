"""A TensorFlow Datasets builder that was prepared on this disk; nothing is ever downloaded."""

import os
from pathlib import Path
import re
from typing import Any

from diversity_jax.corpus.document import CorpusConfig
from diversity_jax.corpus.record_corpus import RecordCorpus
from diversity_jax.corpus.tensor_records import TensorRecords
from diversity_jax.corpus.tensorflow_quietly import import_quietly
from diversity_jax.errors import InputError

_INFO = "dataset_info.json"
_VERSION = re.compile(r"\d+\.\d+\.\d+$")


def open_tfds_builder(config: CorpusConfig, name: str) -> RecordCorpus:
    """Opens `tfds:NAME[/CONFIG][:VERSION]` below `TFDS_DATA_DIR`, or `~/tensorflow_datasets` where that is not set.

    The newest version is taken unless one is named. The folder is opened by itself, without the code that made it, so that
    neither that code nor a network is needed.

    Raises:
      InputError: there is no such prepared data set, configuration, version, split or feature.
    """
    root = Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    folder = _version_folder(root, name, config.source)
    tfds = import_quietly("tensorflow_datasets")
    builder = tfds.builder_from_directory(str(folder))
    if config.split not in builder.info.splits:
        raise InputError(f"{config.source}: has no split {config.split!r}; set split to one of: {', '.join(builder.info.splits)}")

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
        there = ", ".join(sorted(entry.name for entry in root.iterdir() if entry.is_dir())[:12]) if root.is_dir() else ""
        remedy = f"prepared there: {there or 'nothing'}; set TFDS_DATA_DIR, or prepare it with tfds build or download_and_prepare"
        raise InputError(f"{source}: no folder {folder}; {remedy}")
    versions = [entry for entry in folder.iterdir() if (entry / _INFO).is_file() and _VERSION.match(entry.name)]
    if version:
        versions = [entry for entry in versions if entry.name == version]
    if versions:
        return max(versions, key=lambda entry: [int(number) for number in entry.name.split(".")])
    inside = ", ".join(sorted(entry.name for entry in folder.iterdir() if entry.is_dir())) or "nothing"
    raise InputError(
        f"{source}: no prepared version{' ' + version if version else ''} in {folder}, which holds: {inside}; name one of these"
    )

"""Files named by a path, a pattern or a URL, told apart by the end of their names.

One door to every source of text.
"""

import os
import re

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import COMPRESSED, is_remote, list_files
from diversity_jax.corpus.corpus import RecordCorpus
from diversity_jax.corpus.document import Corpus, CorpusConfig, Records
from diversity_jax.corpus.readers.jsonl import JsonLines
from diversity_jax.corpus.readers.parquet import Parquet
from diversity_jax.corpus.readers.text import TextFile
from diversity_jax.corpus.readers.tfrecord import TFRecord

_KINDS = {
    "jsonl": re.compile(r"\.(jsonl|ndjson|json)$"),
    "text": re.compile(r"\.txt$"),
    "parquet": re.compile(r"\.parquet$"),
    "tfrecord": re.compile(r"\.tfrecords?(-\d+-of-\d+)?$"),
}
_PATTERN = re.compile(r"[*?\[]")
_EXPECTED = ".jsonl, .txt or .tfrecord (each also .gz or .zst), or .parquet"


def open_files(config: CorpusConfig) -> RecordCorpus:
    """Opens all files that `config.source` names, in the order of their names.

    Raises:
      InputError: there are none, they are of an unknown kind or of several kinds, or one cannot be read.
    """
    paths = _find(config.source)
    kinds = {_kind_of(path): path for path in reversed(paths)}
    if len(kinds) > 1:
        found = ", ".join(f"{kind} ({path})" for kind, path in sorted(kinds.items()))
        raise InputError(f"{config.source}: matches files of several kinds, {found}; name one kind")
    kind = next(iter(kinds))
    labels = _labels(paths)
    return RecordCorpus(
        config,
        [_open_one(kind, path, label, config.record_field) for path, label in zip(paths, labels, strict=True)],
        kind,
    )


def _find(source: str) -> list[str]:
    try:
        paths = list_files(source)
    except (
        Exception
    ) as error:  # a store fails with whatever its library raises: not installed, no credentials, no network
        if not is_remote(source):
            raise
        raise InputError(
            f"{source}: cannot be listed ({str(error).partition(chr(10))[0]}); check the URL and your access to it"
        ) from None
    if paths:
        return paths
    if not is_remote(source) and os.path.isdir(source):
        raise InputError(
            f"{source}: is a folder; name a file in it, or a pattern such as {os.path.join(source, '*.jsonl')}"
        )
    if _PATTERN.search(source):
        raise InputError(f"{source}: no file matches this pattern; check it, and quote it in a shell")
    raise InputError(f"{source}: no such file; check the path")


def _kind_of(path: str) -> str:
    name = path
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    for kind, pattern in _KINDS.items():
        if pattern.search(name):
            if kind == "parquet" and name != path:
                raise InputError(
                    f"{path}: a compressed Parquet file cannot be read in parts; decompress it (Parquet compresses "
                    "inside)"
                )
            return kind
    raise InputError(f"{path}: of no known kind; expected a name that ends in {_EXPECTED}")


def _labels(paths: list[str]) -> list[str]:
    """The shortest names by which the files are told apart, however their common folder is called or moved."""
    if len(paths) == 1:
        return [paths[0].replace("\\", "/").rsplit("/", 1)[-1]]
    separated = [path.replace("\\", "/").split("/") for path in paths]
    shared = 0
    while len({tuple(pieces[: shared + 1]) for pieces in separated}) == 1:
        shared += 1
    return ["/".join(pieces[shared:]) for pieces in separated]


def _open_one(kind: str, path: str, label: str, text_field: str) -> Records:
    if kind == "text":
        return TextFile(path, label)
    return {"jsonl": JsonLines, "parquet": Parquet, "tfrecord": TFRecord}[kind](path, label, text_field)


def open_corpus(config: CorpusConfig | str) -> Corpus:
    """Opens a corpus and reads its first document, so that what cannot work says so at once.

    Args:
      config: what to open; a text alone is a source with default settings.

    Raises:
      InputError: there is nothing there, it holds no document, the text field is wrong, or the first record is broken.
    """
    if isinstance(config, str):
        config = CorpusConfig(source=config)
    corpus = _open(config)
    next(iter(corpus))
    return corpus


def _open(config: CorpusConfig) -> Corpus:
    kind, colon, name = config.source.partition(":")
    if not colon or name.startswith("//"):
        return open_files(config)
    if kind == "installed_docs":
        from diversity_jax.corpus.readers.installed_packages import open_installed_docs

        return open_installed_docs(config, name)
    if kind == "seqio":
        from diversity_jax.corpus.readers.tensorflow import open_seqio_task

        return open_seqio_task(config, name)
    if kind == "tfds":
        from diversity_jax.corpus.readers.tensorflow import open_tfds_builder

        return open_tfds_builder(config, name)
    if len(kind) > 1 and kind.isidentifier() and not list_files(config.source):
        known = "a path, a URL, or one of seqio:TASK, tfds:NAME, installed_docs:prose, installed_docs:code"
        raise InputError(f"{config.source}: neither a file nor a known kind of source; expected {known}")
    return open_files(config)

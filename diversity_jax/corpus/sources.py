"""Opening a corpus: the table of all readers, by the ending of a file's name or by the scheme of a source."""

from collections.abc import Callable
import os
import re

from diversity_jax.core.compression import compression
from diversity_jax.core.errors import InputError, without_secrets
from diversity_jax.core.files import is_remote, list_files
from diversity_jax.corpus.corpus import RecordCorpus
from diversity_jax.corpus.document import Corpus, CorpusConfig, FileRecords
from diversity_jax.corpus.readers.installed_packages import open_installed_docs
from diversity_jax.corpus.readers.parquet import Arrow, Parquet
from diversity_jax.corpus.readers.seqio_tasks import open_seqio_task
from diversity_jax.corpus.readers.tensorflow import TFRecord, open_tfds_builder
from diversity_jax.corpus.readers.text import JsonLines, TextFile

FILE_READERS: dict[str, tuple[str, type[FileRecords]]] = {
    "jsonl": (r"\.(jsonl|ndjson|json)$", JsonLines),
    "text": (r"\.txt$", TextFile),
    "parquet": (r"\.parquet$", Parquet),
    "arrow": (r"\.(arrow|feather|ipc)$", Arrow),
    "tfrecord": (r"\.tfrecords?(-\d+-of-\d+)?$", TFRecord),
}
"""Kind of file -> the ending of its name, without `.gz` or `.zst`, and its reader. The kind enters fingerprints."""

SCHEMES: dict[str, Callable[[CorpusConfig, str], RecordCorpus]] = {
    "installed_docs": open_installed_docs,
    "seqio": open_seqio_task,
    "tfds": open_tfds_builder,
}
"""Scheme of a source -> the function that opens it, given the settings and the part after the colon."""

_PATTERN = re.compile(r"[*?\[]")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_EXPECTED = ".jsonl, .txt or .tfrecord (each also .gz, .zst, .bz2 or .xz), .parquet, .arrow or .feather"
_REMEDIES = {
    r"\.(tar|tgz|zip)$": ", an archive: unpack it and name the files in it",
}
"""Ending of a file's name that cannot be read -> what it is and what to do."""


def open_corpus(config: CorpusConfig | str) -> Corpus:
    """Opens a corpus and reads its first document, so that wrong settings fail at once.

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


def _open(config: CorpusConfig) -> RecordCorpus:
    scheme, colon, name = config.source.partition(":")
    for field in ("feature_length", "every_task"):
        if getattr(config, field) and scheme != "seqio":
            raise InputError(f"corpus.{field}={getattr(config, field)}: is for seqio:NAME, not {config.source}")
    if not colon or name.startswith("//"):
        return _open_files(config)
    if scheme in SCHEMES:
        return SCHEMES[scheme](config, name)
    if len(scheme) > 1 and scheme.isidentifier() and not list_files(config.source):
        known = "a path, a URL, or one of seqio:TASK, tfds:NAME, installed_docs:prose, installed_docs:code"
        raise InputError(f"{config.source}: neither a file nor a known kind of source; expected {known}")
    return _open_files(config)


def _open_files(config: CorpusConfig) -> RecordCorpus:
    """All files that `config.source` names, in the order of their names."""
    paths = _find(config.source)
    kinds = {_kind_of(path): path for path in reversed(paths)}
    if len(kinds) > 1:
        described = ", ".join(f"{kind} ({path})" for kind, path in sorted(kinds.items()))
        raise InputError(f"{config.source}: matches files of several kinds, {described}; name one kind")
    kind = next(iter(kinds))
    reader = FILE_READERS[kind][1]
    labelled = zip(paths, _labels(paths), strict=True)
    return RecordCorpus(config, [reader(path, label, config.record_field) for path, label in labelled], kind)


def _braces_expanded(source: str) -> list[str]:
    """A path with `{a,b}` or `{00..12}`, as shells have them, as the paths it stands for."""
    braces = _BRACES.search(source)
    if braces is None or (not is_remote(source) and os.path.lexists(source)):
        return [source]
    if span := _RANGE.fullmatch(braces[1]):
        width, (first, last) = len(span[1]), map(int, span.groups())
        words = [f"{number:0{width}}" for number in range(first, last + 1)]
    else:
        words = braces[1].split(",")
    return [
        path for word in words for path in _braces_expanded(source[: braces.start()] + word + source[braces.end() :])
    ]


def _find(source: str) -> list[str]:
    if (sources := _braces_expanded(source)) != [source]:
        return sorted({path for each in sources for path in _find(each)})
    try:
        paths = list_files(source)
    except Exception as error:  # object stores fail with whatever their library raises: no credentials, no network
        if not is_remote(source):
            raise
        reason = str(error).partition("\n")[0]
        raise InputError(f"{source}: cannot be listed ({reason}); check the URL and your access to it") from None
    if paths:
        return paths
    if not is_remote(source) and os.path.isdir(source):
        raise InputError(f"{source}: is a folder; name a file in it, or a pattern such as *.jsonl")
    if _PATTERN.search(source):
        raise InputError(f"{source}: no file matches this pattern; check it, and quote it in a shell")
    raise InputError(f"{source}: no such file; check the path")


def _kind_of(path: str) -> str:
    name = path[: len(path) - len(compression(path) or "")]
    for kind, (ending, reader) in FILE_READERS.items():
        if re.search(ending, name, re.IGNORECASE):
            if name != path and not reader.may_be_compressed:
                raise InputError(f"{path}: a compressed {kind} file cannot be read in parts; decompress it")
            return kind
    remedy = next((remedy for ending, remedy in _REMEDIES.items() if re.search(ending, name, re.IGNORECASE)), "")
    raise InputError(f"{path}: of no known kind{remedy}; expected a name that ends in {_EXPECTED}")


def _labels(paths: list[str]) -> list[str]:
    """The shortest names that tell the files apart, independent of the name of their common folder."""
    paths = [without_secrets(path) for path in paths]
    if len(paths) == 1:
        return [paths[0].replace("\\", "/").rsplit("/", 1)[-1]]
    separated = [path.replace("\\", "/").split("/") for path in paths]
    shared = 0
    while len({tuple(parts[: shared + 1]) for parts in separated}) == 1:
        shared += 1
    return ["/".join(parts[shared:]) for parts in separated]

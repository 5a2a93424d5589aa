"""Opens a corpus: finds the reader by file ending or scheme, and the files of a folder that are text."""

from collections.abc import Callable, Collection, Sequence
import logging
import os
import re
from typing import Any

from diversity_jax.core.compression import compression
from diversity_jax.core.errors import InputError, without_secrets
from diversity_jax.core.files import content_hash, exists, is_remote, join_path, list_files, read_json
from diversity_jax.core.stores import refuse_as_text, remote, store_errors
from diversity_jax.corpus.corpus import RecordCorpus
from diversity_jax.corpus.document import Corpus, CorpusConfig, FileRecords, check_split
from diversity_jax.corpus.readers.installed_packages import open_installed_docs
from diversity_jax.corpus.readers.parquet import Arrow, Parquet, open_hub_dataset
from diversity_jax.corpus.readers.seqio_tasks import open_seqio_task
from diversity_jax.corpus.readers.tensorflow import TFRecord, open_tfds_builder
from diversity_jax.corpus.readers.text import (
    CommaSeparated,
    JsonLines,
    TabSeparated,
    TextFile,
    TextLines,
    holds_json,
    spooled_input,
)

log = logging.getLogger(__name__)

_SPLIT_WORDS = {
    **{"train": "train", "training": "train", "test": "test", "testing": "test", "eval": "test", "evaluation": "test"},
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
}
"""Word of a file's name -> the split that the datasets library assigns it to."""
ABOUT_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
"""Names of metadata files of the datasets library, in small letters."""
_ABOUT_TEXT = re.compile(r"(readme|licen[cs]e|notice|changelog|citation|contributing|code_of_conduct|security)\b", re.I)


def saved_dataset(folder: str, split: str) -> list[str] | None:
    """The Arrow files of a folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote, in order.

    Args:
      split: of a `DatasetDict`; a single `Dataset` has none.

    Returns:
      None if it is no such folder.

    Raises:
      InputError: there is no such split, or files are missing.
    """
    if exists(splits_file := join_path(folder, "dataset_dict.json")):
        splits = _member(splits_file, "splits")
        check_split(folder, split, splits)
        folder = str(join_path(folder, split))
        if not exists(join_path(folder, "state.json")):
            raise InputError(f"{folder}: has no state.json; save the dataset again")
    if not exists(state := join_path(folder, "state.json")) or not exists(join_path(folder, "dataset_info.json")):
        return None
    if (read_json(state) or {}).get("_indices_data_files"):
        raise InputError(f"{folder}: holds its rows by an index, as datasets before 2.0 saved them; save it again")
    files = _member(state, "_data_files")
    if not files:
        raise InputError(f"{folder}: holds no document, since the saved dataset has no rows; save one that has")
    names = [str(file.get("filename")) for file in files if isinstance(file, dict)]
    if not names or not all(name.endswith(".arrow") and name == os.path.basename(name) for name in names):
        raise InputError(f"{state}: names no files in _data_files; save the dataset again")
    return [str(join_path(folder, name)) for name in names]


def _member(path: Any, name: str) -> list[Any]:
    value = read_json(path)
    if not isinstance(value, dict) or not isinstance(value.get(name), list):
        raise InputError(f"{path}: has no list {name!r}; save the dataset again")
    return value[name]


def is_folder(source: str) -> bool:
    """Whether a path or URL is a folder; a URL with a file ending or a pattern is not looked up."""
    if not is_remote(source):
        return os.path.isdir(source)
    if re.search(r"\.\w+$|[*?\[{]", source):
        return False
    filesystem, inside = remote(source)
    with store_errors(source):
        return bool(filesystem.isdir(inside))


def files_below(folder: str) -> list[str]:
    """Files of a folder, local or remote, and of all folders in it, without hidden ones, sorted."""
    if is_remote(folder):
        filesystem, inside = remote(folder)
        with store_errors(folder):
            return sorted(map(filesystem.unstrip_protocol, filesystem.find(inside)))
    paths = []
    for inside, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths += [os.path.join(inside, name) for name in names if not name.startswith(".")]
    return sorted(paths)


def is_about(path: str) -> bool:
    """Whether a file is about the data, by its name: metadata, a README, a licence."""
    name = path.replace("\\", "/").rsplit("/", 1)[-1]
    return name.lower() in ABOUT_DATA or bool(_ABOUT_TEXT.match(name))


def of_split(folder: str, paths: Sequence[str], split: str) -> list[str]:
    """The files whose names contain a split's name; all files if not every name contains one.

    Raises:
      InputError: all names contain a split's name, but none this one's.
    """
    own = _own_splits(folder)
    split_of = {path: _split_of(path.removeprefix(folder), own) for path in paths}
    if not paths or None in split_of.values():
        return list(paths)
    wanted = split if split in own else _SPLIT_WORDS.get(split.lower(), split)
    check_split(folder, wanted, sorted({str(split_name) for split_name in split_of.values()}))
    return [path for path in paths if split_of[path] == wanted]


def _own_splits(folder: str) -> set[str]:
    """Names of splits in the `dataset_info.json` of a cache folder of the datasets library."""
    if not exists(path := join_path(folder, "dataset_info.json")):
        return set()
    splits = (read_json(path) or {}).get("splits")
    return set(splits) if isinstance(splits, dict) else set()


def _split_of(path: str, own: Collection[str]) -> str | None:
    words = re.split(r"[^a-zA-Z]+", path)
    splits = {word if word in own else _SPLIT_WORDS.get(word.lower()) for word in words} - {None}
    return splits.pop() if len(splits) == 1 else None


FILE_READERS: dict[str, tuple[str, type[FileRecords]]] = {
    "jsonl": (r"\.(jsonl|ndjson|json)$", JsonLines),
    "csv": (r"\.csv$", CommaSeparated),
    "tsv": (r"\.(tsv|tab)$", TabSeparated),
    "text": (r"\.(txt|md|markdown)$", TextFile),
    "parquet": (r"\.parquet$", Parquet),
    "arrow": (r"\.(arrow|feather|ipc)$", Arrow),
    "tfrecord": (r"\.tfrecords?(-\d+-of-\d+)?$", TFRecord),
}
"""Kind of file -> the ending of its name without that of compression, and its class. Kinds are part of fingerprints."""


def _open_hugging_face(config: CorpusConfig, name: str) -> RecordCorpus:
    """A local folder if `name` is one, else a dataset of the hub."""
    if os.path.isdir(name):
        return _open_folder(config, name)
    return open_hub_dataset(config, name)


SCHEMES: dict[str, Callable[[CorpusConfig, str], RecordCorpus]] = {
    "hf": _open_hugging_face,
    "installed_docs": open_installed_docs,
    "seqio": open_seqio_task,
    "tfds": open_tfds_builder,
}
"""Scheme of a source -> the function that opens it, called with the settings and the part after the colon."""

_PATTERN = re.compile(r"[*?\[]")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_EXPECTED = (
    ".jsonl, .csv, .tsv, .txt, .md or .tfrecord (each also .gz, .zst, .bz2 or .xz), .parquet, .arrow or .feather"
)
_LISTED_FILES = 4
_ARCHIVE = re.compile(r"\.(tar|tgz|zip)$", re.IGNORECASE)


def open_corpus(config: CorpusConfig | str) -> Corpus:
    """Opens a corpus and reads its first document, so that wrong settings fail at once.

    Args:
      config: what to open; a string is a source with default settings.

    Raises:
      InputError: there is nothing there, it holds no document, the text field is wrong, or the first record is broken.
    """
    if isinstance(config, str):
        config = CorpusConfig(source=config)
    corpus = _open(config)
    next(iter(corpus))
    return corpus


def open_files(paths: Sequence[str], config: CorpusConfig) -> Corpus:
    """The files at these paths as one corpus, in this order; otherwise as `open_corpus`."""
    corpus = _open_files(config, list(paths))
    next(iter(corpus))
    return corpus


def _open(config: CorpusConfig) -> RecordCorpus:
    scheme, colon, name = config.source.partition(":")
    for field in ("feature_length", "every_task"):
        if getattr(config, field) and scheme != "seqio":
            raise InputError(f"corpus.{field}={getattr(config, field)}: is for seqio:NAME, not {config.source}")
    if scheme == "-":
        return _open_standard_input(config, name)
    if not colon or name.startswith("//"):
        return _open_files(config)
    if scheme in SCHEMES:
        return SCHEMES[scheme](config, name)
    if scheme in ("mixture", "tokens") and not list_files(config.source):
        problem = "is a component of a mixture and no text"
        raise InputError(f"{config.source}: {problem}; build a mixture with it, and name the vocabulary that made it")
    if len(scheme) > 1 and scheme.isidentifier() and not list_files(config.source):
        known = "a path, a URL, or one of hf:NAME, seqio:TASK, tfds:NAME, installed_docs:prose, installed_docs:code"
        raise InputError(f"{config.source}: neither a file nor a known kind of source; expected {known}")
    return _open_files(config)


def _open_files(config: CorpusConfig, paths: list[str] | None = None) -> RecordCorpus:
    """All files that `config.source` names, in the order of their names, or those at `paths`."""
    if paths is None and is_folder(config.source):
        return _open_folder(config, config.source)
    paths = paths or _find(config.source)
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise InputError(f"{config.source}: {twice} is named twice; name every file once")
    kinds = {_kind_of(path): path for path in reversed(paths)}
    if len(kinds) > 1:
        described = ", ".join(f"{kind} ({path})" for kind, path in sorted(kinds.items()))
        raise InputError(f"{config.source}: matches files of several kinds, {described}; name one kind")
    kind = next(iter(kinds))
    reader = FILE_READERS[kind][1]
    return RecordCorpus(config, [reader(path, label, config.record_field) for path, label in _labelled(paths)], kind)


def _open_standard_input(config: CorpusConfig, kind: str) -> RecordCorpus:
    """Standard input: of the kind after `-:`, else JSON Lines if it begins like an object, else a text a line."""
    if kind and kind not in FILE_READERS:
        raise InputError(f"{config.source}: expected one of {', '.join(f'-:{name}' for name in FILE_READERS)}")
    path = spooled_input()
    kind = kind or ("jsonl" if holds_json(path) else "lines")
    reader = FILE_READERS[kind][1] if kind in FILE_READERS else TextLines
    return RecordCorpus(config, [reader(path, "stdin", config.record_field)], kind)


def _open_folder(config: CorpusConfig, folder: str) -> RecordCorpus:
    """Rows that the datasets library saved there; else all files of known kinds in it, or those of the split.

    Files about the data, such as a README, are left out, and a log line lists what is read. The names of the files are
    part of the fingerprint.

    Raises:
      InputError: there is no such file, or a command of this project wrote the folder.
    """
    refuse_as_text(folder)
    if (saved := saved_dataset(folder, config.split)) is not None:
        parts = [Arrow(path, label, config.record_field) for path, label in _labelled(saved)]
        return RecordCorpus(config, parts, "arrow")
    paths = files_below(folder)
    kinds = {path: _kind_of(path) for path in paths if not is_about(path) and _known_kind(path)}
    records = [path for path, kind in kinds.items() if kind != "text"]
    chosen = [path for path in kinds if kinds[path] == "text"] + of_split(folder, records, config.split)
    if not chosen:
        raise InputError(f"{folder}: is a folder without text; expected files in it that end in {_EXPECTED}")
    chosen.sort()
    left_out = sorted(set(paths) - set(chosen))
    log.info("%s: reads %s%s", folder, _listed(chosen), f"; leaves out {_listed(left_out)}" if left_out else "")
    read = [(kinds[path], path, label) for path, label in _labelled(chosen)]
    files = [FILE_READERS[kind][1](path, label, config.record_field) for kind, path, label in read]
    return RecordCorpus(config, files, f"folder:{content_hash([[kind, label] for kind, _, label in read])}")


def _listed(paths: Sequence[str]) -> str:
    names = _labels(list(paths))
    more = f" and {len(names) - _LISTED_FILES:,} more" if len(names) > _LISTED_FILES else ""
    return ", ".join(names[:_LISTED_FILES]) + more


def _labelled(paths: list[str]) -> list[tuple[str, str]]:
    return list(zip(paths, _labels(paths), strict=True))


def _braces_expanded(source: str) -> list[str]:
    """Expands `{a,b}` and `{00..12}` in a path, as shells do."""
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
    except InputError:
        raise
    except Exception as error:  # libraries of object stores raise exceptions of many kinds
        if not is_remote(source):
            raise
        reason = str(error).partition("\n")[0]
        raise InputError(f"{source}: cannot be listed ({reason}); check the URL and your access to it") from None
    if paths:
        return paths
    if _PATTERN.search(source):
        raise InputError(f"{source}: no file matches this pattern; check it, and quote it in a shell")
    access = ", and set HF_TOKEN where it is private or gated" if source.startswith("hf://") else ""
    raise InputError(f"{source}: no such file; check the path{access}")


def _known_kind(path: str) -> str | None:
    """The kind of a file by the ending of its name; None: unknown."""
    name = path[: len(path) - len(compression(path) or "")]
    return next((kind for kind, (end, _) in FILE_READERS.items() if re.search(end, name, re.IGNORECASE)), None)


def _kind_of(path: str) -> str:
    name = path[: len(path) - len(compression(path) or "")]
    if (kind := _known_kind(path)) is not None:
        if name != path and not FILE_READERS[kind][1].may_be_compressed:
            raise InputError(f"{path}: a compressed {kind} file cannot be read in parts; decompress it")
        return kind
    remedy = ", an archive: unpack it and name the files in it" if _ARCHIVE.search(name) else ""
    raise InputError(f"{path}: of no known kind{remedy}; expected a name that ends in {_EXPECTED}")


def _labels(paths: list[str]) -> list[str]:
    """Names of the files relative to their common folder; of a single file its name."""
    paths = [without_secrets(path) for path in paths]
    if len(paths) == 1:
        return [paths[0].replace("\\", "/").rsplit("/", 1)[-1]]
    separated = [path.replace("\\", "/").split("/") for path in paths]
    shared = 0
    while len({tuple(parts[: shared + 1]) for parts in separated}) == 1:
        shared += 1
    return ["/".join(parts[shared:]) for parts in separated]

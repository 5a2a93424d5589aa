"""What a caller gives as data, as a corpus: paths and sources, texts, records, and iterators of these."""

from collections.abc import Iterable, Mapping, Sequence
import os
from typing import Any

from diversity_jax.core.errors import InputError
from diversity_jax.corpus import Corpus, CorpusConfig, open_corpus
from diversity_jax.corpus.readers.memory import open_items
from diversity_jax.corpus.sources import open_files
from diversity_jax.scoring.config import name_of_source

Data = str | os.PathLike | CorpusConfig | Corpus | Iterable[str] | Iterable[os.PathLike] | Iterable[Mapping[str, Any]]
"""A path, pattern, URL or source (`tfds:NAME`, ...), or several paths; or texts, or mappings with a text, in memory."""

_NAMES = "abcdefghijklmnopqrstuvwxyz"


def open_all(data: Sequence[Data], names: Sequence[str] | None, text_field: str) -> dict[str, Corpus]:
    """Corpora by name: the given one, that of the file, or `texts` (of several `a`, `b`, ...).

    Raises:
      InputError: something cannot be read, or names are not one for each.
    """
    if names is not None and (isinstance(names, str) or len(names) != len(data) or len(set(names)) < len(data)):
        raise InputError(f"names={names!r}: give {len(data)} different names, one for each corpus")
    corpora: dict[str, Corpus] = {}
    for number, each in enumerate(data):
        name = names[number] if names else _name(each) or ("texts" if len(data) == 1 else _NAMES[number % 26])
        base, again = name, 2
        while name in corpora:
            name, again = f"{base}_{again}", again + 1
        corpora[name] = open_data(each, name, text_field)
    return corpora


def _name(data: Data) -> str | None:
    """The name of what has a path or source, None of anything else."""
    if isinstance(data, CorpusConfig):
        return name_of_source(data.source)
    if isinstance(data, str | os.PathLike):
        return name_of_source(os.fspath(data))
    paths = _paths(data)
    return name_of_source(paths[0]) if paths else None


def open_data(data: Data, name: str, text_field: str) -> Corpus:
    """One corpus; its first document has been read.

    Raises:
      InputError: it cannot be read, holds no document, or is of another kind.
    """
    if isinstance(data, Corpus):
        return data
    if isinstance(data, CorpusConfig):
        return open_corpus(data)
    if isinstance(data, str | os.PathLike):
        return _open_source(os.fspath(data), text_field)
    config = CorpusConfig(source=name, text_field=text_field)
    if paths := _paths(data):
        return open_files(paths, config)
    if hasattr(data, "columns") and hasattr(data, "__getitem__"):  # a table of pandas or polars
        columns = list(map(str, data.columns))
        if text_field not in columns:
            raise InputError(f"{name}: has no column {text_field!r}; set text_field to one of {', '.join(columns)}")
        data = data[text_field]
    if isinstance(data, Mapping | bytes) or not isinstance(data, Iterable):
        kind = type(data).__name__
        raise InputError(f"{name}: is of type {kind}; give a path, or a list of texts or of mappings with a text")
    return open_items(data, config)


def _open_source(source: str, text_field: str) -> Corpus:
    """A path or source; of what can only be a text, the error says how texts are given."""
    try:
        return open_corpus(CorpusConfig(source=source, text_field=text_field))
    except InputError as error:
        if "\n" in source or len(source.split()) > 3:
            raise InputError(f"{error}; texts are given as a list, such as [text]") from None
        raise


def _paths(data: Any) -> list[str]:
    """The items of a list or tuple, where all of them are paths, or strings that name files; else none."""
    if not isinstance(data, list | tuple) or not data:
        return []
    is_path = all(isinstance(item, os.PathLike) or (isinstance(item, str) and os.path.isfile(item)) for item in data)
    return [os.fspath(item) for item in data] if is_path else []

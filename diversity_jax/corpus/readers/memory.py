"""Texts that the caller holds: strings, or records with a text in one of their fields."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from diversity_jax.corpus.corpus import RecordCorpus
from diversity_jax.corpus.document import CorpusConfig, Document, Records, Rejected, is_encodable, take_text

_BATCH = 1000


class RecordsInMemory(Records):
    """Records of one Python sequence, numbered from 0.

    Args:
      items: texts, or mappings with a text; an iterator is read to its end.
      name: names the sequence in errors, `name[17]`, and in the ids of its documents.
      text_field: the key that holds the text; empty: records stay whole.
    """

    def __init__(self, items: Iterable[Any], name: str, text_field: str):
        self._items: Sequence[Any] = items if isinstance(items, list | tuple) else list(items)
        self._name, self._field = name, text_field

    def batches(self) -> Iterator[Sequence[Any]]:
        return (self._items[start : start + _BATCH] for start in range(0, len(self._items), _BATCH))

    def decode(self, raw: Any, position: int) -> Document:
        where = f"{self._name}[{position}]"
        if isinstance(raw, str):
            text, meta = raw, dict[str, Any]()
        elif isinstance(raw, Mapping):
            meta = dict(raw)
            text = take_text(meta, self._field, where)
        else:
            kind = type(raw).__name__
            message = f"{where}: is of type {kind}; expected a text, or a mapping with the field {self._field!r}"
            raise Rejected("not a text", message)
        if not is_encodable(text):
            raise Rejected(
                "lone surrogate", f"{where}: holds a lone surrogate (\\ud800 to \\udfff), which UTF-8 cannot"
            )
        return Document(id=f"{self._name}:{position + 1}", text=text, meta=meta)

    def count(self) -> int:
        return len(self._items)

    def fetch(self, positions: np.ndarray) -> Iterator[Any]:
        return (self._items[position] for position in positions.tolist())


def open_items(items: Iterable[Any], config: CorpusConfig) -> RecordCorpus:
    """Items as a corpus, whose first document has been read; `config.source` is its name.

    Raises:
      InputError: there is no document, or the first item is none.
    """
    corpus = RecordCorpus(config, [RecordsInMemory(items, config.source, config.record_field)], "memory")
    next(iter(corpus))
    return corpus

"""Real text on every machine: English prose and Python code out of the packages installed here."""

from collections.abc import Callable, Iterator
import functools
import hashlib
import re
import threading
from typing import Any

import numpy as np

from diversity_jax.corpus.document import CorpusConfig, Document
from diversity_jax.corpus.installed_files import InstalledFile, descriptions, installed_files
from diversity_jax.corpus.prose import docstrings, pieces, prose
from diversity_jax.corpus.python_code import functions
from diversity_jax.corpus.record_corpus import RecordCorpus
from diversity_jax.errors import InputError

_BATCH_DOCUMENTS = 64
_FIRST_OF_A_FILE = 8  # documents of one file before all other files had their turn: a few files hold thousands
_NOT_DOCUMENTATION = re.compile(
    r"licen[sc]e|copying|notice|authors|thirdparty|third_party|vendor\.txt|cmakelists|top_level|requirements", re.I
)
_GENERATED = re.compile(r"_pb2(_grpc)?\.py$")


def open_installed_docs(config: CorpusConfig, name: str) -> RecordCorpus:
    """Opens `installed_docs:prose` or `installed_docs:code`.

    Prose is the English paragraphs of docstrings, READMEs and other documentation files; code is functions, classes and methods.
    Both leave out this project itself, and what is equal to an earlier text but for case, spaces and punctuation. The documents
    and their order depend only on the installed packages and their versions; the first ones are spread evenly over packages,
    so that `max_documents` takes a fair part in seconds.

    Raises:
      InputError: another name than these two.
    """
    if name not in _KINDS:
        raise InputError(f"{config.source}: unknown; expected installed_docs:prose or installed_docs:code")
    return RecordCorpus(config, [_InstalledDocs(name)], f"installed_docs:{name}")


class _InstalledDocs:
    """Documents are extracted as far as they are asked for, once in a process, and kept."""

    def __init__(self, name: str):
        self._documents = _extracted(name)

    def batches(self) -> Iterator[list[Document]]:
        first = 0
        while batch := self._documents.slice(first, first + _BATCH_DOCUMENTS):
            yield batch
            first += len(batch)

    def decode(self, raw: Document, position: int) -> Document:
        return raw

    def count(self) -> None:
        return None

    def fetch(self, positions: np.ndarray) -> Iterator[Any]:
        raise NotImplementedError("documents without a count are streamed")

    def expected_bytes(self) -> None:
        return None

    def content_hash(self) -> None:
        return None


class _GrowingList:
    """A list filled from an iterator as far as it is read, by any thread."""

    def __init__(self, source: Iterator[Document]):
        self._source = source
        self._items: list[Document] = []
        self._lock = threading.Lock()

    def slice(self, first: int, last: int) -> list[Document]:
        with self._lock:
            while len(self._items) < last:
                item = next(self._source, None)
                if item is None:
                    break
                self._items.append(item)
            return self._items[first:last]


@functools.cache
def _extracted(name: str) -> _GrowingList:
    return _GrowingList(_KINDS[name]())


def _prose() -> Iterator[Document]:
    seen: set[bytes] = set()
    sources = ((file, [(1, text)]) for file, text in descriptions())
    yield from _in_turns(sources, lambda text: pieces([part for part in prose(text) if _is_new(part, seen)]))
    files = [file for file in installed_files((".py", ".md", ".rst", ".txt")) if not _NOT_DOCUMENTATION.search(file.name)]
    texts = ((file, docstrings(text) if file.name.endswith(".py") else [(1, text)]) for file, text in _read(files))
    yield from _in_turns(texts, lambda text: pieces([part for part in prose(text) if _is_new(part, seen)]))


def _code() -> Iterator[Document]:
    seen: set[bytes] = set()
    files = [file for file in installed_files((".py",)) if not _GENERATED.search(file.name)]
    texts = ((file, functions(text)) for file, text in _read(files))
    yield from _in_turns(texts, lambda code: [code] if _is_new(code, seen) else [])


_KINDS: dict[str, Callable[[], Iterator[Document]]] = {"prose": _prose, "code": _code}


def _read(files: list[InstalledFile]) -> Iterator[tuple[InstalledFile, str]]:
    """Text of every file that is there and is UTF-8: a package may list files that were removed after it was installed."""
    for file in files:
        try:
            with open(file.path, encoding="utf-8") as opened:
                yield file, opened.read()
        except (OSError, UnicodeDecodeError):
            continue


def _in_turns(sources: Any, split: Callable[[str], Any]) -> Iterator[Document]:
    """Documents of all files: at first a few of each, then what is left over.

    Args:
      sources: of every file, (line number, text) pairs.
      split: makes documents' texts out of one such text.
    """
    left_over: list[Document] = []
    for file, texts in sources:
        count = 0
        for line, text in texts:
            for number, piece in enumerate(split(text), start=1):
                name = f"{file.name}:{line}" if number == 1 else f"{file.name}:{line}#{number}"
                meta = {"package": file.package, "version": file.version, "file": file.name, "line": line}
                document = Document(id=name, text=piece, meta=meta)
                count += 1
                if count <= _FIRST_OF_A_FILE:
                    yield document
                else:
                    left_over.append(document)
    yield from left_over


def _is_new(text: str, seen: set[bytes]) -> bool:
    """Whether no earlier text has the same letters and digits in the same order; remembers it."""
    key = hashlib.sha256("".join(filter(str.isalnum, text.lower())).encode()).digest()[:16]
    if key in seen:
        return False
    seen.add(key)
    return True

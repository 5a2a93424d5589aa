"""Documents, the settings of a corpus, and the base classes and functions of readers."""

import abc
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from diversity_jax.core.compression import expected_bytes
from diversity_jax.core.config import ADDED, check_kinds
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import file_hash

CONVERSATION_FORMS = ("auto", "messages", "alpaca", "pairs")


@dataclass(frozen=True, kw_only=True)
class Document:
    """One text.

    Attributes:
      id: where it comes from, stable and unique inside its corpus: `file.jsonl:17` (line 17), `shard.parquet:17` (row
        17, counted from 1), `notes.txt`, `task:3`.
      text: valid Unicode without lone surrogates, so that it can always be written as UTF-8.
      meta: metadata: the other fields of a record, the package of a docstring.
    """

    id: str
    text: str
    meta: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """Where text comes from and which part of it to take.

    Attributes:
      source: a path, a glob pattern or a URL that fsspec reads (`gs://`, `hf://datasets/NAME/FILE`), of `.jsonl` (also
        `.json` and `.ndjson` with one object a line), `.csv`, `.tsv`, `.txt` and `.md` (one document a file) or
        `.tfrecord`, each also with `.gz`, `.zst`, `.bz2` or `.xz`, or `.parquet`, `.arrow`, `.feather`; a folder, which
        stands for all such files in it, or that `Dataset.save_to_disk` wrote; `-` for standard input (`-:csv` names its
        format); `hf:NAME[@REVISION][:CONFIG][:SPLIT]`, streamed from the Hugging Face hub; or `seqio:NAME`,
        `seqio:NAME@MODULE` (a task or mixture; MODULE is imported first and registers it),
        `tfds:NAME[/CONFIG][:VERSION]`, `installed_docs:prose`, `installed_docs:code`.
      text_field: the key, column or feature of the text; dots name fields of nested records (`message.body`), and a
        number is a column of a table whose first row does not name them. Of a SeqIO task `text` is its `inputs` and
        `targets` joined; `question+context+answer` joins others.
      conversations: read each record as instruction data and not as one text: `messages`, `alpaca`, `pairs` or `auto`
        (see `conversations.read_messages`); `text_field` is then not used.
      split: of a hub's dataset, SeqIO task or TFDS builder, or of a folder whose files' names contain split names.
      max_documents: read only so many documents, the first in the corpus's own order; None: all.
      max_broken_share: share of records, from 0 up to but not 1, that may be broken (not JSON, not UTF-8, without the
        text field, ...) before reading stops with an error. Broken records are left out and counted by reason.
      min_characters: shorter texts, not counting white space around them, are left out and counted.
      feature_length: tokens that the preprocessors of a SeqIO task get as `sequence_length` of every feature; None:
        they get none. What they return is not cut.
      every_task: read every task of a SeqIO mixture once, instead of sampling examples at the mixture's rates until the
        first task ends.
    """

    source: str
    text_field: str = "text"
    conversations: str | None = None
    split: str = "train"
    max_documents: int | None = None
    max_broken_share: float = 0.0
    min_characters: int = 1
    feature_length: int | None = field(default=None, metadata=ADDED)
    every_task: bool = field(default=False, metadata=ADDED)

    def __post_init__(self) -> None:
        check_kinds(self, "corpus.")
        for name in ("source", "text_field", "split"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip():
                raise InputError(f"corpus.{name}={value!r}: expected a text that is not empty")
        if self.conversations is not None and self.conversations not in CONVERSATION_FORMS:
            forms = ", ".join(CONVERSATION_FORMS)
            raise InputError(f"corpus.conversations={self.conversations!r}: choose one of {forms}, or None")
        if self.max_documents is not None and self.max_documents < 1:
            raise InputError(f"corpus.max_documents={self.max_documents}: expected at least 1, or None for all")
        if not 0 <= self.max_broken_share < 1:
            raise InputError(f"corpus.max_broken_share={self.max_broken_share}: expected a share from 0 up to 1")
        if self.min_characters < 1:
            raise InputError(f"corpus.min_characters={self.min_characters}: expected at least 1")
        if self.feature_length is not None and self.feature_length < 1:
            raise InputError(f"corpus.feature_length={self.feature_length}: expected tokens, at least 1, or None")

    @property
    def record_field(self) -> str:
        """The field that readers take out of a record as its text; empty: records keep all fields."""
        return "" if self.conversations else self.text_field


@runtime_checkable
class Corpus(Protocol):
    """A source of documents that can be read through, sampled and identified."""

    @property
    def name(self) -> str:
        """The source as it was configured."""

    @property
    def rejected(self) -> Counter[str]:
        """How many records the latest reading or sampling left out, by reason."""

    def __iter__(self) -> Iterator[Document]:
        """All documents in an order that depends on the content alone."""

    def sample(self, size: int, *, seed: int) -> list[Document]:
        """Draws documents uniformly without replacement, the same ones for the same (content, size, seed)."""

    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of content and reading settings."""


class Rejected(InputError):
    """A record that cannot become a document: an error if broken records are not tolerated, otherwise counted.

    Attributes:
      reason: by which the record is counted, a few words.
    """

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


class Records(abc.ABC):
    """The records of one file, task or builder, numbered from 0 in a fixed order.

    By default they can only be streamed, and have no file that identifies them.
    """

    @abc.abstractmethod
    def batches(self) -> Iterator[Sequence[Any]]:
        """All raw records in order, some at a time."""

    @abc.abstractmethod
    def decode(self, raw: Any, position: int) -> Document | None:
        """The document of a raw record, or None if there is nothing (a blank line).

        Raises:
          Rejected: the record is broken.
        """

    def count(self) -> int | None:
        """The number of records, if it can be computed without decoding them; else None."""
        return None

    def fetch(self, positions: np.ndarray) -> Iterator[Any]:
        """Raw records at these ascending positions; only for readers with a `count`."""
        raise NotImplementedError("records without a count are streamed")

    def left_out(self, *, is_complete: bool) -> Counter[str]:
        """Counts, by kind, of what the latest reading did not put into any text.

        Args:
          is_complete: whether all records were read.
        """
        return Counter()

    def expected_bytes(self) -> int | None:
        """Size of the text, estimated from the size of the file; None: there is no file."""
        return None

    def content_hash(self) -> str | None:
        """Hash of the bytes that the records come from; None: only the documents themselves can be hashed."""
        return None


class FileRecords(Records):
    """The records of one file.

    Attributes:
      may_be_compressed: whether compressed files, such as `.gz`, of the format are read, too.

    Args:
      path: path or URL.
      label: names the file in the ids of its documents.
      text_field: the field of the text; empty: records keep all fields.
    """

    may_be_compressed = True

    def __init__(self, path: str, label: str, text_field: str):
        self._path, self._label, self._field = path, label, text_field

    def _where(self, position: int) -> str:
        return f"{self._path}:{position + 1}"

    def _id(self, position: int) -> str:
        return f"{self._label}:{position + 1}"

    def expected_bytes(self) -> int:
        return expected_bytes(self._path)

    def content_hash(self) -> str:
        return file_hash(self._path)


def take_text(record: dict[str, Any], field: str, where: str) -> str:
    """Removes the text from a record and returns it; the rest is the document's metadata.

    Args:
      record: fields by name; changed.
      field: a key, or a path of keys with dots between them; empty: nothing is taken.
      where: names the record in an error, such as `file.jsonl:17`.

    Raises:
      Rejected: there is no such field, or its value is not text; null, also instead of a parent, is an empty text.
    """
    if not field:
        return ""
    *parents, last = [field] if field in record else field.split(".")
    owner: Any = record
    for parent in parents:
        inner = owner.get(parent) if isinstance(owner, dict) else None
        if isinstance(inner, dict):
            owner[parent] = inner = dict(inner)  # the text is taken out of `record`, not out of what its maker keeps
        elif inner is None and isinstance(owner, dict) and parent in owner:
            return ""
        owner = inner
    if not isinstance(owner, dict) or last not in owner:
        message = f"{where}: has no field {field!r}; set text_field to one of: {list_fields(record)}"
        raise Rejected("no text field", message)
    value = owner.pop(last)
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    kinds = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
    kind = "bytes" if isinstance(value, bytes) else kinds.get(type(value), f"a {type(value).__name__}")
    message = f"{where}: field {field!r} holds {kind}, not text; set text_field to one that does"
    raise Rejected("text field is not text", message)


def check_split(source: str, split: str, splits: Iterable[str]) -> None:
    """Raises InputError if the requested split is none of these."""
    if split not in splits:
        raise InputError(f"{source}: has no split {split!r}; set split to one of: {', '.join(splits)}")


_LISTED_FIELDS = 12


def list_fields(record: Mapping[str, Any]) -> str:
    """Field names for an error message, nested ones with dots."""
    names = []
    for name, value in record.items():
        names += [f"{name}.{inner}" for inner in value] if isinstance(value, dict) and value else [name]
    return ", ".join(names[:_LISTED_FIELDS]) + (", ..." if len(names) > _LISTED_FIELDS else "") if names else "(none)"


_FIRST_BYTES = {
    b"\x1f\x8b": "gzip (decompress it, or name it .gz)",
    b"\x28\xb5": "Zstandard (decompress it, or name it .zst)",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


def decode_utf8(data: bytes, where: str) -> str:
    """UTF-8 bytes as text.

    Raises:
      Rejected: they are not UTF-8; the message says at which byte, and guesses their format.
    """
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        guess = f"; it looks like {_FIRST_BYTES[data[:2]]}" if data[:2] in _FIRST_BYTES else ""
        message = f"{where}: is not UTF-8 at byte {error.start}{guess}; convert it, or set max_broken_share"
        raise Rejected("not UTF-8", message) from None


def is_encodable(text: str) -> bool:
    """Whether a text can be written as UTF-8; one with a lone surrogate, which JSON can express, cannot."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def refuse_lone_surrogate(text: str, where: str) -> None:
    """Raises Rejected if a text cannot be written as UTF-8."""
    if not is_encodable(text):
        message = f"{where}: holds a lone surrogate (\\ud800 to \\udfff), which UTF-8 cannot encode; write it again"
        raise Rejected("lone surrogate", message)

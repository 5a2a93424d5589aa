"""What a corpus hands on, how one is asked for, and what every corpus can do."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from diversity_jax.errors import InputError

CONVERSATION_FORMS = ("auto", "messages", "alpaca", "pairs")


@dataclass(frozen=True, kw_only=True)
class Document:
    """One text.

    Attributes:
      id: where it comes from, stable and unique inside its corpus: `file.jsonl:17` (line 17), `shard.parquet:17` (row 17,
        counted from 1), `notes.txt`, `task:3`.
      text: the text itself, valid Unicode without lone surrogates, so that it can always be written as UTF-8.
      meta: whatever else the source says about it: the other fields of a record, the package of a docstring.
    """

    id: str
    text: str
    meta: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """Where text comes from and which part of it to take.

    Attributes:
      source: a path, a glob pattern or a URL that fsspec reads, of `.jsonl` (also `.json` and `.ndjson` with one object a
        line), `.txt` (one document a file) or `.tfrecord`, each also with `.gz` or `.zst`, or `.parquet`; or
        `seqio:NAME`, `seqio:NAME@MODULE` (a task or mixture; MODULE is imported first and registers it), `tfds:NAME[/CONFIG][:VERSION]`,
        `installed_docs:prose`, `installed_docs:code`.
      text_field: the key, column or feature that holds the text; dots reach into nested records (`message.body`).
      conversations: read each record as instruction data and not as one text: `messages`, `alpaca`, `pairs` or `auto` (see
        `conversations.read_messages`); `text_field` then means nothing.
      split: which split of a SeqIO task or TFDS builder; files have none.
      max_documents: take only the first so many documents, in the corpus's own order; None takes all.
      max_broken_share: share of records, from 0 up to but not 1, that may be broken (not JSON, not UTF-8, without the text
        field, ...) before reading stops with an error. Broken records are left out and counted by reason.
      min_characters: shorter texts, not counting white space around them, are left out and counted.
    """

    source: str
    text_field: str = "text"
    conversations: str | None = None
    split: str = "train"
    max_documents: int | None = None
    max_broken_share: float = 0.0
    min_characters: int = 1

    def __post_init__(self) -> None:
        for name in ("source", "text_field", "split"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip():
                raise InputError(f"corpus.{name}={value!r}: expected a text that is not empty")
        if self.conversations is not None and self.conversations not in CONVERSATION_FORMS:
            raise InputError(f"corpus.conversations={self.conversations!r}: choose one of {', '.join(CONVERSATION_FORMS)}, or None")
        if self.max_documents is not None and self.max_documents < 1:
            raise InputError(f"corpus.max_documents={self.max_documents}: expected at least 1, or None for all documents")
        if not 0 <= self.max_broken_share < 1:
            raise InputError(f"corpus.max_broken_share={self.max_broken_share}: expected a share from 0 up to, not including, 1")
        if self.min_characters < 1:
            raise InputError(f"corpus.min_characters={self.min_characters}: expected at least 1")

    @property
    def record_field(self) -> str:
        """The field that readers take out of a record as its text; empty: none, the record stays whole."""
        return "" if self.conversations else self.text_field


@runtime_checkable
class Corpus(Protocol):
    """A source of documents that can be read through, sampled and identified.

    Attributes:
      name: the source as it was asked for.
      rejected: how many records the latest reading or sampling left out, by reason.
    """

    name: str
    rejected: Counter[str]

    def __iter__(self) -> Iterator[Document]:
        """All documents in an order that depends on the content alone."""
        ...

    def sample(self, size: int, *, seed: int) -> list[Document]:
        """Draws documents uniformly without replacement, the same ones for the same (content, size, seed)."""
        ...

    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of content and reading settings."""
        ...


class Rejected(InputError):
    """One record that cannot become a document; an error where broken records are not tolerated, else a count.

    Attributes:
      reason: a few words under which the record is counted.
    """

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason

"""What the formats share: a part of a corpus as numbered records, and finding the text inside a record."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from diversity_jax.corpus.document import Document, Rejected

_LISTED_FIELDS = 12


class Records(Protocol):
    """One file (or task, or builder): records numbered from 0 in a fixed order, cheap to pass over and decoded one by one."""

    def batches(self) -> Iterator[Sequence[Any]]:
        """All raw records in order, some at a time."""
        ...

    def decode(self, raw: Any, position: int) -> Document | None:
        """The document of a raw record, or None where there is nothing (a blank line).

        Raises:
          Rejected: the record is broken.
        """
        ...

    def count(self) -> int | None:
        """How many records there are, if that can be known without decoding them, else None."""
        ...

    def fetch(self, positions: np.ndarray) -> Iterator[Any]:
        """Raw records at these ascending positions; called only where `count` knows."""
        ...

    def expected_bytes(self) -> int | None:
        """About how much text there is, from the size of the file, or None where there is no such file."""
        ...

    def content_hash(self) -> str | None:
        """Hash of the bytes the records come from, or None where only the documents themselves can be hashed."""
        ...


def take_text(record: dict[str, Any], field: str, where: str) -> str:
    """Removes the text from a record and returns it; the rest is the document's metadata.

    Args:
      record: fields by name; changed.
      field: a key, or a path of keys with dots between them; empty: nothing is taken.
      where: names the record in an error, such as `file.jsonl:17`.

    Raises:
      Rejected: there is no such field, or it holds no text; null counts as an empty text.
    """
    if not field:
        return ""
    value = record.pop(field, record)
    if value is record:
        value = _take_nested(record, field, where)
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    raise Rejected("text field is not text", f"{where}: field {field!r} holds {_kind(value)}, not text; set text_field to one that does")


def _take_nested(record: dict[str, Any], field: str, where: str) -> Any:
    *parents, last = field.split(".")
    owner: Any = record
    for parent in parents:
        owner = owner.get(parent) if isinstance(owner, dict) else None
    if isinstance(owner, dict) and last in owner:
        return owner.pop(last)
    raise Rejected("no text field", f"{where}: has no field {field!r}; set text_field to one of: {list_fields(record)}")


def list_fields(record: Mapping[str, Any]) -> str:
    """Field names for an error line, nested ones with dots."""
    names = []
    for name, value in record.items():
        names += [f"{name}.{inner}" for inner in value] if isinstance(value, dict) and value else [name]
    return ", ".join(names[:_LISTED_FIELDS]) + (", ..." if len(names) > _LISTED_FIELDS else "") if names else "(none)"


def _kind(value: Any) -> str:
    kinds = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object", bytes: "bytes"}
    return kinds.get(type(value), f"a {type(value).__name__}")


def decode_utf8(data: bytes, where: str) -> str:
    """UTF-8 bytes as text.

    Raises:
      Rejected: they are not UTF-8; the message says at which byte and guesses what they are.
    """
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        known = {b"\x1f\x8b": "gzip (name it .gz)", b"\x28\xb5": "Zstandard (name it .zst)", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
        guess = f"; it looks like {known[data[:2]]}" if data[:2] in known else ""
        message = f"{where}: is not UTF-8 at byte {error.start}{guess}; convert it, or tolerate it with max_broken_share"
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

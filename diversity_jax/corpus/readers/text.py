"""Readers of JSON Lines, CSV and plain text, by file or line, from files, standard input, or a sequence in memory."""

import atexit
from collections.abc import Iterable, Iterator, Mapping, Sequence
import csv
import functools
import itertools
import json
import math
import os
import re
import shutil
import sys
import tempfile
from typing import Any

import msgspec
import numpy as np

from diversity_jax.core.buckets import set_public_name
from diversity_jax.core.compression import MOST_DOCUMENT_BYTES, compression, read_blocks, read_document, read_lines
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import disk_errors_named, is_remote, open_file
from diversity_jax.corpus.corpus import RecordCorpus
from diversity_jax.corpus.document import (
    CorpusConfig,
    Document,
    FileRecords,
    Records,
    Rejected,
    decode_utf8,
    is_encodable,
    list_fields,
    refuse_lone_surrogate,
    take_text,
)

# Gives the same values as `json`, in a third of the time. It refuses more (NaN, lone surrogates, other white space
# around a line), and its errors are less precise; `_decode_carefully` reads such lines again.
_decode = msgspec.json.Decoder().decode
# json.loads would search for white space at both ends of every line again.
_scan = json.JSONDecoder().raw_decode
_ORDER_MARK = "\ufeff"
_ARRAY_HINT = ", as jq -c '.[]' does"


class JsonLines(FileRecords):
    """Lines of one file. A plain local file gets an index of its lines, 8 bytes each, by one search for newlines."""

    _bounds: np.ndarray | None = None

    def batches(self) -> Iterator[list[bytes]]:
        return read_lines(self._path)

    def decode(self, raw: bytes, position: int) -> Document | None:
        try:
            record = _decode(raw)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return self._decode_carefully(raw, position)
        text = (record.pop(self._field, None) if self._field else "") if type(record) is dict else None
        if type(text) is not str:
            return self._decode_carefully(raw, position)
        return Document(id=self._id(position), text=text, meta=record)

    def _decode_carefully(self, raw: bytes, position: int) -> Document | None:
        try:
            line = raw.decode().strip()
        except UnicodeDecodeError:
            line = decode_utf8(raw, self._where(position))
        if position == 0:
            line = line.removeprefix(_ORDER_MARK)
        if not line:
            return None
        try:
            record, end = _scan(line)
        except (ValueError, RecursionError) as error:
            raise self._not_json(line, position, error) from None
        if end != len(line):
            message = f"{self._where(position)}: has more after the JSON value, at column {end + 1}"
            raise Rejected("not JSON", f"{message}; write one object a line")
        if type(record) is not dict:
            message = f"{self._where(position)}: is JSON but not an object with fields such as {self._field!r}"
            hint = _ARRAY_HINT if isinstance(record, list) else ""
            raise Rejected("not an object", f"{message}; write one object a line{hint}")
        text = record.get(self._field)
        if type(text) is str:
            del record[self._field]
        else:
            text = take_text(record, self._field, self._where(position))
        refuse_lone_surrogate(text, self._where(position))
        return Document(id=self._id(position), text=text, meta=record)

    def count(self) -> int | None:
        if is_remote(self._path) or compression(self._path):
            return None
        if self._bounds is None:
            self._bounds = _line_bounds(self._path)
        return len(self._bounds) - 1

    def fetch(self, positions: np.ndarray) -> Iterator[bytes]:
        assert self._bounds is not None  # count() has made the index
        with open_file(self._path) as file:
            starts, ends = self._bounds[positions].tolist(), self._bounds[positions + 1].tolist()
            for start, end in zip(starts, ends, strict=True):
                file.seek(start)
                yield file.read(end - start).removesuffix(b"\n")

    def _not_json(self, line: str, position: int, error: Exception) -> Rejected:
        if isinstance(error, json.JSONDecodeError):
            reason = f"{error.msg} at column {error.pos + 1}"
        else:
            reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        problem = f"{self._where(position)}: is not valid JSON ({reason})"
        if line in "[{":
            problem += f"; a JSON array over several lines must be written as one object a line{_ARRAY_HINT}"
        return Rejected("not JSON", problem)


class TextLines(JsonLines):
    """Lines of one file, each a document."""

    def decode(self, raw: bytes, position: int) -> Document | None:
        text = decode_utf8(raw, self._where(position)).removesuffix("\r")
        if position == 0:
            text = text.removeprefix(_ORDER_MARK)
        return Document(id=self._id(position), text=text) if text.strip() else None


def holds_json(path: str) -> bool:
    """Whether the first line of a file that is not blank begins like a JSON object, or like an array of such."""
    lines = (line.strip() for block in read_lines(path) for line in block)
    first = next(filter(None, lines), b"").removeprefix(_ORDER_MARK.encode())
    return first == b"[" or first.replace(b" ", b"").startswith((b"{", b"[{"))


def _line_bounds(path: str) -> np.ndarray:
    """Byte offset of the start of every line, and of the end of the last one: int64[lines + 1]."""
    starts, offset = [np.zeros(1, np.int64)], 0
    for block in read_blocks(path):
        starts.append(np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + (offset + 1))
        offset += len(block)
    bounds = np.concatenate(starts)
    return bounds if bounds[-1] == offset else np.append(bounds, np.int64(offset))


class TextFile(FileRecords):
    """One document. Line ends become `\\n`, and a byte order mark is dropped."""

    def batches(self) -> Iterator[list[bytes]]:
        yield [self._read()]

    def decode(self, raw: bytes, position: int) -> Document:
        text = decode_utf8(raw, self._path).removeprefix(_ORDER_MARK)
        return Document(id=self._label, text=text.replace("\r\n", "\n").replace("\r", "\n"))

    def count(self) -> int:
        return 1

    def fetch(self, positions: np.ndarray) -> Iterator[bytes]:
        return (self._read() for _ in positions)

    def _read(self) -> bytes:
        return read_document(self._path)


_BATCH = 1000


class RecordsInMemory(Records):
    """Records of one Python sequence, numbered from 0.

    Args:
      items: texts, or mappings with a text; an iterator is read to its end. Missing ones (None, NaN) are empty texts.
      name: of the sequence in errors, `name[17]`, and in the ids of its documents.
      text_field: the key of the text; empty: records keep all fields.
    """

    def __init__(self, items: Iterable[Any], name: str, text_field: str):
        self._items: Sequence[Any] = items if isinstance(items, list | tuple) else list(items)
        self._name, self._field = name, text_field

    def batches(self) -> Iterator[Sequence[Any]]:
        return (self._items[start : start + _BATCH] for start in range(0, len(self._items), _BATCH))

    def decode(self, raw: Any, position: int) -> Document:
        where = f"{self._name}[{position}]"
        if isinstance(raw, str):
            text, meta = str(raw), dict[str, Any]()
        elif raw is None or type(raw).__name__ == "NAType" or (isinstance(raw, float) and math.isnan(raw)):
            text, meta = "", {}
        elif isinstance(raw, Mapping):
            meta = dict(raw)
            text = take_text(meta, self._field, where)
        else:
            kind = type(raw).__name__
            message = f"{where}: is of type {kind}; expected a text, or a mapping with the field {self._field!r}"
            raise Rejected("not a text", message)
        refuse_lone_surrogate(text, where)
        return Document(id=f"{self._name}:{position + 1}", text=text, meta=meta)

    def count(self) -> int:
        return len(self._items)

    def fetch(self, positions: np.ndarray) -> Iterator[Any]:
        return (self._items[position] for position in positions.tolist())


def open_items(items: Iterable[Any], config: CorpusConfig) -> RecordCorpus:
    """Items as a corpus named `config.source`; its first document is read, to check the settings.

    Raises:
      InputError: there is no document, or the first item is none.
    """
    corpus = RecordCorpus(config, [RecordsInMemory(items, config.source, config.record_field)], "memory")
    next(iter(corpus))
    return corpus


@functools.cache
def spooled_input() -> str:
    """Path of a temporary file with the content of standard input, removed when the process ends.

    Raises:
      InputError: standard input is a terminal, or there is none.
    """
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        raise InputError("-: stands for text from standard input; pipe some in, such as: cat texts.jsonl | ...")
    descriptor, path = tempfile.mkstemp(prefix="standard-input-")
    atexit.register(_remove, path, os.getpid())
    set_public_name(path, "standard input")
    with open(descriptor, "wb") as file, disk_errors_named(path):
        shutil.copyfileobj(sys.stdin.buffer, file)
    return path


def _remove(path: str, process: int) -> None:
    if os.getpid() == process and os.path.exists(path):  # a forked child leaves it to its parent
        os.remove(path)


csv.field_size_limit(MOST_DOCUMENT_BYTES)  # Python's default, 128 kB a field, is less than many documents have
_BATCH_ROWS = 256
_QUOTED = re.compile(r'"[^"]*"?')

Row = tuple[int, list[str] | str]
"""The line at which a row begins, counted from 1, and its fields, or why it cannot be read."""


class CommaSeparated(FileRecords):
    """Rows of one file whose first row names the columns.

    Fields may be in double quotes, and then contain separators, line ends and doubled quotes (RFC 4180). A file whose
    first line has no comma may be separated by semicolons, tabs or bars, as spreadsheets write it in many countries.
    A `text_field` that is a number and no column's name is the number of a column, from 1, of a file without names;
    numbers are names only in a row of numbers, since they may be values of the first row.
    """

    _separators = ",;\t|"

    def __init__(self, path: str, label: str, text_field: str):
        super().__init__(path, label, text_field)
        self._columns: list[str] = []  # of an empty file
        first = next(itertools.chain.from_iterable(read_lines(path)), b"")
        header = decode_utf8(first, f"{path}:1").removeprefix(_ORDER_MARK)
        unquoted = _QUOTED.sub("", header)
        present = (separator for separator in self._separators if separator in unquoted)
        self._separator = next(present, self._separators[0])
        _, fields = next(self._read_rows(), (1, []))
        if isinstance(fields, str):
            raise InputError(f"{path}:1: {fields}")
        if text_field.isdecimal() and text_field in fields and not all(map(str.isdecimal, filter(None, fields))):
            problem = f"the first row holds {text_field!r}, which may be a name or a value"
            raise InputError(f"{path}:1: {problem}; write a row of names above it, and set text_field to one of them")
        self._has_names = text_field in fields or not text_field.isdecimal()
        self._columns = fields if self._has_names else [str(number) for number in range(1, len(fields) + 1)]
        if fields and text_field and self._columns.count(text_field) != 1:
            raise InputError(self._no_column())

    def _no_column(self) -> str:
        if (count := self._columns.count(self._field)) > 1:
            return f"{self._path}: has {count} columns {self._field!r}; rename one, or set text_field"
        known = f"set text_field to one of: {list_fields(dict.fromkeys(self._columns))}"
        named = "; of a file without names in its first row, to a column's number" if self._has_names else ""
        return f"{self._path}: has no column {self._field!r}; {known}{named}"

    def batches(self) -> Iterator[list[Row]]:
        rows = itertools.islice(self._read_rows(), int(self._has_names), None)
        while batch := list(itertools.islice(rows, _BATCH_ROWS)):
            yield batch

    def _read_rows(self) -> Iterator[Row]:
        """Every row; after one that it cannot read, csv continues with the next."""
        rows = csv.reader(self._lines(), delimiter=self._separator, strict=True)
        while True:
            begun = rows.line_num + 1
            try:
                fields: list[str] | str = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                remedy = "quotes inside a quoted field must be doubled, and every quoted field closed"
                fields = f"cannot be read as a row ({error}); {remedy}"
            yield begun, fields

    def _lines(self) -> Iterable[str]:
        """Lines with their ends; bytes that are not UTF-8 become lone surrogates, which `decode` refuses."""
        lines = itertools.chain.from_iterable(read_lines(self._path))
        first = next(lines, b"").decode(errors="surrogateescape").removeprefix(_ORDER_MARK)
        rest = (line.decode(errors="surrogateescape") + "\n" for line in lines)
        return itertools.chain([first + "\n"], rest)

    def decode(self, raw: Row, position: int) -> Document | None:
        line, fields = raw
        where = f"{self._path}:{line}"
        if isinstance(fields, str):
            raise Rejected("not a row", f"{where}: {fields}")
        if not fields:
            return None
        if len(fields) != len(self._columns):
            message = f"{where}: has {len(fields)} fields, not {len(self._columns)} as the first row"
            raise Rejected("wrong number of fields", f"{message}; quote fields that hold {self._separator!r}")
        if not is_encodable("".join(fields)):
            decode_utf8("".join(fields).encode(errors="surrogateescape"), where)
        record = dict(zip(self._columns, fields, strict=True))
        text = record.pop(self._field) if self._field else ""
        return Document(id=self._id(position), text=text, meta=record)


class TabSeparated(CommaSeparated):
    """As `CommaSeparated`, with tabs as the only separator."""

    _separators = "\t"

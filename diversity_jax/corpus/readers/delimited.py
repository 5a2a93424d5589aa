"""Tables written as text, CSV and TSV: a row is a document, one column its text, the others its metadata."""

from collections.abc import Iterable, Iterator
import csv
import itertools

from diversity_jax.core.compression import MOST_DOCUMENT_BYTES, read_lines
from diversity_jax.core.errors import InputError
from diversity_jax.corpus.document import Document, FileRecords, Rejected, decode_utf8, is_encodable, list_fields

csv.field_size_limit(MOST_DOCUMENT_BYTES)  # Python's own limit, 128 kB a field, is below the length of many documents
_BATCH_ROWS = 256

Row = tuple[int, list[str] | str]
"""The line a row begins at, counted from 1, and its fields, or why it has none."""


class CommaSeparated(FileRecords):
    """Rows of one file whose first row names the columns.

    Fields may stand in double quotes, and then hold separators, line ends and doubled quotes (RFC 4180). A file whose
    first line has no comma may be separated by semicolons, tabs or bars, as spreadsheets write it in many countries.
    A `text_field` that is a number and no column's name counts the columns, from 1, of a file without names.
    """

    _separators = ",;\t|"

    def __init__(self, path: str, label: str, text_field: str):
        super().__init__(path, label, text_field)
        self._columns: list[str] = []  # of an empty file
        first = next(itertools.chain.from_iterable(read_lines(path)), b"")
        header = decode_utf8(first, f"{path}:1").removeprefix(_ORDER_MARK)
        self._separator = next((mark for mark in self._separators if mark in header), self._separators[0])
        _, fields = next(self._read_rows(), (1, []))
        if isinstance(fields, str):
            raise InputError(f"{path}:1: {fields}")
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
        """Every row; csv goes on behind one that it cannot read."""
        rows = csv.reader(self._lines(), delimiter=self._separator, strict=True)
        while True:
            begun = rows.line_num + 1
            try:
                fields: list[str] | str = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                marks = "quotes inside a quoted field must be doubled, and every quoted field closed"
                fields = f"cannot be read as a row ({error}); {marks}"
            yield begun, fields

    def _lines(self) -> Iterable[str]:
        """Lines with their ends; bytes that are not UTF-8 become lone surrogates, to be refused row by row."""
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
    """As `CommaSeparated`, with tabs alone between fields."""

    _separators = "\t"

"""What an export consists of: streams of rows in shards, the arrays of a row, and the class that a format is."""

import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
from dataclasses import dataclass
import os
from pathlib import Path
from typing import Any, ClassVar
import uuid

import numpy as np

from diversity_jax.core.files import full_disk_named, make_folder

ARRAYS = ("tokens", "loss_mask", "segment_ids", "positions", "component")
"""What may be known of a row, as `row_arrays.as_arrays` names it; all but `component` have one number a token."""

Block = Mapping[str, np.ndarray]
"""Consecutive rows: each array of `Layout.columns` by its name, [rows, L + 1], `component` [rows]."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One array of a row.

    Attributes:
      array: one of `ARRAYS`; name: what the format calls it; dtype: as NumPy names it; tokens: numbers in a row of it.
    """

    array: str
    name: str
    dtype: str
    tokens: int

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of it."""
        return self.tokens * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What every row of an export holds.

    Attributes:
      columns: the tokens first.
      row_tokens: L + 1.
      split: `train` or `validation`.
      vocabulary_size: ids are below it.
    """

    columns: tuple[Column, ...]
    row_tokens: int
    split: str
    vocabulary_size: int

    @property
    def row_bytes(self) -> int:
        """Bytes of a row, all arrays together."""
        return sum(column.row_bytes for column in self.columns)


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Rows that a trainer reads as one data set: the whole mixture, or one component.

    Attributes:
      name: of the component; empty for the mixture.
      weight: share of the mixture's rows, as a decimal number and exact.
      rows: how many are exported; read: rows by number.
    """

    name: str
    weight: float
    exact_weight: str
    rows: int
    read: Callable[[np.ndarray], Block]

    @property
    def folder(self) -> str:
        """Where its files go, relative to the export's folder."""
        return f"data/{self.name}" if self.name else "data"


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Rows first to first + rows - 1 of a stream: number `number` of `count`."""

    stream: Stream
    number: int
    count: int
    first: int
    rows: int

    @property
    def key(self) -> str:
        """Its name among all shards of the export."""
        return f"{self.stream.name or 'mixture'}-{self.number:05d}"


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Bytes that a shard consists of: a file, relative to the export's folder, or a range of it."""

    file: str
    offset: int
    bytes: int


Written = tuple[Shard, list[dict[str, Any]]]
"""A shard with its pieces as the export records them: `file`, `offset`, `bytes`, `sha256`."""


class Format(abc.ABC):
    """How rows are written for one kind of trainer.

    Attributes:
      title: for people.
      names: what it calls each array that it can hold; others cannot go along.
      readers: whom it is for.
    """

    title: ClassVar[str]
    names: ClassVar[Mapping[str, str]]
    readers: ClassVar[str]

    def dtype(self, array: str, vocabulary_size: int) -> str:
        """Type of an array's numbers: the smallest that fits and that readers take."""
        if array == "tokens":
            return "uint16" if vocabulary_size <= 1 << 16 else "int32"
        return "uint8" if array == "loss_mask" else "int32"

    @abc.abstractmethod
    def write(self, root: Path, shard: Shard, layout: Layout, blocks: Iterator[Block]) -> list[Piece]:
        """Writes a shard whole, the same bytes for the same rows, and says which they are.

        Args:
          root: the export's folder, to which pieces are relative.
        """

    def finish(  # noqa: B027 - shards are often all that readers need
        self, root: Path, stream: Stream, layout: Layout, shards: Sequence[Written]
    ) -> None:
        """Writes what readers of a stream need beside its shards, once all are there."""

    def finish_blend(  # noqa: B027 - most trainers have none
        self, root: Path, streams: Sequence[Stream], layout: Layout
    ) -> None:
        """Writes the trainer's own file about a blend of streams, where it has one."""


@contextlib.contextmanager
def path_to_write(path: Path) -> Iterator[Path]:
    """A path for a library to write a file to, which appears at `path` whole or not at all."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:16]}.partial")
    with full_disk_named(path):
        make_folder(path.parent)
        try:
            yield partial
            with open(partial, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def whole_file(root: Path, path: Path) -> Piece:
    return Piece(file=path.relative_to(root).as_posix(), offset=0, bytes=path.stat().st_size)


def as_bytes(block: Block, columns: Sequence[Column]) -> np.ndarray:
    """Rows whose arrays lie one after the other, little-endian, uint8 [rows, bytes]."""
    parts = []
    for column in columns:
        values = np.ascontiguousarray(block[column.array], np.dtype(column.dtype).newbyteorder("<"))
        parts.append(values.reshape(len(values), -1).view(np.uint8))
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

"""What an export consists of: streams of rows in shards, the arrays of a row, and the base class of formats."""

import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

ARRAYS = ("tokens", "loss_mask", "segment_ids", "positions", "component")
"""The arrays that a row may have, named as by `loader.as_arrays`; all but `component` have one number a token."""
_BLOCK_BYTES = 1 << 20  # of tokens, read and written at once, so that they and what is made of them stay in the cache

Block = Mapping[str, np.ndarray]
"""Consecutive rows: each array of `Layout.columns` by its name, [rows, L + 1], `component` [rows]."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One array of a row.

    Attributes:
      array: one of `ARRAYS`; name: the format's name for it; dtype: NumPy's name of it; tokens: numbers it has a row.
    """

    array: str
    name: str
    dtype: str
    tokens: int

    @property
    def row_bytes(self) -> int:
        """Bytes that it has a row."""
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
      name: the component's; empty for the mixture.
      weight: share of the mixture's rows; exact_weight: the same as a fraction, such as "3/4".
      rows: how many are exported; read: returns rows by number.
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

    def shards(self, rows: int) -> "list[ExportShard]":
        """All of it, in shards of `rows` rows; the last may have fewer."""
        firsts = range(0, self.rows, rows)
        return [
            ExportShard(stream=self, number=number, count=len(firsts), first=first, rows=min(rows, self.rows - first))
            for number, first in enumerate(firsts)
        ]


@dataclass(frozen=True, kw_only=True)
class ExportShard:
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

    def blocks(self, row_tokens: int) -> Iterator[Block]:
        """Its rows, about a megabyte at a time."""
        step, end = max(1, _BLOCK_BYTES // (4 * row_tokens)), self.first + self.rows
        for first in range(self.first, end, step):
            yield self.stream.read(np.arange(first, min(first + step, end)))


@dataclass(frozen=True, kw_only=True)
class FileRange:
    """Bytes of a shard: a range of a file, which is named relative to the export's folder."""

    file: str
    offset: int
    bytes: int

    @classmethod
    def of_file(cls, root: Path, path: Path) -> Self:
        """All bytes of a file."""
        return cls(file=path.relative_to(root).as_posix(), offset=0, bytes=path.stat().st_size)


WrittenShard = tuple[ExportShard, list[dict[str, Any]]]
"""A shard with its file ranges as `export.json` records them: `file`, `offset`, `bytes`, `sha256`."""


class Format(abc.ABC):
    """How rows are written for one kind of trainer.

    Attributes:
      title: shown to users.
      names: its name for each array that it can hold; other arrays are not exported.
    """

    title: ClassVar[str]
    names: ClassVar[Mapping[str, str]]

    def dtype(self, array: str, vocabulary_size: int) -> str:
        """Type of an array's numbers: the smallest that holds them and that the readers accept."""
        if array == "tokens":
            return "uint16" if vocabulary_size <= 1 << 16 else "int32"
        return "uint8" if array == "loss_mask" else "int32"

    @abc.abstractmethod
    def write(self, root: Path, shard: ExportShard, layout: Layout, blocks: Iterator[Block]) -> list[FileRange]:
        """Writes a shard, the same bytes for the same rows; returns where its bytes are.

        Args:
          root: the export's folder.
        """

    def finish(  # noqa: B027 - shards are often all that readers need
        self, root: Path, stream: Stream, layout: Layout, shards: Sequence[WrittenShard]
    ) -> None:
        """Writes the index that readers of a stream need, once all its shards are written."""

    def finish_blend(  # noqa: B027 - most trainers have none
        self, root: Path, streams: Sequence[Stream], layout: Layout
    ) -> None:
        """Writes the trainer's own file of data sets and weights, where it has one."""


def as_bytes(block: Block, columns: Sequence[Column]) -> np.ndarray:
    """Rows as bytes, uint8 [rows, bytes]: the columns of each, little-endian, in this order."""
    parts = []
    for column in columns:
        values = np.ascontiguousarray(block[column.array], np.dtype(column.dtype).newbyteorder("<"))
        parts.append(values.reshape(len(values), -1).view(np.uint8))
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

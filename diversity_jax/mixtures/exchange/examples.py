"""`tf.train.Example` records in TFRecord and ArrayRecord files, encoded and read here for whole arrays at once."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import google_crc32c
import numpy as np

from diversity_jax.core.files import writing
from diversity_jax.mixtures.exchange.format import (
    Block,
    Column,
    Format,
    Layout,
    Piece,
    Shard,
    path_to_write,
    whole_file,
)

_VARINT_BITS = 7


def varints(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Protocol buffers' varints of each row of numbers, end to end.

    Args:
      values: not negative, [rows, numbers].

    Returns:
      Bytes of all rows, uint8, and where each row ends among them, int64 [rows].
    """
    longest = max(1, -(-int(values.max(initial=0)).bit_length() // _VARINT_BITS))
    parts = np.empty((*values.shape, longest), np.uint8)
    kept = np.empty(parts.shape, bool)
    for place in range(longest):
        rest = values >> (_VARINT_BITS * place) if place else values
        more = rest >= 1 << _VARINT_BITS
        np.bitwise_or(rest & 0x7F, more.view(np.uint8) << 7, out=parts[..., place], casting="unsafe")
        kept[..., place] = rest > 0 if place else True
    if longest == 1:
        return parts.reshape(-1), np.arange(1, len(values) + 1) * values.shape[1]
    return parts[kept], np.cumsum(kept.reshape(len(values), -1).sum(axis=1))


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number >= 1 << _VARINT_BITS:
        parts.append(number & 0x7F | 0x80)
        number >>= _VARINT_BITS
    parts.append(number)
    return bytes(parts)


def _field(tag: int, content: bytes) -> bytes:
    """A field whose content has a length."""
    return bytes((tag << 3 | 2,)) + _varint(len(content)) + content


def _heads(name: bytes, size: int) -> bytes:
    """What stands before `size` bytes of varints in the entry of an int64 feature."""
    values = b"\x0a" + _varint(size)  # Int64List.value, packed
    feature = b"\x1a" + _varint(len(values) + size) + values  # Feature.int64_list
    entry = _field(1, name) + b"\x12" + _varint(len(feature) + size) + feature  # key and value of the map
    return b"\x0a" + _varint(len(entry) + size) + entry  # Features.feature


def examples(block: Block, columns: tuple[Column, ...]) -> Iterator[bytes]:
    """Each row as a serialised `tf.train.Example` of int64 features, in the order of their names."""
    encoded, heads = list[tuple[bytes, memoryview, list[int]]](), dict[tuple[bytes, int], bytes]()
    for column in sorted(columns, key=lambda column: column.name):
        values = block[column.array]
        data, ends = varints(values.reshape(len(values), -1))
        encoded.append((column.name.encode(), data.data, [0, *ends.tolist()]))
    for row in range(len(block["tokens"])):
        parts = list[bytes | memoryview]()
        for name, numbers, bounds in encoded:
            size = bounds[row + 1] - bounds[row]
            if (name, size) not in heads:
                heads[name, size] = _heads(name, size)
            parts += [heads[name, size], numbers[bounds[row] : bounds[row + 1]]]
        features = b"".join(parts)
        yield b"\x0a" + _varint(len(features)) + features


class _Examples(Format):
    """One feature of int64 an array, with the names that SeqIO's packed examples have."""

    names: ClassVar = {
        "tokens": "targets",
        "loss_mask": "targets_loss_weights",
        "segment_ids": "targets_segment_ids",
        "positions": "targets_positions",
        "component": "component",
    }

    def dtype(self, array: str, vocabulary_size: int) -> str:
        return "int32"  # one type, since varints have none; half the width of int64 in memory


def _masked_crc(data: bytes) -> bytes:
    """The checksum that TFRecord files have of a length and of a record."""
    crc = google_crc32c.value(data)
    return (((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")


class TFRecord(_Examples):
    """TFRecord files with their checksums."""

    title = "TFRecord"
    readers = "t5x and other SeqIO code, tf.data, MaxText (grain_file_type=tfrecord)"

    def write(self, root: Path, shard: Shard, layout: Layout, blocks: Iterator[Block]) -> list[Piece]:
        path = root / shard.stream.folder / f"{layout.split}.tfrecord-{shard.number:05d}-of-{shard.count:05d}"
        with writing(path) as file:
            for block in blocks:
                for example in examples(block, layout.columns):
                    size = len(example).to_bytes(8, "little")
                    file.write(b"".join((size, _masked_crc(size), example, _masked_crc(example))))
        return [whole_file(root, path)]


class ArrayRecord(_Examples):
    """ArrayRecord files of one record a group, so that any row is read by itself."""

    title = "ArrayRecord"
    readers = "Grain, MaxText"

    def write(self, root: Path, shard: Shard, layout: Layout, blocks: Iterator[Block]) -> list[Piece]:
        from array_record.python.array_record_module import ArrayRecordWriter

        path = root / shard.stream.folder / f"{layout.split}-{shard.number:05d}-of-{shard.count:05d}.arrayrecord"
        with path_to_write(path) as partial:
            writer = ArrayRecordWriter(str(partial), "group_size:1,uncompressed")
            try:
                for block in blocks:
                    for example in examples(block, layout.columns):
                        writer.write(example)
            finally:
                writer.close()
        return [whole_file(root, path)]


def example_features(record: bytes) -> dict[str, np.ndarray]:
    """The features of whole numbers of a serialised `tf.train.Example`, int64, by name.

    Raises:
      ValueError: it is none, or ends early.
    """
    found = {}
    for _, features in _fields(record, {1}):
        for _, entry in _fields(features, {1}):
            parts = dict(_fields(entry, {1, 2}))
            values = [ids for _, kind in _fields(parts.get(2, b""), {3}) for ids in _fields(kind, {1})]
            if values:
                numbers = [_varints(np.frombuffer(packed, np.uint8)) for _, packed in values]
                found[bytes(parts.get(1, b"")).decode()] = np.concatenate(numbers)
    return found


def _fields(data: bytes | memoryview, wanted: set[int]) -> Iterator[tuple[int, memoryview]]:
    """(number, content) of a message's fields that have a length."""
    data, at = memoryview(data), 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        if tag & 7 == 0:
            _, at = _read_varint(data, at)
            continue
        if tag & 7 in (1, 5):
            at += 8 if tag & 7 == 1 else 4
            continue
        if tag & 7 != 2:
            raise ValueError(f"a field of kind {tag & 7} at byte {at}")
        size, at = _read_varint(data, at)
        if size > len(data) - at:
            raise ValueError(f"a field of {size:,} bytes at byte {at}")
        if tag >> 3 in wanted:
            yield tag >> 3, data[at : at + size]
        at += size


def _read_varint(data: memoryview, at: int) -> tuple[int, int]:
    number = 0
    for place in range(10):
        if at + place >= len(data):
            raise ValueError("it ends within a number")
        byte = data[at + place]
        number |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return number, at + place + 1
    raise ValueError(f"a number of more than 10 bytes at byte {at}")


def _varints(packed: np.ndarray) -> np.ndarray:
    """Numbers that lie end to end as varints, int64."""
    if not len(packed):
        return np.empty(0, np.int64)
    if packed[-1] >= 0x80:
        raise ValueError("it ends within a number")
    ends = np.flatnonzero(packed < 0x80)
    begins = np.concatenate([[0], ends[:-1] + 1])
    places = np.arange(len(packed)) - np.repeat(begins, ends - begins + 1)
    if places.max() >= 10:
        raise ValueError("a number of more than 10 bytes")
    parts = (packed & 0x7F).astype(np.uint64) << (7 * places).astype(np.uint64)
    return np.add.reduceat(parts, begins).astype(np.int64)

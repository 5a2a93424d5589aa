"""Export formats of `tf.train.Example` records, TFRecord and ArrayRecord files: encoded and decoded by NumPy."""

from collections.abc import Iterator
import functools
from pathlib import Path
from typing import ClassVar

import google_crc32c
import numpy as np

from diversity_jax.core.files import path_to_write, writing
from diversity_jax.mixtures.exchange.format import Block, Column, ExportShard, FileRange, Format, Layout

_VARINT_BITS = 7
_TABLE_BITS = 18  # varints of smaller numbers are looked up in a table of 2 MB, which fits the cache
_MOST_BITS = 28  # varints of such numbers have at most four bytes, so that four of them fit into 16
_LENGTH_SHIFT, _BYTES_MASK = np.uint64(56), np.uint64((1 << 56) - 1)
_NUMBERS = 1 << 15  # encoded at once, so that intermediate arrays stay in the cache


def varints(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Protocol buffers' varints of each row of numbers, end to end.

    Four numbers at a time are joined to 16 bytes, which are written where the four begin; the next four overwrite the
    zeros behind them.

    Args:
      values: from 0 to 2 ** 28 - 1, [rows, numbers].

    Returns:
      Bytes of all rows, uint8, and where each row ends among them, int64 [rows].
    """
    largest = int(values.max(initial=0))
    if largest.bit_length() > _MOST_BITS:
        raise ValueError(f"{largest} is more than {_MOST_BITS} bits")
    rows, width = values.shape
    out = np.empty(values.size * max(1, -(-largest.bit_length() // _VARINT_BITS)) + 16, np.uint8)
    slots = np.ndarray((len(out) - 15,), "V16", out, strides=(1,))
    ends, at, step = np.empty(rows, np.int64), 0, max(1, _NUMBERS // max(1, width) & -4)
    for first in range(0, rows, step):
        words = _words(values[first : first + step], largest)
        bits = words >> _LENGTH_SHIFT
        words &= _BYTES_MASK
        row_bits = bits.sum(axis=1)
        words, bits = _in_fours(words.reshape(-1)), _in_fours(bits.reshape(-1))
        pairs = words[1::2] << bits[::2]
        pairs |= words[::2]
        pair_bits = bits[::2] + bits[1::2]
        fours, shift = np.empty((len(pairs) // 2, 2), "<u8"), pair_bits[::2]
        np.left_shift(pairs[1::2], shift, out=fours[:, 0])
        fours[:, 0] |= pairs[::2]
        np.right_shift(pairs[1::2], 64 - shift, out=fours[:, 1])  # a shift by 64 gives 0
        sizes = (shift + pair_bits[1::2]).view(np.int64) >> 3
        behind = sizes.cumsum()
        behind += at
        slots[behind - sizes] = fours.view("V16")[:, 0]
        ends[first : first + step] = at + (row_bits.cumsum() >> 3).view(np.int64)
        at = int(behind[-1])
    return out[:at], ends


def _in_fours(words: np.ndarray) -> np.ndarray:
    """Padded with zeros to a multiple of four."""
    return words if len(words) % 4 == 0 else np.pad(words, (0, -len(words) % 4))


def _words(values: np.ndarray, largest: int) -> np.ndarray:
    """The varint of each number in the low bytes of a word, and its length in bits in the highest one, uint64."""
    if largest >= 1 << _TABLE_BITS:
        return _computed_words(values)
    return _table(max(_VARINT_BITS, largest.bit_length())).take(values)


@functools.cache
def _table(value_bits: int) -> np.ndarray:
    return _computed_words(np.arange(1 << value_bits))


def _computed_words(values: np.ndarray) -> np.ndarray:
    rest: np.ndarray = values.astype(np.uint64)
    words, bits = rest & 0x7F, np.full(rest.shape, 8, np.uint64)
    for number in range(1, -(-_MOST_BITS // _VARINT_BITS)):
        rest = rest >> _VARINT_BITS
        more = (rest > 0).astype(np.uint64)
        words |= (more << (8 * number - 1)) | ((rest & 0x7F) << (8 * number))
        bits += 8 * more
    return words | bits << _LENGTH_SHIFT


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number >= 1 << _VARINT_BITS:
        parts.append(number & 0x7F | 0x80)
        number >>= _VARINT_BITS
    parts.append(number)
    return bytes(parts)


def _field(tag: int, content: bytes) -> bytes:
    return bytes((tag << 3 | 2,)) + _varint(len(content)) + content


@functools.lru_cache(1 << 16)
def _heads(name: bytes, size: int) -> bytes:
    """The bytes before `size` bytes of varints in an int64 feature of the map `Features.feature`."""
    values = b"\x0a" + _varint(size)  # Int64List.value, packed
    feature = b"\x1a" + _varint(len(values) + size) + values  # Feature.int64_list
    key_and_value = _field(1, name) + b"\x12" + _varint(len(feature) + size) + feature
    return b"\x0a" + _varint(len(key_and_value) + size) + key_and_value


@functools.lru_cache(1 << 16)
def _lead(size: int) -> bytes:
    """How an Example whose features have `size` bytes begins."""
    return b"\x0a" + _varint(size)


@functools.lru_cache(1 << 16)
def _before(single: bytes, name: bytes, size: int) -> bytes:
    """The bytes of an Example of two features before the numbers of the second; `single` is the first one."""
    head = _heads(name, size)
    return _lead(len(single) + len(head) + size) + single + head


def examples(block: Block, columns: tuple[Column, ...]) -> Iterator[bytes]:
    """Each row as a serialised `tf.train.Example` of int64 features, in the order of their names."""
    *others, last = sorted(columns, key=lambda column: column.name)
    if [column.tokens for column in others] == [1]:  # as for rows of text: the component, and the tokens
        values = block[others[0].array].tolist()
        features_by_value = {number: _feature(others[0].name.encode(), _varint(number)) for number in set(values)}
        name = last.name.encode()
        for value, numbers in zip(values, _numbers(block[last.array]), strict=True):
            yield _before(features_by_value[value], name, len(numbers)) + numbers
        return
    parts = [
        [(column.name.encode(), numbers) for numbers in _numbers(block[column.array])] for column in (*others, last)
    ]
    for features in zip(*parts, strict=True):
        content = b"".join([_feature(*feature) for feature in features])
        yield _lead(len(content)) + content


def _feature(name: bytes, numbers: bytes | memoryview) -> bytes:
    return b"".join((_heads(name, len(numbers)), numbers))


def _numbers(values: np.ndarray) -> Iterator[memoryview]:
    """The numbers of each row as varints."""
    data, ends = varints(values.reshape(len(values), -1))
    view, begin = data.data, 0
    for end in ends.tolist():
        yield view[begin:end]
        begin = end


class _ExampleFormat(Format):
    """One int64 feature for each array, named as in SeqIO's packed examples."""

    names: ClassVar = {
        "tokens": "targets",
        "loss_mask": "targets_loss_weights",
        "segment_ids": "targets_segment_ids",
        "positions": "targets_positions",
        "component": "component",
    }

    def dtype(self, array: str, vocabulary_size: int) -> str:
        return "int32"  # varints have no type; half the size of int64 in memory


def _masked_crc(data: bytes) -> bytes:
    """The checksum of a length or of a record in a TFRecord file."""
    crc = google_crc32c.value(data)
    return (((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")


@functools.lru_cache(1 << 16)
def _length(size: int) -> bytes:
    """How a record of `size` bytes begins in a TFRecord file."""
    number = size.to_bytes(8, "little")
    return number + _masked_crc(number)


class TFRecordFormat(_ExampleFormat):
    """TFRecord files."""

    title = "TFRecord"

    def write(self, root: Path, shard: ExportShard, layout: Layout, blocks: Iterator[Block]) -> list[FileRange]:
        path = root / shard.stream.folder / f"{layout.split}.tfrecord-{shard.number:05d}-of-{shard.count:05d}"
        with writing(path) as file:
            for block in blocks:
                parts = list[bytes]()
                for example in examples(block, layout.columns):
                    parts += (_length(len(example)), example, _masked_crc(example))
                file.write(b"".join(parts))
        return [FileRange.of_file(root, path)]


class ArrayRecordFormat(_ExampleFormat):
    """ArrayRecord files with one record in each group, so that a row can be read without others."""

    title = "ArrayRecord"

    def write(self, root: Path, shard: ExportShard, layout: Layout, blocks: Iterator[Block]) -> list[FileRange]:
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
        return [FileRange.of_file(root, path)]


def example_features(record: bytes) -> dict[str, np.ndarray]:
    """The int64 features of a serialised `tf.train.Example`, by name.

    Raises:
      ValueError: the bytes are not such a message, or are cut short.
    """
    lists = {}
    for _, features in _fields(record, {1}):
        for _, key_and_value in _fields(features, {1}):
            parts = dict(_fields(key_and_value, {1, 2}))
            values = [ids for _, kind in _fields(parts.get(2, b""), {3}) for ids in _fields(kind, {1})]
            if values:
                numbers = [_decoded_varints(np.frombuffer(packed, np.uint8)) for _, packed in values]
                lists[bytes(parts.get(1, b"")).decode()] = np.concatenate(numbers)
    return lists


def _fields(data: bytes | memoryview, wanted: set[int]) -> Iterator[tuple[int, memoryview]]:
    """(number, content) of a message's length-delimited fields with these numbers."""
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
    for septet in range(10):
        if at + septet >= len(data):
            raise ValueError("it ends within a number")
        byte = data[at + septet]
        number |= (byte & 0x7F) << 7 * septet
        if byte < 0x80:
            return number, at + septet + 1
    raise ValueError(f"a number of more than 10 bytes at byte {at}")


def _decoded_varints(packed: np.ndarray) -> np.ndarray:
    """The numbers of varints end to end, int64."""
    if not len(packed):
        return np.empty(0, np.int64)
    if packed[-1] >= 0x80:
        raise ValueError("it ends within a number")
    ends = np.flatnonzero(packed < 0x80)
    begins = np.concatenate([[0], ends[:-1] + 1])
    septets = np.arange(len(packed)) - np.repeat(begins, ends - begins + 1)
    if septets.max() >= 10:
        raise ValueError("a number of more than 10 bytes")
    parts = (packed & 0x7F).astype(np.uint64) << (7 * septets).astype(np.uint64)
    return np.add.reduceat(parts, begins).astype(np.int64)

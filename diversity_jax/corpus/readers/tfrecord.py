"""TFRecord files of `tf.train.Example`, read without TensorFlow.

The framing (length, masked CRC-32C of the length, data, CRC of the data) and the protobuf wire format are small enough
to read directly, which spares several seconds and hundreds of MiB of start-up. The length's checksum is verified, so a
file that is no TFRecord, or is cut or shifted, is noticed; the data's checksum is not, for want of a fast CRC-32C in
Python.
"""

from collections.abc import Iterator
import struct
from typing import Any

import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import COMPRESSED, expected_bytes, file_hash, is_remote, open_file, read_blocks
from diversity_jax.corpus.document import Document, Rejected, decode_utf8, list_fields

_HEADER_BYTES = 12
_FOOTER_BYTES = 4
_BATCH_RECORDS = 256


class TFRecord:
    """Examples of one file. A plain local file is indexed by hopping from header to header."""

    def __init__(self, path: str, label: str, text_field: str):
        self._path = path
        self._label = label
        self._field = text_field
        self._offsets: np.ndarray | None = None

    def batches(self) -> Iterator[list[bytes]]:
        batch = []
        for record in _read_records(self._path):
            batch.append(record)
            if len(batch) == _BATCH_RECORDS:
                yield batch
                batch = []
        if batch:
            yield batch

    def decode(self, raw: bytes, position: int) -> Document:
        where = f"{self._path}:{position + 1}"
        try:
            features = parse_example(raw)
        except (ValueError, IndexError, TypeError, AttributeError, struct.error):
            raise Rejected(
                "not an Example", f"{where}: is not a tf.train.Example; expected one in every record"
            ) from None
        if not self._field:
            whole = {
                name: _readable(found[0]) if len(found) == 1 else [_readable(one) for one in found]
                for name, found in features.items()
            }
            return Document(id=f"{self._label}:{position + 1}", text="", meta=whole)
        if self._field not in features:
            message = f"{where}: has no feature {self._field!r}; set text_field to one of: {list_fields(features)}"
            raise Rejected("no text field", message)
        values = features.pop(self._field)
        if values and not isinstance(values[0], bytes):
            message = (
                f"{where}: feature {self._field!r} holds numbers, not text; read tokens through a SeqIO task "
                "(seqio:TASK)"
            )
            raise Rejected("text field is not text", message)
        if len(values) > 1:
            message = f"{where}: feature {self._field!r} holds {len(values)} texts; expected one"
            raise Rejected("text field is not text", message)
        meta = {name: _readable(found[0]) for name, found in features.items() if len(found) == 1}
        return Document(
            id=f"{self._label}:{position + 1}", text=decode_utf8(values[0], where) if values else "", meta=meta
        )

    def count(self) -> int | None:
        if is_remote(self._path) or self._path.endswith(COMPRESSED):
            return None
        if self._offsets is None:
            self._offsets = _record_offsets(self._path)
        return len(self._offsets)

    def fetch(self, positions: np.ndarray) -> Iterator[bytes]:
        with open_file(self._path) as file:
            for offset in self._offsets[positions].tolist():
                file.seek(offset)
                size = _data_bytes(file.read(_HEADER_BYTES), self._path, offset)
                yield file.read(size)

    def expected_bytes(self) -> int:
        return expected_bytes(self._path)

    def content_hash(self) -> str:
        return file_hash(self._path)


def _readable(value: Any) -> Any:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _read_records(path: str) -> Iterator[bytes]:
    """Data of every record; a record may be longer than any block."""
    buffer, begin, offset = bytearray(), 0, 0
    for block in read_blocks(path):
        del buffer[:begin]
        offset, begin = offset + begin, 0
        buffer += block
        while len(buffer) - begin >= _HEADER_BYTES:
            size = _data_bytes(buffer[begin : begin + _HEADER_BYTES], path, offset + begin)
            end = begin + _HEADER_BYTES + size + _FOOTER_BYTES
            if end > len(buffer):
                break
            yield bytes(buffer[begin + _HEADER_BYTES : end - _FOOTER_BYTES])
            begin = end
    if begin != len(buffer):
        raise _cut_off(path, offset + begin)


def _record_offsets(path: str) -> np.ndarray:
    """Byte offset of every record's header: int64[records]."""
    offsets, offset = [], 0
    with open_file(path) as file:
        size = file.seek(0, 2)
        while offset < size:
            file.seek(offset)
            following = offset + _HEADER_BYTES + _data_bytes(file.read(_HEADER_BYTES), path, offset) + _FOOTER_BYTES
            if following > size:
                raise _cut_off(path, offset)
            offsets.append(offset)
            offset = following
    return np.array(offsets, np.int64)


def _data_bytes(header: bytes, path: str, offset: int) -> int:
    if len(header) < _HEADER_BYTES:
        raise _cut_off(path, offset)
    size, checksum = struct.unpack("<QI", header)
    if _masked_crc32c(header[:8]) != checksum:
        raise InputError(
            f"{path}: has no TFRecord at byte {offset} (wrong checksum): another format, or damaged; fetch or write "
            "it again"
        )
    return size


def _cut_off(path: str, offset: int) -> InputError:
    return InputError(f"{path}: ends inside the record at byte {offset}; fetch or write it again")


def _crc32c_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _crc32c_table()


def _masked_crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def parse_example(data: bytes) -> dict[str, list[Any]]:
    """Features of a serialised `tf.train.Example` by name: a list of bytes, floats or ints each.

    Raises:
      ValueError, IndexError, struct.error: the bytes are no such message.
    """
    features = {}
    for _, map_bytes in _fields(data, {1}):
        for _, entry in _fields(map_bytes, {1}):
            pair = dict(_fields(entry, {1, 2}))
            features[pair.get(1, b"").decode()] = _feature_values(pair.get(2, b""))
    return features


def _feature_values(feature: bytes) -> list[Any]:
    values: list[Any] = []
    for kind, listed in _fields(feature, {1, 2, 3}):
        for _, value in _fields(listed, {1}):
            if kind == 1:
                values.append(value)
            elif kind == 2:
                values += struct.unpack(f"<{len(value) // 4}f", value)
            else:
                values += _integers(value) if isinstance(value, bytes) else [_signed(value)]
    return values


def _integers(packed: bytes) -> list[int]:
    values, at = [], 0
    while at < len(packed):
        value, at = _varint(packed, at)
        values.append(_signed(value))
    return values


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _fields(data: bytes, expected: set[int]) -> Iterator[tuple[int, Any]]:
    """(number, value) of every expected field of a protobuf message: bytes, except for a varint, which is an int."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(data, at)
        elif wire in (1, 2, 5):
            size = {1: 8, 5: 4}.get(wire)
            if size is None:
                size, at = _varint(data, at)
            if at + size > len(data):
                raise ValueError("a field is longer than its message")
            value, at = data[at : at + size], at + size
        else:
            raise ValueError(f"unknown wire type {wire}")
        if number in expected:
            yield number, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number is longer than 64 bits")

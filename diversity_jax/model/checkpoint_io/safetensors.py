"""The safetensors format: named arrays behind a JSON header. Streams arrays out one at a time and maps them in, so
memory stays small.

Layout: 8 bytes little-endian header length, the header (name -> dtype, shape, offsets), then the arrays' bytes,
  row-major, without gaps.
Transposed arrays are written as what they look like, not as what lies in memory.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
import json
import math
import os
from pathlib import Path

import ml_dtypes
import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import writing

_DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F64": np.dtype(np.float64),
}
_OTHER_SIZES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I16": 2,
    "U16": 2,
    "I32": 4,
    "U32": 4,
    "I64": 8,
    "U64": 8,
}
_MAX_HEADER_BYTES = 100 << 20


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """An array to be written: its shape is known before its values are made."""

    name: str
    shape: tuple[int, ...]
    values: Callable[[], np.ndarray]

    def size_bytes(self, dtype: np.dtype) -> int:
        """Bytes it takes in a file."""
        return math.prod(self.shape) * dtype.itemsize


def dtype_named(name: str) -> np.dtype:
    """`float32`, `bfloat16` or `float16` as numpy's type.

    Raises:
      InputError: any other name.
    """
    choices = {dtype.name: dtype for dtype in _DTYPES.values() if dtype.name != "float64"}
    if name not in choices:
        raise InputError(f"dtype={name!r}: must be one of {', '.join(choices)}")
    return choices[name]


def write_tensors(path: str | os.PathLike, tensors: Iterable[Tensor], dtype: np.dtype) -> None:
    """Writes one file, whole or not at all; values are asked for, converted and written one tensor at a time.

    Raises:
      InputError: the disk is full.
    """
    tensors = list(tensors)
    code = next(code for code, known in _DTYPES.items() if known == dtype)
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for tensor in tensors:
        end = offset + tensor.size_bytes(dtype)
        header[tensor.name] = {"dtype": code, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with writing(path) as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for tensor in tensors:
            values = np.asarray(tensor.values(), dtype=dtype, order="C")
            if values.shape != tensor.shape:
                raise ValueError(f"{tensor.name}: announced as {tensor.shape}, made as {values.shape}")
            file.write(values.reshape(-1).view(np.uint8).data)


def map_tensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Maps a file's arrays into memory, read-only; nothing is read until it is used.

    Raises:
      InputError: the file is cut short, is no safetensors file, or holds an array of a type that weights do not have.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = _header(path, file.read(length) if length <= min(size, _MAX_HEADER_BYTES) else b"")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; the model's folder is incomplete") from None
    data = np.memmap(path, np.uint8, "r", offset=8 + length) if size > 8 + length else np.empty(0, np.uint8)
    return {name: _map_one(path, data, name, entry) for name, entry in header.items() if name != "__metadata__"}


def _header(path: Path, encoded: bytes) -> Mapping:
    try:
        header = json.loads(encoded)
    except ValueError:
        header = None
    if not isinstance(header, dict):
        raise InputError(f"{path}: is no safetensors file (its header cannot be read); fetch or export it again")
    return header


def _map_one(path: Path, data: np.ndarray, name: str, entry: Mapping) -> np.ndarray:
    try:
        code, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        items = math.prod(shape)
    except (KeyError, TypeError, ValueError):
        raise InputError(
            f"{path}: the header's entry for {name} is malformed; fetch or export the file again"
        ) from None
    if code not in _DTYPES:
        known = f"of type {code}" if code in _OTHER_SIZES else f"of unknown type {code!r}"
        raise InputError(
            f"{path}: {name} is {known}; expected weights in {', '.join(_DTYPES)} (quantised models must be converted "
            "first)"
        )
    if not 0 <= start <= end <= data.size or end - start != items * _DTYPES[code].itemsize:
        raise InputError(
            f"{path}: {name} of shape {list(shape)} does not fit the file, which is cut short or damaged; fetch it "
            "again"
        )
    return data[start:end].view(_DTYPES[code]).reshape(shape)

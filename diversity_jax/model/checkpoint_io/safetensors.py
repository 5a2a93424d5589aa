"""safetensors files, read and written one tensor at a time, so that memory stays small."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
import functools
import json
import math
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import writing

_NAMES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F64": np.float64}
_DTYPES = {code: np.dtype(kind) for code, kind in _NAMES.items()}


@dataclass(frozen=True)
class Tensor:
    """An array whose shape is known before its values are made or read."""

    name: str
    shape: tuple[int, ...]
    values: Callable[[], np.ndarray]

    def size_bytes(self, dtype: np.dtype) -> int:
        """Bytes it takes in a file."""
        return math.prod(self.shape) * dtype.itemsize

    def file_bytes(self, dtype: np.dtype) -> memoryview:
        """Its values, row-major."""
        values = np.asarray(self.values(), dtype=dtype, order="C")
        if values.shape != self.shape:
            raise ValueError(f"{self.name}: announced as {self.shape}, made as {values.shape}")
        return values.reshape(-1).view(np.uint8).data


def dtype_named(name: str) -> np.dtype:
    """`float32`, `bfloat16` or `float16` as numpy's type.

    Raises:
      InputError: any other name.
    """
    choices = {dtype.name: dtype for dtype in _DTYPES.values() if dtype != np.float64}
    if name not in choices:
        raise InputError(f"dtype={name!r}: must be one of {', '.join(choices)}")
    return choices[name]


def write_tensors(path: str | os.PathLike, tensors: Iterable[Tensor], dtype: np.dtype) -> None:
    """Writes one file atomically; values are made, converted and written one tensor at a time.

    safetensors' own writer takes all arrays at once, and writes what lies in memory for transposed ones.

    Raises:
      InputError: the disk is full.
    """
    tensors = list(tensors)
    code = next(code for code, known in _DTYPES.items() if known == dtype)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.size_bytes(dtype)
        header[tensor.name] = {"dtype": code, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with writing(path) as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for tensor in tensors:
            file.write(tensor.file_bytes(dtype))


def read_tensors(path: str | os.PathLike) -> dict[str, Tensor]:
    """A file's tensors by name; values are read when they are asked for.

    Raises:
      InputError: the file is missing or damaged, or holds a tensor of a type that weights do not have.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    try:
        file = safe_open(path, framework="np")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; the model's folder is incomplete") from None
    except SafetensorError as error:
        raise InputError(f"{path}: is no safetensors file, or a damaged one ({error}); fetch it again") from None
    tensors = {}
    for name in file.keys():  # noqa: SIM118 the file is no mapping
        header = file.get_slice(name)
        if (dtype := header.get_dtype()) not in _DTYPES:
            raise InputError(f"{path}: {name} is of type {dtype}; weights in {', '.join(_DTYPES)} can be read")
        tensors[name] = Tensor(name, tuple(header.get_shape()), functools.partial(file.get_tensor, name))
    return tensors

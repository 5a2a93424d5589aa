"""Files of named arrays: reads and writes safetensors, and reads PyTorch's pickles without executing their code."""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
import functools
import json
import math
import os
from pathlib import Path
import pickle
from typing import Any
import zipfile

import ml_dtypes
import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import writing

_TYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F64": np.float64}
DTYPES_BY_CODE = {code: np.dtype(kind) for code, kind in _TYPES.items()}
_STORAGES = {"FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16", "DoubleStorage": "F64"}


@dataclass(frozen=True)
class Tensor:
    """A named array whose values are computed or read when they are asked for."""

    name: str
    shape: tuple[int, ...]
    values: Callable[[], np.ndarray]

    def size_bytes(self, dtype: np.dtype) -> int:
        """Bytes in a file."""
        return math.prod(self.shape) * dtype.itemsize

    def file_bytes(self, dtype: np.dtype) -> memoryview:
        """The values, row-major.

        Raises:
          InputError: one is not finite, or too large for the type.
        """
        with np.errstate(over="ignore"):
            values = np.asarray(self.values(), dtype=dtype, order="C")
        if not np.isfinite(values).all():
            raise InputError(
                f"{self.name}: holds a number that is not finite as {dtype}; write it as bfloat16 or float32"
            )
        if values.shape != self.shape:
            raise ValueError(f"{self.name}: announced as {self.shape}, made as {values.shape}")
        return values.reshape(-1).view(np.uint8).data


def dtype_named(name: str) -> np.dtype:
    """`float32`, `bfloat16` or `float16` as numpy's type.

    Raises:
      InputError: any other name.
    """
    choices = {dtype.name: dtype for dtype in DTYPES_BY_CODE.values() if dtype != np.float64}
    if name not in choices:
        raise InputError(f"dtype={name!r}: must be one of {', '.join(choices)}")
    return choices[name]


def write_tensors(path: str | os.PathLike, tensors: Iterable[Tensor], dtype: np.dtype) -> None:
    """Writes a safetensors file atomically; values are computed, converted and written one tensor at a time.

    safetensors' own writer needs all arrays in memory, and writes transposed ones in the wrong order.

    Raises:
      InputError: the disk is full.
    """
    tensors = list(tensors)
    code = next(code for code, known in DTYPES_BY_CODE.items() if known == dtype)
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
    """Tensors of a safetensors file by name.

    Raises:
      InputError: the file is missing or damaged, or holds a tensor that is not of a floating-point type.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    try:
        file = safe_open(path, framework="np")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; the model's folder is incomplete") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: is no safetensors file, or a damaged one ({error}); fetch it again") from None
    tensors = {}
    for name in file.keys():  # noqa: SIM118 the file is no mapping
        header = file.get_slice(name)
        if (dtype := header.get_dtype()) not in DTYPES_BY_CODE:
            raise InputError(f"{path}: {name} is of type {dtype}; weights in {', '.join(DTYPES_BY_CODE)} can be read")
        tensors[name] = Tensor(name, tuple(header.get_shape()), functools.partial(file.get_tensor, name))
    return tensors


def read_torch(path: str | os.PathLike) -> dict[str, Tensor]:
    """Tensors by name of a state dict that `torch.save` wrote.

    A pickle can call any Python function; this reader knows only those that rebuild arrays.

    Raises:
      InputError: the file is missing, damaged, older than PyTorch 1.6, or holds anything but arrays.
    """
    path = Path(path)
    try:
        archive = zipfile.ZipFile(path)
        if packed := next((entry for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED), None):
            raise InputError(f"{path}: {packed.filename} is compressed, which torch.save does not; save it again")
        name = next(name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl")
        if any("byteorder" in entry and archive.read(entry) != b"little" for entry in archive.namelist()):
            raise InputError(f"{path}: was written on a big-endian machine; save it again with torch.save on another")
        content = _Unpickler(archive, name.removesuffix("data.pkl"), path).load()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; the model's folder is incomplete") from None
    except InputError:
        raise
    except Exception as error:  # a damaged pickle can raise any type
        raise InputError(
            f"{path}: is no file of torch.save since PyTorch 1.6, or a damaged one ({type(error).__name__}); fetch it "
            "again, or save the model with save_pretrained"
        ) from None
    if not isinstance(content, dict) or not all(isinstance(value, _ArchivedTensor) for value in content.values()):
        raise InputError(f"{path}: holds no dictionary of tensors; save the model's state_dict()")
    return {str(name): Tensor(str(name), stored.shape, stored.values) for name, stored in content.items()}


@dataclass(frozen=True)
class _ArchivedTensor:
    """A view of one of the archive's arrays."""

    read: Callable[[], bytes]
    count: int  # elements of the array
    dtype: np.dtype
    start: int = 0
    shape: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()

    def view(self, start: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> "_ArchivedTensor":
        """Another view of the same array; raises ValueError where it exceeds the array."""
        numbers = (start, *shape, *strides)
        if not all(isinstance(number, int) and number >= 0 for number in numbers) or len(shape) != len(strides):
            raise ValueError("sizes of a tensor")
        last = start + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        elements: int = math.prod([int(size) for size in shape])
        if elements > self.count or (elements and last >= self.count):
            raise ValueError("a tensor larger than what is stored")
        return _ArchivedTensor(self.read, self.count, self.dtype, start, tuple(shape), tuple(strides))

    def values(self) -> np.ndarray:
        """The view's values, read from the archive."""
        stored = np.frombuffer(self.read(), self.dtype)
        if len(stored) != self.count:
            raise InputError(f"a tensor of {self.count} numbers is stored with {len(stored)}; fetch the file again")
        steps = tuple(stride * self.dtype.itemsize for stride in self.strides)
        return np.lib.stride_tricks.as_strided(stored[self.start :], self.shape, steps)


class _Unpickler(pickle._Unpickler):
    """Unpickles state dicts only.

    Subclasses Python's implementation: the memo of the one in C is an array as long as the largest index in the file.
    """

    def __init__(self, archive: zipfile.ZipFile, prefix: str, path: Path):
        super().__init__(archive.open(f"{prefix}data.pkl"))
        self._archive, self._prefix, self._path = archive, prefix, path

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _ArchivedTensor.view,
            ("torch._utils", "_rebuild_parameter"): lambda stored, *_: stored,
            **{("torch", storage): storage for storage in _STORAGES},
        }
        if (module, name) not in known:
            raise InputError(
                f"{self._path}: asks for {module}.{name}, which no float32, float16, bfloat16 or float64 weights need; "
                "it was not run; load it where you trust it, and save the model with save_pretrained"
            )
        return known[module, name]

    def persistent_load(self, pid: Any) -> _ArchivedTensor:
        _, storage, key, _, count = pid
        read = functools.partial(self._archive.read, f"{self._prefix}data/{key}")
        return _ArchivedTensor(read, count, DTYPES_BY_CODE[_STORAGES[storage]])

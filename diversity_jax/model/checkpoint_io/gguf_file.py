"""Reads and writes GGUF files: metadata and tensors by name.

The reader is our own, since the `gguf` package's reads past the end of a damaged file and loops over any count that a
file claims; (de)quantisation is the package's.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
import functools
import math
from pathlib import Path
import re
from typing import Any, cast

import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import writing
from diversity_jax.model.checkpoint_io.tensor_files import DTYPES_BY_CODE, Tensor

DTYPES = ("float32", "float16", "bfloat16", "q8_0")
"""Types that matrices can be written in."""
_SCALARS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_STRING, _ARRAY = 8, 9
_LONGEST_NAME = 512  # characters; the format allows 65,535 bytes for an entry and 64 for a tensor
_PART = re.compile(r"(.+)-00001-of-(\d{5})\.gguf")
_Q8_BLOCK = 32  # elements that share a scale in Q8_0


@dataclass(frozen=True)
class GgufFile:
    """Content of a GGUF file, or of all files of a model in parts.

    Attributes:
      entries: Metadata by key: numbers, texts, lists of texts and numpy arrays.
      tensors: By llama.cpp's name; values are read and dequantised when they are asked for.
      types: Number of tensors by the name of their stored type.
    """

    path: Path
    entries: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    types: Mapping[str, int]


def read_gguf(path: Path) -> GgufFile:
    """Reads metadata and the positions of tensors; of a model in parts, `path` is the first file.

    Raises:
      InputError: a file is missing or damaged, or holds a tensor of a type that cannot be read.
    """
    entries, tensors, types = _Reader(path).contents()
    for part in _other_parts(path, entries.get("split.count", 1)):
        _, more, more_types = _Reader(part).contents()
        if twice := sorted(set(tensors) & set(more)):
            raise InputError(f"{part}: holds {twice[0]}, as another part does; fetch the parts again")
        tensors |= more
        types = {name: types.get(name, 0) + more_types.get(name, 0) for name in types | more_types}
    expected = entries.get("split.tensors.count", len(tensors))
    if expected != len(tensors):
        raise InputError(f"{path}: its parts hold {len(tensors)} tensors, not {expected} as it says; fetch them again")
    return GgufFile(path, entries, tensors, types)


def _other_parts(path: Path, count: Any) -> list[Path]:
    if count in (0, 1):
        return []
    name = _PART.fullmatch(path.name)
    if not name or int(name[2]) != count:
        raise InputError(
            f"{path}: is part of a model in {count} files; give the one named ...-00001-of-{count:05d}.gguf"
        )
    return [path.with_name(f"{name[1]}-{number:05d}-of-{name[2]}.gguf") for number in range(2, count + 1)]


class _Reader:
    """Reads one file's header; every read is checked against the end of the file."""

    def __init__(self, path: Path):
        self._path, self._at = path, 0
        try:
            self._data = np.memmap(path, np.uint8, mode="r")
        except FileNotFoundError:
            raise InputError(f"{path}: no such file; check the name, and that all parts of a model are there") from None
        except (ValueError, OSError) as error:
            raise InputError(f"{path}: cannot be read as a GGUF file ({error})") from None

    def contents(self) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, int]]:
        """Metadata, tensors, and how many tensors there are of each type."""
        if bytes(self._take(4)) != b"GGUF":
            raise InputError(f"{self._path}: is no GGUF file; expected one that begins with the letters GGUF")
        version = self._number("<u4")
        if version not in (2, 3):
            big = ": it is big-endian" if version & 0xFFFF == 0 else ""
            raise InputError(f"{self._path}: is GGUF of version {version}; versions 2 and 3 can be read{big}")
        tensor_count, entry_count = self._number("<u8"), self._number("<u8")
        entries: dict[str, Any] = {}
        for _ in range(entry_count):
            key = self._name()
            if key in entries:
                raise self._damaged(f"two entries {key!r}")
            entries[key] = self._value(self._number("<u4"), key)
        alignment = entries.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise self._damaged(f"general.alignment {alignment!r}")
        infos = [self._tensor_info() for _ in range(tensor_count)]
        start = -(-self._at // alignment) * alignment
        tensors: dict[str, Tensor] = {}
        types: dict[str, int] = {}
        for name, shape, kind, offset in infos:
            if name in tensors:
                raise self._damaged(f"two tensors {name!r}")
            tensors[name] = self._tensor(name, shape, kind, start + offset)
            types[kind] = types.get(kind, 0) + 1
        return entries, tensors, types

    def _damaged(self, what: str) -> InputError:
        return InputError(f"{self._path}: is damaged ({what}); fetch it again")

    def _take(self, size: int) -> np.ndarray:
        if size > len(self._data) - self._at:
            raise self._damaged(f"it ends at byte {len(self._data):,}, within its header")
        self._at += size
        return self._data[self._at - size : self._at]

    def _number(self, kind: str) -> Any:
        return self._take(np.dtype(kind).itemsize).view(kind)[0].item()

    def _text(self) -> str:
        size = self._number("<u8")
        try:
            return bytes(self._take(size)).decode()
        except UnicodeDecodeError:
            raise self._damaged(f"no UTF-8 before byte {self._at:,}") from None

    def _name(self) -> str:
        """The name of an entry or a tensor, of limited length, so that messages can quote it."""
        name = self._text()
        if len(name) > _LONGEST_NAME:
            raise self._damaged(f"a name of {len(name):,} characters before byte {self._at:,}")
        return name

    def _value(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self._text()
        if kind in _SCALARS:
            return self._number(_SCALARS[kind])
        if kind != _ARRAY:
            raise self._damaged(f"{key} is of type {kind}")
        kind, count = self._number("<u4"), self._number("<u8")
        if kind == _STRING:
            return [self._text() for _ in range(count)]
        if kind not in _SCALARS:
            raise self._damaged(f"{key} is a list of type {kind}")
        return self._take(count * np.dtype(_SCALARS[kind]).itemsize).view(_SCALARS[kind])

    def _tensor_info(self) -> tuple[str, tuple[int, ...], str, int]:
        import gguf

        name, dimensions = self._name(), self._number("<u4")
        if dimensions > 4:
            raise self._damaged(f"{name} has {dimensions} dimensions")
        shape = tuple(self._number("<u8") for _ in range(dimensions))[::-1]
        number, offset = self._number("<u4"), self._number("<u8")
        try:
            kind = gguf.GGMLQuantizationType(number).name
        except ValueError:
            raise InputError(
                f"{self._path}: {name} is of type {number}, which the installed gguf package does not know; upgrade it"
            ) from None
        return name, shape, kind, offset

    def _tensor(self, name: str, shape: tuple[int, ...], kind: str, start: int) -> Tensor:
        import gguf

        type_ = gguf.GGMLQuantizationType[kind]
        block, block_bytes = gguf.GGML_QUANT_SIZES[type_]
        if not _can_read(kind):
            raise InputError(f"{self._path}: {name} is of type {kind}, which cannot be read; give another quantisation")
        if not shape or shape[-1] % block:
            raise self._damaged(f"{name} has the shape {list(shape)}, no rows of whole {kind} blocks")
        size = math.prod(shape) // block * block_bytes
        if start + size > len(self._data):
            raise self._damaged(f"it ends at byte {len(self._data):,}, before {name} does")
        data = self._data[start : start + size]
        return Tensor(name, shape, functools.partial(_values, data, shape, kind))


@functools.cache
def _can_read(kind: str) -> bool:
    import gguf

    type_ = gguf.GGMLQuantizationType[kind]
    try:
        gguf.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[type_][1]), np.uint8), type_)
    except NotImplementedError:
        return False
    return kind[0] != "I" or kind.startswith("IQ")  # I8, I16 and so on are integers, not weights


def _values(data: np.ndarray, shape: tuple[int, ...], kind: str) -> np.ndarray:
    import gguf

    if kind in ("F32", "F16", "F64"):
        return data.view(f"<f{int(kind[1:]) // 8}").reshape(shape)
    rows = data.reshape(math.prod(shape[:-1]), -1)
    return gguf.dequantize(rows, gguf.GGMLQuantizationType[kind]).reshape(shape)


def write_gguf(path: Path, arch: str, entries: Iterable[tuple[str, Any]], tensors: list[Tensor], dtype: str) -> None:
    """Writes one file atomically; values are computed and written one tensor at a time.

    Args:
      entries: Metadata in the order of the file.
      dtype: One of `DTYPES`, of the matrices. Vectors are float32, as llama.cpp requires; with `q8_0`, matrices whose
        row length is no multiple of a block are float16.

    Raises:
      InputError: the disk is full, or the dtype is unknown.
    """
    import gguf

    if dtype not in DTYPES:
        raise InputError(f"dtype={dtype!r}: must be one of {', '.join(DTYPES)}")
    writer = gguf.GGUFWriter(None, arch)
    writer.add_custom_alignment(gguf.GGUF_DEFAULT_ALIGNMENT)
    # By the type of the value. In lists integers are signed, as llama.cpp expects of the tokens' types.
    add: dict[type, Callable[[str, Any], None]] = {
        bool: writer.add_bool,
        str: writer.add_string,
        float: writer.add_float32,
        int: writer.add_uint32,
        list: writer.add_array,
    }
    for key, value in entries:
        add[type(value)](key, value)
    kinds = [_storage_type(tensor, dtype) for tensor in tensors]
    for tensor, kind in zip(tensors, kinds, strict=True):
        type_ = gguf.GGMLQuantizationType[kind]
        block, block_bytes = gguf.GGML_QUANT_SIZES[type_]
        size = math.prod(tensor.shape) // block * block_bytes
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), size, type_)
    with writing(path) as file:
        writer.path, writer.fout, writer.state = path, cast(Any, [file]), gguf.gguf_writer.WriterState.EMPTY
        writer.write_header_to_file(path)  # goes to the open temporary file
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.write_padding(file, file.tell())
        for tensor, kind in zip(tensors, kinds, strict=True):
            # Not with `write_tensor_data`, whose errors do not report a full disk.
            writer.write_padding(file, file.write(_encoded(tensor, kind)))


def _storage_type(tensor: Tensor, dtype: str) -> str:
    if len(tensor.shape) == 1:
        return "F32"
    if dtype == "q8_0":
        return "F16" if tensor.shape[-1] % _Q8_BLOCK else "Q8_0"
    return {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[dtype]


def _encoded(tensor: Tensor, kind: str) -> Any:
    import gguf

    if kind != "Q8_0":
        return tensor.file_bytes(DTYPES_BY_CODE[kind])
    values = np.ascontiguousarray(tensor.values(), np.float32)
    return gguf.quantize(values, gguf.GGMLQuantizationType.Q8_0).data

"""Reads token ids that other tools prepared: Megatron, datatrove, Levanter, MDS and ArrayRecord files.

What an index says of sizes is compared with the files before anything of that size is read or allocated.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
import functools
from pathlib import Path
import re
import struct
from typing import Any

import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import content_hash, file_hash, path_inside, read_json
from diversity_jax.mixtures.exchange.examples import example_features
from diversity_jax.mixtures.exchange.fixed import LEDGER, MEGATRON_DTYPES, MEGATRON_HEADER
from diversity_jax.prepare.rows import release_pages

TOKEN_NAMES = ("input_ids", "tokens", "targets", "text", "inputs")
"""Names of columns of ids, in the order in which they are looked for."""
MASK_NAMES = ("loss_mask", "loss_weights", "targets_loss_weights", "assistant_masks", "completion_mask", "labels")
_SPLIT = re.compile(r"(?<![a-z])(train|valid|validation|val|dev|test|eval)(?![a-z])", re.IGNORECASE)
_MOST_PACKED = 10_000  # rows for each byte of compressed offsets: more than any cache has, too few to exhaust memory
_READ_AHEAD = 1 << 20  # sequences whose lengths are summed at once


@dataclass(frozen=True, kw_only=True)
class FlatFile:
    """A file of the ids of all sequences end to end, little-endian, and nothing else."""

    path: Path
    dtype: str


@dataclass(frozen=True, kw_only=True)
class TokenSet:
    """Sequences of ids: documents, or packed rows.

    Attributes:
      path: as the user named it; kind: the format, for messages.
      files: all that the ids come from.
      lengths: of every sequence, in ids.
      read: returns the ids of the sequences first to end - 1, end to end.
      flat: the file that can be mapped into memory as it is; None: there is none.
    """

    path: str
    kind: str
    files: tuple[Path, ...]
    lengths: np.ndarray
    read: Callable[[int, int], np.ndarray]
    flat: FlatFile | None = None

    def fingerprint(self) -> str:
        """SHA-256 over the content of all files."""
        return content_hash([self.kind, [file_hash(path) for path in self.files]])

    def blocks(self, tokens: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All ids with the lengths of their sequences, about `tokens` ids at a time."""
        first = 0
        while first < len(self.lengths):
            totals = np.cumsum(self.lengths[first : first + _READ_AHEAD], dtype=np.int64)
            end = first + max(1, int(np.searchsorted(totals, tokens)))
            ids = self.read(first, end)
            yield ids, self.lengths[first:end]
            release_pages(ids)
            first = end


def open_token_set(source: str, column: str | None = None) -> TokenSet:
    """Opens a set of token ids.

    Args:
      source: a Megatron prefix, `.bin` or `.idx`; a datatrove `.ds`; a folder of MDS (`index.json`) or of Levanter's
        cache (`shard_ledger.json`); an ArrayRecord file, or a folder of them.
      column: that holds the ids; None: the first of `TOKEN_NAMES` that there is.

    Raises:
      InputError: nothing of that kind is there, or its files contradict each other.
    """
    path = Path(source)
    prefix = path.with_suffix("") if path.suffix in (".bin", ".idx") else path
    try:
        if Path(f"{prefix}.idx").exists() or path.suffix in (".bin", ".idx"):
            return _megatron(source, Path(f"{prefix}.idx"), Path(f"{prefix}.bin"))
        if path.suffix == ".ds":
            return _datatrove(source, path)
        if (path / LEDGER).exists():
            return _levanter(source, path, column)
        if (path / "index.json").exists():
            return _mds(source, path, column)
        files = _array_record_files(path)
        if files and ".array" in files[0].name and files[0].exists():
            return _array_record(source, files, column)
    except InputError:  # a ValueError too
        raise
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise InputError(f"tokens:{source}: is damaged ({str(error)[:100]!r}); fetch or write it again") from None
    except OSError as error:
        raise InputError(f"tokens:{source}: cannot be read ({error.strerror or error}); check the path") from None
    raise InputError(
        f"tokens:{source}: holds no tokens in a known format; expected a Megatron .bin with its .idx, a datatrove .ds, "
        ".arrayrecord files, or the folder of an MDS data set, of a Levanter cache (with its split, as cache/train) or "
        "of a prepared component"
    )


def _array_record_files(path: Path) -> list[Path]:
    """The ArrayRecord files that a path names: one, or those of a folder.

    Raises:
      InputError: a folder has files of several splits, of which some are not for training.
    """
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.glob("*.array*record*") if not file.name.startswith("."))
    splits = {names[-1].lower() for file in files if (names := _SPLIT.findall(file.name))}
    if len(splits) > 1:
        raise InputError(f"{path}: has files of {', '.join(sorted(splits))}; give each a folder, and name one of them")
    return files


def _damaged(path: Path, problem: str) -> InputError:
    return InputError(f"{path}: {problem}; it is damaged or cut short: fetch or write it again")


def _size(path: Path) -> int:
    if not path.is_file():
        raise InputError(f"{path}: no such file; fetch the set whole, or check the path")
    return path.stat().st_size


def _mapped(path: Path, dtype: Any, count: int, offset: int = 0) -> np.ndarray:
    """Numbers of a file, mapped into memory; the file must be long enough."""
    if not count:
        return np.empty(0, dtype)
    return np.asarray(np.memmap(path, dtype, "r", offset, (count,)))


def _megatron(source: str, index: Path, data: Path) -> TokenSet:
    """Opens `megatron.core.datasets.indexed_dataset`; a document of several of its sequences is one sequence here."""
    size, data_bytes = _size(index), _size(data)
    with open(index, "rb") as file:
        head = file.read(34)
    if len(head) < 34 or not head.startswith(MEGATRON_HEADER):
        raise InputError(f"{index}: is not an index of Megatron's; give the path of a .bin and .idx")
    version, code, sequences, bounds = struct.unpack("<QBQQ", head[9:])
    if version != 1 or code not in MEGATRON_DTYPES:
        raise InputError(f"{index}: has version {version} and type {code}, which are not supported")
    if 34 + 12 * sequences + 8 * bounds > size or bounds < 2 or not sequences:
        raise _damaged(index, f"claims {sequences:,} sequences in {size:,} bytes")
    dtype = np.dtype(MEGATRON_DTYPES[code]).newbyteorder("<")
    lengths = _mapped(index, "<i4", sequences, 34)
    pointers = _mapped(index, "<i8", sequences, 34 + 4 * sequences)
    documents = _mapped(index, "<i8", bounds, 34 + 12 * sequences)
    starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    if lengths.min() < 0 or documents[0] != 0 or documents[-1] != sequences or (np.diff(documents) < 0).any():
        raise _damaged(index, "has lengths or documents that contradict each other")
    if not np.array_equal(pointers, starts[:-1] * dtype.itemsize) or starts[-1] * dtype.itemsize > data_bytes:
        raise _damaged(index, f"does not describe the {data_bytes:,} bytes of {data.name}")
    ends = starts[documents]
    tokens = _mapped(data, dtype, int(starts[-1]))
    return TokenSet(
        path=source,
        kind="Megatron",
        files=(index, data),
        lengths=np.diff(ends),
        read=lambda first, end: tokens[ends[first] : ends[end]],
        flat=FlatFile(path=data, dtype=dtype.name) if dtype.itemsize in (2, 4) and dtype.name != "int16" else None,
    )


def _datatrove(source: str, path: Path) -> TokenSet:
    """Opens `datatrove.pipeline.tokens`: ids of 2 or 4 bytes, and an index of where each document ends."""
    index = path.with_name(f"{path.name}.index")
    size, index_bytes = _size(path), _size(index)
    if path.with_name(f"{path.name}.loss").exists():
        raise InputError(f"{path}: has loss masks (.loss), which prepared tokens cannot keep; give the conversations")
    ends = _mapped(index, "<u8", index_bytes // 8)
    if index_bytes % 8 or not len(ends) or not ends[-1] or size % int(ends[-1]) or size // int(ends[-1]) not in (2, 4):
        raise _damaged(index, f"does not describe the {size:,} bytes of {path.name}")
    bounds, width = np.concatenate([[0], ends.astype(np.int64)]), size // int(ends[-1])
    if (np.diff(bounds) < 0).any():
        raise _damaged(index, "has documents that end before they begin")
    metadata = path.with_name(f"{path.name}.metadata")  # its first line: the tokenizer, `|`, bytes of an id
    if metadata.exists() and re.match(rf".*\|(?!{width}\n)\d\n", metadata.read_text()):
        raise _damaged(path, f"has {width} bytes an id by its size, but not by {metadata.name}")
    dtype, tokens = f"uint{8 * width}", _mapped(path, f"<u{width}", int(ends[-1]))
    return TokenSet(
        path=source,
        kind="datatrove",
        files=(path, index),
        lengths=np.diff(bounds),
        read=lambda first, end: tokens[bounds[first] : bounds[end]],
        flat=FlatFile(path=path, dtype=dtype),
    )


def _column(names: Sequence[str], wanted: str | None, where: str) -> str:
    """The name of the column of ids.

    Raises:
      InputError: there is none, or there are masks, segments or prompts, which would be lost.
    """
    column = next((name for name in ([wanted] if wanted else TOKEN_NAMES) if name in names), None)
    listed = ", ".join(map(str, names))[:200]
    if column is None:
        raise InputError(f"{where}: has no column {wanted or 'of tokens'}; set corpus.text_field to one of: {listed}")
    if masks := [name for name in MASK_NAMES if name in names]:
        raise InputError(f"{where}: has {masks[0]}, which prepared tokens cannot keep; give the conversations as text")
    lost = [name for name in names if "segment" in name or (name, column) == ("inputs", "targets")]
    if wanted is None and lost:
        raise InputError(
            f"{where}: has {lost[0]}, which would be lost; set corpus.text_field={column} if that is meant"
        )
    return column


def _joined(
    source: str,
    kind: str,
    files: Sequence[Path],
    lengths: Sequence[np.ndarray],
    readers: Sequence[Callable[[int, int], list[np.ndarray]]],
) -> TokenSet:
    """A set of several parts, each with its sequences' lengths and a function that reads some of them by number."""
    counts = np.cumsum([0, *map(len, lengths)]).tolist()

    def read(first: int, end: int) -> np.ndarray:
        arrays = [np.empty(0, np.int32)]
        for number, read_part in enumerate(readers):
            if first < counts[number + 1] and counts[number] < end:
                arrays += read_part(max(0, first - counts[number]), min(counts[number + 1], end) - counts[number])
        return np.concatenate(arrays)

    all_lengths = np.concatenate([np.empty(0, np.int64), *lengths])
    return TokenSet(path=source, kind=kind, files=tuple(files), lengths=all_lengths, read=read)


def _levanter(source: str, folder: Path, column: str | None) -> TokenSet:
    """Opens `levanter.store.cache`, in one part or in many."""
    record = read_json(folder / LEDGER)
    if not record["is_finished"]:
        raise InputError(f"{folder}: is an unfinished cache; let Levanter finish it")
    name = _column(list(record["field_counts"]), column, str(folder))
    names = record["finished_shards"] if record.get("layout") == "sharded" else ["."]
    readers, lengths, files = [], list[np.ndarray](), [folder / LEDGER]
    for part in names:
        inside = folder if part == "." else Path(path_inside(folder, part, f"{folder / LEDGER}: finished_shards"))
        data, offsets = (_zarr(inside / name / array) for array in ("data", "offsets"))
        stored = sorted(path for path in (inside / name).rglob("*") if path.is_file())
        rows = int(_numbers(offsets, 0, 1, inside)[0])
        if not 0 <= rows < offsets.shape[0] or rows > _MOST_PACKED * sum(path.stat().st_size for path in stored):
            raise _damaged(inside, f"claims {rows:,} rows")
        bounds = np.append(0, _numbers(offsets, 1, rows + 1, inside))
        lengths.append(np.diff(bounds))
        if (lengths[-1] < 0).any() or bounds[-1] > data.shape[0]:
            raise _damaged(inside, "has rows that end before they begin")
        readers.append(functools.partial(_zarr_rows, data, bounds, inside))
        files += stored
    tokens = _joined(source, "Levanter", files, lengths, readers)
    if len(tokens.lengths) != record["total_num_rows"]:
        raise _damaged(
            folder / LEDGER, f"claims {record['total_num_rows']} rows, its parts have {len(tokens.lengths):,}"
        )
    return tokens


def _zarr_rows(data: Any, bounds: np.ndarray, folder: Path, first: int, end: int) -> list[np.ndarray]:
    return [_numbers(data, int(bounds[first]), int(bounds[end]), folder)]


def _numbers(array: Any, first: int, end: int, folder: Path) -> np.ndarray:
    try:
        return array[first:end].read().result()
    except ValueError as error:
        raise _damaged(folder, f"cannot be read ({str(error)[:120]!r})") from None


def _zarr(path: Path) -> Any:
    """Opens an array of integers in one dimension."""
    import tensorstore as ts

    if not path.is_dir():
        raise InputError(f"{path}: no such array; fetch the cache whole")
    array = ts.open({"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}).result()
    if len(array.shape) != 1 or array.dtype.numpy_dtype.kind not in "iu":
        raise _damaged(path, f"is an array of {array.dtype.name} in {len(array.shape)} dimensions")
    return array


@dataclass(frozen=True, kw_only=True)
class _Samples:
    """Samples of a mapped file, uint8; sample i has `widths[i]` bytes of ids from byte `begins[i]` on."""

    data: np.ndarray
    dtype: np.dtype
    begins: np.ndarray
    widths: np.ndarray

    def read(self, first: int, end: int) -> list[np.ndarray]:
        pairs = zip(self.begins[first:end].tolist(), self.widths[first:end].tolist(), strict=True)
        return [self.data[begin : begin + width].view(self.dtype) for begin, width in pairs]


def _mds(source: str, folder: Path, column: str | None) -> TokenSet:
    """Opens `streaming.base.format.mds` that is not compressed."""
    index = folder / "index.json"
    parts, files = list[_Samples](), [index]
    shards = read_json(index).get("shards", [])
    if not shards or any(each["format"] != "mds" or each["compression"] or not each["raw_data"] for each in shards):
        raise InputError(f"{index}: has no shards of MDS, or shards that are compressed; decompress them first")
    for shard in shards:
        path = Path(path_inside(folder, shard["raw_data"]["basename"], f"{index}: shards"))
        parts.append(_mds_shard(path, shard, _column(shard["column_names"], column, str(index))))
        files.append(path)
    lengths = [part.widths // part.dtype.itemsize for part in parts]
    return _joined(source, "MDS", files, lengths, [part.read for part in parts])


def _mds_shard(path: Path, shard: Mapping[str, Any], name: str) -> _Samples:
    """Opens one file: the number of samples, where each ends, a copy of the index, the samples."""
    size, samples, number = _size(path), shard["samples"], shard["column_names"].index(name)
    kind, _, rest = shard["column_encodings"][number].partition(":")
    dtype = np.dtype("int64" if kind == "bytes" else rest.partition(":")[0] or "V").newbyteorder("<")
    fixed = shard["column_sizes"]
    if dtype.kind not in "iu" or (kind, fixed[number]) not in (("ndarray", fixed[number] or 0), ("bytes", None)):
        raise InputError(
            f"{path}: column {name!r} is {kind}:{rest[:40]}; arrays of fixed size are read, and int64 bytes"
        )
    if type(samples) is not int or samples < 1 or 4 * (samples + 2) > size:
        raise _damaged(path, f"is said to hold {samples} samples in {size:,} bytes")
    data = _mapped(path, np.uint8, size)
    bounds = data[4 : 4 * (samples + 2)].view("<u4").astype(np.int64)
    varying = [i for i, width in enumerate(fixed) if not width]
    if (np.diff(bounds) < 4 * len(varying)).any() or bounds[0] < 4 * (samples + 2) or bounds[-1] > size:
        raise _damaged(path, "has samples that lie outside it")
    before, own = np.zeros(samples, np.int64), np.full(samples, fixed[number] or 0, np.int64)
    for index, column in enumerate(varying):  # a sample begins with the sizes of columns that vary
        at = bounds[:-1, None] + 4 * index + np.arange(4)
        width = np.ascontiguousarray(data[at]).view("<u4")[:, 0].astype(np.int64)
        if column == number:
            own = width
        elif column < number:
            before += width
    before += 4 * len(varying) + sum(int(width or 0) for width in fixed[:number])
    begins = bounds[:-1] + before
    if (begins + own > bounds[1:]).any() or min(before.min(), own.min()) < 0 or (own % dtype.itemsize).any():
        raise _damaged(path, "has samples that are longer than their bytes")
    return _Samples(data=data, dtype=dtype, begins=begins, widths=own)


class _ArrayRecords:
    """The examples of one ArrayRecord file."""

    def __init__(self, path: Path, column: str | None):
        from array_record.python.array_record_module import ArrayRecordReader

        self._path, self._column, self._names = path, column, set[str]()
        _size(path)
        try:
            self._reader = ArrayRecordReader(str(path))
            self.count = self._reader.num_records()
        except Exception as error:  # its errors share no parent below Exception
            raise _damaged(path, f"is no ArrayRecord file ({str(error)[:80]!r})") from None
        if not 0 < self.count <= path.stat().st_size:
            raise _damaged(path, f"claims {self.count:,} records in {path.stat().st_size:,} bytes")

    def read(self, first: int, end: int) -> list[np.ndarray]:
        try:
            records = self._reader.read(first, end)
        except Exception as error:
            raise _damaged(self._path, f"cannot be read from record {first:,} on ({str(error)[:80]!r})") from None
        return [self._ids(record, first + number) for number, record in enumerate(records)]

    def _ids(self, record: bytes, number: int) -> np.ndarray:
        where = f"{self._path}: record {number}"
        try:
            features = example_features(record)
        except (IndexError, ValueError) as error:
            raise InputError(f"{where}: is no tf.train.Example ({error}); write it again") from None
        if self._column is None or features.keys() != self._names:
            self._column, self._names = _column(list(features), self._column, where), set(features)
        return features[self._column]


def _array_record(source: str, files: Sequence[Path], column: str | None) -> TokenSet:
    """Opens ArrayRecord files of `tf.train.Example`, as Grain and MaxText read them."""
    parts, lengths = [_ArrayRecords(path, column) for path in files], []
    for part in parts:
        blocks = (part.read(first, min(first + 1024, part.count)) for first in range(0, part.count, 1024))
        lengths.append(np.fromiter((len(ids) for block in blocks for ids in block), np.int64, part.count))
    return _joined(source, "ArrayRecord", files, lengths, [part.read for part in parts])

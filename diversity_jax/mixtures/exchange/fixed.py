"""Export formats in which every row has the same size: Megatron's indexed datasets, MosaicML's MDS, litdata, Levanter.

Levanter's cache is one zarr array of all tokens and one of where rows end, in parts that a JSON file lists.
"""

from collections.abc import Iterator, Sequence
import json
import os
from pathlib import Path
import shutil
import struct
from typing import IO, Any, ClassVar

import numpy as np

from diversity_jax.core.files import disk_errors_named, make_folder, write_json, writing
from diversity_jax.mixtures.exchange.format import (
    ARRAYS,
    Block,
    Column,
    ExportShard,
    FileRange,
    Format,
    Layout,
    Stream,
    WrittenShard,
    as_bytes,
)

MEGATRON_HEADER = b"MMIDIDX\x00\x00"
MEGATRON_DTYPES = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 8: "uint16"}
"""Integer types by their codes in `megatron.core.datasets.indexed_dataset.DType`."""
_INDEX_ROWS = 1 << 20  # of an index, written at once


def write_megatron_index(path: Path, dtype: str, rows: int, row_tokens: int) -> None:
    """Writes the `.idx` of a `.bin` that holds documents of one length end to end."""
    code = next(code for code, name in MEGATRON_DTYPES.items() if name == dtype)
    row_bytes = row_tokens * np.dtype(dtype).itemsize
    with writing(path) as file:
        file.write(MEGATRON_HEADER + struct.pack("<QBQQ", 1, code, rows, rows + 1))
        # Lengths in tokens, offsets in bytes, and the first sequence of each document: row i has number i.
        for number_type, count, step, start in (
            ("<i4", rows, 0, row_tokens),
            ("<i8", rows, row_bytes, 0),
            ("<i8", rows + 1, 1, 0),
        ):
            for first in range(0, count, _INDEX_ROWS):
                numbers = np.arange(first, min(first + _INDEX_ROWS, count), dtype=np.int64)
                file.write((numbers * step + start).astype(number_type).data)


class MegatronFormat(Format):
    """One `.bin` of all rows and its `.idx`, in which every row is a document; for components also their weights."""

    title = "Megatron .bin/.idx"
    names: ClassVar = {"tokens": "tokens"}

    def write(self, root: Path, shard: ExportShard, layout: Layout, blocks: Iterator[Block]) -> list[FileRange]:
        path = self._path(root, shard.stream, layout, ".bin")
        offset = at = shard.first * layout.row_bytes
        with disk_errors_named(path):
            make_folder(path.parent)
            # The file grows in place: no reader opens it without its index, which is written last.
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                for block in blocks:
                    data = as_bytes(block, layout.columns).reshape(-1).data
                    while len(data):
                        written = os.pwrite(descriptor, data, at)
                        at, data = at + written, data[written:]
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        return [FileRange(file=path.relative_to(root).as_posix(), offset=offset, bytes=at - offset)]

    def finish(self, root: Path, stream: Stream, layout: Layout, shards: Sequence[WrittenShard]) -> None:
        os.truncate(self._path(root, stream, layout, ".bin"), stream.rows * layout.row_bytes)
        path = self._path(root, stream, layout, ".idx")
        write_megatron_index(path, layout.columns[0].dtype, stream.rows, layout.row_tokens)

    def finish_blend(self, root: Path, streams: Sequence[Stream], layout: Layout) -> None:
        pairs = [[repr(stream.weight), f"{stream.folder}/{layout.split}"] for stream in streams]
        with writing(root / f"blend_{layout.split}.txt", "w") as file:  # for --data-args-path
            file.write(" ".join(word for pair in pairs for word in pair) + "\n")
        split = "valid" if layout.split == "validation" else layout.split
        write_json(root / f"blend_{layout.split}.json", {split: [word for pair in pairs for word in pair]})

    @staticmethod
    def _path(root: Path, stream: Stream, layout: Layout, ending: str) -> Path:
        return root / stream.folder / f"{layout.split}{ending}"


def write_table(file: IO[bytes], begin: int, row_bytes: int, rows: int) -> None:
    """Writes how shards of MDS and litdata begin: the number of rows, the offset of each and of the end, all uint32."""
    offsets = np.arange(rows + 1, dtype=np.int64) * row_bytes + begin
    file.write(np.uint32(rows).tobytes() + offsets.astype("<u4").tobytes())


class MosaicFormat(Format):
    """Shards of MDS, with `index.json`; each row is a sample whose columns are arrays of fixed size."""

    title = "MDS"
    names: ClassVar = {name: name for name in ARRAYS}

    def write(self, root: Path, shard: ExportShard, layout: Layout, blocks: Iterator[Block]) -> list[FileRange]:
        path = root / shard.stream.folder / f"shard.{shard.number:05d}.mds"
        columns = self._columns(layout)
        config = json.dumps(self._config(layout), sort_keys=True).encode()
        with writing(path) as file:
            write_table(file, 4 * (shard.rows + 2) + len(config), layout.row_bytes, shard.rows)
            file.write(config)
            for block in blocks:
                file.write(as_bytes(block, columns).data)
        return [FileRange.of_file(root, path)]

    def finish(self, root: Path, stream: Stream, layout: Layout, shards: Sequence[WrittenShard]) -> None:
        listed = []
        for shard, (file,) in shards:
            raw = {"basename": Path(file["file"]).name, "bytes": file["bytes"], "hashes": {"sha256": file["sha256"]}}
            listed.append({**self._config(layout), "raw_data": raw, "samples": shard.rows, "zip_data": None})
        write_json(root / stream.folder / "index.json", {"shards": listed, "version": 2})

    @staticmethod
    def _columns(layout: Layout) -> list[Column]:
        return sorted(layout.columns, key=lambda column: column.name)  # as the reader expects them in a sample

    def _config(self, layout: Layout) -> dict[str, Any]:
        columns = self._columns(layout)
        return {
            "column_encodings": [
                column.dtype if column.array == "component" else f"ndarray:{column.dtype}:{column.tokens}"
                for column in columns
            ],
            "column_names": [column.name for column in columns],
            "column_sizes": [column.row_bytes for column in columns],
            "compression": None,
            "format": "mds",
            "hashes": ["sha256"],
            "size_limit": 1 << 26,
            "version": 2,
        }


_LITDATA_NUMPY = {"uint8": 4, "uint16": 5, "int32": 2}  # of `litdata.constants._NUMPY_DTYPES_MAPPING`
_LITDATA_TORCH = {"uint16": 20, "int32": 15}  # of `litdata.constants._TORCH_DTYPES_MAPPING`


class LitDataFormat(Format):
    """Chunks of litdata, with `index.json`: tokens alone for `TokensLoader`, else dictionaries of arrays."""

    title = "litdata"
    names: ClassVar = {name: name for name in ARRAYS if name != "component"}

    def write(self, root: Path, shard: ExportShard, layout: Layout, blocks: Iterator[Block]) -> list[FileRange]:
        path, sizes = root / shard.stream.folder / f"chunk-0-{shard.number}.bin", self._sizes(layout)
        with writing(path) as file:
            write_table(file, 4 * (shard.rows + 2), layout.row_bytes + len(sizes), shard.rows)
            for block in blocks:
                data = as_bytes(block, layout.columns)
                if sizes:
                    head = np.broadcast_to(np.frombuffer(sizes, np.uint8), (len(data), len(sizes)))
                    data = np.concatenate([head, data], axis=1)
                file.write(data.data)
        return [FileRange.of_file(root, path)]

    def finish(self, root: Path, stream: Stream, layout: Layout, shards: Sequence[WrittenShard]) -> None:
        sizes, dtype = self._sizes(layout), layout.columns[0].dtype
        plain = not sizes
        chunks = [
            {
                "chunk_bytes": shard.rows * (layout.row_bytes + len(sizes)),
                "chunk_size": shard.rows,
                "dim": shard.rows * layout.row_tokens if plain else None,
                "filename": Path(file["file"]).name,
            }
            for shard, (file,) in shards
        ]
        leaf: dict[str, Any] = {"type": None, "context": None, "children_spec": []}
        names = json.dumps([column.name for column in layout.columns])
        tree = {"type": "builtins.dict", "context": names, "children_spec": [leaf] * len(layout.columns)}
        formats = [f"no_header_numpy:{_LITDATA_NUMPY[column.dtype]}" for column in layout.columns]
        config = {
            "chunk_bytes": None,
            "chunk_size": max(shard.rows for shard, _ in shards),
            "compression": None,
            "data_format": [f"no_header_tensor:{_LITDATA_TORCH[dtype]}"] if plain else formats,
            "data_spec": json.dumps([1, leaf if plain else tree]),
            "encryption": None,
            "item_loader": "TokensLoader" if plain else "PyTreeLoader",
        }
        # The reader names its cache by this; the content is a better name than a time.
        updated = "".join(file["sha256"][:8] for _, (file,) in shards[:8])
        write_json(root / stream.folder / "index.json", {"chunks": chunks, "config": config, "updated_at": updated})

    @staticmethod
    def _sizes(layout: Layout) -> bytes:
        """What every row begins with: the size of each array, uint32; nothing for rows of tokens alone."""
        sizes = [column.row_bytes for column in layout.columns] if len(layout.columns) > 1 else []
        return struct.pack(f"<{len(sizes)}I", *sizes)


LEDGER = "shard_ledger.json"
_CHUNK = 256 << 10  # numbers that are compressed together, as in Levanter's own caches
_FILE_CHUNKS = 512  # of them in a file


def _open_to_write(path: Path, dtype: str, size: int) -> Any:
    import tensorstore as ts

    inner = {"name": "blosc", "configuration": {"cname": "lz4", "clevel": 5}}
    sharding = {"chunk_shape": [_CHUNK], "codecs": [inner]}
    return ts.open(
        {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": str(path)},
            "metadata": {
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [_CHUNK * _FILE_CHUNKS]}},
                "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
            },
        },
        dtype=dtype,
        shape=[size],
        create=True,
        delete_existing=True,
    ).result()


class LevanterFormat(Format):
    """A cache in Levanter's sharded layout: `data/train` is `cache_dir/train` of its configuration."""

    title = "Levanter cache"
    names: ClassVar = {"tokens": "input_ids", "loss_mask": "loss_weights"}

    def dtype(self, array: str, vocabulary_size: int) -> str:
        return "int32" if array == "tokens" else "float32"

    def write(self, root: Path, shard: ExportShard, layout: Layout, blocks: Iterator[Block]) -> list[FileRange]:
        folder = root / shard.stream.folder / layout.split / f"part-{shard.number:05d}"
        values = {column.name: np.empty((shard.rows, column.tokens), column.dtype) for column in layout.columns}
        filled = 0
        for block in blocks:
            for column in layout.columns:
                values[column.name][filled : filled + len(block["tokens"])] = self._aligned(block, column)
            filled += len(block["tokens"])
        with disk_errors_named(folder):
            shutil.rmtree(folder, ignore_errors=True)
            make_folder(folder)
            # The number of rows, then the end of each.
            ends = np.arange(shard.rows + 1, dtype=np.int64) * layout.row_tokens
            ends[0] = shard.rows
            for name, rows in values.items():
                for part, numbers in (("data", rows.reshape(-1)), ("offsets", ends)):
                    _open_to_write(folder / name / part, numbers.dtype.name, len(numbers)).write(numbers).result()
        return [FileRange.of_file(root, path) for path in sorted(folder.rglob("*")) if path.is_file()]

    @staticmethod
    def _aligned(block: Block, column: Column) -> np.ndarray:
        """An array by Levanter's convention: a token's loss weight is at the position that predicts the token."""
        values = block[column.array]
        if column.array != "loss_mask":
            return values
        return np.concatenate([values[:, 1:], np.zeros_like(values[:, :1])], axis=1)

    def finish(self, root: Path, stream: Stream, layout: Layout, shards: Sequence[WrittenShard]) -> None:
        counts = {f"part-{shard.number:05d}": shard.rows for shard, _ in shards}
        fields = {
            part: {column.name: rows * column.tokens for column in layout.columns} for part, rows in counts.items()
        }
        write_json(
            root / stream.folder / layout.split / LEDGER,
            {
                "total_num_rows": stream.rows,
                "shard_rows": counts,
                "is_finished": True,
                "finished_shards": list(counts),
                "field_counts": {column.name: stream.rows * column.tokens for column in layout.columns},
                "field_counts_by_shard": fields,
                "layout": "sharded",
                "metadata": {"preprocessor_metadata": {}},
            },
        )

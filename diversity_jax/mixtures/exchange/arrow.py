"""Export formats of columns: Parquet files, and Arrow files for `datasets.load_from_disk`."""

from collections.abc import Iterator, Sequence
import itertools
import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from diversity_jax.core.files import content_hash, path_to_write, write_json
from diversity_jax.mixtures.exchange.format import (
    Block,
    Column,
    ExportShard,
    FileRange,
    Format,
    Layout,
    Stream,
    WrittenShard,
)

_GROUP_BLOCKS = 4  # of rows, in a row group of Parquet


def _features(layout: Layout) -> dict[str, Any]:
    """The columns as Hugging Face's `datasets` describes them."""
    features = {}
    for column in layout.columns:
        value = {"dtype": column.dtype, "_type": "Value"}
        features[column.name] = value if column.array == "component" else {"feature": value, "_type": "List"}
    return features


def _schema(layout: Layout) -> Any:
    import pyarrow as pa

    fields = []
    for column in layout.columns:
        kind = pa.type_for_alias(column.dtype) if column.array == "component" else _list_type(column)
        fields.append(pa.field(column.name, kind, nullable=False))
    return pa.schema(fields, {"huggingface": json.dumps({"info": {"features": _features(layout)}})})


def _list_type(column: Column) -> Any:
    import pyarrow as pa

    return pa.list_(pa.field("item", pa.type_for_alias(column.dtype), nullable=False))


def _record_batch(block: Block, layout: Layout, schema: Any) -> Any:
    """A block as Arrow arrays over its own memory."""
    import pyarrow as pa

    arrays = []
    for column in layout.columns:
        values = np.ascontiguousarray(block[column.array], column.dtype)
        # `pa.array` would import pandas, to check whether the values are of its types.
        flat = pa.Array.from_buffers(pa.type_for_alias(column.dtype), values.size, [None, pa.py_buffer(values)])
        if column.array != "component":
            offsets = pa.py_buffer(np.arange(len(values) + 1, dtype=np.int32) * column.tokens)
            flat = pa.ListArray.from_buffers(_list_type(column), len(values), [None, offsets], children=[flat])
        arrays.append(flat)
    return pa.record_batch(arrays, schema=schema)


class _ColumnsFormat(Format):
    names: ClassVar = {
        "tokens": "input_ids",
        "loss_mask": "loss_mask",
        "segment_ids": "segment_ids",
        "positions": "position_ids",
        "component": "component",
    }


class ParquetFormat(_ColumnsFormat):
    """Parquet files with a checksum for every page, not compressed: ids compress little, and slowly."""

    title = "Parquet"

    def write(self, root: Path, shard: ExportShard, layout: Layout, blocks: Iterator[Block]) -> list[FileRange]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = root / shard.stream.folder / f"{layout.split}-{shard.number:05d}-of-{shard.count:05d}.parquet"
        schema = _schema(layout)
        # Readers can skip pages by the least and greatest component; those of ids say nothing.
        options = {"compression": "none", "use_dictionary": False, "write_statistics": ["component"]}
        with (
            path_to_write(path) as partial,
            pq.ParquetWriter(partial, schema, write_page_checksum=True, **options) as writer,
        ):
            while group := list(itertools.islice(blocks, _GROUP_BLOCKS)):
                table = pa.Table.from_batches([_record_batch(block, layout, schema) for block in group], schema)
                writer.write_table(table, row_group_size=table.num_rows)
        return [FileRange.of_file(root, path)]


class ArrowFormat(_ColumnsFormat):
    """A folder for `datasets.load_from_disk`, which maps it into memory."""

    title = "Arrow"

    def write(self, root: Path, shard: ExportShard, layout: Layout, blocks: Iterator[Block]) -> list[FileRange]:
        import pyarrow as pa

        path = root / shard.stream.folder / f"data-{shard.number:05d}-of-{shard.count:05d}.arrow"
        schema = _schema(layout)
        with (
            path_to_write(path) as partial,
            pa.OSFile(str(partial), "wb") as file,
            pa.ipc.new_stream(file, schema) as out,
        ):
            for block in blocks:
                out.write_batch(_record_batch(block, layout, schema))
        return [FileRange.of_file(root, path)]

    def finish(self, root: Path, stream: Stream, layout: Layout, shards: Sequence[WrittenShard]) -> None:
        folder, files = root / stream.folder, [file for _, (file,) in shards]
        write_json(
            folder / "dataset_info.json",
            {"citation": "", "description": "", "features": _features(layout), "homepage": "", "license": ""},
        )
        write_json(
            folder / "state.json",
            {
                "_data_files": [{"filename": Path(file["file"]).name} for file in files],
                "_fingerprint": content_hash([file["sha256"] for file in files])[:16],
                "_format_columns": None,
                "_format_kwargs": {},
                "_format_type": None,
                "_output_all_columns": False,
                "_split": layout.split,
            },
        )

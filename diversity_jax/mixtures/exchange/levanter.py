"""Levanter's cache: one zarr array of all tokens and one of where rows end, in parts that a ledger lists."""

from collections.abc import Iterator, Sequence
from pathlib import Path
import shutil
from typing import Any, ClassVar

import numpy as np

from diversity_jax.core.files import full_disk_named, make_folder, write_json
from diversity_jax.mixtures.exchange.format import (
    Block,
    Column,
    Format,
    Layout,
    Piece,
    Shard,
    Stream,
    Written,
    whole_file,
)

LEDGER = "shard_ledger.json"
_CHUNK = 256 << 10  # numbers that are compressed together, as Levanter's own caches have it
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


class Levanter(Format):
    """A cache in Levanter's sharded layout: `data/train` is what its configuration calls `cache_dir/train`."""

    title = "Levanter cache"
    names: ClassVar = {"tokens": "input_ids", "loss_mask": "loss_weights"}
    readers = "Levanter, Marin"

    def dtype(self, array: str, vocabulary_size: int) -> str:
        return "int32" if array == "tokens" else "float32"

    def write(self, root: Path, shard: Shard, layout: Layout, blocks: Iterator[Block]) -> list[Piece]:
        folder = root / shard.stream.folder / layout.split / f"part-{shard.number:05d}"
        values = {column.name: np.empty((shard.rows, column.tokens), column.dtype) for column in layout.columns}
        filled = 0
        for block in blocks:
            for column in layout.columns:
                values[column.name][filled : filled + len(block["tokens"])] = self._aligned(block, column)
            filled += len(block["tokens"])
        with full_disk_named(folder):
            shutil.rmtree(folder, ignore_errors=True)
            make_folder(folder)
            # The first number is how many rows there are; after it, where each ends.
            ends = np.arange(shard.rows + 1, dtype=np.int64) * layout.row_tokens
            ends[0] = shard.rows
            for name, rows in values.items():
                for part, numbers in (("data", rows.reshape(-1)), ("offsets", ends)):
                    _open_to_write(folder / name / part, numbers.dtype.name, len(numbers)).write(numbers).result()
        return [whole_file(root, path) for path in sorted(folder.rglob("*")) if path.is_file()]

    @staticmethod
    def _aligned(block: Block, column: Column) -> np.ndarray:
        """An array as Levanter counts it: the weight of a token's loss stands at the token that predicts it."""
        values = block[column.array]
        if column.array != "loss_mask":
            return values
        return np.concatenate([values[:, 1:], np.zeros_like(values[:, :1])], axis=1)

    def finish(self, root: Path, stream: Stream, layout: Layout, shards: Sequence[Written]) -> None:
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

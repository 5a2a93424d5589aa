"""Writes shards of permuted rows from finished chunks: the second of the two passes over the tokens.

Shard s of S holds the rows with keys in [s / S, (s + 1) / S) of their range: the shard of a row depends on its key
alone, and every shard is sorted independently.
"""

from collections.abc import Iterator, Sequence
import dataclasses
from dataclasses import dataclass
import functools
import hashlib

import numpy as np

from diversity_jax.core.files import content_hash, file_hash, join_path, read_json, write_json, writing
from diversity_jax.prepare.chunks import ChunkRecord, read_array
from diversity_jax.prepare.manifest import Shard
from diversity_jax.prepare.packing import Job
from diversity_jax.prepare.rows import row_checksums

_PLAN = "plan.json"
_LEAST_SHARD_ROWS = 64  # keys are random: shards of fewer rows on average could come out empty
_BLOCK_BYTES = 8 << 20  # written at once


@dataclass(frozen=True, kw_only=True)
class ShardName:
    """One shard to write: number `number` of `count` of a split."""

    split: str
    number: int
    count: int

    @property
    def file(self) -> str:
        return f"{self.split}-{self.number:05d}-of-{self.count:05d}.bin"


@dataclass(frozen=True, kw_only=True)
class ChunkRows:
    """A chunk's rows of one split: their number, and the byte offsets of rows and keys in the chunk's file."""

    chunk: str
    rows: int
    row_offset: int
    key_offset: int

    def read_keys(self, job: Job) -> np.ndarray:
        """Keys of all rows, uint64 [rows], ascending."""
        return read_array(job, self.chunk, self.key_offset, self.rows, "<u8")

    def read_rows(self, job: Job, first: int, end: int) -> np.ndarray:
        """The rows from number `first` to `end`, [rows, row_tokens]."""
        offset = self.row_offset + first * job.row_tokens * np.dtype(job.dtype).itemsize
        tokens = read_array(job, self.chunk, offset, (end - first) * job.row_tokens, job.dtype)
        return tokens.reshape(-1, job.row_tokens)


def shard_count(rows: int, row_bytes: int, shard_bytes: int) -> int:
    """Number of shards of about `shard_bytes`."""
    return max(1, rows // max(_LEAST_SHARD_ROWS, shard_bytes // row_bytes))


def extent_of(keys: np.ndarray, shard: int, shards: int) -> tuple[int, int]:
    """First and end of the rows of a shard among the ascending keys of a chunk's rows."""
    first = np.searchsorted(keys, np.uint64(-(-(shard << 64) // shards))) if shard else 0
    end = np.searchsorted(keys, np.uint64(-(-(shard + 1 << 64) // shards))) if shard + 1 < shards else len(keys)
    return int(first), int(end)


def write_plan(job: Job, records: Sequence[ChunkRecord]) -> tuple[str, list[ShardName]]:
    """Writes the plan, `ChunkRows` of every chunk by split, for the processes that gather shards.

    Returns:
      The plan's hash, and the shards to write.
    """
    fields = [field.name for field in dataclasses.fields(ChunkRows)]
    names, plan = [], {}
    for split in records[0].splits:
        chunks = [{"chunk": record.name, **vars(record.splits[split])} for record in records]
        plan[split] = [{name: chunk[name] for name in fields} for chunk in chunks]
        if rows := sum(chunk["rows"] for chunk in chunks):
            count = shard_count(rows, job.row_tokens * np.dtype(job.dtype).itemsize, job.settings.shard_bytes)
            names += [ShardName(split=split, number=number, count=count) for number in range(count)]
    write_json(job.staging.path(_PLAN), plan)
    return content_hash(plan), names


@functools.lru_cache(maxsize=1)
def read_plan(staging_dir: str, plan_hash: str) -> dict[str, list[ChunkRows]]:
    """The plan, by split; cached by its hash."""
    plan = read_json(join_path(staging_dir, _PLAN))
    return {split: [ChunkRows(**chunk) for chunk in chunks] for split, chunks in plan.items()}


def gather_shard(job: Job, plan_hash: str, shard: ShardName) -> int:
    """Reads a shard's rows from every chunk and writes it; holds one shard in memory. Returns its number of tokens."""
    extents, keys = [], []
    for chunk in read_plan(job.staging_dir, plan_hash)[shard.split]:
        chunk_keys = chunk.read_keys(job)
        first, end = extent_of(chunk_keys, shard.number, shard.count)
        extents.append((chunk, first, end))
        keys.append(chunk_keys[first:end].copy())
    rows = np.empty((sum(map(len, keys)), job.row_tokens), job.dtype)
    filled = 0
    for chunk, first, end in extents:
        rows[filled : filled + end - first] = chunk.read_rows(job, first, end)
        filled += end - first
    save_shard(job, shard, np.concatenate(keys), rows)
    return rows.size


def split_chunk(
    job: Job, shards: Sequence[ShardName], chunk: ChunkRows
) -> Iterator[tuple[ShardName, tuple[bytes, bytes]]]:
    """(shard, (keys, rows)) of one chunk, for executors that shuffle rows instead of calling `gather_shard`."""
    keys = chunk.read_keys(job)
    for shard in shards:
        first, end = extent_of(keys, shard.number, shard.count)
        if first < end:
            yield shard, (keys[first:end].tobytes(), chunk.read_rows(job, first, end).tobytes())


def save_shard(job: Job, shard: ShardName, keys: np.ndarray, rows: np.ndarray) -> None:
    """Writes a shard in the order of its keys, a file of one checksum a row, and then its record."""
    order = np.argsort(keys, kind="stable")
    digest, checksums = hashlib.sha256(), np.empty(len(order), "<u4")
    block_rows = max(1, _BLOCK_BYTES // rows[0].nbytes)
    with writing(join_path(job.folder, shard.file)) as out:
        for start in range(0, len(order), block_rows):
            block = np.ascontiguousarray(rows[order[start : start + block_rows]])
            out.write(block.data)
            digest.update(block.data)
            checksums[start : start + len(block)] = row_checksums(block)
    checksums_path = join_path(job.folder, f"{shard.file}.crc32")
    with writing(checksums_path) as out:
        out.write(checksums.data)
    record = Shard(file=shard.file, rows=len(order), sha256=digest.hexdigest())
    write_json(job.staging.path(f"{shard.file}.json"), {**vars(record), "checksums_sha256": file_hash(checksums_path)})


def read_shard_record(job: Job, shard: ShardName) -> Shard:
    """A finished shard, as the manifest names it."""
    record = read_json(job.staging.path(f"{shard.file}.json"))
    return Shard(file=record["file"], rows=record["rows"], sha256=record["sha256"])

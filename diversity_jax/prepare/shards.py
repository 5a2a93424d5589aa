"""Shards of permuted rows out of finished pieces: the second of the two passes over the tokens."""

from collections.abc import Iterator, Sequence
import dataclasses
from dataclasses import dataclass
import functools
from typing import Any

import numpy as np

from diversity_jax.core.files import content_hash, file_hash, join_path, open_file, read_json, write_json
from diversity_jax.prepare.chunks import Job, PieceRecord
from diversity_jax.prepare.manifest import Shard
from diversity_jax.prepare.rows import extent_of, shard_count, write_shard

_PLAN = "plan.json"


@dataclass(frozen=True, kw_only=True)
class ShardName:
    """One shard to write: number `number` of `count` of a split."""

    split: str
    number: int
    count: int

    @property
    def file(self) -> str:
        """Name of its file."""
        return f"{self.split}-{self.number:05d}-of-{self.count:05d}.bin"


def write_plan(job: Job, records: Sequence[PieceRecord]) -> tuple[str, list[ShardName]]:
    """Writes where every piece's rows lie, for the processes that gather them; returns its hash and the shards to
    write.
    """
    names, plan = [], {}
    for split in records[0].splits:
        plan[split] = [
            [r.name, r.splits[split].rows, r.splits[split].row_offset, r.splits[split].key_offset] for r in records
        ]
        rows = sum(found[1] for found in plan[split])
        if rows:
            row_bytes = (job.settings.sequence_length + 1) * np.dtype(job.dtype).itemsize
            count = shard_count(rows, row_bytes, job.settings.shard_bytes)
            names += [ShardName(split=split, number=number, count=count) for number in range(count)]
    write_json(join_path(job.workplace, _PLAN), plan)
    return content_hash(plan), names


@functools.lru_cache(maxsize=1)
def read_plan(workplace: str, plan_hash: str) -> Any:
    """The plan, by split; its hash tells it from others that lay there before."""
    return read_json(join_path(workplace, _PLAN))


def gather_shard(job: Job, plan_hash: str, shard: ShardName) -> int:
    """Reads a shard's rows out of every piece and writes it; holds one shard in memory. Returns its tokens."""
    pieces = read_plan(job.workplace, plan_hash)[shard.split]
    found, taken = [], []
    for piece in pieces:
        keys = _read_keys(job, piece)
        first, end = extent_of(keys, shard.number, shard.count)
        found.append((first, end))
        taken.append(keys[first:end].copy())
    rows = np.empty((sum(map(len, taken)), job.settings.sequence_length + 1), job.dtype)
    at = 0
    for piece, (first, end) in zip(pieces, found, strict=True):
        if first < end:
            _read_rows(job, piece, first, rows[at : at + end - first])
            at += end - first
    save_shard(job, shard, np.concatenate(taken), rows)
    return rows.size


def split_piece(
    job: Job, shards: Sequence[ShardName], piece: Sequence[Any]
) -> Iterator[tuple[ShardName, tuple[bytes, bytes]]]:
    """(shard, (keys, rows)) of one piece, for runners that bring together by shuffling what `gather_shard` seeks
    out.
    """
    keys = _read_keys(job, piece)
    for shard in shards:
        first, end = extent_of(keys, shard.number, shard.count)
        if first < end:
            rows = np.empty((end - first, job.settings.sequence_length + 1), job.dtype)
            _read_rows(job, piece, first, rows)
            yield shard, (keys[first:end].tobytes(), rows.tobytes())


def save_shard(job: Job, shard: ShardName, keys: np.ndarray, rows: np.ndarray) -> None:
    """Writes a shard in the order of its keys, and then its record."""
    written = write_shard(job.folder, shard.file, rows, np.argsort(keys, kind="stable"))
    checksums = file_hash(join_path(job.folder, f"{shard.file}.crc32"))
    record = {**dataclasses.asdict(written), "checksums_sha256": checksums}
    write_json(join_path(job.workplace, f"{shard.file}.json"), record)


def read_shard_record(job: Job, shard: ShardName) -> Shard:
    """A finished shard, as the manifest names it."""
    record = read_json(join_path(job.workplace, f"{shard.file}.json"))
    return Shard(file=record["file"], rows=record["rows"], sha256=record["sha256"])


def _read_keys(job: Job, piece: Sequence[Any]) -> np.ndarray:
    name, rows, _, key_offset = piece
    if not rows:
        return np.empty(0, np.uint64)
    with open_file(join_path(job.workplace, f"{name}.rows")) as file:
        file.seek(key_offset)
        return np.frombuffer(file.read(8 * rows), "<u8")


def _read_rows(job: Job, piece: Sequence[Any], first: int, into: np.ndarray) -> None:
    name, _, row_offset, _ = piece
    with open_file(join_path(job.workplace, f"{name}.rows")) as file:
        file.seek(row_offset + first * into[0].nbytes)
        file.readinto(into.reshape(-1).view(np.uint8).data)

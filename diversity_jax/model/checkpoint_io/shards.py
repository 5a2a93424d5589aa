"""Checkpoints in object stores: each process writes files of its shards, and a record written last completes them.

The record lists every shard's file, position and checksum. Arrays are read onto any mesh; a process reads the shards
that its own devices need. Checkpoints on disks are Orbax's, which needs a file system that all processes share and
reaches no store but Google's, through TensorFlow. `complete_steps`, `read_info` and `load` read both kinds.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
import functools
import json
import math
import os
from pathlib import Path
from typing import Any
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from diversity_jax.core.buckets import local_copy
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import (
    exists,
    join_path,
    list_files,
    open_file,
    path_inside,
    read_json,
    read_range,
    writing,
)
from diversity_jax.core.json_fields import from_json
from diversity_jax.core.stores import StoreError, is_remote
from diversity_jax.model.sharding import path_name

RECORD = "checkpoint.json"
_FORMAT = 1
_FILE_BYTES = 128 << 20  # a file of at least this size gets no further shard
_THREADS = 8


class DamagedCheckpoint(Exception):
    """A checksum does not match, or a part of the checkpoint is missing."""


@dataclass(frozen=True, kw_only=True)
class ArrayShard:
    """A part of an array, copied to the host; `start` is the index of its first element."""

    name: str
    start: tuple[int, ...]
    values: np.ndarray


@dataclass(frozen=True, kw_only=True)
class _ShardLocation:
    """The position of a shard: `bytes` bytes at `offset` of `file`, in the record's folder."""

    name: str
    start: tuple[int, ...]
    shape: tuple[int, ...]
    file: str
    offset: int
    bytes: int
    crc32: int


@dataclass(frozen=True, kw_only=True)
class _ArrayInfo:
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, kw_only=True)
class _Contents:
    arrays: Mapping[str, _ArrayInfo]
    shards: tuple[_ShardLocation, ...]


def _bounds(index: tuple[slice, ...], shape: Sequence[int]) -> tuple[tuple[int, int], ...]:
    return tuple(bounds.indices(length)[:2] for bounds, length in zip(index, shape, strict=True))


def snapshot(parts: Mapping[str, Any]) -> list[ArrayShard]:
    """Copies of the shards that this process writes: those of which it holds the first replica.

    Args:
      parts: trees of arrays on a mesh, by name.
    """
    leaves = [(path_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(parts)]
    own = [(name, leaf, shard) for name, leaf in leaves for shard in leaf.addressable_shards if not shard.replica_id]
    for _, _, shard in own:
        shard.data.copy_to_host_async()
    return [
        ArrayShard(
            name=name,
            start=tuple(first for first, _ in _bounds(shard.index, leaf.shape)),
            values=np.array(shard.data, order="C"),  # a copy, since on a CPU the array may be donated and overwritten
        )
        for name, leaf, shard in own
    ]


def write(folder: str | os.PathLike, prefix: str, shards: Sequence[ArrayShard]) -> list[dict[str, Any]]:
    """Writes shards into files whose names begin with `prefix`; returns their entries of the record.

    Raises:
      InputError, StoreError: a file could not be written.
    """
    files: list[list[ArrayShard]] = []
    length = _FILE_BYTES
    for shard in shards:
        if length >= _FILE_BYTES:
            files.append([])
            length = 0
        files[-1].append(shard)
        length += shard.values.nbytes
    with ThreadPoolExecutor(_THREADS) as threads:
        names = [f"{prefix}.{number:04d}.bin" for number in range(len(files))]
        written = threads.map(functools.partial(_write_file, folder), names, files)
        return [entry for entries in written for entry in entries]


def _write_file(folder: str | os.PathLike, name: str, shards: Sequence[ArrayShard]) -> list[dict[str, Any]]:
    entries, offset = [], 0
    with writing(join_path(folder, name)) as file:
        for shard in shards:
            data = shard.values.reshape(-1).view(np.uint8).data
            file.write(data)
            stored = _ShardLocation(
                name=shard.name,
                start=shard.start,
                shape=shard.values.shape,
                file=name,
                offset=offset,
                bytes=len(data),
                crc32=zlib.crc32(data),
            )
            entries.append(vars(stored))
            offset += len(data)
    return entries


def record(parts: Mapping[str, Any], entries: Sequence[Mapping[str, Any]], info: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a checkpoint, to be written last.

    Args:
      parts: as `snapshot`, or their shapes.
      entries: what `write` returned in all processes.
    """
    leaves = jax.tree_util.tree_leaves_with_path(parts)
    arrays = {path_name(path): {"shape": list(leaf.shape), "dtype": leaf.dtype.name} for path, leaf in leaves}
    return {"format": _FORMAT, "info": dict(info), "arrays": arrays, "shards": list(entries)}


def read_record(folder: str | os.PathLike) -> Mapping[str, Any] | None:
    """The record in a checkpoint's folder; None where there is none, as in Orbax's.

    Raises:
      DamagedCheckpoint: it is not what `record` returns.
    """
    path = join_path(folder, RECORD)
    if not exists(path):
        return None
    try:
        value = read_json(path)
    except StoreError:
        raise
    except InputError as error:
        raise DamagedCheckpoint(str(error)) from None
    if not isinstance(value, dict) or not {"info", "arrays", "shards"} <= set(value) or value.get("format") != _FORMAT:
        raise DamagedCheckpoint(f"{RECORD} is not a record of this version")
    _contents(value)
    return value


def _contents(record: Mapping[str, Any]) -> _Contents:
    """Arrays and shards of a record, each field checked."""
    try:
        return from_json(_Contents, {name: record[name] for name in ("arrays", "shards")}, RECORD)
    except InputError as error:
        raise DamagedCheckpoint(str(error)) from None


def read(folder: str | os.PathLike, stored_record: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays of a checkpoint, placed as `wanted` says.

    Args:
      stored_record: the checkpoint's record.
      wanted: as `load`.

    Raises:
      DamagedCheckpoint: an array or shard is missing, or a checksum does not match.
      StoreError: the store failed.
    """
    contents = _contents(stored_record)
    stored: dict[str, list[_ShardLocation]] = {}
    for shard in contents.shards:
        stored.setdefault(shard.name, []).append(shard)
    leaves, tree = jax.tree_util.tree_flatten_with_path(dict(wanted))

    def read_leaf(path: Any, leaf: Any) -> Callable[[Any], np.ndarray]:
        name = path_name(path)
        info = contents.arrays.get(name)
        if info is None or info.shape != leaf.shape:
            raise DamagedCheckpoint(f"it holds {name} as {info and list(info.shape)}, not {list(leaf.shape)}")
        indices = leaf.sharding.addressable_devices_indices_map(leaf.shape).values()
        parts = _assemble(folder, {_bounds(index, leaf.shape) for index in indices}, stored.get(name, ()), info)
        return lambda index: parts[_bounds(index, leaf.shape)].astype(leaf.dtype, copy=False)

    with ThreadPoolExecutor(_THREADS) as threads:  # arrays are made in this thread, in the same order in all processes
        ready = threads.map(lambda pair: read_leaf(*pair), leaves)
        arrays = [
            jax.make_array_from_callback(leaf.shape, leaf.sharding, read_index)
            for (_, leaf), read_index in zip(leaves, ready, strict=True)
        ]
    return jax.tree_util.tree_unflatten(tree, arrays)


def _assemble(
    folder: str | os.PathLike,
    wanted: Iterable[tuple[tuple[int, int], ...]],
    stored: Sequence[_ShardLocation],
    info: _ArrayInfo,
) -> dict[tuple[tuple[int, int], ...], np.ndarray]:
    """The wanted index ranges of one array, each assembled from the shards that overlap it."""
    try:
        dtype = jnp.dtype(info.dtype)
    except TypeError:
        raise DamagedCheckpoint(f"{info.dtype[:80]!r} is no type of numbers") from None
    parts = {bounds: np.empty([end - first for first, end in bounds], dtype) for bounds in wanted}
    filled = dict.fromkeys(parts, 0)
    for shard in stored:
        if any(len(shard.start) != len(bounds) or len(shard.shape) != len(bounds) for bounds in wanted):
            raise DamagedCheckpoint(f"{shard.file}: a shard of {shard.name} is of another number of axes")
        ends = [first + length for first, length in zip(shard.start, shard.shape, strict=True)]
        values = None
        for bounds, out in parts.items():
            overlap = [(max(a, c), min(b, d)) for (a, b), c, d in zip(bounds, shard.start, ends, strict=True)]
            if any(first >= end for first, end in overlap):
                continue
            if values is None:
                values = _read_shard(folder, shard, dtype)
            source = tuple(slice(a - c, b - c) for (a, b), c in zip(overlap, shard.start, strict=True))
            target = tuple(slice(a - c, b - c) for (a, b), (c, _) in zip(overlap, bounds, strict=True))
            out[target] = values[source]
            filled[bounds] += math.prod(b - a for a, b in overlap)
    if any(filled[bounds] != out.size for bounds, out in parts.items()):
        raise DamagedCheckpoint("a shard is missing in its record")
    return parts


def _read_shard(folder: str | os.PathLike, shard: _ShardLocation, dtype: Any) -> np.ndarray:
    if min((0, *shard.shape, *shard.start, shard.offset)) < 0:
        raise DamagedCheckpoint(f"{shard.file}: a shard of {shard.name} begins or ends below 0")
    if shard.bytes != math.prod(shard.shape) * dtype.itemsize:
        raise DamagedCheckpoint(
            f"{shard.file}: a shard of {shard.name} has {shard.bytes} bytes for {list(shard.shape)}"
        )
    return np.frombuffer(_read_bytes(folder, shard), dtype).reshape(shard.shape)


def _read_bytes(folder: str | os.PathLike, shard: _ShardLocation) -> bytes:
    try:
        path = path_inside(folder, shard.file, RECORD)
    except InputError as error:
        raise DamagedCheckpoint(str(error)) from None
    try:
        data = read_range(path, shard.offset, shard.bytes)
    except InputError as error:
        if not exists(path):
            raise DamagedCheckpoint(f"{shard.file} is missing") from None
        if isinstance(error, StoreError) and "bytes from" in str(error):
            raise DamagedCheckpoint(f"{shard.file} is cut short") from None
        raise
    if zlib.crc32(data) != shard.crc32:
        raise DamagedCheckpoint(f"{shard.file}: the checksum of {shard.name} does not agree")
    return data


_ORBAX_RECORD = "_CHECKPOINT_METADATA"


def complete_steps(folder: str | os.PathLike) -> list[int]:
    """Steps with a complete checkpoint in a folder, ascending; incomplete ones have another name or no record.

    Raises:
      StoreError: the store failed.
    """
    if is_remote(folder):
        records = [path for name in (RECORD, _ORBAX_RECORD) for path in list_files(join_path(folder, "*", name))]
        names = {path.split("/")[-2] for path in records}
    else:
        # An incomplete upload that was copied to a disk has files of shards and no record.
        folders = [path for path in Path(folder).glob("*") if path.is_dir()]
        names = {path.name for path in folders if not any(path.glob("*.bin")) or (path / RECORD).exists()}
    return sorted(int(name) for name in names if name.isdigit())


def read_info(folder: str | os.PathLike) -> Mapping[str, Any] | None:
    """The JSON object saved with a checkpoint; None where it is missing or damaged.

    Raises:
      OSError, StoreError: it cannot be read.
    """
    try:
        record = read_record(folder)
        if record is not None:
            info = record["info"]
        else:
            path = join_path(folder, _ORBAX_RECORD)
            if not exists(path):
                return None
            with open(path, "rb") if isinstance(path, Path) else open_file(path) as file:
                info = json.load(file)["custom_metadata"]
    except (ValueError, KeyError, TypeError, RecursionError, DamagedCheckpoint):
        return None
    return info if isinstance(info, Mapping) and "fingerprint" in info else None


def load(folder: str | os.PathLike, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Parts of a checkpoint, on the devices and meshes that `wanted` gives.

    Args:
      wanted: trees of `jax.ShapeDtypeStruct` with a sharding, by the name of the part.

    Raises:
      DamagedCheckpoint: a checksum does not match, or a part of the checkpoint is missing.
      Exception: whatever Orbax, TensorStore and stores raise.
    """
    record = read_record(folder)
    if record is not None:
        return read(folder, record, wanted)
    from orbax.checkpoint import v1 as ocp

    # A copy, since a checkpoint of Orbax may have been copied into a store that Orbax cannot read.
    copy = local_copy(folder, lambda name: "/" not in name or name.partition("/")[0] in wanted)
    loaded = ocp.load_checkpointables(copy.absolute(), wanted)
    return {name: loaded[name] for name in wanted}

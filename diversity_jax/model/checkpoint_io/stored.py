"""Stored checkpoints, whatever wrote them, on disk or in buckets: those of Orbax and those of `shards`."""

from collections.abc import Mapping
import json
import os
from pathlib import Path
from typing import Any

from diversity_jax.core.buckets import local_copy
from diversity_jax.core.files import exists, join_path, list_files, open_file
from diversity_jax.core.stores import is_remote
from diversity_jax.model.checkpoint_io import shards

_ORBAX_RECORD = "_CHECKPOINT_METADATA"


def complete_steps(folder: str | os.PathLike) -> list[int]:
    """Steps with a complete checkpoint in a folder, ascending; one that is being written has another name or no record.

    Raises:
      StoreError: the store could not say.
    """
    if is_remote(folder):
        found = [path for name in (shards.RECORD, _ORBAX_RECORD) for path in list_files(join_path(folder, "*", name))]
        names = {path.split("/")[-2] for path in found}
    else:
        # An unfinished upload that was copied to a disk has files of shards and no record.
        folders = [path for path in Path(folder).glob("*") if path.is_dir()]
        names = {path.name for path in folders if not any(path.glob("*.bin")) or (path / shards.RECORD).exists()}
    return sorted(int(name) for name in names if name.isdigit())


def read_info(folder: str | os.PathLike) -> Mapping[str, Any] | None:
    """The JSON record saved with a checkpoint; None where it is missing or damaged.

    Raises:
      OSError, StoreError: it cannot be read.
    """
    try:
        record = shards.read_record(folder)
        if record is not None:
            info = record["info"]
        else:
            path = join_path(folder, _ORBAX_RECORD)
            if not exists(path):
                return None
            with open(path, "rb") if isinstance(path, Path) else open_file(path) as file:
                info = json.load(file)["custom_metadata"]
    except (ValueError, KeyError, TypeError, RecursionError, shards.Damaged):
        return None
    return info if isinstance(info, Mapping) and "fingerprint" in info else None


def load(folder: str | os.PathLike, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Parts of a checkpoint, on the devices and meshes that `wanted` names.

    Args:
      wanted: trees of `jax.ShapeDtypeStruct` with a sharding, by the name of the part.

    Raises:
      shards.Damaged: a checksum does not agree or a piece is missing.
      Exception: whatever Orbax, TensorStore and stores raise.
    """
    record = shards.read_record(folder)
    if record is not None:
        return shards.read(folder, record, wanted)
    from orbax.checkpoint import v1 as ocp

    # What Orbax wrote to a disk and somebody copied into a bucket: its own readers reach no such place everywhere.
    copy = local_copy(folder, lambda name: "/" not in name or name.partition("/")[0] in wanted)
    loaded = ocp.load_checkpointables(copy.absolute(), wanted)
    return {name: loaded[name] for name in wanted}

"""Copy a mixture from a bucket to this host's disk, once: all of it, or the shards that a run's first steps need.

    python -m diversity_jax.mixtures.fetch gs://BUCKET/mixture /mnt/disk/mixture
    python -m diversity_jax.mixtures.fetch gs://BUCKET/mixture /mnt/disk/mixture --steps 10000 --batch-size 512 \\
        --process 3 --processes 64

Then train with `--config.prepared=/mnt/disk/mixture`. `--process` and `--processes` are this host's number, from 0, and
the number of hosts: a host fetches only shards with rows of its own part of every batch. Every shard is compared with
its checksum. Run it again to resume after a stop, or to fetch more steps.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
import hashlib
import logging
import os
from pathlib import Path
from typing import Any

from diversity_jax.core import cli
from diversity_jax.core.artifacts import locked_folder
from diversity_jax.core.errors import InputError, without_secrets
from diversity_jax.core.files import (
    exists,
    file_bytes,
    file_hash,
    free_bytes,
    join_path,
    local_folder,
    open_file,
    path_inside,
    read_json,
    write_json,
    writing,
)
from diversity_jax.core.json_fields import read_fields
from diversity_jax.core.progress import ProgressDisplay
from diversity_jax.core.stores import StoreError
from diversity_jax.mixtures.mixture import Mixture
from diversity_jax.prepare.manifest import FETCHED, Manifest, Shard

log = logging.getLogger(__name__)

_USAGE = "usage: fetch MIXTURE FOLDER [--steps N --batch-size N [--process N --processes N]]"
_THREADS, _BLOCK_BYTES = 8, 8 << 20


def main(argv: Sequence[str]) -> None:
    """Fetches, and prints the folder to train from, last."""
    parser = cli.ArgumentParser(_USAGE)
    parser.add_argument("mixture")
    parser.add_argument("folder")
    for name, default in (("steps", None), ("batch-size", None), ("process", 0), ("processes", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args(argv)
    if (options.steps is None) != (options.batch_size is None):
        raise InputError(f"--steps and --batch-size: give both or none; {_USAGE}")
    if options.steps is not None and min(options.steps, options.batch_size) < 1:
        raise InputError(f"--steps {options.steps} --batch-size {options.batch_size}: give at least 1; {_USAGE}")
    if not 0 <= options.process < options.processes or (options.batch_size or options.processes) % options.processes:
        raise InputError(
            f"--process {options.process} --processes {options.processes}: count processes from 0; the batch is dealt "
            "evenly over them"
        )
    folder = local_folder(options.folder, "FOLDER")
    with locked_folder(folder):
        fetch(options.mixture, folder, options.steps, options.batch_size or 1, options.process, options.processes)
    print(folder)


def fetch(source: str, folder: Path, steps: int | None, batch_size: int, process: int, processes: int) -> None:
    """Copies a mixture's files, and the shards that hold this process's rows of the first `steps` batches.

    Args:
      steps: None: all shards.

    Raises:
      InputError: no mixture there, another one in `folder`, or too little space.
      StoreError: the store failed, or a shard came with another checksum; what is there stays.
    """
    mixture = Mixture.load(source)
    target = folder / "mixture.json"
    if target.exists() and read_fields(target).get("content_hash") != mixture.content_hash:
        raise InputError(f"{folder}: holds another mixture; choose another folder, or remove it")
    wanted = None
    if steps is not None:
        loader, own = mixture.loader(batch_size=batch_size, cache_gb=0), batch_size // processes
        wanted = loader.shards_of(steps, slice(process * own, (process + 1) * own))
    folders = {part.name: folder / "components" / part.name for part in mixture.taken}
    work = [
        (part.prepared, folders[part.name], shard)
        for part in mixture.taken
        for shard in _shards(part.prepared, None if wanted is None else wanted.get(part.name, set()))
    ]
    _check_space(folder, work)
    with ThreadPoolExecutor(_THREADS) as threads, ProgressDisplay("fetching shards", len(work)) as progress:
        for _ in threads.map(lambda item: _fetch_shard(*item), work):
            progress.advance()
    for part in mixture.taken:
        _finish_component(part.prepared, folders[part.name])
    source_file = join_path(mixture.folder, "mixture.json")
    value = read_json(source_file)
    for component in value["components"]:
        is_taken = component["name"] in folders
        component["manifest"] = f"components/{component['name']}/manifest.json" if is_taken else None
        component["manifest_hash"] = component["manifest_hash"] if is_taken else None
    for component in mixture.components:
        if scorecard := component.decision.get("scorecard"):
            where = f"{source_file}: decision.scorecard"
            if exists(source_scorecard := path_inside(mixture.folder, scorecard, where)):
                _copy(source_scorecard, Path(path_inside(folder, scorecard, where)))
    write_json(target, value)


def _shards(manifest: Manifest, wanted: set[str] | None) -> list[Shard]:
    """A component's shards of training rows with a file in `wanted` (None: all), and all others, for evaluation.

    Raises:
      InputError: its rows are in a linked file.
    """
    if manifest.linked:
        problem = f"component {manifest.name!r} is linked to {manifest.linked['file']}, whose rows were not copied"
        raise InputError(f"{manifest.folder}: {problem}; train where that file is")
    return [
        shard
        for name, split in manifest.splits.items()
        for shard in split.shards
        if wanted is None or name != "train" or shard.file in wanted
    ]


def _finish_component(manifest: Manifest, target: Path) -> None:
    """Copies the tokenizer, records which shards were left in the bucket, and copies the manifest last."""
    for file in manifest.vocabulary.files:
        _copy(join_path(manifest.folder, file), target / file)
    shards = [shard.file for split in manifest.splits.values() for shard in split.shards]
    left_out = [file for file in shards if not (target / file).exists()]
    write_json(target / FETCHED, {"source": without_secrets(os.fspath(manifest.folder)), "left_out": left_out})
    _copy(join_path(manifest.folder, "manifest.json"), target / "manifest.json")


def _check_space(folder: Path, work: Sequence[tuple[Manifest, Path, Shard]]) -> None:
    missing = [item for item in work if not (item[1] / item[2].file).exists()]
    needed, left = sum(shard.rows * (manifest.row_bytes + 4) for manifest, _, shard in missing), free_bytes(folder)
    log.info("fetching %d of %d shards, %.3g GB", len(missing), len(work), needed / 1e9)
    if needed > left:
        raise InputError(f"{folder}: {needed:,} bytes are to be fetched, {left:,} are left; name a larger disk")


def _fetch_shard(manifest: Manifest, target: Path, shard: Shard) -> None:
    """Fetches a shard and its rows' checksums, unless they are there and the shard has its checksum."""
    path, source = target / shard.file, join_path(manifest.folder, shard.file)
    if not (path.exists() and file_hash(path) == shard.sha256):
        digest: Any = hashlib.sha256()
        with open_file(source) as remote_file, writing(path) as out:
            while block := remote_file.read(_BLOCK_BYTES):
                out.write(block)
                digest.update(block)
            if digest.hexdigest() != shard.sha256:
                raise StoreError(f"{source}: came with another checksum than its manifest's; run again")
    checksums = target / f"{shard.file}.crc32"
    if not checksums.exists() or file_bytes(checksums) != 4 * shard.rows:
        _copy(join_path(manifest.folder, f"{shard.file}.crc32"), checksums)


def _copy(source: str | Path, target: Path) -> None:
    with open_file(source) as file, writing(target) as out:
        while block := file.read(_BLOCK_BYTES):
            out.write(block)


if __name__ == "__main__":
    cli.run_plain(main, __doc__)

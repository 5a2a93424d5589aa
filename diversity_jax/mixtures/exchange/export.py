"""Exports a built mixture: its rows in order, shard by shard, each recorded with its checksum when it is written.

Memory: one shard at most. Rows are a pure function of the mixture, and files of their rows, so an export that was
stopped is resumed and gives the same files.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from dataclasses import dataclass
from fractions import Fraction
import functools
import hashlib
import logging
from pathlib import Path
import shutil
from typing import Any

import numpy as np

from diversity_jax.core.artifacts import ArtifactStore, locked_folder
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import (
    exists,
    free_bytes,
    join_path,
    open_file,
    path_inside,
    read_json,
    write_json,
    writing,
)
from diversity_jax.core.formats import counted
from diversity_jax.core.progress import ProgressDisplay
from diversity_jax.mixtures.exchange.arrow import ArrowFormat, ParquetFormat
from diversity_jax.mixtures.exchange.examples import ArrayRecordFormat, TFRecordFormat
from diversity_jax.mixtures.exchange.fixed import LevanterFormat, LitDataFormat, MegatronFormat, MosaicFormat
from diversity_jax.mixtures.exchange.format import ARRAYS, Block, Column, ExportShard, FileRange, Format, Layout, Stream
from diversity_jax.mixtures.loader import Loader, as_arrays
from diversity_jax.mixtures.mixture import Mixture
from diversity_jax.mixtures.schedule import Schedule
from diversity_jax.tokenizers.document_start import Boundaries

log = logging.getLogger(__name__)

FORMATS: Mapping[str, Format] = {
    "array_record": ArrayRecordFormat(),
    "levanter": LevanterFormat(),
    "megatron": MegatronFormat(),
    "parquet": ParquetFormat(),
    "arrow": ArrowFormat(),
    "mds": MosaicFormat(),
    "litdata": LitDataFormat(),
    "tfrecord": TFRecordFormat(),
}
"""By the name that `--to` takes; a new format is one entry here."""

VERSION = 1
RECORD = "export.json"
_STAGING = ".export"
_HASH_BYTES = 1 << 20  # read and hashed at once; fits the cache


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """What is exported.

    Attributes:
      to: one of `FORMATS`.
      rows: number of rows of the mixture; None: as many as come before any row is repeated.
      per_component: each component becomes a data set of its own, with its share as its weight. It has its own of the
        first `rows` rows of the mixture; with None, all its rows.
      split: `train` or `validation`.
      documents_apart: also export segments and positions, for `attend_across_documents=False`; those of conversations
        are always exported.
      without_masks: leave out the loss masks of conversations where the format cannot hold them.
      shard_mb: size of a shard, in millions of bytes of tokens.
    """

    to: str
    rows: int | None = None
    per_component: bool = False
    split: str = "train"
    documents_apart: bool = False
    without_masks: bool = False
    shard_mb: float = 64.0

    def __post_init__(self) -> None:
        if self.to not in FORMATS:
            raise InputError(f"--to {self.to}: is no known format; choose one of {', '.join(FORMATS)}")
        if self.rows is not None and self.rows < 1:
            raise InputError(f"--rows {self.rows}: give at least 1")
        if not 0 < self.shard_mb <= 2000:
            raise InputError(f"--shard_mb {self.shard_mb:g}: give a size above 0 and up to 2000")


def export(mixture: Mixture, folder: Path, request: ExportRequest) -> dict[str, Any]:
    """Writes an export to `folder`, or resumes or repairs the same one there; returns its record.

    Raises:
      InputError: another export is there, the format cannot hold what the rows need, a row of the mixture is damaged,
        or there is too little space.
    """
    chosen = FORMATS[request.to]
    boundaries = mixture.boundaries(attend_across_documents=not request.documents_apart)
    layout = _layout(mixture, request, chosen, boundaries)
    streams = _streams(mixture, request, layout, boundaries)
    shard_rows = max(1, int(request.shard_mb * 1e6) // layout.columns[0].row_bytes)
    shards = [shard for stream in streams for shard in stream.shards(shard_rows)]
    settings = {"version": VERSION, "mixture": mixture.content_hash, **dataclasses.asdict(request)}
    with locked_folder(folder):
        store = _begin(folder, settings)
        done = _intact(folder, store, shards)
        _check_space(folder, [shard for shard in shards if shard.key not in done], layout)
        with ProgressDisplay(f"exporting {mixture.name}", len(shards), completed=len(done)) as progress:
            for shard in shards:
                if shard.key not in done:
                    ranges = chosen.write(folder, shard, layout, shard.blocks(layout.row_tokens))
                    done[shard.key] = [_recorded(folder, part) for part in ranges]
                    store.commit(f"{shard.key}.json", done[shard.key])
                    progress.advance()
        for stream in streams:
            own = [(shard, done[shard.key]) for shard in shards if shard.stream is stream]
            chosen.finish(folder, stream, layout, own)
        if request.per_component:
            chosen.finish_blend(folder, streams, layout)
        _copy_provenance(mixture, folder)
        record = _record(mixture, settings, chosen, layout, streams, shards, done)
        record["files"] = _other_files(folder, record["shards"])
        write_json(folder / RECORD, record)
        shutil.rmtree(store.folder)
    return record


def verify(folder: Path) -> tuple[int, int]:
    """Compares every shard of a finished export, and every other file of it, with its checksum.

    Returns:
      The number of shards, and their bytes.

    Raises:
      InputError: there is no finished export, or a file is missing, cut short or damaged: the first is named, and how
        many more there are.
    """
    record, damaged = _read_record(folder), list[str]()
    for ranges in (*(shard["pieces"] for shard in record["shards"]), *([part] for part in record["files"])):
        damaged += [part["file"] for part in ranges if not _is_intact(folder, part)][:1]
    size = sum(part["bytes"] for shard in record["shards"] for part in shard["pieces"])
    if damaged:
        more = f"; damaged too: {counted(len(damaged) - 1, 'other')}" if len(damaged) > 1 else ""
        raise InputError(f"{folder / damaged[0]}: is damaged (checksum){more}; run the export again to rewrite it")
    return len(record["shards"]), size


def _read_record(folder: Path) -> Any:
    """`export.json`, whose fields are checked as far as they are used: it may have been edited."""
    path = folder / RECORD
    record = read_json(path)
    try:
        files = record.setdefault("files", [])  # older exports have no checksums of them
        for ranges in (*(shard["pieces"] for shard in record["shards"]), files):
            for part in ranges:
                path_inside(folder, part["file"], f"{path}: shards")
                if not (int(part["offset"]) >= 0 <= int(part["bytes"])) or not isinstance(part["sha256"], str):
                    raise ValueError(part["file"])
        [str(shard["key"]) for shard in record["shards"]]
        dict(record["settings"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: is not the record of an export ({error!r}); export again") from None
    return record


def _layout(mixture: Mixture, request: ExportRequest, chosen: Format, boundaries: Boundaries) -> Layout:
    """The arrays that are exported.

    Raises:
      InputError: rows of conversations need arrays that the format cannot hold.
    """
    has_chat = any(part.prepared.chat for part in mixture.taken)
    wanted = {"tokens", "component"}
    if has_chat or boundaries.masks_targets:
        wanted.add("loss_mask")
    if has_chat or request.documents_apart:
        wanted |= {"segment_ids", "positions"}
    missing = sorted(wanted - set(chosen.names) - {"component"})
    if has_chat and "loss_mask" in missing and not request.without_masks:
        raise InputError(
            f"--to {request.to}: {chosen.title} cannot hold which tokens of conversations are answers; choose one that "
            f"can ({', '.join(name for name, known in FORMATS.items() if 'loss_mask' in known.names)}), or give "
            "--without_masks to train on all tokens"
        )
    if missing:
        log.warning("%s cannot hold %s, which are not exported", chosen.title, ", ".join(missing))
    row_tokens, size = mixture.sequence_length + 1, mixture.vocabulary.size
    columns = tuple(
        Column(
            array=array,
            name=chosen.names[array],
            dtype=chosen.dtype(array, size),
            tokens=1 if array == "component" else row_tokens,
        )
        for array in ARRAYS
        if array in wanted and array in chosen.names
    )
    return Layout(columns=columns, row_tokens=row_tokens, split=request.split, vocabulary_size=size)


def _streams(mixture: Mixture, request: ExportRequest, layout: Layout, boundaries: Boundaries) -> list[Stream]:
    """The mixture as one data set, or a data set for each component.

    Raises:
      InputError: there are no rows to export.
    """
    if request.per_component:
        due = Schedule([part.share_granted for part in mixture.taken]).counts(request.rows or 0).tolist()
        parts = []
        for number, (part, count) in enumerate(zip(mixture.taken, due, strict=True)):
            if (split := part.prepared.splits.get(request.split)) is None:
                log.warning("%s has no %s rows: not exported", part.name, request.split)
            elif count or request.rows is None:
                loader = mixture.only(part).loader(batch_size=1, split=request.split)
                parts.append((part.name, part.share_granted, count or split.rows, loader, number))
    else:
        all_rows = mixture.loader(batch_size=1, split=request.split)
        stored = [part.prepared.splits[request.split].rows for part in mixture.taken]
        parts = [("", Fraction(1), request.rows or rows_seen_once(all_rows, stored), all_rows, -1)]
    if not parts or not parts[0][2]:
        raise InputError(f"mixture {mixture.name!r}: has no {request.split} rows to export")
    wanted = {column.array for column in layout.columns}

    def read(loader: Loader, component: int, numbers: np.ndarray) -> Block:
        batch = loader.rows(numbers)
        loader.release()  # rows of a linked file are all over it, and its mapped pages count as this process's memory
        arrays = as_arrays(batch, boundaries)
        missing = wanted - set(arrays)
        for name in missing & {"loss_mask", "segment_ids"}:
            arrays[name] = np.ones(batch.tokens.shape, np.int32)
        if "positions" in missing:
            arrays["positions"] = np.broadcast_to(np.arange(layout.row_tokens, dtype=np.int32), batch.tokens.shape)
        if component >= 0:
            arrays["component"] = np.full(len(batch.tokens), component, np.int32)
        return {name: values for name, values in arrays.items() if name in wanted}

    return [
        Stream(
            name=name,
            weight=float(share),
            exact_weight=str(share),
            rows=count,
            read=functools.partial(read, loader, component),
        )
        for name, share, count, loader, component in parts
    ]


def rows_seen_once(loader: Loader, stored: Sequence[int]) -> int:
    """How many rows of a mixture come before any row is repeated.

    Args:
      stored: rows of each component.
    """
    low, high = 0, sum(stored) + 1
    while high - low > 1:  # counts never fall
        middle = (low + high) // 2
        is_once = (loader.schedule.counts(middle) <= np.array(stored)).all()
        low, high = (middle, high) if is_once else (low, middle)
    return low


def _begin(folder: Path, settings: Mapping[str, Any]) -> ArtifactStore:
    """The store of shards' records: of the same export, stopped or finished, or a new one.

    Raises:
      InputError: another export is there, or files that are not recorded, which readers would take for the export's.
    """
    store = ArtifactStore(folder / _STAGING)
    finished = (folder / RECORD).exists()
    before = _read_record(folder)["settings"] if finished else store.record("settings.json")
    if before is not None and before != settings:
        changed = [key for key in settings if before.get(key) != settings[key]]
        problem = f"holds an export with other settings ({', '.join(changed)})"
        raise InputError(f"{folder}: {problem}; choose another folder, or remove it")
    if before is None and any((folder / "data").glob("*")):
        raise InputError(f"{folder / 'data'}: holds files of no known export; choose another folder, or remove them")
    for path in (*folder.glob(".*.partial"), *_files(folder, ".*.partial")):  # of a process that was killed
        path.unlink()
    store.remove_partial()
    store.commit("settings.json", settings)
    if finished:
        for shard in _read_record(folder)["shards"]:
            store.commit(f"{shard['key']}.json", shard["pieces"])
        (folder / RECORD).unlink()
    return store


def _intact(folder: Path, store: ArtifactStore, shards: Sequence[ExportShard]) -> dict[str, list[dict[str, Any]]]:
    """File ranges of the shards that are written and have their checksums, by the shard's key."""
    done = {}
    for shard in shards:
        ranges = store.record(f"{shard.key}.json")
        if ranges is None:
            continue
        if all(_is_intact(folder, part) for part in ranges):
            done[shard.key] = ranges
        else:
            log.warning(
                "%s: written before, but damaged since (checksum); writing it again", folder / ranges[0]["file"]
            )
    return done


def _is_intact(folder: Path, part: Mapping[str, Any]) -> bool:
    path = folder / part["file"]
    if not path.is_file() or path.stat().st_size < part["offset"] + part["bytes"]:
        return False
    if not part["offset"] and path.suffix != ".bin" and path.stat().st_size != part["bytes"]:
        return False
    return _range_hash(path, part["offset"], part["bytes"]) == part["sha256"]


def _recorded(folder: Path, part: FileRange) -> dict[str, Any]:
    return {**vars(part), "sha256": _range_hash(folder / part.file, part.offset, part.bytes)}


def _other_files(folder: Path, shards: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Indexes and provenance: all files of the export but its shards, as recorded file ranges."""
    known = {part["file"] for shard in shards for part in shard["pieces"]}
    files = [FileRange.of_file(folder, path) for path in (*sorted(folder.glob("blend_*")), *_files(folder, "*"))]
    return [_recorded(folder, file) for file in files if file.file not in known]


def _files(folder: Path, pattern: str) -> list[Path]:
    """Files at any depth of an export whose names match."""
    inside = [path for name in ("data", "provenance") for path in (folder / name).rglob(pattern)]
    return sorted(path for path in inside if path.is_file())


def _range_hash(path: Path, offset: int, size: int) -> str:
    digest = hashlib.sha256()
    with open_file(path) as file:
        file.seek(offset)
        while size and (data := file.read(min(size, _HASH_BYTES))):
            digest.update(data)
            size -= len(data)
    return digest.hexdigest()


def _check_space(folder: Path, missing: Sequence[ExportShard], layout: Layout) -> None:
    needed, left = sum(shard.rows for shard in missing) * layout.row_bytes, free_bytes(folder)
    if needed > left:
        raise InputError(f"{folder}: about {needed:,} bytes are to be written, {left:,} are left; name a larger disk")


def _record(
    mixture: Mixture,
    settings: Mapping[str, Any],
    chosen: Format,
    layout: Layout,
    streams: Sequence[Stream],
    shards: Sequence[ExportShard],
    done: Mapping[str, list[dict[str, Any]]],
) -> dict[str, Any]:
    """The content of `export.json`, without its list of other files."""
    return {
        "settings": dict(settings),
        "format": chosen.title,
        "mixture": mixture.name,
        "sequence_length": mixture.sequence_length,
        "end_of_text_id": mixture.vocabulary.end_of_text_id,
        "vocabulary_size": mixture.vocabulary.size,
        "document_start": mixture.document_start,
        "columns": {column.name: [column.dtype, column.tokens] for column in layout.columns},
        "components": [part.name for part in mixture.taken],
        "streams": [
            {name: getattr(stream, name) for name in ("name", "folder", "rows", "weight", "exact_weight")}
            for stream in streams
        ],
        "shards": [
            {"key": shard.key, "first": shard.first, "rows": shard.rows, "pieces": done[shard.key]} for shard in shards
        ],
    }


def _copy_provenance(mixture: Mixture, folder: Path) -> None:
    """Copies `mixture.json` with every decision, the scorecards and the tokenizer into the export."""
    names = ["mixture.json", *(part.decision.get("scorecard") for part in mixture.components)]
    copies = [(name, path) for name in names if name and exists(path := join_path(mixture.folder, name))]
    manifest = mixture.taken[0].prepared
    copies += list(zip(manifest.vocabulary.files, manifest.vocabulary.paths(manifest.folder), strict=True))
    for name, source in copies:
        with open_file(source) as file, writing(path_inside(folder / "provenance", name, f"{folder}")) as out:
            shutil.copyfileobj(file, out)

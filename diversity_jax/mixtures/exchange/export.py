"""Exports a built mixture: its rows in order, shard by shard, each recorded with its checksum once it is there.

Memory: one shard at most. Rows are a pure function of the mixture, and writers of their rows, so an export that was
stopped goes on and ends in the same files.
"""

from collections.abc import Iterator, Mapping, Sequence
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
from diversity_jax.core.progress import ProgressDisplay
from diversity_jax.mixtures.exchange.format import (
    ARRAYS,
    Block,
    Column,
    Format,
    Layout,
    Piece,
    Shard,
    Stream,
    whole_file,
)
from diversity_jax.mixtures.exchange.formats import FORMATS
from diversity_jax.mixtures.mixture import Loader, Mixture
from diversity_jax.mixtures.row_arrays import as_arrays
from diversity_jax.tokenizers.document_start import Boundaries

log = logging.getLogger(__name__)

VERSION = 1
RECORD = "export.json"
_STAGING = ".export"
_BLOCK_BYTES = 1 << 20  # of tokens, read and written at once: what is made of them stays in the cache
_HASH_BYTES = 1 << 20  # fits the cache, in which it is read and hashed


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """What is exported.

    Attributes:
      to: one of `FORMATS`.
      rows: of the mixture; None: so many that none is seen twice.
      per_component: each component as a data set of its own, with its share as its weight: `rows` of the mixture are
        dealt to them as the schedule deals them; None: all rows that each has.
      split: `train` or `validation`.
      documents_apart: segments and positions go along, for `attend_across_documents=False`; those of conversations
        always do.
      without_masks: what a format cannot hold of conversations is left out.
      shard_mb: size of a shard, in millions of bytes of rows.
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
            raise InputError(f"--to {self.to}: is no format known here; choose one of {', '.join(FORMATS)}")
        if self.rows is not None and self.rows < 1:
            raise InputError(f"--rows {self.rows}: give at least 1")
        if not 0 < self.shard_mb <= 2000:
            raise InputError(f"--shard_mb {self.shard_mb:g}: give a size above 0 and up to 2000")


def export(mixture: Mixture, folder: Path, request: ExportRequest) -> dict[str, Any]:
    """Writes an export to `folder`, or finishes or mends one that was begun there; returns its record.

    Raises:
      InputError: another export is there, the format cannot hold what the rows need, a row of the mixture is damaged,
        or there is too little space.
    """
    chosen = FORMATS[request.to]
    boundaries = mixture.boundaries(attend_across_documents=not request.documents_apart)
    layout = _layout(mixture, request, chosen, boundaries)
    streams = _streams(mixture, request, layout, boundaries)
    shards = [shard for stream in streams for shard in _shards(stream, layout, request)]
    settings = {"version": VERSION, "mixture": mixture.content_hash, **dataclasses.asdict(request)}
    with locked_folder(folder):
        store = _begin(folder, settings)
        done = _intact(folder, store, shards)
        _check_space(folder, [shard for shard in shards if shard.key not in done], layout)
        with ProgressDisplay(f"exporting {mixture.name}", len(shards), completed=len(done)) as progress:
            for shard in shards:
                if shard.key not in done:
                    pieces = chosen.write(folder, shard, layout, _blocks(shard, layout))
                    done[shard.key] = [_recorded(folder, piece) for piece in pieces]
                    store.commit(f"{shard.key}.json", done[shard.key])
                    progress.advance()
        for stream in streams:
            own = [(shard, done[shard.key]) for shard in shards if shard.stream is stream]
            chosen.finish(folder, stream, layout, own)
        if request.per_component:
            chosen.finish_blend(folder, streams, layout)
        _copy_provenance(mixture, folder)
        record = _record(mixture, settings, chosen, layout, streams, shards, done)
        record["files"] = _files_beside(folder, record["shards"])
        write_json(folder / RECORD, record)
        shutil.rmtree(store.folder)
    return record


def verify(folder: Path) -> tuple[int, int]:
    """Compares every shard of a finished export, and every index beside them, with its checksum.

    Returns:
      Shards, and their bytes.

    Raises:
      InputError: there is no finished export, or a file is missing, cut short or damaged: the first is named, and how
        many more there are.
    """
    record, damaged = _read_record(folder), list[str]()
    for pieces in (*(shard["pieces"] for shard in record["shards"]), *([piece] for piece in record["files"])):
        damaged += [piece["file"] for piece in pieces if not _is_intact(folder, piece)][:1]
    size = sum(piece["bytes"] for shard in record["shards"] for piece in shard["pieces"])
    if damaged:
        more = f", as are {len(damaged) - 1:,} others" if len(damaged) > 1 else ""
        raise InputError(f"{folder / damaged[0]}: is damaged (checksum){more}; run the export again to write it anew")
    return len(record["shards"]), size


def _read_record(folder: Path) -> Any:
    """`export.json`, checked as far as it is used: anybody may have changed it."""
    path = folder / RECORD
    record = read_json(path)
    try:
        files = record.setdefault("files", [])  # there are none in exports of before they had checksums
        for pieces in (*(shard["pieces"] for shard in record["shards"]), files):
            for piece in pieces:
                path_inside(folder, piece["file"], f"{path}: shards")
                if not (int(piece["offset"]) >= 0 <= int(piece["bytes"])) or not isinstance(piece["sha256"], str):
                    raise ValueError(piece["file"])
        [str(shard["key"]) for shard in record["shards"]]
        dict(record["settings"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: is not the record of an export ({error!r}); export again") from None
    return record


def _layout(mixture: Mixture, request: ExportRequest, chosen: Format, boundaries: Boundaries) -> Layout:
    """The arrays that go along.

    Raises:
      InputError: rows of conversations need some that the format cannot hold.
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
        log.warning("%s cannot hold %s, which stay behind", chosen.title, ", ".join(missing))
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
    """What is exported as one data set each."""
    shares = [part.share_granted for part in mixture.taken]
    all_rows = mixture.loader(batch_size=1, split=request.split)
    stored = [part.prepared.splits[request.split].rows for part in mixture.taken]
    if request.per_component:
        counts = stored if request.rows is None else all_rows.schedule.counts(request.rows).tolist()
        parts = [
            (part.name, part.share_granted, count, mixture.only(part).loader(batch_size=1, split=request.split), number)
            for number, (part, count) in enumerate(zip(mixture.taken, counts, strict=True))
            if count
        ]
    else:
        rows = request.rows if request.rows is not None else rows_seen_once(all_rows, stored)
        parts = [("", Fraction(1), rows, all_rows, -1)]
    if not shares or not parts or not parts[0][2]:
        raise InputError(f"mixture {mixture.name!r}: has no {request.split} rows to export")
    wanted = {column.array for column in layout.columns}

    def read(loader: Loader, component: int, numbers: np.ndarray) -> Block:
        batch = loader.rows(numbers)
        loader.release()  # rows of a linked set lie all over its file, whose pages would all count as ours
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
    """How many rows of a mixture come before a row is seen for the second time: a pass.

    Args:
      stored: rows of each component.
    """
    low, high = 0, sum(stored) + 1
    while high - low > 1:  # counts never fall
        middle = (low + high) // 2
        is_once = (loader.schedule.counts(middle) <= np.array(stored)).all()
        low, high = (middle, high) if is_once else (low, middle)
    return low


def _shards(stream: Stream, layout: Layout, request: ExportRequest) -> list[Shard]:
    rows = max(1, int(request.shard_mb * 1e6) // layout.columns[0].row_bytes)
    firsts = range(0, stream.rows, rows)
    return [
        Shard(stream=stream, number=number, count=len(firsts), first=first, rows=min(rows, stream.rows - first))
        for number, first in enumerate(firsts)
    ]


def _blocks(shard: Shard, layout: Layout) -> Iterator[Block]:
    step = max(1, _BLOCK_BYTES // (4 * layout.row_tokens))
    for first in range(shard.first, shard.first + shard.rows, step):
        yield shard.stream.read(np.arange(first, min(first + step, shard.first + shard.rows)))


def _begin(folder: Path, settings: Mapping[str, Any]) -> ArtifactStore:
    """The store of shards' records, from an export that was stopped or one that is finished; or a fresh one.

    Raises:
      InputError: another export is there, or files that none recorded, which readers would take for its.
    """
    store = ArtifactStore(folder / _STAGING)
    finished = (folder / RECORD).exists()
    before = _read_record(folder)["settings"] if finished else store.record("settings.json")
    if before is not None and before != settings:
        changed = [key for key in settings if before.get(key) != settings[key]]
        problem = f"holds an export with other settings ({', '.join(changed)})"
        raise InputError(f"{folder}: {problem}; choose another folder, or remove it")
    if before is None and any((folder / "data").glob("*")):
        raise InputError(f"{folder / 'data'}: holds files of nobody knows what; choose another folder, or remove them")
    for path in (*folder.glob(".*.partial"), *_files(folder, ".*.partial")):  # of a process that was killed
        path.unlink()
    store.remove_partial()
    store.commit("settings.json", settings)
    if finished:
        for shard in _read_record(folder)["shards"]:
            store.commit(f"{shard['key']}.json", shard["pieces"])
        (folder / RECORD).unlink()
    return store


def _intact(folder: Path, store: ArtifactStore, shards: Sequence[Shard]) -> dict[str, list[dict[str, Any]]]:
    """Pieces of the shards that are there and as they were written."""
    done = {}
    for shard in shards:
        pieces = store.record(f"{shard.key}.json")
        if pieces is None:
            continue
        if all(_is_intact(folder, piece) for piece in pieces):
            done[shard.key] = pieces
        else:
            log.warning(
                "%s: written before, but damaged since (checksum); writing it again", folder / pieces[0]["file"]
            )
    return done


def _is_intact(folder: Path, piece: Mapping[str, Any]) -> bool:
    path = folder / piece["file"]
    if not path.is_file() or path.stat().st_size < piece["offset"] + piece["bytes"]:
        return False
    if not piece["offset"] and path.suffix != ".bin" and path.stat().st_size != piece["bytes"]:
        return False
    return _range_hash(path, piece["offset"], piece["bytes"]) == piece["sha256"]


def _recorded(folder: Path, piece: Piece) -> dict[str, Any]:
    return {**vars(piece), "sha256": _range_hash(folder / piece.file, piece.offset, piece.bytes)}


def _files_beside(folder: Path, shards: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What readers need beside the shards, and the provenance, as pieces."""
    known = {piece["file"] for shard in shards for piece in shard["pieces"]}
    pieces = [whole_file(folder, path) for path in (*sorted(folder.glob("blend_*")), *_files(folder, "*"))]
    return [_recorded(folder, piece) for piece in pieces if piece.file not in known]


def _files(folder: Path, pattern: str) -> list[Path]:
    """Files of an export whose names are so, deep in its folders."""
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


def _check_space(folder: Path, missing: Sequence[Shard], layout: Layout) -> None:
    needed, left = sum(shard.rows for shard in missing) * layout.row_bytes, free_bytes(folder)
    if needed > left:
        raise InputError(f"{folder}: about {needed:,} bytes are to be written, {left:,} are left; name a larger disk")


def _record(
    mixture: Mixture,
    settings: Mapping[str, Any],
    chosen: Format,
    layout: Layout,
    streams: Sequence[Stream],
    shards: Sequence[Shard],
    done: Mapping[str, list[dict[str, Any]]],
) -> dict[str, Any]:
    """`export.json`."""
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
    """What the rows rest on, beside them: `mixture.json` with every decision, the scorecards, the tokenizer."""
    cards = [part.decision.get("scorecard") for part in mixture.components]
    copies = [("mixture.json", join_path(mixture.folder, "mixture.json"))]
    copies += [
        (scorecard, path) for scorecard in cards if scorecard and exists(path := join_path(mixture.folder, scorecard))
    ]
    manifest = mixture.taken[0].prepared
    copies += list(zip(manifest.vocabulary.files, manifest.vocabulary.paths(manifest.folder), strict=True))
    for name, source in copies:
        with open_file(source) as file, writing(path_inside(folder / "provenance", name, f"{folder}")) as out:
            shutil.copyfileobj(file, out)

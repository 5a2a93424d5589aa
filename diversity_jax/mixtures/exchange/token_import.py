"""Prepared token sets of others as components: rows are mapped where they lie, or copied where they must change.

Documents follow each other, each ended by end-of-text, and are cut into rows, as `prepare` does with text. A set whose
file holds just that is linked: what is written is where each row begins and its checksum, 12 bytes a row. Otherwise
(compressed or in many files, documents without end-of-text or without the token that is to begin them) ids are copied
into shards.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
import dataclasses
from dataclasses import dataclass, field
import hashlib
import logging
import os
from pathlib import Path
import random
import shutil
from typing import Any

import numpy as np

from diversity_jax.core.artifacts import locked_folder
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import content_hash, exists, file_hash, make_folder, writing
from diversity_jax.mixtures.exchange.token_files import Flat, TokenSet
from diversity_jax.prepare.config import Preparation
from diversity_jax.prepare.manifest import LEFT_OUT, Manifest, Shard, Split
from diversity_jax.prepare.pipeline import copy_tokenizer
from diversity_jax.prepare.rows import LinkedRows, row_checksums, row_keys
from diversity_jax.prepare.shards import shard_count
from diversity_jax.tokenizers.document_start import resolve
from diversity_jax.tokenizers.tokenizer import Tokenizer

log = logging.getLogger(__name__)

_BLOCK_TOKENS = 4 << 20  # read at once
_SPANS = 64  # places over the set that held-out documents are taken from
_MOST_LISTED = 1000  # ids that sequences end with, counted to tell what their end-of-text is
_PADDED, _MOST_PADDED = 4, 0.2  # ids alike at the end of a sequence are padding, where so many sequences end so
_SAMPLED_ROWS = 256  # decoded to estimate how many bytes of text a token is
_STAGING = ".importing"


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What one reading of a set finds.

    Attributes:
      is_packed: sequences are rows of one length that documents run through, not documents, or such that have
        end-of-text in front: they are joined as they are.
      ended, begun: sequences that end with end-of-text, and that begin with the tokenizer's begin-of-text.
      sequences: that are not empty.
    """

    is_packed: bool
    ended: int
    begun: int
    sequences: int


def import_tokens(
    tokens: TokenSet, tokenizer: Tokenizer, folder: Path, settings: Preparation, *, link: bool
) -> Manifest:
    """Makes a component of a set in `folder`, or returns the one there that was made of the same.

    Args:
      link: rows may stay where they are.

    Raises:
      InputError: an id is none of the vocabulary's, documents end or begin with other tokens than the vocabulary's,
        there is less than a row, or `folder` holds another component.
    """
    if settings.hygiene.removes_copies or settings.hygiene.decontaminate:
        raise InputError(
            f"component {settings.name!r}: hygiene looks at text, and {tokens.path} is tokens already; filter the text "
            "and prepare it, or leave hygiene out"
        )
    begin = tokenizer.bos_id if resolve(settings.document_start, tokenizer) == "bos" else None
    request = {
        "tokens": tokens.fingerprint(),
        "vocabulary": tokenizer.hash,
        "begin_of_text_id": begin,
        **{name: getattr(settings, name) for name in ("name", "kind", "sequence_length", "seed", "validation_share")},
    }
    with locked_folder(folder):
        if exists(folder / "manifest.json"):
            return _imported_before(folder, request)
        shutil.rmtree(folder / _STAGING, ignore_errors=True)
        survey = _survey(tokens, tokenizer, begin, settings.name)
        flat, lengths, is_linked = tokens.flat, tokens.lengths, link and _may_link(tokens, survey, begin)
        if flat is None or not is_linked:
            flat, lengths = _staged(tokens, tokenizer, survey, begin, folder / _STAGING)
        manifest = _write(tokens, tokenizer, folder, settings, flat, lengths, request, is_linked)
        shutil.rmtree(folder / _STAGING, ignore_errors=True)
        manifest.save()
    how = f"linked to {flat.path}" if is_linked else "copied"
    what = "packed rows" if survey.is_packed else "documents"
    log.info("tokens: %s: %s %s of %s, %s", settings.name, f"{survey.sequences:,}", what, tokens.kind, how)
    return manifest


def _imported_before(folder: Path, request: Mapping[str, Any]) -> Manifest:
    manifest = Manifest.load(folder / "manifest.json")
    if manifest.source.get("request") != content_hash(request):
        raise InputError(
            f"{folder}: holds a component that was made otherwise; choose another folder, or delete this one"
        )
    manifest.check_sizes()
    return manifest


def _survey(tokens: TokenSet, tokenizer: Tokenizer, begin: int | None, name: str) -> Survey:
    """Reads all ids once and checks them against the vocabulary."""
    about, end = f"component {name!r}: {tokens.path}", tokenizer.end_of_text_id
    last, ended, begun, marks, first, led, padded = Counter[int](), 0, 0, 0, 0, 0, Counter[int]()
    for ids, lengths in tokens.blocks(_BLOCK_TOKENS):
        filled = lengths > 0
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < tokenizer.size:
            wrong = int(np.flatnonzero((ids < 0) | (ids >= tokenizer.size))[0])
            sequence = first + int(np.searchsorted(np.cumsum(lengths), wrong, side="right"))
            size = f"the vocabulary's {tokenizer.size:,}"
            raise InputError(
                f"{about}: id {ids[wrong]} in sequence {sequence:,} is none of {size}; name the one it was made with"
            )
        ends = np.cumsum(lengths)[filled]
        final, begins = ids[ends - 1], ids[ends - lengths[filled]]
        ended += int((final == end).sum())
        led += int((begins == end).sum())
        begun += int((begins == tokenizer.bos_id).sum()) if tokenizer.bos_id is not None else 0
        marks += int((ids == end).sum())
        closing = ids[ends[lengths[filled] >= _PADDED, None] - np.arange(1, _PADDED + 1)]
        padded.update(closing[(closing == closing[:, :1]).all(axis=1), 0].tolist())
        if len(last) < _MOST_LISTED:
            last.update(final.tolist())
        first += len(lengths)
    sizes = tokens.lengths[tokens.lengths > 0]
    if not len(sizes):
        raise InputError(f"{about}: holds no token")
    is_packed = len(sizes) > 1 and int(sizes.min()) == int(sizes.max()) and ended < len(sizes)
    # End-of-text in front of documents, as where it is begin-of-text too, parts them as well as behind them.
    is_packed |= led > 0.95 * len(sizes) and ended < 0.05 * len(sizes)
    (common, count), seen = last.most_common(1)[0], last.total()
    if not marks or (not is_packed and ended < 0.05 * len(sizes) and common != end and count > 0.95 * seen >= 19):
        theirs = f"; {100 * count / seen:.0f} % of its sequences end with {common}" if count > 0.5 * seen else ""
        problem = f"none of its documents ends with the vocabulary's end-of-text, {end}{theirs}"
        if theirs or is_packed:
            raise InputError(f"{about}: {problem}; set end_of_text, or name the vocabulary it was made with")
    for pad, often in padded.most_common(1):
        if often > _MOST_PADDED * len(sizes) > 1:
            problem = f"{100 * often / len(sizes):.0f} % of its sequences end with {pad} over and over"
            raise InputError(f"{about}: {problem}, which is padding; write it without")
    begins_apart = tokenizer.bos_id not in (None, end)
    if begin is None and begins_apart and not is_packed and begun > 0.95 * len(sizes):
        problem = f"its documents begin with {tokenizer.bos_id}, the vocabulary's begin-of-text"
        raise InputError(f"{about}: {problem}; set document_start='bos'")
    if begin is not None and is_packed:
        log.warning("%s: is of packed rows, which are taken to have %d before every document", about, begin)
    return Survey(is_packed=is_packed, ended=ended, begun=begun, sequences=len(sizes))


def _may_link(tokens: TokenSet, survey: Survey, begin: int | None) -> bool:
    """Whether the file holds documents end to end as rows have them."""
    is_whole = survey.ended == survey.sequences and (begin is None or survey.begun == survey.sequences)
    return tokens.flat is not None and (survey.is_packed or is_whole)


def _staged(
    tokens: TokenSet, tokenizer: Tokenizer, survey: Survey, begin: int | None, staging: Path
) -> tuple[Flat, np.ndarray]:
    """All ids in one file, with end-of-text and begin-of-text put in where a document lacks them."""
    dtype = "uint16" if tokenizer.size <= 1 << 16 else "uint32"
    flat, lengths = Flat(path=staging / "tokens.bin", dtype=dtype), []
    make_folder(staging)
    with writing(flat.path) as file:
        for ids, sizes in tokens.blocks(_BLOCK_TOKENS):
            ids = np.ascontiguousarray(ids, np.dtype(dtype).newbyteorder("<"))  # which holds what is put in
            if not survey.is_packed:
                ids, sizes = _completed(ids, sizes[sizes > 0], tokenizer.end_of_text_id, begin)
            file.write(ids.data)
            lengths.append(sizes)
    return flat, np.concatenate(lengths)


def _completed(ids: np.ndarray, lengths: np.ndarray, end: int, begin: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Documents with end-of-text after each that has none, and `begin` before."""
    ends = np.cumsum(lengths)
    lacks_end = ids[ends - 1] != end
    lacks_begin = ids[ends - lengths] != begin if begin is not None else np.zeros(len(lengths), bool)
    full = lengths + lacks_end + lacks_begin
    full_ends = np.cumsum(full)
    out, inside = np.full(int(full_ends[-1]) if len(full) else 0, end, ids.dtype), np.ones(int(full.sum()), bool)
    inside[full_ends[lacks_end] - 1] = False
    begins = (full_ends - full)[lacks_begin]
    inside[begins], out[begins] = False, 0 if begin is None else begin
    out[inside] = ids
    return out, full


def _intervals(lengths: np.ndarray, settings: Preparation) -> dict[str, list[tuple[int, int]]]:
    """Stretches of the stream, in tokens, of each split; held-out sequences come from places all over the set."""
    bounds, share = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]), settings.validation_share
    spans = max(1, min(_SPANS, int(len(lengths) * share))) if share else 0
    draw, train, held, at = random.Random(f"{settings.seed}/{settings.name}/tokens"), [], [], 0
    for span in range(spans):
        first, end = span * len(lengths) // spans, (span + 1) * len(lengths) // spans
        count = round((end - first) * share)
        begin = first + draw.randint(0, end - first - count)
        train.append((at, int(bounds[begin])))
        held.append((int(bounds[begin]), int(bounds[begin + count])))
        at = int(bounds[begin + count])
    return {"train": [*train, (at, int(bounds[-1]))], "validation": held}


@dataclass
class _Counts:
    """Statistics of rows in the order of the stream."""

    end: int
    documents: int = 0
    across: int = 0
    open_tokens: int = 0  # since the last end-of-text
    total: int = 0
    shortest: int = 1 << 62
    longest: int = 0
    lengths: Counter[int] = field(default_factory=Counter)

    def add(self, rows: np.ndarray) -> None:
        """Counts rows that follow those counted before."""
        at_ends = np.flatnonzero(rows.reshape(-1) == self.end)
        sizes = np.diff(at_ends, prepend=-1 - self.open_tokens) - 1
        self.open_tokens = rows.size - 1 - int(at_ends[-1]) if len(at_ends) else self.open_tokens + rows.size
        self.documents += len(at_ends)
        self.across += int((rows[:, -1] != self.end).sum())
        if len(sizes):
            self.total += int(sizes.sum())
            self.shortest, self.longest = min(self.shortest, int(sizes.min())), max(self.longest, int(sizes.max()))
            self.lengths.update(np.frexp(sizes.astype(np.float64))[1].tolist())


def _write(
    tokens: TokenSet,
    tokenizer: Tokenizer,
    folder: Path,
    settings: Preparation,
    flat: Flat,
    lengths: np.ndarray,
    request: Mapping[str, Any],
    is_linked: bool,
) -> Manifest:
    """The rows of every split, and the manifest, not yet saved."""
    row_tokens, dtype = settings.sequence_length + 1, "uint16" if np.dtype(flat.dtype).itemsize == 2 else "uint32"
    size, counts, splits = os.path.getsize(flat.path), _Counts(end=tokenizer.end_of_text_id), {}
    for split, intervals in _intervals(lengths, settings).items():
        starts = [np.arange(first, end - row_tokens + 1, row_tokens) for first, end in intervals]
        offsets = np.concatenate([np.empty(0, np.int64), *starts])
        if not len(offsets):
            if split == "train":
                problem = f"{int(lengths.sum()):,} tokens do not fill one row of {row_tokens:,}"
                raise InputError(f"component {settings.name!r}: {problem}; give it more, or change sequence_length")
            continue
        rows = LinkedRows(flat.path, np.dtype(dtype).newbyteorder("<"), offsets, row_tokens, str(flat.path))
        before = counts.documents
        checksums = _checked(rows, len(offsets), row_tokens, counts)
        order = np.argsort(row_keys(settings.seed, settings.name, split, "tokens", len(offsets)), kind="stable")
        write = _write_offsets if is_linked else _write_rows
        splits[split] = Split(
            documents=counts.documents - before,
            tokens=len(offsets) * row_tokens,
            text_bytes=_text_bytes(rows, len(offsets), row_tokens, tokenizer),
            dropped_tokens=sum(end - first for first, end in intervals) - len(offsets) * row_tokens,
            rows=len(offsets),
            shards=tuple(write(folder, split, rows, offsets, order, checksums, settings)),
        )
    return Manifest(
        **{name: request[name] for name in ("name", "kind", "sequence_length", "seed", "validation_share")},
        dtype=dtype,
        vocabulary=copy_tokenizer(tokenizer, str(folder)),
        source={"corpus": f"tokens:{tokens.path}", "fingerprint": request["tokens"], "request": content_hash(request)},
        rejected={},
        splits=splits,
        hygiene=dataclasses.asdict(settings.hygiene),
        statistics=_statistics(counts),
        shard_bytes=settings.shard_bytes,
        special_text="plain",
        begin_of_text_id=request["begin_of_text_id"],
        linked={"file": str(flat.path.resolve()), "dtype": flat.dtype, "bytes": size, "sha256": file_hash(flat.path)}
        if is_linked
        else {},
        folder=folder,
    )


def _numbers(rows: int, row_tokens: int) -> Iterator[np.ndarray]:
    step = max(1, _BLOCK_TOKENS // row_tokens)
    for first in range(0, rows, step):
        yield np.arange(first, min(first + step, rows))


def _checked(rows: LinkedRows, count: int, row_tokens: int, counts: _Counts) -> np.ndarray:
    """Checksums of all rows, counted meanwhile."""
    checksums = np.empty(count, "<u4")
    for numbers in _numbers(count, row_tokens):
        block = rows[numbers]
        checksums[numbers] = row_checksums(block)
        counts.add(block)
    return checksums


def _text_bytes(rows: LinkedRows, count: int, row_tokens: int, tokenizer: Tokenizer) -> int:
    """Bytes of the rows' text: of some of them decoded, the rest in proportion."""
    chosen = np.unique(np.linspace(0, count - 1, min(count, _SAMPLED_ROWS)).astype(np.int64))
    return sum(len(tokenizer.decode(row.tolist()).encode()) for row in rows[chosen]) * count // len(chosen)


def _write_offsets(
    folder: Path,
    split: str,
    rows: LinkedRows,
    offsets: np.ndarray,
    order: np.ndarray,
    checksums: np.ndarray,
    settings: Preparation,
) -> Iterator[Shard]:
    path = folder / f"{split}-00000-of-00001.offsets"
    for target, values in ((path, offsets[order].astype("<i8")), (Path(f"{path}.crc32"), checksums[order])):
        with writing(target) as file:
            file.write(np.ascontiguousarray(values).data)
    yield Shard(file=path.name, rows=len(order), sha256=file_hash(path))


def _write_rows(
    folder: Path,
    split: str,
    rows: LinkedRows,
    offsets: np.ndarray,
    order: np.ndarray,
    checksums: np.ndarray,
    settings: Preparation,
) -> Iterator[Shard]:
    row_tokens = settings.sequence_length + 1
    count = shard_count(len(order), rows[order[:1]].nbytes, settings.shard_bytes)
    for number, own in enumerate(np.array_split(order, count)):
        path, digest = folder / f"{split}-{number:05d}-of-{count:05d}.bin", hashlib.sha256()
        with writing(path) as file:
            for numbers in _numbers(len(own), row_tokens):
                block = rows[own[numbers]]
                file.write(block.data)
                digest.update(block.data)
        with writing(Path(f"{path}.crc32")) as file:
            file.write(np.ascontiguousarray(checksums[own]).data)
        yield Shard(file=path.name, rows=len(own), sha256=digest.hexdigest())


def _statistics(counts: _Counts) -> dict[str, Any]:
    """As of prepared text, as far as tokens tell."""
    return {
        "documents": counts.documents,
        "kept": counts.documents,
        **dict.fromkeys(LEFT_OUT, 0),
        "documents_across_rows": counts.across,
        "truncated_documents": 0,
        "length_tokens": {
            "shortest": counts.shortest if counts.documents else 0,
            "mean": round(counts.total / counts.documents, 3) if counts.documents else 0.0,
            "longest": counts.longest,
            "histogram": {
                f"{1 << exponent - 1}-{(1 << exponent) - 1}" if exponent else "0": counts.lengths[exponent]
                for exponent in sorted(counts.lengths)
            },
        },
    }

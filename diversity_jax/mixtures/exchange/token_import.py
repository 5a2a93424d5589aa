"""Makes components of token ids that other tools prepared: links rows to their file, or copies ids that must change.

Documents follow each other, each ended by end-of-text, and are cut into rows, as `prepare` does with text. A set whose
file holds exactly that is linked: only where each row begins and its checksum are written, 12 bytes a row. Otherwise
(compressed or in many files, documents without end-of-text or without the token that should begin them) ids are copied
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
from diversity_jax.core.formats import counted
from diversity_jax.mixtures.exchange.token_files import FlatFile, TokenSet
from diversity_jax.prepare.config import Preparation
from diversity_jax.prepare.manifest import LEFT_OUT, Manifest, Shard, Split
from diversity_jax.prepare.pipeline import copy_tokenizer, length_statistics
from diversity_jax.prepare.rows import LinkedRows, row_checksums, row_keys
from diversity_jax.prepare.shards import shard_count
from diversity_jax.tokenizers.document_start import resolve
from diversity_jax.tokenizers.tokenizer import Tokenizer

log = logging.getLogger(__name__)

_BLOCK_TOKENS = 4 << 20  # read at once
_SPANS = 64  # stretches of the set at most, from each of which some documents are held out
_ROWS_OF_SPAN = 8  # held out of each, and left, on average: of either half a row is lost
_MOST_LISTED = 1000  # different last ids of sequences that are counted, to guess what their end-of-text is
_PADDED, _MOST_PADDED = 4, 0.2  # four equal last ids are padding, where more than this share of sequences end so
_SAMPLED_ROWS = 256  # decoded to estimate how many bytes of text a token is
_STAGING = ".importing"


@dataclass(frozen=True, kw_only=True)
class Survey:
    """Counts of one reading of a set.

    Attributes:
      is_packed: sequences are joined as they are: rows of one length that documents run across, or documents with
        end-of-text in front.
      ended: sequences that end with end-of-text; begun: that begin with the tokenizer's begin-of-text token.
      sequences: that are not empty.
    """

    is_packed: bool
    ended: int
    begun: int
    sequences: int


def import_tokens(
    tokens: TokenSet, tokenizer: Tokenizer, folder: Path, settings: Preparation, *, link: bool
) -> Manifest:
    """Makes a component of a set in `folder`, or returns the one there that was made of the same set and settings.

    Args:
      link: rows may be linked to the set's file instead of copied.

    Raises:
      InputError: an id is not in the vocabulary, documents end or begin with other tokens than the vocabulary's, there
        is less than a row, or `folder` holds another component.
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
            return _existing(folder, request)
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


def _existing(folder: Path, request: Mapping[str, Any]) -> Manifest:
    manifest = Manifest.load(folder / "manifest.json")
    if manifest.source.get("request") != content_hash(request):
        raise InputError(
            f"{folder}: holds a component of another set or settings; choose another folder, or delete this one"
        )
    manifest.check_sizes()
    return manifest


def _survey(tokens: TokenSet, tokenizer: Tokenizer, begin: int | None, name: str) -> Survey:
    """Reads all ids once and checks them against the vocabulary."""
    about, end = f"component {name!r}: {tokens.path}", tokenizer.end_of_text_id
    last, ended, begun, ends_inside, first, led, padded = Counter[int](), 0, 0, 0, 0, 0, Counter[int]()
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
        ends_inside += int((ids == end).sum())
        closing = ids[ends[lengths[filled] >= _PADDED, None] - np.arange(1, _PADDED + 1)]
        padded.update(closing[(closing == closing[:, :1]).all(axis=1), 0].tolist())
        if len(last) < _MOST_LISTED:
            last.update(final.tolist())
        first += len(lengths)
    sizes = tokens.lengths[tokens.lengths > 0]
    if not len(sizes):
        raise InputError(f"{about}: holds no token")
    is_packed = len(sizes) > 1 and int(sizes.min()) == int(sizes.max()) and ended < len(sizes)
    # End-of-text in front of documents, as where it is also begin-of-text, separates them as well as behind them.
    is_packed |= led > 0.95 * len(sizes) and ended < 0.05 * len(sizes)
    (common, count), seen = last.most_common(1)[0], last.total()
    if not ends_inside or (not is_packed and ended < 0.05 * len(sizes) and common != end and count > 0.95 * seen >= 19):
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
        log.warning("%s: holds packed rows, which are assumed to have id %d before every document", about, begin)
    return Survey(is_packed=is_packed, ended=ended, begun=begun, sequences=len(sizes))


def _may_link(tokens: TokenSet, survey: Survey, begin: int | None) -> bool:
    """Whether the set's file holds documents with all tokens that rows have."""
    is_complete = survey.ended == survey.sequences and (begin is None or survey.begun == survey.sequences)
    return tokens.flat is not None and (survey.is_packed or is_complete)


def _staged(
    tokens: TokenSet, tokenizer: Tokenizer, survey: Survey, begin: int | None, staging: Path
) -> tuple[FlatFile, np.ndarray]:
    """Writes all ids to one file, with end-of-text and begin-of-text added where a document lacks them.

    Returns:
      The file, and the lengths of its sequences.
    """
    dtype = "uint16" if tokenizer.size <= 1 << 16 else "uint32"
    flat, lengths = FlatFile(path=staging / "tokens.bin", dtype=dtype), []
    make_folder(staging)
    with writing(flat.path) as file:
        for ids, sizes in tokens.blocks(_BLOCK_TOKENS):
            ids = np.ascontiguousarray(ids, np.dtype(dtype).newbyteorder("<"))
            if not survey.is_packed:
                ids, sizes = _completed(ids, sizes[sizes > 0], tokenizer.end_of_text_id, begin)
            file.write(ids.data)
            lengths.append(sizes)
    return flat, np.concatenate(lengths)


def _completed(ids: np.ndarray, lengths: np.ndarray, end: int, begin: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Documents with end-of-text and `begin` added where they lack them, and their lengths."""
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
    """(first, end) in tokens of the stretches of each split; held-out sequences are taken from all over the set."""
    bounds, share = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]), settings.validation_share
    spans_with_rows = int(bounds[-1] * min(share, 1 - share) / (_ROWS_OF_SPAN * (settings.sequence_length + 1)))
    spans = max(1, min(_SPANS, int(len(lengths) * share), spans_with_rows)) if share else 0
    draw, train, held, at = random.Random(f"{settings.seed}/{settings.name}/tokens"), [], [], 0
    for span in range(spans):
        first, end = span * len(lengths) // spans, (span + 1) * len(lengths) // spans
        count = round((end - first) * share)
        if not count:
            continue
        begin = first + draw.randint(0, end - first - count)
        train.append((at, int(bounds[begin])))
        held.append((int(bounds[begin]), int(bounds[begin + count])))
        at = int(bounds[begin + count])
    return {"train": [*train, (at, int(bounds[-1]))], "validation": held}


@dataclass
class _Counts:
    """Statistics of documents, counted from rows in the order of the stream; lengths are without added tokens.

    Attributes:
      across: rows that end within a document; open_tokens: since the last end-of-text.
      lengths: documents by the exponent i for which their length is from 2 ** (i - 1) to 2 ** i - 1.
    """

    end: int
    documents: int = 0
    across: int = 0
    open_tokens: int = 0
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
    flat: FlatFile,
    lengths: np.ndarray,
    request: Mapping[str, Any],
    is_linked: bool,
) -> Manifest:
    """Writes the rows of every split; returns the manifest, which is not saved yet."""
    row_tokens, dtype = settings.sequence_length + 1, "uint16" if np.dtype(flat.dtype).itemsize == 2 else "uint32"
    size, counts, splits = os.path.getsize(flat.path), _Counts(end=tokenizer.end_of_text_id), {}
    for split, intervals in _intervals(lengths, settings).items():
        starts = [np.arange(first, end - row_tokens + 1, row_tokens) for first, end in intervals]
        offsets = np.concatenate([np.empty(0, np.int64), *starts])
        if not len(offsets):
            if split == "train":
                problem = f"{counted(int(lengths.sum()), 'token')} do not fill one row of {row_tokens:,}"
                raise InputError(f"component {settings.name!r}: {problem}; give it more, or change sequence_length")
            continue
        rows = LinkedRows(flat.path, np.dtype(dtype).newbyteorder("<"), offsets, row_tokens, str(flat.path))
        before = counts.documents
        checksums = _checked(rows, len(offsets), row_tokens, counts)
        order = np.argsort(row_keys(settings.seed, settings.name, split, "tokens", len(offsets)), kind="stable")
        linked = offsets[order] if is_linked else None
        splits[split] = Split(
            documents=counts.documents - before,
            tokens=len(offsets) * row_tokens,
            text_bytes=_text_bytes(rows, len(offsets), tokenizer),
            dropped_tokens=sum(end - first for first, end in intervals) - len(offsets) * row_tokens,
            rows=len(offsets),
            shards=tuple(_shards(folder / split, rows, linked, order, checksums, settings)),
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
    """Checksums of all rows, uint32 [count]; adds the rows to `counts`."""
    checksums = np.empty(count, "<u4")
    for numbers in _numbers(count, row_tokens):
        block = rows[numbers]
        checksums[numbers] = row_checksums(block)
        counts.add(block)
    return checksums


def _text_bytes(rows: LinkedRows, count: int, tokenizer: Tokenizer) -> int:
    """Bytes of the rows' text, estimated from some that are decoded."""
    chosen = np.unique(np.linspace(0, count - 1, min(count, _SAMPLED_ROWS)).astype(np.int64))
    return sum(len(tokenizer.decode(row.tolist()).encode()) for row in rows[chosen]) * count // len(chosen)


def _shards(
    path: Path,
    rows: LinkedRows,
    offsets: np.ndarray | None,
    order: np.ndarray,
    checksums: np.ndarray,
    settings: Preparation,
) -> Iterator[Shard]:
    """Writes rows in this order, or where they begin, with their checksums.

    Args:
      path: of which the files' names begin; offsets: of linked rows in this order; None: rows are copied.
    """
    count = 1 if offsets is not None else shard_count(len(order), rows[order[:1]].nbytes, settings.shard_bytes)
    for number, own in enumerate(np.array_split(order, count)):
        numbers = _numbers(len(own), settings.sequence_length + 1)
        blocks = (rows[own[part]] for part in numbers) if offsets is None else [offsets.astype("<i8")]
        ending, digest = "bin" if offsets is None else "offsets", hashlib.sha256()
        shard = path.with_name(f"{path.name}-{number:05d}-of-{count:05d}.{ending}")
        with writing(shard) as file:
            for block in blocks:
                file.write(block.data)
                digest.update(block.data)
        with writing(Path(f"{shard}.crc32")) as file:
            file.write(np.ascontiguousarray(checksums[own]).data)
        yield Shard(file=shard.name, rows=len(own), sha256=digest.hexdigest())


def _statistics(counts: _Counts) -> dict[str, Any]:
    """The manifest's `statistics`; what tokens do not tell is 0."""
    return {
        "documents": counts.documents,
        "kept": counts.documents,
        **dict.fromkeys(LEFT_OUT, 0),
        "documents_across_rows": counts.across,
        "truncated_documents": 0,
        "length_tokens": length_statistics(counts.lengths, counts.shortest, counts.longest, counts.total),
    }

"""Chunks of a corpus: cut from it in order; each becomes rows independently, in any process or machine.

A chunk's full rows are sorted by their permutation keys. Its last tokens, fewer than a row, are its remainder;
remainders are joined in the order of the chunks and cut into rows at the end, so that no token is lost at a chunk's
border. For conversations the remainder is the examples of the chunk's emptiest rows, which are packed again with those
of all other chunks.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
import dataclasses
from dataclasses import dataclass, field
import enum
import hashlib
import itertools
import json
from typing import Any, NamedTuple

import numpy as np

from diversity_jax.core.files import join_path, open_file, read_json, write_json, writing
from diversity_jax.corpus import Document
from diversity_jax.corpus.corpus import Tally
from diversity_jax.prepare.config import Preparation
from diversity_jax.prepare.decontaminate import Overlap
from diversity_jax.prepare.encoding import (
    FIRST_CHUNK,
    EncodedSplit,
    EncoderChoice,
    chunk_name,
    encode_splits,
    full_rows,
)
from diversity_jax.prepare.manifest import LEFT_OUT, SPLITS
from diversity_jax.prepare.packing import Chunk, Job, fill_rows, pack, split_examples
from diversity_jax.prepare.rows import row_keys

_CHUNK_DOCUMENTS = 1 << 16  # bounds the memory of a chunk of very short documents
_WRITTEN_ROWS = 64  # of a chunk, sorted and written at once
_REMAINDERS = "tails"  # the chunk of all remainders; its rows' permutation keys depend on this name


class DocumentStatus(enum.IntEnum):
    """Whether a document is left out, and why; the values above 0 are the reasons `manifest.LEFT_OUT` in order."""

    KEPT = 0
    EXACT_DUPLICATE = 1
    NEAR_DUPLICATE = 2
    CONTAMINATED = 3


@dataclass(frozen=True, kw_only=True)
class ChunkSplit:
    """One split in a chunk's file: rows in key order, their keys, and the remainder.

    Attributes:
      tokens: with end-of-text and the remainder; rows: full ones.
      row_offset, key_offset, remainder_offset: in the file, in bytes.
      documents_across_rows: documents with tokens in more than one row.
      too_long: conversations left out because they do not fit into a row; failed: because the chat template fails on
        them; first_failure: its message for the first; target_tokens: of answers.
      special_text: documents that contain the text of a special token.
    """

    documents: int
    tokens: int
    text_bytes: int
    rows: int
    remainder_tokens: int
    row_offset: int
    key_offset: int
    remainder_offset: int
    documents_across_rows: int
    too_long: int = 0
    failed: int = 0
    first_failure: str | None = None
    target_tokens: int = 0
    special_text: int = 0


@dataclass(frozen=True, kw_only=True)
class ChunkRecord:
    """The record of a finished chunk, a JSON file.

    Attributes:
      documents: of the corpus, including those left out; left_out: by reason.
      shortest, longest: lengths in tokens of the documents kept, without begin- and end-of-text; lengths: how many of
        them have 2^(i-1) to 2^i - 1 tokens, by i.
      overlaps: with benchmark items, of documents left out for them.
      encoder: library and version that encoded it; is_compared: the reference encoded all of it, too; difference: where
        the fast encoder gave other ids.
      sha256: of the chunk's file.
    """

    name: str
    splits: dict[str, ChunkSplit]
    sha256: str
    documents: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    shortest: int = 0
    longest: int = 0
    lengths: dict[str, int] = field(default_factory=dict)
    overlaps: tuple[Overlap, ...] = ()
    encoder: str = ""
    is_compared: bool = False
    difference: str | None = None

    @classmethod
    def load(cls, path: Any) -> "ChunkRecord":
        """Reads a record."""
        value = read_json(path)
        value["splits"] = {name: ChunkSplit(**split) for name, split in value["splits"].items()}
        value["overlaps"] = tuple(Overlap(**overlap) for overlap in value["overlaps"])
        return cls(**value)


def first_difference(records: Sequence[ChunkRecord]) -> str | None:
    """The first chunk in which encoders differ; None: none."""
    return min((record.name for record in records if record.difference), default=None)


def unsure_chunks(records: Sequence[ChunkRecord], reference: str) -> list[str]:
    """Chunks that the reference must encode again: if encoders differ, all that it has not encoded entirely.

    Args:
      records: of all chunks, in order; reference: the reference's name.
    """
    if first_difference(records) is None:
        return []
    return [record.name for record in records if not record.is_compared and record.encoder not in ("", reference)]


def encoder_runs(records: Sequence[ChunkRecord]) -> list[dict[str, Any]]:
    """The manifest's `encoders`: for each run of chunks of one encoder the first, the last, their number, how many were
    compared entirely, and where encoders differ."""
    runs: list[dict[str, Any]] = []
    for encoder, group in itertools.groupby(records, key=lambda record: record.encoder):
        chunks = list(group)
        difference = next((record.difference for record in chunks if record.difference), None)
        compared = sum(record.is_compared for record in chunks)
        runs.append(
            {"encoder": encoder, "first": chunks[0].name, "last": chunks[-1].name, "chunks": len(chunks)}
            | ({"compared": compared} if compared else {})
            | ({"difference": difference} if difference else {})
        )
    return runs


class Done(NamedTuple):
    """Counts of a finished chunk, for progress; `differs`: its name, if encoders differ in it."""

    documents: int
    characters: int
    tokens: int
    differs: str | None = None


def chunked(documents: Iterable[Document], unit: int, settings: Preparation, choice: EncoderChoice) -> Iterator[Chunk]:
    """Cuts a unit's documents into chunks, which depend on the documents and settings alone."""
    stream, is_text = iter(documents), settings.chat is None
    for number in itertools.count():
        ids, texts, characters = list[str](), list[str](), 0
        for document in stream:
            ids.append(document.id)
            texts.append(document.text if is_text else json.dumps(document.meta["messages"], ensure_ascii=False))
            characters += len(texts[-1])
            if characters >= settings.piece_characters or len(texts) == _CHUNK_DOCUMENTS:
                break
        if not texts:
            return
        name = chunk_name(unit, number)
        yield Chunk(name=name, ids=ids, texts=texts, encoder=choice.encoder(unit, number, characters))


def screen(job: Job, chunk: Chunk) -> tuple[np.ndarray, tuple[Overlap, ...]]:
    """`DocumentStatus` of each document, uint8 [documents], by its overlaps with benchmarks, and these overlaps."""
    statuses = np.full(len(chunk.texts), DocumentStatus.KEPT, np.uint8)
    overlaps: list[Overlap] = []
    if job.benchmarks is not None:
        for i, (document, text) in enumerate(zip(chunk.ids, chunk.texts, strict=True)):
            if shared := job.benchmarks.overlaps(document, text):
                overlaps += shared
                statuses[i] = DocumentStatus.CONTAMINATED
    return statuses, tuple(overlaps)


def failed_conversations(records: Iterable[ChunkRecord]) -> Tally:
    """The conversations that the chat template fails on, as broken records."""
    tally = Tally()
    for split in (split for record in records for split in record.splits.values() if split.failed):
        rejected = Counter({"chat template fails": split.failed})
        tally.add(Tally(broken=split.failed, first_error=split.first_failure, rejected=rejected))
    return tally


def encode_chunk(job: Job, chunk: Chunk, statuses: np.ndarray | None = None) -> Done:
    """Tokenises a chunk and writes its file and then its record.

    Args:
      statuses: `DocumentStatus` of each document; None: documents are screened here.
    """
    statuses, overlaps = screen(job, chunk) if statuses is None else (statuses, ())
    texts: dict[str, list[str]] = {split: [] for split in SPLITS}
    for text, status in zip(chunk.texts, statuses.tolist(), strict=True):
        if status == DocumentStatus.KEPT:
            texts["validation" if is_held_out(text, job.settings) else "train"].append(text)
    encoded, encoder, difference = encode_splits(job, chunk, texts, is_first=chunk.name == FIRST_CHUNK)
    lengths = np.concatenate([split.lengths for split in encoded.values()])
    exponents, counts = np.unique(np.frexp(lengths.astype(np.float64))[1], return_counts=True)
    splits, sha256 = _write_chunk(job, chunk.name, encoded)
    record = ChunkRecord(
        name=chunk.name,
        documents=len(chunk.texts) - sum(split.failed for split in splits.values()),
        left_out={reason: int((statuses == status).sum()) for status, reason in enumerate(LEFT_OUT, start=1)},
        shortest=int(lengths.min()) if len(lengths) else 0,
        longest=int(lengths.max(initial=0)),
        lengths={str(exponent): count for exponent, count in zip(exponents.tolist(), counts.tolist(), strict=True)},
        overlaps=overlaps,
        encoder=encoder,
        is_compared=chunk.encoder == "checked" and encoder != job.tokenizer.encoders.reference_name,
        difference=difference,
        splits=splits,
        sha256=sha256,
    )
    write_json(join_path(job.staging_dir, f"{chunk.name}.rows.json"), dataclasses.asdict(record))
    tokens = sum(split.tokens for split in splits.values())
    return Done(len(chunk.texts), sum(map(len, chunk.texts)), tokens, chunk.name if difference else None)


def is_held_out(text: str, settings: Preparation) -> bool:
    """Whether a document goes to the validation split: a function of its text and the seed."""
    if not settings.validation_share:
        return False
    key = settings.seed.to_bytes(8, "little", signed=True)
    digest = hashlib.blake2b(text.encode(), digest_size=8, key=key).digest()
    return int.from_bytes(digest, "little") < settings.validation_share * 2**64


def write_remainders(job: Job, records: Sequence[ChunkRecord]) -> tuple[ChunkRecord, int]:
    """Writes rows of all remainders as one more chunk; also returns how many documents end in the dropped tokens."""
    encoded, truncated = {}, 0
    for split in SPLITS:
        remainders = [
            read_array(job, record.name, part.remainder_offset, part.remainder_tokens, job.dtype)
            for record in records
            for part in [record.splits[split]]
        ]
        tokens = np.concatenate([np.empty(0, job.dtype), *remainders])
        if job.chat is None:
            rows, rest = full_rows(job, tokens)
        else:
            examples, rest = split_examples(tokens), tokens[:0]
            packed = pack([len(example) for example in examples], job.row_tokens)
            rows = fill_rows(examples, packed, job.row_tokens, job.tokenizer.end_of_text_id)
        truncated += int((rest == job.tokenizer.end_of_text_id).sum())
        counts = {"tokens": len(tokens), "text_bytes": 0, "documents_across_rows": 0}
        encoded[split] = EncodedSplit(rows, rest, np.empty(0, np.int64), counts)
    splits, sha256 = _write_chunk(job, _REMAINDERS, encoded)
    return ChunkRecord(name=_REMAINDERS, splits=splits, sha256=sha256), truncated


def read_array(job: Job, chunk: str, offset: int, count: int, dtype: str) -> np.ndarray:
    """Reads `count` numbers at a byte offset of a chunk's file."""
    if not count:
        return np.empty(0, dtype)
    with open_file(join_path(job.staging_dir, f"{chunk}.rows")) as file:
        file.seek(offset)
        return np.frombuffer(file.read(count * np.dtype(dtype).itemsize), dtype)


def _write_chunk(job: Job, name: str, encoded: Mapping[str, EncodedSplit]) -> tuple[dict[str, ChunkSplit], str]:
    """Writes a chunk's file; returns its splits and its SHA-256."""
    digest, size, splits = hashlib.sha256(), 0, {}
    with writing(join_path(job.staging_dir, f"{name}.rows")) as file:
        for split, (rows, remainder, lengths, counts) in encoded.items():
            keys = row_keys(job.settings.seed, job.settings.name, split, name, len(rows))
            order = np.argsort(keys, kind="stable")
            offsets = []
            blocks = (rows[order[start : start + _WRITTEN_ROWS]] for start in range(0, len(order), _WRITTEN_ROWS))
            for arrays in (blocks, [keys[order].astype("<u8")], [remainder]):
                offsets.append(size)
                for values in arrays:
                    data = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
                    file.write(data)
                    digest.update(data)
                    size += len(data)
            splits[split] = ChunkSplit(
                documents=len(lengths),
                rows=len(rows),
                remainder_tokens=len(remainder),
                row_offset=offsets[0],
                key_offset=offsets[1],
                remainder_offset=offsets[2],
                **counts,
            )
    return splits, digest.hexdigest()

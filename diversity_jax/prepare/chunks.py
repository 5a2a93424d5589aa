"""Chunks of a corpus: cut from it in order, each turned into rows by itself, whichever process or machine does it.

A chunk's full rows are put in the order of their permutation keys. Its last tokens, fewer than a row, are its
remainder; remainders are joined in the order of the chunks and cut into rows at the end, so that no token is lost at a
chunk's border. Of conversations the remainder is the examples of the chunk's emptiest rows, which are packed anew with
those of all other chunks.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import dataclasses
from dataclasses import dataclass, field
import enum
import hashlib
import itertools
import json
from typing import Any, NamedTuple

import numpy as np

from diversity_jax.core.artifacts import ArtifactStore
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import join_path, open_file, read_json, write_json, writing
from diversity_jax.corpus import Document
from diversity_jax.prepare.config import Preparation
from diversity_jax.prepare.decontaminate import Benchmarks, Overlap
from diversity_jax.prepare.manifest import LEFT_OUT, SPLITS
from diversity_jax.prepare.packing import ChatFormat, ExampleEncoder, fill_rows, pack, split_examples
from diversity_jax.prepare.rows import TARGET, row_keys
from diversity_jax.tokenizers.tokenizer import Tokenizer

_CHUNK_DOCUMENTS = 1 << 16  # bounds the memory of a chunk of very short documents
_BATCH_DOCUMENTS = 1024  # tokenised at once: many enough to use a tokenizer's threads,
_BATCH_CHARACTERS = 1 << 20  # few enough to hold their ids in memory
_FULL_ENOUGH = 0.98  # of a row of conversations: emptier ones are packed anew with those of other chunks,
_LOOSE_ROWS = 16  # at most so many of each chunk
_REMAINDERS = "tails"  # the chunk of all remainders; its rows' permutation keys depend on this name


class DocumentStatus(enum.IntEnum):
    """What becomes of a document; the values above 0 are the reasons `manifest.LEFT_OUT` in order."""

    KEPT = 0
    EXACT_DUPLICATE = 1
    NEAR_DUPLICATE = 2
    CONTAMINATED = 3


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Consecutive documents of one unit of a corpus; `name` is unique and in the order of the corpus."""

    name: str
    ids: Sequence[str]
    texts: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every process needs to know: small enough to be sent to each once.

    Attributes:
      benchmarks: to screen documents with.
      folder: where the component goes; staging_dir: of intermediate files. Paths or URLs.
      dtype: of a token, `<u2` or `<u4`.
      chat: how conversations are written; None: documents are text.
      begin_of_text_id: written before every document; None: nothing.
    """

    tokenizer: Tokenizer
    settings: Preparation
    benchmarks: Benchmarks | None
    folder: str
    staging_dir: str
    dtype: str
    chat: ChatFormat | None = None
    begin_of_text_id: int | None = None

    @property
    def added_tokens(self) -> int:
        """Tokens of a document of text beside its own: end-of-text, and what is written before it."""
        return 1 if self.begin_of_text_id is None else 2

    @property
    def row_tokens(self) -> int:
        """Tokens in a row."""
        return self.settings.sequence_length + 1

    @property
    def staging(self) -> ArtifactStore:
        """Intermediate files and their records."""
        return ArtifactStore(self.staging_dir)


@dataclass(frozen=True, kw_only=True)
class ChunkSplit:
    """What a chunk's file holds of one split: rows in key order, their keys, and the remainder.

    Attributes:
      tokens: with end-of-text and the remainder; rows: full ones.
      row_offset, key_offset, remainder_offset: in the file, in bytes.
      documents_across_rows: documents that lie in more than one row.
      too_long: conversations left out because they do not fit into a row; target_tokens: of answers.
      special_text: documents in which the text of a special token stands.
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
    target_tokens: int = 0
    special_text: int = 0


@dataclass(frozen=True, kw_only=True)
class ChunkRecord:
    """A finished chunk, written as JSON beside the chunk's file.

    Attributes:
      documents: of the corpus, including those left out; left_out: by reason.
      shortest, longest: lengths in tokens of the documents kept, without what is added; lengths: how many of them have
        2^(i-1) to 2^i - 1 tokens, by i.
      overlaps: with benchmark items, of documents left out for them.
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

    @classmethod
    def load(cls, path: Any) -> "ChunkRecord":
        """Reads a record."""
        value = read_json(path)
        value["splits"] = {name: ChunkSplit(**split) for name, split in value["splits"].items()}
        value["overlaps"] = tuple(Overlap(**overlap) for overlap in value["overlaps"])
        return cls(**value)


class _EncodedSplit(NamedTuple):
    """Documents of a split as rows [rows, row_tokens], and the tokens that are left.

    Attributes:
      lengths: of the documents in tokens, without what is added to text; int64 [documents].
      counts: other fields of `ChunkSplit`.
    """

    rows: np.ndarray
    remainder: np.ndarray
    lengths: np.ndarray
    counts: dict[str, int]


def chunked(documents: Iterable[Document], unit: int, settings: Preparation) -> Iterator[Chunk]:
    """A unit's documents in chunks, which depend on the documents alone."""
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
        yield Chunk(name=f"{unit:06d}-{number:06d}", ids=ids, texts=texts)


def screen(job: Job, chunk: Chunk) -> tuple[np.ndarray, tuple[Overlap, ...]]:
    """`DocumentStatus` of each document by itself, uint8 [documents], and the overlaps with benchmarks behind it."""
    statuses = np.full(len(chunk.texts), DocumentStatus.KEPT, np.uint8)
    overlaps: list[Overlap] = []
    if job.benchmarks is not None:
        for i, (document, text) in enumerate(zip(chunk.ids, chunk.texts, strict=True)):
            if shared := job.benchmarks.overlaps(document, text):
                overlaps += shared
                statuses[i] = DocumentStatus.CONTAMINATED
    return statuses, tuple(overlaps)


def encode_chunk(job: Job, chunk: Chunk, statuses: np.ndarray | None = None) -> tuple[int, int, int]:
    """Tokenises a chunk and writes its file and then its record.

    Args:
      statuses: `DocumentStatus` of each document; None: documents are screened here.

    Returns:
      Documents, characters and tokens.
    """
    statuses, overlaps = screen(job, chunk) if statuses is None else (statuses, ())
    texts: dict[str, list[str]] = {split: [] for split in SPLITS}
    for text, status in zip(chunk.texts, statuses.tolist(), strict=True):
        if status == DocumentStatus.KEPT:
            texts["validation" if is_held_out(text, job.settings) else "train"].append(text)
    encode = _encode_texts if job.chat is None else _encode_conversations
    encoded = {split: encode(job, texts[split]) for split in SPLITS}
    lengths = np.concatenate([split.lengths for split in encoded.values()])
    exponents, counts = np.unique(np.frexp(lengths.astype(np.float64))[1], return_counts=True)
    splits, sha256 = _write_chunk(job, chunk.name, encoded)
    record = ChunkRecord(
        name=chunk.name,
        documents=len(chunk.texts),
        left_out={reason: int((statuses == status).sum()) for status, reason in enumerate(LEFT_OUT, start=1)},
        shortest=int(lengths.min()) if len(lengths) else 0,
        longest=int(lengths.max(initial=0)),
        lengths={str(exponent): count for exponent, count in zip(exponents.tolist(), counts.tolist(), strict=True)},
        overlaps=overlaps,
        splits=splits,
        sha256=sha256,
    )
    write_json(join_path(job.staging_dir, f"{chunk.name}.rows.json"), dataclasses.asdict(record))
    return len(chunk.texts), sum(map(len, chunk.texts)), sum(split.tokens for split in splits.values())


def is_held_out(text: str, settings: Preparation) -> bool:
    """Whether a document goes to the validation split: a function of its text and the seed."""
    if not settings.validation_share:
        return False
    key = settings.seed.to_bytes(8, "little", signed=True)
    digest = hashlib.blake2b(text.encode(), digest_size=8, key=key).digest()
    return int.from_bytes(digest, "little") < settings.validation_share * 2**64


def write_remainders(job: Job, records: Sequence[ChunkRecord]) -> tuple[ChunkRecord, int]:
    """Rows out of all remainders as one more chunk, and how many documents end among the tokens that are dropped."""
    encoded, truncated = {}, 0
    for split in SPLITS:
        remainders = [
            read_array(job, record.name, part.remainder_offset, part.remainder_tokens, job.dtype)
            for record in records
            for part in [record.splits[split]]
        ]
        tokens = np.concatenate([np.empty(0, job.dtype), *remainders])
        if job.chat is None:
            rows, rest = _full_rows(job, tokens)
        else:
            examples, rest = split_examples(tokens), tokens[:0]
            packed = pack([len(example) for example in examples], job.row_tokens)
            rows = fill_rows(examples, packed, job.row_tokens, job.tokenizer.end_of_text_id)
        truncated += int((rest == job.tokenizer.end_of_text_id).sum())
        counts = {"tokens": len(tokens), "text_bytes": 0, "documents_across_rows": 0}
        encoded[split] = _EncodedSplit(rows, rest, np.empty(0, np.int64), counts)
    splits, sha256 = _write_chunk(job, _REMAINDERS, encoded)
    return ChunkRecord(name=_REMAINDERS, splits=splits, sha256=sha256), truncated


def read_array(job: Job, chunk: str, offset: int, count: int, dtype: str) -> np.ndarray:
    """`count` numbers from a byte offset in a chunk's file on."""
    if not count:
        return np.empty(0, dtype)
    with open_file(join_path(job.staging_dir, f"{chunk}.rows")) as file:
        file.seek(offset)
        return np.frombuffer(file.read(count * np.dtype(dtype).itemsize), dtype)


def _write_chunk(job: Job, name: str, encoded: Mapping[str, _EncodedSplit]) -> tuple[dict[str, ChunkSplit], str]:
    """Writes a chunk's file; returns what it holds of each split, and its SHA-256."""
    digest, size, splits = hashlib.sha256(), 0, {}
    with writing(join_path(job.staging_dir, f"{name}.rows")) as file:
        for split, (rows, remainder, lengths, counts) in encoded.items():
            keys = row_keys(job.settings.seed, job.settings.name, split, name, len(rows))
            order = np.argsort(keys, kind="stable")
            offsets = []
            for values in (rows[order], keys[order].astype("<u8"), remainder):
                data = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
                file.write(data)
                digest.update(data)
                offsets.append(size)
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


def _encode_texts(job: Job, texts: Sequence[str]) -> _EncodedSplit:
    joined, lengths, text_bytes, special_text = [np.empty(0, job.dtype)], [np.empty(0, np.int64)], 0, 0
    for batch in _batches(texts):
        special_text += _count_special(job, batch)
        ids, batch_lengths = job.tokenizer.encode_batch(batch, special=job.settings.special_text == "special")
        ends = np.cumsum(batch_lengths + job.added_tokens) - 1
        tokens = np.full(len(ids) + len(batch) * job.added_tokens, job.tokenizer.end_of_text_id, job.dtype)
        inside = np.ones(len(tokens), bool)
        inside[ends] = False
        if job.begin_of_text_id is not None:
            begins = ends - batch_lengths - 1
            inside[begins], tokens[begins] = False, job.begin_of_text_id
        tokens[inside] = ids
        joined.append(tokens)
        lengths.append(batch_lengths)
        text_bytes += sum(len(text) if text.isascii() else len(text.encode()) for text in batch)
    tokens, document_lengths = np.concatenate(joined), np.concatenate(lengths)
    ends = np.cumsum(document_lengths + job.added_tokens)
    starts = ends - document_lengths - job.added_tokens
    across = int((starts // job.row_tokens != (ends - 1) // job.row_tokens).sum())
    counts = {
        "tokens": len(tokens),
        "text_bytes": text_bytes,
        "documents_across_rows": across,
        "special_text": special_text,
    }
    return _EncodedSplit(*_full_rows(job, tokens), document_lengths, counts)


def _count_special(job: Job, texts: Sequence[str]) -> int:
    """How many of the texts hold a special token's text.

    Raises:
      InputError: one does, and the settings refuse that.
    """
    found = [(text, special) for text, special in zip(texts, job.tokenizer.special_in(texts), strict=True) if special]
    if found and job.settings.special_text == "refuse":
        text, special = found[0]
        raise InputError(
            f"component {job.settings.name!r}: the document that begins {text[:60]!r} holds the text of a special "
            f"token, {special!r}; take it out, or set special_text to plain or special"
        )
    return len(found)


def _full_rows(job: Job, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Full rows, [rows, row_tokens], and what is left."""
    end = len(tokens) // job.row_tokens * job.row_tokens
    return tokens[:end].reshape(-1, job.row_tokens), tokens[end:]


def _encode_conversations(job: Job, texts: Sequence[str]) -> _EncodedSplit:
    assert job.chat is not None
    encoder = ExampleEncoder(job.tokenizer, job.chat, special_text=job.settings.special_text == "special")
    row_tokens = job.row_tokens
    examples: list[np.ndarray] = []
    text_bytes, special_text = 0, 0
    for batch in _batches(texts):
        contents = ["\n".join(turn["content"] for turn in json.loads(conversation)) for conversation in batch]
        special_text += _count_special(job, contents)
        for example, answer_bytes in zip(*encoder.encode(batch), strict=True):
            if len(example) <= row_tokens:
                examples.append(example)
                text_bytes += answer_bytes
    lengths = np.array([len(example) for example in examples], np.int64)
    packed = pack(lengths.tolist(), row_tokens)
    used = [int(lengths[numbers].sum()) for numbers in packed]
    emptiest = sorted(range(len(packed)), key=used.__getitem__)[:_LOOSE_ROWS]
    loose = {row for row in emptiest if used[row] < _FULL_ENOUGH * row_tokens}
    full = [numbers for row, numbers in enumerate(packed) if row not in loose]
    remainder = [examples[number] for row in sorted(loose) for number in packed[row]]
    counts = {
        "tokens": int(lengths.sum()),
        "text_bytes": text_bytes,
        "documents_across_rows": 0,
        "too_long": len(texts) - len(examples),
        "special_text": special_text,
        "target_tokens": sum(int(((example & TARGET) != 0).sum()) for example in examples),
    }
    rows = fill_rows(examples, full, row_tokens, job.tokenizer.end_of_text_id)
    return _EncodedSplit(rows, np.concatenate([np.empty(0, job.dtype), *remainder]), lengths, counts)


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    batch, characters = list[str](), 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if len(batch) == _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch

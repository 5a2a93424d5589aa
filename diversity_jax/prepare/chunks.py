"""Pieces of a corpus: cut from it in order, each turned into rows by itself, whichever process or machine does it.

A piece's full rows are put in the order of their permutation keys. Its last tokens, fewer than a row, are its tail;
tails are joined in the order of the pieces and cut into rows at the end, so that no token is lost at a piece's border.
Of conversations the tail is the examples of the piece's emptiest rows, which are packed anew with those of all other
pieces.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
import dataclasses
from dataclasses import dataclass, field
import hashlib
import itertools
import json
from typing import Any

import numpy as np

from diversity_jax.core.files import join_path, open_file, read_json, write_json, writing
from diversity_jax.corpus import Document
from diversity_jax.prepare.config import Preparation
from diversity_jax.prepare.decontaminate import Benchmarks, Overlap
from diversity_jax.prepare.manifest import SPLITS
from diversity_jax.prepare.packing import ChatFormat, ExampleEncoder, fill_rows, pack, split_examples
from diversity_jax.prepare.rows import row_keys
from diversity_jax.tokenizers.tokenizer import Tokenizer

_PIECE_DOCUMENTS = 1 << 16
_BATCH_DOCUMENTS = 1024
_BATCH_CHARACTERS = 1 << 20
_FULL_ENOUGH = 0.98  # of a row: emptier ones are packed anew, of each piece
_LOOSE_ROWS = 16  # at most

KEPT, EXACT_DUPLICATE, NEAR_DUPLICATE, CONTAMINATED = range(4)
"""What becomes of a document, uint8."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Consecutive documents of one unit of a corpus; `name` is unique and in the order of the corpus."""

    name: str
    ids: Sequence[str]
    texts: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every process needs to know: small enough to be sent to each once.

    Attributes:
      tokenizer, settings: what is asked; benchmarks: to screen documents with, or None.
      folder: where the component goes; workplace: where pieces wait until then. Paths or URLs.
      dtype: of a token, `<u2` or `<u4`.
      chat: how conversations are written; None: documents are text.
    """

    tokenizer: Tokenizer
    settings: Preparation
    benchmarks: Benchmarks | None
    folder: str
    workplace: str
    dtype: str
    chat: ChatFormat | None = None


@dataclass(frozen=True, kw_only=True)
class PieceSplit:
    """What a piece's file holds of one split: rows in key order, their keys, and the tail.

    Attributes:
      documents, tokens, text_bytes: tokens count end-of-text and the tail.
      rows: full rows; tail_tokens: left over; row_offset, key_offset, tail_offset: in the file, in bytes.
      documents_across_rows: documents that lie in more than one row.
      too_long: conversations left out because they do not fit into a row; targets: tokens of answers.
    """

    documents: int
    tokens: int
    text_bytes: int
    rows: int
    tail_tokens: int
    row_offset: int
    key_offset: int
    tail_offset: int
    documents_across_rows: int
    too_long: int = 0
    targets: int = 0


@dataclass(frozen=True, kw_only=True)
class PieceRecord:
    """A finished piece, as it stands in a JSON file beside the piece's own.

    Attributes:
      documents: of the corpus, those left out too; left_out: by reason.
      shortest, longest: kept documents' lengths in tokens without end-of-text; lengths: how many have 2^(i-1) to 2^i -
        1.
      overlaps: with benchmark items, of documents left out for them.
      sha256: of the piece's file.
    """

    name: str
    documents: int
    left_out: dict[str, int]
    shortest: int
    longest: int
    lengths: dict[str, int]
    overlaps: tuple[Overlap, ...]
    splits: dict[str, PieceSplit]
    sha256: str

    @classmethod
    def load(cls, path: Any) -> "PieceRecord":
        """Reads a record."""
        value = read_json(path)
        value["splits"] = {split: PieceSplit(**found) for split, found in value["splits"].items()}
        value["overlaps"] = tuple(Overlap(**overlap) for overlap in value["overlaps"])
        return cls(**value)


def cut(documents: Iterable[Document], unit: int, settings: Preparation) -> Iterator[Piece]:
    """A unit's documents in pieces, which depend on the documents alone."""
    stream = iter(documents)
    for number in itertools.count():
        ids, texts, characters = [], [], 0
        for document in stream:
            ids.append(document.id)
            texts.append(
                document.text if settings.chat is None else json.dumps(document.meta["messages"], ensure_ascii=False)
            )
            characters += len(texts[-1])
            if characters >= settings.piece_characters or len(texts) == _PIECE_DOCUMENTS:
                break
        if not texts:
            return
        yield Piece(name=f"{unit:06d}-{number:06d}", ids=ids, texts=texts)


def screen(job: Job, piece: Piece) -> tuple[np.ndarray, tuple[Overlap, ...]]:
    """Fate of each document by itself, uint8 [documents], and the overlaps with benchmarks that decided it."""
    fates, overlaps = np.zeros(len(piece.texts), np.uint8), []
    if job.benchmarks is not None:
        for i, (document, text) in enumerate(zip(piece.ids, piece.texts, strict=True)):
            found = job.benchmarks.overlaps(document, text)
            overlaps += found
            fates[i] = CONTAMINATED if found else KEPT
    return fates, tuple(overlaps)


def encode_piece(job: Job, piece: Piece, fates: np.ndarray | None = None) -> tuple[int, int, int]:
    """Tokenises a piece and writes its file and then its record.

    Args:
      fates: what becomes of each document, where another pass decided it; without it documents are screened here.

    Returns:
      Documents, characters and tokens.
    """
    overlaps: tuple[Overlap, ...] = ()
    if fates is None:
        fates, overlaps = screen(job, piece)
    kept = [text for text, fate in zip(piece.texts, fates.tolist(), strict=True) if fate == KEPT]
    held_out = [is_held_out(text, job.settings) for text in kept]
    lengths, splits = _Lengths(), {}
    with _HashedFile(join_path(job.workplace, f"{piece.name}.rows")) as file:
        for split, wanted in zip(SPLITS, (False, True), strict=True):
            texts = [text for text, held in zip(kept, held_out, strict=True) if held is wanted]
            encode = _encode_split if job.chat is None else _encode_conversations
            splits[split] = encode(job, piece.name, split, texts, lengths, file)
    reasons = ("exact_duplicates", "near_duplicates", "contaminated")
    record = PieceRecord(
        name=piece.name,
        documents=len(piece.texts),
        left_out={reason: int((fates == fate).sum()) for fate, reason in enumerate(reasons, start=1)},
        shortest=lengths.shortest,
        longest=lengths.longest,
        lengths={str(exponent): count for exponent, count in sorted(lengths.counts.items())},
        overlaps=overlaps,
        splits=splits,
        sha256=file.sha256,
    )
    write_json(join_path(job.workplace, f"{piece.name}.rows.json"), dataclasses.asdict(record))
    return len(piece.texts), sum(map(len, piece.texts)), sum(split.tokens for split in splits.values())


def write_tails(job: Job, name: str, tails: dict[str, np.ndarray]) -> PieceRecord:
    """Rows cut from all tails, as one more piece; what is left over of it is dropped from the component."""
    with _HashedFile(join_path(job.workplace, f"{name}.rows")) as file:
        splits = {}
        for split, tokens in tails.items():
            rows, rest = (
                _cut_rows(job, tokens) if job.chat is None else (_packed_rows(job, split_examples(tokens)), tokens[:0])
            )
            splits[split] = _write_split(
                job, name, split, rows, rest, file, documents=0, tokens=len(tokens), text_bytes=0, across=0
            )
    nothing = {"documents": 0, "left_out": {}, "shortest": 0, "longest": 0, "lengths": {}, "overlaps": ()}
    return PieceRecord(name=name, splits=splits, sha256=file.sha256, **nothing)


def read_tail(job: Job, record: PieceRecord, split: str) -> np.ndarray:
    """A piece's last tokens."""
    found = record.splits[split]
    with open_file(join_path(job.workplace, f"{record.name}.rows")) as file:
        file.seek(found.tail_offset)
        return np.frombuffer(file.read(found.tail_tokens * np.dtype(job.dtype).itemsize), job.dtype)


def is_held_out(text: str, settings: Preparation) -> bool:
    """Whether a document goes to the validation split: a function of its text and the seed."""
    if not settings.validation_share:
        return False
    digest = hashlib.blake2b(
        text.encode(), digest_size=8, key=settings.seed.to_bytes(8, "little", signed=True)
    ).digest()
    return int.from_bytes(digest, "little") < settings.validation_share * 2**64


class _HashedFile:
    """A file that appears whole, with the SHA-256 of what was written."""

    def __init__(self, path: Any):
        self._writing, self._digest, self.bytes = writing(path), hashlib.sha256(), 0
        self.sha256 = ""

    def __enter__(self) -> "_HashedFile":
        self._file = self._writing.__enter__()
        return self

    def __exit__(self, *error: Any) -> bool | None:
        self.sha256 = self._digest.hexdigest()
        return self._writing.__exit__(*error)

    def write(self, values: np.ndarray) -> int:
        """Appends an array and returns where it starts."""
        start, data = self.bytes, np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
        self._file.write(data)
        self._digest.update(data)
        self.bytes += len(data)
        return start


@dataclass
class _Lengths:
    """Documents' lengths in tokens, counted by powers of two."""

    shortest: int = 0
    longest: int = 0
    counts: Counter[int] = field(default_factory=Counter)

    def add(self, lengths: np.ndarray) -> None:
        exponents, counts = np.unique(np.frexp(lengths.astype(np.float64))[1], return_counts=True)
        first = not self.counts
        self.counts.update(dict(zip(exponents.tolist(), counts.tolist(), strict=True)))
        self.shortest = int(lengths.min()) if first else min(self.shortest, int(lengths.min()))
        self.longest = max(self.longest, int(lengths.max()))


def _encode_split(
    job: Job, name: str, split: str, texts: Sequence[str], lengths: _Lengths, file: _HashedFile
) -> PieceSplit:
    joined, across, text_bytes, at = [np.empty(0, job.dtype)], 0, 0, 0
    row_tokens = job.settings.sequence_length + 1
    for batch in _batches(texts):
        ids, each = job.tokenizer.encode_batch(batch)
        joined.append(_join(ids, each, job.tokenizer.end_of_text_id, np.dtype(job.dtype)))
        ends = at + np.cumsum(each + 1)
        across += int(((ends - each - 1) // row_tokens != (ends - 1) // row_tokens).sum())
        at = int(ends[-1])
        text_bytes += sum(map(_utf8_bytes, batch))
        lengths.add(each)
    tokens = np.concatenate(joined)
    counts = {"documents": len(texts), "tokens": len(tokens), "text_bytes": text_bytes, "across": across}
    return _write_split(job, name, split, *_cut_rows(job, tokens), file, **counts)


def _cut_rows(job: Job, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Full rows, [rows, row_tokens], and what is left."""
    row_tokens = job.settings.sequence_length + 1
    end = len(tokens) // row_tokens * row_tokens
    return tokens[:end].reshape(-1, row_tokens), tokens[end:]


def _encode_conversations(
    job: Job, name: str, split: str, texts: Sequence[str], lengths: _Lengths, file: _HashedFile
) -> PieceSplit:
    encoder, examples, text_bytes, too_long = ExampleEncoder(job.tokenizer, job.chat), [], 0, 0
    row_tokens = job.settings.sequence_length + 1
    for batch in _batches(texts):
        encoded = list(zip(*encoder.encode(batch), strict=True))
        fitting = [(example, answered) for example, answered in encoded if len(example) <= row_tokens]
        too_long += len(encoded) - len(fitting)
        examples += [example for example, _ in fitting]
        text_bytes += sum(answered for _, answered in fitting)
    each = np.array([len(example) for example in examples], np.int64)
    if len(each):
        lengths.add(each)
    packed = pack(each.tolist(), row_tokens)
    used = [int(each[numbers].sum()) for numbers in packed]
    emptiest = [
        row
        for row in sorted(range(len(packed)), key=used.__getitem__)[:_LOOSE_ROWS]
        if used[row] < _FULL_ENOUGH * row_tokens
    ]
    loose = [examples[number] for row in sorted(emptiest) for number in packed[row]]
    rows = fill_rows(
        examples,
        [one for row, one in enumerate(packed) if row not in emptiest],
        row_tokens,
        job.tokenizer.end_of_text_id,
    )
    counts = {"documents": len(examples), "tokens": int(each.sum()), "text_bytes": text_bytes, "across": 0}
    counts |= {"too_long": too_long, "targets": sum(int((example >> 31).sum()) for example in examples)}
    return _write_split(job, name, split, rows, np.concatenate([np.empty(0, job.dtype), *loose]), file, **counts)


def _packed_rows(job: Job, examples: Sequence[np.ndarray]) -> np.ndarray:
    row_tokens = job.settings.sequence_length + 1
    return fill_rows(
        examples, pack([len(example) for example in examples], row_tokens), row_tokens, job.tokenizer.end_of_text_id
    )


def _write_split(
    job: Job,
    name: str,
    split: str,
    rows: np.ndarray,
    tail: np.ndarray,
    file: _HashedFile,
    *,
    across: int,
    **counts: int,
) -> PieceSplit:
    keys = row_keys(job.settings.seed, job.settings.name, split, name, len(rows))
    order = np.argsort(keys, kind="stable")
    return PieceSplit(
        rows=len(rows),
        tail_tokens=len(tail),
        row_offset=file.write(rows[order]),
        key_offset=file.write(keys[order].astype("<u8")),
        tail_offset=file.write(tail),
        documents_across_rows=across,
        **counts,
    )


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    """Texts in batches large enough to tokenise well and small enough to hold."""
    batch, characters = [], 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if len(batch) == _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _utf8_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _join(ids: np.ndarray, lengths: np.ndarray, end_of_text_id: int, dtype: np.dtype) -> np.ndarray:
    """Ids of all documents with an end-of-text id after each."""
    joined = np.full(len(ids) + len(lengths), end_of_text_id, dtype)
    inside = np.ones(len(joined), bool)
    inside[np.cumsum(lengths + 1) - 1] = False
    joined[inside] = ids
    return joined

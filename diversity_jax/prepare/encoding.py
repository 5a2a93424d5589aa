"""Encodes the texts of a chunk and cuts rows from them: text end to end, or conversations packed.

The fast encoder encodes all chunks that are not short. The reference also encodes excerpts of each, the first documents
of the corpus's first chunk, and one chunk in `_COMPARED_EVERY` entirely. From the first chunk in which the two differ,
the reference encodes everything, and again all earlier chunks that were not compared entirely. Which chunks these are
depends on the corpus alone, not on the order in which chunks are encoded.
"""

from collections.abc import Iterator, Mapping, Sequence
import json
from typing import Any, NamedTuple

import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.corpus.conversations import message_text
from diversity_jax.prepare.config import Preparation
from diversity_jax.prepare.packing import Chunk, ExampleEncoder, Job, fill_rows, pack
from diversity_jax.prepare.rows import TARGET
from diversity_jax.tokenizers.encoders import EncodersDiffer

_BATCH_DOCUMENTS = 1024  # tokenised at once: enough for a tokenizer's threads,
_BATCH_CHARACTERS = 1 << 20  # few enough to hold their ids in memory
_FULL_ENOUGH = 0.98  # share of a row of conversations: emptier rows are packed again with those of other chunks,
_LOOSE_ROWS = 16  # at most so many of each chunk
_FIRST_CHARACTERS = 1 << 16  # of a corpus, about: encoded by both before the fast encoder is used
_COMPARED_EVERY = 32  # one chunk in so many is encoded by both as a whole
_UNIT_CHUNKS = 8  # chunks of a unit of many small files, about
_LEAST_CHARACTERS = 1_000_000  # the reference encodes fewer in about the time that loading the fast encoder takes


class EncodedSplit(NamedTuple):
    """Documents of a split as rows [rows, row_tokens], and the remaining tokens.

    Attributes:
      lengths: of the documents in tokens, without begin- and end-of-text; int64 [documents].
      counts: other fields of `ChunkSplit`.
    """

    rows: np.ndarray
    remainder: np.ndarray
    lengths: np.ndarray
    counts: dict[str, Any]


class Encoding(NamedTuple):
    """The splits of a chunk, and how they were encoded.

    Attributes:
      encoder: library and version.
      difference: where the fast encoder gave other ids, so that the reference encoded the chunk; None: they agree.
    """

    splits: dict[str, EncodedSplit]
    encoder: str
    difference: str | None = None


def encode_splits(job: Job, chunk: Chunk, texts: Mapping[str, Sequence[str]], *, is_first: bool) -> Encoding:
    """Encodes a chunk by the encoder chosen for it, or by the reference if that gives other ids.

    Args:
      texts: of the chunk, by split; is_first: it is the corpus's first chunk.
    """
    encode = _encode_texts if job.chat is None else _encode_conversations
    encoders = job.tokenizer.encoders
    reference = encoders.reference_name
    try:
        name = reference if chunk.encoder == "reference" else encoders.fast_name() or reference
        if is_first and name != reference:
            for split in texts.values():
                encode(job, _first(split, can_cut=job.chat is None), "checked")
        return Encoding({split: encode(job, texts[split], chunk.encoder) for split in texts}, name)
    except EncodersDiffer as error:
        where = next(
            (name for name, text in zip(chunk.ids, chunk.texts, strict=True) if error.text in text), chunk.name
        )
        encoded = {split: encode(job, texts[split], "reference") for split in texts}
        return Encoding(encoded, reference, f"{where}: {error}")


def _first(texts: Sequence[str], *, can_cut: bool) -> list[str]:
    """The first texts, about `_FIRST_CHARACTERS`; `can_cut`: the last of them is cut to that."""
    first, left = list[str](), _FIRST_CHARACTERS
    for text in texts:
        first.append(text[:left] if can_cut else text)
        left -= len(text)
        if left <= 0:
            break
    return first


def _encode_texts(job: Job, texts: Sequence[str], encoder: str) -> EncodedSplit:
    joined, lengths, text_bytes, special_text = bytearray(), [np.empty(0, np.int64)], 0, 0
    for batch in _batches(texts):
        special_text += _count_special(job, batch)
        special = job.settings.special_text == "special"
        ids, batch_lengths = job.tokenizer.encode_batch(batch, special=special, encoder=encoder)
        ends = np.cumsum(batch_lengths + job.added_tokens) - 1
        tokens = np.full(len(ids) + len(batch) * job.added_tokens, job.tokenizer.end_of_text_id, job.dtype)
        inside = np.ones(len(tokens), bool)
        inside[ends] = False
        if job.begin_of_text_id is not None:
            begins = ends - batch_lengths - 1
            inside[begins], tokens[begins] = False, job.begin_of_text_id
        tokens[inside] = ids
        joined += tokens.data
        lengths.append(batch_lengths)
        text_bytes += sum(len(text) if text.isascii() else len(text.encode()) for text in batch)
    tokens, document_lengths = np.frombuffer(joined, job.dtype), np.concatenate(lengths)
    ends = np.cumsum(document_lengths + job.added_tokens)
    starts = ends - document_lengths - job.added_tokens
    across = int((starts // job.row_tokens != (ends - 1) // job.row_tokens).sum())
    counts = {
        "tokens": len(tokens),
        "text_bytes": text_bytes,
        "documents_across_rows": across,
        "special_text": special_text,
    }
    return EncodedSplit(*full_rows(job, tokens), document_lengths, counts)


def _count_special(job: Job, texts: Sequence[str]) -> int:
    """How many of the texts contain a special token's text.

    Raises:
      InputError: one does, and the settings refuse that.
    """
    with_special = [
        (text, special) for text, special in zip(texts, job.tokenizer.special_in(texts), strict=True) if special
    ]
    if with_special and job.settings.special_text == "refuse":
        text, special = with_special[0]
        raise InputError(
            f"component {job.settings.name!r}: the document that begins {text[:60]!r} holds the text of a special "
            f"token, {special!r}; take it out, or set special_text to plain or special"
        )
    return len(with_special)


def full_rows(job: Job, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Full rows, [rows, row_tokens], and the remaining tokens."""
    end = len(tokens) // job.row_tokens * job.row_tokens
    return tokens[:end].reshape(-1, job.row_tokens), tokens[end:]


def _encode_conversations(job: Job, texts: Sequence[str], encoder: str) -> EncodedSplit:
    assert job.chat is not None
    special = job.settings.special_text == "special"
    examples_of = ExampleEncoder(job.tokenizer, job.chat, special_text=special, encoder=encoder)
    row_tokens = job.row_tokens
    examples, failed = list[np.ndarray](), list[InputError]()
    tolerated = failed if job.are_failures_tolerated else None
    text_bytes, special_text = 0, 0
    for batch in _batches(texts):
        contents = ["\n".join(map(message_text, json.loads(conversation))) for conversation in batch]
        special_text += _count_special(job, contents)
        for example, answer_bytes in zip(*examples_of.encode(batch, tolerated), strict=True):
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
        "too_long": len(texts) - len(failed) - len(examples),
        "failed": len(failed),
        "first_failure": str(failed[0]) if failed else None,
        "special_text": special_text,
        "target_tokens": sum(int(((example & TARGET) != 0).sum()) for example in examples),
    }
    rows = fill_rows(examples, full, row_tokens, job.tokenizer.end_of_text_id)
    return EncodedSplit(rows, np.concatenate([np.empty(0, job.dtype), *remainder]), lengths, counts)


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


def chunk_name(unit: int, number: int) -> str:
    """The name of a unit's chunk; names sort in the order of the corpus."""
    return f"{unit:06d}-{number:06d}"


FIRST_CHUNK = chunk_name(0, 0)


class EncoderChoice:
    """Chooses the encoder of each chunk.

    Attributes:
      reference_from: the reference encodes the chunk of this name and all after it; None: no difference is known.
    """

    def __init__(self, settings: Preparation, reference_from: str | None):
        self.reference_from, self._settings = reference_from, settings

    def encoder(self, unit: int, number: int, characters: int) -> str:
        """One of `fast`, `checked` and `reference`, for a chunk of so many characters."""
        if self.reference_from is not None and chunk_name(unit, number) >= self.reference_from:
            return "reference"
        if characters < _LEAST_CHARACTERS and (number == 0 or self._settings.piece_characters < _LEAST_CHARACTERS):
            return "reference"
        position = unit * _UNIT_CHUNKS + number
        return "checked" if position % _COMPARED_EVERY == _COMPARED_EVERY - 1 else "fast"

    def stop(self, chunk: str) -> None:
        """Records that the encoders differ in a chunk."""
        self.reference_from = chunk if self.reference_from is None else min(chunk, self.reference_from)

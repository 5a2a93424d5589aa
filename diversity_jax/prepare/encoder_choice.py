"""Which encoder turns which chunk into ids, and which chunks are made again when the two were found to differ.

The fast encoder makes all chunks of some length. Of each, excerpts are encoded by the reference too, of the corpus's
first chunk its first documents, and of one chunk in `_COMPARED_EVERY` all of it. From the first chunk on in which they
differ, the reference makes all, and it makes those again that were made before and not compared as a whole. It follows
from the corpus alone which chunks these are, in whatever order they are made.
"""

from collections.abc import Sequence
import itertools
from typing import Any, Protocol

from diversity_jax.prepare.config import Preparation

_COMPARED_EVERY = 32  # chunks
_UNIT_CHUNKS = 8  # of a unit of many small files, about
_LEAST_CHARACTERS = 1_000_000  # the reference encodes fewer in about the time that loading the fast encoder takes


def chunk_name(unit: int, number: int) -> str:
    """The name of a unit's chunk; names are in the order of the corpus."""
    return f"{unit:06d}-{number:06d}"


FIRST_CHUNK = chunk_name(0, 0)


class Encoded(Protocol):
    """What is needed of a `chunks.ChunkRecord`."""

    @property
    def name(self) -> str:
        """The chunk's."""

    @property
    def encoder(self) -> str:
        """Library and version that encoded it."""

    @property
    def is_compared(self) -> bool:
        """Whether the reference encoded all of it too."""

    @property
    def difference(self) -> str | None:
        """Where the fast encoder gave other ids."""


class EncoderChoice:
    """Chooses the encoder of each chunk.

    Attributes:
      reference_from: the first chunk, by name, that the reference makes together with all after it; None: none yet.
    """

    def __init__(self, settings: Preparation, reference_from: str | None):
        self.reference_from, self._settings = reference_from, settings

    def encoder(self, unit: int, number: int, characters: int) -> str:
        """One of `fast`, `checked` and `reference`, for a chunk of so many characters."""
        if self.reference_from is not None and chunk_name(unit, number) >= self.reference_from:
            return "reference"
        if characters < _LEAST_CHARACTERS and (number == 0 or self._settings.piece_characters < _LEAST_CHARACTERS):
            return "reference"
        place = unit * _UNIT_CHUNKS + number
        return "checked" if place % _COMPARED_EVERY == _COMPARED_EVERY - 1 else "fast"

    def stop(self, chunk: str) -> None:
        """The encoders differ in a chunk; those that are not yet begun come after it."""
        self.reference_from = chunk if self.reference_from is None else min(chunk, self.reference_from)


def first_difference(records: Sequence[Encoded]) -> str | None:
    """The first chunk in which encoders differ; None: none."""
    return min((record.name for record in records if record.difference), default=None)


def unsure_chunks(records: Sequence[Encoded], reference: str) -> list[str]:
    """Chunks to make again by the reference: where encoders differ, all that it has not yet encoded as a whole.

    Args:
      records: of all chunks, in order; reference: the reference's name.
    """
    if first_difference(records) is None:
        return []
    return [record.name for record in records if not record.is_compared and record.encoder not in ("", reference)]


def encoder_runs(records: Sequence[Encoded]) -> list[dict[str, Any]]:
    """What the manifest says: for each run of chunks of one encoder the first and the last, how many there are, and how
    many of them were compared as a whole; and where encoders were found to differ."""
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

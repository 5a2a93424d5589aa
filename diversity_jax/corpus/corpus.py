"""The corpus class of all sources: records in parts, decoded, checked, limited, sampled and fingerprinted."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
import hashlib
import json
import logging
import os
from typing import Any

import numpy as np

from diversity_jax.core.errors import InputError, without_secrets
from diversity_jax.core.files import content_hash
from diversity_jax.core.formats import counted
from diversity_jax.corpus.conversations import as_conversation
from diversity_jax.corpus.document import Corpus, CorpusConfig, Document, Records, Rejected
from diversity_jax.corpus.sampling import Lowest, lowest

log = logging.getLogger(__name__)

_READING_VERSION = 1  # increase it when the same bytes and settings give other documents
_UNIT_BYTES = 64 << 20  # large enough that starting to read costs little, small enough to spread over many processes


@dataclass(kw_only=True)
class Tally:
    """Counts of one reading.

    Attributes:
      records: records that were not blank; broken: those of them that are no documents.
      taken: documents of the corpus.
      first_error: the message of the first broken record.
      rejected: records left out, by reason.
      left_out: what is in records but not in their text, by kind; see `Records.left_out`.
    """

    records: int = 0
    broken: int = 0
    taken: int = 0
    first_error: str | None = None
    rejected: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)

    def add(self, other: "Tally") -> None:
        """Adds the counts of the records that follow."""
        self.records += other.records
        self.broken += other.broken
        self.taken += other.taken
        self.first_error = self.first_error or other.first_error
        self.rejected += other.rejected
        self.left_out += other.left_out


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Consecutive parts of a corpus that are read by one reader.

    Attributes:
      first, end: the parts first, ..., end - 1.
      expected_bytes: estimated size of their text; None: not known.
    """

    first: int
    end: int
    expected_bytes: int | None


class RecordCorpus:
    """The documents of records, in the order of the parts. Files must not change while it is open.

    Attributes:
      name: the configured source, without passwords.
      rejected: how many records the latest reading or sampling left out, by reason.
      records: how many there are, documents or not; None before sampling has counted them.
    """

    def __init__(self, config: CorpusConfig, parts: Sequence[Records], kind: str):
        self.name = without_secrets(config.source)
        self.rejected: Counter[str] = Counter()
        self.records: int | None = None
        self._config, self._parts, self._kind = config, parts, kind
        self._fingerprint: str | None = None
        self._is_share_checked = False
        self._are_left_out_logged = False

    def __iter__(self) -> Iterator[Document]:
        """All documents, streamed.

        Raises:
          InputError: a broken record; at the end, more of them than `max_broken_share` allows, or no document at all.
        """
        return (document for _, document in self._accepted())

    def sample(self, size: int, *, seed: int) -> list[Document]:
        """Uniform sample without replacement, in random order; smaller samples of the same seed are its beginnings.

        Records are looked up if the source has an index (plain local JSON Lines, Parquet, text files); otherwise all
        records are streamed, and only those that can be in the sample are decoded.

        Returns:
          `size` documents, or all of them if the corpus is smaller.

        Raises:
          InputError: `size` is under 1; a sampled record is broken and `max_broken_share` is 0; or more than that share
            of the corpus is broken.
        """
        if size < 1:
            raise InputError(f"sample size {size}: expected at least 1")
        self.rejected = Counter()
        if self._config.max_documents is not None:
            sample: Lowest[Document] = Lowest(size, seed)
            for position, document in self._accepted():
                for _, priority in sample.wanted(position, 1):
                    sample.add(priority, position, document)
            return sample.values()
        counts = [part.count() for part in self._parts]
        if None in counts:
            documents = self._sample_stream(size, seed)
        else:
            documents = self._sample_index(size, seed, np.cumsum([0, *counts]))
        if not documents:
            raise self._empty(self.rejected)
        return documents

    def fingerprint(self, hashes: Sequence[str] | None = None) -> str:
        """SHA-256 of content, order of the parts and the settings that decide which documents there are.

        The bytes of files are hashed, so that moving or renaming them changes nothing unless it changes their order.
        Documents are hashed instead if there are no files, and if `max_documents` leaves most of a file unread.

        Args:
          hashes: `unit_hashes` of all units in order, if they are computed already, perhaps on other machines.
        """
        if self._fingerprint is None:
            hashes = list(hashes) if hashes is not None else self._content_hashes()
            settings = [self._config.record_field, self._config.min_characters, self._config.max_documents]
            settings += [self._config.conversations] if self._config.conversations else []
            self._fingerprint = content_hash([_READING_VERSION, self._kind, settings, hashes])
        return self._fingerprint

    def units(self) -> list[Unit]:
        """The corpus in units that can be read in parallel; they depend on the files alone.

        Large files are units of their own, small ones share units. With `max_documents`, which counts from the first
        record on, everything is one unit.
        """
        if self._config.max_documents is not None:
            return [Unit(first=0, end=len(self._parts), expected_bytes=None)]
        units, first, expected = [], 0, 0
        for end, part in enumerate(self._parts, start=1):
            size = part.expected_bytes()
            if size is None:
                units.append(Unit(first=first, end=end, expected_bytes=None))
                first = end
                continue
            expected += size
            if expected >= _UNIT_BYTES or end == len(self._parts):
                units.append(Unit(first=first, end=end, expected_bytes=expected))
                first, expected = end, 0
        return units

    def read(self, unit: Unit, tally: Tally) -> Iterator[Document]:
        """Documents of one unit, counted in `tally`; when all units are read, pass the sum to `check_reading`.

        Raises:
          InputError: a record is broken, and none is tolerated.
        """
        return (document for _, document in self._read(self._parts[unit.first : unit.end], tally))

    @property
    def tolerates_broken(self) -> bool:
        """Whether some records may be broken."""
        return self._config.max_broken_share > 0

    def check_reading(self, tally: Tally) -> None:
        """Checks a reading of all units, and logs what it left out.

        Raises:
          InputError: a larger share of records than `max_broken_share` is broken, or there is no document.
        """
        self.rejected = tally.rejected
        if tally.broken > self._config.max_broken_share * tally.records:
            limit = f"max_broken_share={self._config.max_broken_share}"
            broken = f"{tally.broken} of {counted(tally.records, 'record')} are broken, more than {limit}"
            raise InputError(f"{self.name}: {broken}; the first: {tally.first_error}")
        self._is_share_checked = True
        if tally.left_out and not self._are_left_out_logged:
            counts = ", ".join(f"{count:,} {kind}" for kind, count in sorted(tally.left_out.items()))
            log.warning("%s: beside the text, and left out: %s", self.name, counts)
            self._are_left_out_logged = True
        if not tally.taken:
            raise self._empty(tally.rejected)

    def unit_hashes(self, unit: Unit) -> list[str] | None:
        """Hashes of the bytes of a unit's parts; None: only the documents can be hashed."""
        if self._config.max_documents is not None:
            return None
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:  # hashing releases the interpreter lock
            hashes = list(threads.map(lambda part: part.content_hash(), self._parts[unit.first : unit.end]))
        known = [value for value in hashes if value is not None]
        return known if len(known) == len(hashes) else None

    def _content_hashes(self) -> list[str]:
        if (hashes := self.unit_hashes(Unit(first=0, end=len(self._parts), expected_bytes=None))) is not None:
            return hashes
        digest = hashlib.sha256()
        for document in self:
            meta = json.dumps(document.meta, sort_keys=True, default=str)
            digest.update(json.dumps([document.text, meta]).encode())
        return [digest.hexdigest()]

    def _accepted(self) -> Iterator[tuple[int, Document]]:
        """(position, document) of all documents of the corpus, in order."""
        tally = Tally()
        self.rejected = tally.rejected
        yield from self._read(self._parts, tally)
        self.check_reading(tally)

    def _read(self, parts: Sequence[Records], tally: Tally) -> Iterator[tuple[int, Document]]:
        """(position, document) of all documents of some parts; positions count from the first of them."""
        position = -1
        for part in parts:
            first, decode = position + 1, self._decoder(part)
            for batch in part.batches():
                for raw in batch:
                    position += 1
                    try:
                        document = decode(raw, position - first)
                    except Rejected as error:
                        if self._config.max_broken_share == 0:
                            raise
                        rejected = Counter([error.reason])
                        tally.add(Tally(records=1, broken=1, first_error=str(error), rejected=rejected))
                        continue
                    if document is None:
                        continue
                    tally.records += 1
                    if self._is_wanted(document, tally.rejected):
                        tally.taken += 1
                        yield position, document
                        if tally.taken == self._config.max_documents:
                            tally.left_out += part.left_out(is_complete=False)
                            return
            tally.left_out += part.left_out(is_complete=True)

    def _decoder(self, part: Records) -> Callable[[Any, int], Document | None]:
        form = self._config.conversations
        if form is None:
            return part.decode

        def decode(raw: Any, position: int) -> Document | None:
            document = part.decode(raw, position)
            return None if document is None else as_conversation(document, form)

        return decode

    def _is_wanted(self, document: Document, rejected: Counter[str]) -> bool:
        text = document.text
        if len(text) < self._config.min_characters or len(text.strip()) < self._config.min_characters:
            rejected["too short" if text and not text.isspace() else "empty"] += 1
            return False
        return True

    def _empty(self, rejected: Counter[str]) -> InputError:
        reasons = ", ".join(f"{count} {reason}" for reason, count in rejected.most_common())
        left_out = f" (left out: {reasons})" if reasons else ""
        return InputError(f"{self.name}: holds no document{left_out}; check the source and its settings")

    def _draw(self, part: Records, raw: Any, position: int, rejected: Counter[str]) -> Document | None:
        """The document of one sampled record, or None if it is none.

        At the first broken record, the whole corpus is read once to check the share of broken ones, which the sampled
        ones would estimate only roughly.
        """
        try:
            document = self._decoder(part)(raw, position)
        except Rejected as error:
            if self._config.max_broken_share == 0:
                raise
            rejected[error.reason] += 1
            if not self._is_share_checked:
                for _ in self._accepted():
                    pass
                self.rejected = rejected
            return None
        return document if document is not None and self._is_wanted(document, rejected) else None

    def _sample_stream(self, size: int, seed: int) -> list[Document]:
        sample: Lowest[Document] = Lowest(size, seed)
        rejected, position = self.rejected, 0
        for part in self._parts:
            first = position
            for batch in part.batches():
                for offset, priority in sample.wanted(position, len(batch)):
                    document = self._draw(part, batch[offset], position - first + offset, rejected)
                    if document is not None:
                        sample.add(priority, position + offset, document)
                position += len(batch)
        self.records = position
        return sample.values()

    def _sample_index(self, size: int, seed: int, bounds: np.ndarray) -> list[Document]:
        """Fetches the records of lowest priority, and further ones instead of those that are no documents.

        Args:
          bounds: position of the first record of every part, and the number of records: int[parts + 1].
        """
        total, wanted, examined = int(bounds[-1]), size, 0
        self.records = total
        documents: list[Document] = []
        while len(documents) < size and examined < total:
            positions = lowest(total, wanted, seed)[examined:]
            examined += len(positions)
            documents += self._fetch(positions, bounds)
            wanted = examined + 2 * (size - len(documents)) + 16
        return documents[:size]

    def _fetch(self, positions: np.ndarray, bounds: np.ndarray) -> list[Document]:
        """Documents at these positions, in this order, without the records that are none."""
        rejected = self.rejected
        documents: dict[int, Document] = {}
        ascending = np.sort(positions)
        edges = np.searchsorted(ascending, bounds)
        for index in np.flatnonzero(np.diff(edges)).tolist():
            part, inside = self._parts[index], ascending[edges[index] : edges[index + 1]]
            for position, raw in zip(inside.tolist(), part.fetch(inside - bounds[index]), strict=True):
                document = self._draw(part, raw, position - int(bounds[index]), rejected)
                if document is not None:
                    documents[position] = document
        return [documents[position] for position in positions.tolist() if position in documents]


def units_of(corpus: Corpus) -> Sequence[Unit | None]:
    """The units that can be read in parallel; for a corpus that has no units, one None, which is all of it."""
    return corpus.units() if isinstance(corpus, RecordCorpus) else [None]


def read_unit(corpus: Corpus, unit: Unit | None, tally: Tally) -> Iterator[Document]:
    """Documents of one unit, counted in `tally`."""
    if unit is not None and isinstance(corpus, RecordCorpus):
        yield from corpus.read(unit, tally)
        return
    for document in corpus:
        tally.records += 1
        tally.taken += 1
        yield document
    tally.rejected.update(corpus.rejected)

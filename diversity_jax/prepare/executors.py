"""What carries out the passes of a preparation: this machine's processes, or Apache Beam. What they do is the same.

Passes of a preparation on this machine: this process reads, worker processes do the rest.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from diversity_jax.core.files import join_path, read_json, write_json
from diversity_jax.corpus import Corpus, Document
from diversity_jax.corpus.corpus import Tally
from diversity_jax.prepare.chunks import Job, cut, encode_piece
from diversity_jax.prepare.deduplicate import sign_piece
from diversity_jax.prepare.progress import PreparationProgress
from diversity_jax.prepare.shards import ShardName, gather_shard
from diversity_jax.prepare.staging import Workplace
from diversity_jax.prepare.workers import Task, Workers, usable_cores

Fates = Mapping[str, np.ndarray]
"""What becomes of each document, uint8 [documents] by piece."""


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One reading of the corpus: what is done with each piece, and which file that leaves beside its record.

    Attributes:
      title: shown while it runs; ending: of the file; its record has `.json` more.
      work: writes both, and returns the piece's documents, characters and tokens.
    """

    title: str
    ending: str
    work: Callable[..., tuple[int, int, int]]

    @property
    def record(self) -> str:
        """Ending of the record."""
        return f"{self.ending}.json"


SIGNING = Pass(title="comparing", ending=".signatures", work=sign_piece)
ENCODING = Pass(title="tokenising", ending=".rows", work=encode_piece)


class Runner(Protocol):
    """Carries out passes; each returns when all of it is on disk."""

    def fingerprint(self, corpus: Corpus, folder: str) -> str:
        """The corpus's own fingerprint, wherever its files are hashed; `folder` is where the component goes."""
        ...

    def pieces(self, corpus: Corpus, job: Job, place: Workplace, what: Pass, fates: Fates | None) -> None:
        """Does `what` with every piece that is not finished yet, and leaves a record of every unit that was read."""
        ...

    def shards(self, job: Job, place: Workplace, plan_hash: str, shards: Sequence[ShardName]) -> None:
        """Writes the shards that are not finished yet."""
        ...

    def close(self) -> None:
        """Gives back what is held between passes."""
        ...


def units_of(corpus: Corpus) -> Sequence[Any]:
    """What can be read apart; one unit, None, where a corpus knows of no parts."""
    return corpus.units() if hasattr(corpus, "units") else [None]


def read_unit(corpus: Corpus, unit: Any, tally: Tally) -> Iterator[Document]:
    """Documents of one unit, counted in `tally`."""
    if unit is not None:
        yield from corpus.read(unit, tally)
        return
    for document in corpus:
        tally.records += 1
        tally.taken += 1
        yield document
    tally.rejected.update(getattr(corpus, "rejected", {}))


def unit_name(number: int) -> str:
    """Name of a unit's record, and the beginning of its pieces' names."""
    return f"{number:06d}"


def save_unit(workplace: str, number: int, pieces: int, tally: Tally) -> None:
    """Leaves the record of a unit that was read to its end."""
    write_json(join_path(workplace, f"{unit_name(number)}.unit.json"), {"pieces": pieces, "tally": vars(tally)})


def read_units(place: Workplace) -> dict[int, tuple[list[str], Tally]]:
    """Pieces' names and tally of every unit that was read to its end, in order."""
    found = {}
    for name in place.names(".unit.json"):
        value = read_json(join_path(place.path, f"{name}.unit.json"))
        value["tally"]["rejected"] = Counter(value["tally"]["rejected"])
        found[int(name)] = ([f"{name}-{number:06d}" for number in range(value["pieces"])], Tally(**value["tally"]))
    return found


def unfinished_units(place: Workplace, units: Sequence[Any], done: set[str]) -> list[tuple[int, Any]]:
    """Units with a piece that is not done, or of which that is not known."""
    read = read_units(place)
    return [
        (number, unit)
        for number, unit in enumerate(units)
        if number not in read or not done.issuperset(read[number][0])
    ]


def finished_pieces(place: Workplace, what: Pass) -> set[str]:
    """Names of pieces that need not be done again."""
    return place.verified(place.names(what.record), what.record, {what.ending: "sha256"})


def unfinished_shards(job: Job, place: Workplace, shards: Sequence[ShardName]) -> list[ShardName]:
    """Shards that are not there whole."""
    checksums = {"": "sha256", ".crc32": "checksums_sha256"}
    done = place.verified([shard.file for shard in shards], ".json", checksums, job.folder)
    return [shard for shard in shards if shard.file not in done]


class LocalRunner:
    """Passes over up to `processes` processes, for one job.

    Args:
      processes: None for one a core.
      show: progress, on standard error.
      lock: descriptor of the folder's lock, held by the workers too.
    """

    def __init__(self, *, processes: int | None = None, show: bool = True, lock: int | None = None):
        self._processes = processes or usable_cores()
        self._show, self._keep_open = show, [lock] if lock is not None else []
        self._workers: Workers | None = None

    def close(self) -> None:
        """Ends the worker processes, whatever they are at."""
        if self._workers is not None:
            self._workers.stop()

    def _run(self, job: Job, tasks: Iterable[Task]) -> Iterator[Any]:
        self._workers = self._workers or Workers(job, self._processes, self._keep_open)
        return self._workers.run(tasks)

    def fingerprint(self, corpus: Corpus, folder: str) -> str:
        return corpus.fingerprint()

    def pieces(self, corpus: Corpus, job: Job, place: Workplace, what: Pass, fates: Fates | None) -> None:
        units, done = units_of(corpus), finished_pieces(place, what)
        unfinished = unfinished_units(place, units, done)

        def tasks() -> Iterator[Task]:
            for number, unit in unfinished:
                tally, count = Tally(), 0
                for piece in cut(read_unit(corpus, unit, tally), number, job.settings):
                    count += 1
                    if piece.name not in done:
                        yield what.work, (piece,) if fates is None else (piece, fates[piece.name])
                save_unit(job.workplace, number, count, tally)

        expected = [unit.expected_bytes if unit is not None else None for _, unit in unfinished]
        progress = PreparationProgress(job.settings.name, show=self._show)
        progress.begin(what.title, None if None in expected else sum(expected))
        documents = characters = tokens = 0
        with progress:
            for piece_documents, piece_characters, piece_tokens in self._run(job, tasks()):
                documents, characters, tokens = (
                    documents + piece_documents,
                    characters + piece_characters,
                    tokens + piece_tokens,
                )
                progress.update(characters, tokens, documents)

    def shards(self, job: Job, place: Workplace, plan_hash: str, shards: Sequence[ShardName]) -> None:
        tasks = [(gather_shard, (plan_hash, shard)) for shard in unfinished_shards(job, place, shards)]
        progress = PreparationProgress(job.settings.name, show=self._show)
        progress.begin("permuting", len(tasks))
        tokens = 0
        with progress:
            for done, shard_tokens in enumerate(self._run(job, tasks), start=1):
                tokens += shard_tokens
                progress.update(done, tokens, 0)

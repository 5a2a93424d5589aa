"""Executors of a preparation's stages: this machine's processes here, Apache Beam in `beam`. The work is the same."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from diversity_jax.core.artifacts import ArtifactStore
from diversity_jax.core.files import join_path, write_json
from diversity_jax.core.progress import ProgressDisplay
from diversity_jax.corpus import Corpus, Document
from diversity_jax.corpus.corpus import RecordCorpus, Tally, Unit
from diversity_jax.prepare.chunks import Job, chunked, encode_chunk
from diversity_jax.prepare.deduplicate import sign_chunk
from diversity_jax.prepare.shards import ShardName, gather_shard
from diversity_jax.prepare.workers import Task, Workers, usable_cores

_UNIT_RECORD = ".unit.json"

Statuses = Mapping[str, np.ndarray]
"""`DocumentStatus` of each document, uint8 [documents] by chunk."""


@dataclass(frozen=True, kw_only=True)
class PipelineStage:
    """One reading of the corpus: what is done with each chunk, and which file that leaves beside its record.

    Attributes:
      title: shown while it runs; ending: of the file; its record has `.json` more.
      work: writes both, and returns the chunk's documents, characters and tokens.
    """

    title: str
    ending: str
    work: Callable[..., tuple[int, int, int]]

    @property
    def record(self) -> str:
        """Ending of the record."""
        return f"{self.ending}.json"


SIGNING = PipelineStage(title="comparing", ending=".signatures", work=sign_chunk)
ENCODING = PipelineStage(title="tokenising", ending=".rows", work=encode_chunk)


class Executor(Protocol):
    """Carries out the stages; each method returns when all of its output is on disk."""

    def fingerprint(self, corpus: Corpus, folder: str) -> str:
        """The corpus's fingerprint, wherever its files are hashed; `folder` is where the component goes."""
        ...

    def run_stage(
        self, corpus: Corpus, job: Job, staging: ArtifactStore, stage: PipelineStage, statuses: Statuses | None
    ) -> None:
        """Does a stage's work with every chunk that is not finished yet, and leaves a record of every unit read."""
        ...

    def write_shards(self, job: Job, staging: ArtifactStore, plan_hash: str, shards: Sequence[ShardName]) -> None:
        """Writes the shards that are not finished yet."""
        ...

    def close(self) -> None:
        """Releases what is held between stages."""
        ...


def units_of(corpus: Corpus) -> Sequence[Unit | None]:
    """What can be read in parallel; a single unit, None, of a corpus that has no parts."""
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


def save_unit(staging_dir: str, unit: int, chunks: int, tally: Tally) -> None:
    """Leaves the record of a unit that was read to its end."""
    write_json(join_path(staging_dir, f"{unit:06d}{_UNIT_RECORD}"), {"chunks": chunks, "tally": vars(tally)})


def read_units(staging: ArtifactStore) -> dict[int, tuple[list[str], Tally]]:
    """Chunks' names and tally of every unit that was read to its end, in order."""
    units = {}
    for name in staging.names(_UNIT_RECORD):
        record = staging.record(f"{name}{_UNIT_RECORD}")
        tally = Tally(**{**record["tally"], "rejected": Counter(record["tally"]["rejected"])})
        units[int(name)] = ([f"{name}-{chunk:06d}" for chunk in range(record["chunks"])], tally)
    return units


def finished_chunks(staging: ArtifactStore, stage: PipelineStage) -> set[str]:
    """Names of chunks that need not be done again."""
    return staging.verified(staging.names(stage.record), stage.record, {stage.ending: "sha256"})


def unfinished_units(
    staging: ArtifactStore, units: Sequence[Unit | None], done: set[str]
) -> list[tuple[int, Unit | None]]:
    """Units with a chunk that is not done, or whose chunks are not known."""
    read = read_units(staging)
    return [(i, unit) for i, unit in enumerate(units) if i not in read or not done.issuperset(read[i][0])]


def unfinished_shards(job: Job, staging: ArtifactStore, shards: Sequence[ShardName]) -> list[ShardName]:
    """Shards that are missing or damaged."""
    checksums = {"": "sha256", ".crc32": "checksums_sha256"}
    done = staging.verified([shard.file for shard in shards], ".json", checksums, job.folder)
    return [shard for shard in shards if shard.file not in done]


class LocalExecutor:
    """Runs stages in up to `processes` processes of this machine, for one job.

    Args:
      processes: None for one a core.
      show: progress, on standard error.
      lock: descriptor of the staging directory's lock, held by the workers too.
    """

    def __init__(self, *, processes: int | None = None, show: bool = True, lock: int | None = None):
        self._processes = processes or usable_cores()
        self._progress_mode, self._keep_open = "auto" if show else "off", [lock] if lock is not None else []
        self._workers: Workers | None = None

    def close(self) -> None:
        """Ends the worker processes, whatever they are doing."""
        if self._workers is not None:
            self._workers.stop()

    def _run(self, job: Job, tasks: Iterable[Task]) -> Iterator[Any]:
        self._workers = self._workers or Workers(job, self._processes, self._keep_open)
        return self._workers.run(tasks)

    def _progress(self, job: Job, title: str, total: float | None) -> ProgressDisplay:
        display = ProgressDisplay(job.settings.name, unit="tokens", mode=self._progress_mode)
        display.begin(title, total)
        return display

    def fingerprint(self, corpus: Corpus, folder: str) -> str:
        return corpus.fingerprint()

    def run_stage(
        self, corpus: Corpus, job: Job, staging: ArtifactStore, stage: PipelineStage, statuses: Statuses | None
    ) -> None:
        done = finished_chunks(staging, stage)
        unfinished = unfinished_units(staging, units_of(corpus), done)

        def tasks() -> Iterator[Task]:
            for number, unit in unfinished:
                tally, count = Tally(), 0
                for chunk in chunked(read_unit(corpus, unit, tally), number, job.settings):
                    count += 1
                    if chunk.name not in done:
                        yield stage.work, (chunk,) if statuses is None else (chunk, statuses[chunk.name])
                save_unit(job.staging_dir, number, count, tally)

        sizes = [unit.expected_bytes if unit is not None else None for _, unit in unfinished]
        known = [size for size in sizes if size is not None]
        documents = characters = tokens = 0
        with self._progress(job, stage.title, sum(known) if len(known) == len(sizes) else None) as progress:
            for chunk_documents, chunk_characters, chunk_tokens in self._run(job, tasks()):
                documents += chunk_documents
                characters += chunk_characters
                tokens += chunk_tokens
                progress.update(characters, {"tokens": tokens, "documents": documents})

    def write_shards(self, job: Job, staging: ArtifactStore, plan_hash: str, shards: Sequence[ShardName]) -> None:
        tasks = [(gather_shard, (plan_hash, shard)) for shard in unfinished_shards(job, staging, shards)]
        tokens = 0
        with self._progress(job, "permuting", len(tasks)) as progress:
            for done, shard_tokens in enumerate(self._run(job, tasks), start=1):
                tokens += shard_tokens
                progress.update(done, {"tokens": tokens})

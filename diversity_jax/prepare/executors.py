"""Stages of a preparation, their records in the staging directory, and their execution by this machine's processes.

The staging directory is `.preparing` inside the component's folder until the manifest is written. A file in it is
finished when its record (JSON, written after it) has its checksum; on a restart each is verified, and a damaged one is
made again. `beam` executes the same stages on Apache Beam.
"""

import abc
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
import contextlib
from dataclasses import dataclass
import itertools
import logging
from pathlib import Path
from typing import Any

import numpy as np

from diversity_jax.core.artifacts import ArtifactStore, exclusive_lock, locked_folder
from diversity_jax.core.files import is_remote, join_path, list_files, remove_tree, write_json
from diversity_jax.core.progress import ProgressDisplay
from diversity_jax.corpus import Corpus
from diversity_jax.corpus.corpus import Tally, Unit, read_unit, units_of
from diversity_jax.prepare.chunks import ChunkRecord, Done, chunked, encode_chunk, first_difference
from diversity_jax.prepare.deduplicate import SIGNATURE_VERSION, sign_chunk
from diversity_jax.prepare.encoding import EncoderChoice
from diversity_jax.prepare.manifest import SPLITS
from diversity_jax.prepare.packing import Chunk, Job
from diversity_jax.prepare.shards import ShardName, gather_shard
from diversity_jax.prepare.workers import Task, Workers, usable_cores

TOKENIZER_FOLDER = "tokenizer"
"""Folder of a component's tokenizer files."""
_UNIT_RECORD = ".unit.json"
_REQUEST = "request.json"
_FORMAT = {"staging_format": 2, "signatures": SIGNATURE_VERSION}  # unfinished work of another format is made again
_FEW_BYTES = 48 << 20  # of plain text: encoding less takes less time than starting worker processes
_LOCK_WAIT_SECONDS = 3.0  # the workers of a killed process need a moment to end

Statuses = Mapping[str, np.ndarray]
"""`DocumentStatus` of each document, uint8 [documents] by chunk."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PipelineStage:
    """One reading of the corpus, which writes a file and a record for each chunk.

    Attributes:
      title: shown while it runs; ending: of the file's name; that of its record also ends in `.json`.
      work: writes both.
    """

    title: str
    ending: str
    work: Callable[..., Done]

    @property
    def record(self) -> str:
        return f"{self.ending}.json"


SIGNING = PipelineStage(title="comparing", ending=".signatures", work=sign_chunk)
ENCODING = PipelineStage(title="tokenising", ending=".rows", work=encode_chunk)


class Staging(ArtifactStore):
    """The staging directory of one component."""

    def __init__(self, component_folder: str | Path):
        super().__init__(join_path(component_folder, ".preparing"))
        self._component_folder = component_folder

    def locked(self) -> contextlib.AbstractContextManager[int | None]:
        """Locks out other processes; yields the lock's file descriptor, which worker processes inherit.

        Raises:
          FolderLocked: another process prepares this component.
        """
        if is_remote(self._component_folder):
            return locked_folder(self._component_folder)
        message = f"{self._component_folder}: is being prepared by {{holder}}; wait for it, or choose another folder"
        return exclusive_lock(self.path("lock"), message, wait_seconds=_LOCK_WAIT_SECONDS)

    def open(self, request: Mapping[str, Any]) -> None:
        """Resumes unfinished work of the same request; work of another one is discarded, with a warning."""
        request = {**request, **_FORMAT}
        before = self.record(_REQUEST) or {}
        changed = self.changed_settings(_REQUEST, request)
        if changed == {}:
            self._remove_partial_files()
            return
        if changed:
            differences = ", ".join(f"{key} ({short(before.get(key))}, now {short(request[key])})" for key in changed)
            message = "%s: the unfinished preparation there has another %s; starting afresh"
            log.warning(message, self._component_folder, differences)
        self.discard()
        self.commit(_REQUEST, request)

    def discard(self) -> None:
        """Removes all unfinished work, and shards that no manifest names; the lock stays."""
        self._remove_partial_files()
        for split in SPLITS:
            for path in list_files(join_path(self._component_folder, f"{split}-[0-9]*-of-[0-9]*.bin*")):
                remove_tree(path)
        self.clear()

    def close(self) -> None:
        """Removes the directory, of a local one the lock last: when that is gone, another process may make its own."""
        if is_remote(self.folder):
            remove_tree(self.folder)
            return
        for path in Path(self.folder).iterdir():
            if path.name != "lock":
                remove_tree(path)
        with contextlib.suppress(OSError):  # another process has its lock there by now
            Path(self.path("lock")).unlink()
            Path(self.folder).rmdir()

    def _remove_partial_files(self) -> None:
        self.remove_partial()
        for folder in (self._component_folder, join_path(self._component_folder, TOKENIZER_FOLDER)):
            ArtifactStore(folder).remove_partial()


def short(value: Any) -> str:
    """A setting for a message, hashes cut to 12 characters."""
    return value[:12] if isinstance(value, str) else str(value)


def unfinished_chunks(
    corpus: Corpus,
    units: Sequence[Unit | None],
    number: int,
    job: Job,
    done: Container[str],
    choice: EncoderChoice | None = None,
) -> Iterator[Chunk]:
    """Chunks of a unit that are not done; writes the record of the unit when it is read to its end."""
    tally, count = Tally(), 0
    choice = choice or EncoderChoice(job.settings, job.reference_from)
    for chunk in chunked(read_unit(corpus, units[number], tally), number, job.settings, choice):
        count += 1
        if chunk.name not in done:
            yield chunk
        del chunk  # frees its text before the next one is read
    write_json(job.staging.path(f"{number:06d}{_UNIT_RECORD}"), {"chunks": count, "tally": vars(tally)})


def read_units(staging: ArtifactStore) -> dict[int, tuple[list[str], Tally]]:
    """Names of chunks, and tally, of every unit that was read to its end, in order."""
    units = {}
    for name in staging.names(_UNIT_RECORD):
        record = staging.record(f"{name}{_UNIT_RECORD}")
        counts = {name: Counter(record["tally"].get(name, {})) for name in ("rejected", "left_out")}
        tally = Tally(**{**record["tally"], **counts})
        units[int(name)] = ([f"{name}-{chunk:06d}" for chunk in range(record["chunks"])], tally)
    return units


def unfinished_units(units: int, job: Job, stage: PipelineStage) -> tuple[list[int], set[str]]:
    """Numbers of the units that are not read or have a chunk that is not done; and names of the chunks that are done.

    Args:
      units: how many there are.
    """
    done = job.staging.verified(job.staging.names(stage.record), stage.record, {stage.ending: "sha256"})
    read = read_units(job.staging)
    return [i for i in range(units) if i not in read or not done.issuperset(read[i][0])], done


def chunk_records(job: Job, names: Sequence[str]) -> list[ChunkRecord]:
    return [ChunkRecord.load(job.staging.path(f"{name}{ENCODING.record}")) for name in names]


def known_difference(job: Job, stage: PipelineStage) -> str | None:
    """`EncoderChoice.reference_from` at the beginning of a stage."""
    if stage is not ENCODING or job.reference_from is not None:
        return job.reference_from
    return first_difference(chunk_records(job, job.staging.names(ENCODING.record)))


def unfinished_shards(job: Job, shards: Sequence[ShardName]) -> list[ShardName]:
    """Shards that are missing or damaged."""
    checksums = {"": "sha256", ".crc32": "checksums_sha256"}
    done = job.staging.verified([shard.file for shard in shards], ".json", checksums, job.folder)
    return [shard for shard in shards if shard.file not in done]


class Executor(abc.ABC):
    """Runs the stages; each method returns when all of its output is on disk."""

    def fingerprint(self, corpus: Corpus, folder: str) -> str:
        """The corpus's fingerprint; `folder` is where the component goes."""
        return corpus.fingerprint()

    @abc.abstractmethod
    def run_stage(self, corpus: Corpus, job: Job, stage: PipelineStage, statuses: Statuses | None) -> None:
        """Does a stage's work with every chunk that is not finished yet, and writes a record of every unit read."""

    @abc.abstractmethod
    def write_shards(self, job: Job, plan_hash: str, shards: Sequence[ShardName]) -> None:
        """Writes the shards that are not finished yet."""

    def close(self) -> None:  # noqa: B027 - most executors hold nothing
        """Releases processes and other resources."""


class LocalExecutor(Executor):
    """Runs stages in up to `processes` processes of this machine, for one job.

    Args:
      processes: None for one a core, and this process alone for little text.
      show: show progress on standard error.
      lock: descriptor of the staging directory's lock, which the workers also hold.
    """

    def __init__(self, *, processes: int | None = None, show: bool = True, lock: int | None = None):
        self._processes, self._is_chosen = processes or usable_cores(), processes is not None
        self._progress_mode, self._keep_open = "auto" if show else "off", [lock] if lock is not None else []
        self._workers: Workers | None = None

    def close(self) -> None:
        """Kills the worker processes."""
        if self._workers is not None:
            self._workers.stop()

    def _run(self, job: Job, tasks: Iterable[Task], *, are_few: bool = False) -> Iterator[Any]:
        self._workers = self._workers or Workers(job, self._processes, self._keep_open)
        return self._workers.run(tasks, are_few=are_few)

    def _progress(self, job: Job, title: str, total: float | None) -> ProgressDisplay:
        display = ProgressDisplay(job.settings.name, unit="tokens", mode=self._progress_mode)
        display.begin(title, total)
        return display

    def run_stage(self, corpus: Corpus, job: Job, stage: PipelineStage, statuses: Statuses | None) -> None:
        units = units_of(corpus)
        numbers, done = unfinished_units(len(units), job, stage)
        choice = EncoderChoice(job.settings, known_difference(job, stage))
        by_unit = (unfinished_chunks(corpus, units, number, job, done, choice) for number in numbers)

        def task(chunk: Chunk) -> Task:
            return stage.work, (chunk,) if statuses is None else (chunk, statuses[chunk.name])

        tasks = map(task, itertools.chain.from_iterable(by_unit))  # lazily, so that no chunk is held longer than needed
        sizes = [unit.expected_bytes if unit is not None else None for unit in (units[number] for number in numbers)]
        known = [size for size in sizes if size is not None]
        is_plain = stage is ENCODING and job.chat is None and job.benchmarks is None
        are_few = is_plain and not self._is_chosen and len(known) == len(sizes) and sum(known) < _FEW_BYTES
        totals = np.zeros(3, np.int64)
        with self._progress(job, stage.title, sum(known) if len(known) == len(sizes) else None) as progress:
            for counts in self._run(job, tasks, are_few=are_few):
                if counts.differs is not None:
                    choice.stop(counts.differs)
                totals += counts[:3]
                documents, characters, tokens = totals.tolist()
                progress.update(characters, {"tokens": tokens, "documents": documents})

    def write_shards(self, job: Job, plan_hash: str, shards: Sequence[ShardName]) -> None:
        tasks = [(gather_shard, (plan_hash, shard)) for shard in unfinished_shards(job, shards)]
        tokens = 0
        with self._progress(job, "permuting", len(tasks)) as progress:
            for done, shard_tokens in enumerate(self._run(job, tasks), start=1):
                tokens += shard_tokens
                progress.update(done, {"tokens": tokens})

"""Runs the stages of a preparation on Apache Beam: DirectRunner, Dataflow, Flink, Spark, or any other of its runners.

The functions are those of the local path, so rows, manifest and checksums are the same. Workers exchange files in the
component's folder, which all of them must reach (`gs://`, or a shared disk); rows are grouped by Beam's own shuffle.
The job is a file there, too: with its tokenizer and benchmarks it is larger than runners allow inside a pipeline
(Dataflow: 10 MB).
"""

from collections.abc import Iterable, Iterator, Sequence
import dataclasses
import functools
import hashlib
import logging
import pickle
import uuid

import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import join_path, open_file, read_json, remove_tree, write_json, writing
from diversity_jax.corpus import Corpus, CorpusConfig, open_corpus
from diversity_jax.corpus.beam import open_pipeline, pipeline_options
from diversity_jax.corpus.corpus import RecordCorpus, units_of
from diversity_jax.prepare.executors import (
    Executor,
    PipelineStage,
    Statuses,
    known_difference,
    unfinished_chunks,
    unfinished_shards,
    unfinished_units,
)
from diversity_jax.prepare.packing import Chunk, Job
from diversity_jax.prepare.shards import ChunkRows, ShardName, read_plan, save_shard, split_chunk

log = logging.getLogger(__name__)

_ShardKey = tuple[str, int, int]  # fields of a `ShardName`: plain values, which all runners encode as keys


class BeamExecutor(Executor):
    """Runs stages as Beam pipelines, one after the other.

    Args:
      config: of the corpus, which every worker opens for itself; files are read in parallel, one reader for each large
        file.
      runner: such as `DataflowRunner`; options: Beam's own, such as `--temp_location=gs://bucket/tmp`.

    Raises:
      InputError: apache-beam is not installed, or knows no such runner or option.
    """

    def __init__(self, config: CorpusConfig, runner: str, options: Sequence[str] = ()):
        self._config, self._runner = config, runner
        self._open = functools.partial(open_pipeline, runner, pipeline_options(runner, options))

    def fingerprint(self, corpus: Corpus, folder: str) -> str:
        """The corpus's fingerprint; workers hash its files, and write the hashes to a temporary folder in `folder`."""
        import apache_beam as beam

        if not isinstance(corpus, RecordCorpus):
            return corpus.fingerprint()
        units = corpus.units()
        if corpus.unit_hashes(units[0]) is None:
            return corpus.fingerprint()
        scratch = str(join_path(folder, f".hashes-{uuid.uuid4().hex}"))
        try:
            with self._open() as pipeline:
                hashing = functools.partial(_hash_unit, self._config, scratch)
                _ = pipeline | beam.Create(range(len(units))) | beam.Reshuffle() | beam.Map(hashing)
            hashes = [part for i in range(len(units)) for part in read_json(join_path(scratch, f"{i}.json"))]
        finally:
            remove_tree(scratch)
        return corpus.fingerprint(hashes)

    def run_stage(self, corpus: Corpus, job: Job, stage: PipelineStage, statuses: Statuses | None) -> None:
        import apache_beam as beam

        unfinished, done = unfinished_units(len(units_of(corpus)), job, stage)
        if not unfinished:
            return
        for name, values in (statuses or {}).items():
            with writing(_statuses_path(job, name)) as file:
                file.write(values.tobytes())
        job_path = _publish(dataclasses.replace(job, reference_from=known_difference(job, stage)))
        read = functools.partial(_read_chunks, self._config, job_path, frozenset(done))
        work = functools.partial(_work, job_path, stage, statuses is not None)
        log.info("%s: %s %d units on %s", job.settings.name, stage.title, len(unfinished), self._runner)
        with self._open() as pipeline:
            chunks = pipeline | beam.Create(unfinished) | beam.Reshuffle() | "read" >> beam.FlatMap(read)
            _ = chunks | "spread" >> beam.Reshuffle() | stage.title >> beam.Map(work)

    def write_shards(self, job: Job, plan_hash: str, shards: Sequence[ShardName]) -> None:
        import apache_beam as beam

        unfinished = unfinished_shards(job, shards)
        if not unfinished:
            return
        job_path, plan = _publish(job), read_plan(job.staging_dir, plan_hash)
        sources = [(split, chunk) for split, chunks in plan.items() for chunk in chunks if chunk.rows]
        log.info("%s: writing %d shards on %s", job.settings.name, len(unfinished), self._runner)
        with self._open() as pipeline:
            split = functools.partial(_split, job_path, unfinished)
            parts = pipeline | beam.Create(sources) | beam.Reshuffle() | beam.FlatMap(split)
            _ = parts | beam.GroupByKey() | beam.Map(functools.partial(_save, job_path))


def _open_records(config: CorpusConfig) -> RecordCorpus:
    corpus = open_corpus(config)
    if not isinstance(corpus, RecordCorpus):
        raise InputError(f"{config.source}: cannot be read in parts; prepare it without a runner")
    return corpus


def _hash_unit(config: CorpusConfig, scratch: str, number: int) -> None:
    corpus = _open_records(config)
    write_json(join_path(scratch, f"{number}.json"), corpus.unit_hashes(corpus.units()[number]))


def _publish(job: Job) -> str:
    """Writes the job into its staging directory; returns the path."""
    data = pickle.dumps(job, protocol=5)
    path = str(join_path(job.staging_dir, f"{hashlib.sha256(data).hexdigest()}.job"))
    with writing(path) as file:
        file.write(data)
    return path


@functools.lru_cache(maxsize=1)
def _job(path: str) -> Job:
    """The job, read once by each process and shared by its threads.

    The file's name, which is part of the pipeline, is the hash of its content, so that no other file is unpickled.

    Raises:
      InputError: the file was changed.
    """
    with open_file(path) as file:
        data = file.read()
    if hashlib.sha256(data).hexdigest() != path.rsplit("/", 1)[-1].removesuffix(".job"):
        raise InputError(f"{path}: is not what the launcher wrote; see who may write to the folder, then run again")
    return pickle.loads(data)


def _read_chunks(config: CorpusConfig, job_path: str, done: frozenset[str], number: int) -> Iterator[Chunk]:
    corpus = _open_records(config)
    return unfinished_chunks(corpus, corpus.units(), number, _job(job_path), done)


def _work(job_path: str, stage: PipelineStage, has_statuses: bool, chunk: Chunk) -> None:
    job = _job(job_path)
    if not has_statuses:
        stage.work(job, chunk)
        return
    with open_file(_statuses_path(job, chunk.name)) as file:
        stage.work(job, chunk, np.frombuffer(file.read(), np.uint8))


def _statuses_path(job: Job, chunk: str) -> str:
    return str(join_path(job.staging_dir, f"{chunk}.statuses"))


def _split(
    job_path: str, shards: Sequence[ShardName], source: tuple[str, ChunkRows]
) -> Iterator[tuple[_ShardKey, tuple[str, bytes, bytes]]]:
    """(shard, (chunk, keys, rows)) of one chunk's rows."""
    split, chunk = source
    for shard, (keys, rows) in split_chunk(_job(job_path), [shard for shard in shards if shard.split == split], chunk):
        yield (shard.split, shard.number, shard.count), (chunk.chunk, keys, rows)


def _save(job_path: str, gathered: tuple[_ShardKey, Iterable[tuple[str, bytes, bytes]]]) -> None:
    job, ((split, number, count), parts) = _job(job_path), gathered
    _, keys, rows = zip(*sorted(parts), strict=True)
    row_keys = np.frombuffer(b"".join(keys), "<u8")
    tokens = np.frombuffer(b"".join(rows), job.dtype).reshape(len(row_keys), job.row_tokens)
    save_shard(job, ShardName(split=split, number=number, count=count), row_keys, tokens)

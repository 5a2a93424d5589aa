"""Passes of a preparation on Apache Beam: DirectRunner, Dataflow, Flink, Spark, or any other of its runners.

The functions are those of the local path, so rows, manifest and checksums are the same. What workers hand to each other
lies in the component's folder, which all of them must reach (`gs://`, or a shared disk); rows come together by Beam's
own shuffle. The job lies
there too: with its tokenizer and benchmarks it is larger than what runners take inside a pipeline (Dataflow: 10 MB).
"""

from collections.abc import Iterable, Iterator, Sequence
import functools
import hashlib
import logging
import pickle
from typing import Any
import uuid

import numpy as np

from diversity_jax.core.files import join_path, open_file, read_json, remove_tree, write_json, writing
from diversity_jax.corpus import Corpus, CorpusConfig, open_corpus
from diversity_jax.corpus.beam import open_pipeline, pipeline_options
from diversity_jax.corpus.corpus import Tally
from diversity_jax.prepare.chunks import Job, Piece, cut
from diversity_jax.prepare.executors import (
    Fates,
    Pass,
    finished_pieces,
    read_unit,
    save_unit,
    unfinished_shards,
    unfinished_units,
    units_of,
)
from diversity_jax.prepare.shards import ShardName, read_plan, save_shard, split_piece
from diversity_jax.prepare.staging import Workplace

log = logging.getLogger(__name__)


class BeamRunner:
    """Passes as Beam pipelines, one after the other.

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
        """The corpus's own fingerprint, its files hashed by the workers, which leave what they found in `folder` for a
        moment.
        """
        import apache_beam as beam

        units = corpus.units()
        if corpus.unit_hashes(units[0]) is None:
            return corpus.fingerprint()
        scratch = str(join_path(folder, f".hashes-{uuid.uuid4().hex}"))
        try:
            with self._open() as pipeline:
                hashing = functools.partial(_hash_unit, self._config, scratch)
                _ = pipeline | beam.Create(range(len(units))) | beam.Reshuffle() | beam.Map(hashing)
            found = [read_json(join_path(scratch, f"{number}.json")) for number in range(len(units))]
        finally:
            remove_tree(scratch)
        return corpus.fingerprint([part for unit in found for part in unit])

    def pieces(self, corpus: Corpus, job: Job, place: Workplace, what: Pass, fates: Fates | None) -> None:
        import apache_beam as beam

        done = finished_pieces(place, what)
        unfinished = [number for number, _ in unfinished_units(place, units_of(corpus), done)]
        if not unfinished:
            return
        if fates is not None:
            _write_fates(job, fates)
        place_of_job = _publish(job)
        read = functools.partial(_read_pieces, self._config, place_of_job, frozenset(done))
        work = functools.partial(_work, place_of_job, what, fates is not None)
        log.info("%s: %s %d units on %s", job.settings.name, what.title, len(unfinished), self._runner)
        with self._open() as pipeline:
            pieces = pipeline | beam.Create(unfinished) | beam.Reshuffle() | "read" >> beam.FlatMap(read)
            _ = pieces | "spread" >> beam.Reshuffle() | what.title >> beam.Map(work)

    def shards(self, job: Job, place: Workplace, plan_hash: str, shards: Sequence[ShardName]) -> None:
        import apache_beam as beam

        wanted = unfinished_shards(job, place, shards)
        if not wanted:
            return
        place_of_job, plan = _publish(job), read_plan(job.workplace, plan_hash)
        placed = [(split, piece) for split, pieces in plan.items() for piece in pieces if piece[1]]
        log.info("%s: writing %d shards on %s", job.settings.name, len(wanted), self._runner)
        with self._open() as pipeline:
            parts = (
                pipeline
                | beam.Create(placed)
                | beam.Reshuffle()
                | beam.FlatMap(functools.partial(_split, place_of_job, wanted))
            )
            _ = parts | beam.GroupByKey() | beam.Map(functools.partial(_save, place_of_job))

    def close(self) -> None:
        """Nothing is held between passes."""


def _hash_unit(config: CorpusConfig, scratch: str, number: int) -> None:
    corpus = open_corpus(config)
    write_json(join_path(scratch, f"{number}.json"), corpus.unit_hashes(corpus.units()[number]))


def _publish(job: Job) -> str:
    """Writes the job to its workplace; returns where."""
    data = pickle.dumps(job, protocol=5)
    path = str(join_path(job.workplace, f"{hashlib.sha256(data).hexdigest()}.job"))
    with writing(path) as file:
        file.write(data)
    return path


@functools.lru_cache(maxsize=1)
def _job(path: str) -> Job:
    """The job, read once by each process and shared by its threads."""
    with open_file(path) as file:
        return pickle.loads(file.read())


def _read_pieces(config: CorpusConfig, place_of_job: str, done: frozenset[str], number: int) -> Iterator[Piece]:
    corpus, job = open_corpus(config), _job(place_of_job)
    tally, count = Tally(), 0
    for piece in cut(read_unit(corpus, corpus.units()[number], tally), number, job.settings):
        count += 1
        if piece.name not in done:
            yield piece
    save_unit(job.workplace, number, count, tally)


def _work(place_of_job: str, what: Pass, is_decided: bool, piece: Piece) -> None:
    job = _job(place_of_job)
    what.work(job, piece, *([_read_fates(job, piece.name)] if is_decided else []))


def _write_fates(job: Job, fates: Fates) -> None:
    for name, found in fates.items():
        with writing(join_path(job.workplace, f"{name}.fates")) as file:
            file.write(found.tobytes())


def _read_fates(job: Job, name: str) -> np.ndarray:
    with open_file(join_path(job.workplace, f"{name}.fates")) as file:
        return np.frombuffer(file.read(), np.uint8)


def _split(
    place_of_job: str, wanted: Sequence[ShardName], placed: tuple[str, Sequence[Any]]
) -> Iterator[tuple[Any, Any]]:
    """(shard, (piece, keys, rows)); a shard is named by plain values, which every runner groups alike."""
    job, (split, piece) = _job(place_of_job), placed
    for shard, part in split_piece(job, [shard for shard in wanted if shard.split == split], piece):
        yield (shard.split, shard.number, shard.count), (piece[0], *part)


def _save(place_of_job: str, gathered: tuple[tuple[str, int, int], Iterable[tuple[str, bytes, bytes]]]) -> None:
    job, ((split, number, count), parts) = _job(place_of_job), gathered
    _, keys, rows = zip(*sorted(parts), strict=True)
    found = np.frombuffer(b"".join(keys), "<u8")
    shard = ShardName(split=split, number=number, count=count)
    save_shard(
        job,
        shard,
        found,
        np.frombuffer(b"".join(rows), job.dtype).reshape(len(found), job.settings.sequence_length + 1),
    )

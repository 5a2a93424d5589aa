"""Passes of a preparation on this machine: this process reads, worker processes do the rest."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from diversity_jax.corpus import Corpus
from diversity_jax.corpus.record_corpus import Tally
from diversity_jax.mixtures.pieces import Job, cut
from diversity_jax.mixtures.preparation_progress import PreparationProgress
from diversity_jax.mixtures.preparation_runner import (
    Fates,
    Pass,
    finished_pieces,
    read_unit,
    save_unit,
    unfinished_shards,
    unfinished_units,
    units_of,
)
from diversity_jax.mixtures.shards import ShardName, gather_shard
from diversity_jax.mixtures.workers import Task, Workers, usable_cores
from diversity_jax.mixtures.workplace import Workplace


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
                documents, characters, tokens = documents + piece_documents, characters + piece_characters, tokens + piece_tokens
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

"""Cache of paid answers, so that none is paid twice: an SQLite file that several processes share.

Its tables of calls: `answers` holds finished calls by the hash of their request. `failures` holds how failed calls
ended, for replay only. `claims` holds the reservations of calls in flight, with an upper bound of each call's use, so
that two processes neither send the same request nor exceed a cap together; `owners` holds the processes that run.
`spent` holds every run's use, with a separate row for calls lost by a kill or a dropped connection, which count with
their upper bound.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
import contextlib
from dataclasses import asdict
import hashlib
import json
import math
import os
import queue
import threading
import time
from typing import Any, NamedTuple, TypeVar
import uuid

from diversity_jax.core.errors import InputError
from diversity_jax.core.process import machine_id, start_time
from diversity_jax.llm.budget import NOTHING, Amount, BudgetConfig, Reservation, sum_of
from diversity_jax.llm.cache_file import KEYS, CacheFile, batch_owner
from diversity_jax.llm.types import CachedFailure, CachedResponse, Outcome

_DEAD_AFTER_SECONDS = 60.0
_BEAT_SECONDS = 1.0
_IDLE_BEAT_SECONDS = 10.0
_BATCH = 512
_T = TypeVar("_T")

_FAILURE = tuple(CachedFailure.__dataclass_fields__)
_RESPONSE = tuple(name for name in CachedResponse.__dataclass_fields__ if name != "text")


class Reserve(NamedTuple):
    """Asks to send the call under `key`, with the upper bound `most` of its use."""

    key: str
    most: Amount


class Commit(NamedTuple):
    """Ends the call under `key`.

    Attributes:
      spent: its use, or if `lost` the upper bound.
      outcome: what is to be stored of it, if anything.
      regained: use that was counted as lost before and no longer is.
    """

    key: str
    spent: Amount
    outcome: Outcome | None
    lost: bool = False
    regained: Amount = NOTHING


# A key to find, a call to reserve, a call to end, other work on the file; None closes it.
Job = str | Reserve | Commit | Callable[["ResponseCacheFile"], Any] | None


class ResponseCacheFile(CacheFile):
    """The file, for one thread of one process; see `ResponseCache` for arguments, attributes and errors."""

    def __init__(self, path: str | None, *, run: str, caps: BudgetConfig, replay: bool):
        super().__init__(path, replay=replay)
        self.spent_before = NOTHING
        self.began_empty = False
        self._last_beat = -math.inf  # by the monotonic clock, since the other one may be set back
        self._run, self._caps = run, caps
        self._process = f"{machine_id()}|{os.getpid()}|{start_time(os.getpid())}"
        self._owner = f"{self._process}|{uuid.uuid4().hex[:8]}"
        if not replay:
            with self._explained_errors():
                self._prepare()

    def find(self, keys: Sequence[str]) -> dict[str, Outcome]:
        """Outcomes by key: answers, and in replay also failures."""
        outcomes: dict[str, Outcome] = {}
        with self._explained_errors():
            answers = self._rows("answers", ("key", "answer", "checksum", *_RESPONSE), keys)
            failures = self._rows("failures", ("key", *_FAILURE), keys) if self._replay else []
        for row in failures:
            key = row.pop("key")
            outcomes[key] = CachedFailure(**row)
        for row in answers:
            key, answer, checksum = row.pop("key"), row.pop("answer"), row.pop("checksum")
            if checksum != _checksum(key, answer, row["prompt_tokens"], row["completion_tokens"]):
                what = f"the answer under {key[:12]} is damaged"
                raise InputError(f"{self.path}: {what}; restore the ledger, or move it away and pay again")
            outcomes[key] = CachedResponse(text=json.loads(answer), **row)
        return outcomes

    def process(self, jobs: Sequence[Job]) -> list[Any]:
        """Finds keys, then ends calls and reserves new ones in one transaction, which also renews this process's
        heartbeat. Returns for each key its outcome or None, for each `Reserve` a `Reservation`, for other work what it
        returns, otherwise None.
        """
        finds = [job for job in jobs if isinstance(job, str)]
        reserves = [job for job in jobs if isinstance(job, Reserve)]
        commits = [job for job in jobs if isinstance(job, Commit)]
        outcomes: dict[Any, Outcome] = {**self.find(finds)} if finds else {}
        reservations: Iterator[Reservation] = iter(())
        # Only answers are synced to disk: a lost one would be paid twice, and a reservation ends with its process.
        if not self._replay and (reserves or commits or not jobs):
            with self._explained_errors(), self._transaction("FULL" if commits else "NORMAL"):
                if time.monotonic() - self._last_beat > _BEAT_SECONDS:
                    self._last_beat = time.monotonic()
                    self._connection.execute("UPDATE owners SET beat = ? WHERE owner = ?", (time.time(), self._owner))
                if commits:
                    self._commit(commits)
                if reserves:
                    reservations = iter(self._reserve(reserves))
        return [
            next(reservations) if isinstance(job, Reserve) else job(self) if callable(job) else outcomes.get(job)
            for job in jobs
        ]

    def close_batch(self, tag: str, commits: Sequence[Commit]) -> None:
        """Ends a batch in one transaction: stores its outcomes and releases its reservations. Where two processes
        collect one batch, the first counts its use.
        """
        owner = batch_owner(tag)
        with self._explained_errors(), self._transaction("FULL"):
            execute = self._connection.execute
            held = {key for (key,) in execute("SELECT key FROM claims WHERE owner = ?", (owner,)).fetchall()}
            self._commit([c if c.key in held else c._replace(spent=NOTHING) for c in commits])
            execute("DELETE FROM claims WHERE owner = ?", (owner,))
            execute("UPDATE batches SET state = 'closed' WHERE tag = ?", (tag,))

    def scale_reservations(self, factor: float) -> None:
        """Multiplies this process's reservations for calls in flight."""
        with self._explained_errors(), self._transaction("NORMAL"):
            changed = "dollars = dollars * ?, tokens = CAST(tokens * ? AS INTEGER)"
            self._connection.execute(f"UPDATE claims SET {changed} WHERE owner = ?", (factor, factor, self._owner))

    def close(self) -> None:
        """Counts calls still in flight as lost, and closes the file."""
        if not self._replay:
            with self._explained_errors(), self._transaction("FULL"):
                self._release(self._owner)
        self._connection.close()

    def _prepare(self) -> None:
        """Creates missing tables, registers this process, and reads the run's use so far."""
        execute = self._connection.execute
        execute("PRAGMA journal_mode=WAL")
        execute("PRAGMA wal_autocheckpoint=8000")  # pages; calls wait for the disk at each checkpoint
        with self._transaction("FULL"):
            self._create_tables()
            execute("INSERT INTO owners VALUES (?, ?)", (self._owner, time.time()))
            self._release_dead_owners()
            self.spent_before = self._sum("spent WHERE run = ?")
            self.began_empty = execute("SELECT 1 FROM answers LIMIT 1").fetchone() is None

    def _commit(self, commits: Sequence[Commit]) -> None:
        answers, failures = [], []
        for key, _, outcome, *_ in commits:
            row = {"key": key, "at": int(time.time()), **(asdict(outcome) if outcome else {})}
            if isinstance(outcome, CachedResponse):
                # As JSON in ASCII, because SQLite's text ends at a NUL and has no lone surrogates.
                row["answer"] = json.dumps(row.pop("text"))
                row["checksum"] = _checksum(key, row["answer"], outcome.prompt_tokens, outcome.completion_tokens)
                answers.append(row)
            elif outcome is not None:
                failures.append(row)
        # An earlier answer stays, since another process may have used it.
        self._insert("OR IGNORE INTO answers", answers)
        self._insert("OR REPLACE INTO failures", failures)
        keys = json.dumps([commit.key for commit in commits])
        self._connection.execute(f"DELETE FROM claims WHERE owner = ? AND key IN {KEYS}", (self._owner, keys))
        regained = sum_of(commit.regained for commit in commits)
        self._spend(self._run, False, sum_of(commit.spent for commit in commits if not commit.lost))
        self._spend(self._run, True, sum_of(commit.spent for commit in commits if commit.lost).minus(regained))

    def _reserve(self, reserves: Sequence[Reserve]) -> list[Reservation]:
        keys = [reserve.key for reserve in reserves]
        answered = self.find(keys)
        held = self._rows("claims", ("key", "owner"), keys)
        foreign = any(not row["owner"].startswith(self._process) for row in held)
        if (foreign or self._caps.capped) and self._release_dead_owners():
            held = self._rows("claims", ("key", "owner"), keys)
        held_keys = {row["key"] for row in held}
        reserved = self._sum("claims WHERE run = ?")
        used = reserved.plus(self._sum("spent WHERE run = ?"))
        granted: list[dict[str, Any]] = []
        results = []
        for key, most in reserves:
            if key in answered:
                results.append(Reservation(state="answered", response=answered[key]))
            elif key in held_keys:
                results.append(Reservation(state="held"))
            elif cap := used.plus(most).passes(self._caps):
                in_flight, lost = bool(reserved.calls or granted), self._sum("spent WHERE run = ? AND lost")
                results.append(Reservation(state="over", cap=cap, in_flight=in_flight, lost=lost))
            else:
                used = used.plus(most)
                granted.append({"key": key, "owner": self._owner, "run": self._run, **most._asdict()})
                results.append(Reservation(state="granted"))
        self._insert("INTO claims", granted)
        return results

    def _sum(self, rows: str) -> Amount:
        """Sum of the amounts in rows of this run."""
        sums = "ifnull(sum(dollars), 0.0), ifnull(sum(tokens), 0), ifnull(sum(calls), 0)"
        return Amount(*self._connection.execute(f"SELECT {sums} FROM {rows}", (self._run,)).fetchone())

    def _spend(self, run: str, lost: bool, amount: Amount) -> None:
        if amount != NOTHING:
            self._connection.execute(
                "INSERT INTO spent VALUES (?, ?, ?, ?, ?) ON CONFLICT (run, lost) DO UPDATE SET dollars = dollars + "
                "excluded.dollars, tokens = tokens + excluded.tokens, calls = calls + excluded.calls",
                (run, int(lost), *amount),
            )

    def _release_dead_owners(self) -> bool:
        """Releases the reservations of processes that have ended; whether there were any."""
        owners = self._connection.execute("SELECT owner, beat FROM owners").fetchall()
        dead = [owner for owner, beat in owners if not _is_alive(owner, beat)]
        for owner in dead:
            self._release(owner)
        return bool(dead)

    def _release(self, owner: str) -> None:
        """Ends an owner's reservations, counting each as lost."""
        lost = "SELECT run, sum(dollars), sum(tokens), sum(calls) FROM claims WHERE owner = ? GROUP BY run"
        for run, *amount in self._connection.execute(lost, (owner,)).fetchall():
            self._spend(run, True, Amount(*amount))
        for table in ("claims", "owners"):
            self._connection.execute(f"DELETE FROM {table} WHERE owner = ?", (owner,))


def _is_alive(owner: str, beat: float) -> bool:
    host, process, started, _ = owner.split("|")
    if host == machine_id():
        # On this machine by process, since a suspended one still owns its calls; on others only the heartbeat is seen.
        return start_time(int(process)) == started
    return time.time() - beat < _DEAD_AFTER_SECONDS


def _checksum(key: str, answer: str, prompt_tokens: int, completion_tokens: int) -> str:
    return hashlib.sha256(f"{key}|{prompt_tokens}|{completion_tokens}|{answer}".encode()).hexdigest()[:16]


class ResponseCache:
    """The response cache, for an event loop; make it inside that loop.

    All work on the file is done in one thread, in batches: while one is written, jobs for the next are collected.

    Args:
      path: the file, made if missing; None holds answers in memory only.
      run: name under which this run's use is added up.
      caps: of the run.
      replay: open it read-only.

    Attributes:
      began_empty: whether it held no answer when it was opened for writing; later ones are found by reserving.
      spent_before: use of the run when the file was opened.
      notes: subject, kind and value of the table `notes` then.

    Raises:
      InputError: the file is no cache, damaged, full, or may not be written; also from every method.
    """

    def __init__(self, path: str | None, *, run: str, caps: BudgetConfig, replay: bool = False):
        self._file = ResponseCacheFile(path, run=run, caps=caps, replay=replay)
        self.path, self.began_empty = self._file.path, self._file.began_empty
        self.spent_before, self.notes = self._file.spent_before, self._file.notes()
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[tuple[Job, asyncio.Future]] = queue.SimpleQueue()  # None: close the file
        self._thread = threading.Thread(target=self._work, name="response cache", daemon=True)
        self._thread.start()

    def find(self, key: str) -> Awaitable[Outcome | None]:
        """The answer under `key`; in replay also the failure under it."""
        return self._submit(key)

    def reserve(self, key: str, most: Amount) -> Awaitable[Reservation]:
        """Asks to send the call under `key`, with the upper bound `most` of its use."""
        return self._submit(Reserve(key, most))

    def commit(self, *arguments: Any, **settings: Any) -> Awaitable[None]:
        """Ends a call, with the arguments of `Commit`; ready when the outcome is on disk."""
        return self._submit(Commit(*arguments, **settings))

    def run(self, work: Callable[[ResponseCacheFile], _T]) -> asyncio.Future[_T]:
        """Does other work on the file, in its thread."""
        return self._submit(work)

    async def close(self) -> None:
        """Does the waiting jobs and closes the file."""
        await self._submit(None)
        await asyncio.to_thread(self._thread.join)

    def _submit(self, job: Job) -> asyncio.Future:
        future = self._loop.create_future()
        self._jobs.put((job, future))
        return future

    def _work(self) -> None:
        closing = False
        while not closing:
            # The waiting jobs, or none after a while, which renews the heartbeat.
            batch: list[tuple[Job, asyncio.Future]] = []
            with contextlib.suppress(queue.Empty):
                batch.append(self._jobs.get(timeout=_IDLE_BEAT_SECONDS))
                while len(batch) < _BATCH:
                    batch.append(self._jobs.get_nowait())
            closing = any(job is None for job, _ in batch)
            try:
                results = self._file.process([job for job, _ in batch])
                if closing:
                    self._file.close()
            except BaseException as error:
                results = [error] * len(batch)
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._deliver, [future for _, future in batch], results)

    def _deliver(self, futures: Sequence[asyncio.Future], results: Sequence[Any]) -> None:
        for future, result in zip(futures, results, strict=True):
            if not future.done():
                (future.set_exception if isinstance(result, BaseException) else future.set_result)(result)

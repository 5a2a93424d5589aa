"""The response cache as an SQLite file: answers, failures, reservations and spending, shared by several processes.

Four tables. `answers` holds finished calls by the hash of their request. `failures` holds how failed calls ended, for
replay only: a failure is never given as an answer. `claims` holds the reservations of calls in flight, with the most
that each can use up, so that two processes neither send the same request nor pass a cap together; `owners` says which
processes live. `spent` holds what every run has used up, with a row of its own for calls lost by a kill or a dropped
connection, which count as the most they can have used up.
"""

from collections.abc import Iterator, Sequence
import contextlib
from dataclasses import asdict, dataclass
import hashlib
import json
import os
from pathlib import Path
import socket
import sqlite3
import time
from typing import Any, NamedTuple
import uuid

from diversity_jax.core.errors import InputError
from diversity_jax.llm.budget import NOTHING, Amount, BudgetConfig, sum_of

_APPLICATION_ID = 0x64697631  # "div1", so that no other database is taken for a cache
_VERSION = 1
_DEAD_AFTER_SECONDS = 60.0
_BEAT_SECONDS = 1.0
_LOCK_SECONDS = 60.0

_TABLES = (
    "answers (key TEXT PRIMARY KEY, answer TEXT, checksum TEXT, stage TEXT, model TEXT, prompt_tokens INTEGER, "
    "completion_tokens INTEGER, dollars REAL, at INTEGER)",
    "failures (key TEXT PRIMARY KEY, stage TEXT, reason TEXT, detail TEXT, prompt_tokens INTEGER, "
    "completion_tokens INTEGER, dollars REAL, at INTEGER) WITHOUT ROWID",
    "claims (key TEXT PRIMARY KEY, owner TEXT, run TEXT, dollars REAL, tokens INTEGER, calls INTEGER) WITHOUT ROWID",
    "owners (owner TEXT PRIMARY KEY, beat REAL) WITHOUT ROWID",
    "spent (run TEXT, lost INTEGER, dollars REAL, tokens INTEGER, calls INTEGER, PRIMARY KEY (run, lost)) "
    "WITHOUT ROWID",
)
_RESPONSE = ("stage", "model", "prompt_tokens", "completion_tokens", "dollars")
_FAILURE = ("stage", "reason", "detail", "prompt_tokens", "completion_tokens", "dollars")
_KEYS = "(SELECT value FROM json_each(?))"
# Words of SQLite's error messages, and what they mean for the user; the last entry is for all others.
_ERRORS = (
    (("readonly", "unable to open"), "the ledger may not be written ({0}); check permissions, or name another file in "
     "engine.ledger"),
    (("full",), "the disk is full; free space and run again, finished calls are kept"),
    (("disk I/O",), "the disk fails or is full ({0}); free space or move the ledger, then run again"),
    (("locked",), "another process has held the ledger for a minute; end it, or name another file in engine.ledger"),
    (("not a database", "malformed"), "is not a readable ledger ({0}); restore it, or move it away and pay its answers "
     "again"),
    (("",), "the ledger cannot be used ({0}); restore it, or name another file in engine.ledger"),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CachedResponse:
    """A finished call."""

    stage: str
    text: str
    prompt_tokens: int
    completion_tokens: int
    dollars: float
    model: str


@dataclass(frozen=True, kw_only=True)
class CachedFailure:
    """How a call failed, and what that used up."""

    stage: str
    reason: str
    detail: str
    prompt_tokens: int
    completion_tokens: int
    dollars: float


Outcome = CachedResponse | CachedFailure


@dataclass(frozen=True, kw_only=True)
class Reservation:
    """The result of reserving a call.

    Attributes:
      state: `granted` (send it), `answered` (see `response`), `held` (another process has sent this very request),
        `over` (it could pass a cap).
      response: the answer, where there is one.
      cap: name of the cap in `BudgetConfig`, where it is over.
      in_flight: whether other calls of the run are in flight, so that waiting for them may free budget.
      lost: the part of the run's spending that is only the most that lost calls can have used up.
    """

    state: str
    response: Outcome | None = None
    cap: str | None = None
    in_flight: bool = False
    lost: Amount = NOTHING

    def why(self, caps: BudgetConfig) -> str:
        """Which cap is in the way, and how much of it is set aside for lost calls."""
        set_aside = ""
        if self.lost.calls:
            most = {
                "max_dollars": f"${self.lost.dollars:,.4f}",
                "max_tokens": f"{self.lost.tokens:,} tokens",
                "max_calls": f"{self.lost.calls:,} calls",
            }[self.cap or ""]
            set_aside = f" ({most} of it set aside for {self.lost.calls:,} calls that were lost on the way)"
        return (
            f"the next call could pass budget.{self.cap} = {getattr(caps, self.cap or ''):,}{set_aside}; raise it and "
            "run again to go on"
        )


class Reserve(NamedTuple):
    """Asks to send the call under `key`, which can use up `most`."""

    key: str
    most: Amount


class Commit(NamedTuple):
    """Ends the call under `key`.

    Attributes:
      spent: what it used up, or if `lost` the most that it can have.
      outcome: what is to be kept of it, if anything.
      regained: what had been counted as lost before and no longer is.
    """

    key: str
    spent: Amount
    outcome: Outcome | None
    lost: bool = False
    regained: Amount = NOTHING


class ResponseCacheFile:
    """The file as one thread of one process uses it; see `ResponseCache` for the arguments.

    Raises:
      InputError: from every method, when the file is no cache, damaged, full, or may not be written.
    """

    def __init__(self, path: str | None, *, run: str, caps: BudgetConfig, replay: bool):
        self.path = ":memory:" if path is None else os.fspath(path)
        self.spent_before = NOTHING
        self.began_empty = False
        self._last_beat = 0.0
        self._run, self._caps, self._replay = run, caps, replay
        self._process = f"{socket.gethostname()}|{os.getpid()}|{_start_time(os.getpid())}"
        self._owner = f"{self._process}|{uuid.uuid4().hex[:8]}"
        with self._explained_errors():
            self._connection = self._connect()
            if not replay:
                self._prepare()

    def find(self, keys: Sequence[str]) -> dict[str, Outcome]:
        """What is known of `keys`: answers, and in replay also failures."""
        with self._explained_errors():
            return self._find(keys)

    def apply(self, reserves: Sequence[Reserve], commits: Sequence[Commit]) -> list[Reservation]:
        """Ends calls and reserves new ones, in one transaction; also shows other processes that this one lives."""
        if self._replay:
            return []
        # A lost reservation is released with its owner; a lost answer would be paid twice. So only answers are synced.
        with self._explained_errors(), self._transaction("FULL" if commits else "NORMAL"):
            if time.time() - self._last_beat > _BEAT_SECONDS:
                self._last_beat = time.time()
                self._connection.execute("UPDATE owners SET beat = ? WHERE owner = ?", (self._last_beat, self._owner))
            if commits:
                self._commit(commits)
            return self._reserve(reserves) if reserves else []

    def close(self) -> None:
        """Counts what is still in flight as used up, and closes the file."""
        if not self._replay:
            with self._explained_errors(), self._transaction("FULL"):
                self._release(self._owner)
        self._connection.close()

    @contextlib.contextmanager
    def _explained_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            text = str(error)
            advice = next(advice for words, advice in _ERRORS if any(word in text for word in words))
            raise InputError(f"{self.path}: {advice.format(text)}") from None
        except OSError as error:
            raise InputError(
                f"{self.path}: {error.strerror or error}; name a ledger file in a folder that can be written"
            ) from None

    @contextlib.contextmanager
    def _transaction(self, synchronous: str) -> Iterator[None]:
        self._connection.execute(f"PRAGMA synchronous={synchronous}")
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.rollback()
            raise

    def _connect(self) -> sqlite3.Connection:
        target = self.path
        if self._replay:
            if self.path == ":memory:":
                raise InputError("engine.offline_replay: needs a ledger to replay from; name one in engine.ledger")
            if not os.path.isfile(self.path):
                raise InputError(
                    f"{self.path}: no such ledger to replay from; run once with a judge first, or correct engine.ledger"
                )
            # Without a write-ahead file nobody is writing, and then the folder itself need not be writable either.
            mode = "mode=ro" if os.path.exists(self.path + "-wal") else "immutable=1"
            escaped = self.path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
            target = f"file:{escaped}?{mode}"
        elif self.path != ":memory:":
            Path(self.path).parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(
            target, uri=self._replay, isolation_level=None, check_same_thread=False, timeout=_LOCK_SECONDS
        )
        identity = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
        empty = not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if identity != [_APPLICATION_ID, _VERSION] and not (empty and not self._replay):
            raise InputError(
                f"{self.path}: is a database of something else or of another version; name another file in "
                "engine.ledger"
            )
        return connection

    def _prepare(self) -> None:
        """Creates what is missing, registers this process, and reads what the run has spent before."""
        execute = self._connection.execute
        execute("PRAGMA journal_mode=WAL")
        execute("PRAGMA wal_autocheckpoint=8000")  # pages; calls wait for the disk at each checkpoint
        with self._transaction("FULL"):
            execute(f"PRAGMA application_id={_APPLICATION_ID}")
            execute(f"PRAGMA user_version={_VERSION}")
            for table in _TABLES:
                execute(f"CREATE TABLE IF NOT EXISTS {table}")
            execute("INSERT INTO owners VALUES (?, ?)", (self._owner, time.time()))
            self._release_dead_owners()
            self.spent_before = self._sum("spent WHERE run = ?")[0]
            self.began_empty = self._row("SELECT 1 FROM answers LIMIT 1") is None

    def _find(self, keys: Sequence[str]) -> dict[str, Outcome]:
        outcomes: dict[str, Outcome] = {}
        for key, answer, checksum, *values in self._rows("answers", ("answer", "checksum", *_RESPONSE), keys):
            fields = dict(zip(_RESPONSE, values, strict=True))
            if checksum != _checksum(key, answer, fields["prompt_tokens"], fields["completion_tokens"]):
                raise InputError(
                    f"{self.path}: the answer under {key[:12]} is damaged; restore the ledger, or move it away and "
                    "pay again"
                )
            outcomes[key] = CachedResponse(text=json.loads(answer), **fields)
        if self._replay:
            for key, *values in self._rows("failures", _FAILURE, keys):
                outcomes.setdefault(key, CachedFailure(**dict(zip(_FAILURE, values, strict=True))))
        return outcomes

    # Statements take all their rows from one JSON array: every statement waits for Python's global lock when the event
    # loop is busy, so a batch of any size is a handful of statements.

    def _rows(self, table: str, columns: Sequence[str], keys: Sequence[str]) -> list[list]:
        """Rows of a table under `keys`: the key, then `columns`."""
        query = f"SELECT json_group_array(json_array(key, {', '.join(columns)})) FROM {table} WHERE key IN {_KEYS}"
        return json.loads(self._row(query, json.dumps(keys))[0])

    def _insert(self, into: str, columns: Sequence[str], rows: list[list]) -> None:
        if rows:
            values = ", ".join(f"json_extract(value, '$[{column}]')" for column in range(len(columns)))
            statement = f"INSERT {into} ({', '.join(columns)}) SELECT {values} FROM json_each(?)"
            self._connection.execute(statement, (json.dumps(rows),))

    def _commit(self, commits: Sequence[Commit]) -> None:
        now = int(time.time())
        answers, failures = [], []
        for commit in commits:
            key, outcome = commit.key, commit.outcome
            if isinstance(outcome, CachedResponse):
                # As JSON in ASCII, because SQLite's text ends at a NUL and has no lone surrogates.
                answer, fields = json.dumps(outcome.text), asdict(outcome)
                checksum = _checksum(key, answer, outcome.prompt_tokens, outcome.completion_tokens)
                answers.append([key, answer, checksum, *(fields[name] for name in _RESPONSE), now])
            elif outcome is not None:
                fields = asdict(outcome)
                failures.append([key, *(fields[name] for name in _FAILURE), now])
        # The first answer stays: another process may have used it already.
        self._insert("OR IGNORE INTO answers", ("key", "answer", "checksum", *_RESPONSE, "at"), answers)
        self._insert("OR REPLACE INTO failures", ("key", *_FAILURE, "at"), failures)
        keys = json.dumps([commit.key for commit in commits])
        self._connection.execute(f"DELETE FROM claims WHERE owner = ? AND key IN {_KEYS}", (self._owner, keys))
        regained = sum_of(commit.regained for commit in commits)
        self._spend(self._run, False, sum_of(commit.spent for commit in commits if not commit.lost))
        self._spend(self._run, True, sum_of(commit.spent for commit in commits if commit.lost).minus(regained))

    def _reserve(self, reserves: Sequence[Reserve]) -> list[Reservation]:
        keys = [reserve.key for reserve in reserves]
        answered = self._find(keys)
        held = dict(self._rows("claims", ("owner",), keys))
        if any(not owner.startswith(self._process) for owner in held.values()) and self._release_dead_owners():
            held = dict(self._rows("claims", ("owner",), keys))
        if self._caps.capped:
            self._release_dead_owners()
        reserved, in_flight = self._sum("claims WHERE run = ?")
        used = reserved.plus(self._sum("spent WHERE run = ?")[0])
        granted: list[list] = []
        results = []
        for key, most in reserves:
            if key in answered:
                results.append(Reservation(state="answered", response=answered[key]))
            elif key in held:
                results.append(Reservation(state="held"))
            elif cap := used.plus(most).passes(self._caps):
                lost = self._sum("spent WHERE run = ? AND lost")[0]
                results.append(Reservation(state="over", cap=cap, in_flight=bool(in_flight or granted), lost=lost))
            else:
                used = used.plus(most)
                granted.append([key, self._owner, self._run, *most])
                results.append(Reservation(state="granted"))
        self._insert("INTO claims", ("key", "owner", "run", "dollars", "tokens", "calls"), granted)
        return results

    def _sum(self, rows: str) -> tuple[Amount, int]:
        """What rows of this run add up to, and how many there are."""
        *amount, count = self._row(
            f"SELECT ifnull(sum(dollars), 0.0), ifnull(sum(tokens), 0), ifnull(sum(calls), 0), count(*) FROM {rows}",
            self._run,
        )
        return Amount(*amount), count

    def _row(self, statement: str, *parameters: Any) -> Any:
        return self._connection.execute(statement, parameters).fetchone()

    def _spend(self, run: str, lost: bool, amount: Amount) -> None:
        if amount != NOTHING:
            self._connection.execute(
                "INSERT INTO spent VALUES (?, ?, ?, ?, ?) ON CONFLICT (run, lost) DO UPDATE SET dollars = dollars + "
                "excluded.dollars, tokens = tokens + excluded.tokens, calls = calls + excluded.calls",
                (run, int(lost), *amount),
            )

    def _release_dead_owners(self) -> bool:
        """Releases the reservations of processes that are gone; whether there were any."""
        owners = self._connection.execute("SELECT owner, beat FROM owners").fetchall()
        dead = [owner for owner, beat in owners if not _is_alive(owner, beat)]
        for owner in dead:
            self._release(owner)
        return bool(dead)

    def _release(self, owner: str) -> None:
        """Ends an owner's reservations, counting each as the most it can have used up."""
        lost = self._connection.execute(
            "SELECT run, sum(dollars), sum(tokens), sum(calls) FROM claims WHERE owner = ? GROUP BY run", (owner,)
        )
        for run, *amount in lost.fetchall():
            self._spend(run, True, Amount(*amount))
        self._connection.execute("DELETE FROM claims WHERE owner = ?", (owner,))
        self._connection.execute("DELETE FROM owners WHERE owner = ?", (owner,))


def _is_alive(owner: str, beat: float) -> bool:
    host, process, started, _ = owner.split("|")
    if host == socket.gethostname():
        # A process that slept for long still owns its calls; for other machines the heartbeat is all there is to see.
        return _start_time(int(process)) == started
    return time.time() - beat < _DEAD_AFTER_SECONDS


def _start_time(process: int) -> str:
    """When a process of this machine started, in the system's own units, which tells apart users of one process id;
    empty if there is no such process.
    """
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except FileNotFoundError:
        if os.path.exists("/proc/self/stat"):
            return ""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "running"


def _checksum(key: str, answer: str, prompt_tokens: int, completion_tokens: int) -> str:
    return hashlib.sha256(f"{key}|{prompt_tokens}|{completion_tokens}|{answer}".encode()).hexdigest()[:16]

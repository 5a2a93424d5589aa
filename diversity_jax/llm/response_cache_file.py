"""The ledger's SQLite file: answers, failures, claims and spending, shared by several processes.

Four tables. `answers` holds finished calls by the hash of what was asked. `failures` holds how failed calls ended, for
replay only: a failure is never given as an answer. `claims` holds the calls in flight, with the most each can use up,
  so that two processes neither
ask the same thing nor pass a cap together. `spent` holds what every run has used up; for calls lost on the way, by a
kill or a dropped connection, the most they can have used up, in a row of its own.

A batch of any size is a handful of SQL statements that take their rows from one JSON array: every statement waits for
Python's global lock when the event loop is busy.
"""

from collections.abc import Sequence
import contextlib
from dataclasses import dataclass
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
from diversity_jax.llm.budget import NOTHING, Amount, BudgetConfig

_APPLICATION_ID = 0x64697631  # "div1", so that a stranger's database is not taken for a ledger
_VERSION = 1
_DEAD_AFTER_SECONDS = 60.0
_BEAT_SECONDS = 1.0

_TABLES = """
CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT, checksum TEXT, stage TEXT, model TEXT, prompt_tokens INTEGER,
  completion_tokens INTEGER, dollars REAL, at INTEGER);
CREATE TABLE IF NOT EXISTS failures (key TEXT PRIMARY KEY, stage TEXT, reason TEXT, detail TEXT, prompt_tokens INTEGER,
  completion_tokens INTEGER, dollars REAL, at INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS claims (key TEXT PRIMARY KEY, owner TEXT, run TEXT, dollars REAL, tokens INTEGER, calls INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS owners (owner TEXT PRIMARY KEY, beat REAL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS spent (run TEXT, lost INTEGER, dollars REAL, tokens INTEGER, calls INTEGER, PRIMARY KEY (run, lost))
  WITHOUT ROWID;
"""
_ENTRY = ("stage", "model", "prompt_tokens", "completion_tokens", "dollars")
_FAILURE = ("stage", "reason", "detail", "prompt_tokens", "completion_tokens", "dollars")
_EACH = "(SELECT value FROM json_each(?))"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A finished call."""

    stage: str
    text: str
    prompt_tokens: int
    completion_tokens: int
    dollars: float
    model: str


@dataclass(frozen=True, kw_only=True)
class Failure:
    """How a call failed, and what that used up."""

    stage: str
    reason: str
    detail: str
    prompt_tokens: int
    completion_tokens: int
    dollars: float


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What became of asking for a call.

    Attributes:
      state: `granted` (send it), `answered` (`entry` has it), `held` (another process is asking just this), `over` (it
        could pass a cap).
      entry: the answer, where there is one.
      cap: name of the cap, where it is over.
      in_flight: whether other calls of the run are in flight, so that waiting for them may free room under the cap.
      lost: what of the run's spending is only the most that lost calls can have used up.
    """

    state: str
    entry: Entry | None = None
    cap: str | None = None
    in_flight: bool = False
    lost: Amount = NOTHING

    def why(self, caps: BudgetConfig) -> str:
        """Which cap holds the call back, and how much of that is set aside for calls that were lost."""
        most = {
            "max_dollars": f"${self.lost.dollars:,.4f}",
            "max_tokens": f"{self.lost.tokens:,} tokens",
            "max_calls": f"{self.lost.calls:,} calls",
        }
        counted = (
            f" ({most[self.cap]} of it set aside for {self.lost.calls:,} calls that were lost on the way)"
            if self.lost.calls
            else ""
        )
        return (
            f"the next call could pass budget.{self.cap} = {getattr(caps, self.cap):,}{counted}; raise it and run "
            "again to go on"
        )


class ClaimJob(NamedTuple):
    """A call that asks to be sent, and the most it can use up."""

    key: str
    reserve: Amount


class SettleJob(NamedTuple):
    """A call that has ended: what it used up, whether that is only the most it can be, its outcome where there is one
    to keep, and what had been counted as lost and no longer is.
    """

    key: str
    spent: Amount
    lost: bool
    outcome: Entry | Failure | None
    regained: Amount = NOTHING


class LedgerFile:
    """The file as one thread of one process sees it.

    Raises:
      InputError: from every method, when the file is no ledger, damaged, full, or may not be written.
    """

    def __init__(self, path: str | None, *, run: str, caps: BudgetConfig, replay: bool):
        self.path = ":memory:" if path is None else os.fspath(path)
        self.spent_before = NOTHING
        self.began_empty = False
        self._beat = 0.0
        self._run = run
        self._caps = caps
        self._replay = replay
        self._process = f"{socket.gethostname()}|{os.getpid()}|{_started(os.getpid())}"
        self._owner = f"{self._process}|{uuid.uuid4().hex[:8]}"
        with self._explaining():
            self._connection = self._open_to_read() if replay else self._open_to_write()

    def find(self, keys: Sequence[str]) -> dict[str, Entry | Failure]:
        """What is known of `keys`: answers, and in replay also failures."""
        with self._explaining():
            return self._find(keys)

    def apply(self, claims: Sequence[ClaimJob], settles: Sequence[SettleJob]) -> list[Claim]:
        """Ends calls and grants new ones, in one transaction; also shows the others that this process lives."""
        if self._replay:
            return []
        # A lost claim is found again by its dead owner; a lost answer would be paid twice. So only answers wait for the
        # disk.
        with self._explaining(), self._transaction("FULL" if settles else "NORMAL"):
            if time.time() - self._beat > _BEAT_SECONDS:
                self._beat = time.time()
                self._connection.execute("UPDATE owners SET beat = ? WHERE owner = ?", (self._beat, self._owner))
            if settles:
                self._settle(settles)
            return self._claim(claims) if claims else []

    def close(self) -> None:
        """Counts what is still in flight as used up, and closes the file."""
        if not self._replay:
            with self._explaining(), self._transaction("FULL"):
                _bury(self._connection, self._owner)
        self._connection.close()

    @contextlib.contextmanager
    def _explaining(self):
        try:
            yield
        except sqlite3.Error as error:
            raise InputError(_explained(self.path, error)) from None
        except OSError as error:
            raise InputError(
                f"{self.path}: {error.strerror or error}; name a ledger file in a folder that can be written"
            ) from None

    @contextlib.contextmanager
    def _transaction(self, synchronous: str):
        self._connection.execute(f"PRAGMA synchronous={synchronous}")
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.rollback()
            raise

    def _open_to_read(self) -> sqlite3.Connection:
        if self.path == ":memory:":
            raise InputError("engine.offline_replay: needs a ledger to replay from; name one in engine.ledger")
        if not os.path.isfile(self.path):
            raise InputError(
                f"{self.path}: no such ledger to replay from; run once with a judge first, or correct engine.ledger"
            )
        # Without a write-ahead file nobody is writing, and then the folder itself need not be writable either.
        how = "mode=ro" if os.path.exists(self.path + "-wal") else "immutable=1"
        escaped = self.path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
        connection = sqlite3.connect(
            f"file:{escaped}?{how}", uri=True, isolation_level=None, check_same_thread=False, timeout=60.0
        )
        self._check_identity(connection)
        return connection

    def _open_to_write(self) -> sqlite3.Connection:
        if self.path != ":memory:":
            Path(self.path).parent.mkdir(parents=True, exist_ok=True)
        self._connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=60.0)
        self._check_identity(self._connection)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA wal_autocheckpoint=8000")  # pages; each time, calls wait for the disk
        with self._transaction("FULL"):
            self._connection.execute(f"PRAGMA application_id={_APPLICATION_ID}")
            self._connection.execute(f"PRAGMA user_version={_VERSION}")
            for statement in _TABLES.split(";"):
                self._connection.execute(statement)
            self._connection.execute("INSERT INTO owners VALUES (?, ?)", (self._owner, time.time()))
            _bury_the_dead(self._connection)
            self.spent_before = self._sum("spent WHERE run = ?")[0]
            self.began_empty = self._one("SELECT 1 FROM answers LIMIT 1") is None
        return self._connection

    def _check_identity(self, connection: sqlite3.Connection):
        identity = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
        empty = not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if identity != [_APPLICATION_ID, _VERSION] and not (empty and not self._replay):
            raise InputError(
                f"{self.path}: is a database of something else or of another version; name another file in "
                "engine.ledger"
            )

    def _find(self, keys: Sequence[str]) -> dict[str, Entry | Failure]:
        found: dict[str, Entry | Failure] = {}
        for key, answer, checksum, *values in self._rows("answers", ("answer", "checksum", *_ENTRY), keys):
            entry = dict(zip(_ENTRY, values, strict=True))
            if checksum != _checksum(key, answer, entry["prompt_tokens"], entry["completion_tokens"]):
                raise InputError(
                    f"{self.path}: the answer under {key[:12]} is damaged; restore the ledger, or move it away and "
                    "pay again"
                )
            found[key] = Entry(text=json.loads(answer), **entry)
        if self._replay:
            for key, *values in self._rows("failures", _FAILURE, keys):
                found.setdefault(key, Failure(**dict(zip(_FAILURE, values, strict=True))))
        return found

    def _rows(self, table: str, columns: Sequence[str], keys: Sequence[str]) -> list[list]:
        """Rows of a table under `keys`: the key, then `columns`."""
        query = f"SELECT json_group_array(json_array(key, {', '.join(columns)})) FROM {table} WHERE key IN {_EACH}"
        return json.loads(self._one(query, json.dumps(keys))[0])

    def _settle(self, jobs: Sequence[SettleJob]):
        now = int(time.time())
        answers, failures = [], []
        for key, _, _, outcome, _ in jobs:
            if isinstance(outcome, Entry):
                # As JSON in ASCII, because SQLite's text ends at a NUL and has no lone surrogates.
                answer = json.dumps(outcome.text)
                checksum = _checksum(key, answer, outcome.prompt_tokens, outcome.completion_tokens)
                answers.append([key, answer, checksum, *(getattr(outcome, name) for name in _ENTRY), now])
            elif isinstance(outcome, Failure):
                failures.append([key, *(getattr(outcome, name) for name in _FAILURE), now])
        # The first answer stays: somebody may have used it already.
        self._insert("OR IGNORE INTO answers", ("key", "answer", "checksum", *_ENTRY, "at"), answers)
        self._insert("OR REPLACE INTO failures", ("key", *_FAILURE, "at"), failures)
        keys = json.dumps([job.key for job in jobs])
        self._connection.execute(f"DELETE FROM claims WHERE owner = ? AND key IN {_EACH}", (self._owner, keys))
        for lost in (False, True):
            spent = [job.spent for job in jobs if job.lost == lost]
            spent += [NOTHING.minus(job.regained) for job in jobs if lost and job.regained != NOTHING]
            _spend(self._connection, self._run, lost, [sum(part) for part in zip(*spent, strict=True)])

    def _insert(self, where: str, columns: Sequence[str], rows: list[list]):
        if rows:
            values = ", ".join(f"json_extract(value, '$[{column}]')" for column in range(len(columns)))
            statement = f"INSERT {where} ({', '.join(columns)}) SELECT {values} FROM json_each(?)"
            self._connection.execute(statement, (json.dumps(rows),))

    def _claim(self, jobs: Sequence[ClaimJob]) -> list[Claim]:
        keys = [job.key for job in jobs]
        answered = self._find(keys)
        held = dict(self._rows("claims", ("owner",), keys))
        if any(not owner.startswith(self._process) for owner in held.values()) and _bury_the_dead(self._connection):
            held = dict(self._rows("claims", ("owner",), keys))
        used, in_flight = self._used()
        granted, results = [], []
        for key, reserve in jobs:
            if key in answered:
                results.append(Claim(state="answered", entry=answered[key]))
            elif key in held:
                results.append(Claim(state="held"))
            elif cap := used.plus(reserve).passes(self._caps):
                results.append(
                    Claim(
                        state="over",
                        cap=cap,
                        in_flight=in_flight or bool(granted),
                        lost=self._sum("spent WHERE run = ? AND lost")[0],
                    )
                )
            else:
                used = used.plus(reserve)
                granted.append([key, self._owner, self._run, *reserve])
                results.append(Claim(state="granted"))
        self._insert("INTO claims", ("key", "owner", "run", "dollars", "tokens", "calls"), granted)
        return results

    def _used(self) -> tuple[Amount, bool]:
        """What the run has used up together with the most its calls in flight can use up, and whether there are any."""
        if self._caps.capped:
            _bury_the_dead(self._connection)
        in_flight, count = self._sum("claims WHERE run = ?")
        return in_flight.plus(self._sum("spent WHERE run = ?")[0]), count > 0

    def _sum(self, rows: str) -> tuple[Amount, int]:
        """What rows of this run add up to, and how many there are."""
        *amount, count = self._one(
            f"SELECT ifnull(sum(dollars), 0.0), ifnull(sum(tokens), 0), ifnull(sum(calls), 0), count(*) FROM {rows}",
            self._run,
        )
        return Amount(*amount), count

    def _one(self, statement: str, *parameters: Any) -> tuple:
        return self._connection.execute(statement, parameters).fetchone()


def _spend(connection: sqlite3.Connection, run: str, lost: bool, amount: Sequence[float]):
    if any(amount):
        connection.execute(
            "INSERT INTO spent VALUES (?, ?, ?, ?, ?) ON CONFLICT (run, lost) DO UPDATE SET "
            "dollars = dollars + excluded.dollars, tokens = tokens + excluded.tokens, calls = calls + excluded.calls",
            (run, int(lost), *amount),
        )


def _bury_the_dead(connection: sqlite3.Connection) -> bool:
    """Ends the claims of processes that are gone; whether there were any."""
    owners = connection.execute("SELECT owner, beat FROM owners").fetchall()
    dead = [owner for owner, beat in owners if not _lives(owner, beat)]
    for owner in dead:
        _bury(connection, owner)
    return bool(dead)


def _bury(connection: sqlite3.Connection, owner: str):
    """Ends an owner's claims, counting each as the most it can have used up."""
    lost = connection.execute(
        "SELECT run, sum(dollars), sum(tokens), sum(calls) FROM claims WHERE owner = ? GROUP BY run", (owner,)
    )
    for run, *amount in lost.fetchall():
        _spend(connection, run, True, amount)
    connection.execute("DELETE FROM claims WHERE owner = ?", (owner,))
    connection.execute("DELETE FROM owners WHERE owner = ?", (owner,))


def _lives(owner: str, beat: float) -> bool:
    host, process, started, _ = owner.split("|")
    if host == socket.gethostname():
        # A process that slept for long still owns its calls; only on other machines is the heartbeat all there is to
        # see.
        return _started(int(process)) == started
    return time.time() - beat < _DEAD_AFTER_SECONDS


def _started(process: int) -> str:
    """When a process of this machine started, in the system's own units; empty if there is none. Tells apart users of
    one number.
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


def _explained(path: str, error: sqlite3.Error) -> str:
    text = str(error)
    if "readonly" in text or "unable to open" in text:
        return (
            f"{path}: the ledger may not be written ({text}); check permissions, or name another file in engine.ledger"
        )
    if "full" in text:
        return f"{path}: the disk is full; free space and run again, finished calls are kept"
    if "disk I/O" in text:
        return f"{path}: the disk fails or is full ({text}); free space or move the ledger, then run again"
    if "locked" in text:
        return (
            f"{path}: another process has held the ledger for a minute; end it, or name another file in engine.ledger"
        )
    if "not a database" in text or "malformed" in text:
        return f"{path}: is not a readable ledger ({text}); restore it, or move it away and pay its answers again"
    return f"{path}: the ledger cannot be used ({text}); restore it, or name another file in engine.ledger"

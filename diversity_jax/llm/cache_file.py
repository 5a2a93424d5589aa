"""The SQLite file of the response cache: opening, error messages, and its tables `notes` and `batches`.

`notes` holds what is learnt of servers: features that they do not support, and which model answered. `batches` holds
the requests of each batch, from before it is submitted until its answers are stored. Their reservations in `claims`
belong to the batch and not to a process, so that they outlast a killed one.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
from dataclasses import dataclass
import json
import os
from pathlib import Path
import sqlite3
import time
from typing import Any
import urllib.parse

from diversity_jax.core.errors import InputError

_APPLICATION_ID = 0x64697631  # "div1", by which other databases are told apart
_VERSION = 1
_LOCK_SECONDS = 60.0

TABLES = (
    "answers (key TEXT PRIMARY KEY, answer TEXT, checksum TEXT, stage TEXT, model TEXT, prompt_tokens INTEGER, "
    "completion_tokens INTEGER, dollars REAL, at INTEGER)",
    "failures (key TEXT PRIMARY KEY, stage TEXT, reason TEXT, detail TEXT, prompt_tokens INTEGER, "
    "completion_tokens INTEGER, dollars REAL, at INTEGER) WITHOUT ROWID",
    "claims (key TEXT PRIMARY KEY, owner TEXT, run TEXT, dollars REAL, tokens INTEGER, calls INTEGER) WITHOUT ROWID",
    "owners (owner TEXT PRIMARY KEY, beat REAL) WITHOUT ROWID",
    "spent (run TEXT, lost INTEGER, dollars REAL, tokens INTEGER, calls INTEGER, PRIMARY KEY (run, lost)) "
    "WITHOUT ROWID",
    "notes (subject TEXT, kind TEXT, value TEXT, at INTEGER, PRIMARY KEY (subject, kind, value)) WITHOUT ROWID",
    "batches (tag TEXT PRIMARY KEY, subject TEXT, name TEXT, state TEXT, stages TEXT, at INTEGER) WITHOUT ROWID",
)
KEYS = "(SELECT value FROM json_each(?))"
# Words of SQLite's error messages, and the messages for the user; the last one is for all others.
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
class OpenBatch:
    """A batch whose answers are not stored yet.

    Attributes:
      tag: name under which it was submitted.
      name: the provider's name for it; None where the process ended before it was stored.
      stages: stage of each request, by key.
    """

    tag: str
    name: str | None
    stages: Mapping[str, str]


class CacheFile:
    """The file, for one thread of one process.

    Args:
      path: made if missing; None is a database in memory.
      replay: open it read-only.

    Raises:
      InputError: the file is no response cache, damaged, full, or may not be written; also from every method.
    """

    def __init__(self, path: str | None, *, replay: bool):
        self.path = ":memory:" if path is None else os.fspath(path)
        self._replay = replay
        with self._explained_errors():
            self._connection = self._connect()

    def notes(self) -> frozenset[tuple[str, str, str]]:
        """Subject, kind and value of all notes."""
        with self._explained_errors():
            known = "SELECT 1 FROM sqlite_master WHERE name = 'notes'"  # not in files of earlier versions
            if self._connection.execute(known).fetchone() is None:
                return frozenset()
            return frozenset(self._connection.execute("SELECT subject, kind, value FROM notes").fetchall())

    def note(self, subject: str, kind: str, value: str) -> None:
        if not self._replay:
            with self._explained_errors(), self._transaction("FULL"):
                row = (subject, kind, value, int(time.time()))
                self._connection.execute("INSERT OR IGNORE INTO notes VALUES (?, ?, ?, ?)", row)

    def open_batches(self, subject: str) -> list[OpenBatch]:
        """The batches of a subject that are not closed, in the order in which they were submitted."""
        query = "SELECT tag, name, stages FROM batches WHERE subject = ? AND state = 'open' ORDER BY at, tag"
        with self._explained_errors():
            rows = self._connection.execute(query, (subject,)).fetchall()
        return [OpenBatch(tag=tag, name=name, stages=json.loads(stages)) for tag, name, stages in rows]

    def open_batch(self, tag: str, subject: str, stages: Mapping[str, str]) -> str:
        """Stores a batch before it is submitted, and makes it the owner of its requests' reservations; returns the tag,
        with a number appended where it was used before.
        """
        with self._explained_errors(), self._transaction("FULL"):
            used = self._connection.execute(
                "SELECT count(*) FROM batches WHERE tag = ? OR tag LIKE ?", (tag, f"{tag}-%")
            ).fetchone()[0]
            tag = f"{tag}-{used}" if used else tag
            row = (tag, subject, json.dumps(stages), int(time.time()))
            self._connection.execute("INSERT INTO batches VALUES (?, ?, NULL, 'open', ?, ?)", row)
            keys = json.dumps(list(stages))
            self._connection.execute(f"UPDATE claims SET owner = ? WHERE key IN {KEYS}", (batch_owner(tag), keys))
        return tag

    def name_batch(self, tag: str, name: str) -> None:
        """Stores the provider's name of a batch."""
        with self._explained_errors(), self._transaction("FULL"):
            self._connection.execute("UPDATE batches SET name = ? WHERE tag = ?", (name, tag))

    @contextlib.contextmanager
    def _explained_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            advice = next(advice for words, advice in _ERRORS if any(word in str(error) for word in words))
            raise InputError(f"{self.path}: {advice.format(error)}") from None
        except UnicodeDecodeError:  # of SQLite's message, which quotes the file
            raise InputError(
                f"{self.path}: is not a readable ledger (it holds bytes that are no text); restore it, or move it away "
                "and pay its answers again"
            ) from None
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"{self.path}: {reason}; name a ledger file in a folder that can be written") from None

    @contextlib.contextmanager
    def _transaction(self, synchronous: str) -> Iterator[None]:
        self._connection.execute(f"PRAGMA synchronous={synchronous}")
        self._connection.execute("BEGIN IMMEDIATE")
        with self._connection:  # commits, or rolls back after an exception
            yield

    def _connect(self) -> sqlite3.Connection:
        target = self.path
        if self._replay:
            if self.path == ":memory:":
                raise InputError("engine.offline_replay: needs a ledger to replay from; name one in engine.ledger")
            if not os.path.isfile(self.path):
                raise InputError(f"{self.path}: no such ledger to replay from; run with a judge first, or correct it")
            # Without a write-ahead file nobody is writing; then the folder need not be writable.
            mode = "mode=ro" if os.path.exists(self.path + "-wal") else "immutable=1"
            target = f"file:{urllib.parse.quote(self.path)}?{mode}"
        elif self.path != ":memory:":
            Path(self.path).parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(
            target, uri=self._replay, isolation_level=None, check_same_thread=False, timeout=_LOCK_SECONDS
        )
        identity = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
        empty = connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone() is None
        if identity != [_APPLICATION_ID, _VERSION] and (self._replay or not empty):
            raise InputError(f"{self.path}: is a database of something else or of another version; name another file")
        return connection

    def _create_tables(self) -> None:
        self._connection.execute(f"PRAGMA application_id={_APPLICATION_ID}")
        self._connection.execute(f"PRAGMA user_version={_VERSION}")
        for table in TABLES:
            self._connection.execute(f"CREATE TABLE IF NOT EXISTS {table}")

    # Statements take and return all their rows as one JSON array, so that a batch of any size is a handful of them:
    # each waits for Python's global lock when the event loop is busy.

    def _rows(self, table: str, columns: Sequence[str], keys: Sequence[str]) -> list[dict[str, Any]]:
        row = ", ".join(f"'{column}', {column}" for column in columns)
        query = f"SELECT json_group_array(json_object({row})) FROM {table} WHERE key IN {KEYS}"
        return json.loads(self._connection.execute(query, (json.dumps(keys),)).fetchone()[0])

    def _insert(self, into: str, rows: list[dict[str, Any]]) -> None:
        if rows:
            values = ", ".join(f"json_extract(value, '$.{column}')" for column in rows[0])
            statement = f"INSERT {into} ({', '.join(rows[0])}) SELECT {values} FROM json_each(?)"
            self._connection.execute(statement, (json.dumps(rows),))


def batch_owner(tag: str) -> str:
    """The owner of a batch's reservations."""
    return f"batch|{tag}"

"""Folders of resumable work: an exclusive lock, files written atomically, commit records, checksums on a restart."""

import _thread
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
import contextlib
from dataclasses import dataclass
import errno
import fcntl
import logging
import os
from pathlib import Path
import socket
import threading
import time
from typing import Any, Self
import uuid

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import (
    canonical_json,
    content_hash,
    create_file,
    disk_errors_named,
    exists,
    file_hash,
    is_remote,
    join_path,
    list_files,
    make_folder,
    read_json,
    remove_tree,
    write_json,
    writing,
)
from diversity_jax.core.json_fields import from_json
from diversity_jax.core.process import machine_id, start_time

_THREADS = 8  # hashing and remote reads release the interpreter lock

log = logging.getLogger(__name__)


class FolderLocked(InputError):
    """Another process holds the lock of a folder."""


@contextlib.contextmanager
def exclusive_lock(path: str | os.PathLike, message: str, *, wait_seconds: float = 0.0) -> Iterator[int]:
    """Keeps other processes out while the block runs; yields the lock's file descriptor, for worker processes.

    The kernel releases the lock when the last process that holds the descriptor has ended, however it ended.

    Args:
      path: a local file, made where it is not there.
      message: of the error; `{holder}` stands for the process that holds the lock.
      wait_seconds: how long to try: workers of a process that was killed take a moment to notice.

    Raises:
      FolderLocked: another process holds the lock.
    """
    path, deadline = Path(path), time.monotonic() + wait_seconds
    while (descriptor := _try_lock(path)) is None:
        if time.monotonic() >= deadline:
            with contextlib.suppress(FileNotFoundError):
                holder = path.read_text(errors="replace") or "another process"
                raise FolderLocked(message.replace("{holder}", holder))
        time.sleep(0.1)
    try:
        with contextlib.suppress(OSError):  # the lock holds on a full disk, too; it then names no process
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def _try_lock(path: Path) -> int | None:
    try:
        with disk_errors_named(path):
            make_folder(path.parent)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    except FileNotFoundError:  # the lock's former holder has removed the folder
        return None
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise InputError(f"{path}: is a link, which no lock may be; remove it") from None
    with contextlib.suppress(BlockingIOError, FileNotFoundError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_ino == path.stat().st_ino:  # otherwise its former holder has removed the file
            return descriptor
    os.close(descriptor)
    return None


@contextlib.contextmanager
def locked_folder(folder: str | os.PathLike, *, wait_seconds: float = 0.0) -> Iterator[None]:
    """Keeps other processes out of a folder, local or in a bucket, while the block writes to it.

    The lock is removed afterwards, and so are folders that were made for it and are still empty.

    Args:
      wait_seconds: how long to wait for another process, of a local folder.

    Raises:
      FolderLocked: another process is writing to it; the message names it.
      InputError: the folder cannot be made.
    """
    message = f"{os.fspath(folder)}: {{holder}} is writing to it; wait for it, or choose another folder"
    if is_remote(folder):
        with _leased(str(join_path(folder, _LOCK)), message):
            yield
        return
    path = Path(folder).absolute()
    made = [parent for parent in (path, *path.parents) if not parent.exists()]
    try:
        with exclusive_lock(path / _LOCK, message, wait_seconds=wait_seconds):
            try:
                yield
            finally:
                (path / _LOCK).unlink(missing_ok=True)
    finally:
        with contextlib.suppress(OSError):  # the first that is not empty ends it
            for parent in made:
                parent.rmdir()


_LOCK = ".lock"
_TAKEOVER_SECONDS = 1.0  # wait after taking over a lock, before trusting that no other process did the same
_RENEW_SECONDS, _EXPIRE_SECONDS = 15.0, 60.0  # of a lock in a bucket: four renewals may fail before it is abandoned


@contextlib.contextmanager
def _leased(url: str, message: str) -> Iterator[None]:
    """Holds a lock in a bucket: an object made only where there is none, renewed by a thread while the block runs.

    A lock that is not renewed for a minute of waiting, or whose process ran on this machine and has ended, is taken
    over.
    """
    holder = f"process {os.getpid()} on {socket.gethostname()}"
    mine = {"holder": holder, "lease": uuid.uuid4().hex, "place": machine_id(), "began": start_time(os.getpid())}

    def content() -> bytes:
        return canonical_json({**mine, "renewed": time.time()}).encode()

    def is_mine() -> bool:
        return exists(url) and _Lease.read(url).lease == mine["lease"]

    _take(url, content, is_mine, message)
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(_RENEW_SECONDS):
            try:
                if not is_mine():
                    log.error("%s: another process has taken the lock, which was not renewed in time; stopping", url)
                    _thread.interrupt_main()
                    return
                with writing(url) as file:
                    file.write(content())
            except Exception as error:  # the network may be back at the next renewal
                log.warning("%s: could not be renewed (%s)", url, " ".join(str(error).split())[:200])

    thread = threading.Thread(target=renew, name="lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        if is_mine():
            remove_tree(url)


def _take(url: str, content: Callable[[], bytes], is_mine: Callable[[], bool], message: str) -> None:
    """Makes the lock, or takes over an abandoned one."""
    first_renewal, deadline = None, time.monotonic() + _EXPIRE_SECONDS
    while not create_file(url, content()):
        try:
            other = _Lease.read(url)
        except InputError:  # it was released just now
            if exists(url):
                raise
            continue
        renewed, is_here = other.renewed, other.place == machine_id()
        if other.is_abandoned() or time.monotonic() > deadline:
            remove_tree(url)
            if create_file(url, content()):
                time.sleep(_TAKEOVER_SECONDS)  # a process that did the same may have replaced our lock by its own
                if is_mine():
                    return
            first_renewal, deadline = None, time.monotonic() + _EXPIRE_SECONDS
            continue
        if is_here or first_renewal not in (None, renewed):
            raise FolderLocked(message.replace("{holder}", other.holder))
        if first_renewal is None:
            log.info("%s: waiting, for at most %g s, to see whether %s lives", url, _EXPIRE_SECONDS, other.holder)
        first_renewal = renewed
        time.sleep(1)


@dataclass(frozen=True, kw_only=True)
class _Lease:
    """The lock of a folder in a bucket."""

    holder: str  # process NUMBER on HOST
    lease: str
    place: str = ""  # `machine_id` of its machine
    began: str = ""  # `start_time` of the process
    renewed: float

    @classmethod
    def read(cls, url: str) -> Self:
        return from_json(cls, read_json(url), url)

    def is_abandoned(self) -> bool:
        """Whether its process ran on this machine and has ended; clocks of two machines are not compared."""
        number = self.holder.removeprefix("process ").split(" on ", 1)[0]
        known = number.isascii() and number.isdigit() and len(number) < 10
        return self.place == machine_id() and known and start_time(int(number)) != self.began


class ArtifactStore:
    """A folder, local or remote, whose files are valid once a JSON record, written after them, exists.

    The caller chooses the names and what a record holds.

    Attributes:
      folder: its path or URL.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = os.fspath(folder)

    def path(self, name: str) -> Path | str:
        """Path or URL of a file in the folder."""
        return join_path(self.folder, name)

    def names(self, ending: str) -> list[str]:
        """Names of the files that end so, without the ending, in order."""
        return [path.rsplit("/", 1)[-1].removesuffix(ending) for path in list_files(self.path(f"*{ending}"))]

    def record(self, name: str) -> Any:
        """A record, or None where nothing was committed under this name."""
        path = self.path(name)
        return read_json(path) if exists(path) else None

    def commit(self, name: str, record: Any) -> None:
        """Writes a record, which makes the files that it describes valid."""
        write_json(self.path(name), record)

    def is_complete(self, name: str) -> bool:
        """Whether a record was committed under this name."""
        return exists(self.path(name))

    def withdraw(self, name: str) -> None:
        """Removes a record, so that its files are no longer valid; does nothing where there is none."""
        remove_tree(self.path(name))

    def changed_settings(self, name: str, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """Settings that differ from those the work was begun with, with their former values.

        Returns:
          None where no settings were committed under this name; nothing is written.
        """
        before = self.record(name)
        if before is None:
            return None
        changed = (key for key, value in settings.items() if content_hash(before.get(key)) != content_hash(value))
        return {key: before.get(key) for key in changed}

    def verified(
        self, names: Sequence[str], record_ending: str, checksums: Mapping[str, str], folder: str | Path | None = None
    ) -> set[str]:
        """Those of `names` that are complete and whose files have the checksums in their record.

        Files whose checksum differs are logged, and have to be made again.

        Args:
          record_ending: a record's name is the artifact's with this ending.
          checksums: the record's field with the SHA-256 of a file, by the ending of the file's name.
          folder: where the files lie, if not beside their record.
        """

        def is_intact(name: str) -> bool:
            record = self.record(f"{name}{record_ending}")
            for ending, field in checksums.items():
                path = join_path(folder or self.folder, f"{name}{ending}")
                if not exists(path) or file_hash(path) != record[field]:
                    log.warning("%s: finished before, but damaged since (checksum); making it again", path)
                    return False
            return True

        recorded = set(self.names(record_ending))
        complete = [name for name in names if name in recorded]
        with ThreadPoolExecutor(_THREADS) as threads:
            return {name for name, intact in zip(complete, threads.map(is_intact, complete), strict=True) if intact}

    def remove_partial(self) -> None:
        """Removes local files that a killed process was writing; interrupted uploads to a store leave none."""
        if not is_remote(self.folder):
            for path in Path(self.folder).glob(".*.partial"):
                path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Removes all files directly in the folder except `lock`."""
        self.remove_partial()
        for path in list_files(self.path("*")):
            if path.rsplit("/", 1)[-1] != "lock":
                remove_tree(path)

"""Where a preparation keeps what it has finished, so that one that was stopped goes on and two do not meet.

Everything lies in `.preparing` inside the component's folder until the manifest is written. A file there is finished
when its record (JSON, written after it) has its checksum; on a restart each is verified, and one that is damaged is
made again.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
import contextlib
import fcntl
import logging
import os
from pathlib import Path
import socket
import time
from typing import Any

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import (
    exists,
    file_hash,
    is_remote,
    join_path,
    list_files,
    read_json,
    remove_tree,
    write_json,
)
from diversity_jax.prepare.manifest import SPLITS

NAME = ".preparing"
_PATIENCE_SECONDS = 3.0
_THREADS = 8

log = logging.getLogger(__name__)


class Workplace:
    """The `.preparing` folder of one component.

    Attributes:
      path: of the folder, a path or URL.
    """

    def __init__(self, folder: str | Path):
        self._folder = folder
        self.path = str(join_path(folder, NAME))

    def open(self, request: Mapping[str, Any]) -> None:
        """Goes on with what lies there if it was begun with the same request, else starts afresh and says so."""
        path = join_path(self.path, "request.json")
        if exists(path):
            found = read_json(path)
            changed = [key for key in request if found.get(key) != request[key]]
            if not changed:
                self._remove_partial()
                return
            differences = ", ".join(f"{key} ({_short(found.get(key))}, now {_short(request[key])})" for key in changed)
            log.warning(
                "%s: the unfinished preparation there has another %s; starting afresh", self._folder, differences
            )
        self.discard()
        write_json(path, request)

    def discard(self) -> None:
        """Removes all unfinished work, and shards that no manifest names; the lock stays."""
        self._remove_partial()
        for split in SPLITS:
            for path in list_files(join_path(self._folder, f"{split}-[0-9]*-of-[0-9]*.bin*")):
                remove_tree(path)
        for path in list_files(join_path(self.path, "*")):
            if not path.endswith("/lock"):
                remove_tree(path)

    def close(self) -> None:
        """Removes the folder: what it was for is done, or cannot be."""
        remove_tree(self.path)

    def names(self, ending: str) -> list[str]:
        """Names of files with this ending, without it, in order."""
        return [path.rsplit("/", 1)[-1].removesuffix(ending) for path in list_files(join_path(self.path, f"*{ending}"))]

    def verified(
        self, names: Sequence[str], record: str, files: Mapping[str, str], folder: str | Path | None = None
    ) -> set[str]:
        """Those of `names` whose files agree with their record; others are logged and have to be made again.

        Args:
          record: ending of the record's name; files: field of the record with the checksum, by ending of the file's
            name.
          folder: where the files lie, if not beside their record.
        """

        def is_whole(name: str) -> bool:
            found = read_json(join_path(self.path, f"{name}{record}"))
            for ending, checksum in files.items():
                path = join_path(folder or self.path, f"{name}{ending}")
                if not exists(path) or file_hash(path) != found[checksum]:
                    log.warning("%s: finished before, but damaged since (checksum); making it again", path)
                    return False
            return True

        there = set(self.names(record))
        known = [name for name in names if name in there]
        with ThreadPoolExecutor(_THREADS) as threads:
            return {name for name, whole in zip(known, threads.map(is_whole, known), strict=True) if whole}

    def _remove_partial(self) -> None:
        """What a killed process was writing."""
        if not is_remote(self._folder):
            for place in (Path(self._folder), Path(self.path)):
                for path in place.glob(".*.partial"):
                    path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[int | None]:
        """Keeps other processes out; yields the lock's file descriptor, to be handed to worker processes.

        The kernel gives the lock back when the last process that holds the descriptor is gone, however it ended. A
        remote folder
        is not locked: there, what two preparations of the same request write is the same.

        Raises:
          InputError: another process prepares this folder.
        """
        if is_remote(self._folder):
            yield None
            return
        descriptor = self._lock()
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _lock(self) -> int:
        path, deadline = Path(self.path, "lock"), time.monotonic() + _PATIENCE_SECONDS
        while True:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if path.exists() and os.fstat(descriptor).st_ino == path.stat().st_ino:
                    os.truncate(descriptor, 0)
                    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
                    return descriptor
            except BlockingIOError:
                if time.monotonic() > deadline:  # the workers of a killed process take a moment to notice
                    holder = os.pread(descriptor, 200, 0).decode(errors="replace") or "another process"
                    os.close(descriptor)
                    raise InputError(
                        f"{self._folder}: is being prepared by {holder}; wait for it, or choose another folder"
                    ) from None
                time.sleep(0.1)
            os.close(descriptor)


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) else str(value)

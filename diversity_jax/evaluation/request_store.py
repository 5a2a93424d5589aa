"""Finished requests on disk, one JSON line each, so that an interrupted evaluation goes on where it stopped."""

from collections.abc import Mapping, Sequence
import errno
import json
from pathlib import Path
from typing import Any

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import content_hash


class RequestStore:
    """Answers by the hash of what was asked.

    A store belongs to one model under one set of settings, its `identity`; answers of another are never used. A line
    cut off by a killed process is dropped.

    Args:
      path: the file; None keeps answers in memory only.
      identity: JSON value.
    """

    def __init__(self, path: str | Path | None, identity: Mapping[str, Any]):
        self._path = None if path is None else Path(path)
        self._identity = content_hash(identity)
        self._known: dict[str, Any] = {}
        self._file = None
        if self._path is not None:
            self._open()

    def _open(self) -> None:
        whole = 0
        if self._path.is_file():
            with open(self._path, "rb") as file:
                for line in file:
                    try:
                        key, value = json.loads(line)
                    except (ValueError, TypeError):
                        break
                    if not line.endswith(b"\n") or (whole == 0 and [key, value] != ["identity", self._identity]):
                        break
                    if whole:
                        self._known[key] = value
                    whole += len(line)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._disk():
            self._file = open(self._path, "ab")  # noqa: SIM115 - kept open for appending
            if self._path.is_file():
                self._file.truncate(whole)
            if not whole:
                self._file.write(json.dumps(["identity", self._identity]).encode() + b"\n")
                self._file.flush()

    def __len__(self) -> int:
        return len(self._known)

    @staticmethod
    def key(*request: Any) -> str:
        """Identifies a request."""
        return content_hash(request)[:32]

    def get(self, key: str) -> Any:
        """The answer, or None."""
        return self._known.get(key)

    def add(self, answers: Sequence[tuple[str, Any]]) -> None:
        """Keeps answers; they are with the operating system when this returns.

        Raises:
          InputError: the disk is full.
        """
        self._known.update(answers)
        if self._file is not None:
            with self._disk():
                self._file.write(b"".join(json.dumps([key, value]).encode() + b"\n" for key, value in answers))
                self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            with self._disk():
                self._file.close()
            self._file = None

    def _disk(self) -> "_FullDisk":
        return _FullDisk(self._path)


class _FullDisk:
    """Turns a full disk into one line that says what to do."""

    def __init__(self, path: Path):
        self._path = path

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(f"{self._path}: the disk is full; free space and run the same command to go on") from error
        return False

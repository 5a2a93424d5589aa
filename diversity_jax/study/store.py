"""Where a study's steps stand when its folder is one that this machine has or mounts."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import fcntl
import os
from pathlib import Path
from typing import Any

from diversity_jax.storage import read_json, write_json

_LEDGER = "ledger.sqlite"  # paid answers, and files that SQLite keeps beside


class Store:
    """A folder of steps: for each key its folder `output`, `log.txt`, and `done.json` or `failed.json`.

    Attributes:
      poll_seconds: how long a process waits before it looks again for a step to do.
    """

    poll_seconds = 0.5

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def path(self, key: str) -> Path:
        """The step's own folder on this machine."""
        return self.folder / key

    def output(self, key: str) -> Path:
        """Where the step writes."""
        return self.path(key) / "output"

    def log_file(self, key: str) -> Path:
        """Where the step logs to while it runs."""
        return self.path(key) / "log.txt"

    def states(self, keys: Sequence[str]) -> dict[str, str]:
        """`done` or `failed` for each key that is."""
        names = {"done": "done.json", "failed": "failed.json"}
        return {key: state for state in ("failed", "done") for key in keys if (self.path(key) / names[state]).exists()}

    def done(self, key: str) -> dict[str, Any] | None:
        """When, where and by what code a step was finished; None where it is not."""
        path = self.path(key) / "done.json"
        return read_json(path) if path.exists() else None

    def failure(self, key: str) -> dict[str, str] | None:
        """`reason`, one line, and `log`, where more of it stands, of a step that failed; None where it has not."""
        path = self.path(key) / "failed.json"
        return read_json(path) if path.exists() else None

    def finish(self, key: str, record: Mapping[str, Any]) -> bool:
        """Makes the claimed step's result stand. False: another process's result stands already, and this one is not used."""
        write_json(self.path(key) / "done.json", record)
        return True

    def fail(self, key: str, reason: str) -> None:
        """Notes why the claimed step failed."""
        write_json(self.path(key) / "failed.json", {"reason": reason, "log": str(self.log_file(key))})

    def pause(self, key: str) -> None:
        """Leaves the claimed step unfinished, for whoever takes it up; in a folder all is there already."""

    def forgive(self, keys: Sequence[str]) -> None:
        """Lets failed steps be tried again; what they have written so far is gone on with."""
        for key in keys:
            (self.path(key) / "failed.json").unlink(missing_ok=True)

    def forget(self, keys: Sequence[str]) -> None:
        """Lets finished steps be run again: a command that found its own results would take them for finished work, so they go.

        Paid answers stay: they are found again by what was asked.
        """
        for key in keys:
            with self._locked(key) as mine:
                if mine:
                    (self.path(key) / "done.json").unlink(missing_ok=True)
                    clear(self.output(key))

    def bring(self, keys: Sequence[str], suffix: str = "") -> None:
        """Has what finished steps wrote on this machine, or at least the files with a suffix; in a folder it always is."""

    @contextlib.contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """Holds the step's lock if no other process does; the kernel gives it back when the holder ends, however it ends."""
        with self._locked(key) as mine:
            yield mine

    @contextlib.contextmanager
    def _locked(self, key: str) -> Iterator[bool]:
        self.path(key).mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path(key) / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True
        finally:
            os.close(descriptor)


def clear(output: Path) -> None:
    """Removes all that a step wrote but the answers it paid for."""
    for path in sorted(output.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            with contextlib.suppress(OSError):  # it holds a ledger
                path.rmdir()
        elif not path.name.startswith(_LEDGER):
            path.unlink()

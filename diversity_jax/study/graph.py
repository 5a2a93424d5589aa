"""Steps of a study, keyed by all they depend on, and run once however many processes share the folder.

A step is a command of this package with a whole configuration. Its key is the hash of that configuration, in which results of other
steps stand as their own keys; so what two recipes share is one step, and a changed setting is another. A step that stands is never
run again. Processes on one or several machines work on the same study by running the same command: each takes the next step that
is ready under a lock of the file system, which a dead holder gives back.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
from dataclasses import dataclass
import fcntl
import logging
import os
from pathlib import Path
import socket
import time
import traceback
from typing import Any

from diversity_jax.errors import InputError
from diversity_jax.storage import content_hash, read_json, write_json

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class Step:
    """One command with its configuration.

    Attributes:
      kind: the command, such as `train`.
      config: what it is run with; results of other steps are named in it by their folders.
      settings: the same as JSON, with `{kind:KEY}` where a folder of another step stands.
      needs: keys of the steps whose results it reads.
    """

    kind: str
    config: Any
    settings: Mapping[str, Any]
    needs: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Names the step and its folder."""
        return f"{self.kind}-{content_hash([self.kind, self.settings])[:16]}"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Keys of steps by how they stand. `blocked` ones need a failed one."""

    done: tuple[str, ...]
    failed: tuple[str, ...]
    blocked: tuple[str, ...]
    waiting: tuple[str, ...]


class Store:
    """A study's folder `steps/`: for each key its folder `output`, `log.txt`, and `done.json` or `failed.json`."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def path(self, key: str) -> Path:
        return self.folder / key

    def output(self, key: str) -> Path:
        """Where the step writes."""
        return self.path(key) / "output"

    def log_file(self, key: str) -> Path:
        return self.path(key) / "log.txt"

    def done(self, key: str) -> dict[str, Any] | None:
        """When, where and by what code a step was finished; None where it is not."""
        path = self.path(key) / "done.json"
        return read_json(path) if path.exists() else None

    def failure(self, key: str) -> str | None:
        """Why a step failed, one line; None where it has not."""
        path = self.path(key) / "failed.json"
        return read_json(path)["reason"] if path.exists() else None

    def forgive(self, keys: Sequence[str]) -> None:
        """Lets failed steps be tried again."""
        for key in keys:
            (self.path(key) / "failed.json").unlink(missing_ok=True)

    def forget(self, keys: Sequence[str]) -> None:
        """Lets finished steps be run again; what they wrote stays until they write anew."""
        for key in keys:
            (self.path(key) / "done.json").unlink(missing_ok=True)

    @contextlib.contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """Holds the step's lock if no other process does; the kernel gives it back when the holder ends, however it ends."""
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

    def progress(self, steps: Mapping[str, Step]) -> Progress:
        """How every step stands; `steps` in an order in which needs come first."""
        state: dict[str, str] = {}
        for key, step in steps.items():
            if (self.path(key) / "done.json").exists():
                state[key] = "done"
            elif (self.path(key) / "failed.json").exists():
                state[key] = "failed"
            elif any(state[need] in ("failed", "blocked") for need in step.needs):
                state[key] = "blocked"
            else:
                state[key] = "waiting"
        return Progress(**{name: tuple(k for k, s in state.items() if s == name) for name in ("done", "failed", "blocked", "waiting")})


@contextlib.contextmanager
def _logged(path: Path) -> Iterator[None]:
    """What is logged and printed meanwhile goes to the step's own file."""
    root = logging.getLogger()
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        handlers, root.handlers = root.handlers, [logging.StreamHandler(file)]
        try:
            yield
        finally:
            root.handlers = handlers


def _reason(error: BaseException) -> str:
    return str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"


def run_step(step: Step, store: Store, command: Callable[[Any], None], code: Mapping[str, str]) -> bool:
    """Runs one claimed step; True if it is done. A failure is written beside it, and its log kept."""
    key, began = step.key, time.time()
    try:
        with _logged(store.log_file(key)):
            try:
                command(step.config)
            except Exception:
                traceback.print_exc()
                raise
    except Exception as error:
        write_json(store.path(key) / "failed.json", {"reason": _reason(error), "log": str(store.log_file(key))})
        log.warning("%s failed: %s (log: %s)", key, _reason(error), store.log_file(key))
        return False
    facts = {"seconds": time.time() - began, "finished": time.time(), "host": socket.gethostname(), "code": code}
    write_json(store.path(key) / "done.json", {"kind": step.kind, "settings": step.settings, **facts})
    return True


def run_steps(
    steps: Mapping[str, Step], store: Store, commands: Mapping[str, Callable[[Any], None]], codes: Mapping[str, Mapping[str, str]]
) -> Progress:
    """Runs all that is not done and can be, beside any other process that does the same.

    Args:
      steps: by key, in an order in which needs come first.
      store: where results stand.
      commands: what runs a step, by kind.
      codes: of each kind, the hash of every room whose code it runs; recorded with the result.

    Returns:
      How every step stands once nothing is left that this or another living process could run.
    """
    while True:
        progress = store.progress(steps)
        done, ran = set(progress.done), False
        ready = [key for key in progress.waiting if done.issuperset(steps[key].needs)]
        for key in ready:
            with store.claim(key) as mine:
                if mine and store.done(key) is None and store.failure(key) is None:
                    place = f"{len(store.progress(steps).done) + 1} of {len(steps)}"
                    log.info("%s  step %s", key, place)
                    run_step(steps[key], store, commands[steps[key].kind], codes[steps[key].kind])
                    ran = True
            if ran:
                break
        if not progress.waiting:
            return progress
        if not ran:
            time.sleep(_POLL_SECONDS)


def stale(steps: Mapping[str, Step], store: Store, codes: Mapping[str, Mapping[str, str]]) -> dict[str, list[str]]:
    """Finished steps whose code has changed since, by key, each with the rooms that changed."""
    found = {}
    for key, step in steps.items():
        done, now = store.done(key), codes[step.kind]
        changed = [room for room in now if done is not None and done["code"].get(room) != now[room]]
        if changed:
            found[key] = changed
    return found

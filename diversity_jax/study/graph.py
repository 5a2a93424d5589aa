"""Where a study's steps stand when its folder is one that this machine has or mounts.

Steps of a study, keyed by all they depend on, and run once however many processes share the folder.

A step is a command of this package with a whole configuration. Its key is the hash of that configuration, in which
results of other steps stand as their own keys; so what two recipes share is one step, and a changed setting is another.
A step that stands is never run again. Processes on one or several machines work on the same study by running the same
command: each takes the next step that is ready under a lock that a dead holder gives back (`store` for folders,
  `object_store` for buckets).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import content_hash, read_json, write_json

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
        """Makes the claimed step's result stand. False: another process's result stands already, and this one is not
        used.
        """
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
        """Lets finished steps be run again: a command that found its own results would take them for finished work, so
        they go.

        Paid answers stay: they are found again by what was asked.
        """
        for key in keys:
            with self._locked(key) as mine:
                if mine:
                    (self.path(key) / "done.json").unlink(missing_ok=True)
                    clear(self.output(key))

    def bring(self, keys: Sequence[str], suffix: str = "") -> None:
        """Has what finished steps wrote on this machine, or at least the files with a suffix; in a folder it always
        is.
        """

    @contextlib.contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """Holds the step's lock if no other process does; the kernel gives it back when the holder ends, however it
        ends.
        """
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


log = logging.getLogger(__name__)


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


def progress(steps: Mapping[str, Step], store: Store) -> Progress:
    """How every step stands; `steps` in an order in which needs come first."""
    state: dict[str, str] = {}
    known = store.states(list(steps))
    for key, step in steps.items():
        stuck = any(state[need] in ("failed", "blocked") for need in step.needs)
        state[key] = known.get(key) or ("blocked" if stuck else "waiting")
    return Progress(
        **{name: tuple(k for k, s in state.items() if s == name) for name in ("done", "failed", "blocked", "waiting")}
    )


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


def _check_inputs(step: Step, store: Store) -> None:
    """Has what the step reads on this machine."""
    store.bring(step.needs)
    for key in step.needs:
        if not store.output(key).exists():
            record = store.path(key) / "done.json"
            raise InputError(
                f"{store.output(key)}: the result of {key} is recorded but gone; remove {record} to have it made again"
            )


def run_step(step: Step, store: Store, command: Callable[[Any], None], code: Mapping[str, str]) -> bool:
    """Runs one claimed step; True if it is done. A failure is written beside it, and its log kept."""
    key, began, worked = step.key, time.time(), time.process_time()
    try:
        _check_inputs(step, store)
        with _logged(store.log_file(key)):
            try:
                command(step.config)
            except Exception:
                traceback.print_exc()
                raise
    except Exception as error:
        store.fail(key, _reason(error))
        log.warning("%s failed: %s (log: %s)", key, _reason(error), store.log_file(key))
        return False
    except BaseException:  # SIGTERM or Ctrl-C: neither done nor failed
        store.pause(key)
        raise
    facts = {"finished": time.time(), "seconds": time.time() - began, "cpu_seconds": time.process_time() - worked}
    record = {
        "kind": step.kind,
        "settings": step.settings,
        "needs": list(step.needs),
        **facts,
        "host": socket.gethostname(),
        "code": code,
    }
    if not store.finish(key, record):
        log.warning(
            "%s: another process took it over while this one did not answer; its result is the one that stands", key
        )
    return True


def run_steps(
    steps: Mapping[str, Step],
    store: Store,
    commands: Mapping[str, Callable[[Any], None]],
    codes: Mapping[str, Mapping[str, str]],
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
        found = progress(steps, store)
        done, ran = set(found.done), False
        ready = [key for key in found.waiting if done.issuperset(steps[key].needs)]
        for key in ready:
            with store.claim(key) as mine:
                if mine and store.done(key) is None and store.failure(key) is None:
                    place = f"{len(progress(steps, store).done) + 1} of {len(steps)}"
                    log.info("%s  step %s", key, place)
                    run_step(steps[key], store, commands[steps[key].kind], codes[steps[key].kind])
                    ran = True
            if ran:
                break
        if not found.waiting:
            return found
        if not ran:
            time.sleep(store.poll_seconds)


def stale(steps: Mapping[str, Step], store: Store, codes: Mapping[str, Mapping[str, str]]) -> dict[str, list[str]]:
    """Finished steps whose code has changed since, by key, each with the rooms that changed."""
    found = {}
    for key, step in steps.items():
        done, now = store.done(key), codes[step.kind]
        changed = [room for room in now if done is not None and done["code"].get(room) != now[room]]
        if changed:
            found[key] = changed
    return found


def readers(steps: Mapping[str, Step], keys: Iterable[str]) -> list[str]:
    """Steps that read, directly or through others, what the named ones write; `steps` in an order in which needs come
    first.
    """
    found = set(keys)
    later = []
    for key, step in steps.items():
        if key not in found and not found.isdisjoint(step.needs):
            found.add(key)
            later.append(key)
    return later

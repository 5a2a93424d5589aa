"""The steps of a study as a graph, in a store that any number of processes share; and servers for steps.

A step is a command of this package with a complete configuration. Its key is a hash of that configuration, in which
folders of other steps are replaced by their keys: recipes with equal settings share a step, and a changed setting makes
another step. A finished step is never run again. Processes on one or several machines that run the same study each take
the next step that is ready, under a file lock, which the kernel releases when a process ends.

A server that a step sends requests to is started if nothing answers at its address, and ended after the step.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
from dataclasses import dataclass
import logging
from pathlib import Path
import socket
import subprocess
import tempfile
import time
import traceback
from typing import IO, Any
import urllib.error
import urllib.request

from diversity_jax.core.artifacts import ArtifactStore, FolderLocked, exclusive_lock
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import content_hash

log = logging.getLogger(__name__)
_POLL_SECONDS = 0.5  # between two looks for a step to run while other processes work
_DONE, _FAILED = "done.json", "failed.json"
_PAID_ANSWERS = "ledger.sqlite"  # the response cache; SQLite's other files begin with this name too

Command = Callable[[Any], None]  # runs a step, given its configuration


@dataclass(frozen=True, kw_only=True)
class Step:
    """A command with its configuration.

    Attributes:
      kind: the command, such as `train`.
      config: its configuration, with the folders of other steps.
      settings: the same as JSON, with `{KEY}` for the folder of the step of that key.
      needs: keys of the steps whose results it reads.
    """

    kind: str
    config: Any
    settings: Mapping[str, Any]
    needs: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The name of the step and of its folder."""
        return f"{self.kind}-{content_hash([self.kind, self.settings])[:16]}"


class StepStore(ArtifactStore):
    """A folder of steps, local or mounted: for each key its `output`, `log.txt`, and `done.json` or `failed.json`."""

    def output(self, key: str) -> Path:
        """The folder that the step writes to."""
        return Path(self.folder, key, "output")

    def log_file(self, key: str) -> Path:
        """The file that holds what the step logs and prints."""
        return Path(self.folder, key, "log.txt")

    def done(self, key: str) -> dict[str, Any] | None:
        """The record of a finished step: when, where and by what code it ran; None where it is not finished."""
        return self.record(f"{key}/{_DONE}")

    def failure(self, key: str) -> dict[str, str] | None:
        """`reason` (one line) and `log` (a file) of a failed step; None where it has not failed."""
        return self.record(f"{key}/{_FAILED}")

    def state(self, key: str) -> str | None:
        """`done`, `failed`, or None."""
        names = {"done": _DONE, "failed": _FAILED}
        return next((state for state, name in names.items() if self.is_complete(f"{key}/{name}")), None)

    def clear_failures(self, keys: Iterable[str]) -> None:
        """Marks failed steps to be run again; they resume from what they have written."""
        for key in keys:
            with contextlib.suppress(FileNotFoundError):  # another process may clear it at the same time
                self.withdraw(f"{key}/{_FAILED}")

    def invalidate(self, keys: Iterable[str]) -> None:
        """Marks finished steps to be run again from the start: removes their output except stored LLM responses."""
        for key in keys:
            with contextlib.suppress(FolderLocked), self.lock(key):
                self.withdraw(f"{key}/{_DONE}")
                _clear(self.output(key))

    def lock(self, key: str) -> contextlib.AbstractContextManager[int]:
        """Holds the step's lock.

        Raises:
          FolderLocked: another process does.
        """
        return exclusive_lock(Path(self.folder, key, "lock"), f"step={key!r}: another process is at it")


def _clear(output: Path) -> None:
    for path in sorted(output.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            with contextlib.suppress(OSError):  # not empty: it holds stored responses
                path.rmdir()
        elif not path.name.startswith(_PAID_ANSWERS):
            path.unlink()


@dataclass(frozen=True, kw_only=True)
class StepStates:
    """Keys of steps by state; `blocked` steps need a failed step, directly or through others."""

    done: tuple[str, ...]
    failed: tuple[str, ...]
    blocked: tuple[str, ...]
    waiting: tuple[str, ...]


def step_states(steps: Mapping[str, Step], store: StepStore) -> StepStates:
    """The state of every step; in `steps`, a step comes after those it needs."""
    states: dict[str, str] = {}
    for key, step in steps.items():
        stuck = any(states[need] in ("failed", "blocked") for need in step.needs)
        states[key] = store.state(key) or ("blocked" if stuck else "waiting")
    by_state = {state: tuple(key for key in states if states[key] == state) for state in StepStates.__annotations__}
    return StepStates(**by_state)


@contextlib.contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Appends what is logged and printed during the block to a file."""
    root = logging.getLogger()
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        handlers, root.handlers = root.handlers, [logging.StreamHandler(file)]
        try:
            yield
        except Exception:
            traceback.print_exc()
            raise
        finally:
            root.handlers = handlers


def run_step(step: Step, store: StepStore, command: Command, code: Mapping[str, str]) -> bool:
    """Runs a step whose lock the caller holds, and records its success or failure; returns whether it is done.

    SIGTERM and Ctrl-C leave the step neither done nor failed.
    """
    key, began, cpu_began = step.key, time.monotonic(), time.process_time()
    try:
        for need in step.needs:
            if not store.output(need).exists():
                output, done_file = store.output(need), store.path(f"{need}/{_DONE}")
                remedy = f"the result of {need} is recorded but gone; remove {done_file} to have it made again"
                raise InputError(f"{output}: {remedy}")
        with _logged(store.log_file(key)):
            command(step.config)
    except Exception as error:
        reason = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        store.commit(f"{key}/{_FAILED}", {"reason": reason, "log": str(store.log_file(key))})
        log.warning("%s failed: %s (log: %s)", key, reason, store.log_file(key))
        return False
    record = {
        "kind": step.kind,
        "settings": step.settings,
        "needs": step.needs,
        "finished": time.time(),
        "seconds": time.monotonic() - began,
        "cpu_seconds": time.process_time() - cpu_began,
        "host": socket.gethostname(),
        "code": code,
    }
    store.commit(f"{key}/{_DONE}", record)
    return True


def run_steps(
    steps: Mapping[str, Step],
    store: StepStore,
    commands: Mapping[str, Command],
    codes: Mapping[str, Mapping[str, str]],
) -> StepStates:
    """Runs all steps that are not done, while other processes may do the same.

    Args:
      steps: by key; a step comes after those it needs.
      commands: by kind, the function that runs a step.
      codes: by kind, the hash of each source that its result depends on; recorded with the result.

    Returns:
      The state of every step, once each is done, failed or blocked.
    """

    def run_if_free(key: str) -> bool:
        """Runs a step unless another process runs it or has run it; returns whether it was run here."""
        with contextlib.suppress(FolderLocked), store.lock(key):
            if store.state(key) is None:
                log.info("%s  step %d of %d", key, len(step_states(steps, store).done) + 1, len(steps))
                kind = steps[key].kind
                run_step(steps[key], store, commands[kind], codes[kind])
                return True
        return False

    while (states := step_states(steps, store)).waiting:
        ready = [key for key in states.waiting if set(states.done).issuperset(steps[key].needs)]
        if not any(run_if_free(key) for key in ready):
            time.sleep(_POLL_SECONDS)
    return states


def stale(steps: Mapping[str, Step], store: StepStore, codes: Mapping[str, Mapping[str, str]]) -> dict[str, list[str]]:
    """Finished steps whose code has changed since: by key, the sources that changed."""
    changed = {}
    for key, step in steps.items():
        record, current = store.done(key), codes[step.kind]
        sources = [name for name in current if record is not None and record["code"].get(name) != current[name]]
        if sources:
            changed[key] = sources
    return changed


def dependents(steps: Mapping[str, Step], keys: Sequence[str]) -> list[str]:
    """Steps that read, directly or through others, what the steps `keys` write; `steps` as in `run_steps`."""
    reached = dict.fromkeys(keys)
    for key, step in steps.items():
        if not reached.keys().isdisjoint(step.needs):
            reached.setdefault(key)
    return list(reached)[len(dict.fromkeys(keys)) :]


_SERVER_POLL_SECONDS = 0.5
_END_SECONDS = 20.0  # from SIGTERM to SIGKILL
_SHOWN_CHARACTERS = 400  # of a server's last output, in messages


@dataclass(frozen=True, kw_only=True)
class Server:
    """A language model's server with OpenAI's API, for the steps whose configurations name its address.

    Attributes:
      base_url: its address as in the steps' configurations, such as http://127.0.0.1:8080/v1.
      command: program and arguments that serve at that address until SIGTERM.
      start_seconds: time within which it has to answer after it is started.
    """

    base_url: str
    command: tuple[str, ...]
    start_seconds: float = 300.0

    def __post_init__(self) -> None:
        if not self.base_url.startswith(("http://", "https://")):
            raise InputError(f"servers: base_url={self.base_url!r}; give an address such as http://127.0.0.1:8080/v1")
        if not self.command or isinstance(self.command, str):
            raise InputError(f"servers: command={self.command!r} of {self.base_url}; give a tuple of words")


def named_in(config: Any, servers: Iterable[Server]) -> list[Server]:
    """The servers whose address is a string in a configuration."""
    strings = set(_strings(config))
    return [server for server in servers if server.base_url in strings]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from _strings([getattr(value, field.name) for field in dataclasses.fields(value)])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


@contextlib.contextmanager
def answering(server: Server) -> Iterator[None]:
    """Makes sure that a server answers at the address during the block; starts and ends it unless one answers already.

    Raises:
      InputError: the program is not installed, ends by itself, or does not answer in time.
    """
    if _answers(server.base_url):
        yield
        return
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        try:
            process = subprocess.Popen(
                server.command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
        except OSError as error:
            raise InputError(f"servers: {server.command[0]}: {error.strerror}; install it or correct command") from None
        try:
            _wait(server, process, output)
            log.info("%s answers at %s", server.command[0], server.base_url)
            yield
        finally:
            process.terminate()
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(server: Server, process: subprocess.Popen, output: IO[str]) -> None:
    deadline = time.monotonic() + server.start_seconds
    while not _answers(server.base_url):
        ended = process.poll()
        if ended is None and time.monotonic() < deadline:
            time.sleep(_SERVER_POLL_SECONDS)
            continue
        output.seek(0)
        last = " ".join(output.read()[-_SHOWN_CHARACTERS:].split())
        what = f"does not answer after {server.start_seconds:g} s" if ended is None else f"ended with status {ended}"
        raise InputError(f"servers: the server for {server.base_url} {what}; it wrote last: {last or 'nothing'}")


def _answers(base_url: str) -> bool:
    """Whether a server answers and has loaded its model; until then llama.cpp's answers with status 503."""
    try:
        with urllib.request.urlopen(f"{base_url.rstrip('/')}/models", timeout=10):
            return True
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)  # it requires an API key, which the steps' requests have
    except (OSError, ValueError):
        return False

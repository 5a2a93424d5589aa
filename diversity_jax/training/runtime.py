"""Process-level services of training: malloc settings, compilation cache, SIGTERM, barriers and shared failures.

Barriers and failures of several processes use JAX's coordination service, which `jax.distributed.initialize` starts in
process 0, so that they need no devices.
"""

import atexit
from collections.abc import Callable, Iterator
import contextlib
import ctypes
import hashlib
import itertools
import json
import logging
import os
from pathlib import Path
import secrets
import signal
import socket
import sys
import threading
import time
from typing import Any, TypeVar

import jax
from jax._src import distributed as jax_distributed  # its client has no public name; Orbax reads it here too

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import is_remote, local_folder, user_cache
from diversity_jax.core.process import INTERRUPTED, TERMINATED, end_at_once

log = logging.getLogger(__name__)

# From malloc.h of glibc.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
LARGE_MODEL = 100_000_000
"""Number of parameters from which freed memory is returned to the system: at 135 million a run then used half as much
memory, and at most 7 % more CPU seconds (docs/real_models.md)."""
_ACCELERATORS = ("/dev/nvidia0", "/dev/accel0", "/dev/vfio/0", "/dev/kfd")


def keep_freed_memory() -> bool:
    """Makes malloc keep freed memory in the process; call before JAX starts its devices.

    XLA's CPU backend allocates a step's temporaries with malloc, and glibc returns large blocks to the system when they
    are freed. This reduced the page faults of a 17M model from 195,000 to at most 38,000 per step, and its kernel time
    from 0.65 to 0.13 s (docs/training.md); in exchange the process never shrinks. Accelerators have other allocators.

    Returns:
      Whether it was done: on Linux with glibc, without an accelerator, unless the environment sets malloc's variables.
    """
    own = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if sys.platform != "linux" or not cpu_only() or own:
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):  # musl has a mallopt that does nothing
        return False
    settings = ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1))
    return all([libc.mallopt(name, value) == 1 for name, value in settings])


def cpu_only() -> bool:
    """Whether JAX will compute on the CPU: it is told to, or no accelerator is there. Asking does not start JAX."""
    return os.environ.get("JAX_PLATFORMS", "") == "cpu" or not any(Path(device).exists() for device in _ACCELERATORS)


_MIN_COMPILE_SECONDS = 0.3  # programs that compile faster are not cached


def keep_programs(folder: str | None) -> str | None:
    """Turns on JAX's persistent compilation cache; call before anything is compiled.

    A cache that JAX already has (`JAX_COMPILATION_CACHE_DIR`) is kept.

    Args:
      folder: local or `gs://`; "user": `diversity_jax/programs` under XDG_CACHE_HOME or ~/.cache; None: no cache.

    Returns:
      The folder in use; None where there is none, or it cannot be made, which is logged.
    """
    given = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]  # JAX's settings have no types
    if given or folder is None:
        return given
    if folder == "user":
        folder = str(user_cache("programs"))
    if jax.default_backend() == "cpu":
        folder = os.path.join(folder, f"cpu-{_cpu_kind()}")
    if not is_remote(folder) and not os.path.isdir(folder):  # one that may only be read from is of use, too
        try:
            local_folder(folder, "train.compilation_cache")
        except InputError as error:
            log.warning("compiled programs are not kept: %s", error)
            return None
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _MIN_COMPILE_SECONDS)
    return folder


def _cpu_kind() -> str:
    """Hash of the processor's model and features, which JAX's cache key lacks; machines may share a cache."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    features = sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
    return hashlib.sha256("\n".join(features).encode()).hexdigest()[:12]


class CompileClock:
    """Counts compilations of this process from its creation on.

    Attributes:
      seconds: spent compiling or reading the compilation cache, without tracing.
      programs, from_cache: number of programs, and of those read from the cache.
    """

    def __init__(self) -> None:
        self.seconds, self.programs, self.from_cache = 0.0, 0, 0
        self._lock = threading.Lock()
        jax.monitoring.register_event_duration_secs_listener(self._duration)
        jax.monitoring.register_event_listener(self._event)

    def _duration(self, event: str, duration_secs: float, **_: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            with self._lock:
                self.seconds += duration_secs
                self.programs += 1

    def _event(self, event: str, **_: object) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            with self._lock:
                self.from_cache += 1


class StopRequest:
    """Treats SIGTERM as a request to stop after the current step; several hosts stop at the same step.

    So is the first Ctrl-C (SIGINT) in a process of its own: raised inside a step, whose argument is donated, it would
    lose the state. It is raised when the block ends, and a second Ctrl-C at once. Python handles signals in the main
    thread only: training in another thread leaves them as they are.

    Args:
      grace_seconds: time from SIGTERM after which the process exits with status 143, saved or not.
      last_saved: returns the last step with a complete checkpoint, or None, for the message on such an exit.
    """

    def __init__(self, grace_seconds: float, last_saved: Callable[[], int | None]):
        self.asked = self._interrupted = False
        self._last_saved, self._grace_seconds = last_saved, grace_seconds
        self._several = jax.process_count() > 1
        self._deadline = threading.Timer(grace_seconds, self._give_up)
        self._deadline.daemon = True
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        # On several hosts JAX's preemption service listens for the signal.
        if not self._several and threading.current_thread() is threading.main_thread():
            self._previous[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._ask)
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                self._previous[signal.SIGINT] = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def _ask(self, *_: Any) -> None:
        self.asked = True
        if self._deadline.ident is None:  # not started yet
            self._deadline.start()

    def _interrupt(self, number: int, frame: Any) -> None:
        if self.asked:
            signal.default_int_handler(number, frame)
        self.asked = self._interrupted = True
        log.warning("interrupted: saving a checkpoint after this step; Ctrl-C again stops at once")

    def _give_up(self) -> None:
        saved = self._last_saved()
        last = f"the last whole checkpoint is step {saved}" if saved is not None else "there is no checkpoint"
        message = "SIGTERM: saving took longer than train.grace_seconds=%g and is given up; %s"
        log.error(message, self._grace_seconds, last)
        end_at_once(TERMINATED)

    def agreed(self, step: int) -> bool:
        """Whether all hosts stop after this step."""
        if self._several and not self.asked:
            from jax.experimental import multihost_utils

            if multihost_utils.reached_preemption_sync_point(step):
                self._ask()
        return self.asked

    def __exit__(self, error: type[BaseException] | None = None, *_: Any) -> None:
        self._deadline.cancel()
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._interrupted and error is None:
            raise KeyboardInterrupt


def exit_soon(status: int, seconds: float = 20.0) -> None:
    """Ends the process after some seconds, also where threads of an interrupted save keep the interpreter from ending:
    Orbax's wait five minutes for each other. Failures are shared with other processes before that.
    """
    timer = threading.Timer(seconds, os._exit, [status])
    timer.daemon = True
    timer.start()


T = TypeVar("T")

_FAILED, _DONE = "diversity_jax/failed", "diversity_jax/done"  # keys of the service
_POLL_SECONDS = 0.2
_LEAVE_SECONDS = 5.0  # time for a process to end by itself after another has failed
_DISCONNECT_SECONDS = 15.0  # time for all processes to disconnect after one has failed
_numbers = itertools.count()  # of calls of `together`, equal in all processes


class PeerFailedError(InputError):
    """Another process of the run has failed."""


def together(action: Callable[[], T]) -> T:
    """Runs an action in every process; returns when all have finished it, and raises in all where it fails in one.

    All processes must call it in the same order. A waiting process learns of a failure within a second.

    Raises:
      PeerFailedError: the action failed in another process; the message has its rank, host and error.
      Exception: the action's own.
    """
    client, key = jax_distributed.global_state.client, f"{_DONE}/{next(_numbers)}"
    try:
        result = action()
    except Exception as error:
        _announce(error)
        raise
    if client is None or jax.process_count() == 1:
        return result
    client.key_value_set(f"{key}/{jax.process_index()}", "")
    while len(client.key_value_dir_get(key)) < jax.process_count():
        if failure := _failure():
            raise PeerFailedError(failure["line"])
        time.sleep(_POLL_SECONDS)
    return result


def in_first_process(action: Callable[[], object]) -> None:
    """Runs an action in process 0 while the others wait; see `together`."""
    together(action if jax.process_index() == 0 else lambda: None)


def check_shared(folder: Path, name: str) -> None:
    """Raises `InputError` where not all processes see the same folder, by a file that process 0 writes into it.

    Args:
      name: of the setting, for the message.
    """
    client = jax_distributed.global_state.client
    if client is None or jax.process_count() == 1:
        return
    number = next(_numbers)

    def write() -> None:
        mark = folder / f".shared-{secrets.token_hex(8)}"
        folder.mkdir(parents=True, exist_ok=True)
        mark.write_text("all processes of a run must see this file; it may be removed\n")
        client.key_value_set(f"{_DONE}/shared/{number}", mark.name)

    def look() -> None:
        mark = folder / client.key_value_try_get(f"{_DONE}/shared/{number}")
        deadline = time.monotonic() + _LEAVE_SECONDS  # network file systems show new files with a delay
        while not mark.exists():
            if time.monotonic() > deadline:
                raise InputError(
                    f"{name}={folder}: this host does not see what process 0 wrote there; it must be a folder that all "
                    "hosts share (NFS, Filestore, a bucket)"
                )
            os.listdir(folder.parent if not folder.exists() else folder)  # makes NFS ask its server again
            time.sleep(_POLL_SECONDS)

    in_first_process(write)
    try:
        together(look)
    finally:
        if jax.process_index() == 0:
            (folder / client.key_value_try_get(f"{_DONE}/shared/{number}")).unlink(missing_ok=True)


@contextlib.contextmanager
def shared_failures() -> Iterator[None]:
    """Ends all processes where the block fails in one, each with a line that says which one failed and why.

    A process whose devices wait for those of a failed one cannot be interrupted, so it exits with the other's status a
    few seconds later. JAX alone would wait 100 seconds for a heartbeat, or 300 at the exit, and abort with pages of
    messages; this is still so where a process is killed.
    """
    if jax_distributed.global_state.client is None or jax.process_count() == 1:
        yield
        return
    ended = threading.Event()
    watch = threading.Thread(target=_watch, args=(ended,), daemon=True)
    watch.start()
    try:
        yield
    except BaseException as error:
        _announce(error)
        ended.set()
        watch.join()
        failure = _failure()
        atexit.register(_leave, _disconnect())  # runs before JAX's own, which would wait for the others
        if failure is None or failure["of"] == jax.process_index():
            raise
        log.error("error: %s", failure["line"])  # this process's error is a consequence
        raise SystemExit(failure["status"]) from None
    finally:
        ended.set()


def _announce(error: BaseException) -> None:
    """Publishes a failure to the other processes, unless another one was first."""
    client = jax_distributed.global_state.client
    if client is None or isinstance(error, PeerFailedError):
        return
    kind = "" if isinstance(error, InputError) else type(error).__name__
    what = ": ".join(filter(None, (kind, str(error))))
    line = f"process {jax.process_index()} on {socket.gethostname()} stopped: {' '.join(what.split())[:1000]}"
    status = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1
    status = 2 if isinstance(error, InputError) else INTERRUPTED if isinstance(error, KeyboardInterrupt) else status
    failure = {"line": line, "status": status, "of": jax.process_index()}
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # another process was first
        client.key_value_set(_FAILED, json.dumps(failure))


def _failure() -> dict[str, Any] | None:
    """The first failure of the run; None where nothing has failed."""
    client = jax_distributed.global_state.client
    try:
        return json.loads(client.key_value_try_get(_FAILED)) if client else None
    except jax.errors.JaxRuntimeError as error:
        if "NOT_FOUND" in str(error):
            return None
        return {"line": f"process 0 cannot be reached ({str(error).splitlines()[0][:200]})", "status": 1, "of": 0}


def _watch(ended: threading.Event) -> None:
    """Ends this process after another has failed, unless it ends by itself in time."""
    while not ended.wait(_POLL_SECONDS * 5):
        failure = _failure()
        if failure is None or failure["of"] == jax.process_index():
            continue
        if not ended.wait(_LEAVE_SECONDS):
            log.error("error: %s", failure["line"])
            _disconnect().join(_DISCONNECT_SECONDS)
            end_at_once(failure["status"])


def _disconnect() -> threading.Thread:
    """Disconnects this process when all others do, in a thread.

    Process 0 runs the coordination service, and a process that loses it before it has disconnected aborts with pages of
    messages. Hence none may end before all have heard of the failure, and JAX's barrier at the end proves that they
    have.
    """

    def disconnect() -> None:
        try:
            jax.distributed.shutdown()
        except jax.errors.JaxRuntimeError as error:
            log.debug("a process did not disconnect: %s", error)

    thread = threading.Thread(target=disconnect, daemon=True)
    thread.start()
    return thread


def _leave(disconnecting: threading.Thread) -> None:
    """Waits until this process has disconnected, or gives it up where another process never does."""
    disconnecting.join(_DISCONNECT_SECONDS)
    state = jax_distributed.global_state
    for held in (state.client, state.service, state.preemption_sync_manager):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(held))  # never destroyed, since destructors wait for the others
    state.client = state.service = state.preemption_sync_manager = None

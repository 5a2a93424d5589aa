"""What the processes of a run do together, and how they hear of each other's failures, while devices are busy or wait.

All of it goes through JAX's coordination service, which `jax.distributed.initialize` starts in process 0; a single
process needs none.
"""

import atexit
from collections.abc import Callable, Iterator
import contextlib
import ctypes
import itertools
import json
import logging
import os
from pathlib import Path
import secrets
import socket
import threading
import time
from typing import Any, TypeVar

import jax
from jax._src import distributed as jax_distributed  # its client has no public name; Orbax reads it here too

from diversity_jax.core.errors import InputError

log = logging.getLogger(__name__)

T = TypeVar("T")

_FAILED, _HEARD, _DONE = (f"diversity_jax/{name}" for name in ("failed", "heard", "done"))  # keys all processes see
_POLL_SECONDS = 0.2
_LEAVE_SECONDS = 5.0  # for a process to end by itself once another has failed
_numbers = itertools.count()  # of the calls of `together`, the same in all processes


class PeerFailedError(InputError):
    """Another process of the run has failed, and this one has nothing to add."""


def together(action: Callable[[], T]) -> T:
    """Does something in every process; returns when all have done it, and stops all where one fails.

    Processes must call it in the same order. It speaks through the coordination service, so it needs no device, and a
    process that waits learns of a failure within a second, however long the others take.

    Raises:
      PeerFailedError: it failed in another process; the message has that one's number, host and line.
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


def in_first_process(action: Callable[[], None]) -> None:
    """Does what one process does for all, while the others wait; where it fails, all of them stop."""
    together(action if jax.process_index() == 0 else lambda: None)


def check_shared(folder: Path, name: str) -> None:
    """Whether all processes see the same folder: the first one writes a file there, which the others look for.

    Args:
      name: of the setting, for the message.

    Raises:
      InputError: one does not.
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
        deadline = time.monotonic() + _LEAVE_SECONDS  # folders of a network appear with a delay
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
    """Where the work inside fails in one process, all end, each with a line that says which one failed and why.

    A process whose devices wait for those of one that failed cannot be interrupted: it ends with the other's status a
    few seconds after its line. Without this, processes wait 100 seconds for a heartbeat, or 300 at the exit, and
    abort with pages of the runtime's own messages. A process that is killed says nothing: the heartbeat finds it.
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
        atexit.register(_leave)  # runs before JAX's own, which would wait for the others
        failure = _failure()
        if failure is None or failure["of"] == jax.process_index():
            raise
        log.error("error: %s", failure["line"])  # what this process met follows from it
        raise SystemExit(failure["status"]) from None
    finally:
        ended.set()


def _announce(error: BaseException) -> None:
    """Tells the other processes; the first failure is the one they hear of."""
    client = jax_distributed.global_state.client
    if client is None or isinstance(error, PeerFailedError):
        return
    what = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
    line = f"process {jax.process_index()} on {socket.gethostname()} stopped: {' '.join(what.split())[:1000]}"
    status = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1
    failure = {"line": line, "status": 2 if isinstance(error, InputError) else status, "of": jax.process_index()}
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
    """Ends this process when another has failed, unless it ends by itself."""
    while not ended.wait(_POLL_SECONDS * 5):
        failure = _failure()
        if failure is None or failure["of"] == jax.process_index():
            continue
        if not ended.wait(_LEAVE_SECONDS):
            log.error("error: %s", failure["line"])
            _hear()
            logging.shutdown()
            os._exit(failure["status"])


def _hear() -> None:
    client = jax_distributed.global_state.client
    assert client is not None  # of a run of several processes
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        client.key_value_set(f"{_HEARD}/{jax.process_index()}", "")


def _leave() -> None:
    """Ends this process's part in the run without waiting for the others; process 0 waits until they have heard.

    It holds the coordination service, and processes that lose it abort with pages of its messages.
    """
    state = jax_distributed.global_state
    if state.client is None:
        return
    _hear()
    deadline = time.monotonic() + 3 * _LEAVE_SECONDS
    while jax.process_index() == 0 and time.monotonic() < deadline:
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            if len(state.client.key_value_dir_get(_HEARD)) == jax.process_count():
                time.sleep(2 * _POLL_SECONDS)  # they are about to end
                break
        time.sleep(_POLL_SECONDS)
    for held in (state.client, state.service, state.preemption_sync_manager):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(held))  # never destroyed: their destructors wait for the others too
    state.client = state.service = state.preemption_sync_manager = None

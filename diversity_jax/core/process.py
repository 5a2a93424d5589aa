"""Processes: an id of the machine, start times, ending with the parent, and freed memory returned to the system."""

from collections.abc import Callable
import contextlib
import ctypes
import logging
import os
from pathlib import Path
import socket
import threading
import time
from typing import NoReturn

TERMINATED = 143
"""Exit status of a process that SIGTERM ended, as shells report it; Slurm and Kubernetes start such a job again."""
INTERRUPTED = 130
"""Exit status after Ctrl-C."""
_PARENT_CHECK_SECONDS = 0.1


def machine_id() -> str:
    """An id of this boot of the machine and of the container: processes under the same id are visible from here."""
    try:
        machine = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        machine = socket.gethostname()
    try:
        return f"{machine} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return machine


def start_time(process: int) -> str:
    """When a process of this machine started, which distinguishes later processes of the same id; empty if it ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except FileNotFoundError:
        if os.path.exists("/proc/self/stat"):
            return ""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "running"


before_sudden_end: list[Callable[[int], object]] = []
"""Called with the exit status by `end_at_once`, for what others are to hear of this process."""


def end_at_once(status: int) -> NoReturn:
    """Ends the process from any thread, without the interpreter's own work at its end."""
    try:
        for action in before_sudden_end:
            action(status)
        logging.shutdown()
    finally:  # whatever an action raises
        os._exit(status)


def end_with_parent(parent: int) -> None:
    """Ends this process soon after its parent, whose id is given, so that it stops writing and holds no locks."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_CHECK_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def return_free_memory() -> None:
    """Returns freed memory that the C library still holds to the system; does nothing where that is not glibc."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # TypeError: Windows has no library of all symbols
        ctypes.CDLL(None).malloc_trim(0)

"""Keeps a CPU run's memory in the process, instead of handing it back and faulting it in again at every step.

XLA's CPU backend allocates a step's temporaries with malloc, and glibc returns large blocks to the system as soon as
they are free: a 17M model had 195,000 page faults a step and spent 0.65 s of CPU time a step in the kernel; with the
  settings here 0 to 38,000 and 0.01
to 0.13 s (`docs/training.md`). The price is that the process stays as large as it ever was. Accelerators keep their own
memory.

Compiled programs kept from one process to the next, and how long compiling took.

SIGTERM as a request: finish the step, save, leave; and leave in any case when the grace period is over.
"""

from collections.abc import Callable
import ctypes
import hashlib
import logging
import os
from pathlib import Path
import signal
import sys
import threading
from typing import Any

import jax

# From malloc.h of glibc.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_ACCELERATORS = ("/dev/nvidia0", "/dev/accel0", "/dev/vfio/0", "/dev/kfd")


def keep_freed_memory() -> bool:
    """Tells malloc to keep what is freed; call before JAX starts its devices.

    Returns:
      Whether it was told: on Linux with glibc, where no accelerator is present and the environment sets none of
        malloc's own
      variables.
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


_WORTH_KEEPING_SECONDS = 0.3  # of compilation; quicker programs are compiled again


def keep_programs(folder: str | None) -> str | None:
    """Keeps compiled programs in a folder, where a restarted run finds them; call before anything is compiled.

    A folder that JAX has been given already (`JAX_COMPILATION_CACHE_DIR`) is left as it is.

    Args:
      folder: local or `gs://`; "user": `diversity_jax/programs` under XDG_CACHE_HOME or ~/.cache; None: nothing is
        kept.

    Returns:
      The folder in use; None where there is none.
    """
    if jax.config.jax_compilation_cache_dir or folder is None:
        return jax.config.jax_compilation_cache_dir
    if folder == "user":
        folder = str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diversity_jax" / "programs")
    if jax.default_backend() == "cpu":
        folder = os.path.join(folder, f"cpu-{_cpu_kind()}")
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _WORTH_KEEPING_SECONDS)
    return folder


def _cpu_kind() -> str:
    """Tells processors apart: JAX does not, and a program compiled for one may stop another, where a home folder is
    shared.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    kind = sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
    return hashlib.sha256("\n".join(kind).encode()).hexdigest()[:12]


class CompileClock:
    """What compiling has cost this process since the clock was made.

    Attributes:
      seconds: in the compiler, or fetching its earlier work; without tracing.
      programs: compiled or fetched; from_cache: of these, fetched from the folder of `keep_programs`.
    """

    def __init__(self):
        self.seconds, self.programs, self.from_cache = 0.0, 0, 0
        self._lock = threading.Lock()
        jax.monitoring.register_event_duration_secs_listener(self._duration)
        jax.monitoring.register_event_listener(self._event)

    def _duration(self, event: str, seconds: float, **_: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            with self._lock:
                self.seconds += seconds
                self.programs += 1

    def _event(self, event: str, **_: object) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            with self._lock:
                self.from_cache += 1


log = logging.getLogger(__name__)

_EXIT_UNSAVED = 143  # as a shell reports a process that SIGTERM ended


class StopRequest:
    """SIGTERM asks for a stop; on several hosts all stop at the same step.

    Args:
      grace_seconds: after SIGTERM; then the process ends, saved or not, before whoever sent it sends SIGKILL.
      last_saved: the last step whose checkpoint is whole, for the message when time is up; None: there is none.
    """

    def __init__(self, grace_seconds: float, last_saved: Callable[[], int | None]):
        self.asked = False
        self._grace_seconds, self._last_saved = grace_seconds, last_saved
        self._several = jax.process_count() > 1
        self._deadline: threading.Timer | None = None

    def __enter__(self):
        if not self._several:  # on several hosts JAX's preemption service listens for the signal
            self._previous = signal.signal(signal.SIGTERM, self._ask)
        return self

    def _ask(self, *_: Any) -> None:
        if self.asked:
            return
        self.asked = True
        self._start_deadline()

    def _start_deadline(self) -> None:
        self._deadline = threading.Timer(self._grace_seconds, self._give_up)
        self._deadline.daemon = True
        self._deadline.start()

    def _give_up(self) -> None:
        saved = self._last_saved()
        last = f"the last whole checkpoint is step {saved}" if saved is not None else "there is no checkpoint"
        log.error(
            "SIGTERM: saving took longer than train.grace_seconds=%g and is given up; %s", self._grace_seconds, last
        )
        logging.shutdown()
        os._exit(_EXIT_UNSAVED)

    def agreed(self, step: int) -> bool:
        """Whether all hosts stop after this step."""
        if self._several and not self.asked:
            from jax.experimental import multihost_utils

            if multihost_utils.reached_preemption_sync_point(step):
                self._ask()
        return self.asked

    def __exit__(self, *_: Any):
        if self._deadline:
            self._deadline.cancel()
        if not self._several:
            signal.signal(signal.SIGTERM, self._previous)

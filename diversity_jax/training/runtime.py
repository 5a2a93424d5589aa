"""A training process and its machine: malloc, kept compiled programs, and SIGTERM."""

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

from diversity_jax.core.files import user_cache

log = logging.getLogger(__name__)

# From malloc.h of glibc.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_ACCELERATORS = ("/dev/nvidia0", "/dev/accel0", "/dev/vfio/0", "/dev/kfd")


def keep_freed_memory() -> bool:
    """Makes malloc keep freed memory in the process; call before JAX starts its devices.

    XLA's CPU backend allocates a step's temporaries with malloc, and glibc returns large blocks to the system when they
    are freed. A 17M model had 195,000 page faults and 0.65 s of kernel time a step; so it has at most 38,000 and 0.13 s
    (docs/training.md). The process never gets smaller in exchange. Accelerators have their own allocator.

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


_MIN_COMPILE_SECONDS = 0.3  # programs that compile faster are compiled again rather than read from disk


def keep_programs(folder: str | None) -> str | None:
    """Turns on JAX's persistent compilation cache; call before anything is compiled.

    A folder that JAX has been given already (`JAX_COMPILATION_CACHE_DIR`) is left as it is.

    Args:
      folder: local or `gs://`; "user": `diversity_jax/programs` under XDG_CACHE_HOME or ~/.cache; None: no cache.

    Returns:
      The folder in use; None where there is none.
    """
    given = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]  # JAX's settings have no types
    if given or folder is None:
        return given
    if folder == "user":
        folder = str(user_cache("programs"))
    if jax.default_backend() == "cpu":
        folder = os.path.join(folder, f"cpu-{_cpu_kind()}")
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _MIN_COMPILE_SECONDS)
    return folder


def _cpu_kind() -> str:
    """Hash of the processor's model and features.

    JAX's cache key leaves them out, and a program may use instructions that another machine of a shared home lacks.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    features = sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
    return hashlib.sha256("\n".join(features).encode()).hexdigest()[:12]


class CompileClock:
    """Compilations of this process since the clock was made.

    `seconds` were spent compiling or reading the compilation cache, without tracing; of `programs`, `from_cache` were
    read from it.
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


_EXIT_UNSAVED = 143  # as a shell reports a process that SIGTERM ended


class StopRequest:
    """SIGTERM as a request to stop after the current step; on several hosts all stop at the same step.

    Args:
      grace_seconds: after SIGTERM the process exits with status 143, saved or not, before whoever sent it sends
        SIGKILL.
      last_saved: the last step whose checkpoint is complete, for the message when time is up; None: there is none.
    """

    def __init__(self, grace_seconds: float, last_saved: Callable[[], int | None]):
        self.asked = False
        self._last_saved, self._grace_seconds = last_saved, grace_seconds
        self._several = jax.process_count() > 1
        self._deadline = threading.Timer(grace_seconds, self._give_up)
        self._deadline.daemon = True
        self._previous: Any = None

    def __enter__(self) -> "StopRequest":
        if not self._several:  # on several hosts JAX's preemption service listens for the signal
            self._previous = signal.signal(signal.SIGTERM, self._ask)
        return self

    def _ask(self, *_: Any) -> None:
        if not self.asked:
            self.asked = True
            self._deadline.start()

    def _give_up(self) -> None:
        saved = self._last_saved()
        last = f"the last whole checkpoint is step {saved}" if saved is not None else "there is no checkpoint"
        message = "SIGTERM: saving took longer than train.grace_seconds=%g and is given up; %s"
        log.error(message, self._grace_seconds, last)
        logging.shutdown()
        os._exit(_EXIT_UNSAVED)

    def agreed(self, step: int) -> bool:
        """Whether all hosts stop after this step."""
        if self._several and not self.asked:
            from jax.experimental import multihost_utils

            if multihost_utils.reached_preemption_sync_point(step):
                self._ask()
        return self.asked

    def __exit__(self, *_: Any) -> None:
        self._deadline.cancel()
        if not self._several:
            signal.signal(signal.SIGTERM, self._previous)

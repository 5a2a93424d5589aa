"""Compiled programs kept from one process to the next, and how long compiling took."""

import hashlib
import os
from pathlib import Path
import threading

import jax

_WORTH_KEEPING_SECONDS = 0.3  # of compilation; quicker programs are compiled again


def keep_programs(folder: str | None) -> str | None:
    """Keeps compiled programs in a folder, where a restarted run finds them; call before anything is compiled.

    A folder that JAX has been given already (`JAX_COMPILATION_CACHE_DIR`) is left as it is.

    Args:
      folder: local or `gs://`; "user": `diversity_jax/programs` under XDG_CACHE_HOME or ~/.cache; None: nothing is kept.

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
    """Tells processors apart: JAX does not, and a program compiled for one may stop another, where a home folder is shared."""
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

"""A training process and its machine: malloc, kept compiled programs, SIGTERM, and the other processes of a run."""

from collections.abc import Callable, Mapping
import ctypes
from dataclasses import dataclass
import hashlib
import logging
import math
import os
from pathlib import Path
import signal
import socket
import sys
import threading
import time
from typing import Any

import jax

from diversity_jax.core.errors import InputError

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
        folder = str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diversity_jax" / "programs")
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


_STARTS = ("off", "auto")
# Variables that hold the number of processes, this process's number, and its number on its host.
_LAUNCHERS = (
    ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "JAX_LOCAL_PROCESS_ID"),
    ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID"),
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID"),
)


@dataclass(frozen=True, kw_only=True)
class DistributedConfig:
    """How this process finds the others of a run."""

    # "off": it is the only one, unless a coordinator is given; "auto": JAX finds the others (TPU, Slurm, Open MPI).
    start: str = "off"
    coordinator: str | None = None  # HOST:PORT at which process 0 listens, reachable from all
    num_processes: int | None = None  # None: from the launcher's variables
    process_id: int | None = None  # from 0; None: from the launcher's variables
    timeout_seconds: float = 300.0  # how long processes wait for each other at the start

    def __post_init__(self) -> None:
        if self.start not in _STARTS:
            raise InputError(f"distributed.start={self.start!r}: must be one of {', '.join(_STARTS)}")
        if self.num_processes is not None and self.num_processes < 1:
            raise InputError(f"distributed.num_processes={self.num_processes}: must be at least 1")
        if self.process_id is not None and self.process_id < 0:
            raise InputError(f"distributed.process_id={self.process_id}: must be at least 0")
        if not self.timeout_seconds > 0:
            raise InputError(f"distributed.timeout_seconds={self.timeout_seconds}: must be above 0")
        if self.coordinator is not None:
            _address(self.coordinator)


@dataclass(frozen=True, kw_only=True)
class ProcessId:
    """This process among those of a run; `local_id` is None where all devices of the host are its own."""

    coordinator: str
    num_processes: int
    process_id: int
    local_id: int | None = None


def start_distributed(config: DistributedConfig) -> bool:
    """Joins this process with the others through `jax.distributed`; call before JAX starts its devices.

    JAX aborts the process where the others do not come within `timeout_seconds`; what can be known before, an address
    that cannot be reached or listened at, is checked here.

    Returns:
      Whether this process is one of several.

    Raises:
      InputError: the processes cannot be joined; the message says why and what to do.
    """
    own = find_process_id(config, os.environ)
    if own is None and config.start == "off":
        return False
    options: dict[str, Any] = {"initialization_timeout": max(1, math.ceil(config.timeout_seconds))}
    if own is not None:
        _check_address(own, config.timeout_seconds)
        waiting = "process %d of %d: joining the others at %s, for at most %g s"
        log.info(waiting, own.process_id, own.num_processes, own.coordinator, config.timeout_seconds)
        options |= {
            "coordinator_address": own.coordinator,
            "num_processes": own.num_processes,
            "process_id": own.process_id,
            "local_device_ids": own.local_id,
            "cluster_detection_method": "deactivate",
        }
    try:
        jax.distributed.initialize(**options)
    except (ValueError, RuntimeError, KeyError) as error:
        raise InputError(
            f"distributed: JAX could not join the processes ({' '.join(str(error).split())[:200]}); on a TPU slice, "
            "Slurm or Open MPI use start=auto, elsewhere give coordinator, num_processes and process_id"
        ) from error
    if own is not None and jax.process_count() != own.num_processes:
        raise InputError(
            f"distributed: process {own.process_id} was started with num_processes={own.num_processes}, process 0 with "
            f"{jax.process_count()}; start all with the same number"
        )
    counts = jax.process_index(), jax.process_count(), jax.local_device_count(), jax.device_count()
    log.info("process %d of %d, %d of %d devices", *counts)
    return True


def _check_address(own: ProcessId, timeout_seconds: float) -> None:
    """Whether process 0 can listen at the coordinator's address, and the others can reach it.

    Raises:
      InputError: they cannot.
    """
    if own.num_processes == 1:
        return
    host, port = _address(own.coordinator)
    if own.process_id == 0:
        try:
            socket.create_server(("", port)).close()
        except OSError as error:
            reason = f"process 0 cannot listen there ({error.strerror})"
            raise InputError(f"distributed.coordinator={own.coordinator}: {reason}") from None
        return
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            socket.create_connection((host, port), timeout=max(0.01, deadline - time.monotonic())).close()
            return
        except OSError as error:
            if time.monotonic() + 0.2 > deadline:
                raise InputError(
                    f"distributed.coordinator={own.coordinator}: process {own.process_id} could not reach process 0 "
                    f"there within {timeout_seconds:g} s ({error.strerror or error}); check it and the port"
                ) from None
            time.sleep(0.2)


def launched_process_id(environment: Mapping[str, str]) -> int:
    """This process's number in its job by its launcher's variables, before JAX knows; 0 where no launcher set any."""
    names = [names[1] for names in _LAUNCHERS] + ["TPU_WORKER_ID"]
    return next((_number(environment, name, "process_id") for name in names if name in environment), 0)


def find_process_id(config: DistributedConfig, environment: Mapping[str, str]) -> ProcessId | None:
    """Which process this is by configuration and environment; None where no coordinator is given.

    Raises:
      InputError: a coordinator, but no number of processes or none of this one, or numbers that cannot be.
    """
    coordinator = config.coordinator or environment.get("JAX_COORDINATOR_ADDRESS")
    if coordinator is None:
        if config.num_processes is not None or config.process_id is not None:
            raise InputError("distributed.num_processes, process_id: give distributed.coordinator=HOST:PORT too")
        return None
    _address(coordinator)
    launcher = next((names for names in _LAUNCHERS if names[0] in environment and names[1] in environment), None)
    count_name, id_name, local_name = launcher or (None, None, None)
    count, number, local = config.num_processes, config.process_id, None
    if count is None and number is None and local_name in environment:
        local = _number(environment, local_name, "process_id")
    count = _number(environment, count_name, "num_processes") if count is None else count
    number = _number(environment, id_name, "process_id") if number is None else number
    if not 0 <= number < count:
        raise InputError(f"distributed.process_id={number}: must be below num_processes={count}, counted from 0")
    return ProcessId(coordinator=coordinator, num_processes=count, process_id=number, local_id=local)


def _number(environment: Mapping[str, str], name: str | None, field: str) -> int:
    if name is None:
        variables = ", ".join(names[0] for names in _LAUNCHERS)
        raise InputError(f"distributed.{field}=None: give it with a coordinator; no launcher ({variables}) did")
    try:
        return int(environment[name])
    except ValueError:
        raise InputError(f"{name}={environment[name]!r}: is not a whole number; set distributed.{field}") from None


def _address(coordinator: str) -> tuple[str, int]:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise InputError(f"distributed.coordinator={coordinator!r}: must be HOST:PORT, such as 10.0.0.1:12345")
    return host.strip("[]"), int(port)

"""Keeps a CPU run's memory in the process, instead of handing it back and faulting it in again at every step.

XLA's CPU backend allocates a step's temporaries with malloc, and glibc returns large blocks to the system as soon as they are free: a
17M model had 195,000 page faults a step and spent 0.65 s of CPU time a step in the kernel; with the settings here 0 to 38,000 and 0.01
to 0.13 s (`docs/training.md`). The price is that the process stays as large as it ever was. Accelerators keep their own memory.
"""

import ctypes
import os
from pathlib import Path
import sys

# From malloc.h of glibc.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_ACCELERATORS = ("/dev/nvidia0", "/dev/accel0", "/dev/vfio/0", "/dev/kfd")


def keep_freed_memory() -> bool:
    """Tells malloc to keep what is freed; call before JAX starts its devices.

    Returns:
      Whether it was told: on Linux with glibc, where no accelerator is present and the environment sets none of malloc's own
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

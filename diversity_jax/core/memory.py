"""Memory of the process, and the C library that keeps some of it."""

import contextlib
import ctypes


def return_free_memory() -> None:
    """Gives what was freed and the C library keeps back to the system; does nothing where that is not glibc."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # TypeError: Windows has no library of all symbols
        ctypes.CDLL(None).malloc_trim(0)

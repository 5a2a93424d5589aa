"""CPU and wall-clock seconds of the processes that a script starts."""

import resource
import time
from typing import Self


class ChildTimes:
    """Times of the child processes that begin and end inside a `with` block, and of all that these waited for.

    Attributes:
      cpu_seconds: user and system time, known at the end of the block.
      seconds: wall-clock time of the block.
      peak_bytes: largest resident memory of any child of this process so far.
    """

    def __init__(self) -> None:
        self.cpu_seconds = self.seconds = 0.0
        self.peak_bytes = 0
        self._before, self._began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        before, after = self._before, resource.getrusage(resource.RUSAGE_CHILDREN)
        self.seconds = time.monotonic() - self._began
        self.cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        self.peak_bytes = after.ru_maxrss * 1024  # Linux counts in KiB

"""The steps between two log lines: their metrics stay on the device and their time is taken without stopping the
devices.
"""

from collections.abc import Mapping
import logging
import time
from typing import Any

import jax

from diversity_jax.training.metrics import format_seconds

log = logging.getLogger(__name__)


class Window:
    """Metrics of the steps since the last log line, left on the device until the step after them has been dispatched.

    Args:
      run: told of a full window by `account` and `report`; has `config.log_every` and `clock`.
      start: finished steps.
    """

    def __init__(self, run: Any, start: int):
        self.run, self.step, self.pending = run, start, []
        self.restart()

    def restart(self) -> None:
        self.began, self.waited, self.untimed = time.perf_counter(), 0.0, 0

    def leave_out(self, seconds: float) -> None:
        """Takes time that was spent on something else, with no step under way, out of the window."""
        self.began += seconds

    def leave_out_compilation(self) -> None:
        """The first step of a sitting compiles: its time is told apart and is not part of any speed."""
        jax.block_until_ready(self.pending)
        self.first_seconds, clock = time.perf_counter() - self.began, self.run.clock
        said = "first step, with compilation: %s (so far %s in the compiler, %d of %d programs kept from before)"
        log.info(
            said, format_seconds(self.first_seconds), format_seconds(clock.seconds), clock.from_cache, clock.programs
        )
        self.restart()
        self.untimed = 1

    def add(self, step: int, metrics: Mapping[str, jax.Array], waited: float) -> None:
        full = self.pending and self.step % self.run.config.log_every == 0
        if full:
            self.flush()
        self.step = step
        self.pending.append(metrics)
        self.waited += waited

    def flush(self) -> None:
        if self.pending:
            records = jax.device_get(self.pending)
            timed, seconds = len(records) - self.untimed, time.perf_counter() - self.began
            self.run.account(self.step, seconds if timed else 0.0, self.waited, timed)
            if not timed:  # nothing but the compiling step: its whole time is all there is to report
                timed, seconds = 1, self.first_seconds
            self.pending, waited = [], self.waited
            self.run.report(self.step, records, seconds, waited, timed)
            self.restart()

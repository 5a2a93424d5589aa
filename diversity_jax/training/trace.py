"""JAX's profiler over chosen steps of a run."""

import logging
from pathlib import Path
from typing import Any

import jax

log = logging.getLogger(__name__)


class StepTrace:
    """Traces `count` steps once `start` steps are finished, or from the first step of a sitting that begins later.

    The trace lies under `folder`/plugins/profile/DATE: for TensorBoard's profile plugin (`tensorboard --logdir
      FOLDER`), and as
    `perfetto_trace.json.gz` for ui.perfetto.dev.
    """

    def __init__(self, folder: Path, *, start: int, count: int):
        self._folder, self._start, self._left, self._running = folder, start, count, False

    def before(self, finished_steps: int) -> None:
        """Call before a step is dispatched."""
        if self._left and not self._running and finished_steps >= self._start:
            jax.profiler.start_trace(str(self._folder), create_perfetto_trace=True)
            self._running = True

    def after(self, outputs: Any) -> None:
        """Call with what the step gives; the last traced step is waited for."""
        if self._running:
            self._left -= 1
            if not self._left:
                jax.block_until_ready(outputs)
                self.close()

    def close(self) -> None:
        """Ends a trace that is under way."""
        if self._running:
            jax.profiler.stop_trace()
            self._running, self._left = False, 0
            log.info("profiler trace: %s", self._folder)

"""SIGTERM as a request: finish the step, save, leave; and leave in any case when the grace period is over."""

from collections.abc import Callable
import logging
import os
import signal
import threading
from typing import Any

import jax

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
        log.error("SIGTERM: saving took longer than train.grace_seconds=%g and is given up; %s", self._grace_seconds, last)
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

"""Goodput: which share of a run's wall time went into steps that its present state rests on, over all sittings of the
run.

A sitting is one process from its start to its end. Its time goes into start-up, compilation, evaluation, checkpoints,
waiting, and steps; steps that a later sitting had to do again, because the process was killed after its last
checkpoint, were for nothing:

    useful seconds = sum over sittings of step seconds * (steps not done again) / (steps done)
    goodput        = useful seconds / (seconds of all sittings)

Where the time between sittings counts too, as it does to whoever has reserved the machine, the divisor is the time
since the first sitting began. The record, `goodput.json`, is written every few seconds, so a killed sitting's last
seconds are missing from both.
"""

from collections.abc import Sequence
import dataclasses
from dataclasses import dataclass
from pathlib import Path
import time

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import read_json, write_json

_WRITE_EVERY_SECONDS = 5.0


@dataclass(kw_only=True)
class Sitting:
    """What one process did; times in seconds, `began` and `last` since 1970.

    Attributes:
      began, last: when it started, and when it was last heard of.
      first_step, last_step: finished steps it found, and finished steps it reached.
      step_seconds: in steps, without compilation, evaluation and samples.
      compile_seconds: in the compiler; also part of the first step, which `step_seconds` leaves out.
      evaluation_seconds: held-out losses and samples.
      save_seconds: in which training stood still for a checkpoint.
      input_wait_seconds: in which it stood still for a batch.
    """

    began: float
    last: float
    first_step: int = 0
    last_step: int = 0
    step_seconds: float = 0.0
    compile_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    save_seconds: float = 0.0
    input_wait_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Goodput:
    """Shares of wall time in useful steps: of the sittings' own, and of all since the first one began; steps done
    twice.
    """

    share: float
    share_with_pauses: float
    sittings: int
    steps_done_again: int


def goodput(sittings: Sequence[Sitting]) -> Goodput:
    """The figures of a run's sittings, oldest first; shares are 0 where no time has passed."""
    useful, again = 0.0, 0
    for number, sitting in enumerate(sittings):
        done = sitting.last_step - sitting.first_step
        kept_until = min([later.first_step for later in sittings[number + 1 :]], default=sitting.last_step)
        kept = max(0, min(sitting.last_step, kept_until) - sitting.first_step)
        useful += sitting.step_seconds * kept / done if done else 0.0
        again += done - kept
    sat = sum(sitting.last - sitting.began for sitting in sittings)
    passed = sittings[-1].last - sittings[0].began if sittings else 0.0
    return Goodput(
        share=useful / sat if sat > 0 else 0.0,
        share_with_pauses=useful / passed if passed > 0 else 0.0,
        sittings=len(sittings),
        steps_done_again=again,
    )


class GoodputLog:
    """The sittings of a run in `goodput.json`; the last one is this process, under way.

    Args:
      folder: the run's.
      began: when this sitting started, in seconds since 1970.
      write: whether this process is the one that writes the file.
    """

    def __init__(self, folder: Path, *, began: float, write: bool = True):
        self._path, self._write, self._written = folder / "goodput.json", write, 0.0
        self.sitting = Sitting(began=began, last=time.time())
        self.sittings = [*read_sittings(self._path), self.sitting] if write else [self.sitting]

    def save(self, *, now: bool = False) -> None:
        """Writes the file, unless it was written a moment ago and `now` is not set."""
        self.sitting.last = time.time()
        if self._write and (now or self.sitting.last - self._written > _WRITE_EVERY_SECONDS):
            write_json(self._path, {"sittings": [dataclasses.asdict(sitting) for sitting in self.sittings]})
            self._written = self.sitting.last


def read_sittings(path: Path) -> list[Sitting]:
    """The sittings that `goodput.json` tells of; none where there is no such file.

    Raises:
      InputError: the file is not what `GoodputLog` writes.
    """
    if not path.exists():
        return []
    try:
        return [Sitting(**sitting) for sitting in read_json(path)["sittings"]]
    except (TypeError, KeyError):
        raise InputError(
            f"{path}: does not tell of sittings as training writes them; remove it, and goodput counts from now"
        ) from None

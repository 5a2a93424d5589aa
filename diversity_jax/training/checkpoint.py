"""Checkpoints of a training run: asynchronous, sharded, atomic, verified when they are restored."""

from collections.abc import Iterator, Mapping
import contextlib
import itertools
import logging
import os
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import is_remote
from diversity_jax.model.llama import fingerprint
from diversity_jax.training.step import TrainState

log = logging.getLogger(__name__)
logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax reports every phase of every save there


class CheckpointError(InputError):
    """A checkpoint could not be written."""


def _parts(state: TrainState) -> dict[str, Any]:
    """A state as a checkpoint stores it."""
    counters = {"step": state.step, "skipped": state.skipped}
    return {"params": state.params, "optimizer": state.opt_state, "counters": counters}


class Checkpoints:
    """The checkpoints of one run, in one folder.

    A checkpoint holds `params`, `optimizer` and `counters`, each loadable alone, and a JSON record (`info`) beside
    them. Writing is atomic; the fingerprint of the values is verified when they are restored.

    Args:
      folder: local path or `gs://`.
      keep: how many of the latest are preserved.
      keep_every_steps: multiples of this number of steps are preserved; 0: none.
      keep_every_minutes: the first is preserved, and each that is so much later than the last preserved; 0: none.
    """

    def __init__(self, folder: str | Path, *, keep: int = 3, keep_every_steps: int = 0, keep_every_minutes: float = 0):
        self.folder = str(folder) if is_remote(folder) else os.path.abspath(folder)
        policies = ocp.training.preservation_policies
        preserved: list[Any] = [policies.LatestN(keep)]
        if keep_every_steps:
            preserved.append(policies.EveryNSteps(keep_every_steps))
        if keep_every_minutes:
            preserved.append(policies.EveryNSeconds(keep_every_minutes * 60))
        self._checkpointer = ocp.training.Checkpointer(
            self.folder, preservation_policy=policies.AnyPreservationPolicy(preserved), cleanup_tmp_directories=True
        )
        self._pending: tuple[int, Any] | None = None  # step and Orbax's response

    @property
    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, ascending."""
        return [checkpoint.step for checkpoint in self._checkpointer.checkpoints]

    @property
    def last_complete(self) -> int | None:
        """The latest step on disk, not counting one being written; None: there is none."""
        return max(self.steps, default=None)

    def save(self, step: int, state: TrainState, info: Mapping[str, Any]) -> None:
        """Starts writing a checkpoint; returns when the state has been copied and may be donated.

        Raises:
          CheckpointError: the previous one could not be written.
        """
        self.wait()
        parts = _parts(state)
        record = {**info, "step": step, "fingerprint": int(fingerprint(parts))}
        with self._write_errors(step):
            response = self._checkpointer.save_checkpointables_async(
                step, parts, force=True, overwrite=step in self.steps, custom_metadata=record
            )
            self._pending = step, response

    def wait(self) -> None:
        """Waits until the checkpoint being written is on disk.

        Raises:
          CheckpointError: it could not be written.
        """
        if self._pending:
            (step, response), self._pending = self._pending, None
            with self._write_errors(step):
                if response is not None:
                    response.result()

    @contextlib.contextmanager
    def _write_errors(self, step: int) -> Iterator[None]:
        """Turns a failed write into one line that names the last complete checkpoint."""
        try:
            yield
        except InputError:
            raise
        except Exception as error:  # of Orbax and TensorStore, which have no common type
            message = " ".join(str(error).split())
            is_full = any(word in message for word in ("No space left", "ENOSPC", "RESOURCE_EXHAUSTED"))
            cause = "the disk is full; free space and run again" if is_full else message[:300]
            complete = [other for other in self.steps if other != step]
            last = f"the last good one is step {complete[-1]}" if complete else "there is no earlier one"
            raise CheckpointError(f"{self.folder}: checkpoint {step} could not be written ({cause}); {last}") from error

    def restore(
        self, shapes: TrainState, shardings: TrainState, step: int | None = None
    ) -> tuple[TrainState, Mapping[str, Any]] | None:
        """The latest undamaged checkpoint, on the mesh of the shardings; None where there is none.

        A damaged one is reported and moved to the folder `checkpoints-damaged`, and the one before is taken.

        Args:
          shapes, shardings: of the state wanted, on any mesh.
          step: the latest to consider; None: all.

        Raises:
          InputError: there are checkpoints, but all are damaged.
        """
        candidates = [candidate for candidate in self.steps if step is None or candidate <= step]
        for candidate in reversed(candidates):
            try:
                return self._load(candidate, shapes, shardings)
            except Exception as error:  # whatever Orbax and TensorStore raise for a damaged file
                message = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
                log.error("checkpoint %s/%d is damaged (%s); trying the one before", self.folder, candidate, message)
                self._set_aside(candidate)
        if candidates:
            raise InputError(f"{self.folder}: all {len(candidates)} checkpoints are damaged; use another output_dir")
        return None

    def _load(self, step: int, shapes: TrainState, shardings: TrainState) -> tuple[TrainState, Mapping[str, Any]]:
        parts = _parts(
            jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, shardings)
        )
        loaded = self._checkpointer.load_checkpointables(step, parts)
        info = self.info(step)
        if int(fingerprint({name: loaded[name] for name in parts})) != info["fingerprint"]:
            raise InputError("its values do not match their fingerprint")
        return TrainState(params=loaded["params"], opt_state=loaded["optimizer"], **loaded["counters"]), info

    def info(self, step: int) -> Mapping[str, Any]:
        """The JSON record saved with a checkpoint."""
        return self._checkpointer.checkpointables_metadata(step).custom_metadata

    def _set_aside(self, step: int) -> None:
        """Moves a damaged checkpoint away, so that it does not count as the latest."""
        if is_remote(self.folder):
            self._checkpointer.delete(step)
            return
        if jax.process_index() == 0:
            damaged = Path(f"{self.folder}-damaged")
            damaged.mkdir(exist_ok=True)
            names = itertools.chain([str(step)], (f"{step}.{number}" for number in itertools.count(2)))
            target = next(damaged / name for name in names if not (damaged / name).exists())
            os.rename(Path(self.folder) / str(step), target)
        self._checkpointer.reload()

    def close(self) -> None:
        """Waits for the checkpoint being written and releases the folder."""
        try:
            self.wait()
        finally:
            self._checkpointer.close()

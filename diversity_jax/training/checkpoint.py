"""Checkpoints of a training run: asynchronous, sharded, atomic, verified when they are read back."""

from collections.abc import Mapping
import logging
import os
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import is_remote
from diversity_jax.model.fingerprint import fingerprint
from diversity_jax.training.step import TrainState

log = logging.getLogger(__name__)
logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax reports every phase of every save there


def _preservation(keep: int, every_steps: int, every_minutes: float) -> Any:
    policies = ocp.training.preservation_policies
    wanted = [policies.LatestN(keep)]
    if every_steps:
        wanted.append(policies.EveryNSteps(every_steps))
    if every_minutes:
        wanted.append(policies.EveryNSeconds(every_minutes * 60))
    return policies.AnyPreservationPolicy(wanted)


class CheckpointError(InputError):
    """A checkpoint could not be written."""


class Checkpoints:
    """The checkpoints of one run, in one folder.

    A checkpoint holds `params`, `optimizer` and `counters`, each loadable alone, and a JSON record (`info`) beside
    them. It appears whole or not at all; its fingerprint is verified when it is restored.

    Args:
      folder: local path or `gs://`.
      keep: how many of the latest stay.
      keep_every_steps: those of its multiples stay for ever; 0: none do.
      keep_every_minutes: the first stays for ever, and each that is so much later than the last that does; 0: none do.
    """

    def __init__(self, folder: str | Path, *, keep: int = 3, keep_every_steps: int = 0, keep_every_minutes: float = 0):
        self.folder = str(folder) if is_remote(folder) else os.path.abspath(folder)
        self._checkpointer = ocp.training.Checkpointer(
            self.folder,
            preservation_policy=_preservation(keep, keep_every_steps, keep_every_minutes),
            cleanup_tmp_directories=True,
        )
        self._pending = None

    @property
    def steps(self) -> list[int]:
        """Steps with a whole checkpoint, ascending."""
        return [checkpoint.step for checkpoint in self._checkpointer.checkpoints]

    @property
    def last_whole(self) -> int | None:
        """The latest step on disk, not counting one under way; None: there is none."""
        return max(self.steps, default=None)

    def save(self, step: int, state: TrainState, info: Mapping[str, Any]) -> None:
        """Starts writing a checkpoint; returns when the state has been copied and may be donated.

        Raises:
          CheckpointError: the one before could not be written.
        """
        self.wait()
        parts = {
            "params": state.params,
            "optimizer": state.opt_state,
            "counters": {"step": state.step, "skipped": state.skipped},
        }
        record = {**info, "step": step, "fingerprint": int(fingerprint(parts))}
        with self._write_errors(step):
            self._pending = (
                step,
                self._checkpointer.save_checkpointables_async(
                    step, parts, force=True, overwrite=step in self.steps, custom_metadata=record
                ),
            )

    def wait(self) -> None:
        """Waits until the checkpoint under way is on disk.

        Raises:
          CheckpointError: it could not be written.
        """
        if self._pending:
            (step, response), self._pending = self._pending, None
            with self._write_errors(step):
                if response is not None:
                    response.result()

    def _write_errors(self, step: int) -> "_WriteErrors":
        return _WriteErrors(self, step)

    def restore(
        self, shapes: TrainState, shardings: TrainState, step: int | None = None
    ) -> tuple[TrainState, Mapping[str, Any]] | None:
        """The latest checkpoint that is whole, placed as asked; None where there is none.

        A damaged one is reported, moved aside (`damaged-STEP`), and the one before is taken.

        Args:
          shapes, shardings: of the state wanted, on any mesh.
          step: take this one or nothing earlier than a damaged successor would allow; None: the latest.

        Raises:
          InputError: there are checkpoints, but none is whole.
        """
        candidates = [found for found in self.steps if step is None or found <= step]
        for found in reversed(candidates):
            try:
                return self._load(found, shapes, shardings)
            except (
                Exception
            ) as error:  # whatever Orbax and TensorStore raise for damage: any of it means "not this one"
                said = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
                log.error("checkpoint %s/%d is damaged (%s); falling back to the one before", self.folder, found, said)
                self._set_aside(found)
        if candidates:
            raise InputError(
                f"{self.folder}: all {len(candidates)} checkpoints are damaged; start again in another output_dir"
            )
        return None

    def _load(self, step: int, shapes: TrainState, shardings: TrainState) -> tuple[TrainState, Mapping[str, Any]]:
        wanted = jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, shardings
        )
        counters = {"step": wanted.step, "skipped": wanted.skipped}
        parts = {"params": wanted.params, "optimizer": wanted.opt_state, "counters": counters}
        loaded = self._checkpointer.load_checkpointables(step, parts)
        info = self.info(step)
        if int(fingerprint({name: loaded[name] for name in parts})) != info["fingerprint"]:
            raise InputError("its values do not match their fingerprint")
        return TrainState(params=loaded["params"], opt_state=loaded["optimizer"], **loaded["counters"]), info

    def info(self, step: int) -> Mapping[str, Any]:
        """The JSON record saved with a checkpoint."""
        return self._checkpointer.checkpointables_metadata(step).custom_metadata

    def _set_aside(self, step: int) -> None:
        """Out of the way of retention, which would keep the latest even if it is damaged."""
        if is_remote(self.folder):
            self._checkpointer.delete(step)
            return
        if jax.process_index() == 0:
            aside = Path(self.folder).parent / f"{Path(self.folder).name}-damaged"
            aside.mkdir(exist_ok=True)
            target = aside / str(step)
            number = 1
            while target.exists():
                number += 1
                target = aside / f"{step}.{number}"
            os.rename(Path(self.folder) / str(step), target)
        self._checkpointer.reload()

    def close(self) -> None:
        """Waits for what is under way and releases the folder."""
        try:
            self.wait()
        finally:
            self._checkpointer.close()


class _WriteErrors:
    """Turns a failed write into one line that names the last good checkpoint."""

    def __init__(self, checkpoints: Checkpoints, step: int):
        self._checkpoints, self._step = checkpoints, step

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if error is None or isinstance(error, InputError) or not isinstance(error, Exception):
            return False
        said = " ".join(str(error).split())
        full = "No space left" in said or "ENOSPC" in said or "RESOURCE_EXHAUSTED" in said
        cause = "the disk is full; free space and run again" if full else said[:300]
        good = [step for step in self._checkpoints.steps if step != self._step]
        last = f"the last good one is step {good[-1]}" if good else "there is no earlier one"
        raise CheckpointError(
            f"{self._checkpoints.folder}: checkpoint {self._step} could not be written ({cause}); {last}"
        ) from error

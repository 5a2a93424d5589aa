"""Checkpoints of a training run: written asynchronously, sharded and atomically, verified when they are read."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import errno
import functools
import itertools
import json
import logging
import os
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from diversity_jax.core.buckets import local_copy
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import free_bytes, join_path
from diversity_jax.core.stores import StoreError
from diversity_jax.model.checkpoint_io import shards
from diversity_jax.model.checkpoint_io.shards import DamagedCheckpoint, complete_steps
from diversity_jax.model.llama import fingerprint
from diversity_jax.model.sharding import with_shardings
from diversity_jax.training.step import TrainState

log = logging.getLogger(__name__)
# Orbax logs every phase of every save, and tracebacks of errors that it also raises.
logging.getLogger("absl").setLevel(logging.CRITICAL)

_PARTS = ("params", "optimizer", "counters")
_DISK_FULL = ("No space left", "ENOSPC", "EDQUOT", "Disk quota exceeded")
_DAMAGED = ("DATA_LOSS", "CRC-32C", "OUT_OF_RANGE")  # in TensorStore's messages about invalid bytes


class CheckpointError(InputError):
    """A checkpoint could not be written, or could not be read for another reason than damage."""


def state_parts(state: TrainState) -> dict[str, Any]:
    """The parts of a checkpoint, by name."""
    counters = {"step": state.step, "skipped": state.skipped}
    return {"params": state.params, "optimizer": state.opt_state, "counters": counters}


def read_info(folder: str | os.PathLike, step: int) -> Mapping[str, Any] | None:
    """The JSON object saved with a checkpoint; None where it is missing or damaged.

    Raises:
      CheckpointError: it cannot be read.
    """
    path = join_path(folder, str(step))
    try:
        return shards.read_info(path)
    except (OSError, StoreError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"{path}: its record could not be read ({reason}); nothing was changed") from None


def last_info(folder: str | os.PathLike, step: int | None = None) -> Mapping[str, Any] | None:
    """The JSON object of the last checkpoint, up to a step, that has an undamaged one; None where there is none."""
    steps = [number for number in complete_steps(folder) if step is None or number <= step]
    return next((info for number in reversed(steps) if (info := read_info(folder, number))), None)


def load(
    folder: str | os.PathLike,
    shapes: TrainState,
    shardings: TrainState,
    check: Callable[[Mapping[str, Any]], None] = lambda info: None,
    *,
    step: int | None = None,
) -> tuple[TrainState, Mapping[str, Any], list[int]] | None:
    """Loads the latest undamaged checkpoint onto any mesh; nothing on disk is changed.

    Args:
      shapes, shardings: of the state.
      check: raises `InputError` where the checkpoint's JSON object does not fit; called before arrays are read.
      step: latest step to consider; None: any.

    Returns:
      The state, the JSON object, and the later steps whose checkpoints are damaged; None where there is no checkpoint.

    Raises:
      InputError: all checkpoints are damaged, or `check` raises it.
      CheckpointError: storage or memory failed.
    """
    candidates = [number for number in complete_steps(folder) if step is None or number <= step]
    damaged: list[int] = []
    for candidate in reversed(candidates):
        try:
            info = read_info(folder, candidate)
            if info is None:
                raise DamagedCheckpoint("its record is missing or damaged")
            check(info)
            return _load(join_path(folder, str(candidate)), shapes, shardings, info), info, damaged
        except DamagedCheckpoint as damage:
            log.error("checkpoint %s/%d is damaged (%s); trying the one before", folder, candidate, damage)
            damaged.append(candidate)
    if candidates:
        raise InputError(
            f"{folder}: all {len(candidates)} checkpoints are damaged; nothing was changed: put a copy back, or use "
            "another output_dir"
        )
    return None


def _load(folder: Path | str, shapes: TrainState, shardings: TrainState, info: Mapping[str, Any]) -> TrainState:
    parts = state_parts(with_shardings(shapes, shardings))
    try:
        loaded = shards.load(folder, parts)
    except DamagedCheckpoint:
        raise
    except StoreError as error:
        raise CheckpointError(f"{error}; nothing was changed") from None
    except Exception as error:  # whatever Orbax, TensorStore and XLA raise, which have no common type
        raise _read_error(local_copy(folder, lambda name: True), error) from error
    if int(fingerprint({name: loaded[name] for name in parts})) != info["fingerprint"]:
        raise DamagedCheckpoint("its values do not match their fingerprint")
    return TrainState(params=loaded["params"], opt_state=loaded["optimizer"], **loaded["counters"])


def _read_error(folder: Path, error: Exception) -> Exception:
    """`DamagedCheckpoint` where a wrong checksum or a missing file is found, else a `CheckpointError` with the reason.

    Orbax's own error is the same for a missing file, a wrong checksum and a failing disk.
    """
    chain, reasons, failed = error, list[str](), False
    while chain is not None:
        reasons.append(" ".join(str(chain).split()))
        failed |= isinstance(chain, MemoryError) or "RESOURCE_EXHAUSTED" in reasons[-1]
        failed |= isinstance(chain, OSError) and chain.errno not in (None, errno.ENOENT)
        chain = chain.__cause__ or chain.__context__  # type: ignore[assignment]
    reason = next((text for text in reversed(reasons) if text), type(error).__name__)[:200]
    if not failed:
        try:
            damage = next(filter(None, (_damage(folder / part) for part in _PARTS)), None)
        except OSError as second:
            reason = f"{second.filename}: {second.strerror}"
        else:
            damage = damage or next((text[:200] for text in reasons if any(word in text for word in _DAMAGED)), None)
            if damage:
                return DamagedCheckpoint(damage)
    return CheckpointError(
        f"{folder}: could not be read ({reason}), which is no sign of damage; nothing was changed: see to storage and "
        "memory, and run again"
    )


def _damage(part: Path) -> str | None:
    """The first missing or invalid file of one part of a checkpoint; None: no damage was found.

    Raises:
      OSError: a file cannot be read.
    """
    import tensorstore

    for name in ("_METADATA", "manifest.ocdbt"):
        if not (part / name).exists():
            return f"{part.name}/{name} is missing"
    for path in sorted(part.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            if path.name == "_METADATA" or path.parent.name == "array_metadatas":
                try:
                    json.loads(data)
                except (ValueError, RecursionError):
                    return f"{path.relative_to(part.parent)} is not valid JSON"
    try:
        store = tensorstore.KvStore.open({"driver": "ocdbt", "base": part.absolute().as_uri() + "/"}).result()
        for key in store.list().result():
            if store.read(key).result().state != "value":
                return f"{part.name}: {key.decode(errors='replace')} is missing"
    except ValueError as error:
        message = " ".join(str(error).split())
        return message[:200] if any(word in message for word in (*_DAMAGED, "NOT_FOUND")) else None
    return None


class Checkpoints:
    """Writes a run's checkpoints into one local folder, which is created by the first save.

    A checkpoint holds `params`, `optimizer` and `counters`, each loadable alone, and a JSON object (`info`). Writing is
    atomic; a fingerprint of the values is verified when they are read.

    Args:
      keep: number of latest checkpoints that are preserved.
      keep_every_steps: checkpoints of multiples of this are preserved; 0: none.
      keep_every_minutes: checkpoints at least this far apart are preserved; 0: none.
    """

    def __init__(self, folder: str | Path, *, keep: int = 3, keep_every_steps: int = 0, keep_every_minutes: float = 0):
        self.folder = os.path.abspath(folder)
        policies = ocp.training.preservation_policies
        preserved: list[Any] = [policies.LatestN(keep)]
        if keep_every_steps:
            preserved.append(policies.EveryNSteps(keep_every_steps))
        if keep_every_minutes:
            preserved.append(policies.EveryNSeconds(keep_every_minutes * 60))
        self._policy = policies.AnyPreservationPolicy(preserved)
        self._pending: tuple[int, int, Any] | None = None  # step, bytes and Orbax's response

    @functools.cached_property
    def _checkpointer(self) -> Any:
        """Opened by the first save, since opening creates the folder and removes files of killed processes."""
        return ocp.training.Checkpointer(self.folder, preservation_policy=self._policy, cleanup_tmp_directories=True)

    @property
    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, ascending."""
        return complete_steps(self.folder)

    @property
    def last_complete(self) -> int | None:
        """The latest complete step; None: there is none."""
        return max(self.steps, default=None)

    def check_space(self, shapes: TrainState) -> None:
        """Raises `CheckpointError` where the disk has no space for one checkpoint of this state."""
        needed, left = _bytes(shapes), free_bytes(self.folder)
        if needed > left:
            raise CheckpointError(f"{self.folder}: {_space(needed, left)}; free space or choose another output_dir")

    def save(self, step: int, state: TrainState, info: Mapping[str, Any]) -> None:
        """Starts writing a checkpoint; returns when the state has been copied and may be donated.

        Raises:
          CheckpointError: the previous one, or this one, could not be written.
        """
        self.wait()
        parts, needed = state_parts(state), _bytes(state)
        record = {**info, "step": step, "fingerprint": int(fingerprint(parts))}
        with self._write_errors(step, needed):
            response = self._checkpointer.save_checkpointables_async(
                step, parts, force=True, overwrite=step in self.steps, custom_metadata=record
            )
            self._pending = step, needed, response

    def wait(self) -> None:
        """Waits until the checkpoint being written is complete.

        Raises:
          CheckpointError: it could not be written.
        """
        if self._pending:
            (step, needed, response), self._pending = self._pending, None
            with self._write_errors(step, needed):
                response.result()

    @contextlib.contextmanager
    def _write_errors(self, step: int, needed: int) -> Iterator[None]:
        """Raises a failed write as a `CheckpointError` that names the last complete checkpoint."""
        try:
            yield
        except InputError:
            raise
        except Exception as error:  # of Orbax and TensorStore, which have no common type
            message, left = " ".join(str(error).split()), free_bytes(self.folder)
            is_full = any(word in message for word in _DISK_FULL) or left < needed
            cause = f"the disk is full: {_space(needed, left)}" if is_full else message[:300]
            complete = [other for other in self.steps if other != step]
            last = f"the last good one is step {complete[-1]}" if complete else "there is no earlier one"
            remedy = "free space and run again" if is_full else "run again"
            raise CheckpointError(
                f"{self.folder}: checkpoint {step} could not be written ({cause}); {last}; {remedy}"
            ) from error

    def set_aside(self, steps: Sequence[int]) -> None:
        """Moves damaged checkpoints to `checkpoints-damaged`, where they do not count as the latest."""
        if jax.process_index() == 0:
            damaged = Path(f"{self.folder}-damaged")
            for step in steps:
                damaged.mkdir(exist_ok=True)
                names = itertools.chain([str(step)], (f"{step}.{number}" for number in itertools.count(2)))
                target = next(damaged / name for name in names if not (damaged / name).exists())
                os.rename(Path(self.folder) / str(step), target)

    def close(self) -> None:
        """Waits for the checkpoint being written and releases the folder.

        Raises:
          CheckpointError: it could not be written.
        """
        try:
            self.wait()
        finally:
            if "_checkpointer" in vars(self):
                with contextlib.suppress(Exception):  # repeats the error of a failed save
                    self._checkpointer.close()


def _bytes(state: TrainState) -> int:
    """Bytes of a state's arrays."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state_parts(state)))


def _space(needed: int, left: int) -> str:
    return f"a checkpoint takes up to {needed:,} bytes, {left:,} are left"

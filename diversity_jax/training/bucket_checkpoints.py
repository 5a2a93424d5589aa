"""Checkpoints of a run in a bucket: each process uploads its shards, then process 0 writes the record.

Processes report to each other through files in the bucket, without a shared disk or collectives of the devices.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
import contextlib
import functools
from pathlib import Path
import secrets
import time
from typing import Any
import uuid

import jax
from jax.experimental import multihost_utils
import numpy as np

from diversity_jax.core.buckets import remote_tree
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import copy_tree, exists, join_path, read_json, remove_tree, write_json
from diversity_jax.core.stores import is_remote
from diversity_jax.model.checkpoint_io import shards
from diversity_jax.model.checkpoint_io.shards import complete_steps, read_info
from diversity_jax.model.llama import fingerprint
from diversity_jax.training.checkpoint import CheckpointError, Checkpoints, state_parts
from diversity_jax.training.config import TrainConfig
from diversity_jax.training.step import TrainState

_POLL_SECONDS, _TIMEOUT_SECONDS = 0.5, 600.0  # of waiting for other processes' shards


class BucketCheckpoints:
    """As `checkpoint.Checkpoints`, in a folder of a bucket.

    A step's folder holds files of shards and `checkpoint.json`, which lists them with their checksums. Files without
    this record are left by killed processes, and are removed after the next checkpoint.

    Args:
      attempt: unique name of this attempt of the run, the same in all processes.
      keep, keep_every_steps, keep_every_minutes: as `Checkpoints`.
      before_commit: called in process 0 before a record is written, so that uploaded logs are never behind it.
    """

    def __init__(
        self,
        folder: str,
        *,
        attempt: str | None = None,
        keep: int = 3,
        keep_every_steps: int = 0,
        keep_every_minutes: float = 0,
        before_commit: Callable[[], None] = lambda: None,
    ):
        self.folder, self._attempt, self._before_commit = folder, attempt or uuid.uuid4().hex[:12], before_commit
        self._keep, self._keep_every_steps, self._keep_every_minutes = keep, keep_every_steps, keep_every_minutes
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: tuple[int, Future[None]] | None = None
        self._last: int | None = None

    @property
    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, ascending."""
        return complete_steps(self.folder)

    @property
    def last_complete(self) -> int | None:
        """The latest complete step that this process knows of; None: there is none."""
        if self._last is None:
            self._last = max(self.steps, default=None)
        return self._last

    def check_space(self, shapes: TrainState) -> None:
        """Does nothing, since buckets have no size limit."""

    def save(self, step: int, state: TrainState, info: Mapping[str, Any]) -> None:
        """Starts uploading a checkpoint; returns when the state has been copied and may be donated.

        Raises:
          CheckpointError: the previous one could not be written.
        """
        self.wait()
        parts = state_parts(state)
        record = {**info, "step": step, "fingerprint": int(fingerprint(parts)), "time": time.time()}
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), parts)
        self._pending = step, self._threads.submit(self._write, step, shapes, shards.snapshot(parts), record)

    def wait(self) -> None:
        """Waits until the checkpoint being uploaded is complete, in every process.

        Raises:
          CheckpointError: it could not be written, here or in another process.
        """
        if self._pending:
            (step, written), self._pending = self._pending, None
            try:
                written.result()
            except Exception as error:  # of whatever client the store has
                cause = " ".join(str(error).split())[:300]
                last = "" if self._last is None else f"; the last good one is step {self._last}"
                raise CheckpointError(
                    f"{self.folder}: checkpoint {step} could not be written ({cause}){last}; run again"
                ) from error
            self._last = step

    def _write(self, step: int, shapes: Any, own: Sequence[shards.ArrayShard], info: Mapping[str, Any]) -> None:
        folder, process = join_path(self.folder, str(step)), jax.process_index()
        error: Exception | None = None
        entries: list[dict[str, Any]] = []
        try:
            entries = shards.write(folder, f"{self._attempt}.{process:05d}", own)
        except Exception as raised:  # raised below, after it was reported to the other processes
            error = raised
        if process:
            self._report(step, process, {"shards": entries, "error": error and str(error)})
            if error is not None:
                raise error
            self._await_commit(step)
            return
        try:
            if error is not None:
                raise error
            for other in range(1, jax.process_count()):
                path = self._report_path(step, other)
                self._poll(functools.partial(exists, path), f"process {other} did not upload its shards")
                report = read_json(path)
                if report["error"]:
                    raise CheckpointError(f"process {other}: {report['error']}")
                entries += report["shards"]
            self._before_commit()
            write_json(join_path(folder, shards.RECORD), shards.record(shapes, entries, info))
        except Exception as raised:
            if jax.process_count() > 1:
                with contextlib.suppress(InputError):  # the store may fail again; the other processes then time out
                    self._report(step, 0, {"shards": [], "error": str(raised)})
            raise
        self._tidy(step)

    def _report_path(self, step: int, process: int) -> str:
        return str(join_path(self.folder, str(step), f"{self._attempt}.{process:05d}.json"))

    def _report(self, step: int, process: int, report: Mapping[str, Any]) -> None:
        write_json(self._report_path(step, process), report)

    def _await_commit(self, step: int) -> None:
        record = join_path(self.folder, str(step), shards.RECORD)

        def is_decided() -> bool:
            if exists(failure := self._report_path(step, 0)):
                raise CheckpointError(f"process 0: {read_json(failure)['error']}")
            if not exists(record):
                return False
            entries = read_json(record)["shards"]  # may still be the record of an earlier attempt
            return bool(entries) and entries[0]["file"].startswith(self._attempt)

        self._poll(is_decided, "process 0 did not commit it")

    @staticmethod
    def _poll(condition: Callable[[], bool], problem: str) -> None:
        deadline = time.monotonic() + _TIMEOUT_SECONDS
        while not condition():
            if time.monotonic() > deadline:
                raise CheckpointError(f"{problem} within {_TIMEOUT_SECONDS:g} s")
            time.sleep(_POLL_SECONDS)

    def _tidy(self, step: int) -> None:
        """Removes old checkpoints and files of killed processes; failures are retried after the next save."""
        with contextlib.suppress(InputError):
            steps = self.steps
            for other in set(steps) - self._preserved(steps) - {step}:
                remove_tree(join_path(self.folder, str(other), shards.RECORD))  # first: the rest is then no checkpoint
                remove_tree(join_path(self.folder, str(other)))
            record = read_json(join_path(self.folder, str(step), shards.RECORD))
            named = {shards.RECORD, *(entry["file"] for entry in record["shards"])}
            for name in remote_tree(self.folder):
                number, _, file = name.partition("/")
                is_checkpoint_file = number.isdigit() and "/" not in file and file.endswith((".bin", ".json"))
                if is_checkpoint_file and (file not in named if number == str(step) else int(number) not in steps):
                    remove_tree(join_path(self.folder, name))

    def _preserved(self, steps: Sequence[int]) -> set[int]:
        preserved = {*steps[-self._keep :]}
        if self._keep_every_steps:
            preserved |= {step for step in steps if step % self._keep_every_steps == 0}
        if self._keep_every_minutes:
            last: float | None = None
            for step in steps:
                written = float((read_info(join_path(self.folder, str(step))) or {}).get("time", 0.0))
                if last is None or written - last >= 60 * self._keep_every_minutes:
                    preserved.add(step)
                    last = written
        return preserved

    def set_aside(self, steps: Sequence[int]) -> None:
        """Moves damaged checkpoints to `checkpoints-damaged`, where they do not count as the latest."""
        if jax.process_index():
            return
        for step in steps:
            target = join_path(f"{self.folder}-damaged", str(step))
            if exists(target):
                target = f"{target}.{uuid.uuid4().hex[:6]}"
            copy_tree(join_path(self.folder, str(step)), target)
            remove_tree(join_path(self.folder, str(step), shards.RECORD))
            remove_tree(join_path(self.folder, str(step)))

    def close(self) -> None:
        """Waits for the checkpoint being uploaded.

        Raises:
          CheckpointError: it could not be written.
        """
        try:
            self.wait()
        finally:
            self._threads.shutdown()


def open_checkpoints(
    folder: str | Path, config: TrainConfig, before_commit: Callable[[], None] = lambda: None
) -> Checkpoints | BucketCheckpoints:
    """The checkpoints of a run, on a disk or in a bucket.

    Args:
      before_commit: of a bucket's: uploads what a checkpoint must not be ahead of.
    """
    retention: dict[str, Any] = {
        "keep": config.keep_checkpoints,
        "keep_every_steps": config.keep_every_steps,
        "keep_every_minutes": config.keep_every_minutes,
    }
    if not is_remote(folder):
        return Checkpoints(folder, **retention)
    attempt = f"{int(multihost_utils.broadcast_one_to_all(np.int32(secrets.randbits(31)))):08x}"
    return BucketCheckpoints(str(folder), attempt=attempt, before_commit=before_commit, **retention)

"""Writes and reads the log files of a training run: `metrics.jsonl`, `samples.jsonl` and `summary.json`."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
from dataclasses import dataclass
import functools
import json
import math
from pathlib import Path
from typing import IO, Any

import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import disk_errors_named, make_folder, open_file, read_json
from diversity_jax.core.json_text import parse_json
from diversity_jax.core.process import TERMINATED, before_sudden_end
from diversity_jax.training.trackers import Outcome, Tracker


class JsonLinesLog:
    """A JSON Lines file to append to, opened by the first `append`, which removes an incomplete last line."""

    def __init__(self, path: Path):
        self._path = path

    @functools.cached_property
    def _file(self) -> IO[str]:
        make_folder(self._path.parent)
        if self._path.exists():
            with open(self._path, "rb+") as file:
                data = file.read()
                file.truncate(data.rfind(b"\n") + 1)
        return open(self._path, "a", encoding="utf-8")

    def append(self, record: Mapping[str, Any]) -> None:
        """Appends a line and flushes it.

        Raises:
          DiskFull: there is no space for it.
        """
        with disk_errors_named(self._path):
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()

    def close(self) -> None:
        if "_file" in vars(self):
            with contextlib.suppress(OSError):  # `append` has reported a full disk
                self._file.close()


class MetricWriter:
    """Appends figures of steps to `metrics.jsonl`, and passes them to trackers.

    Attributes:
      outcome: of the attempt, for the trackers; it has failed unless it says otherwise.
    """

    outcome: Outcome = "failed"

    def __init__(self, folder: Path):
        self._lines = JsonLinesLog(folder / "metrics.jsonl")
        self._trackers: Sequence[Tracker] = ()

    def show_on(self, trackers: Sequence[Tracker]) -> None:
        """Passes figures to these trackers from now on, and closes them at the end."""
        self._trackers = trackers

    def write(self, step: int, figures: Mapping[str, float], *, shown: Mapping[str, float] | None = None) -> None:
        """Writes one line; figures that are not finite become null.

        Args:
          shown: further figures for trackers.
        """
        finite = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        self._lines.append({"step": step, **finite})
        self.show(step, {**figures, **(shown or {})})

    def show(self, step: int, figures: Mapping[str, float]) -> None:
        """Passes figures to the trackers only."""
        for tracker in self._trackers:
            tracker.write(step, figures)

    def __enter__(self) -> "MetricWriter":
        before_sudden_end.append(self._leave)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is KeyboardInterrupt and self.outcome == "failed":
            self.outcome = "interrupted"
        before_sudden_end.remove(self._leave)
        self.close()

    def _leave(self, status: int) -> None:
        self.outcome = "interrupted" if status == TERMINATED else "failed"
        self.close()

    def close(self) -> None:
        """Closes the file and the trackers."""
        self._lines.close()
        for tracker in self._trackers:
            tracker.close(self.outcome)


@dataclass(frozen=True, kw_only=True)
class TrainingLog:
    """The content of a run's `metrics.jsonl`."""

    # [n] ascending, each once: a step's lines are merged, and those that a resumed run wrote again replace others.
    steps: np.ndarray
    columns: Mapping[str, np.ndarray]  # [n] each, by name; NaN where a step has no finite value

    def seen(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of a column where it is finite; empty where there is no such column."""
        values = self.columns.get(name, np.full(len(self.steps), np.nan))
        finite = np.isfinite(values)
        return self.steps[finite], values[finite]

    def components(self, prefix: str, suffix: str = "") -> list[str]:
        """NAME of each column `prefix` NAME `suffix`, such as `loss/` NAME, in the order of the first lines."""
        names = [name for name in self.columns if name.startswith(prefix) and name.endswith(suffix)]
        return [name[len(prefix) : len(name) - len(suffix)] for name in names if len(name) > len(prefix) + len(suffix)]


def read(path: str | Path) -> TrainingLog:
    """Reads `metrics.jsonl`.

    Raises:
      InputError: no such file, or a line is not an object with a step; the message names file and line.
    """
    by_step: dict[int, dict[str, float]] = {}
    names: dict[str, None] = {}
    for line, where in _complete_lines(path):
        record = _record(line, where)
        step = int(record.pop("step"))
        # A resumed run writes again from its checkpoint on: later steps are of the previous attempt.
        while by_step and next(reversed(by_step)) > step:
            by_step.popitem()
        by_step.setdefault(step, {}).update(record)
        names.update(dict.fromkeys(record))
    columns = {name: np.array([record.get(name, np.nan) for record in by_step.values()], float) for name in names}
    return TrainingLog(steps=np.array(list(by_step), float), columns=columns)


def _complete_lines(path: str | Path) -> Iterator[tuple[bytes, str]]:
    """Lines that are not blank, with file and number; the last without a line break is incomplete, and left out."""
    with open_file(path) as file:
        for number, line in enumerate(file, 1):
            if line.endswith(b"\n") and line.strip():
                yield line, f"{path}:{number}"


def _record(line: bytes, where: str) -> dict[str, float]:
    record = parse_json(line, where, remedy="remove the line, or train again")
    step = record.get("step") if isinstance(record, dict) else None
    if not isinstance(step, int) or isinstance(step, bool) or abs(step) >= 2**53:
        raise InputError(f'{where}: expected an object with a whole number "step", as training writes it')
    # A figure that was not finite is null, or text in some writers' files.
    numbers = {name: value for name, value in record.items() if isinstance(value, (int, float))}
    numbers = {name: value for name, value in numbers.items() if not isinstance(value, bool)}
    try:
        return {name: float(value) for name, value in numbers.items()}
    except OverflowError:
        raise InputError(f"{where}: holds a number beyond 1e308; remove the line, or train again") from None


def read_samples(path: Path) -> dict[str, dict[int, str]]:
    """Reads `samples.jsonl`: the model's text by prompt and step, the last of each; empty where there is no such file.

    Raises:
      InputError: a line is invalid; the message names it.
    """
    samples: dict[str, dict[int, str]] = {}
    for line, where in _complete_lines(path) if path.exists() else ():
        try:
            record = parse_json(line, where)
            prompt, step, text = str(record["prompt"]), int(record["step"]), str(record["text"])
        except (ValueError, KeyError, TypeError, OverflowError):
            raise InputError(f"{where}: is not a sample as training writes it; remove the line") from None
        for texts in samples.values():  # later steps are of the previous attempt, as in `read`
            while texts and next(reversed(texts)) > step:
                texts.popitem()
        samples.setdefault(prompt, {})[step] = text
    return {prompt: texts for prompt, texts in samples.items() if texts}


_SUMMARY_KEYS = {"tokens_per_second", "step_seconds", "mfu", "input_wait_share", "goodput"}
_SUMMARY_KEYS |= {"compile_seconds", "host_memory_bytes"}


def read_summary(path: Path) -> dict[str, Any] | None:
    """Reads `summary.json`; None where there is no such file.

    Raises:
      InputError: it is not what training writes.
    """
    if not path.exists():
        return None
    value = read_json(path)
    if not isinstance(value, dict) or not set(value) >= _SUMMARY_KEYS:
        raise InputError(f"{path}: is not a summary as training writes it; remove it")
    return value

"""The log files of a training run, written and read: `metrics.jsonl`, `samples.jsonl` and `summary.json`."""

from collections.abc import Mapping, Sequence
import contextlib
from dataclasses import dataclass
import functools
import json
import math
from pathlib import Path
from typing import IO, Any

import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import full_disk_named, make_folder, open_file, read_json
from diversity_jax.core.json_text import parse_json
from diversity_jax.training.trackers import Tracker


class JsonLinesLog:
    """A JSON Lines file to append to, opened by the first line.

    A last line that a killed run left without its end is removed first.
    """

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
        """Appends a line, at once visible to readers.

        Raises:
          DiskFull: there is no space for it.
        """
        with full_disk_named(self._path):
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()

    def close(self) -> None:
        if "_file" in vars(self):
            with contextlib.suppress(OSError):  # what a full disk left in the buffer was reported by `append`
                self._file.close()


class MetricWriter:
    """Appends figures of a step to `metrics.jsonl`, and hands them to trackers."""

    def __init__(self, folder: Path):
        self._lines = JsonLinesLog(folder / "metrics.jsonl")
        self._trackers: Sequence[Tracker] = ()

    def show_on(self, trackers: Sequence[Tracker]) -> None:
        """From now on hands figures to these trackers too, and closes them at the end."""
        self._trackers = trackers

    def write(self, step: int, figures: Mapping[str, float], *, shown: Mapping[str, float] | None = None) -> None:
        """Writes one line; figures that are not finite become null.

        Args:
          shown: what trackers get besides.
        """
        finite = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        self._lines.append({"step": step, **finite})
        self.show(step, {**figures, **(shown or {})})

    def show(self, step: int, figures: Mapping[str, float]) -> None:
        """Hands figures to the trackers alone."""
        for tracker in self._trackers:
            tracker.write(step, figures)

    def close(self) -> None:
        self._lines.close()
        for tracker in self._trackers:
            tracker.close()


@dataclass(frozen=True, kw_only=True)
class TrainingLog:
    """The content of a run's `metrics.jsonl`."""

    # [n] ascending, each once: figures and held-out losses of a step are merged, and lines that a resumed run wrote
    # again replace the earlier ones.
    steps: np.ndarray
    columns: Mapping[str, np.ndarray]  # [n] each, by name; NaN where a line had no finite value

    def seen(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of the lines that hold a finite `name`; empty where none does."""
        values = self.columns.get(name, np.full(len(self.steps), np.nan))
        finite = np.isfinite(values)
        return self.steps[finite], values[finite]

    def components(self, prefix: str, suffix: str = "") -> list[str]:
        """NAME of each column `prefix` NAME `suffix`, such as `loss/` NAME, in the order they were first written."""
        names = [name for name in self.columns if name.startswith(prefix) and name.endswith(suffix)]
        return [name[len(prefix) : len(name) - len(suffix)] for name in names if len(name) > len(prefix) + len(suffix)]


def read(path: str | Path) -> TrainingLog:
    """Reads `metrics.jsonl`.

    A last line without its line break is left out: its run was killed while writing it, or is writing it now.

    Raises:
      InputError: no such file, or a line that is not an object with a step; the message names file and line.
    """
    by_step: dict[int, dict[str, float]] = {}
    names: dict[str, None] = {}
    with open_file(path) as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n") or not line.strip():
                continue
            record = _record(line, f"{path}:{number}")
            step = int(record.pop("step"))
            # A resumed run writes again from its checkpoint on: lines of later steps were of the attempt before.
            while by_step and next(reversed(by_step)) > step:
                by_step.popitem()
            by_step.setdefault(step, {}).update(record)
            names.update(dict.fromkeys(record))
    columns = {name: np.array([record.get(name, np.nan) for record in by_step.values()], float) for name in names}
    return TrainingLog(steps=np.array(list(by_step), float), columns=columns)


def _record(line: bytes, where: str) -> dict[str, float]:
    record = parse_json(line, where, remedy="remove the line, or train again")
    step = record.get("step") if isinstance(record, dict) else None
    if not isinstance(step, int) or isinstance(step, bool) or abs(step) >= 2**53:
        raise InputError(f'{where}: expected an object with a whole number "step", as training writes it')
    # A loss that was not finite is written as null, or as a word by writers that keep to strict JSON.
    numbers = {name: value for name, value in record.items() if isinstance(value, (int, float))}
    numbers = {name: value for name, value in numbers.items() if not isinstance(value, bool)}
    try:
        return {name: float(value) for name, value in numbers.items()}
    except OverflowError:
        raise InputError(f"{where}: holds a number beyond 1e308; remove the line, or train again") from None


def read_samples(path: Path) -> dict[str, dict[int, str]]:
    """Reads `samples.jsonl`: the model's text by prompt and step; empty where there is no such file.

    Of a step that was repeated after a kill the last line counts; a last line without its line break is left out.

    Raises:
      InputError: a line is broken; the message names it.
    """
    samples: dict[str, dict[int, str]] = {}
    if not path.exists():
        return samples
    with open_file(path) as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                continue
            try:
                record = parse_json(line, f"{path}:{number}")
                samples.setdefault(str(record["prompt"]), {})[int(record["step"])] = str(record["text"])
            except (ValueError, KeyError, TypeError, OverflowError):
                raise InputError(f"{path}:{number}: is not a sample as training writes it; remove the line") from None
    return {prompt: dict(sorted(texts.items())) for prompt, texts in samples.items()}


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

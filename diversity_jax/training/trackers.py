"""Experiment trackers of a run: TensorBoard, Weights & Biases and MLflow, behind one interface.

A tracker receives the figures of `metrics.jsonl`, each component's share of the rows so far, and once the shares and
scores of the mixture. Nothing leaves the machine unless `train.trackers` names a tracker that sends it.
"""

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
import importlib.util
import logging
import math
import os
from pathlib import Path
import queue
import secrets
import threading
import time
from typing import Any, Literal

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import make_folder, read_json, write_json
from diversity_jax.mixtures.mixture import Mixture

log = logging.getLogger(__name__)

Outcome = Literal["finished", "failed", "interrupted"]
"""How an attempt of a run ended; one that was interrupted, by a signal or Ctrl-C, may go on later."""

_CLOSING_SECONDS = 30.0  # for sending the remaining lines when the run ends
_WAITING = 10_000  # most lines waiting to be sent; a run writes one every few seconds
_MLFLOW_BATCH = 100  # MLflow's limit of parameters per request
_MLFLOW_CHARACTERS = 500  # limit of a parameter's value in all versions of MLflow


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """The run that a tracker shows.

    Attributes:
      folder: of the run, with the run's name; trackers write their files into it.
      settings: by dotted name.
      ids: of this run in each tracker, from its first attempt on; new trackers add theirs.
    """

    folder: Path
    settings: Mapping[str, Any]
    ids: dict[str, str]


class Tracker(abc.ABC):
    """Receives a run's figures."""

    @abc.abstractmethod
    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Adds figures of a step."""

    @abc.abstractmethod
    def close(self, outcome: Outcome) -> None:
        """Sends the remaining figures, and how the attempt ended."""


class TensorBoard(Tracker):
    """Event files in the folder `tensorboard`, by clu."""

    def __init__(self, run: TrackedRun):
        import clu.metric_writers

        folder = str(run.folder / "tensorboard")
        self._make: Callable[[], Any] = lambda: clu.metric_writers.SummaryWriter(folder)
        self._writer: Any = None

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        self._writer = self._writer or self._make()  # made with the first figures: a run without any has no folder
        self._writer.write_scalars(step, dict(figures))

    def close(self, outcome: Outcome) -> None:
        if self._writer:
            self._writer.close()


class WeightsAndBiases(Tracker):
    """A run of Weights & Biases, configured by its own variables such as `WANDB_PROJECT` and `WANDB_MODE=offline`."""

    def __init__(self, run: TrackedRun):
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "diversity_jax"),
            name=os.environ.get("WANDB_NAME", run.folder.resolve().name),
            id=run.ids.setdefault("wandb", secrets.token_hex(4)),
            resume="allow",
            dir=str(run.folder),
            config=dict(run.settings),
            settings=wandb.Settings(console="off", silent=True),
        )
        # W&B's own steps may not decrease, but a resumed attempt writes again from its checkpoint on.
        self._run.define_metric("*", step_metric="train/step")

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log({"train/step": step, **figures})

    def close(self, outcome: Outcome) -> None:
        self._run.finish({"finished": 0, "failed": 1, "interrupted": 255}[outcome])  # 255: shown as killed


class MLflow(Tracker):
    """A run of MLflow at `MLFLOW_TRACKING_URI`, by default in the run's folder `mlflow`."""

    def __init__(self, run: TrackedRun):
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        import mlflow

        self._metric = mlflow.entities.Metric
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{run.folder.resolve()}/mlflow/runs.db"
        if uri.startswith("sqlite:///"):
            Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        self._client = mlflow.MlflowClient(uri)
        if id_ := run.ids.get("mlflow"):
            self._id = id_
            self._client.update_run(id_, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "diversity_jax")
        existing = self._client.get_experiment_by_name(name)
        experiment = existing.experiment_id if existing else self._client.create_experiment(name)
        self._id = self._client.create_run(experiment, run_name=run.folder.resolve().name).info.run_id
        run.ids["mlflow"] = self._id
        settings = [mlflow.entities.Param(key, str(value)[:_MLFLOW_CHARACTERS]) for key, value in run.settings.items()]
        for first in range(0, len(settings), _MLFLOW_BATCH):
            self._client.log_batch(self._id, params=settings[first : first + _MLFLOW_BATCH])

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        finite = {name: value if math.isfinite(value) else math.nan for name, value in figures.items()}  # inf: 1.8e308
        self._client.log_batch(self._id, [self._metric(name, value, now, step) for name, value in finite.items()])

    def close(self, outcome: Outcome) -> None:
        status = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}[outcome]
        self._client.set_terminated(self._id, status)


@dataclass(frozen=True, kw_only=True)
class TrackerKind:
    """One kind of tracker.

    Attributes:
      modules: modules that it needs.
      extra: this project's extra that installs them.
      is_remote: whether writes may wait for a network; they are then done in a thread.
    """

    open: Callable[[TrackedRun], Tracker]
    modules: tuple[str, ...]
    extra: str
    is_remote: bool = True


TRACKERS = {
    "tensorboard": TrackerKind(open=TensorBoard, modules=("clu", "tensorflow"), extra="report", is_remote=False),
    "wandb": TrackerKind(open=WeightsAndBiases, modules=("wandb",), extra="wandb"),
    "mlflow": TrackerKind(open=MLflow, modules=("mlflow",), extra="mlflow"),
}
"""Name in `train.trackers` -> kind; a new tracker is added here."""


def check_installed(names: Sequence[str]) -> None:
    """Raises `InputError` where a tracker is unknown or its package is not installed."""
    for name in names:
        if name not in TRACKERS:
            raise InputError(f"train.trackers={name}: is unknown; choose of {', '.join(TRACKERS)}")
        for module in TRACKERS[name].modules:
            if importlib.util.find_spec(module) is None:
                leave_out = "set train.tensorboard=False" if name == "tensorboard" else "leave it out"
                remedy = f"pip install 'diversity_jax[{TRACKERS[name].extra}]', or {leave_out}"
                raise InputError(f"train.trackers={name}: needs the package {module}; {remedy}")


def open_trackers(names: Sequence[str], folder: Path, settings: Mapping[str, Any]) -> list[Tracker]:
    """Opens trackers for the run in a folder; runs of earlier attempts are continued.

    Args:
      settings: nested JSON values.

    Raises:
      InputError: a tracker cannot be opened, such as without its server or a login.
    """
    make_folder(folder)  # trackers write into it before the run's first log line does
    record, settings = folder / "trackers.json", _flat(settings)
    run = TrackedRun(folder=folder, settings=settings, ids=dict(read_json(record)) if record.exists() else {})
    before = dict(run.ids)
    opened: list[Tracker] = []
    try:
        for name in names:
            kind = TRACKERS[name]
            try:
                tracker = kind.open(run)
            except Exception as error:  # of whatever type the library raises
                for other in opened:
                    other.close("failed")
                reason = " ".join(str(error).split())[:300]
                raise InputError(
                    f"train.trackers={name}: cannot be opened ({type(error).__name__}: {reason})"
                ) from error
            opened.append(_ThreadedTracker(name, tracker) if kind.is_remote else tracker)
    finally:
        if run.ids != before:
            write_json(record, run.ids)
    return opened


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested JSON values by dotted name."""
    items = list(value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ())
    if not items:
        return {name: value}
    parts = [_flat(item, f"{name}.{key}" if name else str(key)) for key, item in items]
    return {key: item for part in parts for key, item in part.items()}


class _ThreadedTracker(Tracker):
    """Writes to a tracker in a thread, so that no step waits; after a failure it stops, with one warning."""

    def __init__(self, name: str, tracker: Tracker):
        self._name, self._tracker = name, tracker
        self._lines: queue.Queue[tuple[int, Mapping[str, float]] | Outcome] = queue.Queue(_WAITING)
        self._thread = threading.Thread(target=self._send, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        if self._thread.is_alive():
            try:
                self._lines.put_nowait((step, dict(figures)))
            except queue.Full:
                log.warning("%s: does not keep up; figures of step %d are in metrics.jsonl alone", self._name, step)

    def _send(self) -> None:
        try:
            while not isinstance(line := self._lines.get(), str):
                self._tracker.write(*line)
            self._tracker.close(line)
        except Exception as error:  # a failing tracker must not stop the run
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            log.warning("%s: gets no more of this run (%s); metrics.jsonl has it all", self._name, reason)

    def close(self, outcome: Outcome) -> None:
        if self._thread.is_alive():
            self._lines.put(outcome)
            self._thread.join(_CLOSING_SECONDS)
            if self._thread.is_alive():
                log.warning("%s: did not take everything within %d s", self._name, _CLOSING_SECONDS)


def mixture_figures(mixture: Mixture) -> dict[str, float]:
    """Shares and scores of a mixture's components, as figures of the first step."""
    figures: dict[str, float] = {}
    for part in mixture.as_asked:
        figures[f"mixture/share_asked/{part.name}"] = float(part.share_asked)
        figures[f"mixture/share_granted/{part.name}"] = float(part.share_granted)
        for name in ("effective_clusters", "ratio"):
            for bound, value in (part.decision.get(name) or {}).items():
                ending = "" if bound == "value" else f"_{bound}"
                if value is not None:  # an end of an interval that has no bound
                    figures[f"mixture/{name}{ending}/{part.name}"] = float(value)
    return figures

"""Trains a small run logged to Weights & Biases (offline) or MLflow (a local server), and compares what they recorded.

    pip install 'diversity_jax[wandb,mlflow]'
    python scripts/checks/trackers.py wandb mlflow

Fails where a loss, a share or a score of `metrics.jsonl` and `mixture.json` is missing or differs, or where a resumed
run is shown as another run.
"""

import argparse
from collections.abc import Iterator
import contextlib
import dataclasses
from fractions import Fraction
import json
import math
import os
from pathlib import Path
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from diversity_jax.mixtures.mixture import Mixture
from diversity_jax.model import LLAMA, MeshConfig
from diversity_jax.training.config import OptimizerConfig, TrainConfig
from diversity_jax.training.loop import train
from tests.mixture_folders import build_mixture

_BLOCK_BYTES = 1 << 15
Shown = dict[str, list[tuple[int, float]]]
"""Figure -> (step, value) of every time it was written."""


def run(folder: Path, name: str) -> Path:
    """Two components, one with a score; four steps, and two more in a second attempt."""
    shares = {"web": Fraction(1, 4), "made": Fraction(3, 4)}
    mixture = Mixture.load(build_mixture(folder / "rows", shares, sequence_length=16, documents=60))
    first, second = mixture.components
    decision = {**first.decision, "effective_clusters": {"value": 7.5, "low": 5.0, "high": 9.0}}
    mixture = dataclasses.replace(mixture, components=(dataclasses.replace(first, decision=decision), second))
    model = LLAMA["llama_tiny"](num_layers=1, hidden_size=32, intermediate_size=64, num_heads=2)
    for steps in (4, 6):
        sizes = {"batch_size": 8, "log_every": 2, "eval_batches": 1, "checkpoint_every": 2}
        config = TrainConfig(steps=steps, trackers=(name,), tensorboard=False, allow_changed=("train.steps",), **sizes)
        train(mixture, model, OptimizerConfig(schedule="constant"), config, MeshConfig(), folder / "run")
    return folder / "run"


def shown_by_wandb(folder: Path) -> Shown:
    """What the offline files of Weights & Biases hold; it would sync them with `wandb sync`."""
    from wandb.proto import wandb_internal_pb2

    shown: Shown = {}
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=os.path.getmtime):
        for data in _log_records(path.read_bytes()):
            record = wandb_internal_pb2.Record.FromString(data)
            line = {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            if "train/step" in line:
                step = int(line["train/step"])
                for name, value in line.items():
                    shown.setdefault(name, []).append((step, value))
    return shown


def _log_records(data: bytes) -> Iterator[bytes]:
    """Records of a file in LevelDB's log format behind a header of 7 bytes: blocks of 32 KiB, records in parts."""
    parts, position = b"", 7
    while position + 7 <= len(data):
        if (left := _BLOCK_BYTES - position % _BLOCK_BYTES) < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def shown_by_mlflow(uri: str) -> Shown:
    """What a tracking server holds of the one run there is."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("diversity_jax")
    assert experiment is not None, "no experiment was made"
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED", run.info.status
    assert run.data.params["train.batch_size"] == "8"
    histories = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    return {name: [(point.step, point.value) for point in points] for name, points in histories.items()}


@contextlib.contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """A tracking server on loopback; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = f"sqlite:///{folder}/mlflow.db"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with subprocess.Popen([*command, "--backend-store-uri", store], stdout=subprocess.DEVNULL) as server:
        try:
            _wait(f"http://127.0.0.1:{port}/health")
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


def _wait(url: str) -> None:
    for _ in range(900):
        with contextlib.suppress(OSError), urllib.request.urlopen(url) as answer:
            if answer.status == 200:
                return
        time.sleep(0.5)
    raise SystemExit(f"{url}: no answer in eight minutes")


def check(folder: Path, shown: Shown) -> None:
    """Every figure of the run is there, with its value."""
    for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()):
        step = line.pop("step")
        for name, value in line.items():
            if value is not None:
                near = [there for at, there in shown.get(name, []) if at == step]
                assert any(math.isclose(value, there, rel_tol=1e-6) for there in near), (name, step, value, near)
    assert shown["share/web"][-1] == (6, 0.25), shown["share/web"]
    assert shown["mixture/share_granted/made"][0][1] == 0.75
    assert shown["mixture/effective_clusters/web"][0][1] == 7.5


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trackers", nargs="+", choices=("wandb", "mlflow"))
    os.environ["WANDB_MODE"] = "offline"
    for name in parser.parse_args().trackers:
        with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as servers:
            if name == "mlflow":
                os.environ["MLFLOW_TRACKING_URI"] = servers.enter_context(mlflow_server(Path(scratch)))
            folder = run(Path(scratch), name)
            shown = shown_by_wandb(folder) if name == "wandb" else shown_by_mlflow(os.environ["MLFLOW_TRACKING_URI"])
            check(folder, shown)
        losses = ", ".join(f"{value:.3f} (step {step})" for step, value in shown["loss"])
        print(f"{name}: {len(shown)} figures shown; loss {losses}")


if __name__ == "__main__":
    main()

"""What all trainers of `peers.py` share: flags, reading the rows, and the file of step losses and times.

Needs NumPy alone, so that each peer can run in an environment of its own.
"""

import argparse
from collections.abc import Callable
import json
import os
from pathlib import Path
import resource
import signal
import time
from typing import Any

import numpy as np

DECAYED = ("matrices", "linear", "all")
"""What weight decay applies to: all but norms (ours), neither norms nor embeddings (Levanter), or everything."""


def options(description: str | None) -> argparse.Namespace:
    """The flags that every trainer takes."""
    flags = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--model", type=Path, required=True, help="Hugging Face folder to begin with")
    flags.add_argument("--mixture", type=Path, required=True, help="built mixture of one component")
    flags.add_argument("--output", type=Path, required=True, help="a run that was killed there goes on")
    flags.add_argument("--steps", type=int, default=50)
    flags.add_argument("--batch", type=int, default=8)
    flags.add_argument("--learning-rate", type=float, default=3e-4)
    flags.add_argument("--warmup", type=int, default=0)
    flags.add_argument("--schedule", choices=("constant", "cosine"), default="constant")
    flags.add_argument("--decayed", choices=DECAYED, default="matrices")
    flags.add_argument("--checkpoint-every", type=int, default=25)
    flags.add_argument("--devices", type=int, default=1)
    flags.add_argument("--max-shard-gigabytes", type=float, default=3, help="files of the folder written at the end")
    flags.add_argument("--kill-after", type=int, help="SIGKILL to itself once this step's loss is on disk")
    options = flags.parse_args()
    if options.devices > 1:  # read by JAX when it starts; PyTorch trainers start processes instead
        os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={options.devices}"
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads that spin while they wait would count as CPU time
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    options.output.mkdir(parents=True, exist_ok=True)
    return options


class TrainingRows:
    """The training rows of a mixture's only component, in its order, by memory map: int32 [rows, L + 1]."""

    def __init__(self, mixture: Path):
        (component,) = json.loads((mixture / "mixture.json").read_text())["components"]
        manifest = mixture / component["manifest"]
        described = json.loads(manifest.read_text())
        self.length = described["sequence_length"]
        dtype = np.dtype(described["dtype"]).newbyteorder("<")
        files = [manifest.parent / shard["file"] for shard in described["splits"]["train"]["shards"]]
        self._shards = [np.memmap(file, dtype, "r").reshape(-1, self.length + 1) for file in files]
        self._starts = np.cumsum([0] + [len(shard) for shard in self._shards])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, row: int) -> np.ndarray:
        row %= len(self)
        shard = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._shards[shard][row - self._starts[shard]].astype(np.int32)

    def batch(self, step: int, size: int) -> np.ndarray:
        """Rows of the step that follows `step` finished ones, int32 [size, L + 1]."""
        return np.stack([self[row] for row in range(step * size, (step + 1) * size)])


class Record:
    """`steps.jsonl`: a line for each finished step, with its loss and times; `result.json`: what is measured once."""

    def __init__(self, options: argparse.Namespace):
        self._options = options
        self._file = open(options.output / "steps.jsonl", "a", encoding="utf-8")  # noqa: SIM115 - closed by `finish`
        self._save_seconds: list[float] = []
        self._write({"start": float(os.environ.get("PEERS_STARTED", time.time())), "cpu": 0.0})

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def start(self) -> None:
        """Starts the measured part: the peer has converted the weights that it begins with."""
        self._write({"start": time.time(), "cpu": _cpu_seconds()})

    def step(self, number: int, loss: float, **more: Any) -> None:
        """Writes the line of the number-th step, counted from 1."""
        line = {"step": number, "loss": float(loss), "wall": time.time(), "cpu": _cpu_seconds(), "pid": os.getpid()}
        self._write(line | more)
        if number == self._options.kill_after:
            os.fsync(self._file.fileno())
            os.kill(os.getpid(), signal.SIGKILL)

    def timed(self, save: Callable[..., Any]) -> Callable[..., Any]:
        """The same function; its seconds are recorded as those of a checkpoint."""

        def timed_save(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return save(*args, **kwargs)
            finally:
                self._save_seconds.append(time.perf_counter() - began)

        return timed_save

    def finish(self, *, checkpoint: Path | None, **details: Any) -> None:
        """Writes `result.json`.

        Args:
          checkpoint: of one step; its files are counted.
          details: framework and versions.
        """
        size = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file()) if checkpoint else None
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
        measured = {"peak_bytes": peak, "checkpoint_bytes": size, "save_seconds": self._save_seconds}
        (self._options.output / "result.json").write_text(json.dumps(measured | details))
        self._file.close()


def _cpu_seconds() -> float:
    """User and system time of this process and of those that it has waited for."""
    return sum(os.times()[:4])

"""Where a run's figures go: `metrics.jsonl` always, TensorBoard where asked for, and one aligned line for people."""

from collections.abc import Mapping, Sequence
import errno
import json
import logging
import math
from pathlib import Path
from typing import IO, Any

from diversity_jax.core.errors import InputError
from diversity_jax.training.summary import summary_lines

log = logging.getLogger(__name__)


class MetricWriter:
    """Appends figures of a step to `metrics.jsonl`, and to TensorBoard through clu when `tensorboard` is set.

    A last line that a killed run left without its end is removed first.
    """

    def __init__(self, folder: Path, *, tensorboard: bool):
        folder.mkdir(parents=True, exist_ok=True)
        self._file = open_log(folder / "metrics.jsonl")
        self._tensorboard = _tensorboard(folder / "tensorboard") if tensorboard else None

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Writes one line; figures that are not finite become null."""
        finite = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        append_line(self._file, {"step": step, **finite})
        if self._tensorboard:
            self._tensorboard.write_scalars(step, dict(figures))

    def close(self) -> None:
        """Flushes and closes both."""
        self._file.close()
        if self._tensorboard:
            self._tensorboard.close()


def open_log(path: Path) -> IO[str]:
    """A JSON Lines file to append to; a last line that a killed run left without its end is removed first."""
    if path.exists():
        with open(path, "rb+") as file:
            data = file.read()
            file.truncate(data.rfind(b"\n") + 1)
    return open(path, "a", encoding="utf-8")


def append_line(file: IO[str], record: Mapping[str, Any]) -> None:
    """Appends a line, at once visible to readers.

    Raises:
      InputError: the disk is full.
    """
    try:
        file.write(json.dumps(record) + "\n")
        file.flush()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(f"{file.name}: the disk is full; free space and run again") from None


def _tensorboard(folder: Path) -> Any:
    try:
        import clu.metric_writers
    except ImportError as error:
        raise InputError(
            f"train.tensorboard=True needs clu and TensorFlow ({error}); install them or set it to False"
        ) from None
    return clu.metric_writers.SummaryWriter(str(folder))


def console_line(step: int, steps: int, figures: Mapping[str, float], seconds_left: float) -> str:
    """One aligned line: progress, loss, learning rate, gradient norm, speed, time left."""
    width = len(str(steps))
    return (
        f"step {step:>{width}}/{steps}  loss {figures['loss']:7.4f}  lr {figures['learning_rate']:.2e}  "
        f"|g| {figures['gradient_norm']:6.3f}  {figures['tokens_per_second']:>11,.0f} tokens/s  "
        f"input wait {100 * figures['input_wait_seconds'] / figures['step_seconds']:4.1f} %  "
        f"{format_seconds(seconds_left)} left"
    )


def evaluation_line(step: int, losses: Mapping[str, float]) -> str:
    """Held-out loss of each component."""
    parts = "  ".join(f"{name} {value:.4f}" for name, value in losses.items())
    return f"held-out loss at step {step}: {parts}"


def format_seconds(seconds: float) -> str:
    """`3 s`, `4 min 10 s`, `2 h 05 min`, `3 d 4 h`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    if seconds < 86400:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
    return f"{seconds // 86400} d {seconds % 86400 // 3600} h"


def window_figures(records: Sequence[Mapping[str, Any]], components: Sequence[str]) -> dict[str, float]:
    """Figures of a logging window from the steps' own: token-weighted losses, means, and tokens of each component.

    Args:
      records: one a step, on the host: `component_loss_sum` and `component_tokens` [C], `gradient_norm`,
        `learning_rate`.
      components: names, in the order of the arrays.
    """
    losses = sum(record["component_loss_sum"] for record in records)
    tokens = sum(record["component_tokens"] for record in records)
    figures = {
        "loss": float(losses.sum() / tokens.sum()),
        "gradient_norm": float(sum(record["gradient_norm"] for record in records) / len(records)),
        "learning_rate": float(records[-1]["learning_rate"]),
        "skipped": float(sum(1 - record["applied"] for record in records)),
    }
    for i, name in enumerate(components):
        figures[f"tokens/{name}"] = float(tokens[i])
        if tokens[i]:
            figures[f"loss/{name}"] = float(losses[i] / tokens[i])
    return figures


def console_summary(result: Any) -> list[str]:
    """How a run ended, in a few lines: `result` is a `TrainingResult`."""
    lines = [f"{'interrupted' if result.interrupted else 'finished'} at step {result.steps}"]
    if result.interrupted:
        lines.append("a checkpoint of this step is saved; run the same command to go on")
    for name, (first, last) in result.held_out.items():
        lines.append(f"held-out loss {name:<12} {first:.4f} -> {last:.4f} nats per token")
    if result.summary:
        lines += summary_lines(result.summary)
    if result.skipped_steps:
        lines.append(f"{result.skipped_steps} updates were skipped: loss or gradient was not finite")
    return lines

"""The page's section on speed: what the log says step by step, and what the last sitting's summary adds."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from diversity_jax.core import formats
from diversity_jax.report import data, page
from diversity_jax.report.figures.curves import Panel
from diversity_jax.report.page import Section
from diversity_jax.report.pages import training_run, training_run_verdict
from diversity_jax.training.log import TrainingLog

_COMPILING = 3.0  # times the median step: a first log window slower than that holds the compilation


def section(log: TrainingLog | None, summary: Mapping[str, Any] | None) -> Section:
    """Speed over the steps, and where the time went."""
    if log is None or not len(log.seen("step_seconds")[0]):
        return page.absent("speed", "Speed", "Nothing has been timed yet: there is no metrics.jsonl with step times.")
    steps, seconds = log.seen("step_seconds")
    caption = (
        "Means over the steps between two log lines. Waiting: the share of a step's time in which the devices "
        "have no batch."
    )
    start = 0.0
    if len(steps) > 2 and seconds[0] > _COMPILING * np.median(seconds):
        start = steps[0]
        caption += f" The first line, {formats.duration(seconds[0])} a step with compilation, is left out."
    wait = np.divide(log.columns.get("input_wait_seconds", np.nan), log.columns["step_seconds"])
    derived = TrainingLog(
        steps=log.steps, columns={**log.columns, "input wait": np.broadcast_to(wait, log.steps.shape)}
    )
    panels = []
    for title, column, form in _PANELS:
        x, y = derived.seen(column)
        if (x > start).any():
            panels.append(Panel(title=title, curve=data.Curve(name=title, x=x[x > start], y=y[x > start]), form=form))
    if "mfu" in log.columns:
        caption += (
            " MFU: model FLOPs over the data sheet's peak of the devices; attention counted over all pairs of tokens."
        )
    return training_run.speed(
        panels, training_run_verdict.speed_sentence(log, start), caption, _figures(summary) if summary else ()
    )


def _tokens_per_second(value: float) -> str:
    return formats.compact(value)


_PANELS = (
    ("Tokens a second", "tokens_per_second", _tokens_per_second),
    ("Time of a step", "step_seconds", formats.duration),
    ("Waiting for input", "input wait", formats.percent),
    ("MFU", "mfu", formats.percent),
)


def gibibytes(size_bytes: float) -> str:
    """A size of memory."""
    return f"{size_bytes / (1 << 30):.2f} GiB"


def _figures(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Figure, value and meaning, of everything the last sitting measured."""
    rows = []
    if summary["mfu"] is not None:
        peak = f"{summary['devices']} x {summary['peak_flops_of_device'] / 1e12:.0f} TFLOP/s"
        rows.append(
            ("MFU", formats.percent(summary["mfu"]), f"6 FLOPs a weight and token, attention over all pairs, of {peak}")
        )
        rows.append(
            ("MFU, causal", formats.percent(summary["mfu_causal"]), "the same with the pairs a causal mask keeps")
        )
    elif summary["tokens_per_second"] is not None:
        why = f"no data sheet gives a peak for {summary['device_kind']!r}; the model work done stands below"
        rows.append(("MFU", "unknown", why))
        work = f"{summary['model_flops_per_second'] / 1e9:,.1f} GFLOP/s"
        rows.append(("Model work", work, "6 FLOPs a weight and token, attention over all pairs"))
    if summary["input_wait_share"] is not None:
        rows.append(
            (
                "Input wait",
                formats.percent(summary["input_wait_share"], 2),
                "of the steps' time: training stood still for a batch",
            )
        )
    reached = summary["goodput"]
    again = (
        f"; {formats.counted(reached['steps_done_again'], 'step')} had to be done again"
        if reached["steps_done_again"]
        else ""
    )
    of = f"of the time of {formats.counted(reached['sittings'], 'sitting')} in steps that count{again}"
    rows.append(("Goodput", formats.percent(reached["share"]), of))
    kept = f"{summary['programs_from_cache']} of {summary['programs']} programs were kept from before"
    rows.append(("Compiling", formats.duration(summary["compile_seconds"]), kept))
    rows.append(("Evaluating", formats.duration(summary["evaluation_seconds"]), "held-out losses and samples"))
    rows.append(
        ("Saving", formats.duration(summary["save_seconds"]), "training stood still while a checkpoint was copied")
    )
    if summary["device_memory_bytes"] is not None:
        rows.append(("Device memory", gibibytes(summary["device_memory_bytes"]), "at most, of the first device"))
    rows.append(("Host memory", gibibytes(summary["host_memory_bytes"]), "at most, of the first process"))
    return rows

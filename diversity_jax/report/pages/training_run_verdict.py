"""What a run comes to, in sentences: the page's headline, and what stands beneath it."""

from collections.abc import Sequence

import numpy as np

from diversity_jax.core import formats
from diversity_jax.report.data import Decision, Share
from diversity_jax.report.page import KeyFigure
from diversity_jax.training.log import TrainingLog

_TAKEN = ("register", "warn", "downweight", "ungated")
_NAMED = 2  # components not simply registered that the headline names


def verdict(decisions: Sequence[Decision], log: TrainingLog | None) -> str:
    """The run in one sentence: what entered the mixture, and what did not and why; without decisions, how the loss
    went.
    """
    if not decisions:
        return loss_sentence(log) if log is not None else "Nothing is known of this run yet."
    taken = [decision for decision in decisions if decision.action in _TAKEN]
    sentence = f"{len(taken)} of {formats.counted(len(decisions), 'component')} registered"
    notable = (("reject", "rejected"), ("downweight", "down-weighted"), ("warn", "with a warning"))
    clauses = [
        _clause(decision, words) for action, words in notable for decision in decisions if decision.action == action
    ]
    if len(clauses) > _NAMED:
        clauses = [*clauses[:_NAMED], f"{formats.counted(len(clauses) - _NAMED, 'other')} not taken as they are"]
    return "; ".join([sentence, *clauses]) + "."


def _clause(decision: Decision, what: str) -> str:
    name = formats.shortened(decision.name, 40)
    if decision.effective_clusters is None:
        return f"{name} {what}: not scored"
    clause = f"{name} {what}: {formats.estimate(decision.effective_clusters, 'effective clusters')}"
    if decision.ratio is None:
        return clause
    reference = (
        "real text" if decision.reference == "real" else formats.shortened(decision.reference or "the reference", 40)
    )
    return f"{clause}, {formats.significant(decision.ratio.value, 2)} of {reference}"


def loss_sentence(log: TrainingLog) -> str:
    """How the loss went, held out where it was measured, else in training."""
    for column, what in (("eval/loss", "Held-out loss"), ("loss", "Training loss")):
        steps, values = log.seen(column)
        if len(values) > 1:
            way = "fell" if values[-1] < values[0] else "rose"
            over = formats.counted(int(steps[-1] - steps[0]), "step")
            return f"{what} {way} from {_loss(values[0])} to {_loss(values[-1])} nats a token over {over}."
        if len(values) == 1:
            return f"{what} is {_loss(values[0])} nats a token at step {formats.count(steps[0])}."
    return "No loss has been written yet."


def _loss(value: float) -> str:
    return f"{value:.2f}"


def lede(decisions: Sequence[Decision], shares: Sequence[Share], log: TrainingLog | None, tokens: float) -> str:
    """What follows from the verdict: loss, tokens, and how exactly the shares were kept."""
    if log is None:
        return "Nothing has been trained on it yet."
    sentences = [loss_sentence(log)] if decisions else []
    if tokens:
        sentences.append(f"{formats.compact(tokens, 'tokens')} were trained on.")
    off = [abs(share.realised - share.granted) for share in shares if share.realised is not None]
    if off:
        points = formats.significant(max(0.01, 100 * max(off)), 2)
        sentences.append(
            f"Every component's share of them lies within {points} percentage points of what the gate granted."
        )
    return " ".join(sentences)


def key_figures(decisions: Sequence[Decision], log: TrainingLog | None, tokens: float) -> tuple[KeyFigure, ...]:
    """The numbers of the first screen."""
    found = []
    if decisions:
        taken = sum(decision.action in _TAKEN for decision in decisions)
        warned = sum(decision.action == "warn" for decision in decisions)
        lowered = sum(decision.action == "downweight" for decision in decisions)
        notes = [f"{lowered} down-weighted"] * bool(lowered) + [f"{warned} with a warning"] * bool(warned)
        found.append(
            KeyFigure(label="Components registered", value=f"{taken} of {len(decisions)}", note=", ".join(notes))
        )
    if log is None:
        return tuple(found)
    for column, label in (("eval/loss", "Held-out loss"), ("loss", "Training loss")):
        steps, values = log.seen(column)
        if len(values):
            note = f"{_loss(values[0])} at step {formats.count(steps[0])}" if len(values) > 1 else "nats a token"
            found.append(KeyFigure(label=label, value=_loss(values[-1]), note=note))
            break
    if tokens:
        found.append(
            KeyFigure(
                label="Trained on",
                value=formats.compact(tokens, "tokens"),
                note=formats.counted(int(log.steps[-1]), "step"),
            )
        )
    speeds, utilisation = log.seen("tokens_per_second")[1], log.seen("mfu")[1]
    if len(speeds):
        note = f"MFU {formats.percent(float(np.median(utilisation)))}" if len(utilisation) else ""
        found.append(KeyFigure(label="Speed", value=formats.compact(float(np.median(speeds)), "tokens/s"), note=note))
    return tuple(found)


def speed_sentence(log: TrainingLog, start: float) -> str:
    """Speed and what it was spent on, over the log lines after step `start`."""
    medians = {}
    for column in ("tokens_per_second", "step_seconds", "input_wait_seconds", "mfu", "mfu_causal"):
        steps, values = log.seen(column)
        if (steps > start).any():
            medians[column] = float(np.median(values[steps > start]))
    said = f"A step took {formats.duration(medians['step_seconds'])} in the median"
    if "tokens_per_second" in medians:
        said += f", {formats.compact(medians['tokens_per_second'], 'tokens')} a second"
    said += "."
    if "mfu" in medians and "mfu_causal" in medians:
        said += (
            f" MFU {formats.percent(medians['mfu'])}; {formats.percent(medians['mfu_causal'])} where only causal "
            "pairs are counted."
        )
    return said

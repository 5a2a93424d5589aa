"""What a study will take, from its configurations alone: tokens, floating-point operations, accelerator hours and judge calls."""

from collections.abc import Mapping
from dataclasses import dataclass

from diversity_jax.study.graph import Step, Store
from diversity_jax.study.recipe import StudyConfig
from diversity_jax.training.throughput import flops_per_token


@dataclass(frozen=True, kw_only=True)
class Need:
    """Of all steps of one kind: how many, how many of them stand, and what the others take."""

    steps: int
    done: int
    tokens: float = 0.0
    flops: float = 0.0
    calls: float = 0.0

    def hours(self, study: StudyConfig) -> float:
        """On the accelerator that the study names, at the utilisation it assumes."""
        return self.flops / (study.peak_flops * study.utilisation) / 3600


def forecast(steps: Mapping[str, Step], store: Store) -> dict[str, Need]:
    """Needs by kind; only steps that are not done count."""
    found: dict[str, Need] = {}
    for key, step in steps.items():
        old = found.get(step.kind, Need(steps=0, done=0))
        done = store.done(key) is not None
        cost = {} if done else _cost(step)
        sums = {name: getattr(old, name) + cost.get(name, 0.0) for name in ("tokens", "flops", "calls")}
        found[step.kind] = Need(steps=old.steps + 1, done=old.done + done, **sums)
    return found


def _cost(step: Step) -> dict[str, float]:
    config = step.config
    if step.kind in ("train", "sft"):
        tokens = config.train.steps * config.train.batch_size * config.model.max_length
        return {"tokens": tokens, "flops": tokens * flops_per_token(config.model, config.model.max_length, causal=False)}
    if step.kind == "generate":
        grid, topics = config.grid, config.topics.limit or 0
        whole = topics * grid.generations_per_topic * len(grid.templates) * (1 if grid.mixed else len(config.generators))
        return {"calls": float(grid.documents or whole)} if config.generators else {}
    if step.kind in ("score", "build") and config.judge not in ("offline", "none"):
        corpora = 1 if step.kind == "score" else len(config.mixture.components)
        return {"calls": float(corpora * config.agent.forecast_calls())}
    return {}


def describe(study: StudyConfig, needs: Mapping[str, Need]) -> list[str]:
    """The forecast as lines for the console."""
    lines = [f"{'step':14}{'steps':>7}{'done':>7}{'tokens':>12}{'FLOPs':>12}{'hours':>10}{'LLM calls':>12}"]
    for kind, need in needs.items():
        tokens, flops = (f"{value:.3g}" if value else "-" for value in (need.tokens, need.flops))
        hours = f"{need.hours(study):.3g}" if need.flops else "-"
        calls = f"{need.calls:,.0f}" if need.calls else "-"
        lines.append(f"{kind:14}{need.steps:>7}{need.done:>7}{tokens:>12}{flops:>12}{hours:>10}{calls:>12}")
    total = sum(need.hours(study) for need in needs.values())
    assumed = f"at {study.peak_flops:.3g} FLOP/s peak, {100 * study.utilisation:.0f} % of it reached (assumed)"
    lines.append(f"accelerator hours: {total:.3g} {assumed}")
    return lines

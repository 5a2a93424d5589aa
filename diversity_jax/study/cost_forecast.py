"""Forecasts a study's tokens, floating-point operations, LLM calls and dollars from its configurations alone."""

from collections.abc import Mapping, Sequence
import dataclasses
from dataclasses import dataclass, field
import functools
from typing import Any

from diversity_jax.cluster_agent import AgentConfig, judge_kind
from diversity_jax.cluster_agent.cost_forecast import plan_calls
from diversity_jax.core.errors import InputError
from diversity_jax.corpus import Document
from diversity_jax.llm import PlannedCalls, forecast, parse_model, price_of
from diversity_jax.llm.cost_forecast import CostForecast
from diversity_jax.study.config import Assumed, StudyConfig
from diversity_jax.study.graph import Step, StepStore
from diversity_jax.synthesis.config import GenerateConfig
from diversity_jax.training.throughput import flops_per_token


@dataclass(frozen=True, kw_only=True)
class StepCosts:
    """What the steps of one kind cost.

    Attributes:
      steps: their number.
      done: how many of them are done; the other figures are of those that are not.
      tokens, flops: of training.
      llm: calls, tokens and dollars of language models.
      unpriced: models without a known price, whose dollars are not counted.
    """

    steps: int = 0
    done: int = 0
    tokens: float = 0.0
    flops: float = 0.0
    llm: CostForecast = field(default_factory=CostForecast)
    unpriced: tuple[str, ...] = ()

    def __add__(self, other: "StepCosts") -> "StepCosts":
        sums = {name: value + getattr(other, name) for name, value in vars(self).items()}
        return StepCosts(**sums | {"unpriced": tuple(dict.fromkeys(sums["unpriced"]))})


def costs_by_kind(study: StudyConfig, steps: Mapping[str, Step], store: StepStore) -> dict[str, StepCosts]:
    """The costs of the steps of each kind."""
    by_kind: dict[str, StepCosts] = {}
    for key, step in steps.items():
        is_done = store.done(key) is not None
        costs = StepCosts(steps=1, done=1) if is_done else StepCosts(steps=1) + _cost(step, steps, study.assumed)
        by_kind[step.kind] = by_kind.get(step.kind, StepCosts()) + costs
    return by_kind


def _cost(step: Step, steps: Mapping[str, Step], assumed: Assumed) -> StepCosts:
    config = step.config
    if step.kind in ("train", "sft") and config.model is not None:
        config.model.check_described()
        length, train = _row_tokens(step, steps), config.train
        tokens = train.steps * train.batch_size * length
        if train.epochs is not None:
            tokens = train.epochs * assumed.epoch_tokens
        flops = tokens * flops_per_token(config.model, length, causal=False, lora=train.lora)
        return StepCosts(tokens=tokens, flops=flops)
    if step.kind == "generate":
        return _generation(config, assumed)
    if step.kind in ("score", "second_score", "build") and judge_kind(config.judge).is_llm:
        corpora = 1
        if step.kind == "build":
            corpora = sum(not part.policy.ungated for part in config.mixture.components if part.policy)
        planned = _judging(config.agent, corpora, assumed.document_tokens)
        return _llm(planned, config.judge, config.judge_base_url, config.budget, config.engine.price_share)
    return StepCosts()


def _row_tokens(step: Step, steps: Mapping[str, Step]) -> int:
    """Tokens in a row that a training reads: of its mixture, or, where that is not known, the model's largest context,
    which may be far more.
    """
    config = step.config
    built = [steps[need].config.mixture for need in step.needs if steps[need].kind == "build"]
    for mixture in (config.mixture, *built):
        if mixture is not None:
            return mixture.sequence_length
    return config.model.max_length


def _generation(config: GenerateConfig, assumed: Assumed) -> StepCosts:
    if not config.generators:
        return StepCosts()
    grid = config.grid
    arms = len(grid.templates) * (1 if grid.mixed else len(config.generators))
    calls = grid.documents or (config.topics.limit or 0) * grid.generations_per_topic * arms
    plan = PlannedCalls(
        stage="generate",
        calls=round(calls / len(config.generators)),
        prompt_tokens=assumed.generation_prompt_tokens,
        completion_tokens=config.completion_tokens_expected,
    )
    costs = [
        _llm((plan,), generator.model, generator.base_url, config.budget, config.engine_for(generator).price_share)
        for generator in config.generators
    ]
    return functools.reduce(StepCosts.__add__, costs)


class _AssumedCorpus:
    """A corpus of documents of an assumed length, by which prompts are rendered before the real one is made."""

    def __init__(self, document_tokens: int):
        self._text = "word " * document_tokens

    def sample(self, size: int, *, seed: int) -> Sequence[Document]:
        return [Document(id=str(number), text=f"{number} {self._text}") for number in range(size)]

    def fingerprint(self) -> str:
        return ""


@functools.lru_cache(maxsize=64)
def _judging(agent: AgentConfig, corpora: int, document_tokens: int) -> tuple[PlannedCalls, ...]:
    # A file of criteria may not exist yet; proposing criteria is a small part of the calls.
    without_criteria = dataclasses.replace(agent, criteria=None)
    return tuple(plan_calls([_AssumedCorpus(document_tokens)] * corpora, without_criteria)) if corpora else ()


def _llm(
    planned: Sequence[PlannedCalls], model: str, base_url: str | None, budget: Any, price_share: float
) -> StepCosts:
    try:
        price = price_of(*parse_model(model), base_url, budget).times(price_share)
    except InputError:
        return StepCosts(llm=CostForecast(calls=sum(plan.calls for plan in planned)), unpriced=(model,))
    return StepCosts(llm=forecast(planned, price, budget))


def describe(study: StudyConfig, by_kind: Mapping[str, StepCosts]) -> list[str]:
    """The forecast as lines of text."""
    head = ("step", "steps", "done", "tokens", "FLOPs", "LLM calls", "LLM tokens", "dollars")
    row = "{:14}{:>7}{:>7}{:>10}{:>10}{:>14}{:>12}{:>12}"
    lines = [row.format(*head)]
    total = functools.reduce(StepCosts.__add__, by_kind.values(), StepCosts())
    for kind, costs in (*by_kind.items(), ("all", total)):
        tokens, flops, llm_tokens = (f"{n:.3g}" if n else "-" for n in (costs.tokens, costs.flops, costs.llm.tokens))
        calls, dollars = (f"{n:,.0f}" if n else "-" for n in (costs.llm.calls, costs.llm.dollars))
        lines.append(row.format(kind, costs.steps, costs.done, tokens, flops, calls, llm_tokens, dollars))
    assumed = study.assumed
    if total.flops:
        hours = "; ".join(f"{machine.hours(total.flops):.3g} hours of {machine.name}" for machine in assumed.machines)
        shares = ", ".join(f"{machine.name} {machine.utilisation:.0%}" for machine in assumed.machines)
        lines.append(f"{hours}, if training reaches of the peak: {shares}")
    if total.llm.tokens:
        document, prompt = assumed.document_tokens, assumed.generation_prompt_tokens
        lines.append(f"LLM tokens assume documents of {document:,} tokens and generation prompts of {prompt:,}")
    if total.unpriced:
        lines.append(f"no price is known for {', '.join(total.unpriced)}; dollars leave them out")
    return lines

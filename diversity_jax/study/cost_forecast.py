"""What a study will take, from its configurations alone: tokens, floating-point operations, accelerator hours, LLM
calls and dollars.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from dataclasses import dataclass
import functools
from typing import Any

from diversity_jax.cluster_agent import AgentConfig
from diversity_jax.cluster_agent.cost_forecast import plan_calls
from diversity_jax.core.errors import InputError
from diversity_jax.corpus import Document
from diversity_jax.llm import PlannedCalls, forecast, parse_model, price_of
from diversity_jax.study.config import Assumed, StudyConfig
from diversity_jax.study.graph import Step, Store
from diversity_jax.training.flops import flops_per_token


@dataclass(frozen=True, kw_only=True)
class Need:
    """Of all steps of one kind: how many, how many of them stand, and what the others take. `unpriced` names models
    without a price.
    """

    steps: int = 0
    done: int = 0
    tokens: float = 0.0
    flops: float = 0.0
    calls: float = 0.0
    llm_tokens: float = 0.0
    dollars: float = 0.0
    unpriced: tuple[str, ...] = ()

    def __add__(self, other: "Need") -> "Need":
        names = [name for name in vars(self) if name != "unpriced"]
        unpriced = tuple(dict.fromkeys((*self.unpriced, *other.unpriced)))
        return Need(**{name: getattr(self, name) + getattr(other, name) for name in names}, unpriced=unpriced)


def needs(study: StudyConfig, steps: Mapping[str, Step], store: Store) -> dict[str, Need]:
    """Needs by kind; only steps that are not done count."""
    found: dict[str, Need] = {}
    for key, step in steps.items():
        one = Need(steps=1, done=1) if store.done(key) is not None else Need(steps=1) + _cost(step, study.assumed)
        found[step.kind] = found.get(step.kind, Need()) + one
    return found


def _cost(step: Step, assumed: Assumed) -> Need:
    config = step.config
    if step.kind in ("train", "sft"):
        if config.model is None:
            return Need()
        length = config.model.max_length
        steps_tokens = config.train.steps * config.train.batch_size * length
        tokens = steps_tokens if config.train.epochs is None else config.train.epochs * assumed.epoch_tokens
        return Need(tokens=tokens, flops=tokens * flops_per_token(config.model, length, causal=False))
    if step.kind == "generate":
        return _generation(config, assumed)
    if step.kind in ("score", "build") and config.judge not in ("offline", "none"):
        corpora = (
            1
            if step.kind == "score"
            else sum(not part.policy.ungated for part in config.mixture.components if part.policy)
        )
        return _llm(
            _judging(config.agent, corpora, assumed.document_tokens), config.judge, config.judge_base_url, config.budget
        )
    return Need()


def _generation(config: Any, assumed: Assumed) -> Need:
    if not config.generators:
        return Need()
    topics = config.topics.limit or 0
    arms = len(config.grid.templates) * (1 if config.grid.mixed else len(config.generators))
    calls = config.grid.documents or topics * config.grid.generations_per_topic * arms
    found = Need()
    for one in config.generators:
        plan = PlannedCalls(
            stage="generate",
            calls=round(calls / len(config.generators)),
            prompt_tokens=assumed.generation_prompt_tokens,
            completion_tokens=config.completion_tokens_expected,
        )
        found += _llm((plan,), one.model, one.base_url, config.budget)
    return found


class _StandIn:
    """A corpus as long as documents are assumed to be: prompts are rendered from it as they will be from the real
    one.
    """

    def __init__(self, document_tokens: int):
        self._text = "word " * document_tokens

    def sample(self, size: int, *, seed: int) -> Sequence[Document]:
        return [Document(id=str(number), text=f"{number} {self._text}") for number in range(size)]

    def fingerprint(self) -> str:
        return ""


@functools.lru_cache(maxsize=64)
def _judging(agent: AgentConfig, corpora: int, document_tokens: int) -> tuple[PlannedCalls, ...]:
    unwritten = dataclasses.replace(
        agent, criteria=None
    )  # a file of criteria may not be there yet; proposing them is a small part
    return tuple(plan_calls([_StandIn(document_tokens)] * corpora, unwritten)) if corpora else ()


def _llm(planned: Sequence[PlannedCalls], model: str, base_url: str | None, budget: Any) -> Need:
    try:
        price = price_of(*parse_model(model), base_url, budget)
    except InputError:
        return Need(calls=sum(plan.calls for plan in planned), unpriced=(model,))
    whole = forecast(planned, price, budget)
    tokens = whole.prompt_tokens + whole.completion_tokens
    return Need(calls=whole.calls, llm_tokens=tokens, dollars=whole.dollars)


def describe(study: StudyConfig, found: Mapping[str, Need]) -> list[str]:
    """The forecast as lines for the console."""
    lines = [
        f"{'step':14}{'steps':>7}{'done':>7}{'tokens':>10}{'FLOPs':>10}{'LLM calls':>14}{'LLM tokens':>12}{'dollars':>12}"
    ]
    total = functools.reduce(lambda one, other: one + other, found.values(), Need())
    for kind, need in (found | {"all": total}).items():
        amounts = (f"{value:.3g}" if value else "-" for value in (need.tokens, need.flops))
        calls, dollars = (f"{value:,.0f}" if value else "-" for value in (need.calls, need.dollars))
        llm_tokens = f"{need.llm_tokens:.3g}" if need.llm_tokens else "-"
        lines.append(
            f"{kind:14}{need.steps:>7}{need.done:>7}{next(amounts):>10}{next(amounts):>10}{calls:>14}{llm_tokens:>12}{dollars:>12}"
        )
    if total.flops:
        hours = "; ".join(
            f"{machine.hours(total.flops):.3g} hours of {machine.name}" for machine in study.assumed.machines
        )
        reached = ", ".join(f"{machine.name} {machine.utilisation:.0%}" for machine in study.assumed.machines)
        lines.append(f"{hours}, if training reaches of the peak: {reached}")
    if total.llm_tokens:
        lines.append(
            f"LLM tokens assume documents of {study.assumed.document_tokens:,} tokens and generation prompts of "
            f"{study.assumed.generation_prompt_tokens:,}"
        )
    if total.unpriced:
        lines.append(f"no price is known for {', '.join(total.unpriced)}; dollars leave them out")
    return lines

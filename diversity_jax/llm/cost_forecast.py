"""What a run will use up: before its first call from a guess, and later from what its calls have used so far."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
import math
from typing import Any, NamedTuple

from diversity_jax.llm.budget import Amount, BudgetConfig, Price

# A guess counts for as much as so many calls that were seen.
_GUESS_WEIGHT = 4


class Tokens(NamedTuple):
    """Mean tokens of a call."""

    prompt: float
    completion: float


@dataclass(frozen=True, kw_only=True)
class PlannedCalls:
    """Calls of one kind that a run will make: mean tokens over those calls.

    `least` and `most` are what they use with the tersest and the wordiest model; None where nothing is a guess.
    """

    stage: str
    calls: int
    prompt_tokens: float
    completion_tokens: float
    least: Tokens | None = None
    most: Tokens | None = None

    @property
    def tokens(self) -> Tokens:
        """The means."""
        return Tokens(self.prompt_tokens, self.completion_tokens)


@dataclass(kw_only=True)
class Seen:
    """What the calls of one stage have used so far."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a run will use up in all; tokens and dollars also with the tersest and the wordiest model."""

    calls: int
    prompt_tokens: int
    completion_tokens: int
    least_tokens: int
    most_tokens: int
    dollars: float
    least_dollars: float
    most_dollars: float
    passes: str | None  # the cap it would pass

    def to_json(self) -> dict[str, Any]:
        """All fields by name."""
        return dict(vars(self))

    def __str__(self) -> str:
        line = (
            f"{self.calls:,} calls, {self.prompt_tokens:,} prompt + {self.completion_tokens:,} completion tokens, "
            f"${self.dollars:,.2f}"
        )
        if self.least_tokens < self.most_tokens:
            line += f" (between {self.least_tokens:,} and {self.most_tokens:,} tokens"
            line += (
                f", ${self.least_dollars:,.2f} and ${self.most_dollars:,.2f}" * (self.dollars > 0)
                + ", by how much the model writes)"
            )
        return line if self.passes is None else f"{line}; more than budget.{self.passes} allows"


def forecast(planned: Iterable[PlannedCalls], price: Price, config: BudgetConfig) -> Forecast:
    """Adds up planned calls and prices them."""
    planned = list(planned)

    calls = sum(plan.calls for plan in planned)
    prompt_tokens, completion_tokens = _total(planned, [plan.tokens for plan in planned])
    least, most = (
        _total(planned, [getattr(plan, end) or plan.tokens for plan in planned]) for end in ("least", "most")
    )
    dollars = price.cost(prompt_tokens, completion_tokens)
    return Forecast(
        calls=calls,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        least_tokens=sum(least),
        most_tokens=sum(most),
        dollars=dollars,
        least_dollars=price.cost(*least),
        most_dollars=price.cost(*most),
        passes=Amount(dollars, prompt_tokens + completion_tokens, calls).passes(config),
    )


def _total(planned: Sequence[PlannedCalls], means: Sequence[Tokens]) -> tuple[int, int]:
    pairs = list(zip(planned, means, strict=True))
    return round(sum(plan.calls * mean.prompt for plan, mean in pairs)), round(
        sum(plan.calls * mean.completion for plan, mean in pairs)
    )


def reforecast(
    planned: Iterable[PlannedCalls], seen: Mapping[str, Seen], price: Price, config: BudgetConfig
) -> Forecast:
    """The same in the middle of a run: calls done count as what they used, those to come as the mean of their stage so
    far.

    Where a stage has few calls yet its plan still has a say. Where it has none it is the plan's alone, corrected by how
    far the plans of the stages seen were off, since a tokenizer that cuts shorter does so everywhere.
    """
    merged: dict[str, list[PlannedCalls]] = {}
    for plan in planned:
        merged.setdefault(plan.stage, []).append(plan)
    guesses = {stage: _mean(plans) for stage, plans in merged.items()}
    off = _off(guesses, seen)
    revised = []
    for stage, plans in merged.items():
        calls, done = sum(plan.calls for plan in plans), seen.get(stage, Seen())
        left, number = max(calls - done.calls, 0), max(calls, done.calls, 1)
        means = [
            (used + left * (_GUESS_WEIGHT * guess * factor + used) / (_GUESS_WEIGHT + done.calls)) / number
            for used, guess, factor in zip(
                (done.prompt_tokens, done.completion_tokens), guesses[stage], off, strict=True
            )
        ]
        revised.append(PlannedCalls(stage=stage, calls=number, prompt_tokens=means[0], completion_tokens=means[1]))
    return forecast(revised, price, config)


def _mean(plans: Sequence[PlannedCalls]) -> Tokens:
    calls = max(sum(plan.calls for plan in plans), 1)
    return Tokens(*(sum(plan.calls * plan.tokens[part] for plan in plans) / calls for part in range(2)))


def _off(guesses: Mapping[str, Tokens], seen: Mapping[str, Seen]) -> Tokens:
    """What the calls seen used, over what was planned for them; damped while they are few. Of answers its root: who
    writes twice as much as planned in one stage does not do so in all.
    """
    done = [(guesses[stage], one) for stage, one in seen.items() if stage in guesses]
    calls = sum(one.calls for _, one in done)
    factors = []
    for part, name in enumerate(("prompt_tokens", "completion_tokens")):
        planned = sum(one.calls * guess[part] for guess, one in done)
        idle = _GUESS_WEIGHT * planned / max(calls, 1)
        factors.append((sum(getattr(one, name) for _, one in done) + idle) / (planned + idle) if planned else 1.0)
    return Tokens(factors[0], math.sqrt(factors[1]))

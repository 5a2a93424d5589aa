"""What a run will use up: before its first call from a guess, and later from what its calls have used so far."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from diversity_jax.llm.budget import Amount, BudgetConfig, Price

# A guess counts for as much as so many calls that were seen.
_GUESS_WEIGHT = 4


@dataclass(frozen=True, kw_only=True)
class PlannedCalls:
    """Calls of one kind that a run will make: means over those calls, in tokens.

    `least_completion_tokens` and `most_completion_tokens` are what the tersest and the wordiest model would answer; None where
    `completion_tokens` is no guess.
    """

    stage: str
    calls: int
    prompt_tokens: float
    completion_tokens: float
    least_completion_tokens: float | None = None
    most_completion_tokens: float | None = None


@dataclass(kw_only=True)
class Seen:
    """What the calls of one stage have used so far."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a run will use up in all; completion tokens also for the tersest and the wordiest model."""

    calls: int
    prompt_tokens: int
    completion_tokens: int
    least_completion_tokens: int
    most_completion_tokens: int
    dollars: float
    least_dollars: float
    most_dollars: float
    passes: str | None  # the cap it would pass

    def to_json(self) -> dict[str, Any]:
        """All fields by name."""
        return dict(vars(self))

    def __str__(self) -> str:
        line = f"{self.calls:,} calls, {self.prompt_tokens:,} prompt + {self.completion_tokens:,} completion tokens, ${self.dollars:,.2f}"
        if self.least_completion_tokens < self.most_completion_tokens:
            line += f" ({self.least_completion_tokens:,} to {self.most_completion_tokens:,} completion tokens"
            line += f", ${self.least_dollars:,.2f} to ${self.most_dollars:,.2f}" * (self.dollars > 0) + ", by how much the model writes)"
        return line if self.passes is None else f"{line}; more than budget.{self.passes} allows"


def forecast(planned: Iterable[PlannedCalls], price: Price, config: BudgetConfig) -> Forecast:
    """Adds up planned calls and prices them."""
    planned = list(planned)

    def total(name: str) -> int:
        known = ((plan.calls, getattr(plan, name)) for plan in planned)
        return round(
            sum(calls * (plan.completion_tokens if mean is None else mean) for (calls, mean), plan in zip(known, planned, strict=True))
        )

    calls, prompt_tokens, completion_tokens = sum(plan.calls for plan in planned), total("prompt_tokens"), total("completion_tokens")
    least, most = total("least_completion_tokens"), total("most_completion_tokens")
    dollars = price.cost(prompt_tokens, completion_tokens)
    return Forecast(
        calls=calls,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        least_completion_tokens=least,
        most_completion_tokens=most,
        dollars=dollars,
        least_dollars=price.cost(prompt_tokens, least),
        most_dollars=price.cost(prompt_tokens, most),
        passes=Amount(dollars, prompt_tokens + completion_tokens, calls).passes(config),
    )


def reforecast(planned: Iterable[PlannedCalls], seen: Mapping[str, Seen], price: Price, config: BudgetConfig) -> Forecast:
    """The same in the middle of a run: calls done count as what they used, those to come as the mean of their stage so far.

    Where a stage has few calls yet its plan still has a say, and where it has none it is the plan's alone.
    """
    merged: dict[str, list[PlannedCalls]] = {}
    for plan in planned:
        merged.setdefault(plan.stage, []).append(plan)
    revised = []
    for stage, plans in merged.items():
        calls, done = sum(plan.calls for plan in plans), seen.get(stage, Seen())
        left = max(calls - done.calls, 0)

        def in_all(name: str, plans=plans, calls=calls, done=done, left=left) -> float:
            guess = sum(plan.calls * getattr(plan, name) for plan in plans) / max(calls, 1)
            used = getattr(done, name)
            return used + left * (_GUESS_WEIGHT * guess + used) / (_GUESS_WEIGHT + done.calls)

        number = max(calls, done.calls, 1)
        prompt_tokens, completion_tokens = in_all("prompt_tokens") / number, in_all("completion_tokens") / number
        revised.append(PlannedCalls(stage=stage, calls=number, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens))
    return forecast(revised, price, config)

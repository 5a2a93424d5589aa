"""Prices of models, amounts used by calls, and the caps on a run."""

from collections.abc import Iterable
from dataclasses import dataclass, field
import functools
import ipaddress
import math
from pathlib import Path
import re
from typing import NamedTuple
import urllib.parse

from diversity_jax.core.config import ADDED, check_kinds
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import read_json
from diversity_jax.core.formats import counted
from diversity_jax.llm.providers.registry import PROVIDERS
from diversity_jax.llm.types import Outcome, Request, Schema

SHIPPED_PRICES = Path(__file__).with_name("prices.json")
# Tokens that chat templates and the wrapping of a schema add.
_OVERHEAD_TOKENS = 64
_ANSWERS_TO_ESTIMATE_FROM = 5
# A date or number that pins a version of a model; its price is that of the name without it.
_PINNED = re.compile(r"(-\d{4}-\d{2}-\d{2}|-\d{3}|-latest|@\d+)$")


@dataclass(frozen=True, kw_only=True)
class BudgetConfig:
    """Caps on the use of a run, over all its restarts; None is no cap.

    Attributes:
      max_dollars: dollars. A command that is expected to cost something asks for a cap, or for `unlimited`.
      unlimited: allow a paid run without a cap.
      max_tokens: prompt and completion tokens together.
      max_calls: requests sent, the failed ones too.
      unpriced: allow a model whose price is not known; its dollars count as zero.
      prices: path of a price table like the shipped `prices.json`, which it takes precedence over.
      input_price, output_price: dollars per million prompt and completion tokens of the model; they take precedence
        over tables.
    """

    max_dollars: float | None = None
    unlimited: bool = field(default=False, metadata=ADDED)
    max_tokens: int | None = None
    max_calls: int | None = None
    unpriced: bool = False
    prices: str | None = None
    input_price: float | None = None
    output_price: float | None = None

    def __post_init__(self):
        check_kinds(self, "budget.")
        for name in ("max_dollars", "max_tokens", "max_calls"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise InputError(f"budget.{name}: {value} is no cap; give a number of 0 or more, or None for no cap")
        if self.unlimited and self.capped:
            raise InputError("budget.unlimited: a cap is given too; leave one of them out")
        given = (self.input_price, self.output_price)
        if given != (None, None) and not all(price is not None and 0 <= price < math.inf for price in given):
            raise InputError(f"budget.input_price, output_price: are {given}; give both, in dollars per million tokens")

    @property
    def capped(self) -> bool:
        """Whether there is any cap."""
        return (self.max_dollars, self.max_tokens, self.max_calls) != (None, None, None)


class Amount(NamedTuple):
    """Use of calls."""

    dollars: float = 0.0
    tokens: int = 0
    calls: int = 0

    def plus(self, other: "Amount", times: int = 1) -> "Amount":
        """The sum of this amount and `times` another."""
        dollars, tokens = self.dollars + times * other.dollars, self.tokens + times * other.tokens
        return Amount(dollars, tokens, self.calls + times * other.calls)

    def minus(self, other: "Amount") -> "Amount":
        return self.plus(other, -1)

    def passes(self, config: BudgetConfig) -> str | None:
        """Name of the first cap of `config` that this amount exceeds, or None."""
        # The factor allows for the rounding error of a sum of a million small prices.
        if config.max_dollars is not None and self.dollars > config.max_dollars * (1 + 1e-9):
            return "max_dollars"
        if config.max_tokens is not None and self.tokens > config.max_tokens:
            return "max_tokens"
        return "max_calls" if config.max_calls is not None and self.calls > config.max_calls else None


NOTHING = Amount()


def sum_of(amounts: Iterable[Amount]) -> Amount:
    return functools.reduce(Amount.plus, amounts, NOTHING)


@dataclass(frozen=True, kw_only=True)
class Price:
    """Dollars per million tokens; `cached_input` for prompt tokens from the server's cache, None if it is `input`."""

    input: float
    output: float
    cached_input: float | None = None

    def __post_init__(self):
        # Under a price that is no number no cap would ever be reached.
        if not all(0 <= price < math.inf for price in (self.input, self.output, self.cached_input or 0.0)):
            raise ValueError(f"prices {self.input}, {self.output}, {self.cached_input} are not all 0 or more")

    def cost(self, prompt_tokens: float, completion_tokens: float, cached_tokens: int = 0) -> float:
        """Dollars for one call, `cached_tokens` of whose prompt came from the server's cache."""
        saved = 0.0 if self.cached_input is None else cached_tokens * (self.input - self.cached_input)
        return (prompt_tokens * self.input + completion_tokens * self.output - saved) / 1e6

    def times(self, share: float) -> "Price":
        cached = None if self.cached_input is None else self.cached_input * share
        return Price(input=self.input * share, output=self.output * share, cached_input=cached)


def is_loopback(base_url: str | None) -> bool:
    """Whether an address is on this machine, whose models are free."""
    host = urllib.parse.urlsplit(base_url or "").hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def price_of(provider: str, model: str, base_url: str | None, config: BudgetConfig) -> Price:
    """The price of a model; one on this machine that no table lists is free.

    Raises:
      InputError: no table has the model, and the budget does not allow for that, or caps dollars.
    """
    if config.input_price is not None and config.output_price is not None:
        return Price(input=config.input_price, output=config.output_price)
    family, name = PROVIDERS[provider].price_family, model.removeprefix("models/")
    for path in filter(None, (config.prices, str(SHIPPED_PRICES))):
        prices = _table(path).get(family, {})
        price = prices.get(name) or prices.get(_PINNED.sub("", name))
        if price:
            return price
    remedy = "give budget.input_price and budget.output_price in dollars per million tokens"
    if config.unpriced or is_loopback(base_url):
        if config.max_dollars is None:
            return Price(input=0.0, output=0.0)
        why = f"{provider}:{model} has no price, so dollars cannot be capped"
        raise InputError(f"budget.max_dollars: {why}; {remedy}, or cap budget.max_tokens instead")
    table = f"add it under models.{family} in {config.prices or f'a copy of {SHIPPED_PRICES}'}, named in budget.prices"
    why = f"no price known for {provider}:{model}"
    raise InputError(f"budget: {why}; {remedy}, or {table}, or go on without by budget.unpriced=True")


@functools.cache
def _table(path: str) -> dict[str, dict[str, Price]]:
    content = read_json(path)
    try:
        return {
            family: {
                name: Price(
                    input=float(row["input"]),
                    output=float(row["output"]),
                    cached_input=None if row.get("cached_input") is None else float(row["cached_input"]),
                )
                for name, row in models.items()
            }
            for family, models in content["models"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        problem = f"is not a price table ({type(error).__name__}: {error})"
        shape = '{"models": {"openai": {"NAME": {"input": 1.0, "output": 2.0}}}}'
        raise InputError(f"{path}: {problem}; expected {shape} in dollars per million tokens") from None


@dataclass(frozen=True, kw_only=True)
class Reservation:
    """The result of reserving a call.

    Attributes:
      state: `granted` (send it), `answered` (see `response`), `held` (another process has sent the same request),
        `over` (it could exceed a cap).
      response: the answer, where there is one.
      cap: name of that cap in `BudgetConfig`.
      in_flight: whether other calls of the run are in flight, whose end may free budget.
      lost: the part of the run's spending that is the upper bound of lost calls.
    """

    state: str
    response: Outcome | None = None
    cap: str = ""
    in_flight: bool = False
    lost: Amount = NOTHING

    def why(self, caps: BudgetConfig) -> str:
        """Which cap is reached, and how much of it is set aside for lost calls."""
        unit, lost = self.cap.removeprefix("max_"), ""
        if count := self.lost.calls:
            lost = f" ({getattr(self.lost, unit):,} {unit} of it set aside for {counted(count, 'lost call')})"
        cap = f"budget.{self.cap} = {getattr(caps, self.cap):,}"
        return f"the next call could pass {cap}{lost}; raise it and run again to go on"


def largest_use(request: Request, price: Price) -> Amount:
    """Upper bound of one attempt's use.

    A text has at most as many tokens as bytes in every tokenizer in use, and an answer is cut at `max_output_tokens`.
    For English the bound is about four times the use, but it is reserved only while the call is in flight.
    """
    schema_bytes = request.schema.most_bytes if isinstance(request.schema, Schema) else 0
    prompt_tokens = len((request.system + request.user).encode(errors="replace")) + schema_bytes + _OVERHEAD_TOKENS
    return Amount(price.cost(prompt_tokens, request.max_output_tokens), prompt_tokens + request.max_output_tokens, 1)


@dataclass(kw_only=True)
class StageCosts:
    """Statistics of a stage's answers, from which lost attempts are estimated: their number, the largest ratio of a
    prompt's tokens to its upper bound, and the longest answer in tokens.
    """

    answers: int = 0
    prompt_share: float = 0.0
    longest_answer: int = 0


@dataclass(kw_only=True)
class Overrun:
    """By how much answers have exceeded the upper bound of their requests: some servers bill thoughts beside the
    answer, to which the request's limit does not apply. Reservations are multiplied by `factor`, twice the largest
    excess seen.
    """

    factor: float = 1.0

    def learn(self, used: Amount, most: Amount) -> float:
        """Updates `factor` by an answer; returns the ratio by which it has grown."""
        shares = ((used.dollars, most.dollars), (used.tokens, most.tokens))
        seen = 2 * max((part / total for part, total in shares if total > 0), default=0.0)
        grown = max(seen / self.factor, 1.0)
        self.factor *= grown
        return grown


class CallCosts:
    """Bounds and estimates of one call's use, of which lost attempts (sent, but without an answer) have to be
    estimated.

    A lost attempt counts as the largest use that `stage` suggests, and while that has few answers as `most`. Once the
    call is answered each of its lost attempts counts as the same prompt with twice its answer.

    Args:
      stage: shared by all calls of the stage.
      overrun: shared by all calls of the model.

    Attributes:
      allowed: upper bound of one attempt's use where the server keeps to the request's limit.
    """

    def __init__(self, request: Request, price: Price, stage: StageCosts, overrun: Overrun):
        self.allowed = largest_use(request, price)
        self._max_output_tokens, self._overrun = request.max_output_tokens, overrun
        self._most_prompt_tokens = self.allowed.tokens - request.max_output_tokens
        self._price, self._stage = price, stage
        self._lost: list[Amount] = []

    @property
    def most(self) -> Amount:
        """Upper bound of one attempt's use, with the server's `overrun`."""
        factor = self._overrun.factor
        return Amount(self.allowed.dollars * factor, math.ceil(self.allowed.tokens * factor), self.allowed.calls)

    def lose_attempt(self) -> Amount:
        """Adds a lost attempt; returns the use that it counts as."""
        self._lost.append(self._most_lost())
        return self._lost[-1]

    def answered(self, prompt_tokens: int, completion_tokens: int) -> tuple[Amount, Amount]:
        """Adds an answer to `stage`; returns what the lost attempts count as now, and what they counted as before."""
        stage = self._stage
        stage.answers += 1
        stage.prompt_share = max(stage.prompt_share, prompt_tokens / self._most_prompt_tokens)
        stage.longest_answer = max(stage.longest_answer, completion_tokens)
        lost = self._lost
        self._lost = []
        return NOTHING.plus(self._amount(prompt_tokens, 2 * completion_tokens), len(lost)), sum_of(lost)

    def recount(self) -> Amount:
        """Estimates the lost attempts anew by `stage`; returns by how much their use has fallen."""
        before, most = self._lost, self._most_lost()
        self._lost = [min(amount, most) for amount in before]
        return sum_of(before).minus(sum_of(self._lost))

    def _most_lost(self) -> Amount:
        stage, most_prompt = self._stage, self._most_prompt_tokens
        if stage.answers < _ANSWERS_TO_ESTIMATE_FROM:
            return self.most
        prompt_tokens = min(most_prompt, math.ceil(stage.prompt_share * most_prompt))
        return self._amount(prompt_tokens, 2 * stage.longest_answer)

    def _amount(self, prompt_tokens: int, completion_tokens: int) -> Amount:
        completion_tokens = min(completion_tokens, math.ceil(self._max_output_tokens * self._overrun.factor))
        return Amount(self._price.cost(prompt_tokens, completion_tokens), prompt_tokens + completion_tokens, 1)

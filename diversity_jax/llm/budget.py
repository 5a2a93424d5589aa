"""Money: what a call costs, what a run will cost, and the cap it may not pass."""

from dataclasses import dataclass
import functools
import ipaddress
from pathlib import Path
import re
from typing import NamedTuple
import urllib.parse

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import read_json
from diversity_jax.llm.types import Request

SHIPPED_PRICES = Path(__file__).with_name("prices.json")
# Chat templates and the wrapping of a schema add tokens that no text shows.
_OVERHEAD_TOKENS = 64
# Vendors pin a model by a date or a number behind its name; the price is that of the name.
_PINNED = re.compile(r"(-\d{4}-\d{2}-\d{2}|-\d{3}|-latest|@\d+)$")


@dataclass(frozen=True, kw_only=True)
class BudgetConfig:
    """What a run may use up at most, over all its restarts; None is no cap.

    Attributes:
      max_dollars: dollars.
      max_tokens: prompt and completion tokens together.
      max_calls: requests sent, the failed ones too.
      unpriced: go on with a model whose price is not known; its dollars count as zero.
      prices: path of a price table like the shipped `prices.json`; its entries win over the shipped ones.
      input_price, output_price: dollars per million prompt and completion tokens of the model asked, before every
        table.
    """

    max_dollars: float | None = None
    max_tokens: int | None = None
    max_calls: int | None = None
    unpriced: bool = False
    prices: str | None = None
    input_price: float | None = None
    output_price: float | None = None

    def __post_init__(self):
        for name in ("max_dollars", "max_tokens", "max_calls"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise InputError(f"budget.{name}: {value} is no cap; give a number of 0 or more, or None for no cap")
        given = (self.input_price, self.output_price)
        if given != (None, None) and not all(price is not None and price >= 0 for price in given):
            raise InputError(f"budget.input_price, output_price: are {given}; give both, in dollars per million tokens")

    @property
    def capped(self) -> bool:
        """Whether there is any cap."""
        return (self.max_dollars, self.max_tokens, self.max_calls) != (None, None, None)


class Amount(NamedTuple):
    """What calls use up."""

    dollars: float = 0.0
    tokens: int = 0
    calls: int = 0

    def plus(self, other: "Amount") -> "Amount":
        """The sum of both."""
        return Amount(self.dollars + other.dollars, self.tokens + other.tokens, self.calls + other.calls)

    def minus(self, other: "Amount") -> "Amount":
        """What is left without `other`."""
        return Amount(self.dollars - other.dollars, self.tokens - other.tokens, self.calls - other.calls)

    def times(self, number: int) -> "Amount":
        """So many of it."""
        return Amount(self.dollars * number, self.tokens * number, self.calls * number)

    def passes(self, config: BudgetConfig) -> str | None:
        """Name of the first cap of `config` that this amount is above, or None."""
        # Adding a million small prices leaves a rounding error, which is no overspending.
        if config.max_dollars is not None and self.dollars > config.max_dollars * (1 + 1e-9):
            return "max_dollars"
        if config.max_tokens is not None and self.tokens > config.max_tokens:
            return "max_tokens"
        return "max_calls" if config.max_calls is not None and self.calls > config.max_calls else None


NOTHING = Amount()


@dataclass(frozen=True, kw_only=True)
class Price:
    """Dollars per million tokens."""

    input: float
    output: float

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Dollars for one call."""
        return (prompt_tokens * self.input + completion_tokens * self.output) / 1e6


FREE = Price(input=0.0, output=0.0)


def is_loopback(base_url: str | None) -> bool:
    """Whether an address is on this machine, which sends no bill."""
    host = urllib.parse.urlsplit(base_url or "").hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def price_of(provider: str, model: str, base_url: str | None, config: BudgetConfig) -> Price:
    """The price of a model.

    A model on this machine that no table knows is free.

    Raises:
      InputError: no table has the model, and the budget does not say that this is fine, or caps dollars.
    """
    if config.input_price is not None:
        return Price(input=config.input_price, output=config.output_price)
    tables = [_table(config.prices)] if config.prices else []
    family = "gemini" if provider == "google-genai" else provider
    name = model.removeprefix("models/")
    for table in [*tables, _table(str(SHIPPED_PRICES))]:
        prices = table.get(family, {})
        found = prices.get(name) or prices.get(_PINNED.sub("", name))
        if found:
            return found
    here = "give budget.input_price and budget.output_price in dollars per million tokens"
    if config.max_dollars is not None and (config.unpriced or is_loopback(base_url)):
        raise InputError(
            f"budget.max_dollars: {provider}:{model} has no price, so dollars cannot be capped; {here}, or cap "
            "budget.max_tokens instead"
        )
    if config.unpriced or is_loopback(base_url):
        return FREE
    where = config.prices or f"a copy of {SHIPPED_PRICES}"
    raise InputError(
        f"budget: no price known for {provider}:{model}; {here}, or add it under models.{family} in {where} and name "
        "that file in "
        "budget.prices, or set budget.unpriced=True to go on without"
    )


@functools.cache
def _table(path: str) -> dict[str, dict[str, Price]]:
    content = read_json(path)
    try:
        return {
            family: {
                name: Price(input=float(entry["input"]), output=float(entry["output"]))
                for name, entry in models.items()
            }
            for family, models in content["models"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path}: is not a price table ({type(error).__name__}: {error}); "
            f'expected {{"models": {{"openai": {{"NAME": {{"input": 1.0, "output": 2.0}}}}}}}} in dollars per million '
            "tokens"
        ) from None


def most_it_can_use(request: Request, price: Price) -> Amount:
    """Upper bound of what one attempt can use up.

    No tokenizer of the field makes more tokens than a text has bytes, and an answer is cut at its allowed length. The
    bound is loose, about four times for English, but only holds for as long as the call is in flight.
    """
    schema_bytes = 0 if request.schema is None else request.schema.most_bytes
    prompt_tokens = len((request.system + request.user).encode(errors="replace")) + schema_bytes + _OVERHEAD_TOKENS
    return Amount(price.cost(prompt_tokens, request.max_output_tokens), prompt_tokens + request.max_output_tokens, 1)

"""Estimates with intervals, as measurements and files of results hold them, and the quantiles that intervals need."""

from collections.abc import Mapping
from dataclasses import dataclass
import math
from typing import Any, Self

from diversity_jax.core.errors import InputError
from diversity_jax.core.lazy import special_functions

Z95 = 1.959964  # quantile 0.975 of the normal distribution


def t_quantile(probability: float, freedom: float) -> float:
    """Quantile of Student's t."""
    return float(special_functions().stdtrit(freedom, probability))


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value and its interval; an end that is None has no bound, so the other end is a one-sided bound.

    Raises:
      InputError: a number is not finite, or `low` is above `high`.
    """

    value: float
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        for name in ("value", "low", "high"):
            number = getattr(self, name)
            if number is None and name != "value":
                continue
            if not _is_number(number) or not math.isfinite(number):
                raise InputError(f"estimate: {name} is {number!r}; expected a finite number")
        low, high = self.bounds
        if low > high:
            raise InputError(f"estimate: the interval [{low:g}, {high:g}] is upside down; expected low <= high")

    @property
    def bounds(self) -> tuple[float, float]:
        """Both ends as numbers; infinite where there is no bound."""
        return (-math.inf if self.low is None else self.low), (math.inf if self.high is None else self.high)

    def excludes(self, value: float) -> bool:
        """Whether `value` lies outside the interval."""
        low, high = self.bounds
        return value < low or value > high

    def to_json(self) -> dict[str, float | None]:
        """The three numbers by name."""
        return {"value": self.value, "low": self.low, "high": self.high}

    @classmethod
    def from_json(cls, value: Any, where: str) -> Self:
        """Reads what `to_json` wrote.

        Args:
          where: names the value in an error.

        Raises:
          InputError: it is no object with these numbers.
        """
        if not isinstance(value, Mapping) or not _is_number(value.get("value")) or not _is_number(value.get("low")):
            raise InputError(f"{where}: expected an object with numbers `value`, `low` and `high` (or null)")
        if value.get("high") is not None and not _is_number(value["high"]):
            raise InputError(f"{where}.high: is {value['high']!r}; expected a number or null")
        return cls(value=value["value"], low=value["low"], high=value.get("high"))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

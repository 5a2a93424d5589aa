"""Which of several corpora differ in diversity, decided with an error rate that holds over all pairs together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import itertools
from typing import Any

from diversity_jax.cluster_agent import Comparison, Scorecard, compare
from diversity_jax.core import formats
from diversity_jax.report.html import Html, columns, element, joined, table
from diversity_jax.report.page import Section, named
from diversity_jax.report.style import Palette

_ALPHA = 0.05


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Two corpora and what their comparison says; `found` is None where they were not measured by one ruler."""

    first: str
    second: str
    found: Comparison | None

    @property
    def ratio(self) -> float | None:
        """Effective clusters of the first over those of the second."""
        return self.found and self.found.ratio

    @property
    def higher(self) -> str | None:
        """Name of the more diverse corpus, where that is decided."""
        return {"a": self.first, "b": self.second}.get(self.found.higher or "") if self.found else None

    @property
    def text(self) -> str:
        """The ratio with its interval."""
        if self.found is None:
            return "\u2013"
        low = "0" if self.found.low is None else formats.significant(self.found.low)
        high = "no upper bound" if self.found.high is None else formats.significant(self.found.high)
        return f"{formats.significant(self.found.ratio)} [{low}, {high}]"

    def to_json(self) -> dict[str, Any]:
        """The pair, the more diverse one where decided, and the comparison."""
        return {
            "first": self.first,
            "second": self.second,
            "more_diverse": self.higher,
            "comparison": self.found and self.found.to_json(),
        }

    def __str__(self) -> str:
        return f"{self.first} against {self.second}: {self.found or 'not comparable, different rulers'}"


def find_differences(cards: Mapping[str, Scorecard], alpha: float = _ALPHA) -> list[Difference]:
    """Every pair, at a level that makes all of them together err at most at `alpha` (Bonferroni).

    For runs whose size was fixed beforehand; a run that stopped at a decision brings its own comparison.
    """
    pairs = list(itertools.combinations(cards, 2))
    found = []
    for first, second in pairs:
        alike = cards[first].ruler == cards[second].ruler
        comparison = compare(cards[first], cards[second], alpha=alpha / len(pairs)) if alike else None
        found.append(Difference(first=first, second=second, found=comparison))
    return found


def section(differences: Sequence[Difference], palette: Palette) -> Section:
    """The table of which differences are decided."""
    rows = []
    for one in differences:
        if one.found is None:
            decision: Html | str = "not comparable: different rulers"
        elif one.higher is None:
            decision = "not decided"
        else:
            decision = joined(named(one.higher, palette), " is more diverse")
        rows.append((named(one.first, palette), named(one.second, palette), one.text, decision))
    titles = columns("First", "Second", "#Ratio of effective clusters", "Decision")
    intro = f"A difference is decided where the interval of the ratio leaves out 1. {_error_note(differences)}"
    return Section(
        anchor="comparison",
        title="Which differences are decided",
        body=joined(element("p", intro), table(titles, rows)),
    )


def _error_note(differences: Sequence[Difference]) -> str:
    found = [one.found for one in differences if one.found]
    if len(found) == 1 and found[0].looks > 1:
        [one] = found
        return (
            f"The run was to stop at the first of {one.looks} looks that decides, and took {one.look}; the interval "
            "is that look's own, "
            f"and all looks together err at most {formats.percent(one.alpha, 0)} of the time."
        )
    if len(differences) > 1:
        number = formats.counted(len(differences), "comparison")
        return f"The intervals are widened for {number}, so that all together err at most 5 times in 100."
    return f"The comparison errs at most {formats.percent(found[0].alpha if found else _ALPHA, 0)} of the time."

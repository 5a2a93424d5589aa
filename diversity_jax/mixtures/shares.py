"""From shares asked for to shares granted: what the gate and the stock of text take away, and who gets it.

Everything here is exact arithmetic over what a mixture file records, so that a decision can be repeated from that file.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
import math

from diversity_jax.core.errors import InputError
from diversity_jax.mixtures.config import Component, decimal_fraction
from diversity_jax.mixtures.schedule import exact_shares
from diversity_jax.prepare.manifest import Manifest

_GRID = 100_000
_SCHEDULE_DRIFT_ROWS = 3
"""Rows by which a component may be ahead of its share in a prefix of the mixture (see `schedule.Schedule`)."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What a grant takes into account of one component besides what was asked.

    Attributes:
      factor: of the gate's decision, in [0, 1].
      effective_clusters: measured; None where it was not scored.
      rows: training rows of its parts, each with the part's share of the component: one part unless it is a mixture
        itself.
    """

    factor: float = 1.0
    effective_clusters: float | None = None
    rows: tuple[tuple[Fraction, int], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Stock:
    """Training rows of one part of a component, and what is in them.

    Attributes:
      share: of the component; 1 unless that is a mixture itself.
    """

    share: Fraction
    rows: int
    tokens: int
    documents: int

    @classmethod
    def of(cls, share: Fraction, manifest: Manifest) -> "Stock":
        """As a manifest says."""
        train = manifest.splits["train"]
        return cls(share=share, rows=train.rows, tokens=train.tokens, documents=train.documents)


def grant(
    components: Sequence[Component],
    shares: Sequence[Fraction],
    standings: Sequence[Standing],
    train_rows: int | None = None,
) -> tuple[Fraction, ...]:
    """Shares after gate and limits; they sum to one.

    First `auto` components divide what they ask for together, then every share is multiplied by its factor, then limits
    cut off what goes beyond them. What is taken away goes where the component's `freed_share` says, and cutting is
    repeated until nobody is above a limit.

    Args:
      shares: asked for, exact, summing to one.
      train_rows: rows that training will read; needed where a policy limits epochs.

    Raises:
      InputError: a share that was taken away has nowhere to go, or nothing is left to train on.
    """
    wanted = _divide_auto(components, shares, standings)
    kept = [share * decimal_fraction(round(one.factor, 6)) for share, one in zip(wanted, standings, strict=True)]
    if not any(kept):
        raise InputError("the gate rejected every component; loosen a policy (on_fail='warn') or add text that passes")
    limits = [_limit(component, one, train_rows) for component, one in zip(components, standings, strict=True)]
    untouched = {i for i, one in enumerate(standings) if one.factor == 1 and wanted[i]}
    freed = {i: wanted[i] - kept[i] for i in range(len(wanted)) if wanted[i] != kept[i]}
    granted, why = list(kept), "the gate takes away"
    while True:
        for i, share in freed.items():
            heirs = _heirs(components, i, untouched, share, why)
            total = sum(wanted[heir] for heir in heirs)
            for heir in heirs:
                granted[heir] += share * wanted[heir] / total
        above = [i for i, limit in enumerate(limits) if limit is not None and granted[i] > limit]
        if not above:
            break
        freed = {i: granted[i] - limits[i] for i in above}
        for i in above:
            granted[i] = limits[i]
        untouched -= set(above)
        why = "its limit of epochs takes away"
    return exact_shares(granted)


def row_shares(shares_of: str, shares: Sequence[Fraction], stock: Sequence[Sequence[Stock]]) -> tuple[Fraction, ...]:
    """Shares of rows that give the shares asked for of what `shares_of` counts.

    Rows of text all hold as many tokens, so that a share of rows is one of tokens; rows of conversations nearly so.

    Args:
      shares: asked for, summing to one.
      stock: of each component its parts' stocks; empty for one that is not prepared because nothing of it is taken: it
        counts as the mean of the others do.
    """
    per_row = [_units_per_row(shares_of, parts) if parts else None for parts in stock]
    known = [one for one in per_row if one is not None]
    if not known or len(set(known)) == 1:
        return tuple(shares)
    mean = sum(known) / len(known)
    return exact_shares([share / (mean if one is None else one) for share, one in zip(shares, per_row, strict=True)])


def _units_per_row(shares_of: str, parts: Sequence[Stock]) -> Fraction:
    """What shares count, in a row of a component; its parts are mixed in their own shares of its rows."""
    if shares_of == "epochs":
        return Fraction(1, sum(part.rows for part in parts))
    return sum(
        part.share * Fraction(part.tokens if shares_of == "tokens" else part.documents, part.rows) for part in parts
    )


def train_rows(train_tokens: int | None, sequence_length: int) -> int | None:
    """Rows that training on so many tokens reads."""
    return None if train_tokens is None else -(-train_tokens // sequence_length)


def _divide_auto(
    components: Sequence[Component], shares: Sequence[Fraction], standings: Sequence[Standing]
) -> list[Fraction]:
    """Shares in which the `auto` components of each kind have divided theirs by effective clusters."""
    wanted = list(shares)
    for kind in {component.kind for component in components}:
        pool = [
            i
            for i, component in enumerate(components)
            if component.kind == kind and component.policy.auto and shares[i]
        ]
        clusters = {i: decimal_fraction(round(standings[i].effective_clusters or 0.0, 6)) for i in pool}
        if any(clusters.values()):
            asked = sum(shares[i] for i in pool)
            for i in pool:
                wanted[i] = asked * clusters[i] / sum(clusters.values())
    return wanted


def _limit(component: Component, standing: Standing, train_rows: int | None) -> Fraction | None:
    """The share at which training makes as many epochs of the component as its policy allows; None: no limit."""
    epochs = component.policy.epochs
    if epochs is None or not standing.rows:
        return None
    if train_rows is None:
        raise InputError(
            f"component {component.name!r}: its policy counts epochs; set train_tokens, the tokens training will see"
        )
    allowed = [
        max(Fraction(0), decimal_fraction(epochs) * rows - _SCHEDULE_DRIFT_ROWS) / part
        for part, rows in standing.rows
        if part
    ]
    return Fraction(math.floor(min(allowed) / train_rows * _GRID), _GRID)


def _heirs(components: Sequence[Component], loser: int, untouched: set[int], share: Fraction, why: str) -> list[int]:
    """Who gets a share that component `loser` loses."""
    component = components[loser]
    says = component.policy.freed_share
    same_kind = [i for i in sorted(untouched) if components[i].kind == component.kind]
    heirs = {
        "kind": same_kind,
        "kind_then_all": same_kind or sorted(untouched),
        "all": sorted(untouched),
        "error": [],
    }.get(says)
    if heirs is None:
        heirs = [i for i in sorted(untouched) if components[i].name in component.policy.heirs]
    if not heirs:
        left = ", ".join(components[i].name for i in sorted(untouched)) or "none"
        raise InputError(
            f"component {component.name!r}: {why} {float(share):.4g} of the mixture's tokens, which have nowhere to go "
            f"(freed_share={says!r}; components that could take them: {left}); choose another freed_share, loosen its "
            "policy, or add text"
        )
    return heirs


def part_shares(granted: Sequence[Fraction], standings: Sequence[Standing]) -> list[tuple[Fraction, ...]]:
    """Shares of the parts of each component: its grant divided by the parts' shares of it; one part where it is not a
    mixture itself.
    """
    divided = [[share * part for part, _ in one.rows] or [share] for share, one in zip(granted, standings, strict=True)]
    exact = iter(exact_shares([share for parts in divided for share in parts]))
    return [tuple(next(exact) for _ in parts) for parts in divided]

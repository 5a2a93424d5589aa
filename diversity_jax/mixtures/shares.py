"""Allocates token shares after gating and epoch limits and redistributes what was removed.

All arithmetic is exact and over what a mixture file records, so that shares can be recomputed from that file.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
import math

from diversity_jax.core.errors import InputError
from diversity_jax.mixtures.config import Component, MixtureConfig, decimal_fraction
from diversity_jax.mixtures.schedule import exact_shares

_GRID = 100_000  # limits are rounded down to multiples of 1 / this, which the schedule keeps exactly
_SCHEDULE_DRIFT_ROWS = 3  # more than its share that a component may have in a prefix (see `schedule.Schedule`)


@dataclass(frozen=True, kw_only=True)
class AvailableRows:
    """Training rows of one part of a component, with their tokens and documents.

    Attributes:
      share: of the component; 1 unless that is a mixture itself.
      tokens, documents: None in files older than these fields.
    """

    share: Fraction
    rows: int
    tokens: int | None = None
    documents: int | None = None


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """What allocation needs of one component besides its requested share.

    Attributes:
      factor: that the gate multiplies the share by, in [0, 1].
      effective_clusters: measured; None where it was not scored.
      rows: of its parts: one part unless it is a mixture itself; empty where it was not prepared.
    """

    factor: float = 1.0
    effective_clusters: float | None = None
    rows: tuple[AvailableRows, ...] = ()


def allocate_shares(
    components: Sequence[Component],
    shares: Sequence[Fraction],
    results: Sequence[GateResult],
    train_rows: int | None = None,
) -> tuple[Fraction, ...]:
    """Shares after gate and limits; they sum to one.

    First `auto` components divide the sum of their shares, then every share is multiplied by its factor, then shares
    above a limit are reduced to it. Each component's `freed_share` says which others receive what was removed, and
    reducing is repeated until no component is above its limit.

    Args:
      shares: asked for, exact, summing to one.
      train_rows: that training will read; needed where a policy limits epochs.

    Raises:
      InputError: a removed share has no recipient, or nothing is left to train on.
    """
    wanted = _divide_auto(components, shares, results)
    allocated = [share * decimal_fraction(round(gate.factor, 6)) for share, gate in zip(wanted, results, strict=True)]
    if not any(allocated):
        raise InputError("the gate rejected every component; loosen a policy (on_fail='warn') or add text that passes")
    limits = [_limit(component, gate, train_rows) for component, gate in zip(components, results, strict=True)]
    untouched = {i for i, gate in enumerate(results) if gate.factor == 1 and wanted[i]}
    freed = {i: before - after for i, (before, after) in enumerate(zip(wanted, allocated, strict=True))}
    cause = "the gate takes away"
    while True:
        for i, share in freed.items():
            if not share:
                continue
            recipients = _recipients(components, i, untouched, share, cause)
            total = sum(wanted[recipient] for recipient in recipients)
            for recipient in recipients:
                allocated[recipient] += share * wanted[recipient] / total
        above = {i: limit for i, limit in enumerate(limits) if limit is not None and allocated[i] > limit}
        if not above:
            return exact_shares(allocated)
        freed = {i: allocated[i] - limit for i, limit in above.items()}
        for i, limit in above.items():
            allocated[i] = limit
        untouched -= set(above)
        cause = "its limit of epochs takes away"


def granted_shares(
    config: MixtureConfig, results: Sequence[GateResult]
) -> tuple[tuple[Fraction, ...], list[tuple[Fraction, ...]]]:
    """Requested shares of rows, and those granted to the parts of each component; raises as `allocate_shares`."""
    requested = row_shares(config.shares_of, config.shares_asked(), results)
    rows = train_rows(config.train_tokens, config.sequence_length)
    return requested, part_shares(allocate_shares(config.components, requested, results, rows), results)


def row_shares(shares_of: str, shares: Sequence[Fraction], results: Sequence[GateResult]) -> tuple[Fraction, ...]:
    """Shares of rows that give `shares`, which sum to one, of what `shares_of` counts.

    All rows of text have the same number of tokens, so that a share of rows is one of tokens; rows of conversations
    nearly so. A component that was not prepared counts as the mean of the others.
    """
    per_row = [_units_per_row(shares_of, gate.rows) for gate in results]
    known = [units for units in per_row if units is not None]
    if not known or len(set(known)) == 1:
        return tuple(shares)
    mean = sum(known, Fraction(0)) / len(known)
    return exact_shares(
        [share / (mean if units is None else units) for share, units in zip(shares, per_row, strict=True)]
    )


def _units_per_row(shares_of: str, parts: Sequence[AvailableRows]) -> Fraction | None:
    """Units of what shares count in a row of a component, the mean over its parts; None where they are not known."""
    units = Fraction(0)
    for part in parts:
        count = part.tokens if shares_of == "tokens" else part.documents
        if count is None:
            return None
        units += part.share * Fraction(count, part.rows)
    return Fraction(1, sum(part.rows for part in parts)) if parts and shares_of == "epochs" else units or None


def train_rows(train_tokens: int | None, sequence_length: int) -> int | None:
    """Rows that training on so many tokens reads."""
    return None if train_tokens is None else -(-train_tokens // sequence_length)


def _divide_auto(
    components: Sequence[Component], shares: Sequence[Fraction], results: Sequence[GateResult]
) -> list[Fraction]:
    """Shares in which the `auto` components of each kind divide the sum of theirs by effective clusters."""
    wanted = list(shares)
    for kind in {component.kind for component in components}:
        pool = [i for i, part in enumerate(components) if part.kind == kind and part.policy.auto and shares[i]]
        clusters = {i: decimal_fraction(round(results[i].effective_clusters or 0.0, 6)) for i in pool}
        if any(clusters.values()):
            asked = sum(shares[i] for i in pool)
            for i in pool:
                wanted[i] = asked * clusters[i] / sum(clusters.values())
    return wanted


def _limit(component: Component, gate: GateResult, train_rows: int | None) -> Fraction | None:
    """The share at which training makes as many epochs of the component as its policy allows; None: no limit."""
    epochs = component.policy.epochs
    if epochs is None or not gate.rows:
        return None
    assert train_rows is not None  # `MixtureConfig` refuses such a policy without train_tokens
    allowed = [
        max(Fraction(0), decimal_fraction(epochs) * part.rows - _SCHEDULE_DRIFT_ROWS) / part.share
        for part in gate.rows
        if part.share
    ]
    return Fraction(math.floor(min(allowed) / train_rows * _GRID), _GRID)


def _recipients(
    components: Sequence[Component], loser: int, untouched: set[int], share: Fraction, cause: str
) -> list[int]:
    """The components that receive a share which component `loser` loses."""
    component, candidates = components[loser], sorted(untouched)
    freed_share = component.policy.freed_share
    same_kind = [i for i in candidates if components[i].kind == component.kind]
    named = [i for i in candidates if components[i].name in component.policy.recipients]
    chosen = {"kind": same_kind, "kind_then_all": same_kind or candidates, "all": candidates, "error": []}
    recipients = chosen.get(freed_share, named)
    if not recipients:
        left = ", ".join(components[i].name for i in candidates) or "none"
        raise InputError(
            f"component {component.name!r}: {cause} {float(share):.4g} of the mixture's tokens, which have nowhere to "
            f"go (freed_share={freed_share!r}; components that could take them: {left}); choose another freed_share"
        )
    return recipients


def part_shares(granted: Sequence[Fraction], results: Sequence[GateResult]) -> list[tuple[Fraction, ...]]:
    """Each component's share divided between its parts; a component that is no mixture itself has one part."""
    divided = [
        [share * part.share for part in gate.rows] or [share] for share, gate in zip(granted, results, strict=True)
    ]
    exact = iter(exact_shares([share for parts in divided for share in parts]))
    return [tuple(next(exact) for _ in parts) for parts in divided]

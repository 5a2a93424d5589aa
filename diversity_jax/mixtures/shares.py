"""Allocates token shares after gating and epoch limits and redistributes what was removed.

All arithmetic is exact and over what a mixture file records, so that shares can be recomputed from that file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
import math

from diversity_jax.core.errors import InputError
from diversity_jax.mixtures.config import SHARES_OF, Component, MixtureConfig, decimal_fraction
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
    shares_of: str = "tokens",
) -> tuple[Fraction, ...]:
    """Shares of rows after gate and limits; they sum to one.

    First `auto` components divide the sum of their shares, then every share is multiplied by its factor, then shares
    above a limit are reduced to it. Each component's `freed_share` says which others receive what was removed, and
    reducing is repeated until no component is above its limit. Shares are of what `shares_of` counts until all is
    allocated, so that a share that one component frees is as many tokens, or documents, of another. All rows of text
    have the same number of tokens, so that a share of tokens is one of rows; rows of conversations nearly so.

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
    per_row = _units_of_rows(shares_of, results)
    untouched = {i for i, gate in enumerate(results) if gate.factor == 1 and wanted[i]}
    freed = {
        i: before - after for i, (before, after) in enumerate(zip(wanted, allocated, strict=True)) if before > after
    }

    def recipients(losses: Mapping[int, Fraction], cause: str) -> dict[int, dict[int, Fraction]]:
        """For each component that loses a share, those that receive it, with their parts of it."""
        unit = SHARES_OF.get(shares_of, shares_of)
        lost = {i: f"{cause} {float(share):.4g} of the mixture's {unit}" for i, share in losses.items()}
        chosen = {i: _recipients(components, i, untouched, what) for i, what in lost.items()}
        return {i: {j: wanted[j] / sum(wanted[k] for k in others) for j in others} for i, others in chosen.items()}

    parts = recipients(freed, "the gate takes away")
    while True:
        for i, share in freed.items():
            for j, part in parts[i].items():
                allocated[j] += share * part
        rows = [share / units for share, units in zip(allocated, per_row, strict=True)]
        above = {i: limit for i, limit in enumerate(limits) if limit is not None and rows[i] > limit * sum(rows)}
        if not above:
            return exact_shares(rows)
        untouched -= set(above)
        excess = {i: allocated[i] - limit * per_row[i] * sum(rows) for i, limit in above.items()}
        parts = recipients(excess, "its limit of epochs takes away")
        freed = _above_limits(above, allocated, per_row, parts)
        for i, share in freed.items():
            allocated[i] -= share


def _above_limits(
    limits: Mapping[int, Fraction],
    allocated: Sequence[Fraction],
    per_row: Sequence[Fraction],
    parts: Mapping[int, Mapping[int, Fraction]],
) -> dict[int, Fraction]:
    """What components must lose so that each has its limit of all rows, whose number depends on what they lose.

    Args:
      limits: of rows, by component; parts: who receives what it loses, and which part of it.
    """
    rows = sum((share / units for share, units in zip(allocated, per_row, strict=True)), Fraction(0))
    added = {i: sum(part / per_row[j] for j, part in parts[i].items()) - 1 / per_row[i] for i in limits}
    # After losing a[i] - limit[i] * units[i] * total there are total = rows + sum(loss[i] * added[i]) rows.
    fixed = rows + sum(allocated[i] * added[i] for i in limits)
    total = fixed / (1 + sum(limit * per_row[i] * added[i] for i, limit in limits.items()))
    # Rounded down, so that repeating this ends.
    lowered = {i: Fraction(math.floor(limit * per_row[i] * total * 10**9), 10**9) for i, limit in limits.items()}
    return {i: max(Fraction(0), allocated[i] - share) for i, share in lowered.items()}


def granted_shares(
    config: MixtureConfig, results: Sequence[GateResult], shares_of: str
) -> tuple[tuple[Fraction, ...], list[tuple[Fraction, ...]]]:
    """The shares asked for, and the shares of rows granted to the parts of each component; raises as `allocate_shares`.

    Args:
      shares_of: the configuration's; or `rows`: what was asked for is made shares of rows before any is freed, as in
        files of version 0.1.
    """
    asked, per_row = config.shares_asked(), _units_of_rows(config.shares_of, results)
    if shares_of == "rows" and len(set(per_row)) > 1:
        asked = exact_shares([share / units for share, units in zip(asked, per_row, strict=True)])
    rows = train_rows(config.train_tokens, config.sequence_length)
    return asked, part_shares(allocate_shares(config.components, asked, results, rows, shares_of), results)


def _units_of_rows(shares_of: str, results: Sequence[GateResult]) -> list[Fraction]:
    """Units of what shares count in a row of each component; one that was not prepared counts as the mean of others."""
    per_row = [_units_per_row(shares_of, gate.rows) for gate in results]
    known = [units for units in per_row if units is not None]
    if not known or len(set(known)) == 1:
        return [Fraction(1)] * len(results)
    mean = sum(known, Fraction(0)) / len(known)
    return [mean if units is None else units for units in per_row]


def _units_per_row(shares_of: str, parts: Sequence[AvailableRows]) -> Fraction | None:
    """Units of what shares count in a row of a component, the mean over its parts; None where they are not known."""
    units = Fraction(0)
    for part in parts:
        count = {"tokens": part.tokens, "rows": part.rows}.get(shares_of, part.documents)
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


def _recipients(components: Sequence[Component], loser: int, untouched: set[int], lost: str) -> list[int]:
    """The components that receive the share which component `loser` loses; `lost` says for an error what and why."""
    component, candidates = components[loser], sorted(untouched)
    freed_share = component.policy.freed_share
    same_kind = [i for i in candidates if components[i].kind == component.kind]
    named = [i for i in candidates if components[i].name in component.policy.recipients]
    chosen = {"kind": same_kind, "kind_then_all": same_kind or candidates, "all": candidates, "error": []}
    recipients = chosen.get(freed_share, named)
    if not recipients:
        left = ", ".join(components[i].name for i in candidates) or "none"
        raise InputError(
            f"component {component.name!r}: {lost}, which have nowhere to go "
            f"(freed_share={freed_share!r}; components that could take them: {left}); choose another freed_share"
        )
    return recipients


def part_shares(granted: Sequence[Fraction], results: Sequence[GateResult]) -> list[tuple[Fraction, ...]]:
    """Each component's share divided between its parts; a component that is no mixture itself has one part."""
    divided = [
        [share * part.share for part in gate.rows] or [share] for share, gate in zip(granted, results, strict=True)
    ]
    exact = iter(exact_shares([share for parts in divided for share in parts]))
    return [tuple(next(exact) for _ in parts) for parts in divided]

"""Repeats the decisions of a built mixture: from its file alone, and from its scorecards where they lie beside it.

Needs no corpus, judge, network or prepared rows.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from fractions import Fraction
import math
from pathlib import Path
from typing import Any

from diversity_jax.cluster_agent import Scorecard
from diversity_jax.core.config import from_json
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import exists, join_path, parent_folder, read_json
from diversity_jax.mixtures.config import Component, MixtureConfig
from diversity_jax.mixtures.gate import Decision, Measurement, decide, measure
from diversity_jax.mixtures.mixture import mixture_file
from diversity_jax.mixtures.schedule import read_share
from diversity_jax.mixtures.shares import AvailableRows, GateResult, granted_shares

_TOLERANCE = 1e-9  # figures taken anew from scorecards may differ in their last digits between builds of NumPy


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replayed:
    """One component's share, worked out again.

    Attributes:
      from_scorecards: whether the figures were taken anew from scorecards, too.
    """

    name: str
    share_asked: Fraction
    share_granted: Fraction
    decision: Decision
    from_scorecards: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Recorded:
    """What a mixture file records of one component.

    Attributes:
      measurement: None where it was not scored.
      decision: `action` and `factor`.
      rows: prepared rows of its parts; granted: their shares.
    """

    name: str
    measurement: Measurement | None
    decision: Mapping[str, Any]
    rows: Sequence[AvailableRows]
    granted: tuple[Fraction, ...]

    @classmethod
    def read(cls, value: Mapping[str, Any], granted: Mapping[str, Fraction]) -> "_Recorded":
        contents = value.get("contents", [(None, None)] * len(value["rows"]))  # older files have none
        action, factor = value["decision"]["action"], float(value["decision"]["factor"])
        numbers = [rows for _, rows in value["rows"]] + [number for pair in contents for number in pair]
        if not all(number is None or type(number) is int for number in numbers):
            raise ValueError("rows or contents are no whole numbers")
        if any(rows < 1 for _, rows in value["rows"]) or any(number < 0 for number in numbers if number):
            raise ValueError("rows or contents are no counts")
        return cls(
            name=value["name"],
            measurement=Measurement.from_json(value["measured"]) if value["measured"] else None,
            decision={"action": str(action), "factor": factor},
            rows=[
                AvailableRows(share=read_share(share), rows=rows, tokens=tokens, documents=documents)
                for (share, rows), (tokens, documents) in zip(value["rows"], contents, strict=True)
            ],
            granted=tuple(granted[name] for name in value["parts"]),
        )


def replay(path: str | Path, *, scorecards: bool = True) -> list[Replayed]:
    """Works out every decision and share of a built mixture again and compares them with what its file says.

    Args:
      path: `mixture.json` or the folder that holds it.
      scorecards: also take the figures anew from the scorecards beside it, where they are.

    Raises:
      InputError: a decision or a share came out otherwise, or a scorecard is not the one it rests on; the line names
        it.
    """
    path = mixture_file(path)
    asked, recorded = _read(path)
    names = ["real", *(entry.name for entry in recorded if entry.measurement)] if scorecards else []
    files = {name: join_path(parent_folder(path), "scorecards", f"{name}.json") for name in names}
    saved = {name: Scorecard.load(file) for name, file in files.items() if exists(file)}
    decisions, results = [], []
    for component, entry in zip(asked.components, recorded, strict=True):
        _check_measurement(path, component, entry, saved)
    for component, entry in zip(asked.components, recorded, strict=True):
        decision, before = decide(component, entry.measurement), entry.decision
        if decision.action != before["action"] or not _is_same(decision.factor, before["factor"]):
            raise InputError(
                f"{path}: says {entry.name!r} was decided as {before['action']} x {before['factor']:.6g}, its figures "
                f"give {decision.action} x {decision.factor:.6g}; build the mixture again"
            )
        decisions.append(decision)
        results.append(gate_result(decision, entry.measurement, entry.rows))
    shares, granted = granted_shares(asked, results)
    for entry, parts in zip(recorded, granted, strict=True):
        if entry.granted != parts:
            before_and_after = f"{float(sum(entry.granted)):.6g}, its decisions give {float(sum(parts)):.6g}"
            raise InputError(f"{path}: grants {entry.name!r} {before_and_after}; build the mixture again")
    return [
        Replayed(
            name=entry.name,
            share_asked=share,
            share_granted=sum(parts, Fraction(0)),
            decision=decision,
            from_scorecards=entry.name in saved,
        )
        for entry, share, parts, decision in zip(recorded, shares, granted, decisions, strict=True)
    ]


def _read(path: str | Path) -> tuple[MixtureConfig, list[_Recorded]]:
    """The mixture that was asked for, and what the file records of each of its components."""
    value = read_json(path)
    try:
        asked = from_json(MixtureConfig, value["asked"], f"{path}: asked")
        granted = {part["name"]: read_share(part["share_granted_exact"]) for part in value["components"]}
        recorded = [_Recorded.read(entry, granted) for entry in value["gate"]]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, ZeroDivisionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: records no decisions to replay ({error!r}); build the mixture again") from None
    if [component.name for component in asked.components] != [entry.name for entry in recorded]:
        raise InputError(f"{path}: its decisions are not of the components that were asked for; build it again")
    return asked, recorded


def gate_result(decision: Decision, measurement: Measurement | None, rows: Sequence[AvailableRows]) -> GateResult:
    """What allocation takes into account of a component."""
    clusters = None if measurement is None else measurement.effective_clusters.value
    return GateResult(factor=decision.factor, effective_clusters=clusters, rows=tuple(rows))


def _check_measurement(
    path: str | Path, component: Component, entry: _Recorded, saved: Mapping[str, Scorecard]
) -> None:
    """The figures in the file are those of the scorecards."""
    recorded = entry.measurement
    again = measure(component, saved) if recorded is not None else None
    if recorded is None or again is None:
        return
    problem, scorecard = None, join_path(parent_folder(path), "scorecards", f"{component.name}.json")
    if again.corpus_fingerprint != recorded.corpus_fingerprint:
        problem = f"{scorecard}: is a scorecard of other data than component {component.name!r}"
    elif again.scorecard_hash != recorded.scorecard_hash or again.reference_hashes != dict(recorded.reference_hashes):
        problem = f"{scorecard}: is not the scorecard that the decision on {component.name!r} rests on"
    elif not _is_same(dataclasses.asdict(again), dataclasses.asdict(recorded)):
        problem = f"{path}: the figures of {component.name!r} are not those of its scorecard"
    if problem:
        raise InputError(f"{problem}; build the mixture again")


def _is_same(a: Any, b: Any) -> bool:
    """Equal, but for the last digits of numbers."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return set(a) == set(b) and all(_is_same(a[key], b[key]) for key in a)
    if isinstance(a, float) and isinstance(b, int | float):
        return math.isclose(a, b, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
    return a == b

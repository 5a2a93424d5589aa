"""Repeats the decisions of a built mixture: from its file alone, and from its scorecards where they lie beside it.

Needs no corpus, no judge, no network and no prepared rows; `python -m diversity_jax.mixtures.show` does it, too.
"""

from collections.abc import Mapping
import dataclasses
from fractions import Fraction
import json
import math
from pathlib import Path
from typing import Any

from diversity_jax.cluster_agent import Scorecard
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import read_json
from diversity_jax.corpus import CorpusConfig
from diversity_jax.mixtures.config import Component, GatePolicy, MixtureConfig
from diversity_jax.mixtures.gate import Decision, Measurement, decide, measure
from diversity_jax.mixtures.shares import Standing, Stock, grant, part_shares, row_shares, train_rows
from diversity_jax.prepare.config import Chat, Hygiene

_CLOSE = 1e-9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replayed:
    """One component's grant, worked out again.

    Attributes:
      name, share_asked, share_granted, decision: as the mixture file records them, and as they came out again.
      from_scorecards: whether the figures were taken anew from scorecards, too.
    """

    name: str
    share_asked: Fraction
    share_granted: Fraction
    decision: Decision
    from_scorecards: bool = False


def replay(path: str | Path, *, scorecards: bool = True) -> list[Replayed]:
    """Works out every decision and share of a built mixture again and compares them with what its file says.

    Args:
      path: `mixture.json` or the folder that holds it.
      scorecards: also take the figures anew from the scorecards beside it, where they are.

    Raises:
      InputError: a decision or a share came out otherwise, or a scorecard is not the one it rests on; the line names
        it.
    """
    path = Path(path)
    path = path / "mixture.json" if path.is_dir() else path
    value = read_json(path)
    try:
        asked, gate = config_from_json(value["asked"]), value["gate"]
        measured = [Measurement(**one["measured"]) if one["measured"] else None for one in gate]
        rows = [tuple((Fraction(part), count) for part, count in one["rows"]) for one in gate]
        stock = [_stock(one) for one in gate]
        recorded = [one["decision"] for one in gate]
        granted_before = {part["name"]: Fraction(part["share_granted_exact"]) for part in value["components"]}
        parts = [[(name, granted_before[name]) for name in one["parts"]] for one in gate]
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path}: records no decisions that can be replayed ({error!r}); build the mixture again"
        ) from None
    if [component.name for component in asked.components] != [one["name"] for one in gate]:
        raise InputError(
            f"{path}: its decisions are not of the components that were asked for; build the mixture again"
        )
    cards = _scorecards(path.parent, asked, measured) if scorecards else {}
    _check_measured(path, asked, measured, cards)
    decisions = [decide(component, one) for component, one in zip(asked.components, measured, strict=True)]
    for component, decision, before in zip(asked.components, decisions, recorded, strict=True):
        _check_decision(path, component.name, decision, before)
    shares = row_shares(asked.shares_of, asked.shares_asked(), stock)
    standings = [standing(*one) for one in zip(decisions, measured, rows, strict=True)]
    granted = grant(asked.components, shares, standings, train_rows(asked.train_tokens, asked.sequence_length))
    again = part_shares(granted, standings)
    for component, before, now in zip(asked.components, parts, again, strict=True):
        if [share for _, share in before] != list(now):
            was, gives = (float(sum(found)) for found in ([share for _, share in before], now))
            raise InputError(
                f"{path}: grants {component.name!r} {was:.6g}, its decisions give {gives:.6g}; build the mixture again"
            )
    found = zip(asked.components, shares, again, decisions, strict=True)
    return [
        Replayed(
            name=one.name,
            share_asked=share,
            share_granted=sum(got),
            decision=decision,
            from_scorecards=one.name in cards,
        )
        for one, share, got, decision in found
    ]


def _stock(value: Mapping[str, Any]) -> list[Stock]:
    contents = value.get(
        "contents"
    )  # files of text alone may be older than this record, which changes nothing for them
    if contents is None:
        return []
    found = zip(value["rows"], contents, strict=True)
    return [
        Stock(share=Fraction(part), rows=rows, tokens=tokens, documents=documents)
        for (part, rows), (tokens, documents) in found
    ]


def standing(decision: Decision, measurement: Measurement | None, rows: tuple[tuple[Fraction, int], ...]) -> Standing:
    """What a grant takes into account of a component."""
    clusters = None if measurement is None else measurement.effective_clusters["value"]
    return Standing(factor=decision.factor, effective_clusters=clusters, rows=rows)


def config_from_json(value: Mapping[str, Any]) -> MixtureConfig:
    """The mixture file that `config_to_json` wrote down."""
    components = tuple(
        Component(**{**one, "corpus": CorpusConfig(**one["corpus"]), "policy": GatePolicy(**one["policy"])})
        for one in value["components"]
    )
    ratio = value["real_to_synthetic"]
    hygiene = Hygiene(
        **{name: tuple(one) if isinstance(one, list) else one for name, one in value.get("hygiene", {}).items()}
    )
    ratio, chat = tuple(ratio) if ratio else None, Chat(**value.get("chat", {}))
    return MixtureConfig(
        **{**value, "components": components, "real_to_synthetic": ratio, "hygiene": hygiene, "chat": chat}
    )


def config_to_json(config: MixtureConfig) -> dict[str, Any]:
    """A mixture file as JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def _scorecards(folder: Path, asked: MixtureConfig, measured) -> dict[str, Scorecard]:
    """Scorecards in the mixture's folder of components that were measured, and of the real text pooled."""
    names = [component.name for component, one in zip(asked.components, measured, strict=True) if one]
    paths = {name: folder / "scorecards" / f"{name}.json" for name in [*names, "real"]}
    return {name: Scorecard.load(path) for name, path in paths.items() if path.exists()}


def _check_measured(path: Path, asked: MixtureConfig, measured, cards: Mapping[str, Scorecard]) -> None:
    """The figures in the file are those of the scorecards."""
    for component, recorded in zip(asked.components, measured, strict=True):
        if recorded is None or component.name not in cards:
            continue
        again = measure(component, cards)
        of_card = path.parent / "scorecards" / f"{component.name}.json"
        if again.corpus_fingerprint != recorded.corpus_fingerprint:
            raise InputError(
                f"{of_card}: is a scorecard of other data than component {component.name!r}; score it, then build the "
                "mixture again"
            )
        if again.scorecard_hash != recorded.scorecard_hash or again.reference_hashes != dict(recorded.reference_hashes):
            raise InputError(
                f"{of_card}: is not the scorecard that the decision on {component.name!r} rests on; build the mixture "
                "again"
            )
        if not _same(again.to_json(), recorded.to_json()):
            raise InputError(
                f"{path}: the figures of {component.name!r} are not those of its scorecard; build the mixture again"
            )


def _check_decision(path: Path, name: str, decision: Decision, recorded: Mapping[str, Any]) -> None:
    if decision.action != recorded["action"] or not _same(decision.factor, recorded["factor"]):
        before, now = (
            f"{one} x {factor:.6g}"
            for one, factor in ((recorded["action"], recorded["factor"]), (decision.action, decision.factor))
        )
        raise InputError(
            f"{path}: says {name!r} was decided as {before}, its figures give {now}; build the mixture again"
        )


def _same(a: Any, b: Any) -> bool:
    """Equal, but for the last digits of numbers, which may differ between builds of NumPy."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return set(a) == set(b) and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, float) and isinstance(b, int | float):
        return math.isclose(a, b, rel_tol=_CLOSE, abs_tol=_CLOSE)
    return a == b

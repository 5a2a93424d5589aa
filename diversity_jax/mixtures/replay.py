"""Recomputes the decisions of a built mixture from its file and scorecards, and describes the mixture.

`replay` needs no corpus, judge, network or prepared rows.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from dataclasses import dataclass
from fractions import Fraction
import math
from pathlib import Path
from typing import Any

import numpy as np

from diversity_jax.cluster_agent import Scorecard
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import exists, join_path, parent_folder, read_json
from diversity_jax.core.formats import counted
from diversity_jax.core.json_fields import from_json
from diversity_jax.mixtures.config import Component, MixtureConfig
from diversity_jax.mixtures.gate import Decision, Measurement, decide, measure
from diversity_jax.mixtures.mixture import Mixture, mixture_file
from diversity_jax.mixtures.schedule import Schedule, read_share
from diversity_jax.mixtures.shares import AvailableRows, GateResult, granted_shares
from diversity_jax.mixtures.sources import documents_in
from diversity_jax.prepare.manifest import prepared_tokenizer

_TOLERANCE = 1e-9  # figures recomputed from scorecards may differ in their last digits between builds of NumPy


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """One component's decision and share, recomputed.

    Attributes:
      from_scorecards: whether the figures were recomputed from scorecards, too.
    """

    name: str
    share_asked: Fraction
    share_granted: Fraction
    decision: Decision
    from_scorecards: bool = False


@dataclass(frozen=True, kw_only=True)
class _Recorded:
    """What a mixture file records of one component.

    Attributes:
      measurement: None where it was not scored.
      rows: prepared rows of its parts; granted: their shares.
    """

    name: str
    measurement: Measurement | None
    action: str
    factor: float
    rows: Sequence[AvailableRows]
    granted: tuple[Fraction, ...]

    @classmethod
    def read(cls, value: Mapping[str, Any], granted: Mapping[str, Fraction]) -> "_Recorded":
        """An entry of the file's `gate`.

        Args:
          granted: shares of all parts, by name.
        """
        contents = value.get("contents", [(None, None)] * len(value["rows"]))  # older files have none
        numbers = [rows for _, rows in value["rows"]] + [number for pair in contents for number in pair]
        if not all(number is None or type(number) is int for number in numbers):
            raise ValueError("rows or contents are no whole numbers")
        if any(rows < 1 for _, rows in value["rows"]) or any(number < 0 for number in numbers if number):
            raise ValueError("rows or contents are no counts")
        return cls(
            name=value["name"],
            measurement=Measurement.from_json(value["measured"]) if value["measured"] else None,
            action=str(value["decision"]["action"]),
            factor=float(value["decision"]["factor"]),
            rows=[
                AvailableRows(share=read_share(share), rows=rows, tokens=tokens, documents=documents)
                for (share, rows), (tokens, documents) in zip(value["rows"], contents, strict=True)
            ],
            granted=tuple(granted[name] for name in value["parts"]),
        )


def replay(path: str | Path, *, scorecards: bool = True) -> list[Replayed]:
    """Recomputes every decision and share of a built mixture and compares them with its file.

    Args:
      path: `mixture.json` or its folder.
      scorecards: also recompute the figures from the scorecards in the mixture's folder, as far as they are there.

    Raises:
      InputError: a decision or a share differs, or a scorecard is not the recorded one; the message names it.
    """
    path = mixture_file(path)
    asked, shares_of, recorded = _read(path)
    names = ["real", *(part.name for part in recorded if part.measurement)] if scorecards else []
    files = {name: join_path(parent_folder(path), "scorecards", f"{name}.json") for name in names}
    saved = {name: Scorecard.load(file) for name, file in files.items() if exists(file)}
    decisions, results = [], []
    for component, before in zip(asked.components, recorded, strict=True):
        _check_measurement(path, component, before, saved)
    for component, before in zip(asked.components, recorded, strict=True):
        decision = decide(component, before.measurement)
        if decision.action != before.action or not _is_same(decision.factor, before.factor):
            raise InputError(
                f"{path}: says {before.name!r} was decided as {before.action} x {before.factor:.6g}, its figures "
                f"give {decision.action} x {decision.factor:.6g}; build the mixture again"
            )
        decisions.append(decision)
        results.append(gate_result(decision, before.measurement, before.rows))
    shares, granted = granted_shares(asked, results, shares_of)
    for before, parts in zip(recorded, granted, strict=True):
        if before.granted != parts:
            both = f"{float(sum(before.granted)):.6g}, its decisions give {float(sum(parts)):.6g}"
            raise InputError(f"{path}: grants {before.name!r} {both}; build the mixture again")
    return [
        Replayed(
            name=part.name,
            share_asked=share,
            share_granted=sum(parts, Fraction(0)),
            decision=decision,
            from_scorecards=part.name in saved,
        )
        for part, share, parts, decision in zip(recorded, shares, granted, decisions, strict=True)
    ]


def _read(path: str | Path) -> tuple[MixtureConfig, str, list[_Recorded]]:
    """The mixture's configuration, what its shares count, and what the file records of each of its components."""
    value = read_json(path)
    try:
        asked = from_json(MixtureConfig, value["asked"], f"{path}: asked")
        granted = {part["name"]: read_share(part["share_granted_exact"]) for part in value["components"]}
        recorded = [_Recorded.read(part, granted) for part in value["gate"]]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, ZeroDivisionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: records no decisions to replay ({error!r}); build the mixture again") from None
    if [component.name for component in asked.components] != [part.name for part in recorded]:
        raise InputError(f"{path}: its decisions are not of the components that were asked for; build it again")
    return asked, value.get("shares_of", "rows"), recorded


def gate_result(decision: Decision, measurement: Measurement | None, rows: Sequence[AvailableRows]) -> GateResult:
    """What allocation needs of a component."""
    clusters = None if measurement is None else measurement.effective_clusters.value
    return GateResult(factor=decision.factor, effective_clusters=clusters, rows=tuple(rows))


def _check_measurement(
    path: str | Path, component: Component, before: _Recorded, saved: Mapping[str, Scorecard]
) -> None:
    """Raises InputError if the figures in the file are not those of the scorecards."""
    recorded = before.measurement
    again = measure(component, saved) if recorded is not None else None
    if recorded is None or again is None:
        return
    problem, scorecard = None, join_path(parent_folder(path), "scorecards", f"{component.name}.json")
    if again.corpus_fingerprint != recorded.corpus_fingerprint:
        problem = f"{scorecard}: is a scorecard of other data than component {component.name!r}"
    elif again.scorecard_hash != recorded.scorecard_hash or again.reference_hashes != dict(recorded.reference_hashes):
        problem = f"{scorecard}: is not the scorecard that the decision on {component.name!r} was made from"
    elif not _is_same(dataclasses.asdict(again), dataclasses.asdict(recorded)):
        problem = f"{path}: the figures of {component.name!r} are not those of its scorecard"
    if problem:
        raise InputError(f"{problem}; build the mixture again")


def _is_same(a: Any, b: Any) -> bool:
    """Whether two values of figures are equal up to `_TOLERANCE`."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return set(a) == set(b) and all(_is_same(a[key], b[key]) for key in a)
    if isinstance(a, float) and isinstance(b, int | float):
        return math.isclose(a, b, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
    return a == b


_CONSOLE_CHARACTERS = 300  # shown of each document's part in a row


@dataclass(frozen=True, kw_only=True)
class SampleRow:
    """One row of a mixture, decoded.

    Attributes:
      texts: of its documents or parts of documents, in order; each but the last ends with its document.
      ends_document: whether the last one does, too.
    """

    number: int
    component: str
    texts: tuple[str, ...]
    ends_document: bool


@dataclass(frozen=True, kw_only=True)
class MixtureView:
    """What `show` prints of a built mixture, and its page shows.

    Attributes:
      rows: how many rows realised shares are counted over.
      counts: rows among them of each component with a share, [components].
      replayed: every decision recomputed; empty where the file records none.
      samples: the first rows of each component.
      end_of_text: the token that ends a document, as text.
    """

    mixture: Mixture
    rows: int
    counts: np.ndarray
    replayed: Sequence[Replayed]
    samples: Sequence[SampleRow]
    end_of_text: str

    @property
    def deviation(self) -> float:
        """The largest difference of a component's rows from its granted share of `rows`."""
        granted = np.array([float(component.share_granted) for component in self.mixture.taken]) * self.rows
        return float(np.abs(self.counts - granted).max())

    @property
    def realised(self) -> dict[str, float]:
        """Each component's share of the first `rows` rows, counted as shares are asked for, by name."""
        return self.mixture.counted_shares(
            {part.name: float(count) for part, count in zip(self.mixture.taken, self.counts, strict=True)}
        )

    @property
    def replay_summary(self) -> str:
        """The result of `replay` in one line."""
        if not self.replayed:
            return "decisions: the file records none"
        scored = sum(component.from_scorecards for component in self.replayed)
        from_scorecards = f", {scored} of them from the scorecards beside it" if scored else ""
        return f"decisions: all {len(self.replayed)} repeated from mixture.json{from_scorecards}: the same shares"


def inspect_mixture(folder: str | Path, *, rows: int = 1000, samples: int = 2) -> MixtureView:
    """Reads a built mixture, schedules its first rows and recomputes its decisions.

    Args:
      rows: to count realised shares over; samples: rows of each component to decode.

    Raises:
      InputError: no built mixture there, something in it was changed, or its decisions differ.
    """
    mixture = Mixture.load(folder)
    tokenizer = prepared_tokenizer(mixture.taken[0].prepared)
    owner = Schedule([component.share_granted for component in mixture.taken]).component(np.arange(rows))
    numbers = np.concatenate([np.flatnonzero(owner == i)[:samples] for i in range(len(mixture.taken))])
    decoded = []
    if len(numbers):
        batch = mixture.loader(batch_size=1).rows(numbers)
        for i, (number, row) in enumerate(zip(numbers.tolist(), batch.tokens, strict=True)):
            starts, component = None if batch.starts is None else batch.starts[i], mixture.taken[owner[number]]
            begin_id = component.prepared.begin_of_text_id
            parts = documents_in(row, tokenizer.end_of_text_id, starts, begin_of_text_id=begin_id)
            decoded.append(
                SampleRow(
                    number=number,
                    component=component.name,
                    texts=tuple(tokenizer.decode(part.tolist()) for part in parts),
                    ends_document=bool(row[-1] == tokenizer.end_of_text_id),
                )
            )
    return MixtureView(
        mixture=mixture,
        rows=rows,
        counts=np.bincount(owner, minlength=len(mixture.taken)),
        replayed=replay(mixture.folder) if mixture.asked else (),
        samples=decoded,
        end_of_text=f"id {tokenizer.end_of_text_id:,}",
    )


def without_middle(text: str, most_characters: int) -> str:
    """Text without its middle, if that is long enough to be worth cutting."""
    if len(text) <= most_characters + 80:
        return text
    start, end = text[: most_characters // 2], text[len(text) - most_characters // 2 :]
    return f"{start}\n[\u2026 {len(text) - most_characters:,} characters \u2026]\n{end}"


def _start(mixture: Mixture) -> str:
    setting, token = mixture.document_start, mixture.document_start_id
    if setting is None:
        return "not recorded; end_of_text where attention crosses documents, else none"
    return setting if token is None else f"{setting} (id {token:,})"


def describe(view: MixtureView) -> str:
    """The view as text for a console."""
    mixture, info = view.mixture, view.mixture.vocabulary
    lines = [
        f"mixture {mixture.name}: {len(mixture.taken)} of {counted(len(mixture.components), 'component')} taken; "
        f"rows of {mixture.sequence_length:,} + 1 tokens; {info.kind}, {info.size:,} ids",
        f"documents begin with: {_start(mixture)}",
        "",
        f"{'component':<24} {'kind':<10} {'asked':>9} {'granted':>9} {'dealt':>9} {'rows':>11} {'tokens':>14} "
        f"{'documents':>11}  decision",
    ]
    for component in mixture.as_asked:
        amounts = f"{'-':>11} {'-':>14} {'-':>11}"
        if component.share_granted:
            train = component.prepared.splits["train"]
            amounts = f"{train.rows:>11,} {train.tokens:>14,} {train.documents:>11,}"
        shares = component.share_asked, component.share_granted, view.realised.get(component.name, 0.0)
        percents = " ".join(f"{100 * float(share):>7.3f} %" for share in shares)
        action = component.decision.get("action", "-")
        lines.append(f"{component.name:<24} {component.kind:<10} {percents} {amounts}  {action}")
    deviation = f"no component is further than {view.deviation:.2f} rows from its share"
    lines += ["", f"first {counted(view.rows, 'row')}: {deviation}", view.replay_summary]
    for component in mixture.components:
        action, reason = component.decision.get("action", "-"), component.decision.get("reason", "")
        lines.append(f"  {action:<11} {component.name}: {reason}")
    for row in view.samples:
        lines += ["", f"row {row.number:,} ({row.component})"]
        for number, text in enumerate(row.texts):
            lines += [f"  | {line}" for line in without_middle(text, _CONSOLE_CHARACTERS).split("\n")]
            if number < len(row.texts) - 1 or row.ends_document:
                lines.append("  +---- end of document " + "-" * 40)
    return "\n".join(lines)

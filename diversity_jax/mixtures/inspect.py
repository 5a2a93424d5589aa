"""What there is to see of a built mixture: realised shares, its decisions repeated, and decoded rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diversity_jax.mixtures.mixture import Mixture
from diversity_jax.mixtures.replay import Replayed, replay
from diversity_jax.mixtures.schedule import Schedule
from diversity_jax.mixtures.sources import documents_in
from diversity_jax.prepare.manifest import prepared_tokenizer

_CONSOLE_CHARACTERS = 300  # shown of each document's part in a row


@dataclass(frozen=True, kw_only=True)
class SampleRow:
    """One row of a mixture, decoded.

    Attributes:
      texts: of its documents or parts of documents, in order; all but the last end a document here.
      ends_document: whether the last one does, too.
    """

    number: int
    component: str
    texts: tuple[str, ...]
    ends_document: bool


@dataclass(frozen=True, kw_only=True)
class MixtureView:
    """What there is to see of a built mixture.

    Attributes:
      rows: how many rows realised shares are counted over.
      counts: rows among them of each component taken, [components].
      replayed: every decision worked out again; empty where the file records none.
      samples: the first rows of each component.
      end_of_text: the token that ends a document, for people.
    """

    mixture: Mixture
    rows: int
    counts: np.ndarray
    replayed: Sequence[Replayed]
    samples: Sequence[SampleRow]
    end_of_text: str

    @property
    def deviation(self) -> float:
        """Rows by which the component furthest from its granted share is off."""
        granted = np.array([float(component.share_granted) for component in self.mixture.taken]) * self.rows
        return float(np.abs(self.counts - granted).max())

    @property
    def realised(self) -> dict[str, float]:
        """Shares of the first `rows` rows, of each component taken."""
        pairs = zip(self.mixture.taken, self.counts, strict=True)
        return {component.name: float(count / self.rows) for component, count in pairs}

    @property
    def replay_summary(self) -> str:
        """How the decisions came out when they were repeated, in a line."""
        if not self.replayed:
            return "decisions: the file records none"
        scored = sum(component.from_scorecards for component in self.replayed)
        beside = f", {scored} of them from the scorecards beside it" if scored else ""
        return f"decisions: all {len(self.replayed)} repeated from mixture.json{beside}: the same shares"


def inspect_mixture(folder: str | Path, *, rows: int = 1000, samples: int = 2) -> MixtureView:
    """Reads a built mixture, schedules its first rows and repeats its decisions.

    Args:
      rows: to count realised shares over; samples: rows of each component to decode.

    Raises:
      InputError: no built mixture there, something in it was changed, or its decisions come out otherwise.
    """
    mixture = Mixture.load(folder)
    tokenizer = prepared_tokenizer(mixture.taken[0].prepared)
    owner = Schedule([component.share_granted for component in mixture.taken]).component(np.arange(rows))
    numbers = np.concatenate([np.flatnonzero(owner == i)[:samples] for i in range(len(mixture.taken))])
    decoded = []
    if len(numbers):
        batch = mixture.loader(batch_size=1).rows(numbers)
        for i, (number, row) in enumerate(zip(numbers.tolist(), batch.tokens, strict=True)):
            starts, begin = None if batch.starts is None else batch.starts[i], mixture.taken[owner[number]].prepared
            parts = documents_in(row, tokenizer.end_of_text_id, starts, begin_of_text_id=begin.begin_of_text_id)
            decoded.append(
                SampleRow(
                    number=number,
                    component=mixture.taken[owner[number]].name,
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
    """Text without its middle, where that saves a line at least."""
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
    """The view as lines for a console."""
    mixture, info = view.mixture, view.mixture.vocabulary
    lines = [
        f"mixture {mixture.name}: {len(mixture.taken)} of {len(mixture.components)} components taken; "
        f"rows of {mixture.sequence_length:,} + 1 tokens; {info.kind}, {info.size:,} ids",
        f"documents begin with: {_start(mixture)}",
        "",
        f"{'component':<24} {'kind':<10} {'asked':>9} {'granted':>9} {'dealt':>9} {'rows':>11} {'tokens':>14} "
        f"{'documents':>11}  decision",
    ]
    for component in mixture.components:
        amounts = f"{'-':>11} {'-':>14} {'-':>11}"
        if component.share_granted:
            train = component.prepared.splits["train"]
            amounts = f"{train.rows:>11,} {train.tokens:>14,} {train.documents:>11,}"
        shares = component.share_asked, component.share_granted, view.realised.get(component.name, 0.0)
        percents = " ".join(f"{100 * float(share):>7.3f} %" for share in shares)
        action = component.decision.get("action", "-")
        lines.append(f"{component.name:<24} {component.kind:<10} {percents} {amounts}  {action}")
    deviation = f"no component is further than {view.deviation:.2f} rows from its share"
    lines += ["", f"first {view.rows:,} rows: {deviation}", view.replay_summary]
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

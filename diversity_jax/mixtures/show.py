"""Look at a built mixture: composition, shares as they are dealt, its decisions repeated, rows with their document
boundaries; and a page.

    python -m diversity_jax.mixtures.show runs/mixtures/small
    python -m diversity_jax.mixtures.show runs/mixtures/small --rows 100000 --samples 3 --output /tmp/page

Reads mixture.json, manifests, scorecards and a few rows: no TensorFlow, no judge, no network.
"""

import argparse
from collections.abc import Sequence
import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diversity_jax.core import cli, formats
from diversity_jax.core.errors import InputError
from diversity_jax.mixtures.mixture import Mixture
from diversity_jax.mixtures.prepared_corpus import documents_in
from diversity_jax.mixtures.replay import Replayed, replay
from diversity_jax.mixtures.schedule import Schedule
from diversity_jax.mixtures.shares import train_rows
from diversity_jax.prepare.manifest import prepared_tokenizer
from diversity_jax.report import page
from diversity_jax.report.data import Fact, Share
from diversity_jax.report.page import KeyFigure, Page
from diversity_jax.report.pages import training_run, training_run_verdict
from diversity_jax.report.pages.mixture import SampleRow, Stock, composition, sample_rows
from diversity_jax.report.style import Palette
from diversity_jax.tokenizers.tokenizer import Tokenizer

_PAGE_CHARACTERS, _CONSOLE_CHARACTERS = 900, 300  # of a piece


@dataclass(frozen=True, kw_only=True)
class View:
    """What there is to see of a mixture.

    Attributes:
      mixture: as built.
      rows: how many rows the realised shares are counted over; counts: rows dealt to each component taken.
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
        wanted = np.array([float(component.share_granted) for component in self.mixture.taken]) * self.rows
        return float(np.abs(self.counts - wanted).max())

    def shares(self) -> list[Share]:
        """Asked, granted and dealt, of every component asked for."""
        dealt = {
            component.name: count / self.rows for component, count in zip(self.mixture.taken, self.counts, strict=True)
        }
        return [
            Share(
                name=one.name,
                asked=float(one.share_asked),
                granted=float(one.share_granted),
                realised=float(dealt.get(one.name, 0.0)),
            )
            for one in self.mixture.components
        ]

    def stocks(self) -> list[Stock]:
        """What there is of each component taken."""
        total = train_rows(self.mixture.asked.get("train_tokens"), self.mixture.sequence_length)
        found = []
        for component in self.mixture.taken:
            train = component.manifest.splits["train"]
            epochs = None if total is None else float(component.share_granted) * total / train.rows
            found.append(
                Stock(
                    name=component.name, documents=train.documents, rows=train.rows, tokens=train.tokens, epochs=epochs
                )
            )
        return found


def look(folder: str | Path, *, rows: int = 1000, samples: int = 2) -> View:
    """Reads a built mixture, deals its first rows and repeats its decisions.

    Args:
      rows: to count realised shares over; samples: rows of each component to decode.

    Raises:
      InputError: no built mixture there, something in it was changed, or its decisions come out otherwise.
    """
    mixture = Mixture.load(folder)
    tokenizer = prepared_tokenizer(mixture.taken[0].manifest)
    schedule = Schedule([component.share_granted for component in mixture.taken])
    owner = schedule.component(np.arange(rows))
    first = [np.flatnonzero(owner == i)[:samples] for i in range(len(mixture.taken))]
    numbers = np.concatenate(first)
    loader = mixture.loader(batch_size=1)
    found = loader.rows(numbers) if len(numbers) else None
    return View(
        mixture=mixture,
        rows=rows,
        counts=np.bincount(owner, minlength=len(mixture.taken)),
        replayed=replay(mixture.folder) if mixture.asked else (),
        samples=[
            _sample(
                int(number),
                mixture.taken[int(owner[number])].name,
                found.tokens[i],
                tokenizer,
                None if found.starts is None else found.starts[i],
            )
            for i, number in enumerate(numbers)
        ],
        end_of_text=f"id {tokenizer.end_of_text_id:,}",
    )


def _sample(number: int, component: str, row: np.ndarray, tokenizer: Tokenizer, starts: np.ndarray | None) -> SampleRow:
    pieces = documents_in(row, tokenizer.end_of_text_id, starts)
    texts = tuple(tokenizer.decode(piece.tolist()) for piece in pieces)
    return SampleRow(
        number=number, component=component, pieces=texts, ends_document=bool(row[-1] == tokenizer.end_of_text_id)
    )


def _shortened(text: str, most: int) -> str:
    """Text without its middle, where that saves a line at least."""
    if len(text) <= most + 80:
        return text
    return f"{text[: most // 2]}\n[\u2026 {len(text) - most:,} characters \u2026]\n{text[len(text) - most // 2 :]}"


def describe(view: View) -> str:
    """The view as lines for a console."""
    mixture = view.mixture
    info = mixture.vocabulary
    taken = f"{len(mixture.taken)} of {len(mixture.components)} components taken"
    lines = [
        (
            f"mixture {mixture.name}: {taken}; rows of {mixture.sequence_length:,} + 1 tokens; {info.kind}, {info.size:,} "
            "ids"
        ),
        "",
        (
            f"{'component':<24} {'kind':<10} {'asked':>9} {'granted':>9} {'dealt':>9} {'rows':>11} {'tokens':>14} "
            f"{'documents':>11}  decision"
        ),
    ]
    stocks = {stock.name: stock for stock in view.stocks()}
    for component, share in zip(mixture.components, view.shares(), strict=True):
        stock = stocks.get(component.name)
        amounts = (
            f"{stock.rows:>11,} {stock.tokens:>14,} {stock.documents:>11,}"
            if stock
            else f"{'-':>11} {'-':>14} {'-':>11}"
        )
        shares = " ".join(f"{100 * value:>7.3f} %" for value in (share.asked, share.granted, share.realised))
        lines.append(
            f"{component.name:<24} {component.kind:<10} {shares} {amounts}  {component.decision.get('action', '-')}"
        )
    lines += [
        "",
        f"first {view.rows:,} rows: no component is further than {view.deviation:.2f} rows from its share",
        _replay_line(view),
    ]
    for component in mixture.components:
        lines.append(
            f"  {component.decision.get('action', '-'):<11} {component.name}: {component.decision.get('reason', '')}"
        )
    for row in view.samples:
        lines += ["", f"row {row.number:,} ({row.component})"]
        for place, text in enumerate(row.pieces):
            lines += [f"  | {line}" for line in _shortened(text, _CONSOLE_CHARACTERS).split("\n")]
            if place < len(row.pieces) - 1 or row.ends_document:
                lines.append("  +---- end of document " + "-" * 40)
    return "\n".join(lines)


def _replay_line(view: View) -> str:
    if not view.replayed:
        return "decisions: the file records none"
    scored = sum(one.from_scorecards for one in view.replayed)
    beside = f", {scored} of them from the scorecards beside it" if scored else ""
    return f"decisions: all {len(view.replayed)} repeated from mixture.json{beside}: the same shares"


def write_page(view: View, folder: Path) -> Path:
    """Writes `report.html` and `figures/*.png`; returns the page's path."""
    mixture = view.mixture
    run = training_run.read(mixture.folder, mixture_dir=mixture.folder)
    palette = Palette([component.name for component in mixture.components])
    sections = (
        composition(view.shares(), view.stocks(), palette, view.rows, view.deviation),
        sample_rows(_for_page(view.samples), palette, view.end_of_text),
        *training_run.diversity(run, palette),
        page.facts(_facts(view)),
    )
    whole = Page(
        kind="Mixture",
        name=mixture.name,
        verdict=training_run_verdict.verdict(run.decisions, None),
        lede=_replay_line(view).capitalize() + ".",
        key_figures=_key_figures(view),
        sections=sections,
        footer="Written by diversity_jax from mixture.json, manifests, scorecards and rows.",
    )
    return page.write(whole, folder)


def _for_page(rows: Sequence[SampleRow]) -> list[SampleRow]:
    return [
        dataclasses.replace(row, pieces=tuple(_shortened(text, _PAGE_CHARACTERS) for text in row.pieces))
        for row in rows
    ]


def _key_figures(view: View) -> tuple[KeyFigure, ...]:
    stocks = view.stocks()
    synthetic = float(sum(component.share_granted for component in view.mixture.taken if component.kind == "synthetic"))
    asked = float(sum(component.share_asked for component in view.mixture.components if component.kind == "synthetic"))
    info = view.mixture.vocabulary
    return (
        KeyFigure(
            label="Prepared", value=formats.compact(sum(stock.tokens for stock in stocks)), note="training tokens"
        ),
        KeyFigure(
            label="Synthetic",
            value=formats.percent(synthetic),
            note=f"of the tokens; {formats.percent(asked)} asked for",
        ),
        KeyFigure(
            label="Rows",
            value=formats.compact(sum(stock.rows for stock in stocks)),
            note=f"{view.mixture.sequence_length:,} to predict",
        ),
        KeyFigure(label="Vocabulary", value=formats.count(info.size), note=f"{info.kind} ids"),
        KeyFigure(
            label="Off its share",
            value=f"{view.deviation:.2f}",
            note=f"rows at most, in the first {formats.count(view.rows)}",
        ),
    )


def _facts(view: View) -> list[Fact]:
    mixture = view.mixture
    code = mixture.code.get("version", "unknown")
    facts = [
        Fact(name="Folder", value=str(mixture.folder.resolve()), code=True),
        Fact(name="Mixture", value=mixture.content_hash, code=True),
        Fact(name="Code version", value=f"{code} {mixture.code.get('source_sha256', '')}".strip(), code=True),
        Fact(name="Vocabulary", value=mixture.vocabulary.hash, code=True),
        Fact(name="Seed", value=str(mixture.seed)),
    ]
    facts += [
        Fact(name=f"Manifest of {part.name}", value=part.manifest.content_hash, code=True) for part in mixture.taken
    ]
    hashes = {part.part_of or part.name: part.decision.get("scorecard_hash") for part in mixture.components}
    return facts + [
        Fact(name=f"Scorecard of {name}", value=value, code=True) for name, value in hashes.items() if value
    ]


def main(argv: Sequence[str]) -> None:
    """Prints a mixture and writes its page; the page's path comes last."""
    parser = argparse.ArgumentParser(prog="python -m diversity_jax.mixtures.show", exit_on_error=False)
    parser.add_argument("mixture", type=Path)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--output", type=Path)
    try:
        arguments, unknown = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise InputError(f"{error}; usage: show MIXTURE_FOLDER [--rows N] [--samples N] [--output FOLDER]") from None
    if unknown or arguments.rows < 1 or arguments.samples < 0:
        wrong = " ".join(unknown) or f"--rows {arguments.rows} --samples {arguments.samples}"
        raise InputError(
            f"{wrong}: is not understood; usage: show MIXTURE_FOLDER [--rows N] [--samples N] [--output FOLDER]"
        )
    view = look(arguments.mixture, rows=arguments.rows, samples=arguments.samples)
    print(describe(view))
    print()
    print(write_page(view, arguments.output or view.mixture.folder))


if __name__ == "__main__":
    cli.run_plain(main, __doc__)

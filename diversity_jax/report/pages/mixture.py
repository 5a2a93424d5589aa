"""The page of a built mixture: its composition as asked, granted and realised, and rows as they are trained on."""

from collections.abc import Sequence
from pathlib import Path

from diversity_jax.core import formats
from diversity_jax.core.formats import compact, count, percent, significant
from diversity_jax.core.run_info import Fact
from diversity_jax.mixtures.inspect import MixtureView, SampleRow, without_middle
from diversity_jax.mixtures.mixture import Mixture
from diversity_jax.mixtures.shares import train_rows
from diversity_jax.report import page
from diversity_jax.report.data import Share
from diversity_jax.report.figures import components
from diversity_jax.report.html import Html, columns, element, joined, table
from diversity_jax.report.page import KeyFigure, Page, Section, figure, named
from diversity_jax.report.pages import training_run, training_run_verdict
from diversity_jax.report.plotting import render
from diversity_jax.report.style import Palette

_SHOWN_CHARACTERS = 900  # of a document's part in a row


def write(view: MixtureView, folder: Path) -> Path:
    """Writes `report.html` and `figures/*.png`; returns the page's path."""
    mixture = view.mixture
    run = training_run.read(mixture.folder, mixture_dir=mixture.folder)
    palette = Palette([component.name for component in mixture.components])
    sections = (
        composition(view, palette),
        sample_rows(view.samples, palette, view.end_of_text),
        *training_run.diversity(run, palette),
        page.facts(_facts(mixture)),
    )
    document = Page(
        kind="Mixture",
        name=mixture.name,
        verdict=training_run_verdict.verdict(run.decisions, None),
        lede=view.replay_summary.capitalize() + ".",
        key_figures=_key_figures(view),
        sections=sections,
        footer="Written by diversity_jax from mixture.json, manifests, scorecards and rows.",
    )
    return page.write(document, folder)


def _key_figures(view: MixtureView) -> tuple[KeyFigure, ...]:
    mixture, vocabulary = view.mixture, view.mixture.vocabulary
    trains = [component.prepared.splits["train"] for component in mixture.taken]
    synthetic = [component for component in mixture.components if component.kind == "synthetic"]
    granted, asked = (
        float(sum(getattr(part, name) for part in synthetic)) for name in ("share_granted", "share_asked")
    )
    rows = formats.compact(sum(train.rows for train in trains))
    off = f"rows at most, in the first {count(view.rows)}"
    return (
        KeyFigure(
            label="Prepared", value=formats.compact(sum(train.tokens for train in trains)), note="training tokens"
        ),
        KeyFigure(label="Synthetic", value=percent(granted), note=f"of the tokens; {percent(asked)} asked for"),
        KeyFigure(label="Rows", value=rows, note=f"{mixture.sequence_length:,} to predict"),
        KeyFigure(label="Vocabulary", value=count(vocabulary.size), note=f"{vocabulary.kind} ids"),
        KeyFigure(label="Off its share", value=f"{view.deviation:.2f}", note=off),
    )


def _facts(mixture: Mixture) -> list[Fact]:
    code = mixture.code.get("version", "unknown")
    facts = [
        Fact(name="Folder", value=str(mixture.folder.resolve()), code=True),
        Fact(name="Mixture", value=mixture.content_hash, code=True),
        Fact(name="Code version", value=f"{code} {mixture.code.get('source_sha256', '')}".strip(), code=True),
        Fact(name="Vocabulary", value=mixture.vocabulary.hash, code=True),
        Fact(name="Seed", value=str(mixture.seed)),
    ]
    facts += [
        Fact(name=f"Manifest of {part.name}", value=part.prepared.content_hash, code=True) for part in mixture.taken
    ]
    hashes = {part.part_of or part.name: part.decision.get("scorecard_hash") for part in mixture.components}
    return facts + [
        Fact(name=f"Scorecard of {name}", value=value, code=True) for name, value in hashes.items() if value
    ]


def composition(view: MixtureView, palette: Palette) -> Section:
    """Shares asked for, granted and realised over the first rows, and what was prepared of each component."""
    mixture, rows, deviation = view.mixture, view.rows, view.deviation
    shares = [
        Share(
            name=component.name,
            asked=float(component.share_asked),
            granted=float(component.share_granted),
            realised=view.realised.get(component.name, 0.0),
        )
        for component in mixture.components
    ]
    total = train_rows(mixture.asked.get("train_tokens"), mixture.sequence_length)
    alt = "; ".join(
        f"{one.name}: asked {percent(one.asked)}, granted {percent(one.granted)}, dealt {percent(one.realised, 2)}"
        for one in shares
    )
    drawing = render("shares", alt, lambda width: components.shares(shares, palette, width))
    explained = (
        "Shares count tokens, not documents: every row is full, and rows are dealt by a fixed schedule. Over the "
        f"first {count(rows)} rows "
        f"no component is further than {significant(deviation, 2)} rows from its share."
    )
    titles = columns("Component", "#Documents", "#Rows", "#Training tokens", "#Epochs")
    cells = []
    for component in mixture.taken:
        train = component.prepared.splits["train"]
        epochs = "\u2013" if total is None else significant(float(component.share_granted) * total / train.rows)
        amounts = count(train.documents), count(train.rows), compact(train.tokens), epochs
        cells.append((named(component.name, palette), *amounts))
    body = joined(
        element("p", explained),
        figure(
            drawing,
            f"Bars: rows dealt among the first {count(rows)}. Upright mark: the share asked for before the gate.",
        ),
        element("h3", "What was prepared"),
        table(titles, cells),
    )
    return Section(anchor="shares", title="Token shares", body=body, drawings=(drawing,))


def sample_rows(rows: Sequence[SampleRow], palette: Palette, end_of_text: str) -> Section:
    """Rows as a model sees them, each document boundary marked."""
    intro = (
        f"The first rows of each component, decoded. A line marks the end of a document ({end_of_text}); a row begins "
        "and ends where it "
        "was cut, often inside a document. Long pieces are shortened in the middle."
    )
    body = joined(element("p", intro), [_row(one, palette, opened=place == 0) for place, one in enumerate(rows)])
    return Section(anchor="rows", title="Sample rows", body=body)


def _row(row: SampleRow, palette: Palette, *, opened: bool) -> Html:
    last = len(row.texts) - 1
    pieces = [
        element(
            "div",
            element("span", without_middle(text, _SHOWN_CHARACTERS), class_="sample", dir="auto"),
            class_="piece ends" if place < last or row.ends_document else "piece",
        )
        for place, text in enumerate(row.texts)
    ]
    pieces_said = f"{len(pieces)} piece{'s' if len(pieces) > 1 else ''}"
    head = element(
        "summary",
        named(row.component, palette),
        element("span", f"row {count(row.number)}, {pieces_said}", class_="aside"),
    )
    inside = element("div", pieces, class_=f"inside row {palette.slot(row.component)}")
    return element("details", head, inside, open="" if opened else None)

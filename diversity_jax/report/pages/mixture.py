"""Sections about a built mixture: its composition as asked, granted and dealt, and rows as they are trained on."""

from collections.abc import Sequence
from dataclasses import dataclass

from diversity_jax.core.formats import compact, count, percent, significant
from diversity_jax.report.data import Share
from diversity_jax.report.figures import components
from diversity_jax.report.html import Html, columns, element, joined, table
from diversity_jax.report.page import Section, figure, named
from diversity_jax.report.plotting import render
from diversity_jax.report.style import Palette


@dataclass(frozen=True, kw_only=True)
class Stock:
    """What there is of a component: documents, training rows and tokens, epochs of them in the whole training (None:
    length unknown).
    """

    name: str
    documents: int
    rows: int
    tokens: int
    epochs: float | None = None


@dataclass(frozen=True, kw_only=True)
class SampleRow:
    """One row of the mixture: its number, its component, and the texts of its pieces; all but the last piece end a
    document here.

    `ends_document` says whether the last piece does, too.
    """

    number: int
    component: str
    pieces: tuple[str, ...]
    ends_document: bool


def composition(
    shares: Sequence[Share], stocks: Sequence[Stock], palette: Palette, rows: int, deviation: float
) -> Section:
    """Shares asked for, granted and dealt out over the first `rows` rows, and the stock they are dealt from.

    Args:
      deviation: the largest difference, in rows, between what a component was dealt and its granted share of `rows`.
    """
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
    cells = [
        (
            named(one.name, palette),
            count(one.documents),
            count(one.rows),
            compact(one.tokens),
            "\u2013" if one.epochs is None else significant(one.epochs),
        )
        for one in stocks
    ]
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
    last = len(row.pieces) - 1
    pieces = [
        element(
            "div",
            element("span", text, class_="sample", dir="auto"),
            class_="piece ends" if place < last or row.ends_document else "piece",
        )
        for place, text in enumerate(row.pieces)
    ]
    pieces_said = f"{len(pieces)} piece{'s' if len(pieces) > 1 else ''}"
    head = element(
        "summary",
        named(row.component, palette),
        element("span", f"row {count(row.number)}, {pieces_said}", class_="aside"),
    )
    inside = element("div", pieces, class_=f"inside row {palette.slot(row.component)}")
    return element("details", head, inside, open="" if opened else None)

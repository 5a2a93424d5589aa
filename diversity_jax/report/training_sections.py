"""Sections about training: token shares, loss and speed. Plain data in, headed text with figures and tables out."""

from collections.abc import Sequence

from diversity_jax.report import curves, figures
from diversity_jax.report.canvas import render
from diversity_jax.report.data import Curve, Prepared, Share
from diversity_jax.report.formats import compact, count, percent, significant
from diversity_jax.report.html import columns, element, joined, table
from diversity_jax.report.page import Section, figure, named
from diversity_jax.report.theme import Palette


def shares(parts: Sequence[Share], prepared: Sequence[Prepared], palette: Palette, explained: str) -> Section:
    """Requested against realised token shares, and what was prepared of each component."""
    alt = "; ".join(
        f"{part.name}: asked {percent(part.asked)}, granted {percent(part.granted)}"
        + (f", realised {percent(part.realised, 2)}" if part.realised is not None else "")
        for part in parts
    )
    drawing = render("shares", alt, lambda width: figures.shares(parts, palette, width))
    trained = any(part.realised is not None for part in parts)
    caption = ("Bars: tokens trained on." if trained else "Bars: the share granted by the gate; nothing has been trained yet.") + (
        " Upright mark: the share asked for before the gate."
    )
    rows = [
        (
            named(one.name, palette),
            count(one.documents),
            compact(one.tokens),
            compact(one.held_out_tokens),
            "\u2013" if one.passes is None else significant(one.passes),
        )
        for one in prepared
    ]
    titles = columns("Component", "#Documents", "#Training tokens", "#Held-out tokens", "#Passes made")
    body = joined(
        element("p", explained),
        figure(drawing, caption),
        [element("h3", "What was prepared"), table(titles, rows)] if rows else None,
    )
    return Section(anchor="shares", title="Token shares", body=body, drawings=(drawing,))


def losses(total: Curve | None, components: Sequence[Curve], palette: Palette, explained: str) -> Section:
    """Loss over steps, whole and per component."""
    lines = ([total] if total else []) + list(components)
    alt = "; ".join(f"{curve.name}: from {significant(curve.y[0])} to {significant(curve.y[-1])}" for curve in lines if len(curve.y))
    drawing = render("loss", alt, lambda width: curves.losses(total, components, palette, width))
    caption = "Cross-entropy in nats a token. Lines: training loss, smoothed over a fiftieth of the run on either side (pale: as it was)."
    if any(len(curve.held_out_x) for curve in lines):
        caption += " Circles: held-out text."
    return Section(anchor="loss", title="Loss", body=joined(element("p", explained), figure(drawing, caption)), drawings=(drawing,))


def speed(panels: Sequence[curves.Panel], explained: str, caption: str) -> Section:
    """Throughput, time and utilisation over steps."""
    alt = "; ".join(f"{panel.title} over {count(len(panel.curve.x))} log lines" for panel in panels)
    drawing = render("speed", alt, lambda width: curves.small_multiples(panels, width))
    body = joined(element("p", explained), figure(drawing, caption))
    return Section(anchor="speed", title="Speed", body=body, drawings=(drawing,))

"""Sections about training: token shares, loss and speed. Plain data in, headed text with figures and tables out."""

from collections.abc import Mapping, Sequence

from diversity_jax.report import curves, figures
from diversity_jax.report.canvas import render
from diversity_jax.report.data import Curve, Prepared, Share
from diversity_jax.report.formats import compact, count, counted, percent, significant
from diversity_jax.report.html import Html, columns, element, joined, table
from diversity_jax.report.page import Section, figure, named
from diversity_jax.report.theme import Palette

_STEPS_SHOWN = 6  # of a prompt's samples


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


def speed(panels: Sequence[curves.Panel], explained: str, caption: str, single: Sequence[tuple[str, str, str]] = ()) -> Section:
    """Throughput, time and utilisation over steps, and single figures: what it is, its value, and what it means."""
    alt = "; ".join(f"{panel.title} over {count(len(panel.curve.x))} log lines" for panel in panels)
    drawing = render("speed", alt, lambda width: curves.small_multiples(panels, width))
    body = joined(
        element("p", explained),
        figure(drawing, caption),
        [element("h3", "What the time went into"), table(columns("Figure", "#Value", "~Meaning"), single)] if single else None,
    )
    return Section(anchor="speed", title="Speed", body=body, drawings=(drawing,))


def samples(texts_of_prompt: Mapping[str, Mapping[int, str]]) -> Section:
    """What the model wrote after each prompt, step by step: the first, the last, and some between."""
    blocks = []
    for place, (prompt, texts) in enumerate(texts_of_prompt.items()):
        steps = _spread(list(texts), _STEPS_SHOWN)
        rows = [(f"step {count(step)}", _written(texts[step])) for step in steps]
        title = element("span", prompt, dir="auto") if prompt else "The start of a document"
        aside = element("span", counted(len(texts), "sample"), class_="aside")
        inside = element("div", table(columns("Step", "~Text"), rows), class_="inside")
        blocks.append(element("details", element("summary", title, aside), inside, open="" if place == 0 else None))
    intro = "The model was given the start of a text now and then, always the same, and went on from there."
    return Section(anchor="samples", title="What the model writes", body=joined(element("p", intro), blocks))


def _written(sample: str) -> Html:
    return element("span", sample if sample.strip() else "(nothing but white space)", class_="sample", dir="auto")


def _spread(steps: list[int], most: int) -> list[int]:
    """At most so many of the steps, evenly apart, the first and the last among them."""
    if len(steps) <= most:
        return steps
    return [steps[round(place * (len(steps) - 1) / (most - 1))] for place in range(most)]

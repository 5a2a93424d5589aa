"""Formats numbers, text from outside and small tables for pages, messages, consoles and notebooks."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
import math
import re
from typing import Any

from diversity_jax.core.intervals import Estimate

THIN = "\u202f"
NO_BREAK = "\u00a0"
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_DIRECTION = re.compile(r"[\u202a-\u202e\u2066-\u2069]")
_SCALES = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


def clean(value: Any) -> str:
    """Text that is safe to show: control characters and lone surrogates become U+FFFD, and characters that change the
    direction of text are written as their code, such as [U+202E].
    """
    text = _CONTROLS.sub("\ufffd", str(value).replace("\r\n", "\n").replace("\r", "\n"))
    return _DIRECTION.sub(lambda mark: f"[U+{ord(mark.group()):04X}]", text)


def shortened(value: Any, most: int) -> str:
    """One line of at most `most` characters, cut with an ellipsis."""
    line = " ".join(clean(value).split())
    return line if len(line) <= most else line[: most - 1].rstrip() + "\u2026"


def count(value: float) -> str:
    """A whole number with thousands separators: 12,345."""
    return f"{round(value):,}".replace("-", "\u2212") if math.isfinite(value) else "not finite"


def significant(value: float, digits: int = 3) -> str:
    """A number at `digits` significant digits, without trailing noise: 0.0512, 4.1, 52.3, 1,230."""
    if not math.isfinite(value):
        return "not finite"
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    if size < -4:
        return f"{value:.{digits - 1}e}".replace("-", "\u2212")
    decimals = digits - 1 - size
    rounded = round(value, decimals)
    text = f"{rounded:,.{max(0, decimals)}f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return text.replace("-", "\u2212")


def compact(value: float, unit: str = "") -> str:
    """A number at three digits with the letter of its scale: 12.3 M."""
    scale, letter = next(((scale, letter) for scale, letter in _SCALES if abs(value) >= 0.9995 * scale), (1.0, ""))
    number = THIN.join(part for part in (significant(value / scale), letter) if part)
    return NO_BREAK.join(part for part in (number, unit) if part)


def percent(share: float, decimals: int = 1) -> str:
    """A share as a percentage: 0.25 is 25 %."""
    if not math.isfinite(share):
        return "not finite"
    return f"{100 * share:.{decimals}f}".replace("-", "\u2212") + f"{THIN}%"


def signed(value: float, decimals: int = 1) -> str:
    """A difference with its sign, + or \u2212; zero has none."""
    text = f"{value:+.{decimals}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "\u2212")


def duration(seconds: float) -> str:
    """A time in a unit of suitable size: 850 \u00b5s, 12.3 ms, 4.2 s, 12 min 5 s, 3 h 4 min."""
    if not math.isfinite(seconds):
        return "not finite"
    if seconds == 0:
        return "0"
    if seconds < 1e-3:
        return f"{significant(seconds * 1e6)}{THIN}\u00b5s"
    if seconds < 1:
        return f"{significant(seconds * 1e3)}{THIN}ms"
    if seconds < 60:
        return f"{significant(seconds)}{THIN}s"
    rounded = round(seconds)
    if rounded < 3600:
        return f"{rounded // 60}{THIN}min {rounded % 60}{THIN}s"
    return f"{rounded // 3600:,}{THIN}h {rounded % 3600 // 60}{THIN}min"


def money(dollars: float) -> str:
    """US dollars: cents from one dollar on, three significant digits below."""
    if dollars == 0 or dollars >= 1:
        return f"${dollars:,.2f}"
    return f"${significant(dollars)}"


def of_unit(number: str, units: str) -> str:
    """The form of a unit, given in the plural, after a number as it is shown: clusters, but 1 cluster."""
    return units.removesuffix("s") if number == "1" else units


def estimate(interval: Estimate, unit: str = "") -> str:
    """An estimate with its interval, "4.1 clusters [3.8, 4.5]", or its single bound, "at least 120 clusters"."""
    one_sided = interval.low if interval.high is None else interval.high if interval.low is None else None
    shown = significant(interval.value if one_sided is None else one_sided)
    unit = f" {of_unit(shown, unit)}" if unit else ""
    if interval.low is not None and interval.high is not None:
        return f"{significant(interval.value)}{unit} [{significant(interval.low)}, {significant(interval.high)}]"
    if interval.low is not None:
        return f"at least {significant(interval.low)}{unit}"
    if interval.high is not None:
        return f"at most {significant(interval.high)}{unit}"
    return f"{significant(interval.value)}{unit}"


def interval(bounds: Estimate) -> str:
    """The ends of an interval, "[3.8, 4.5]", an ellipsis for one without a bound; empty where both have none."""
    low, high = ("\u2026" if end is None else significant(end) for end in (bounds.low, bounds.high))
    return "" if bounds.low is None and bounds.high is None else f"[{low}, {high}]"


def listed(words: list[str]) -> str:
    """Words joined as in a sentence: \"a\", \"a and b\", \"a, b and c\"."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1] if words else ""


def counted(number: int, singular: str, plural: str | None = None) -> str:
    """A number with its noun in the right form: \"1 component\", \"3 components\"."""
    return f"{count(number)} {singular if number == 1 else plural or singular + 's'}"


_CELL = 100  # characters shown of a cell and of a note


@dataclass(frozen=True, kw_only=True)
class SummaryTable:
    """A title, rows of cells below column names, and notes of one line each. Cells may hold any text."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def __str__(self) -> str:
        cells = [[shortened(cell, _CELL) for cell in row] for row in (self.columns, *self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
        ]
        return "\n".join([shortened(self.title, _CELL), *lines, *(clean(note) for note in self.notes)])

    def html(self) -> str:
        """The table as HTML, without a style sheet."""

        def row(tag: str, cells: Sequence[str]) -> str:
            inner = "".join(
                f'<{tag} style="text-align:left">{escape(shortened(cell, _CELL))}</{tag}>' for cell in cells
            )
            return f"<tr>{inner}</tr>"

        body = "".join(row("td", cells) for cells in self.rows)
        notes = "".join(f"<p>{escape(clean(note))}</p>" for note in self.notes)
        head = f"<thead>{row('th', self.columns)}</thead>"
        title = escape(shortened(self.title, _CELL))
        return f"<div><strong>{title}</strong><table>{head}<tbody>{body}</tbody></table>{notes}</div>"


class ShownAsTable:
    """An object that consoles and notebooks show as a table; dataclasses that inherit from it need `repr=False`."""

    def table(self) -> SummaryTable:
        """The table that is shown."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table().html()

"""Objects that show themselves as a small table: as text in a console, as escaped HTML in a notebook."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from diversity_jax.core.formats import clean, shortened

_CELL = 100  # characters shown of a cell and of a note


@dataclass(frozen=True, kw_only=True)
class Table:
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
        """The same as an HTML table, without styles of its own."""

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


class Shown:
    """An object with a table; dataclasses that inherit from it are made with `repr=False`."""

    def table(self) -> Table:
        """What is shown."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table().html()

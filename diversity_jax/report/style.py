"""Colours of pages and figures; the style sheet itself is `templates/style.css.j2`.

The six component colours keep a contrast of at least 4.5 to the page in both modes and stay apart under simulated
deuteranopia, protanopia and tritanopia (a test measures both). From the seventh component on the same colours return
with another dash pattern.
"""

from collections.abc import Sequence

LIGHT = {
    "ink": "#1c2126",
    "muted": "#5b646d",
    "rule": "#d3d8dd",
    "band": "#e9ecef",
    "paper": "#fdfdfb",
    "c1": "#0077c4",
    "c2": "#b05d08",
    "c3": "#1b5a42",
    "c4": "#945f99",
    "c5": "#6b430f",
    "c6": "#43305c",
}
DARK = {
    "ink": "#e9ebee",
    "muted": "#9ba5af",
    "rule": "#343b43",
    "band": "#262c33",
    "paper": "#15181c",
    "c1": "#559be3",
    "c2": "#eda345",
    "c3": "#5fd3a6",
    "c4": "#e3bdf0",
    "c5": "#a3865a",
    "c6": "#8790ba",
}
SLOTS = ("c1", "c2", "c3", "c4", "c5", "c6")
DASHES = ("solid", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))

# Widths in CSS pixels that figures are drawn for: the text column of the page, and a telephone.
WIDE_PX = 936
PHONE_PX = 380


class Palette:
    """One colour per component, by its position in `names`; the same in every figure and table of a page."""

    def __init__(self, names: Sequence[str]):
        self._position = {name: position for position, name in enumerate(dict.fromkeys(names))}

    def slot(self, name: str) -> str:
        """The colour's role, `c1` to `c6`; ink for a name that is no component."""
        return SLOTS[self._position[name] % len(SLOTS)] if name in self._position else "ink"

    def colour(self, name: str) -> str:
        """The colour's light value, which figures are drawn with."""
        return LIGHT[self.slot(name)]

    def dash(self, name: str) -> object:
        """The line style that tells apart components which share a colour."""
        return DASHES[self._position.get(name, 0) // len(SLOTS) % len(DASHES)]

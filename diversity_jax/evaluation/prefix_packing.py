"""Packing scored sequences into rows: beginnings that sequences share are stored, and later computed, once.

A row holds trees of tokens in preorder. Sequences in lexicographic order are the depth-first walk of their tree, so a
row is filled by
walking along them: each adds only the tokens after what it shares with the one before.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from diversity_jax.core.errors import InputError

_SMALLEST_ROW = 128
_WORTH_SHARING = 8  # tokens; sequences that share fewer may be packed apart


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A sequence of token ids of which the last `scored` are judged, each given all before it; at least one stands
    before them.
    """

    tokens: tuple[int, ...]
    scored: int

    def __post_init__(self):
        if not 0 < self.scored < len(self.tokens):
            raise InputError(
                f"{len(self.tokens)} tokens of which {self.scored} are scored: at least one must be, and one must "
                "stand before"
            )


@dataclass(kw_only=True)
class Row:
    """A row of `length` places being filled.

    Attributes:
      tokens, positions, ends: of each place: its id, its depth, one past its last descendant.
      edges: (place, next token) -> number, of every prediction that is judged.
      members: (sequence's number, numbers of its predictions, in order).
    """

    length: int
    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    edges: dict[tuple[int, int], int] = field(default_factory=dict)
    members: list[tuple[int, list[int]]] = field(default_factory=list)

    def arrays(self) -> dict[str, np.ndarray]:
        """int32 arrays of `length`: the row, the places judged (`parents`), and of each prediction its parent's number
        and its token.
        """
        out = {
            name: np.zeros(self.length, np.int32)
            for name in ("tokens", "positions", "ends", "parents", "edge_parent", "edge_token")
        }
        for name in ("tokens", "positions", "ends"):
            out[name][: len(self.tokens)] = getattr(self, name)
        # An empty place sees itself, so that no softmax is over nothing.
        out["ends"][len(self.tokens) :] = np.arange(len(self.tokens), self.length) + 1
        parents = sorted({place for place, _ in self.edges})
        number = {place: index for index, place in enumerate(parents)}
        out["parents"][: len(parents)] = parents
        for (place, token), edge in self.edges.items():
            out["edge_parent"][edge], out["edge_token"][edge] = number[place], token
        out["count"] = np.int32(len(parents))
        return out


def shared_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many first tokens two sequences share."""
    most = min(len(a), len(b))
    if a[:most] == b[:most]:
        return most
    low, high = 0, most  # a[:low] == b[:low], a[:high] != b[:high]
    while high - low > 1:
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low


def row_length(tokens: int, smallest: int = _SMALLEST_ROW) -> int:
    """The least power of two, from `smallest`, that holds so many tokens."""
    length = smallest
    while length < tokens:
        length *= 2
    return length


def pack(sequences: Sequence[Scored], *, row_tokens: int) -> list[Row]:
    """All sequences in rows of few lengths.

    The packing depends on the sequences alone, never on a batch size or a mesh, and so do the results.

    Args:
      sequences: in any order.
      row_tokens: places of a row, a power of two; a longer sequence gets a longer row, and a row with much room left is
        made shorter.
    """
    order = sorted(range(len(sequences)), key=lambda number: sequences[number].tokens)
    plans: list[list[list[int]]] = []
    room: dict[int, list[tuple[int, int]]] = {}  # row length -> (places left, plan's number)
    for size, unit in sorted(
        _units(sequences, order, row_tokens), key=lambda item: -item[0]
    ):  # best fit, largest first
        length = max(row_tokens, row_length(size))
        places = room.setdefault(length, [])
        best = min((place for place in places if place[0] >= size), default=None)
        if best is None:
            plans.append([])
            best = (length, len(plans) - 1)
        else:
            places.remove(best)
        left, number = best[0] - size, best[1]
        plans[number].append(unit)
        if left:
            places.append((left, number))
    return [_filled(sequences, plan) for plan in plans]


def _units(sequences: Sequence[Scored], order: Sequence[int], row_tokens: int) -> list[tuple[int, list[int]]]:
    """Neighbours in order that share a beginning worth keeping together, with the places each such group takes."""
    units: list[tuple[int, list[int]]] = []
    places, predictions, previous = 0, 0, ()
    for number in order:
        one = sequences[number]
        shared = shared_length(previous, one.tokens)
        added = (len(one.tokens) - shared, one.scored if one.tokens != previous else 0)
        if (
            units
            and shared >= _WORTH_SHARING
            and max(places + added[0], predictions + added[1]) <= max(row_tokens, row_length(places))
        ):
            places, predictions = places + added[0], predictions + added[1]
            units[-1] = (max(places, predictions), [*units[-1][1], number])
        else:
            places, predictions = len(one.tokens), one.scored
            units.append((places, [number]))
        previous = one.tokens
    return units


def _filled(sequences: Sequence[Scored], plan: Sequence[Sequence[int]]) -> Row:
    row = Row(length=0)
    for unit in plan:
        path: list[int] = []  # places of the sequence before, by depth
        previous: tuple[int, ...] = ()
        for number in unit:
            tokens, scored = sequences[number].tokens, sequences[number].scored
            shared = min(shared_length(previous, tokens), len(path), len(tokens) - 1)
            for place in path[shared:]:
                row.ends[place] = len(row.tokens)
            del path[shared:]
            for token in tokens[len(path) : -1]:  # the last is predicted, never read
                path.append(len(row.tokens))
                row.positions.append(len(path) - 1)
                row.tokens.append(token)
                row.ends.append(0)
            steps = range(len(tokens) - scored, len(tokens))
            row.members.append(
                (number, [row.edges.setdefault((path[i - 1], tokens[i]), len(row.edges)) for i in steps])
            )
            previous = tokens
        for place in path:
            row.ends[place] = len(row.tokens)
    row.length = row_length(max(len(row.tokens), len(row.edges)))
    return row

"""The test data of `peers_mixing.py`, the same for every loader, and how the rows that a loader gives are judged.

Needs NumPy alone. All tokens of a document are the number 2 * (document + 1) + component, so that rows show which
documents they hold; 0 is left for padding.
"""

from collections.abc import Iterable

import numpy as np

LENGTHS = (600, 60)
"""Tokens of every document of the first and of the second component."""
DOCUMENTS = (3000, 7500)
SHARES = (0.8, 0.2)
"""Of tokens, asked for: 4:1."""
ROW_TOKENS, ROWS, WINDOW = 512, 3000, 1000
# The same request in documents, for loaders that draw those: their users have to divide by the mean lengths.
_WEIGHTS = np.array(SHARES) / np.array(LENGTHS)
DOCUMENT_SHARES = tuple(float(weight) for weight in _WEIGHTS / _WEIGHTS.sum())


def document(component: int, number: int) -> np.ndarray:
    """Tokens of a document, int32."""
    return np.full(LENGTHS[component], 2 * (number + 1) + component, np.int32)


def component_rows(component: int) -> np.ndarray:
    """All documents of a component in one permuted order, joined and cut into rows: int32 [rows, ROW_TOKENS]."""
    order = np.random.default_rng(component).permutation(DOCUMENTS[component])
    tokens = np.concatenate([document(component, number) for number in order])
    return tokens[: len(tokens) // ROW_TOKENS * ROW_TOKENS].reshape(-1, ROW_TOKENS)


def packed(documents: Iterable[np.ndarray], rows: int = ROWS) -> np.ndarray:
    """Documents joined in the order they come and cut into so many rows."""
    parts, tokens = [], 0
    for part in documents:
        parts.append(np.asarray(part, np.int32))
        tokens += len(part)
        if tokens >= rows * ROW_TOKENS:
            break
    joined = np.concatenate(parts)
    return joined[: min(rows * ROW_TOKENS, len(joined) // ROW_TOKENS * ROW_TOKENS)].reshape(-1, ROW_TOKENS)


def judge(rows: np.ndarray, *, by_rows: bool) -> dict[str, float]:
    """Distance from the shares asked for, and repeats.

    Args:
      rows: int32 [rows, tokens], in the order of the loader.
      by_rows: the loader draws rows that were cut before, so that repeats are counted in rows, else in documents.

    Returns:
      `share`: of the first component in all rows; `furthest`: the largest distance from its share in any WINDOW
      consecutive rows, in rows of WINDOW; `repeats`: units read again before all of their component were read.
    """
    is_text = rows != 0
    of_first = ((rows % 2 == 0) & is_text).sum(1).astype(np.int64)
    of_all = is_text.sum(1).astype(np.int64)
    sums = [np.concatenate([[0], np.cumsum(part)]) for part in (of_first, of_all)]
    in_windows = [part[WINDOW:] - part[:-WINDOW] for part in sums]
    distances = np.abs(in_windows[0] / in_windows[1] - SHARES[0]) * WINDOW
    return {
        "rows": len(rows),
        "share": float(of_first.sum() / of_all.sum()),
        "furthest": float(distances.max()),
        "repeats": _repeats(rows, by_rows=by_rows),
    }


def _repeats(rows: np.ndarray, *, by_rows: bool) -> int:
    if by_rows:
        known = [{row.tobytes() for row in component_rows(component)} for component in (0, 1)]
        units: Iterable[tuple[int, object]] = ((int(row[0]) % 2, row.tobytes()) for row in rows)
    else:
        tokens = rows.reshape(-1)
        begins = np.flatnonzero(np.concatenate([[True], tokens[1:] != tokens[:-1]]))
        known = [{2 * (number + 1) + component for number in range(DOCUMENTS[component])} for component in (0, 1)]
        units = ((int(token) % 2, int(token)) for token in tokens[begins] if token)
    seen: list[set[object]] = [set(), set()]
    repeats = 0
    for component, unit in units:
        if len(seen[component]) == len(known[component]):
            continue
        repeats += unit in seen[component]
        seen[component].add(unit)
    return repeats

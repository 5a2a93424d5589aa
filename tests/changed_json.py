"""Wrong values for every field of a JSON file, as a damaged or hostile one might have."""

from collections.abc import Iterator, Sequence
import copy
import random
from typing import Any

MISSING = object()
WRONG = (
    *(MISSING, None, -1, 10**30, 2**31, 0.5, 1e308, True, ""),
    *("text", "../x", "x" * 10_000, [], [None], [[[]]], {}, {"x": {}}),
)
"""Put in place of a field's value."""


def changed(value: Any, *, items: int = 1) -> Iterator[tuple[str, Any]]:
    """(field, the complete value with a wrong one in that field), for every field at any depth.

    Args:
      items: how many items of each list are changed.
    """
    for path in list(_paths(value, items)):
        for wrong in WRONG:
            replaced = _with(value, path, wrong)
            yield f"{'.'.join(map(str, path))} = {'(missing)' if wrong is MISSING else repr(wrong)[:40]}", replaced
    yield from ((f"whole = {wrong!r:.40}", wrong) for wrong in WRONG if wrong is not MISSING)


def changed_at(value: Any, generator: random.Random, wrong: Sequence[Any] = WRONG) -> Any:
    """The complete value with a wrong one in a single field, chosen level by level."""
    path: tuple[Any, ...] = ()
    holder = value
    while isinstance(holder, dict | list) and holder and (not path or generator.random() < 0.75):
        step = generator.choice(list(holder)) if isinstance(holder, dict) else generator.randrange(len(holder))
        path, holder = (*path, step), holder[step]
    return _with(value, path, generator.choice(wrong)) if path else generator.choice(wrong)


def _with(value: Any, path: tuple[Any, ...], wrong: Any) -> Any:
    result = copy.copy(value)
    holder = result
    for step in path[:-1]:  # copies what is changed alone, the rest is shared
        holder[step] = copy.copy(holder[step])
        holder = holder[step]
    if wrong is MISSING:
        del holder[path[-1]]
    else:
        holder[path[-1]] = wrong
    return result


def _paths(value: Any, items: int, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    steps = list(value) if isinstance(value, dict) else range(min(len(value), items)) if isinstance(value, list) else ()
    for step in steps:
        yield (*above, step)
        yield from _paths(value[step], items, (*above, step))

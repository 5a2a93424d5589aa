"""By what a judge groups: attributes (metadata) and scales (metrics), frozen and hashed before the first grouping.

A judge proposed them after reading samples, and samples may be hostile; so they are treated as untrusted text: cleaned,
cut, and shown to judges as data.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from diversity_jax.cluster_agent.text_cleaning import clean_text
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import content_hash, read_json

_NAME_CHARACTERS = 80
_TEXT_CHARACTERS = 400


def _line(text: Any, most: int = _TEXT_CHARACTERS) -> str:
    return " ".join(clean_text(text, most).split()) if isinstance(text, str) else ""


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """An attribute that describes a sample, such as its subject: what it means, and one sentence on clustering by
    it.
    """

    name: str
    definition: str = ""
    guidance: str = ""

    def to_json(self) -> dict[str, Any]:
        """All fields by name."""
        return dict(vars(self))


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A scale from 1 to 5: what it measures, what each step means, and one sentence on clustering by it."""

    name: str
    definition: str = ""
    levels: tuple[str, ...] = ()
    guidance: str = ""

    def to_json(self) -> dict[str, Any]:
        """All fields by name."""
        return {**vars(self), "levels": list(self.levels)}


@dataclass(frozen=True, kw_only=True)
class CriteriaSet:
    """What one set of groupings is judged by."""

    metadata: tuple[Metadata, ...]
    metrics: tuple[Metric, ...]

    def to_json(self) -> dict[str, Any]:
        """Nested JSON value."""
        return {"metadata": [m.to_json() for m in self.metadata], "metrics": [m.to_json() for m in self.metrics]}


@dataclass(frozen=True, kw_only=True)
class Criteria:
    """B independent criteria sets, and where they come from: "judge", "file" or "scorecard"."""

    sets: tuple[CriteriaSet, ...]
    origin: str = field(compare=False)

    def __post_init__(self):
        if not self.sets:
            raise InputError("criteria: no criteria set; a judge that proposes none cannot group by any")

    @property
    def hash(self) -> str:
        """SHA-256 of the content: scores with equal hashes were taken by the same criteria."""
        return content_hash(self.to_json())

    def to_json(self) -> list[dict[str, Any]]:
        """One JSON value a set."""
        return [one.to_json() for one in self.sets]


def read_items(value: Any, kind: type[Metadata] | type[Metric]) -> tuple:
    """Metadata or metrics of one answer or file: objects with a name, each name once; anything else in it is passed
    over.
    """
    found: dict[str, Metadata | Metric] = {}
    for item in value if isinstance(value, Sequence) and not isinstance(value, str) else ():
        if not isinstance(item, Mapping) or not (name := _line(item.get("name"), _NAME_CHARACTERS)):
            continue
        fields = {"name": name, "definition": _line(item.get("definition")), "guidance": _line(item.get("guidance"))}
        if kind is Metric:
            levels = item.get("levels")
            if isinstance(levels, Mapping):
                levels = [levels[key] for key in sorted(levels, key=str)]
            fields["levels"] = (
                tuple(_line(level) for level in levels[:5])
                if isinstance(levels, Sequence) and not isinstance(levels, str)
                else ()
            )
        found.setdefault(name.casefold(), kind(**fields))
    return tuple(found.values())


def read_criteria_set(value: Any) -> CriteriaSet:
    """A criteria set from a JSON object with `metadata` and `metrics`; either may be missing, and both may be empty."""
    value = value if isinstance(value, Mapping) else {}
    return CriteriaSet(
        metadata=read_items(value.get("metadata"), Metadata), metrics=read_items(value.get("metrics"), Metric)
    )


def load_criteria(path: str) -> Criteria:
    """Criteria written by hand, or those of a scorecard, so that another corpus is measured by the same ruler.

    A file by hand is a JSON object with `metadata` and `metrics`, lists of objects with `name`, `definition`,
    `guidance` and, for metrics, `levels` (five texts); or a list of such objects, one a criteria set.

    Raises:
      InputError: no such file, not JSON, or without a single usable criterion.
    """
    value = read_json(path)
    origin = "file"
    if isinstance(value, Mapping) and "criteria" in value:
        value, origin = value["criteria"], "scorecard"
    sets = tuple(read_criteria_set(one) for one in (value if isinstance(value, list) else [value]))
    for number, one in enumerate(sets, start=1):
        if not one.metadata and not one.metrics:
            raise InputError(
                f"{path}: criteria set {number} has neither `metadata` nor `metrics` with a `name`; expected lists of "
                "objects"
            )
    return Criteria(sets=sets, origin=origin)


def merge_names(
    items: Sequence[Metadata | Metric], most_definitions: int = 5
) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Every proposed name with its different definitions, the most often proposed first (ties in order of first
    mention).
    """
    counts: dict[str, int] = {}
    names: dict[str, str] = {}
    definitions: dict[str, dict[str, None]] = {}
    for item in items:
        key = item.name.casefold()
        names.setdefault(key, item.name)
        counts[key] = counts.get(key, 0) + 1
        if item.definition:
            definitions.setdefault(key, {})[item.definition] = None
    order = sorted(counts, key=lambda key: -counts[key])
    return tuple((names[key], tuple(definitions.get(key, {}))[:most_definitions]) for key in order)

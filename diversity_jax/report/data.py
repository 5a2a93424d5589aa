"""What a page is made of: plain, checked values that know nothing of where they came from."""

from dataclasses import dataclass, field
import math

import numpy as np
from numpy.typing import ArrayLike

from diversity_jax.core.errors import InputError
from diversity_jax.core.intervals import Estimate
from diversity_jax.core.run_info import Fact as Fact

ACTIONS = {
    "register": "registered",
    "downweight": "down-weighted",
    "reject": "rejected",
    "warn": "warned",
    "ungated": "ungated",
}


def _finite(owner: str, name: str, value: float, low: float = -math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < low:
        bound = "" if low == -math.inf else f" of at least {low:g}"
        raise InputError(f"{owner}: {name} is {value!r}; expected a finite number{bound}")


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What the gate decided of one component.

    Attributes:
      name: the component.
      kind: "real" or "synthetic".
      action: a key of `ACTIONS`.
      reason: the gate's own words, one line.
      effective_clusters: its diversity; None where it was not scored.
      ratio: its diversity over the reference's; None where there is no reference.
      reference: the component it was compared with.
      required: the effective clusters it needed; None where the policy asks for none.
    """

    name: str
    kind: str
    action: str
    reason: str
    effective_clusters: Estimate | None = None
    ratio: Estimate | None = None
    reference: str | None = None
    required: float | None = None

    def __post_init__(self):
        if self.action not in ACTIONS:
            raise InputError(f"component {self.name}: action is {self.action!r}; expected one of {', '.join(ACTIONS)}")
        if self.effective_clusters is not None and self.effective_clusters.bounds[0] <= 0:
            raise InputError(
                f"component {self.name}: effective_clusters.low is {self.effective_clusters.low!r}; expected more "
                "than 0"
            )


@dataclass(frozen=True, kw_only=True)
class Share:
    """A component's part of the tokens, in [0, 1]: as asked for, as the gate granted it, as training realised it (None
    before).
    """

    name: str
    asked: float
    granted: float
    realised: float | None = None

    def __post_init__(self):
        for name in ("asked", "granted") if self.realised is None else ("asked", "granted", "realised"):
            _finite(f"share of {self.name}", name, getattr(self, name), 0.0)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What was prepared of a component: documents, training tokens, held-out tokens, and passes made over the training
    rows.
    """

    name: str
    documents: int
    tokens: int
    held_out_tokens: int
    passes: float | None = None


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """How often each value was seen: `values` [n] ascending, `counts` [n] not negative; `exact_mean` where the values
    are bins.
    """

    name: str
    values: np.ndarray
    counts: np.ndarray
    exact_mean: float | None = None

    def __post_init__(self):
        for axis in ("values", "counts"):
            object.__setattr__(self, axis, np.asarray(getattr(self, axis), float))
        if self.values.ndim != 1 or self.values.shape != self.counts.shape:
            raise InputError(
                f"distribution of {self.name}: {self.values.shape} values and {self.counts.shape} counts; expected "
                "equal lengths"
            )
        if not (np.isfinite(self.values).all() and np.isfinite(self.counts).all() and (self.counts >= 0).all()):
            raise InputError(f"distribution of {self.name}: values must be finite and counts not negative")
        if (np.diff(self.values) <= 0).any():
            raise InputError(f"distribution of {self.name}: values must ascend, each once")

    @classmethod
    def binned(
        cls, name: str, values: ArrayLike, counts: ArrayLike, *, low: float, high: float, most: int = 40
    ) -> "Distribution":
        """Counts of values in [low, high] in at most `most` bins of one width; whole numbers get a bin each where that
        suffices.
        """
        values, counts = np.asarray(values, float), np.asarray(counts, float)
        if not (
            np.isfinite(values).all() and values.shape == counts.shape and ((values >= low) & (values <= high)).all()
        ):
            raise InputError(
                f"distribution of {name}: expected as many counts as values, and values from {low:g} to {high:g}"
            )
        whole = bool((values == np.round(values)).all())
        width = math.ceil((high - low + 1) / most) if whole else (high - low) / most
        bins = math.ceil((high - low + 1) / width) if whole else most
        place = np.minimum((values - low) // width, bins - 1).astype(int)
        middle = low + width * np.arange(bins) + (width - 1 if whole else width) / 2
        mean = float(values @ counts / counts.sum()) if counts.sum() else None
        return cls(name=name, values=middle, counts=np.bincount(place, counts, bins), exact_mean=mean)

    @property
    def shares(self) -> np.ndarray:
        """Counts over their sum; zeros where nothing was seen."""
        return self.counts / max(self.counts.sum(), 1e-300)

    @property
    def mean(self) -> float:
        """The mean value; NaN where nothing was seen."""
        if self.exact_mean is not None:
            return self.exact_mean
        return float(self.values @ self.shares) if self.counts.sum() else math.nan


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A quantity over training steps or groupings: `x`, `y` [n], and points measured apart, `held_out_x`, `held_out_y`
    [m].
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    held_out_x: np.ndarray = field(default_factory=lambda: np.zeros(0))
    held_out_y: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def __post_init__(self):
        for axis in ("x", "y", "held_out_x", "held_out_y"):
            object.__setattr__(self, axis, np.asarray(getattr(self, axis), float))
        if self.x.shape != self.y.shape or self.held_out_x.shape != self.held_out_y.shape or self.x.ndim != 1:
            raise InputError(f"curve {self.name}: x and y must be of one length")


@dataclass(frozen=True, kw_only=True)
class Convergence:
    """An estimate as groupings come in: `groupings`, `value`, `low`, `high` [n > 0]; NaN in `high` where `low` is a
    bound.
    """

    name: str
    groupings: np.ndarray
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def __post_init__(self):
        for axis in ("groupings", "value", "low", "high"):
            object.__setattr__(self, axis, np.array(getattr(self, axis), float))
        shapes = {getattr(self, axis).shape for axis in ("groupings", "value", "low", "high")}
        if len(shapes) != 1 or self.groupings.ndim != 1 or not len(self.groupings):
            raise InputError(
                f"convergence of {self.name}: groupings, value, low and high must be of one length, at least 1"
            )
        if not ((self.groupings > 0).all() and (self.low > 0).all() and np.isfinite(self.value).all()):
            raise InputError(f"convergence of {self.name}: groupings and low must be above 0, and value finite")


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """One cluster as the judge made it: its texts, its reason, and whether the judge's second look agreed (None: not
    asked).
    """

    texts: tuple[str, ...]
    reason: str = ""
    valid: bool | None = None
    validation: str = ""


@dataclass(frozen=True, kw_only=True)
class Grouping:
    """One grouping shown as an example."""

    number: int
    clusters: tuple[Cluster, ...]


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """One thing a judge groups by; `kind` is "attribute" or "scale", `levels` say what the steps of a scale mean."""

    name: str
    kind: str
    definition: str = ""
    guidance: str = ""
    levels: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CriteriaSet:
    """Criteria that one set of groupings was judged by."""

    entries: tuple[Criterion, ...]

    @property
    def names(self) -> list[str]:
        """The criteria's names."""
        return [entry.name for entry in self.entries]

"""What a mixture is made of: components, their kinds, and the token shares asked for."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
import re

from diversity_jax.corpus import CorpusConfig
from diversity_jax.errors import InputError
from diversity_jax.mixtures.schedule import exact_shares

KINDS = ("real", "synthetic")
ON_FAIL = ("reject", "downweight", "warn")


@dataclass(frozen=True, kw_only=True)
class GatePolicy:
    """What a component's measured diversity must be before it may enter the mixture.

    Attributes:
      min_effective_clusters: the interval of effective clusters must lie above this.
      min_ratio_to: for each reference, the least ratio of effective clusters. A reference is another component's name,
        or `real`: all real components pooled in proportion to their shares.
      on_fail: what happens to a component that is decided to fail: `reject` it; `downweight` its share by
        low / required, where low is the low end of the failing figure's interval; or `warn` and take it as it is.
        One whose interval holds the required figure is undecided: it is taken, with a warning.
      ungated: take a synthetic component that has not been scored.
    """

    min_effective_clusters: float | None = None
    min_ratio_to: dict[str, float] = field(default_factory=dict)
    on_fail: str = "reject"
    ungated: bool = False

    def __post_init__(self):
        if self.on_fail not in ON_FAIL:
            raise InputError(f"policy.on_fail {self.on_fail!r} is unknown; choose one of {', '.join(ON_FAIL)}")
        if self.min_effective_clusters is not None and self.min_effective_clusters < 1:
            raise InputError(f"policy.min_effective_clusters {self.min_effective_clusters}: every corpus has at least 1; give more")
        for reference, ratio in self.min_ratio_to.items():
            if not ratio > 0:
                raise InputError(f"policy.min_ratio_to[{reference!r}] {ratio}: give a ratio above 0")

    @property
    def is_empty(self) -> bool:
        """Whether nothing is required."""
        return self.min_effective_clusters is None and not self.min_ratio_to


@dataclass(frozen=True, kw_only=True)
class Component:
    """One part of a mixture.

    Attributes:
      name: letters, digits and underscores; names its SeqIO task.
      kind: `real` or `synthetic`.
      corpus: where its text comes from; a source string is enough.
      share: of the mixture's tokens; with `real_to_synthetic`, a weight within its kind.
      policy: the gate's conditions.
    """

    name: str
    kind: str
    corpus: CorpusConfig
    share: float = 1.0
    policy: GatePolicy = field(default_factory=GatePolicy)

    def __post_init__(self):
        if not re.fullmatch(r"\w+", self.name, re.ASCII):
            raise InputError(f"component name {self.name!r}: use letters, digits and underscores, since it names a SeqIO task")
        if self.name == "real":
            raise InputError("component name 'real' means all real text together in a policy; give the component another")
        if self.kind not in KINDS:
            raise InputError(f"component {self.name!r}: kind {self.kind!r} is unknown; choose {' or '.join(KINDS)}")
        if not self.share >= 0:
            raise InputError(f"component {self.name!r}: share {self.share}; give a number of at least 0")
        if isinstance(self.corpus, str):
            object.__setattr__(self, "corpus", CorpusConfig(source=self.corpus))


@dataclass(frozen=True, kw_only=True)
class MixtureConfig:
    """A mixture as it is asked for.

    Attributes:
      name: of the SeqIO mixture; letters, digits and underscores.
      components: its parts.
      real_to_synthetic: ratio of real to synthetic TOKENS, such as (4, 1); shares then are weights within each kind.
        Without it, shares are of the whole and must sum to 1.
      vocabulary: `bytes`, a SentencePiece `.model`, a `tokenizer.json`, or a folder with one.
      end_of_text: piece that ends a document, where the tokenizer has no usual one.
      sequence_length: tokens a row predicts.
      validation_share: share of each component's documents held out.
      seed: of row permutations and held-out documents.
    """

    name: str
    components: tuple[Component, ...]
    real_to_synthetic: tuple[float, float] | None = None
    vocabulary: str = "bytes"
    end_of_text: str | None = None
    sequence_length: int = 2048
    validation_share: float = 0.005
    seed: int = 0

    def __post_init__(self):
        if not re.fullmatch(r"\w+", self.name, re.ASCII):
            raise InputError(f"mixture name {self.name!r}: use letters, digits and underscores, since it names a SeqIO mixture")
        if not self.components:
            raise InputError(f"mixture {self.name!r} has no components; give at least one")
        names = [component.name for component in self.components]
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"mixture {self.name!r} has {names.count(name)} components named {name!r}; give each its own name")
        for component in self.components:
            for reference in component.policy.min_ratio_to:
                if reference not in ("real", *names) or reference == component.name:
                    raise InputError(f"component {component.name!r}: min_ratio_to names {reference!r}; name 'real' or another component")
        token_shares(self.components, self.real_to_synthetic)


def token_shares(components: Sequence[Component], real_to_synthetic: tuple[float, float] | None = None) -> tuple[Fraction, ...]:
    """Each component's share of the mixture's tokens, exact, summing to one.

    Raises:
      InputError: shares do not sum to 1 and no ratio is given, or a kind with a part in the ratio has no component.
    """
    weights = [_fraction(component.share) for component in components]
    if real_to_synthetic is None:
        if abs(float(sum(weights)) - 1) > 1e-6:
            listed = ", ".join(f"{component.name} {component.share:g}" for component in components)
            raise InputError(f"shares sum to {float(sum(weights)):g} ({listed}); make them sum to 1, or set real_to_synthetic")
        return exact_shares(weights)
    if len(real_to_synthetic) != 2 or min(real_to_synthetic) < 0 or sum(real_to_synthetic) == 0:
        raise InputError(f"real_to_synthetic {real_to_synthetic}: give two parts, such as (4, 1)")
    shares = [Fraction(0)] * len(components)
    for kind, part in zip(KINDS, real_to_synthetic, strict=True):
        members = [i for i, component in enumerate(components) if component.kind == kind]
        total = sum(weights[i] for i in members)
        if part and not total:
            raise InputError(f"real_to_synthetic gives {part:g} parts to {kind} text, but no {kind} component has a share")
        for i in members:
            shares[i] = _fraction(part) * weights[i] / total if total else Fraction(0)
    return exact_shares(shares)


def _fraction(value: float) -> Fraction:
    """The decimal number a person wrote: 0.1 is a tenth."""
    return Fraction(str(value))


def regrant(components: Sequence[Component], shares: Sequence[Fraction], factors: Sequence[float]) -> tuple[Fraction, ...]:
    """Shares after the gate: each multiplied by its factor in [0, 1], what is taken away given to others.

    It goes to the components of the same kind that were not touched, in proportion to their shares, so that the ratio of
    real to synthetic tokens holds; if there is none, to all untouched components.

    Raises:
      InputError: nothing is left to train on.
    """
    kept = [share * _fraction(round(factor, 4)) for share, factor in zip(shares, factors, strict=True)]
    untouched = [i for i, factor in enumerate(factors) if factor == 1 and shares[i]]
    granted = list(kept)
    for kind in KINDS:
        freed = sum(share - rest for component, share, rest in zip(components, shares, kept, strict=True) if component.kind == kind)
        heirs = [i for i in untouched if components[i].kind == kind] or untouched
        total = sum(shares[i] for i in heirs)
        for i in heirs:
            granted[i] += freed * shares[i] / total
    if not any(granted):
        raise InputError("the gate rejected every component; loosen a policy (on_fail='warn') or add text that passes")
    return exact_shares(granted)

"""Result of a judge's exam: true and measured clusters of each corpus, errors by kind of pair, and the verdict."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
import statistics
from typing import Any

from diversity_jax.cluster_agent.canaries import binomial
from diversity_jax.cluster_agent.types import describe_failures
from diversity_jax.cluster_agent.verdict import FITNESS, Finding, Fitness, Verdict
from diversity_jax.core.errors import InputError
from diversity_jax.core.formats import counted, estimate, listed, shortened, significant
from diversity_jax.core.intervals import Estimate

VERSION = 1
TOLERANCE = 1.25
"""A reading is wrong where its whole interval lies outside truth / 1.25 to 1.25 truth."""
_UNFIT_FACTOR = 2.0  # in place of `TOLERANCE`, for `unfit`
# Bounds of `ExamReading.agreement`. A judge that misplaces one sample in twenty reaches 0.7 where there are 24
# subjects.
_LEAST_AGREEMENT, _UNFIT_AGREEMENT = 0.6, 0.3
_FEWEST_PAIRS = 20  # of a kind, for its error rate to be a reason
_DROPPED_SHARE = 0.2  # of the groupings, from which the others may not be representative
_DETAIL_CHARACTERS = 160  # of a refusal, in a reason
_DESCRIBED = 3  # wrong corpora that are described; further ones are only named
_DESCRIBED_SHARE = 0.05  # of the pairs of a kind, from which errors are named
HALF = "subjects_24_half"  # the corpus at half of K

TITLES: Mapping[str, str] = {
    "subjects_24": "24 subjects",
    HALF: "24 subjects at K / 2",
    "subjects_6": "6 subjects far apart",
    "one_subject": "one subject",
    "neighbours": "12 subjects in pairs of neighbours",
    "skewed": "24 subjects of falling size",
    "styles": "4 subjects in 5 styles",
    "lengths": "6 subjects at 15 to 70 words",
    "languages": "6 subjects in 13 languages",
}
# Corpora that do not enter the verdict: a judge that reads one language only is fit to judge texts in it.
INFORMATION = ("languages",)
RIGHT: Mapping[str, str] = {
    "same": "of one subject",
    "same_styles": "of one subject in two styles",
    "same_languages": "of one subject in two languages",
}
"""Kinds of pairs that belong together."""
WRONG: Mapping[str, str] = {
    "neighbours": "of neighbouring subjects",
    "one_style": "of two subjects in one style",
    "one_language": "of two subjects in one language",
    "unrelated": "of unrelated subjects",
}
"""Kinds of pairs that do not; those of languages and styles where a corpus has several."""


@dataclass(frozen=True, kw_only=True)
class PairCounts:
    """Numbers of pairs of one kind: `shown`, `claimed` to belong together by the partition, left `together` by
    verification.
    """

    shown: int
    claimed: int
    together: int

    def __add__(self, other: "PairCounts") -> "PairCounts":
        return PairCounts(**{name: value + getattr(other, name) for name, value in vars(self).items()})


NO_PAIRS = PairCounts(shown=0, claimed=0, together=0)


@dataclass(frozen=True, kw_only=True)
class ExamReading:
    """The judge's figures on one corpus.

    Attributes:
      truth: effective clusters of the corpus by its labels.
      reading: by the judge: the truth divided by the ratio of the pairs that it put together to those of one subject,
        with its interval. None where no grouping was usable.
      samples_per_grouping: K, at most the corpus's size.
      groupings: judged, dropped ones included; 0 where the judge refused the corpus.
      drops: groupings that do not count, by reason; detail: message of the commonest reason, or of the refusal.
      pairs: by kind, over all groupings that were partitioned, also those that a canary discarded.
    """

    corpus: str
    truth: float
    reading: Estimate | None
    samples_per_grouping: int
    groupings: int
    drops: Mapping[str, int]
    pairs: Mapping[str, PairCounts]
    detail: str = ""

    @property
    def title(self) -> str:
        """The corpus in words."""
        return TITLES[self.corpus]

    @property
    def agreement(self) -> Estimate | None:
        """Of the pairs that are of one subject or were put together, the share that are both; None without any."""
        right, wrong = total([self.pairs], RIGHT), total([self.pairs], WRONG)
        return binomial(right.together, right.shown + wrong.together)

    def describe(self, scale: float | None = None) -> str:
        """One line, such as: 24 subjects read as 5.1 effective clusters [4.2, 6.3], in truth 26.6: puts together 61 %
        of the pairs of neighbouring subjects. With the `scale` of a relative judge, the value expected by that instead.
        """
        if self.reading is None:
            return f"{self.title}: none of {counted(self.groupings, 'grouping')} was usable"
        read = f"{self.title} read as {estimate(self.reading, 'effective clusters')}"
        if scale:
            return f"{read}, where {significant(scale * self.truth)} would fit its other readings"
        wrong = mistakes([self.pairs])
        return f"{read}, in truth {significant(self.truth)}" + (wrong and f": {wrong}")

    def to_json(self) -> dict[str, Any]:
        pairs = {kind: vars(counts) for kind, counts in self.pairs.items()}
        reading = self.reading and self.reading.to_json()
        return {**vars(self), "reading": reading, "drops": dict(self.drops), "pairs": pairs}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: str) -> "ExamReading":
        reading = value["reading"] and Estimate.from_json(value["reading"], f"{where}: reading")
        pairs = {kind: PairCounts(**counts) for kind, counts in value["pairs"].items()}
        if value["corpus"] not in TITLES:
            raise KeyError(value["corpus"])
        return cls(**{**value, "reading": reading, "pairs": pairs})


@dataclass(frozen=True, kw_only=True)
class ExamResult:
    """The result of an exam.

    Attributes:
      judge, prompt_version, identity: of the judge.
      settings: of the run that the judge was examined for, which its answers depend on.
      relative: whether it is an embedding judge, whose threshold sets the scale of its figures. Then only their ratios
        are examined, not which pairs it puts together.
      readings: one for each corpus, in the order of `GROUPINGS`.
      calls, tokens, cost_usd: use of the exam; tokens by "prompt" and "completion".
    """

    judge: str
    prompt_version: str
    identity: Mapping[str, Any]
    settings: Mapping[str, Any]
    relative: bool
    readings: tuple[ExamReading, ...]
    calls: int
    tokens: Mapping[str, int]
    cost_usd: float

    @property
    def scale(self) -> float:
        """Divisor of the readings: for a relative judge the median of reading over truth, otherwise 1."""
        read = [reading for reading in self.readings if reading.reading and reading.corpus not in INFORMATION]
        ratios = [reading.reading.value / reading.truth for reading in read if reading.reading]
        return statistics.median(ratios) if self.relative and ratios else 1.0

    def fitness_of(self, reading: ExamReading) -> Fitness:
        """Whether figures on corpora like that of a reading can be trusted."""
        if reading.reading is None:
            return "unfit"
        low, high = (end / self.scale for end in reading.reading.bounds)
        agreement = 1.0 if self.relative or not reading.agreement else reading.agreement.bounds[1]
        grades: tuple[tuple[Fitness, float, float], ...] = (
            ("unfit", _UNFIT_FACTOR, _UNFIT_AGREEMENT),
            ("doubtful", TOLERANCE, _LEAST_AGREEMENT),
        )
        for fitness, factor, least in grades:
            if high < reading.truth / factor or low > reading.truth * factor or agreement < least:
                return fitness
        return "fit"

    def graded(self, reading: ExamReading) -> str:
        """`fitness_of`, or `refused` where the judge refused the corpus."""
        return self.fitness_of(reading) if reading.groupings else "refused"

    @property
    def verdict(self) -> Verdict:
        """The worst that any reading shows, and the reasons, the worst first, then in the order of the corpora."""
        return Verdict.of([*self._unusable(), *self._wrong(), *self._drift()])

    def _unusable(self) -> Iterator[Finding]:
        """A finding on all corpora without a usable grouping, or on many dropped groupings; and one on each refusal."""
        drops: Counter[str] = Counter()
        for reading in self.readings:
            drops.update(reading.drops)
        details = {reason: reading.detail for reading in self.readings for reason in reading.drops}
        why, of = describe_failures(drops, details), sum(reading.groupings for reading in self.readings)
        share = binomial(drops.total(), of)
        refused = [reading for reading in self.readings if not reading.groupings]
        if empty := [reading for reading in self.readings if reading.reading is None and reading.groupings]:
            fitness: Fitness = "fit" if all(reading.corpus in INFORMATION for reading in empty) else "unfit"
            wrong = mistakes([reading.pairs for reading in empty])
            yield fitness, f"no grouping was usable of {_named(empty)} ({why})" + (wrong and f": {wrong}")
        elif share and (share.low or 0.0) > _DROPPED_SHARE:
            yield "doubtful", f"{drops.total()} of {counted(of, 'grouping')} do not count ({why})"
        for reading in refused:
            yield "fit", f"refuses {reading.title}: {shortened(reading.detail, _DETAIL_CHARACTERS)}"

    def _wrong(self) -> Iterator[Finding]:
        """Findings on wrong readings: those with the least agreement of judge and labels, and the number of others."""
        wrong = [reading for reading in self.readings if reading.reading and self.fitness_of(reading) != "fit"]
        counting = [reading for reading in wrong if reading.corpus not in INFORMATION]
        counting.sort(key=lambda reading: reading.agreement.value if reading.agreement else 1.0)
        for reading in counting[:_DESCRIBED]:
            yield self.fitness_of(reading), reading.describe(self.scale if self.relative else None)
        if further := counting[_DESCRIBED:]:
            least = min((self.fitness_of(reading) for reading in further), key=FITNESS.index)
            yield least, f"it misreads also {_named(further)}"
        for reading in wrong:
            if reading.corpus in INFORMATION:
                yield "fit", f"not for corpora in several languages: {reading.describe()}"
        if self.relative:
            scale = f"its figures are about {significant(self.scale, 2)} times the number of subjects"
            yield "fit", f"{scale}: compare corpora by them, and take none for a count"

    def _drift(self) -> Iterator[Finding]:
        """A finding where readings at K and at K / 2 differ by more than the tolerance."""
        by_corpus = {reading.corpus: reading for reading in self.readings}
        at_full_size, half = by_corpus.get("subjects_24"), by_corpus.get(HALF)
        if not (at_full_size and half and at_full_size.reading and half.reading):
            return
        for this, other in ((at_full_size.reading, half.reading), (half.reading, at_full_size.reading)):
            if this.bounds[1] * TOLERANCE < other.bounds[0]:
                sizes = f"K = {at_full_size.samples_per_grouping} and {half.samples_per_grouping}"
                read = f"{at_full_size.reading.value:.3g} and {half.reading.value:.3g} effective clusters"
                yield "doubtful", f"24 subjects are read as {read} at {sizes}"

    def __str__(self) -> str:
        """A table of truth and reading of the corpora, then the verdict and its reasons."""
        lines = [f"{'corpus':42}{'truth':>8}  effective clusters by the judge"]
        for reading in self.readings:
            read = estimate(reading.reading) if reading.reading else "none"
            lines.append(f"{reading.title:42}{significant(reading.truth):>8}  {read:32}{self.graded(reading)}")
        lines.append(f"judge {self.judge}: {self.verdict.judge}")
        return "\n".join([*lines, *(f"  {reason}" for reason in self.verdict.reasons)])

    def to_json(self) -> dict[str, Any]:
        """All fields, the version and the verdict by name."""
        value = {**vars(self), "identity": dict(self.identity), "settings": dict(self.settings)}
        readings = [reading.to_json() for reading in self.readings]
        return value | {"version": VERSION, "readings": readings, "verdict": self.verdict.to_json()}

    @classmethod
    def from_json(cls, value: Any, where: str) -> "ExamResult":
        """Reads `to_json`'s value.

        Raises:
          InputError: it is something else, or of another version; the message begins with `where`.
        """
        try:
            if value["version"] != VERSION:
                raise InputError(f"{where}: version is {value['version']!r}, not {VERSION}; remove it, examine again")
            readings = tuple(ExamReading.from_json(reading, where) for reading in value["readings"])
            fields = {name: part for name, part in value.items() if name not in ("version", "verdict")}
            return cls(**{**fields, "readings": readings})
        except (KeyError, TypeError, AttributeError):
            raise InputError(f"{where}: is not the result of an exam; remove the file, examine again") from None


def _named(readings: Sequence[ExamReading]) -> str:
    """The titles of the corpora, or their number where they are many."""
    titles = [reading.title for reading in readings]
    return listed(titles) if len(titles) <= _DESCRIBED else f"{len(titles)} of {len(TITLES)} corpora"


def mistakes(counts: Sequence[Mapping[str, PairCounts]]) -> str:
    """Frequent errors by kind of pair, such as "puts together 61 % of the pairs of neighbouring subjects"; or empty."""
    described = []
    for kinds, does in ((WRONG, "puts together"), (RIGHT, "sets apart")):
        for kind, what in kinds.items():
            pairs = total(counts, [kind])
            wrong = pairs.together if kind in WRONG else pairs.shown - pairs.together
            if pairs.shown >= _FEWEST_PAIRS and wrong >= _DESCRIBED_SHARE * pairs.shown:
                described.append(f"{does} {100 * wrong / pairs.shown:.0f} % of the pairs {what}")
    return "; ".join(described)


def total(counts: Iterable[Mapping[str, PairCounts]], kinds: Collection[str]) -> PairCounts:
    """Sum of the pairs of some kinds over groupings."""
    return sum((pairs.get(kind, NO_PAIRS) for pairs in counts for kind in kinds), NO_PAIRS)

"""Verdict on a judge: whether its figures can be trusted (`fit`, `doubtful` or `unfit`), with the reasons.

Every finding is a pure function of what a scorecard holds. It is made only where an interval excludes that the fault
biases the figure by less than a stated share. So a judge that reads the texts, and errs at random in one or two samples
of a hundred, is seldom called doubtful (by all findings together in 1 of 450 simulated runs, with other seeds in 2 of
120: docs/judges.md).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
import os
from typing import Any, Literal, get_args

from diversity_jax.cluster_agent.canaries import ErrorRates, binomial
from diversity_jax.cluster_agent.types import describe_failures
from diversity_jax.core import files
from diversity_jax.core.errors import InputError
from diversity_jax.core.formats import counted
from diversity_jax.core.intervals import Estimate

Fitness = Literal["fit", "doubtful", "unfit"]
FITNESS: tuple[Fitness, ...] = get_args(Fitness)
Finding = tuple[Fitness, str]  # with its reason

# Thresholds of the findings; most are the relative bias of the figure that a fault must at least cause, with certainty.
_DOUBTFUL_BIAS, _UNFIT_BIAS = 0.1, 0.75
_DOUBTFUL_SPLITS, _UNFIT_SPLITS = 0.04, 0.5  # splits for which the figure is not corrected
_DOUBTFUL_MISPLACEMENT = 0.1  # for which it is corrected
_DOUBTFUL_DROPS, _UNFIT_DROPS = 0.2, 0.5  # of the groupings
_DOUBTFUL_CONTROL = 0.2  # of the control clusters that were misjudged
_DOUBTFUL_FLIPS, _UNFIT_FLIPS = 0.2, 0.6
_DOUBTFUL_DRIFT, _UNFIT_DRIFT = 0.15, 0.75
_DOUBTFUL_POSITION, _UNFIT_POSITION = 0.3, 1.0
_DOUBTFUL_LENGTH = 0.85  # area under the curve


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a judge's figures can be trusted.

    Attributes:
      judge: `fit`: no bias was found beyond the figures' intervals; `doubtful`: the figures may be biased, or a bias
        could not be measured; `unfit`: they do not measure the corpus.
      reasons: one line each; of a fit judge only information.
    """

    judge: Fitness
    reasons: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.judge not in FITNESS or not all(isinstance(reason, str) for reason in self.reasons):
            raise InputError(f"verdict: expected judge, one of {', '.join(FITNESS)}, and reasons, a list of texts")

    def to_json(self) -> dict[str, Any]:
        return {"judge": self.judge, "reasons": list(self.reasons)}

    @classmethod
    def of(cls, findings: Sequence[Finding]) -> "Verdict":
        """The worst of all findings, and their reasons, the worst first."""
        worst: Fitness = max((fitness for fitness, _ in findings), key=FITNESS.index, default="fit")
        ordered = sorted(findings, key=lambda finding: -FITNESS.index(finding[0]))
        return cls(judge=worst, reasons=tuple(reason for _, reason in ordered))

    @classmethod
    def from_json(cls, value: Any, where: str) -> "Verdict":
        """Reads `to_json`'s value.

        Raises:
          InputError: it is something else; the message begins with `where`.
        """
        try:
            return cls(judge=value["judge"], reasons=tuple(value["reasons"]))
        except (KeyError, TypeError, ValueError):
            raise InputError(f"{where}: expected judge, one of {', '.join(FITNESS)}, and reasons") from None


@dataclass(frozen=True, kw_only=True)
class JudgeEvidence:
    """What a verdict is derived from.

    Attributes:
      groupings: judged in all; drops: those that do not count, by reason.
      rates: of the canaries.
      collision: T; None where no grouping was usable.
      relative_half_width: of the interval of the figure; None where only a bound is known.
      consistency, drift, checks: as on the scorecard.
      exam: verdict of an exam that the same judge took; None where there is none.
      is_embedding_judge: such a judge is shown no canaries, since it puts copies together by construction, and compares
        two texts alike whatever others are shown.
    """

    groupings: int
    drops: Mapping[str, int]
    rates: ErrorRates
    collision: float | None = None
    relative_half_width: float | None = None
    consistency: Mapping[str, Any] | None = None
    drift: Mapping[str, Any] | None = None
    checks: Mapping[str, Any] = field(default_factory=dict)
    exam: Verdict | None = None
    is_embedding_judge: bool = False


def verdict(evidence: JudgeEvidence) -> Verdict:
    """The verdict of all findings; those that are `fit` are reasons only where all are."""
    findings = [finding for find in _FINDERS for finding in find(evidence)]
    return Verdict.of([finding for finding in findings if finding[0] != "fit"] or findings)


def _grade(share: float, doubtful: float, unfit: float | None) -> Fitness | None:
    if unfit is not None and share > unfit:
        return "unfit"
    return "doubtful" if share > doubtful else None


def _low(estimate: Any) -> float:
    """Lower end of an estimate or of its JSON; 0 where there is none."""
    low = estimate.get("low") if isinstance(estimate, Mapping) else estimate and estimate.low
    return float(low or 0.0)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.0995 or not share else f"{100 * share:.2g} %"


def _drops(evidence: JudgeEvidence) -> Iterator[Finding]:
    dropped, of = sum(evidence.drops.values()), evidence.groupings
    share = binomial(dropped, of)
    grade = share and _grade(_low(share), _DOUBTFUL_DROPS, _UNFIT_DROPS)
    why = ", ".join(f"{reason} {count}" for reason, count in sorted(evidence.drops.items()))
    if evidence.collision is None:
        yield "unfit", f"none of {counted(of, 'grouping')} was usable ({why or 'nothing was judged'})"
    elif grade:
        yield (
            grade,
            f"{dropped} of {counted(of, 'grouping')} do not count ({why}): the others may not be representative",
        )


def _canaries(evidence: JudgeEvidence) -> Iterator[Finding]:
    rates, theta = evidence.rates, evidence.collision
    if not rates.shown and evidence.is_embedding_judge:
        return
    if not rates.shown:
        yield "doubtful", "no canaries were shown, so nothing is known of this judge's mistakes"
        return
    merge = rates.pair_merge
    foreign = f"in {rates.merged} of {counted(rates.shown, 'grouping')} a foreign text was put with samples"
    if _low(rates.false_merge) > _UNFIT_DROPS:
        yield "unfit", foreign
    elif theta and merge:
        share = (1 - theta) / theta
        if grade := _grade(_low(merge) * share, _tolerated(evidence), _UNFIT_BIAS):
            yield grade, f"{foreign}: some {_percent(min(1, merge.value * share))} of all it puts together is unrelated"
    moved = rates.misplacement
    if moved and _low(moved) > _DOUBTFUL_MISPLACEMENT:
        yield "doubtful", f"it puts a text elsewhere than its own copy in {_percent(moved.value)} of the groupings"
    split = rates.pair_split_beside_misplacement
    if split and (grade := _grade(_low(split), _DOUBTFUL_SPLITS, _UNFIT_SPLITS)):
        yield grade, f"it sets a text apart from its own copy, or calls them unlike, in {_percent(split.value)}"


def _tolerated(evidence: JudgeEvidence) -> float:
    """Bias that is small beside the interval (half of its half-width), at least `_DOUBTFUL_BIAS`."""
    return max(_DOUBTFUL_BIAS, (evidence.relative_half_width or 0.0) / 2)


def _verification(evidence: JudgeEvidence) -> Iterator[Finding]:
    rates = evidence.rates
    if _low(rates.miss) > _DOUBTFUL_CONTROL:
        accepted_foreign = (
            f"calls a cluster with a foreign text valid in {rates.missed} of {counted(rates.controls, 'grouping')}"
        )
        yield "doubtful", f"its verification {accepted_foreign}: it does not check"
    if _low(rates.denial) > _DOUBTFUL_CONTROL:
        denied_copies = f"calls a text and its copy unlike in {rates.denied} of {counted(rates.controls, 'grouping')}"
        yield "doubtful", f"its verification {denied_copies}"


def _consistency(evidence: JudgeEvidence) -> Iterator[Finding]:
    """Random false merges that verification lets pass, and random false splits."""
    consistency = evidence.consistency
    if not consistency:
        return
    passes = evidence.rates.passing
    passing = 1.0 if passes is None else passes.value
    if grade := _grade(_low(consistency["flip_rate"]) * passing, _DOUBTFUL_FLIPS, _UNFIT_FLIPS):
        share = _percent(consistency["flip_rate"]["value"])
        yield grade, f"asked again, it does not repeat {share} of what it puts together"
    repeat = consistency["repeat_rate"]
    if repeat and (grade := _grade(1 - repeat["high"], _DOUBTFUL_FLIPS, _UNFIT_FLIPS)):
        share = _percent(1 - repeat["value"])
        yield grade, f"asked again, it sets apart {share} of the pairs that it had rightly put together"


def _drift(evidence: JudgeEvidence) -> Iterator[Finding]:
    drift = evidence.drift
    if not drift or not drift["drifts"]:
        return
    interval = Estimate.from_json(drift["difference"], "drift: difference")
    least = min(map(abs, interval.bounds)) * abs(drift["relative"] / interval.value)
    if grade := _grade(least, _DOUBTFUL_DRIFT, _UNFIT_DRIFT):
        more = "more" if drift["relative"] > 0 else "less"
        share, sizes = _percent(abs(drift["relative"])), f"among {drift['half']} samples than among {drift['K']}"
        yield grade, f"it puts {share} {more} of the same pairs together {sizes}"


def _position(evidence: JudgeEvidence) -> Iterator[Finding]:
    position = evidence.checks.get("position")
    if position and position["follows"] and (grade := _grade(position["effect"], _DOUBTFUL_POSITION, _UNFIT_POSITION)):
        yield grade, "its clusters follow the places of samples in the list, whose order is random"


def _length(evidence: JudgeEvidence) -> Iterator[Finding]:
    length = evidence.checks.get("length")
    if length and _low(length) > _DOUBTFUL_LENGTH:
        share = f"length tells which belong together in {_percent(length['value'])} of the cases"
        yield "doubtful", f"its clusters follow the length of texts ({share})"


def _cluster_counts(evidence: JudgeEvidence) -> Iterator[Finding]:
    counts = evidence.checks.get("cluster_counts")
    if counts and counts["held"]:
        yield "unfit", f"it makes about {counts['mean']:.3g} clusters whatever it is shown, at most {counts['most']}"


def _exam(evidence: JudgeEvidence) -> Iterator[Finding]:
    if evidence.exam is None:
        yield "fit", "exam not taken"
    else:
        if evidence.exam.judge == "fit":
            yield "fit", "exam passed"
        for reason in evidence.exam.reasons:
            yield evidence.exam.judge, f"exam: {reason}"


_FINDERS: tuple[Callable[[JudgeEvidence], Iterator[Finding]], ...] = (
    _drops,
    _cluster_counts,
    _position,
    _canaries,
    _verification,
    _consistency,
    _drift,
    _length,
    _exam,
)


@dataclass(frozen=True, kw_only=True)
class UnusableScore:
    """The record of a scoring without one usable grouping.

    Attributes:
      judge, prompt_version, corpus, parameters, calls, tokens, cost_usd: as on a scorecard.
      groupings: judged; drops: their number by reason; details: the first message of each reason.
      ended: why no further call could succeed; None where calls could.
      example_answer: the beginning of the first unusable answer; empty where no answer came.
      canaries, checks, verdict: as on a scorecard, from the partitions that came; the verdict is `unfit`.
    """

    judge: str
    prompt_version: str
    corpus: Mapping[str, Any]
    groupings: int
    drops: Mapping[str, int]
    details: Mapping[str, str]
    verdict: Verdict
    ended: str | None = None
    example_answer: str = ""
    canaries: Mapping[str, Any] = field(default_factory=dict)
    checks: Mapping[str, Any] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    calls: int = 0
    tokens: Mapping[str, int] = field(default_factory=dict)
    cost_usd: float = 0.0

    @property
    def summary(self) -> str:
        """One line: the judge, and the failures by reason."""
        why = self.ended or describe_failures(self.drops, self.details)
        hint = "" if self.ended else "; try another judge"
        return f"judge {self.judge}: none of {counted(self.groupings, 'grouping')} was usable ({why}){hint}"

    @property
    def remedies(self) -> tuple[str, ...]:
        """Remedies, the likeliest first."""
        k = self.parameters.get("samples_per_grouping", 10)
        if set(self.drops) == {"canary"}:
            return (
                "a more capable judge: this one put foreign texts with samples, or texts apart from their own copies",
                f"fewer samples at once, so that it keeps track: agent.samples_per_grouping={max(2, k // 2)}",
                "the audit command, which examines a judge on texts whose groups are known",
            )
        if "truncated" in self.drops:
            return (
                "shorter answers: agent.reasoning_words=0, or agent.schema_limits=True on a server that enforces it",
                f"longer answers allowed: agent.max_output_tokens={2 * self.parameters.get('max_output_tokens', 4096)}",
                f"fewer samples at once: agent.samples_per_grouping={max(2, k // 2)}",
            )
        return (
            "a server that enforces JSON schemas, so that no partition is malformed: vLLM, llama.cpp, OpenAI, Gemini",
            f"smaller questions: agent.samples_per_grouping={max(2, k // 2)} and agent.reasoning_words=0",
            "a more capable judge, or judge=offline, which needs none",
        )

    def to_json(self) -> dict[str, Any]:
        """All fields, with None for the figures; `Scorecard.load` refuses it with its summary."""
        figures = dict.fromkeys(("effective_clusters", "cluster_score", "clusters_per_sample", "collision"))
        value = {**vars(self), "verdict": self.verdict.to_json()}
        return figures | value | {"unusable": self.summary, "remedies": list(self.remedies)}

    def save(self, path: str | os.PathLike) -> None:
        """Writes it as JSON, atomically."""
        files.write_json(path, self.to_json())


class NothingUsable(InputError):
    """No grouping was usable, so that there is no scorecard.

    Attributes:
      folder: of the corpus in the run's folder; empty where it is the only one.
    """

    def __init__(self, score: UnusableScore):
        super().__init__(score.summary)
        self.score = score
        self.folder = ""

"""The gate: what a component's measured diversity decides about its share of the mixture.

`measure` takes the figures from scorecards, and `decide` is a pure function of a policy and those figures, so that a
decision can be recomputed from the figures that a mixture file records. A component fails only if its interval is
entirely below the required figure; if the interval includes the figure, the component is accepted with a warning.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from diversity_jax.cluster_agent import Scorecard, Undecided, clusters_at_its_look
from diversity_jax.cluster_agent.compare import compare
from diversity_jax.core.errors import InputError
from diversity_jax.core.formats import of_unit
from diversity_jax.core.intervals import Estimate
from diversity_jax.mixtures.config import ON_FAIL, Component, GatePolicy


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """The figures of one component that a decision may depend on.

    Attributes:
      effective_clusters: of its scorecard.
      ratios: effective clusters over those of each reference that its policy names.
      scorecard_hash: of its scorecard; reference_hashes: of the references'.
      corpus_fingerprint: of the text that was scored; judge: which judge scored it.
      unfit: why the judge's scores of the component or of a reference are not valid; None where they are.
    """

    effective_clusters: Estimate
    ratios: Mapping[str, Estimate]
    scorecard_hash: str
    reference_hashes: Mapping[str, str]
    corpus_fingerprint: str
    judge: str
    unfit: str | None = None

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Reads `dataclasses.asdict`; raises TypeError or KeyError where a field is missing or unknown."""
        ratios = {reference: Estimate(**ratio) for reference, ratio in value["ratios"].items()}
        clusters = Estimate(**value["effective_clusters"])
        references = {name: str(reference) for name, reference in value["reference_hashes"].items()}
        figures = {"effective_clusters": clusters, "ratios": ratios, "reference_hashes": references}
        return cls(**{**value, **figures})


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One required figure against its measured interval.

    Attributes:
      figure: `effective_clusters`, or `ratio_to:REFERENCE`.
      value, low, high: measured; `high` is None where only a lower bound is known.
      required: the least the policy accepts.
      verdict: `passes`, `fails` or `undecided`.
    """

    figure: str
    value: float
    low: float
    high: float | None
    required: float
    verdict: str


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What the gate decided about a component.

    Attributes:
      action: `register`, `ungated`, or one of `config.ON_FAIL`; reason: in one line, for logs and pages.
      factor: that the share is multiplied by, in [0, 1].
      policy: the conditions; findings: how the component met them.
      scorecard_hash: of the component's scorecard; None where it was not scored.
      effective_clusters: of that scorecard.
    """

    action: str
    reason: str
    factor: float
    policy: GatePolicy
    findings: tuple[Finding, ...] = ()
    scorecard_hash: str | None = None
    effective_clusters: Estimate | None = None


def measure(component: Component, scorecards: Mapping[str, Scorecard]) -> Measurement | None:
    """The figures that a component's policy asks for; None where it was not scored.

    Args:
      scorecards: by component name, and under `real` the real components pooled; all under the same criteria.

    Raises:
      InputError: a reference was not scored, or under other judge settings.
    """
    scorecard = scorecards.get(component.name)
    if scorecard is None:
        return None
    ratios = {}
    for reference in component.policy.min_ratio_to:
        if reference not in scorecards:
            raise InputError(f"component {component.name!r}: its reference {reference!r} was not scored; score both")
        ratio = compare(scorecard, scorecards[reference])
        ratios[reference] = Estimate(value=ratio.ratio, low=ratio.low or 0.0, high=ratio.high)
    return Measurement(
        effective_clusters=clusters_at_its_look(scorecard),
        ratios=ratios,
        scorecard_hash=scorecard.content_hash,
        reference_hashes={reference: scorecards[reference].content_hash for reference in ratios},
        corpus_fingerprint=scorecard.corpus["fingerprint"],
        judge=scorecard.judge,
        unfit=next(filter(None, map(_unfit, (scorecard, *(scorecards[name] for name in ratios)))), None),
    )


def _unfit(scorecard: Scorecard) -> str | None:
    verdict = scorecard.verdict
    if verdict is None or verdict.judge != "unfit":
        return None
    return verdict.reasons[0] if verdict.reasons else "no reason is recorded"


def decide(component: Component, measurement: Measurement | None) -> Decision:
    """Decides about one component by its policy and figures; without figures, by its policy alone."""
    policy = component.policy
    if measurement is None:
        action, factor, reason = "reject", 0.0, "not scored; score it, or set policy.ungated to accept it unscored"
        if component.kind == "real" and policy.is_empty:
            action, factor, reason = "register", 1.0, "real text without conditions"
        elif policy.ungated:
            action, factor, reason = "ungated", 1.0, "accepted unscored, as its policy says"
        return Decision(action=action, reason=reason, factor=factor, policy=policy)
    is_unfit = measurement.unfit is not None and not policy.is_empty and not policy.accept_unfit_judge
    findings = () if is_unfit else tuple(_findings(policy, measurement))
    failed = [finding for finding in findings if finding.verdict == "fails"]
    undecided = [finding for finding in findings if finding.verdict == "undecided"]
    action, factor, reason = "register", 1.0, "no condition; scored for reference"
    if is_unfit:
        problem = f"judge {measurement.judge} is unfit to decide ({measurement.unfit})"
        action, factor, reason = "reject", 0.0, f"{problem}; take another judge, or set policy.accept_unfit_judge"
    elif failed:
        worst = min(failed, key=lambda finding: finding.low / finding.required)
        action, reason = policy.on_fail, _reason(worst, "below")
        factor = ON_FAIL[policy.on_fail].factor(worst.low / worst.required, policy.downweight_power)
    elif undecided:
        action, reason = "warn", _reason(undecided[0], "not decided against")
    elif findings:
        reason = _reason(findings[0], "above")
    return Decision(
        action=action,
        reason=reason,
        factor=factor,
        policy=policy,
        findings=findings,
        scorecard_hash=measurement.scorecard_hash,
        effective_clusters=measurement.effective_clusters,
    )


def undecided(components: Sequence[Component]) -> Undecided:
    """A function from scorecards to names of the components and references of which a decision needs more groupings.

    A decision is final once a condition has failed or all have passed. `auto` components are scored in full, since
    their shares depend on their figures.
    """

    def names(scorecards: Mapping[str, Scorecard]) -> set[str]:
        needed: set[str] = set()
        given = {part.name: Scorecard.load(part.scorecard) for part in components if part.scorecard}
        for component in components:
            measurement = measure(component, {**given, **scorecards})
            verdicts = [finding.verdict for finding in decide(component, measurement).findings]
            needs_more = not verdicts or ("undecided" in verdicts and "fails" not in verdicts)
            if measurement is not None and (needs_more or component.policy.auto):
                needed |= {component.name, *component.policy.min_ratio_to}
        return needed

    return names


def _findings(policy: GatePolicy, measurement: Measurement) -> Iterator[Finding]:
    if policy.min_effective_clusters is not None:
        yield _finding("effective_clusters", measurement.effective_clusters, policy.min_effective_clusters)
    for reference, required in policy.min_ratio_to.items():
        yield _finding(f"ratio_to:{reference}", measurement.ratios[reference], required)


def _finding(figure: str, measured: Estimate, required: float) -> Finding:
    low, high = measured.low or 0.0, measured.high
    verdict = "passes" if low >= required else "fails" if high is not None and high < required else "undecided"
    return Finding(figure=figure, value=measured.value, low=low, high=high, required=required, verdict=verdict)


def _reason(finding: Finding, relation: str) -> str:
    reference = finding.figure.partition(":")[2]
    value = f"{finding.value:.3g}"
    what = f"of the effective clusters of {reference}" if reference else of_unit(value, "effective clusters")
    high = "unbounded" if finding.high is None else f"{finding.high:.3g}"
    return f"{value} [{finding.low:.3g}, {high}] {what}, {relation} the required {finding.required:.3g}"

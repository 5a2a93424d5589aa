"""The gate: what a component's measured diversity decides about its place in the mixture.

A decision compares intervals. A component fails only when its whole interval lies below what is required; where the
interval holds the required figure nothing is decided, and the component is taken with a warning.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from dataclasses import dataclass
from typing import Any

from diversity_jax.cluster_agent import Scorecard, compare
from diversity_jax.mixtures.component import Component, GatePolicy


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
      action: `register`, `downweight`, `reject`, `warn` or `ungated`.
      reason: one line for people.
      factor: what the share is multiplied by, in [0, 1].
      policy: the conditions; findings: how the component met them.
      scorecard_hash: of the scorecard it rests on; None where it was not scored.
      effective_clusters: `{value, low, high}` of that scorecard.
    """

    action: str
    reason: str
    factor: float
    policy: GatePolicy
    findings: tuple[Finding, ...] = ()
    scorecard_hash: str | None = None
    effective_clusters: Mapping[str, float | None] | None = None

    def to_json(self) -> dict[str, Any]:
        """All fields, nested."""
        return dataclasses.asdict(self)


def decide(component: Component, scorecards: Mapping[str, Scorecard]) -> Decision:
    """Decides about one component.

    Args:
      scorecards: by component name, and under `real` the real components pooled; all under the same criteria.
    """
    policy, scorecard = component.policy, scorecards.get(component.name)
    if scorecard is None:
        return _unscored(component)
    findings = tuple(_findings(component, scorecard, scorecards))
    measured = {
        "policy": policy,
        "findings": findings,
        "scorecard_hash": scorecard.content_hash,
        "effective_clusters": dataclasses.asdict(scorecard.effective_clusters),
    }
    failed = [finding for finding in findings if finding.verdict == "fails"]
    undecided = [finding for finding in findings if finding.verdict == "undecided"]
    if failed:
        worst = min(failed, key=lambda finding: finding.low / finding.required)
        factor = {"reject": 0.0, "downweight": worst.low / worst.required, "warn": 1.0}[policy.on_fail]
        return Decision(action=policy.on_fail, reason=_say(worst, "below"), factor=factor, **measured)
    if undecided:
        return Decision(action="warn", reason=_say(undecided[0], "not decided against"), factor=1.0, **measured)
    reason = _say(findings[0], "above") if findings else "no condition; scored for reference"
    return Decision(action="register", reason=reason, factor=1.0, **measured)


def _unscored(component: Component) -> Decision:
    policy = component.policy
    if component.kind == "real" and policy.is_empty:
        return Decision(action="register", reason="real text without conditions", factor=1.0, policy=policy)
    if policy.ungated:
        return Decision(action="ungated", reason="taken unscored, as its policy says", factor=1.0, policy=policy)
    reason = "not scored; score it, or set policy.ungated to take it unscored"
    return Decision(action="reject", reason=reason, factor=0.0, policy=policy)


def _findings(component: Component, scorecard: Scorecard, scorecards: Mapping[str, Scorecard]):
    policy = component.policy
    if policy.min_effective_clusters is not None:
        measured = scorecard.effective_clusters
        yield _finding("effective_clusters", measured.value, measured.low, measured.high, policy.min_effective_clusters)
    for reference, required in policy.min_ratio_to.items():
        ratio = compare(scorecard, scorecards[reference])
        yield _finding(f"ratio_to:{reference}", ratio.ratio, ratio.low or 0.0, ratio.high, required)


def _finding(figure: str, value: float, low: float, high: float | None, required: float) -> Finding:
    verdict = "passes" if low >= required else "fails" if high is not None and high < required else "undecided"
    return Finding(figure=figure, value=value, low=low, high=high, required=required, verdict=verdict)


def _say(finding: Finding, against: str) -> str:
    reference = finding.figure.partition(":")[2]
    what = f"of the effective clusters of {reference}" if reference else "effective clusters"
    high = "unbounded" if finding.high is None else f"{finding.high:.3g}"
    return f"{finding.value:.3g} [{finding.low:.3g}, {high}] {what}, {against} the required {finding.required:.3g}"


def decide_all(components: Sequence[Component], scorecards: Mapping[str, Scorecard]) -> list[Decision]:
    """Decisions in the order of components."""
    return [decide(component, scorecards) for component in components]

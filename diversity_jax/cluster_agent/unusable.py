"""A scoring of which not one grouping was usable: what was seen instead of figures, and what helps."""

from collections.abc import Mapping
from dataclasses import dataclass, field
import os
from typing import Any

from diversity_jax.cluster_agent.types import describe_failures
from diversity_jax.cluster_agent.verdict import Verdict
from diversity_jax.core import files
from diversity_jax.core.errors import InputError


@dataclass(frozen=True, kw_only=True)
class UnusableScore:
    """What a judge answered to a scoring that gives no figure.

    Attributes:
      judge, prompt_version, corpus, parameters, calls, tokens, cost_usd: as on a scorecard.
      groupings: judged, all in vain; drops: how many for which reason; details: the first message of each reason.
      ended: why no further call could succeed; None where calls could.
      example_answer: the beginning of the first answer that broke the rules; empty where no answer came.
      canaries, checks, verdict: as on a scorecard, of what partitions there were; the verdict is `unfit`.
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
        """One line: the judge, and what went wrong how often."""
        why = self.ended or describe_failures(self.drops, self.details)
        hint = "" if self.ended else "; try another judge"
        return f"judge {self.judge}: none of {self.groupings} groupings was usable ({why}){hint}"

    @property
    def remedies(self) -> tuple[str, ...]:
        """What helps, the likeliest first."""
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
        """All fields, and no figure; `Scorecard.load` refuses it with its summary."""
        figures = dict.fromkeys(("effective_clusters", "cluster_score", "clusters_per_sample", "collision"))
        value = {**vars(self), "verdict": self.verdict.to_json()}
        return figures | value | {"unusable": self.summary, "remedies": list(self.remedies)}

    def save(self, path: str | os.PathLike) -> None:
        """Writes it as JSON, whole or not at all."""
        files.write_json(path, self.to_json())


class NothingUsable(InputError):
    """Raised in place of a scorecard.

    Attributes:
      score: what was seen.
      folder: of the corpus in the run's folder; empty where it is the only one.
    """

    def __init__(self, score: UnusableScore):
        super().__init__(score.summary)
        self.score = score
        self.folder = ""

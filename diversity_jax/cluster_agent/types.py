"""Who judges, and what is asked of a judge: tasks in, answers out. Nothing here knows how a judge comes to its
answer.
"""

from collections.abc import Mapping
from dataclasses import dataclass
import functools
import json
from typing import Any, Protocol

from diversity_jax.cluster_agent.criteria import CriteriaSet

STAGES = (
    "propose_criteria",
    "summarize_metadata",
    "summarize_metrics",
    "define_criteria",
    "cluster_samples",
    "verify_clusters",
)

_quote = json.JSONEncoder(ensure_ascii=False).encode


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A document as a judge sees it: cleaned and cut text under an id that is random in every call."""

    sample_id: str
    text: str
    document: str

    @functools.cached_property
    def line(self) -> str:
        """The sample as one line of JSON; kept, because clustering and verification show the same."""
        return f'{{"sample_id": {_quote(self.sample_id)}, "text": {_quote(self.text)}}}'


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """One cluster of a partition, as the judge gave it."""

    sample_ids: tuple[str, ...]
    reasoning: str = ""
    metadata: tuple[tuple[str, str], ...] = ()
    metrics: tuple[tuple[str, int, str], ...] = ()  # name, score 1-5, reasoning


@dataclass(frozen=True, kw_only=True)
class Task:
    """One question to a judge.

    Attributes:
      stage: one of `STAGES`.
      replicate: number of the question within its stage and criteria set; equal questions with other numbers are new
        calls.
      criteria_set: which of the B criteria sets it belongs to.
      criteria_count: how many metadata and how many metrics to keep (k).
      reasoning_words: longest reasoning asked for, in words.
      temperature, max_output_tokens, schema_limits: decoding, for judges that decode.
      samples: shown texts (propose, cluster, verify).
      proposals: name and every definition given to it (summarise stages).
      criteria: what to look at (define: without guidance yet; cluster, verify: whole).
      clusters: the partition to check (verify).
      problem: what was wrong with the answer before, where this is the one repair round; None on the first asking.
      previous: that answer's text.
    """

    stage: str
    replicate: int
    criteria_set: int
    criteria_count: int
    reasoning_words: int
    temperature: float = 0.0
    max_output_tokens: int = 4096
    schema_limits: bool = False
    samples: tuple[Sample, ...] = ()
    proposals: tuple[tuple[str, tuple[str, ...]], ...] = ()
    criteria: CriteriaSet | None = None
    clusters: tuple[Cluster, ...] = ()
    problem: str | None = None
    previous: str = ""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came back.

    Attributes:
      value: the answer as parsed JSON, not yet checked; None where there is none.
      failure: why there is none: `refused`, `truncated`, `garbled`, ...
      detail: one line more on a failure.
      text: the raw answer, to be shown again in a repair round.
      prompt_tokens, completion_tokens, cost_usd: what the call used, also where it was answered from a ledger.
      ends_run: every later call would fail for the same reason (the budget is spent, the server is gone).
    """

    value: Mapping[str, Any] | None
    failure: str | None = None
    detail: str = ""
    text: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    ends_run: bool = False


class Judge(Protocol):
    """Answers tasks. `label` names it in every output; `prompt_version` its wording; `identity` all else that its
    scores depend on.
    """

    label: str
    prompt_version: str

    @property
    def identity(self) -> Mapping[str, Any]:
        """JSON value: two judges with equal label, prompt version and identity hold the same ruler."""

    def expect(self, calls: int) -> None:
        """Hears how many calls are to come, before the first."""

    async def ask(self, task: Task) -> Answer:
        """Answers one task; never raises for a bad answer."""


class AnswerError(ValueError):
    """An answer that breaks the rules of its stage. The message says how, in words that the judge may be told."""

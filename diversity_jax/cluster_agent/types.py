"""Tasks and answers of judges, with criteria, samples and clusters; and a request with one repair round."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import contextlib
from dataclasses import dataclass, field, replace
import functools
import json
from typing import Any, Protocol, TypeVar

from diversity_jax.cluster_agent.text_cleaning import as_data
from diversity_jax.core.formats import shortened

STAGES = (
    "propose_criteria",
    "summarize_metadata",
    "summarize_metrics",
    "define_criteria",
    "cluster_samples",
    "verify_clusters",
)
OFFLINE_LABEL = "offline (no LLM)"  # of the judge by fixed word vectors
_DETAIL_CHARACTERS = 200  # of a server's or a check's message, in our messages

_T = TypeVar("_T")
_quote = json.JSONEncoder(ensure_ascii=False).encode


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """A criterion of grouping: an attribute such as the subject (metadata), or a scale from 1 to 5 (a metric).

    Attributes:
      levels: the meaning of each step of a scale; None for an attribute.
      guidance: one sentence on clustering by it.
    """

    name: str
    definition: str = ""
    levels: tuple[str, ...] | None = None
    guidance: str = ""

    def to_json(self) -> dict[str, Any]:
        levels = {} if self.levels is None else {"levels": list(self.levels)}
        return {"name": self.name, "definition": self.definition, **levels, "guidance": self.guidance}


@dataclass(frozen=True, kw_only=True)
class CriteriaSet:
    """The criteria by which one set of groupings is judged."""

    metadata: tuple[Criterion, ...] = ()
    metrics: tuple[Criterion, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.metadata or self.metrics)

    def __iter__(self) -> Iterator[Criterion]:
        return iter((*self.metadata, *self.metrics))

    def to_json(self) -> dict[str, Any]:
        return {"metadata": [m.to_json() for m in self.metadata], "metrics": [m.to_json() for m in self.metrics]}


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A document as it is shown to a judge: its id, its text cleaned and cut, and a sample id drawn for every call."""

    sample_id: str
    text: str
    document: str

    @functools.cached_property
    def line(self) -> str:
        """The sample as one line of JSON; cached, because clustering and verification show the same."""
        return f'{{"sample_id": {_quote(self.sample_id)}, "text": {_quote(as_data(self.text))}}}'


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """One cluster of a partition, and its verification.

    Attributes:
      metrics: name, score from 1 to 5 (0 where there is none), reasoning.
      misplaced: samples that do not belong in it by verification; `valid` is whether there are none.
      validation: the reasoning of that.
    """

    sample_ids: tuple[str, ...]
    reasoning: str = ""
    metadata: tuple[tuple[str, str], ...] = ()
    metrics: tuple[tuple[str, int, str], ...] = ()
    valid: bool = True
    misplaced: tuple[str, ...] = ()
    validation: str = ""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One question to a judge.

    Attributes:
      stage: one of `STAGES`.
      replicate: number of the question within its stage and criteria set; equal questions with different numbers are
        separate calls.
      criteria_set: which of the B criteria sets it belongs to.
      criteria_count: how many metadata and how many metrics are asked for (k).
      reasoning_words: longest reasoning asked for, in words.
      temperature, max_output_tokens, schema_limits: decoding settings of language models.
      reading_words: words of each sample that an embedding judge reads; None for the most that it can.
      samples: shown texts (propose, cluster, verify).
      proposals: name and every definition given to it (summarize stages).
      criteria: what to group by (define: without guidance yet; cluster, verify).
      clusters: the partition to check (verify).
      problem, previous: in the repair round, the error in the first answer, and that answer's text.
    """

    stage: str
    replicate: int
    criteria_set: int
    criteria_count: int
    reasoning_words: int
    temperature: float = 0.0
    max_output_tokens: int = 4096
    schema_limits: bool = False
    reading_words: int | None = None
    samples: tuple[Sample, ...] = ()
    proposals: tuple[tuple[str, tuple[str, ...]], ...] = ()
    criteria: CriteriaSet = CriteriaSet()
    clusters: tuple[Cluster, ...] = ()
    problem: str | None = None
    previous: str = ""


@dataclass(frozen=True, kw_only=True)
class JudgeAnswer:
    """A judge's answer to a task.

    Attributes:
      value: the answer as parsed JSON, not yet checked; None where there is none.
      failure: why there is none: `refused`, `truncated`, `garbled`, ...
      detail: one further line on a failure.
      text: the raw answer, for the repair round.
      prompt_tokens, completion_tokens, cost_usd: use of the call, also where the response cache answered it.
      ends_run: whether every later call would fail for the same reason (the budget is spent, the server is gone).
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
    """Answers tasks. A judge that holds connections is also an asynchronous context manager."""

    @property
    def label(self) -> str:
        """Names the judge in every output."""

    @property
    def prompt_version(self) -> str:
        """Names the wording of its questions."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """JSON value of all else that its scores depend on."""

    def expect(self, calls: int) -> None:
        """Takes the expected number of calls, before the first."""

    async def ask(self, task: Task) -> JudgeAnswer:
        """Answers one task; never raises for a bad answer."""


def entered(judge: Judge) -> contextlib.AbstractAsyncContextManager[Judge]:
    """The judge as a context manager; without effect for one that is none itself."""
    manager: Any = judge if hasattr(judge, "__aenter__") else contextlib.nullcontext(judge)
    return manager


class SampledCorpus(Protocol):
    """A corpus that documents are sampled from."""

    def sample(self, size: int, *, seed: int) -> Sequence[Any]:
        """`size` documents with `id` and `text`, drawn without replacement; fewer only where there are no more."""

    def fingerprint(self) -> str:
        """Hash of the content."""


class AnswerError(ValueError):
    """An answer without the form that its stage asks for. The message is shown to the judge in the repair round."""


class RunEnded(Exception):
    """No further call can succeed: the budget is spent or the server is gone."""


@dataclass(kw_only=True)
class CallTotals:
    """Answered calls, their tokens and dollars, and the number of repair rounds."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    repairs: int = 0

    @property
    def price(self) -> float:
        """Dollars; of free calls prompt tokens plus four times the completion tokens, a usual ratio of prices."""
        return self.cost_usd or self.prompt_tokens + 4.0 * self.completion_tokens

    def add(self, other: "CallTotals") -> None:
        """Adds other totals. Dollars are floats: add in a fixed order where equal runs have to give equal bytes."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    @classmethod
    def of(cls, parts: Iterable["CallTotals"]) -> "CallTotals":
        """The sum of totals, added in their order."""
        total = cls()
        for part in parts:
            total.add(part)
        return total


@dataclass(kw_only=True)
class RequestLog:
    """Use of requests to a judge, (reason, detail) of each without a usable answer, and the last such answer."""

    usage: CallTotals = field(default_factory=CallTotals)
    failures: list[tuple[str, str]] = field(default_factory=list)
    last_answer: str = ""


async def request_with_repair(judge: Judge, task: Task, check: Callable[[Any], _T], log: RequestLog) -> _T | None:
    """Asks a judge; where its answer cannot be used, asks a second time and shows it the error.

    Args:
      check: turns the parsed answer into the result, or raises `AnswerError`.
      log: collects the calls' use and the failure.

    Returns:
      The result; None where neither answer can be used, or the call fails.

    Raises:
      RunEnded: no further call can succeed.
    """
    for repairs_left in (1, 0):
        answer = await judge.ask(task)
        if answer.ends_run:
            raise RunEnded(answer.detail or answer.failure)
        used = (answer.prompt_tokens, answer.completion_tokens, answer.cost_usd)
        log.usage.add(CallTotals(calls=1, prompt_tokens=used[0], completion_tokens=used[1], cost_usd=used[2]))
        problem, reason = answer.detail or answer.failure, answer.failure
        if answer.value is not None:
            try:
                return check(answer.value)
            except AnswerError as error:
                problem, reason = str(error), "malformed"
        elif reason != "garbled":
            break
        if repairs_left:
            log.usage.repairs += 1
            task = replace(task, problem=problem, previous=answer.text)
    log.failures.append((reason or "failed", problem or ""))
    log.last_answer = answer.text
    return None


def describe_failures(counts: Mapping[str, int], details: Mapping[str, str]) -> str:
    """Failures by reason as one line, with the detail of each reason in `details`, and a remedy."""
    parts = []
    for reason, count in sorted(counts.items()):
        detail = shortened(details.get(reason, ""), _DETAIL_CHARACTERS)
        parts.append(f"{reason} {count}" + (f": {detail}" if detail else ""))
    hint = "; agent.schema_limits=True keeps answers short on servers that enforce it"
    return "; ".join(parts) + hint * ("truncated" in counts and bool(details))

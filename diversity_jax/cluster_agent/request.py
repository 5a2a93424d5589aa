"""One question to a judge with its one repair round, and the account of what it used."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from diversity_jax.cluster_agent.types import Answer, AnswerError, Judge, Task

_SHOWN_CHARACTERS = 200


class RunEnded(Exception):
    """No further call can succeed: the budget is spent or the server is gone."""


@dataclass(kw_only=True)
class Usage:
    """Calls answered, their tokens and dollars, and how many answers had to be asked for twice."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    repairs: int = 0

    def add(self, other: "Usage") -> None:
        """Adds another account. Dollars are floats: add in a fixed order where equal runs have to give equal bytes."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def count(self, answer: Answer) -> None:
        """Enters one call."""
        self.add(
            Usage(
                calls=1,
                prompt_tokens=answer.prompt_tokens,
                completion_tokens=answer.completion_tokens,
                cost_usd=answer.cost_usd,
            )
        )


class Asker:
    """Asks one judge for one thing, in one or more tasks.

    Attributes:
      usage: of all its calls.
      failures: reasons for which tasks came to nothing; details: what the server or the check said of each.
    """

    def __init__(self, judge: Judge):
        self.judge = judge
        self.usage = Usage()
        self.failures: list[str] = []
        self.details: list[str] = []

    async def ask(self, task: Task, check: Callable[[Any], Any]) -> Any:
        """What `check` makes of the answer; None where two answers in a row break its rules, or the call fails.

        Args:
          task: the question.
          check: turns the parsed answer into what is wanted, or raises `AnswerError`.

        Raises:
          RunEnded: no further call can succeed.
        """
        for asked in range(2):
            answer = await self.judge.ask(task)
            if answer.ends_run:
                raise RunEnded(answer.detail or answer.failure)
            self.usage.count(answer)
            problem, reason = answer.detail or answer.failure, answer.failure
            if answer.value is not None:
                try:
                    return check(answer.value)
                except AnswerError as error:
                    problem, reason = str(error), "malformed"
            elif reason != "garbled":
                break
            if not asked:
                self.usage.repairs += 1
                task = replace(task, problem=problem, previous=answer.text)
        self.failures.append(reason or "failed")
        self.details.append(problem or "")
        return None


def reasons(askers: Iterable[Asker], *, said: bool = True) -> str:
    """All failures by reason, as text; with what was `said` of the first of each."""
    counts: Counter[str] = Counter()
    words: dict[str, str] = {}
    for asker in askers:
        for reason, detail in zip(asker.failures, asker.details, strict=True):
            counts[reason] += 1
            words.setdefault(reason, detail)
    return explain(counts, words if said else {})


def explain(counts: Mapping[str, int], words: Mapping[str, str]) -> str:
    """Failures by reason with what was said of the first of each, and what to do where that is known."""
    said = []
    for reason, count in sorted(counts.items()):
        detail = " ".join(words.get(reason, "").split())
        shown = detail if len(detail) <= _SHOWN_CHARACTERS else detail[: _SHOWN_CHARACTERS - 1] + "\u2026"
        said.append(f"{reason} {count}" + (f": {shown}" if shown else ""))
    hint = (
        "; agent.schema_limits=True keeps answers short on servers that enforce it"
        if "truncated" in counts and words
        else ""
    )
    return "; ".join(said) + hint

"""A language model as judge: tasks become requests, and what comes back is parsed."""

from collections.abc import Mapping
import json
from typing import Any

from diversity_jax.cluster_agent.prompts import PROMPT_VERSION, system_of, user_of
from diversity_jax.cluster_agent.schemas import schema_of
from diversity_jax.cluster_agent.types import Answer, Task
from diversity_jax.llm import CallFailed, Engine, Request

_OF_A_SET = ("propose_criteria", "summarize_metadata", "summarize_metrics", "define_criteria")
_REPLICATES_OF_A_SET = 1_000_000
_SHARE_OF_CALLS_LEFT = 8
_PLACES_LOOKED_AT = 20  # in an answer that is not JSON alone
_decoder = json.JSONDecoder()


class LlmJudge:
    """Asks the model behind an engine.

    Args:
      engine: who calls, retries, remembers and pays. Enter it before asking, or enter the judge, which does it.
    """

    prompt_version = PROMPT_VERSION

    def __init__(self, engine: Engine):
        self.engine = engine
        self.label = engine.name

    async def __aenter__(self) -> "LlmJudge":
        await self.engine.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self.engine.__aexit__(*error)

    @property
    def identity(self) -> Mapping[str, Any]:
        """Model and wording say it all; where the server stands is no part of it."""
        return {}

    def expect(self, calls: int) -> None:
        """Tells the engine how many calls are to come, for its forecast of time and price."""
        self.engine.expect(calls)

    @property
    def groupings_at_once(self) -> int | None:
        """How many groupings to begin at once so that a cap on calls ends few of them half-way; None where there is no
        need.
        """
        left = self.engine.calls_left
        return None if left is None else max(left // _SHARE_OF_CALLS_LEFT, 1)

    def request(self, task: Task) -> Request:
        """The request of a task: a pure function of it, so that a replay finds its answer in the ledger."""
        return Request(
            stage=task.stage,
            system=system_of(task),
            user=user_of(task),
            schema=schema_of(task),
            # Two criteria sets may come to the same question; they are to be independent, so it is asked twice.
            replicate=task.criteria_set * _REPLICATES_OF_A_SET + task.replicate
            if task.stage in _OF_A_SET
            else task.replicate,
            max_output_tokens=task.max_output_tokens,
            temperature=task.temperature,
            # Where a cap may end the run, only whole groupings are worth what they cost. Otherwise first come, first
            # served: if verification went first, the last groupings' clusters would be left to the end, and slots empty
            # behind them.
            urgent=task.stage == "verify_clusters" and self.engine.budget.capped,
        )

    async def ask(self, task: Task) -> Answer:
        """Asks and parses; see `Judge.ask`."""
        try:
            completion = await self.engine.complete(self.request(task))
        except CallFailed as error:
            return Answer(
                value=None,
                failure=error.reason,
                detail=error.detail,
                prompt_tokens=error.prompt_tokens,
                completion_tokens=error.completion_tokens,
                cost_usd=error.cost_usd,
                ends_run=error.ends_run,
            )
        value = parse_json(completion.text)
        return Answer(
            value=value,
            failure=None if value is not None else "garbled",
            detail="" if value is not None else "not one JSON object",
            text=completion.text,
            prompt_tokens=completion.prompt_tokens,
            completion_tokens=completion.completion_tokens,
            cost_usd=completion.cost_usd,
        )


def parse_json(text: str) -> Mapping[str, Any] | None:
    """The JSON object that `text` is, or else the longest that stands in it: in a fence, behind thoughts, between
    pleasantries. None where there is none.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = _longest_object(text.rpartition("</think>")[2])
    return value if isinstance(value, Mapping) else None


def _longest_object(text: str) -> Any:
    found, length, start, tries = None, 0, text.find("{"), 0
    while start >= 0 and tries < _PLACES_LOOKED_AT:
        try:
            value, end = _decoder.raw_decode(text, start)
        except json.JSONDecodeError as error:
            if error.pos - start > 2:  # not a brace in prose but an object that breaks off: no part of it is the answer
                return None
            end = start + 1
        except RecursionError:
            return None
        if end - start > max(length, 1):
            found, length = value, end - start
        start, tries = text.find("{", end), tries + 1
    return found

"""A language model as judge: tasks become requests, and completions are parsed."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from diversity_jax.cluster_agent.prompts import PROMPT_VERSION, schema_of, system_of, user_of
from diversity_jax.cluster_agent.types import JudgeAnswer, Task
from diversity_jax.llm import CallFailed, Engine, Request, read_json_answer

_STAGES_OF_A_SET = ("propose_criteria", "summarize_metadata", "summarize_metrics", "define_criteria")
_REPLICATES_OF_A_SET = 1_000_000
# Under a cap on calls this share of those left is begun at once, so that few groupings are left unverified at its end.
_SHARE_OF_CALLS_LEFT = 8


class LlmJudge:
    """Asks the model behind an engine.

    Args:
      engine: makes, repeats, caches and prices the calls. Enter it before asking, or enter the judge, which enters it.
    """

    prompt_version = PROMPT_VERSION

    def __init__(self, engine: Engine):
        self.engine = engine
        self.label = engine.name
        self._assignment: bool | None = None  # form of partitions; None until the first one is asked for
        # Model and wording are all, and the fields that change the model's answers; the server's address is no part.
        self.identity: Mapping[str, Any] = MappingProxyType({"body": engine.body} if engine.body else {})

    async def __aenter__(self) -> "LlmJudge":
        await self.engine.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self.engine.__aexit__(*error)

    def expect(self, calls: int) -> None:
        """Tells the engine how many calls are to come, for its forecast of time and price."""
        self.engine.expect(calls)

    @property
    def gathers_calls(self) -> bool:
        """Whether calls go out in batches, so that all groupings are to be worked on at once."""
        return self.engine.config.batch

    @property
    def groupings_at_once(self) -> int | None:
        """How many groupings to work on at once; None without a cap on calls."""
        left = self.engine.calls_left
        return None if left is None else max(left // _SHARE_OF_CALLS_LEFT, 1)

    def request(self, task: Task, *, assignment: bool = False) -> Request:
        """The request of a task: a pure function of it, so that a replay finds its answer in the response cache.

        Args:
          assignment: ask for a partition as an object of ids and cluster numbers; see `prompts.schema_of`.
        """
        replicate = task.replicate
        if task.stage in _STAGES_OF_A_SET:
            # Two criteria sets may come to the same question; they are to be independent, so it is asked twice.
            replicate += task.criteria_set * _REPLICATES_OF_A_SET
        return Request(
            stage=task.stage,
            system=system_of(task),
            user=user_of(task, assignment=assignment),
            schema=schema_of(task, assignment=assignment),
            replicate=replicate,
            max_output_tokens=task.max_output_tokens,
            temperature=task.temperature,
            # Where a cap may end the run, a grouping that was begun is finished first: half of one is worth nothing.
            # Otherwise calls go in order; if verification went first, the last groupings' clusterings would be left to
            # the end, with idle slots behind them.
            urgent=task.stage == "verify_clusters" and self.engine.budget.capped,
        )

    async def _request_in_form(self, task: Task) -> Request:
        """The request, for a partition in one form throughout a run: as an assignment where the server was held to its
        schemas until the first partition, or as an earlier run began; in the other form where only that is at hand.
        """
        if task.stage != "cluster_samples":
            return self.request(task)
        if self._assignment is None:
            self._assignment = self.engine.enforces_schema
            decided = self.request(task, assignment=self._assignment)
            if await self.engine.answers_other(decided, self.request(task, assignment=not self._assignment)):
                self._assignment = not self._assignment
        forms = [self.request(task, assignment=form) for form in (self._assignment, not self._assignment)]
        return forms[1] if await self.engine.answers_other(*forms) else forms[0]

    async def ask(self, task: Task) -> JudgeAnswer:
        """Asks and parses; see `Judge.ask`."""
        request = await self._request_in_form(task)
        try:
            completion = await self.engine.complete(request)
        except CallFailed as error:
            return JudgeAnswer(
                value=None, failure=error.reason, detail=error.detail, ends_run=error.ends_run, **_use(error)
            )
        value, kept_schema = read_json_answer(completion.text, request.schema)
        if not kept_schema:
            self.engine.report_broken_schema(request.stage)
        if not isinstance(value, Mapping):
            return JudgeAnswer(
                value=None, failure="garbled", detail="not one JSON object", text=completion.text, **_use(completion)
            )
        return JudgeAnswer(value=value, text=completion.text, **_use(completion))


def _use(call: Any) -> dict[str, Any]:
    return {name: getattr(call, name) for name in ("prompt_tokens", "completion_tokens", "cost_usd")}

"""Generates one round: requests a document for every cell, checks answers, and repeats requests with flawed answers.

The result of a round does not depend on the order of answers. An answer that is flawed by itself is requested again at
once; near duplicates, which depend on other documents, are searched in the order of the cells and requested again in a
further wave.
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import content_hash
from diversity_jax.core.formats import counted
from diversity_jax.llm import CallFailed, Completion, Engine, Request
from diversity_jax.llm.response_cache import ResponseCacheFile
from diversity_jax.llm.types import CachedFailure
from diversity_jax.prepare.deduplicate import MinHasher, NearDuplicateIndex
from diversity_jax.synthesis.arms import Cell, GenerationGrid
from diversity_jax.synthesis.config import SynthesisConfig
from diversity_jax.synthesis.quality import Flaw, Generation, read_answer, render
from diversity_jax.synthesis.templates import PROMPT_VERSION, Seeds, Template

_SHOWN_CHARACTERS = 2000  # of a rejected answer
_DETAIL_CHARACTERS = 300
# Failures that an equal request would repeat; others are temporary failures of the server.
_FINAL_FAILURES = ("refused", "truncated", "empty", "rejected")
_TASKS_PER_CALL = 2  # so that the next request is ready when a call ends
PERMUTATIONS = 32  # of MinHash: about 4 KB of memory a document; the standard error of a similarity of 0.6 is 0.09


@dataclass(kw_only=True)
class RoundResult:
    """The result of a round.

    Attributes:
      documents, rejects: records, in the order of the cells.
      pending: cells without a result, because the run or their generator ended; paid attempts are counted in them.
      attempts, dollars: by arm, failed attempts included; `dollars` assumes a price of free tokens, as steering does.
      paid: dollars spent.
      tokens: by generator.
      outcomes: by generator, the number of attempts with each outcome, `accepted` or a flaw's reason.
      given_up: number of cells whose every attempt was flawed.
      stopped: the reason of every generator stopped in this round because its answers were unusable.
      ended: why no further call can be sent, or None.
    """

    documents: list[dict[str, Any]] = field(default_factory=list)
    rejects: list[dict[str, Any]] = field(default_factory=list)
    pending: list[Cell] = field(default_factory=list)
    attempts: Counter[str] = field(default_factory=Counter)
    dollars: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    paid: float = 0.0
    tokens: Counter[str] = field(default_factory=Counter)
    outcomes: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    given_up: int = 0
    stopped: dict[str, str] = field(default_factory=dict)
    ended: str | None = None


class _Candidate(NamedTuple):
    """An answer without flaws of its own; `signature` is None where near duplicates are not searched."""

    cell: Cell
    label: str
    answer: str
    record: dict[str, Any]
    signature: np.ndarray | None


class RoundGenerator:
    """Generates documents for cells, round after round.

    Args:
      grid: makes the requests of cells.
      engines: of each generator, by label.

    Attributes:
      stopped: the reason of every generator that is no longer used.
    """

    def __init__(self, grid: GenerationGrid, engines: Mapping[str, Engine], config: SynthesisConfig):
        self._grid, self._engines, self._config = grid, engines, config
        self._hasher: MinHasher | None = None
        if config.quality.near_duplicate is not None:
            self._hasher = MinHasher(config.quality.near_duplicate, permutations=PERMUTATIONS)
            self._index = NearDuplicateIndex(self._hasher)
        self.stopped: dict[str, str] = {}
        # By generator: flaws since its last answer without a flaw, and near duplicates since its last document.
        self._flaws: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._repeats: defaultdict[str, Counter[str]] = defaultdict(Counter)
        # Of the current round.
        self._result, self._round_number = RoundResult(), 0
        self._avoid: Sequence[str] = ()
        self._failures: ResponseCacheFile | None = None

    def restore(self, documents: Iterable[Mapping[str, Any]]) -> None:
        """Adds documents of earlier rounds, which new ones must not repeat."""
        if self._hasher is not None:
            for document in documents:
                text = "\n".join(passage["text"] for passage in document["passages"])
                self._index.add(len(self._index), self._hasher.signature(text))

    async def generate(
        self,
        cells: Sequence[Cell],
        *,
        avoid: Sequence[str],
        round_number: int,
        failures: ResponseCacheFile | None = None,
    ) -> RoundResult:
        """Generates a document for each cell, as far as possible.

        Args:
          cells: in order.
          avoid: subjects named in prompts.
          round_number: recorded in documents.
          failures: of an earlier process that began this round; requests that failed finally are not repeated.
        """
        self._round_number, self._avoid, self._failures = round_number, avoid, failures
        self._result = result = RoundResult()
        wave = list(cells)
        order = {cell.key: index for index, cell in enumerate(cells)}
        stopped_before = set(self.stopped)
        while wave:
            candidates = await self._request_all(wave)
            wave = []
            for candidate in candidates:
                again = self._accept(candidate)
                if again is not None:
                    (result.pending if result.ended else wave).append(again)
        result.rejects.sort(key=lambda record: (order[record.pop("key")], record["attempt"]))
        result.pending.sort(key=lambda cell: order[cell.key])
        result.stopped = {label: why for label, why in self.stopped.items() if label not in stopped_before}
        return result

    def check_any_left(self) -> None:
        """Raises an InputError if every generator is stopped."""
        if all(label in self.stopped for label in self._engines):
            reasons = "; ".join(f"{label}: {why}" for label, why in self.stopped.items())
            raise InputError(
                f"generators: none is left. {reasons}. See rejects/ and correct the model, its prompt or the quality "
                "settings"
            )

    async def _request_all(self, cells: Sequence[Cell]) -> list[_Candidate]:
        candidates: dict[int, _Candidate | None] = {}
        numbered = iter(enumerate(cells))

        async def work() -> None:
            for index, cell in numbered:
                candidates[index] = await self._request_document(cell)

        count = min(len(cells), sum(_TASKS_PER_CALL * engine.most_at_once for engine in self._engines.values()))
        tasks = [asyncio.create_task(work()) for _ in range(count)]
        try:
            await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise
        return [candidate for _, candidate in sorted(candidates.items()) if candidate is not None]

    async def _request_document(self, cell: Cell) -> _Candidate | None:
        """Requests a cell until an answer has no flaw of its own; None where the cell is given up or pending."""
        result = self._result
        following: Cell | None = cell
        while following is not None:
            cell = following
            label = None if result.ended else self._grid.generator_for(cell, self.stopped)
            if label is None:
                result.pending.append(cell)
                return None
            request, seeds, template = self._grid.request(cell, self._avoid)
            text = ""
            try:
                completion = await self._complete(label, request)
                self._count(cell, label, completion)
                text = completion.text
                generation = read_answer(text, template, seeds, request, self._config.quality)
            except CallFailed as error:
                if error.ends_run:
                    result.ended = result.ended or str(error)
                    result.pending.append(cell)
                    return None
                self._count(cell, label, error)
                flaw = Flaw(error.reason, error.detail)
            except Flaw as error:
                flaw = error
            else:
                self._flaws.pop(label, None)
                record = self._record(cell, label, template, seeds, request, generation, completion)
                signature = self._hasher.signature("\n".join(generation.passages)) if self._hasher else None
                return _Candidate(cell, label, text, record, signature)
            self._count_flaw(self._flaws, label, flaw)
            following = self._reject(cell, label, flaw, text)
        return None

    async def _complete(self, label: str, request: Request) -> Completion:
        if self._failures is not None:
            key = self._engines[label].key(request)
            known = self._failures.find([key]).get(key)
            if isinstance(known, CachedFailure) and known.reason in _FINAL_FAILURES:
                raise CallFailed(
                    known.reason,
                    known.detail,
                    prompt_tokens=known.prompt_tokens,
                    completion_tokens=known.completion_tokens,
                    cost_usd=known.dollars,
                )
        return await self._engines[label].complete(request)

    def _count(self, cell: Cell, label: str, used: Completion | CallFailed) -> None:
        result = self._result
        tokens = used.prompt_tokens + used.completion_tokens
        result.attempts[cell.arm] += 1
        result.dollars[cell.arm] += (
            used.cost_usd or self._config.steering.dollars_per_million_free_tokens * tokens / 1e6
        )
        result.paid += used.cost_usd
        result.tokens[label] += tokens

    def _count_flaw(self, flaws: Mapping[str, Counter[str]], label: str, flaw: Flaw) -> None:
        """Counts a flaw, and stops a generator with too many in a row."""
        counts = flaws[label]
        counts[flaw.reason] += 1
        if counts.total() >= self._config.quality.give_up_after and label not in self.stopped:
            why = ", ".join(f"{reason} {count}" for reason, count in counts.most_common())
            self.stopped[label] = (
                f"none of its last {counted(counts.total(), 'answer')} was usable ({why}); the last: {flaw}"
            )

    def _reject(self, cell: Cell, label: str, flaw: Flaw, text: str) -> Cell | None:
        """Records a rejected attempt; returns the cell's next attempt, or None after the last one."""
        self._result.outcomes[label][flaw.reason] += 1
        self._result.rejects.append(
            {
                "key": cell.key,
                "arm": cell.arm,
                "topic": self._grid.topics[cell.topic].slash_path,
                "generation": cell.generation,
                "attempt": cell.attempt,
                "generator": label,
                "reason": flaw.reason,
                "detail": str(flaw)[:_DETAIL_CHARACTERS],
                "answer": text[:_SHOWN_CHARACTERS],
            }
        )
        if cell.attempt + 1 < self._config.quality.attempts:
            return replace(cell, attempt=cell.attempt + 1)
        self._result.given_up += 1
        return None

    def _accept(self, candidate: _Candidate) -> Cell | None:
        """Accepts a candidate, or rejects a near duplicate and returns its cell's next attempt, if there is one."""
        cell, label, answer, record, signature = candidate
        if signature is not None:
            near = self._index.near(signature)
            if near is not None:
                flaw = Flaw("near_duplicate", f"like document {near[0] + 1} by {near[1]:.0%}")
                self._count_flaw(self._repeats, label, flaw)
                return self._reject(cell, label, flaw, answer)
            self._index.add(len(self._index), signature)
        self._repeats.pop(label, None)
        self._result.outcomes[label]["accepted"] += 1
        self._result.documents.append(record)
        return None

    def _record(
        self,
        cell: Cell,
        label: str,
        template: Template,
        seeds: Seeds,
        request: Request,
        generation: Generation,
        completion: Completion,
    ) -> dict[str, Any]:
        """A document as it is stored."""
        seed, question = self._config.seed, generation.question
        passages = zip(generation.passages, generation.concepts, strict=True)
        return {
            "text": render(generation, seed=f"{seed} {cell.key}"),
            "id": content_hash([seed, cell.key])[:16],
            "topic": seeds.topics[0].slash_path,
            "keywords": list(seeds.topics[0].keywords),
            "topics_used": [seeds.topics[number].slash_path for number in generation.topics_used],
            "style": seeds.style,
            "persona": generation.persona,
            "template": template.name,
            "template_hash": template.hash[:16],
            "prompt_version": PROMPT_VERSION,
            "prompt_hash": content_hash([request.system, request.user])[:16],
            "generator": label,
            "model": self._grid.generators[label].model,
            "arm": cell.arm,
            "generation": cell.generation,
            "attempt": cell.attempt,
            "round": self._round_number,
            "seed": seed,
            "passages": [{"text": text, "concepts": list(concepts)} for text, concepts in passages],
            "question": None if question is None else {**vars(question), "options": list(question.options)},
            "prompt_tokens": completion.prompt_tokens,
            "completion_tokens": completion.completion_tokens,
            "cost_usd": completion.cost_usd,
        }

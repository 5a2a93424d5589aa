"""One round: cells become documents. Asked for at once, checked against the floor, drawn again where they fall through,
all counted.

What a round gives does not depend on which answer comes first: flaws of an answer alone are drawn again at once, while
near duplicates, which depend on what else there is, are looked for in the order of the cells, and drawn again in a
further wave.
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import content_hash
from diversity_jax.llm import CallFailed, Completion, Request, parse_model
from diversity_jax.llm.response_cache_file import CachedFailure
from diversity_jax.synthesis.arms import Arm, Cell, Material
from diversity_jax.synthesis.config import SynthesisConfig
from diversity_jax.synthesis.near_duplicates import NearDuplicates, signature
from diversity_jax.synthesis.prompts import PROMPT_VERSION
from diversity_jax.synthesis.quality import Flaw, Generation, read_answer, render
from diversity_jax.synthesis.templates import Seeds, Template

ATTEMPTS_APART = 1000  # replicate = generation * this + attempt
_SHOWN_CHARACTERS = 2000
# A failure that asking again would meet again; others are of the server, and passing.
_FINAL = ("refused", "truncated", "empty", "rejected")
_WORKERS_PER_CALL = 2


class Asker(Protocol):
    """What is needed of `llm.Engine`."""

    async def complete(self, request: Request) -> Completion:
        """The answer to a request."""


class Failures(Protocol):
    """Failures on record, for a round that is done again."""

    def find(self, keys: Sequence[str]) -> Mapping[str, Any]:
        """What is known of ledger keys."""


@dataclass(kw_only=True)
class Produced:
    """What a round gave.

    Attributes:
      documents, rejects: records, in the order of the cells.
      signatures: uint32 [documents, 32]; arms: int32 [documents], places in the list of arms.
      pending: cells that were not settled, because the run or their generator ended; an attempt that is paid for
        counts.
      attempts, dollars: by arm, failed attempts included; dollars are counted as the steering counts them.
      outcomes: by generator, how often an attempt ended in what; `accepted` among them.
      given_up: cells whose every attempt fell through.
      stopped: generators that gave nothing usable any more, with the reason.
      ended: why no further call can go out, or None.
    """

    documents: list[dict[str, Any]] = field(default_factory=list)
    rejects: list[dict[str, Any]] = field(default_factory=list)
    signatures: list[np.ndarray] = field(default_factory=list)
    arms: list[int] = field(default_factory=list)
    pending: list[Cell] = field(default_factory=list)
    attempts: Counter[str] = field(default_factory=Counter)
    dollars: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    paid: float = 0.0
    tokens: Counter[str] = field(default_factory=Counter)
    outcomes: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    given_up: int = 0
    stopped: dict[str, str] = field(default_factory=dict)
    ended: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """An answer that passes by itself."""

    cell: Cell
    seeds: Seeds
    request: Request
    label: str
    made: Generation
    text: str
    completion: Completion
    signature: np.ndarray | None


class Producer:
    """Makes documents of cells, round after round: it remembers over rounds for how long a generator gave nothing
    usable.

    Args:
      material: what cells are filled with.
      arms: all arms, in order.
      askers: a way to each generator, by label.
      config: quality floor, decoding.
      duplicates: documents that stand; accepted ones are added.
    """

    def __init__(
        self,
        material: Material,
        arms: Sequence[Arm],
        askers: Mapping[str, Asker],
        config: SynthesisConfig,
        duplicates: NearDuplicates | None,
    ):
        self._material, self._askers, self._config = material, askers, config
        self._arms = {arm.name: arm for arm in arms}
        self._place = {arm.name: number for number, arm in enumerate(arms)}
        self._duplicates = duplicates
        self._failures: Failures | None = None
        self._stopped: dict[str, str] = {}
        # By generator: what was not usable since the last answer that passed by itself, and repeats since the last
        # document taken.
        self._bad: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._repeats: defaultdict[str, Counter[str]] = defaultdict(Counter)

    async def produce(
        self,
        cells: Sequence[Cell],
        *,
        avoid: Sequence[str],
        stopped: Mapping[str, str],
        round_number: int,
        failures: Failures | None = None,
    ) -> Produced:
        """Settles cells as far as that is possible.

        Args:
          cells: in order.
          avoid: subjects named in prompts.
          stopped: generators that are not asked any more.
          round_number: for provenance.
          failures: on record, where this round was begun by an earlier process: what is known to fail is not paid for
            again.
        """
        self._failures = failures
        done, wave = Produced(), list(cells)
        self._stopped, self._rejects = dict(stopped), []
        order = {cell.key: place for place, cell in enumerate(cells)}
        while wave:
            found = await self._ask_all(wave, avoid, done)
            wave = []
            for candidate in found:
                again = self._take(candidate, done, round_number)
                if again is not None:
                    (wave if done.ended is None else done.pending).append(again)
        done.rejects = sorted(self._rejects, key=lambda one: (order[one.pop("key")], one["attempt"]))
        done.pending.sort(key=lambda cell: order[cell.key])
        done.stopped = {label: why for label, why in self._stopped.items() if label not in stopped}
        if self._duplicates is not None:
            self._duplicates.settle()
        return done

    def request(self, cell: Cell, avoid: Sequence[str]) -> tuple[Request, Seeds, Template]:
        """The request of a cell's present attempt."""
        arm, config = self._arms[cell.arm], self._config
        template, seeds = self._material.templates[arm.template], self._material.seeds(cell, arm, avoid)
        request = template.request(
            seeds,
            replicate=cell.generation * ATTEMPTS_APART + cell.attempt,
            max_output_tokens=config.max_output_tokens,
            temperature=config.temperature,
            limits=config.schema_limits,
        )
        return request, seeds, template

    def label_of(self, cell: Cell, stopped: Mapping[str, str]) -> str | None:
        """Who fills a cell."""
        return self._material.generator_for(cell, self._arms[cell.arm], stopped)

    async def _ask_all(self, cells: Sequence[Cell], avoid: Sequence[str], done: Produced) -> list[_Candidate]:
        """Candidates of cells, in their order."""
        found: list[_Candidate | None] = [None] * len(cells)
        places = iter(range(len(cells)))
        count = min(len(cells), _WORKERS_PER_CALL * self._config.engine.max_in_flight * len(self._askers))
        tasks = [asyncio.create_task(self._work(cells, places, found, avoid, done)) for _ in range(count)]
        try:
            await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise
        return [one for one in found if one is not None]

    async def _work(
        self,
        cells: Sequence[Cell],
        places: Iterator[int],
        found: list[_Candidate | None],
        avoid: Sequence[str],
        done: Produced,
    ) -> None:
        for place in places:
            found[place] = await self._draw(cells[place], avoid, done)

    async def _draw(self, cell: Cell, avoid: Sequence[str], done: Produced) -> _Candidate | None:
        """Draws a cell until an answer passes by itself; None where the cell is given up or left for later."""
        while True:
            label = None if done.ended else self.label_of(cell, self._stopped)
            if label is None:
                done.pending.append(cell)
                return None
            request, seeds, template = self.request(cell, avoid)
            completion = None
            try:
                completion = await self._ask(label, request)
                self._count(cell, label, completion, done)
                made = read_answer(completion.text, template, seeds, request, self._config.quality)
                self._bad.pop(label, None)
                text = render(made, seed=f"{self._material.seed} {cell.key}")
                sketch = signature("\n".join(made.passages)) if self._duplicates is not None else None
                return _Candidate(cell=cell, seeds=seeds, request=request, label=label, made=made, text=text, completion=completion,
                                  signature=sketch)  # fmt: skip
            except CallFailed as error:
                if error.ends_run:
                    done.ended = done.ended or str(error)
                    done.pending.append(cell)
                    return None
                self._count(cell, label, error, done)
                flaw, text = Flaw(error.reason, error.detail), ""
            except Flaw as error:
                flaw, text = error, completion.text
            self._note_bad(self._bad, label, flaw)
            following = self._reject(cell, label, flaw, text, done)
            if following is None:
                return None
            cell = following

    async def _ask(self, label: str, request: Request) -> Completion:
        if self._failures is not None:
            key = request.key(*parse_model(self._material.generators[label].model))
            known = self._failures.find([key]).get(key)
            if isinstance(known, CachedFailure) and known.reason in _FINAL:
                counts = {
                    "prompt_tokens": known.prompt_tokens,
                    "completion_tokens": known.completion_tokens,
                    "cost_usd": known.dollars,
                }
                raise CallFailed(known.reason, known.detail, **counts)
        return await self._askers[label].complete(request)

    def _count(self, cell: Cell, label: str, used: Completion | CallFailed, done: Produced) -> None:
        tokens = used.prompt_tokens + used.completion_tokens
        free = self._config.steering.dollars_per_million_free_tokens * tokens / 1e6
        done.attempts[cell.arm] += 1
        done.dollars[cell.arm] += used.cost_usd or free
        done.paid += used.cost_usd
        done.tokens[label] += tokens

    def _note_bad(self, counts: Mapping[str, Counter[str]], label: str, flaw: Flaw) -> None:
        """Stops a generator of whom nothing was usable for long."""
        bad, limit = counts[label], self._config.quality.give_up_after
        bad[flaw.reason] += 1
        if bad.total() >= limit and label not in self._stopped:
            why = ", ".join(f"{reason} {count}" for reason, count in bad.most_common())
            self._stopped[label] = f"none of its last {bad.total()} answers was usable ({why}); the last: {flaw}"

    def _reject(self, cell: Cell, label: str, flaw: Flaw, text: str, done: Produced) -> Cell | None:
        """Puts an attempt on record; the cell's next attempt, or None where there is none."""
        done.outcomes[label][flaw.reason] += 1
        record = {
            "key": cell.key,
            "arm": cell.arm,
            "topic": self._material.topics[cell.topic].slash_path,
            "generation": cell.generation,
        }
        record |= {"attempt": cell.attempt, "generator": label, "reason": flaw.reason, "detail": str(flaw)[:300]}
        self._rejects.append(record | {"answer": text[:_SHOWN_CHARACTERS]})
        if cell.attempt + 1 < self._config.quality.attempts:
            return replace(cell, attempt=cell.attempt + 1)
        done.given_up += 1
        return None

    def _take(self, one: _Candidate, done: Produced, round_number: int) -> Cell | None:
        """Accepts a candidate, or gives back its cell's next attempt where it repeats a document; None where there is
        none left.
        """
        if self._duplicates is not None:
            near = self._duplicates.find(one.signature)
            if near is not None:
                flaw = Flaw("near_duplicate", f"like document {near[0] + 1} by {near[1]:.0%}")
                self._note_bad(self._repeats, one.label, flaw)
                return self._reject(one.cell, one.label, flaw, one.completion.text, done)
            self._duplicates.add(one.signature)
            done.signatures.append(one.signature)
        self._repeats.pop(one.label, None)
        done.outcomes[one.label]["accepted"] += 1
        done.arms.append(self._place[one.cell.arm])
        done.documents.append(self._record(one, round_number))
        return None

    def _record(self, one: _Candidate, round_number: int) -> dict[str, Any]:
        cell, made, seeds, arm = one.cell, one.made, one.seeds, self._arms[one.cell.arm]
        template = self._material.templates[arm.template]
        question = None if made.question is None else {**vars(made.question), "options": list(made.question.options)}
        return {
            "text": one.text,
            "id": content_hash([self._material.seed, cell.key])[:16],
            "topic": seeds.topics[0].slash_path,
            "keywords": list(seeds.topics[0].keywords),
            "topics_used": [seeds.topics[number].slash_path for number in made.topics_used],
            "style": seeds.style,
            "persona": made.persona,
            "template": template.name,
            "template_hash": template.hash[:16],
            "prompt_version": PROMPT_VERSION,
            "prompt_hash": content_hash([one.request.system, one.request.user])[:16],
            "generator": one.label,
            "model": self._material.generators[one.label].model,
            "arm": cell.arm,
            "generation": cell.generation,
            "attempt": cell.attempt,
            "round": round_number,
            "seed": self._material.seed,
            "passages": [
                {"text": text, "concepts": list(concepts)}
                for text, concepts in zip(made.passages, made.concepts, strict=True)
            ],
            "question": question,
            "prompt_tokens": one.completion.prompt_tokens,
            "completion_tokens": one.completion.completion_tokens,
            "cost_usd": one.completion.cost_usd,
        }


def all_stopped(stopped: Mapping[str, str]) -> InputError:
    """The error of a run in which no generator is left."""
    reasons = "; ".join(f"{label}: {why}" for label, why in stopped.items())
    return InputError(
        f"generators: none is left. {reasons}. See rejects/ and correct the model, its prompt or the quality settings"
    )

"""One corpus on its way to a scorecard: many groupings at once, entered in the order in which they were drawn."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import IO, Any

from diversity_jax import storage
from diversity_jax.cluster_agent import estimators
from diversity_jax.cluster_agent.asking import RunEnded, Usage, explain
from diversity_jax.cluster_agent.criteria import Criteria
from diversity_jax.cluster_agent.drawing import Drawable, Drawing
from diversity_jax.cluster_agent.grouping import Collector, Grouped, judge_grouping
from diversity_jax.cluster_agent.judge import Judge
from diversity_jax.cluster_agent.judge_error import corrected
from diversity_jax.cluster_agent.proposing import Proposed
from diversity_jax.cluster_agent.scorecard import Scorecard
from diversity_jax.cluster_agent.settings import AgentConfig
from diversity_jax.errors import InputError

# Groupings are begun a few at a time: preparing hundreds of prompts first would keep the first ones from going out.
_BEGIN_AT_ONCE = 32
_BEGIN_SECONDS = 0.005


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a scoring is: groupings `done` of `total`, of which `dropped` gave nothing; dollars of the answers used so far."""

    corpus: str
    done: int
    total: int
    dropped: int
    cost_usd: float


class Scoring:
    """One corpus on its way to a scorecard; `extend` may be called again and again, with ever more groupings."""

    def __init__(
        self,
        corpus: Drawable,
        judge: Judge,
        config: AgentConfig,
        proposed: Proposed,
        *,
        progress: Callable[[Progress], None] | None = None,
        lines: IO[str] | None = None,
        observe: Callable[[Grouped], None] | None = None,
        drawing: Drawing | None = None,
    ):
        self._corpus = corpus
        self._judge = judge
        self._config = config
        self._proposed = proposed
        self._progress = progress
        self._observe = observe
        self._handed_out = 0
        self._warnings: list[str] = list(proposed.warnings)
        self.ended: str | None = None
        self.collector = Collector(config, lines, self._entered)
        self._drawing = drawing or Drawing.of(corpus, config)

    async def extend(self, until: int) -> None:
        """Judges groupings up to number `until`. Where no further call can succeed it stops, and `ended` says why."""
        at_once = getattr(self._judge, "groupings_at_once", None) or self._config.in_flight
        await _all_or_none([self._work(until) for _ in range(min(at_once, self._config.in_flight, until - self._handed_out))])
        if self.ended:
            self.collector.flush()

    async def _work(self, until: int) -> None:
        while self._handed_out < until and self.ended is None:
            index = self._handed_out
            self._handed_out += 1
            planned = await self._drawing.plan(index, len(self._proposed.criteria.sets))
            try:
                self.collector.take(await judge_grouping(planned, self._judge, self._proposed.criteria, self._config))
            except RunEnded as ended:
                self.ended = str(ended)

    def _entered(self, grouped: Grouped) -> None:
        if self._observe:
            self._observe(grouped)
        if self._progress:
            name, total, collector = str(getattr(self._corpus, "name", "corpus")), self._config.groupings, self.collector
            dropped, cost = sum(collector.drops.values()), collector.usage.cost_usd
            self._progress(Progress(corpus=name, done=collector.entered, total=total, dropped=dropped, cost_usd=cost))

    async def scorecard(self) -> Scorecard:
        """The figures of all groupings entered so far.

        Raises:
          InputError: not one grouping was usable; the message says what went wrong how often.
        """
        await self._drawing.close()
        groupings, config, collector = self.collector.groupings, self._config, self.collector
        if not len(groupings):
            why = self.ended or explain(collector.drops, collector.first_details)
            raise InputError(
                f"judge {self._judge.label}: none of {collector.entered} groupings was usable ({why})"
                + "; try another judge" * (not self.ended)
            )
        collision = estimators.collision(groupings)
        documents = _count_documents(self._corpus, self._drawing.documents)
        usage = Usage()
        for one in (self._proposed.usage, collector.usage):
            usage.add(one)
        return Scorecard(
            effective_clusters=estimators.invert(collision),
            cluster_score=estimators.cluster_score(groupings),
            clusters_per_sample=estimators.clusters_per_sample(groupings),
            collision=collision,
            effective_clusters_corrected=corrected(groupings, collector.rates) if config.correct_judge_error else None,
            effective_clusters_of_corpus=estimators.in_a_corpus_of(documents, collision) if documents else None,
            groupings=len(groupings),
            dropped_groupings=sum(collector.drops.values()),
            drops=dict(sorted(collector.drops.items())),
            invalid_clusters=collector.invalid_clusters,
            repairs=usage.repairs,
            criteria=self._proposed.criteria.to_json(),
            criteria_hash=self._proposed.criteria.hash,
            criteria_origin=self._proposed.criteria.origin,
            canaries=collector.rates.to_json(),
            calls=usage.calls,
            tokens={"prompt": usage.prompt_tokens, "completion": usage.completion_tokens},
            cost_usd=usage.cost_usd,
            judge=self._judge.label,
            prompt_version=self._judge.prompt_version,
            ruler=ruler_of(self._judge, config),
            parameters=config.parameters(),
            corpus={
                "name": str(getattr(self._corpus, "name", "corpus")),
                "fingerprint": self._corpus.fingerprint(),
                "documents": documents,
                "sampled": self._drawing.sampled,
            },
            seed=config.seed,
            series=groupings,
            cluster_sizes={str(size): count for size, count in sorted(collector.cluster_sizes.items())},
            convergence=estimators.convergence(groupings),
            examples=collector.examples,
            warnings=self._all_warnings(groupings),
        )

    def _all_warnings(self, groupings: estimators.Groupings) -> list[str]:
        found, rates, entered = list(self._warnings), self.collector.rates, self.collector.entered
        if self.ended:
            found.append(f"stopped after {entered} of {self._config.groupings} groupings: {self.ended}")
        dropped = sum(self.collector.drops.values())
        if dropped > 0.1 * entered:
            why = explain(self.collector.drops, {})  # not in the server's words, which differ from run to run
            found.append(f"{dropped} of {entered} groupings were dropped ({why}); what remains may not be like what is missing")
        if groupings.pairs.sum() < estimators.FEWEST_PAIRS:
            found.append(f"only {int(groupings.pairs.sum())} pairs of samples were grouped together: a lower bound, not an estimate")
        if not rates.shown:
            found.append("no canaries: nothing is known of this judge's mistakes, and hostile documents go unnoticed")
        top = rates.ceiling and rates.ceiling["low"]
        if top and 1 / max(float(groupings.collisions.mean()), 1e-9) > top:
            found.append(f"the canaries cannot show that this judge tells apart more than {top:.0f} effective clusters")
        if len(self._proposed.criteria.sets) < 3 < self._config.criteria_sets:
            found.append("fewer than 3 criteria sets came about: the interval is very wide")
        return found


def ruler_of(judge: Judge, config: AgentConfig) -> str:
    """Hash of what two scores must share to be compared, besides criteria: judge, wording, and how texts are shown."""
    shown = {"max_characters": config.max_characters, "verify": config.verify}
    return storage.content_hash([judge.label, judge.prompt_version, dict(judge.identity), shown])


def score_key(fingerprint: str, judge: Judge, config: AgentConfig, criteria: Criteria | None = None) -> str:
    """Hash under which a scorecard may be kept and found again: equal exactly when scoring again would give the same."""
    asked = criteria.hash if criteria else config.criteria and storage.file_hash(config.criteria)
    return storage.content_hash([fingerprint, ruler_of(judge, config), config.parameters(), config.seed, asked])


def _count_documents(corpus: Any, drawn: int | None) -> int | None:
    try:
        return len(corpus)
    except TypeError:
        return getattr(corpus, "records", None) if drawn is None else drawn


async def _all_or_none(workers: Sequence[Coroutine]) -> None:
    """Runs all; at the first error cancels the rest, waits until they are gone, and raises it."""
    tasks, waiting = [], list(workers)
    try:
        while waiting and not any(task.done() for task in tasks):
            tasks += map(asyncio.create_task, waiting[:_BEGIN_AT_ONCE])
            del waiting[:_BEGIN_AT_ONCE]
            await asyncio.sleep(_BEGIN_SECONDS if waiting else 0)
        tasks += map(asyncio.create_task, waiting)
        waiting.clear()
        await asyncio.gather(*tasks)
    except BaseException:
        for worker in waiting:
            worker.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise

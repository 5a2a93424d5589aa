"""One corpus on its way to a scorecard: many groupings at once, entered in the order in which they were drawn.

The cluster agent: proposes criteria, judges many small groupings at once, and puts the figures on a scorecard.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
import contextlib
from dataclasses import dataclass
import os
from typing import IO, Any, TypeVar

from diversity_jax.cluster_agent import estimators
from diversity_jax.cluster_agent.canaries import corrected
from diversity_jax.cluster_agent.cluster import Collector, Grouped, judge_grouping
from diversity_jax.cluster_agent.config import AgentConfig
from diversity_jax.cluster_agent.criteria import Criteria
from diversity_jax.cluster_agent.propose import Proposed, propose_criteria
from diversity_jax.cluster_agent.request import RunEnded, Usage, explain
from diversity_jax.cluster_agent.sampling import Drawable, Drawing
from diversity_jax.cluster_agent.scorecard import Scorecard
from diversity_jax.cluster_agent.sequential_test import LOOKS, Comparison, compare_groupings, precise_enough
from diversity_jax.cluster_agent.types import Judge
from diversity_jax.core import files
from diversity_jax.core.errors import InputError

# Groupings are begun a few at a time: preparing hundreds of prompts first would keep the first ones from going out.
_BEGIN_AT_ONCE = 32
_BEGIN_SECONDS = 0.005


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a scoring is: groupings `done` of `total`, of which `dropped` gave nothing; dollars of the answers used
    so far.
    """

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
        await _all_or_none(
            [self._work(until) for _ in range(min(at_once, self._config.in_flight, until - self._handed_out))]
        )
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
            name, total, collector = (
                str(getattr(self._corpus, "name", "corpus")),
                self._config.groupings,
                self.collector,
            )
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
            found.append(
                f"{dropped} of {entered} groupings were dropped ({why}); what remains may not be like what is missing"
            )
        if groupings.pairs.sum() < estimators.FEWEST_PAIRS:
            found.append(
                f"only {int(groupings.pairs.sum())} pairs of samples were grouped together: a lower bound, not an "
                "estimate"
            )
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
    return files.content_hash([judge.label, judge.prompt_version, dict(judge.identity), shown])


def score_key(fingerprint: str, judge: Judge, config: AgentConfig, criteria: Criteria | None = None) -> str:
    """Hash under which a scorecard may be kept and found again: equal exactly when scoring again would give the
    same.
    """
    asked = criteria.hash if criteria else config.criteria and files.file_hash(config.criteria)
    return files.content_hash([fingerprint, ruler_of(judge, config), config.parameters(), config.seed, asked])


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


_T = TypeVar("_T")
_FIRST_REQUESTS_SECONDS = 0.2  # until they are on their way


async def score_corpus_async(
    corpus: Drawable,
    judge: Judge,
    config: AgentConfig,
    *,
    progress: Callable[[Progress], None] | None = None,
    groupings_path: str | os.PathLike | None = None,
    proposed: Proposed | None = None,
    drawing: Drawing | None = None,
) -> Scorecard:
    """Scores one corpus. A judge that needs to be entered has to be.

    Args:
      corpus: anything with `sample(size, seed=)` and `fingerprint()`.
      judge: who groups.
      config: how many of what.
      progress: called after every grouping, in the order of drawing.
      groupings_path: where every partition is written, one JSON object a line; whole or not at all.
      proposed: criteria already at hand (of several corpora under one ruler); None proposes them from this corpus.
      drawing: what deals out the groupings, where it has been started before.

    Raises:
      InputError: the corpus is too small, or the judge gave nothing usable.
    """
    drawing = drawing or started(corpus, config)
    if proposed is None:
        judge.expect(config.forecast_calls())
        proposed = await propose_or_explain([corpus], judge, config)
    with contextlib.ExitStack() as stack:
        lines = stack.enter_context(files.writing(groupings_path, "w")) if groupings_path is not None else None
        scoring = Scoring(corpus, judge, config, proposed, progress=progress, lines=lines, drawing=drawing)
        if config.stop_at_relative_half_width is None:
            await scoring.extend(config.groupings)
        else:
            await _until_precise(scoring, config)
        return await scoring.scorecard()


def started(corpus: Drawable, config: AgentConfig) -> Drawing:
    """Groupings of a corpus that are laid out while other calls are in flight."""
    return Drawing.of(corpus, config).start(config.in_flight, config.criteria_sets)


async def propose_or_explain(corpora: Sequence[Drawable], judge: Judge, config: AgentConfig) -> Proposed:
    """`propose_criteria`, with the end of a run as an error of one line. What intervals need is loaded while the judge
    thinks.
    """
    loop = asyncio.get_running_loop()
    loading = loop.call_later(_FIRST_REQUESTS_SECONDS, loop.run_in_executor, None, estimators.load)
    try:
        return await propose_criteria(corpora, judge, config)
    except RunEnded as ended:
        raise InputError(f"judge {judge.label}: no criteria came about: {ended}") from None
    finally:
        loading.cancel()


async def _until_precise(scoring: Scoring, config: AgentConfig) -> None:
    for until in [*range(config.look_every, config.groupings, config.look_every), config.groupings]:
        await scoring.extend(until)
        if scoring.ended or precise_enough(scoring.collector.groupings, config.stop_at_relative_half_width):
            return


async def score_corpora_async(
    corpora: Mapping[str, Drawable],
    judge: Judge,
    config: AgentConfig,
    *,
    progress: Callable[[Progress], None] | None = None,
    groupings_paths: Mapping[str, str | os.PathLike] | None = None,
) -> dict[str, Scorecard]:
    """Scores several corpora under one ruler: one judge, and criteria proposed from samples of all of them together.

    The first scorecard carries the calls of the proposals.
    """
    first, further = config.forecast_calls(), config.forecast_calls(with_criteria=True)
    judge.expect(first + further * (len(corpora) - 1))
    upcoming = [*corpora.values()][1:]
    drawing = started(next(iter(corpora.values())), config)
    proposed = await propose_or_explain(list(corpora.values()), judge, config)
    cards = {}
    for name, corpus in corpora.items():
        given = {"proposed": proposed, "drawing": drawing, "groupings_path": (groupings_paths or {}).get(name)}
        drawing = started(upcoming.pop(0), config) if upcoming else None
        cards[name] = await score_corpus_async(corpus, judge, config, progress=progress, **given)
        proposed = Proposed(proposed.criteria, Usage(), proposed.warnings)
    return cards


async def score_until_decided_async(
    a: Drawable,
    b: Drawable,
    judge: Judge,
    config: AgentConfig,
    *,
    alpha: float = 0.05,
    looks: int = LOOKS,
    groupings_paths: Sequence[str | os.PathLike] | None = None,
) -> tuple[Comparison, Scorecard, Scorecard]:
    """Scores two corpora side by side and stops at the first of `looks` planned looks that decides which is the more
    diverse.

    At most `config.groupings` groupings each. The error rate `alpha` holds over all looks together. `groupings_paths`
    are where the partitions of a and of b are written.
    """
    judge.expect(config.forecast_calls() + config.forecast_calls(with_criteria=True))
    proposed = await propose_or_explain([a, b], judge, config)
    with contextlib.ExitStack() as stack:
        lines = [stack.enter_context(files.writing(path, "w")) for path in groupings_paths or ()] or [None, None]
        first = Scoring(a, judge, config, proposed, lines=lines[0])
        second = Scoring(b, judge, config, Proposed(proposed.criteria, Usage(), proposed.warnings), lines=lines[1])
        for look in range(1, looks + 1):
            until = max(1, config.groupings * look // looks)
            await asyncio.gather(first.extend(until), second.extend(until))
            card_a, card_b = await first.scorecard(), await second.scorecard()
            found = compare_groupings(card_a.series, card_b.series, paired=True, alpha=alpha, look=look, looks=looks)
            if found.decided or first.ended or second.ended:
                break
        return found, card_a, card_b


def run(coroutine: Coroutine[Any, Any, _T], judge: Judge) -> _T:
    """Runs a coroutine from ordinary code, with its judge entered where that is needed.

    Raises:
      InputError: an event loop is already running here (a notebook): await the asynchronous form there.
    """

    async def entered() -> _T:
        async with judge if hasattr(judge, "__aenter__") else contextlib.nullcontext():
            return await coroutine

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        try:
            return asyncio.run(entered())
        finally:
            coroutine.close()  # where the judge could not be entered it was never awaited
    coroutine.close()
    raise InputError(
        "an event loop is already running (a notebook?): use `await` with the function whose name ends in _async"
    )


def score_corpus(
    corpus: Drawable,
    judge: Judge,
    config: AgentConfig,
    *,
    progress: Callable[[Progress], None] | None = None,
    groupings_path: str | os.PathLike | None = None,
) -> Scorecard:
    """`score_corpus_async` for ordinary code."""
    return run(score_corpus_async(corpus, judge, config, progress=progress, groupings_path=groupings_path), judge)


def score_corpora(
    corpora: Mapping[str, Drawable],
    judge: Judge,
    config: AgentConfig,
    *,
    progress: Callable[[Progress], None] | None = None,
    groupings_paths: Mapping[str, str | os.PathLike] | None = None,
) -> dict[str, Scorecard]:
    """`score_corpora_async` for ordinary code."""
    return run(score_corpora_async(corpora, judge, config, progress=progress, groupings_paths=groupings_paths), judge)


def score_until_decided(
    a: Drawable,
    b: Drawable,
    judge: Judge,
    config: AgentConfig,
    *,
    alpha: float = 0.05,
    looks: int = LOOKS,
    groupings_paths: Sequence[str | os.PathLike] | None = None,
) -> tuple[Comparison, Scorecard, Scorecard]:
    """`score_until_decided_async` for ordinary code."""
    return run(
        score_until_decided_async(a, b, judge, config, alpha=alpha, looks=looks, groupings_paths=groupings_paths), judge
    )

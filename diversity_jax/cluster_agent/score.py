"""Scores corpora: proposes criteria, judges many groupings at once, and puts the figures on a scorecard."""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
import contextlib
from dataclasses import dataclass
import functools
import inspect
import json
import os
from typing import IO, Any, ParamSpec, TypeVar

from diversity_jax.cluster_agent import estimators
from diversity_jax.cluster_agent.canaries import CanaryResult, ErrorRates, corrected
from diversity_jax.cluster_agent.cluster import JudgedGrouping, judge_grouping
from diversity_jax.cluster_agent.config import AgentConfig
from diversity_jax.cluster_agent.criteria import Criteria, ProposedCriteria, propose_criteria
from diversity_jax.cluster_agent.sampling import GroupingSampler
from diversity_jax.cluster_agent.scorecard import STOPPED, Scorecard
from diversity_jax.cluster_agent.sequential_test import LOOKS, Comparison, compare_groupings, precise_enough
from diversity_jax.cluster_agent.types import CallTotals, Judge, RunEnded, SampledCorpus, describe_failures, entered
from diversity_jax.core import files
from diversity_jax.core.errors import InputError

# Groupings are begun a few at a time: preparing hundreds of prompts first would delay the first requests.
_BEGIN_AT_ONCE = 32
_BEGIN_SECONDS = 0.005
_LARGE_SHARE_DROPPED = 0.1  # of the groupings; what remains may then be biased

_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class ScoringProgress:
    """Groupings `done` of `total`, of which `dropped` gave nothing; dollars of the answers used so far."""

    corpus: str
    done: int
    total: int
    dropped: int
    cost_usd: float


class CorpusScorer:
    """Judges groupings of one corpus; `extend` may be called again and again, with ever more groupings.

    Groupings finish in any order and are entered in the order of drawing, so nothing depends on which call came back
    first: not the file, the examples, the sums of dollars, or where a run stops.

    Args:
      progress: called after every grouping.
      lines: file of groupings.jsonl.
      observe: called with every judged grouping, also the dropped ones.
      sampler: draws the groupings, where it has been started before.

    Attributes:
      ended: why no further call can succeed; None while calls can.
      entered: groupings entered so far; usage: their calls.
    """

    def __init__(
        self,
        corpus: SampledCorpus,
        judge: Judge,
        config: AgentConfig,
        proposed: ProposedCriteria,
        *,
        progress: Callable[[ScoringProgress], None] | None = None,
        lines: IO[str] | None = None,
        observe: Callable[[JudgedGrouping], None] | None = None,
        sampler: GroupingSampler | None = None,
    ):
        self._corpus, self._judge, self._config, self._proposed = corpus, judge, config, proposed
        self._progress, self._lines, self._observe = progress, lines, observe
        self._sampler = sampler or GroupingSampler(corpus, config)
        self._name = str(getattr(corpus, "name", "corpus"))
        self._begun = 0
        self._waiting: dict[int, JudgedGrouping] = {}
        self.ended: str | None = None
        self.entered = 0
        self.usage = CallTotals()
        self._rows: list[dict[str, Any]] = []  # by columns of `Groupings`
        self._canaries: list[CanaryResult] = []
        self._drops: Counter[str] = Counter()
        self._first_details: dict[str, str] = {}  # of the drops, by reason
        self._cluster_sizes: Counter[int] = Counter()
        self._invalid_clusters = 0
        self._examples: list[dict[str, Any]] = []

    async def extend(self, until: int) -> None:
        """Judges groupings up to number `until`. Where no further call can succeed it stops, and `ended` says why."""
        at_once = getattr(self._judge, "groupings_at_once", None) or self._config.in_flight
        workers = min(at_once, self._config.in_flight, until - self._begun)
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(1, workers + 1):
                    group.create_task(self._work(until))
                    if number % _BEGIN_AT_ONCE == 0 and self._begun < until:
                        await asyncio.sleep(_BEGIN_SECONDS)
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        if self.ended:  # groupings that finished although an earlier one never will
            for index in sorted(self._waiting):
                self._enter(self._waiting.pop(index))

    async def _work(self, until: int) -> None:
        criteria = self._proposed.criteria
        while self._begun < until and self.ended is None:
            index = self._begun
            self._begun += 1
            planned = await self._sampler.plan(index, len(criteria.sets))
            try:
                self._waiting[index] = await judge_grouping(planned, self._judge, criteria, self._config)
            except RunEnded as ended:
                self.ended = str(ended)
            while (following := self._waiting.pop(self.entered, None)) is not None:
                self._enter(following)

    def _enter(self, judged: JudgedGrouping) -> None:
        self.entered += 1
        self.usage.add(judged.usage)
        if judged.canary:
            self._canaries.append(judged.canary)
        if judged.dropped:
            self._drops[judged.dropped] += 1
            self._first_details.setdefault(judged.dropped, judged.detail)
        else:
            self._rows.append(judged.counts)
            for cluster in judged.clusters:
                self._cluster_sizes[len(cluster.sample_ids)] += cluster.valid
                self._invalid_clusters += not cluster.valid
            if len(self._examples) < self._config.examples:
                self._examples.append(judged.example())
        if self._lines is not None:
            self._lines.write(json.dumps(judged.to_json(), ensure_ascii=False) + "\n")
        if self._observe:
            self._observe(judged)
        if self._progress:
            dropped, cost, total = sum(self._drops.values()), self.usage.cost_usd, self._config.groupings
            self._progress(
                ScoringProgress(corpus=self._name, done=self.entered, total=total, dropped=dropped, cost_usd=cost)
            )

    @property
    def groupings(self) -> estimators.Groupings:
        """All usable groupings entered so far."""
        return estimators.Groupings.of_rows(self._config.samples_per_grouping, self._rows)

    async def scorecard(self) -> Scorecard:
        """The figures of all groupings entered so far.

        Raises:
          InputError: not one grouping was usable; the message says what went wrong how often.
        """
        await self._sampler.close()
        groupings, config, proposed, dropped = self.groupings, self._config, self._proposed, sum(self._drops.values())
        if not len(groupings):
            why = self.ended or describe_failures(self._drops, self._first_details)
            hint = "" if self.ended else "; try another judge"
            raise InputError(f"judge {self._judge.label}: none of {self.entered} groupings was usable ({why}){hint}")
        merged, split = (sum(getattr(result, name) for result in self._canaries) for name in ("merged", "split"))
        rates = ErrorRates(shown=len(self._canaries), merged=merged, split=split)
        documents = _count_documents(self._corpus, self._sampler.documents)
        collision, of_documents = estimators.collision(groupings, documents=documents), None
        if documents:
            of_documents = estimators.in_a_corpus_of(documents, estimators.collision_of_documents(groupings))
        usage = CallTotals()
        usage.add(proposed.usage)
        usage.add(self.usage)
        return Scorecard(
            effective_clusters=estimators.effective_clusters(groupings, documents=documents),
            cluster_score=estimators.cluster_score(groupings),
            clusters_per_sample=estimators.clusters_per_sample(groupings),
            collision=collision,
            effective_clusters_corrected=corrected(groupings, rates) if config.correct_judge_error else None,
            effective_clusters_of_corpus=of_documents,
            groupings=len(groupings),
            dropped_groupings=dropped,
            drops=dict(sorted(self._drops.items())),
            invalid_clusters=self._invalid_clusters,
            repairs=usage.repairs,
            criteria=proposed.criteria.to_json(),
            criteria_hash=proposed.criteria.hash,
            criteria_origin=proposed.criteria.origin,
            canaries=rates.to_json(),
            calls=usage.calls,
            tokens={"prompt": usage.prompt_tokens, "completion": usage.completion_tokens},
            cost_usd=usage.cost_usd,
            judge=self._judge.label,
            prompt_version=self._judge.prompt_version,
            ruler=judge_settings_hash(self._judge, config),
            parameters=config.parameters(),
            corpus={
                "name": self._name,
                "fingerprint": self._corpus.fingerprint(),
                "documents": documents,
                "sampled": self._sampler.sampled,
            },
            seed=config.seed,
            series=groupings,
            cluster_sizes={str(size): count for size, count in sorted(self._cluster_sizes.items())},
            convergence=estimators.convergence(groupings, documents=documents),
            examples=self._examples,
            warnings=self._warnings(groupings, rates),
        )

    def _warnings(self, groupings: estimators.Groupings, rates: ErrorRates) -> list[str]:
        warnings, entered, dropped = list(self._proposed.warnings), self.entered, sum(self._drops.values())
        if self.ended:
            warnings.append(f"{STOPPED} {entered} of {self._config.groupings} groupings: {self.ended}")
        if dropped > _LARGE_SHARE_DROPPED * entered:
            why = describe_failures(self._drops, {})  # without details, which differ from run to run
            warnings.append(
                f"{dropped} of {entered} groupings were dropped ({why}); what remains may not be like what is missing"
            )
        pairs = int(groupings.pairs.sum())
        if pairs < estimators.FEWEST_PAIRS:
            warnings.append(f"only {pairs} pairs of samples were grouped together: a lower bound, not an estimate")
        if not rates.shown:
            warnings.append(
                "no canaries: nothing is known of this judge's mistakes, and hostile documents go unnoticed"
            )
        top = rates.ceiling and rates.ceiling["low"]
        if top and estimators.effective_clusters(groupings).value > top:
            warnings.append(
                f"the canaries cannot show that this judge tells apart more than {top:.0f} effective clusters"
            )
        if len(self._proposed.criteria.sets) < 3 < self._config.criteria_sets:
            warnings.append("fewer than 3 criteria sets came about: the interval is very wide")
        return warnings


def judge_settings_hash(judge: Judge, config: AgentConfig) -> str:
    """Hash of what two scores must share to be compared, besides criteria: judge, wording, and how texts are shown."""
    shown = {"max_characters": config.max_characters, "verify": config.verify}
    return files.content_hash([judge.label, judge.prompt_version, dict(judge.identity), shown])


def score_key(fingerprint: str, judge: Judge, config: AgentConfig, criteria: Criteria | None = None) -> str:
    """Hash under which a scorecard is stored: equal exactly when scoring again would give the same."""
    criteria_hash = criteria.hash if criteria else config.criteria and files.file_hash(config.criteria)
    parts = [fingerprint, judge_settings_hash(judge, config), config.parameters(), config.seed, criteria_hash]
    return files.content_hash(parts)


def _count_documents(corpus: Any, drawn: int | None) -> int | None:
    try:
        return len(corpus)
    except TypeError:
        return getattr(corpus, "records", None) if drawn is None else drawn


async def propose_or_raise(corpora: Sequence[SampledCorpus], judge: Judge, config: AgentConfig) -> ProposedCriteria:
    """`propose_criteria`, where the end of a run is an `InputError`."""
    try:
        return await propose_criteria(corpora, judge, config)
    except RunEnded as ended:
        raise InputError(f"judge {judge.label}: no criteria came about: {ended}") from None


def _writing(path: str | os.PathLike | None) -> contextlib.AbstractContextManager[IO[str] | None]:
    return contextlib.nullcontext() if path is None else files.writing(path, "w")


async def score_corpus_async(
    corpus: SampledCorpus,
    judge: Judge,
    config: AgentConfig,
    *,
    progress: Callable[[ScoringProgress], None] | None = None,
    groupings_path: str | os.PathLike | None = None,
    proposed: ProposedCriteria | None = None,
    sampler: GroupingSampler | None = None,
) -> Scorecard:
    """Scores one corpus. A judge that is an asynchronous context manager has to be entered.

    Args:
      progress: called after every grouping, in the order of drawing.
      groupings_path: file for every partition, one JSON object a line; written completely or not at all.
      proposed: criteria at hand, where several corpora are compared; None proposes them from this corpus.
      sampler: draws the groupings, where it has been started before.

    Raises:
      InputError: the corpus is too small, or the judge gave nothing usable.
    """
    sampler = sampler or GroupingSampler(corpus, config).start()
    if proposed is None:
        judge.expect(config.forecast_calls())
        proposed = await propose_or_raise([corpus], judge, config)
    with _writing(groupings_path) as lines:
        scorer = CorpusScorer(corpus, judge, config, proposed, progress=progress, lines=lines, sampler=sampler)
        wanted = config.stop_at_relative_half_width
        looks = [] if wanted is None else range(config.look_every, config.groupings, config.look_every)
        for until in [*looks, config.groupings]:
            await scorer.extend(until)
            if scorer.ended or (wanted is not None and precise_enough(scorer.groupings, wanted)):
                break
        return await scorer.scorecard()


async def score_corpora_async(
    corpora: Mapping[str, SampledCorpus],
    judge: Judge,
    config: AgentConfig,
    *,
    progress: Callable[[ScoringProgress], None] | None = None,
    groupings_paths: Mapping[str, str | os.PathLike] | None = None,
) -> dict[str, Scorecard]:
    """Scores several corpora by one judge, and criteria proposed from samples of all of them together.

    The first scorecard carries the calls of the proposals.
    """
    further = config.forecast_calls(with_criteria=True)
    judge.expect(config.forecast_calls() + further * (len(corpora) - 1))
    # While a corpus is judged, the first groupings of the next one are drawn.
    upcoming = iter(corpora.values())
    sampler = GroupingSampler(next(upcoming), config).start()
    proposed = await propose_or_raise(list(corpora.values()), judge, config)
    scorecards = {}
    for name, corpus in corpora.items():
        current = sampler
        if (following := next(upcoming, None)) is not None:
            sampler = GroupingSampler(following, config).start()
        scorecards[name] = await score_corpus_async(
            corpus,
            judge,
            config,
            progress=progress,
            groupings_path=(groupings_paths or {}).get(name),
            proposed=proposed,
            sampler=current,
        )
        proposed = proposed.without_usage()
    return scorecards


async def score_until_decided_async(
    a: SampledCorpus,
    b: SampledCorpus,
    judge: Judge,
    config: AgentConfig,
    *,
    alpha: float = 0.05,
    looks: int = LOOKS,
    groupings_paths: tuple[str | os.PathLike | None, str | os.PathLike | None] = (None, None),
) -> tuple[Comparison, Scorecard, Scorecard]:
    """Scores two corpora side by side and stops at the first of `looks` planned looks that decides which is the more
    diverse.

    At most `config.groupings` groupings each. The error rate `alpha` holds over all looks together. `groupings_paths`
    are the files for the partitions of a and of b.
    """
    judge.expect(config.forecast_calls() + config.forecast_calls(with_criteria=True))
    proposed = await propose_or_raise([a, b], judge, config)
    path_a, path_b = groupings_paths
    with _writing(path_a) as lines_a, _writing(path_b) as lines_b:
        first = CorpusScorer(a, judge, config, proposed, lines=lines_a)
        second = CorpusScorer(b, judge, config, proposed.without_usage(), lines=lines_b)
        for look in range(1, looks + 1):
            until = max(1, config.groupings * look // looks)
            await asyncio.gather(first.extend(until), second.extend(until))
            scorecards = await first.scorecard(), await second.scorecard()
            series = [scorecard.series for scorecard in scorecards]
            documents = scorecards[0].sampled_documents, scorecards[1].sampled_documents
            comparison = compare_groupings(
                *series, paired=True, alpha=alpha, look=look, looks=looks, documents=documents
            )
            if comparison.decided or first.ended or second.ended:
                break
        return comparison, *scorecards


def blocking(function: Callable[_P, Coroutine[Any, Any, _T]]) -> Callable[_P, _T]:
    """The same function for code without an event loop; enters the argument `judge` where it is a context manager.

    Raises:
      InputError: when called where an event loop is running (a notebook): await the asynchronous function there.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        judge = signature.bind(*args, **kwargs).arguments["judge"]

        async def with_judge() -> _T:
            async with entered(judge):
                return await function(*args, **kwargs)

        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(with_judge())
        raise InputError(
            "an event loop is already running (a notebook?): use `await` with the function whose name ends in _async"
        )

    return call


score_corpus = blocking(score_corpus_async)
score_corpora = blocking(score_corpora_async)
score_until_decided = blocking(score_until_decided_async)

"""Scores corpora: proposes criteria, chooses K, judges many groupings at once, and makes scorecards.

More samples at once (a larger K) cost less for the same precision, until a judge merges too much or makes malformed
partitions. Where the run chooses K, its first groupings are judged at growing K, and half of each a second time: where
that groups the same pairs differently, or many answers are unusable, the previous K is taken.
"""

from collections.abc import Callable, Coroutine, Mapping, Sequence
import contextlib
from dataclasses import replace
import functools
import inspect
import itertools
import logging
import os
from typing import IO, Any, ParamSpec, TypeVar

from diversity_jax.cluster_agent import examination
from diversity_jax.cluster_agent.cluster import JudgedGrouping
from diversity_jax.cluster_agent.config import AgentConfig
from diversity_jax.cluster_agent.corpus_scorer import (
    CorpusScorer,
    ScoringProgress,
    count_documents,
    judge_settings_hash,
)
from diversity_jax.cluster_agent.criteria import ProposedCriteria, propose_criteria
from diversity_jax.cluster_agent.embedding_judge import EmbeddingJudge, adapted
from diversity_jax.cluster_agent.sampling import GroupingSampler
from diversity_jax.cluster_agent.scorecard import Scorecard
from diversity_jax.cluster_agent.sequential_test import precise_enough
from diversity_jax.cluster_agent.types import CallTotals, Judge, RunEnded, SampledCorpus, entered
from diversity_jax.cluster_agent.verdict import NothingUsable
from diversity_jax.core import files
from diversity_jax.core.errors import InputError
from diversity_jax.core.event_loop import run_to_end
from diversity_jax.core.formats import counted

CANDIDATES = (40, 20, 10)
_GROUPINGS = 40  # judged for the choice of K, at each candidate, over all corpora
_MOST_DROPPED = 0.2
_DOCUMENTS_A_SAMPLE = 5  # K is at most a fifth of the smallest corpus, so that no grouping shows much of it

log = logging.getLogger(__name__)
_P = ParamSpec("_P")
_T = TypeVar("_T")


def candidates(corpora: Sequence[SampledCorpus]) -> list[int]:
    """Values of K for which the corpora are large enough, the largest first."""
    sizes = [size for corpus in corpora if (size := count_documents(corpus)) is not None]
    fitting = [k for k in CANDIDATES if not sizes or k * _DOCUMENTS_A_SAMPLE <= min(sizes)]
    return fitting or [max(2, min([CANDIDATES[-1], *sizes]))]


def with_most_samples(config: AgentConfig, corpora: Sequence[SampledCorpus]) -> AgentConfig:
    """The configuration with the largest K, for forecasts before the run has chosen one."""
    return config if config.samples_per_grouping else replace(config, samples_per_grouping=candidates(corpora)[0])


async def with_chosen_samples(
    corpora: Sequence[SampledCorpus], judge: Judge, config: AgentConfig, proposed: ProposedCriteria
) -> tuple[AgentConfig, ProposedCriteria]:
    """The configuration with K chosen, where that is left to the run; and the criteria, whose usage then includes the
    calls at values of K that were not chosen.
    """
    if config.samples_per_grouping:
        return config, proposed
    numbers = candidates(corpora)
    if isinstance(judge, EmbeddingJudge):  # free, and the same at every K
        return replace(config, samples_per_grouping=min(CANDIDATES[-1], numbers[0])), proposed
    spent: dict[int, list[CallTotals]] = {}
    chosen = numbers[-1]
    for k in reversed(numbers[:-1]):  # upwards, since a judge may group alike at two values that are both too large
        trial = replace(config, samples_per_grouping=k, recheck_share=1.0)
        judged: list[JudgedGrouping] = []
        each = min(config.groupings, -(-_GROUPINGS // len(corpora)))
        scorers = [
            CorpusScorer(corpus, judge, trial, proposed.without_usage(), observe=judged.append) for corpus in corpora
        ]
        for scorer in scorers:
            await scorer.extend(each)
        spent[k] = [scorer.usage for scorer in scorers]
        if why := _why_not(judged, k):
            log.info("agent.samples_per_grouping: not %d, %s", k, why)
            break
        chosen = k
        if any(scorer.ended for scorer in scorers):
            break
    log.info("agent.samples_per_grouping: %d", chosen)
    spent.pop(chosen, None)  # these groupings are the run's own first ones
    usage = CallTotals.of([proposed.usage, *itertools.chain.from_iterable(spent.values())])
    return replace(config, samples_per_grouping=chosen), replace(proposed, usage=usage)


def _why_not(judged: Sequence[JudgedGrouping], k: int) -> str | None:
    """Why a judge should be shown fewer than `k` samples; None where it need not."""
    dropped = sum(grouping.dropped is not None for grouping in judged)
    if dropped > _MOST_DROPPED * len(judged):
        return f"{dropped} of {counted(len(judged), 'grouping')} were not usable"
    drift = examination.drift([grouping.recheck for grouping in judged if grouping.recheck], k)
    if drift is not None and drift["drifts"]:
        return f"T of the same pairs differs by {drift['relative']:+.0%} among {k // 2}"
    return None


def score_key(fingerprint: str, judge: Judge, config: AgentConfig) -> str:
    """Hash under which a scorecard is stored: equal exactly when scoring again would give the same."""
    criteria_hash = config.criteria and files.file_hash(config.criteria)
    parts = [fingerprint, judge_settings_hash(judge, config), config.parameters(), config.seed, criteria_hash]
    if exam := getattr(judge, "exam", None):  # its verdict is on the scorecard
        parts.append(exam.to_json())
    return files.content_hash(parts)


async def propose_or_raise(corpora: Sequence[SampledCorpus], judge: Judge, config: AgentConfig) -> ProposedCriteria:
    """`propose_criteria`, with InputError where the run ended."""
    try:
        return await propose_criteria(corpora, judge, config)
    except RunEnded as ended:
        raise InputError(f"judge {judge.label}: no criteria were proposed: {ended}") from None


def expect_calls(judge: Judge, config: AgentConfig, scorings: int) -> None:
    """Tells a judge how many calls proposing criteria and `scorings` scorings by them take."""
    judge.expect(config.forecast_calls() + (scorings - 1) * config.forecast_calls(with_criteria=True))


async def prepared(
    corpora: Sequence[SampledCorpus], judge: Judge, config: AgentConfig, scorings: int | None = None
) -> tuple[AgentConfig, ProposedCriteria]:
    """The settings for a judge with K chosen, and criteria for `scorings` scorings (None: one of each corpus)."""
    config = adapted(judge, config)
    expect_calls(judge, config, scorings or len(corpora))
    return await with_chosen_samples(corpora, judge, config, await propose_or_raise(corpora, judge, config))


def writing_lines(path: str | os.PathLike | None) -> contextlib.AbstractContextManager[IO[str] | None]:
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
      progress: called after every grouping, in the order of sampling.
      groupings_path: file for every partition, one JSON object a line; written atomically.
      proposed: criteria, where several corpora are compared; None proposes them from this corpus.
      sampler: draws the groupings, where one has been started before.

    Raises:
      InputError: the corpus is too small, or no answer of the judge was usable.
    """
    config = adapted(judge, config)
    if proposed is None:
        judge.expect(config.forecast_calls())
        if config.samples_per_grouping:
            sampler = sampler or GroupingSampler(corpus, config).start()
        proposed = await propose_or_raise([corpus], judge, config)
    config, proposed = await with_chosen_samples([corpus], judge, config, proposed)
    with writing_lines(groupings_path) as lines:
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
    """Scores several corpora by one judge and the same criteria, proposed from samples of all of them.

    The first scorecard includes the calls of the proposals.
    """
    config = adapted(judge, config)
    expect_calls(judge, config, len(corpora))
    # While a corpus is judged, the first groupings of the next one are drawn.
    upcoming = iter(corpora.values())
    first = next(upcoming)
    sampler = GroupingSampler(first, config).start() if config.samples_per_grouping else None
    proposed = await propose_or_raise(list(corpora.values()), judge, config)
    config, proposed = await with_chosen_samples(list(corpora.values()), judge, config, proposed)
    scorecards = {}
    for name, corpus in corpora.items():
        current, sampler = sampler, None
        if (following := next(upcoming, None)) is not None:
            sampler = GroupingSampler(following, config).start()
        try:
            scorecards[name] = await score_corpus_async(
                corpus,
                judge,
                config,
                progress=progress,
                groupings_path=(groupings_paths or {}).get(name),
                proposed=proposed,
                sampler=current,
            )
        except NothingUsable as failure:
            failure.folder = name if len(corpora) > 1 else ""
            raise
        proposed = proposed.without_usage()
    return scorecards


def blocking(function: Callable[_P, Coroutine[Any, Any, _T]]) -> Callable[_P, _T]:
    """The synchronous form of a coroutine function; enters its argument `judge` where that is a context manager.

    Where an event loop is running already, as in a notebook, the coroutine runs in another thread.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        judge = signature.bind(*args, **kwargs).arguments["judge"]

        async def with_judge() -> _T:
            async with entered(judge):
                return await function(*args, **kwargs)

        return run_to_end(with_judge())

    return call


score_corpus = blocking(score_corpus_async)
score_corpora = blocking(score_corpora_async)

"""The cluster agent: proposes criteria, judges many small groupings at once, and puts the figures on a scorecard."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
import contextlib
import os
from typing import Any, TypeVar

from diversity_jax import storage
from diversity_jax.cluster_agent import estimators
from diversity_jax.cluster_agent.asking import RunEnded, Usage
from diversity_jax.cluster_agent.drawing import Drawable, Drawing
from diversity_jax.cluster_agent.judge import Judge
from diversity_jax.cluster_agent.proposing import Proposed, propose_criteria
from diversity_jax.cluster_agent.scorecard import Scorecard
from diversity_jax.cluster_agent.scoring_run import Progress, Scoring
from diversity_jax.cluster_agent.sequential import LOOKS, Comparison, compare_groupings, precise_enough
from diversity_jax.cluster_agent.settings import AgentConfig
from diversity_jax.errors import InputError

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
        lines = stack.enter_context(storage.writing(groupings_path, "w")) if groupings_path is not None else None
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
    """`propose_criteria`, with the end of a run as an error of one line. What intervals need is loaded while the judge thinks."""
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
    """Scores two corpora side by side and stops at the first of `looks` planned looks that decides which is the more diverse.

    At most `config.groupings` groupings each. The error rate `alpha` holds over all looks together. `groupings_paths` are where the
    partitions of a and of b are written.
    """
    judge.expect(config.forecast_calls() + config.forecast_calls(with_criteria=True))
    proposed = await propose_or_explain([a, b], judge, config)
    with contextlib.ExitStack() as stack:
        lines = [stack.enter_context(storage.writing(path, "w")) for path in groupings_paths or ()] or [None, None]
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
    raise InputError("an event loop is already running (a notebook?): use `await` with the function whose name ends in _async")


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
    return run(score_until_decided_async(a, b, judge, config, alpha=alpha, looks=looks, groupings_paths=groupings_paths), judge)

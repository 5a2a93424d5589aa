"""Scores corpora side by side in looks, and stops each as soon as every question that is asked of it is decided."""

import asyncio
from collections.abc import Callable, Collection, Mapping
import contextlib
from dataclasses import replace
import os

from diversity_jax.cluster_agent.choose_samples import with_chosen_samples
from diversity_jax.cluster_agent.compare import compare
from diversity_jax.cluster_agent.config import AgentConfig
from diversity_jax.cluster_agent.corpus_scorer import CorpusScorer, ScoringProgress
from diversity_jax.cluster_agent.embedding_judge import adapted
from diversity_jax.cluster_agent.score import blocking, propose_or_raise, writing_lines
from diversity_jax.cluster_agent.scorecard import Scorecard
from diversity_jax.cluster_agent.sequential_test import LOOKS, Comparison
from diversity_jax.cluster_agent.types import Judge, SampledCorpus

Undecided = Callable[[Mapping[str, Scorecard]], Collection[str]]
"""From the scorecards so far to the names of the corpora that a question not yet decided is about."""


async def score_in_looks_async(
    corpora: Mapping[str, SampledCorpus],
    judge: Judge,
    config: AgentConfig,
    undecided: Undecided,
    *,
    looks: int = LOOKS,
    progress: Callable[[ScoringProgress], None] | None = None,
    groupings_paths: Mapping[str, str | os.PathLike] | None = None,
) -> dict[str, Scorecard]:
    """Scores corpora by one judge and the same criteria; those that nothing undecided is about take no further look.

    Args:
      undecided: looks at all scorecards, whose `look` says how much of the error each comparison may spend.
      looks: equally spaced ones, up to `config.groupings` groupings of a corpus.
      progress, groupings_paths: as for `score_corpora`.

    Raises:
      InputError: as `score_corpora`.
    """
    config = adapted(judge, config)
    further = config.forecast_calls(with_criteria=True)
    judge.expect(config.forecast_calls() + further * (len(corpora) - 1))
    proposed = await propose_or_raise(list(corpora.values()), judge, config)
    config, proposed = await with_chosen_samples(list(corpora.values()), judge, config, proposed)
    with contextlib.ExitStack() as stack:
        scorers: dict[str, CorpusScorer] = {}
        for name, corpus in corpora.items():
            lines = stack.enter_context(writing_lines((groupings_paths or {}).get(name)))
            scorers[name] = CorpusScorer(corpus, judge, config, proposed, progress=progress, lines=lines)
            proposed = proposed.without_usage()
        scorecards: dict[str, Scorecard] = {}
        wanted: Collection[str] = list(corpora)
        for look in range(1, looks + 1):
            until = max(1, config.groupings * look // looks)
            await asyncio.gather(*(scorers[name].extend(until) for name in wanted))
            for name in wanted:
                scorecards[name] = replace(await scorers[name].scorecard(), look=(look, looks))
            wanted = [name for name in corpora if name in undecided(scorecards)]
            if not wanted or any(scorer.ended for scorer in scorers.values()):
                break
        return scorecards


score_in_looks = blocking(score_in_looks_async)


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
    """Scores two corpora until it is decided which is the more diverse, or all looks are taken.

    At most `config.groupings` groupings each. The error rate `alpha` holds over all looks together. `groupings_paths`
    are the files for the partitions of a and of b.
    """

    def undecided(scorecards: Mapping[str, Scorecard]) -> Collection[str]:
        return () if compare(scorecards["a"], scorecards["b"], alpha=alpha).decided else scorecards

    paths = {name: path for name, path in zip("ab", groupings_paths, strict=True) if path is not None}
    scorecards = await score_in_looks_async(
        {"a": a, "b": b}, judge, config, undecided, looks=looks, groupings_paths=paths
    )
    return compare(scorecards["a"], scorecards["b"], alpha=alpha), scorecards["a"], scorecards["b"]


score_until_decided = blocking(score_until_decided_async)

"""Comparisons of scores: two corpora, all pairs of several, one corpus at two K, and independent draws of one."""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
import contextlib
from dataclasses import dataclass, replace
import itertools
import os
import random
from typing import Any

from diversity_jax.cluster_agent.config import AgentConfig
from diversity_jax.cluster_agent.corpus_scorer import CorpusScorer
from diversity_jax.cluster_agent.estimators import across_draws, effective_clusters
from diversity_jax.cluster_agent.score import CANDIDATES, blocking, prepared, score_corpus_async, writing_lines
from diversity_jax.cluster_agent.scorecard import Scorecard, at_common_length
from diversity_jax.cluster_agent.sequential_test import (
    LOOKS,
    Comparison,
    compare_groupings,
    compare_in_looks,
    drift_of_groupings,
    spent_levels,
)
from diversity_jax.cluster_agent.text_cleaning import child_seed, choose
from diversity_jax.cluster_agent.types import Judge, SampledCorpus
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import content_hash
from diversity_jax.core.intervals import Estimate

_LEAST_WORDS = 10  # of a longer text that show its subject; the first few are often a salutation or a formula


def compare(a: Scorecard, b: Scorecard, *, alpha: float = 0.05, looks: int = 1, any_judge: bool = False) -> Comparison:
    """Which corpus is more diverse, by the log ratio of effective clusters of the populations they are samples of.

    Scores of an embedding judge are compared at the smaller of their two reading lengths. Where that is only the first
    few words of much longer documents, nothing is decided.

    Args:
      a, b: scorecards of one judge, wording and settings (`Scorecard.ruler`, a hash of these).
      alpha: two-sided error rate of the whole comparison.
      looks: 1 compares all groupings once: at level `alpha` where their number was fixed beforehand, and at the level
        of its look where a scorecard was stopped at one (`Scorecard.look`). More looks compare growing prefixes, with
        the error spent over them (see `sequential_test`).
      any_judge: compare scores of different judges too; the ratio then includes their difference.

    Raises:
      InputError: the two were measured by different judges or settings.
    """
    if not any_judge:
        _check_same_judge(a, b)
    paired = a.criteria_hash == b.criteria_hash
    documents = a.sampled_documents, b.sampled_documents
    series = at_common_length(a, b)
    if looks > 1:
        return compare_in_looks(*series, paired=paired, alpha=alpha, looks=looks, documents=documents)
    look, planned = min(a.look or (1, 1), b.look or (1, 1), key=lambda taken: taken[0] / taken[1])
    comparison = compare_groupings(*series, paired=paired, alpha=alpha, look=look, looks=planned, documents=documents)
    note = _beginnings_only(a, b)
    return replace(comparison, decided=False, higher=None, low=None, high=None, note=note) if note else comparison


def _beginnings_only(a: Scorecard, b: Scorecard) -> str | None:
    """Why a comparison at the smaller reading length decides nothing: the first words of long texts rarely show their
    subject. None where it may decide.
    """
    if a.reading_words is None or b.reading_words is None:
        return None
    fewer, more = sorted((a.reading_words, b.reading_words))
    if fewer >= _LEAST_WORDS or more <= 2 * fewer:
        return None
    return f"of documents of {more} words only the first {fewer} can be compared, which are too few"


def clusters_at_its_look(scorecard: Scorecard, *, alpha: float = 0.05) -> Estimate:
    """Effective clusters with an interval for decisions: the scorecard's where the number of groupings was fixed
    beforehand, a wider one (see `spent_levels`) where the scoring could stop at any of several looks.
    """
    if scorecard.look is None:
        return scorecard.effective_clusters
    look, planned = scorecard.look
    confidence = 1 - spent_levels(alpha, planned)[look - 1]
    return effective_clusters(scorecard.series, confidence, documents=scorecard.sampled_documents)


def drift(small: Scorecard, large: Scorecard, *, alpha: float = 0.05) -> Comparison:
    """Whether a judge groups differently when it is shown more samples at once: two scores of one corpus at two K.

    1 / T does not depend on K, so a difference is due to the judge. `decided` means that it drifts; use the largest K
    at which it does not.

    Raises:
      InputError: two corpora, two judges or settings, or one K.
    """
    _check_same_judge(small, large)
    if small.corpus["fingerprint"] != large.corpus["fingerprint"]:
        names = f"{small.corpus['name']} and {large.corpus['name']}"
        raise InputError(f"drift: {names} are two corpora; score one of them at two K")
    paired = small.criteria_hash == large.criteria_hash
    return drift_of_groupings(*at_common_length(small, large), paired=paired, alpha=alpha)


def _check_same_judge(a: Scorecard, b: Scorecard) -> None:
    if a.ruler == b.ruler:
        return
    kind = "judges" if a.judge != b.judge else "prompt versions" if a.prompt_version != b.prompt_version else "rulers"
    both = f"{a.judge} {a.prompt_version}, {b.judge} {b.prompt_version}"
    raise InputError(f"compare: the scorecards come from different {kind} ({both}); score both corpora in one run")


@dataclass(frozen=True, kw_only=True)
class PairComparison:
    """Two corpora by name and their comparison, None where judges or settings differ."""

    first: str
    second: str
    comparison: Comparison | None

    @property
    def ratio(self) -> float | None:
        """Effective clusters of the first over those of the second."""
        return self.comparison.ratio if self.comparison else None

    @property
    def higher(self) -> str | None:
        """Name of the more diverse corpus, where that is decided."""
        names = {"a": self.first, "b": self.second}
        return names.get(self.comparison.higher or "") if self.comparison else None

    @property
    def text(self) -> str:
        """The ratio with its interval."""
        return self.comparison.ratio_text if self.comparison else "\u2013"

    def to_json(self) -> dict[str, Any]:
        """The pair, the more diverse corpus where decided, and the comparison."""
        comparison = self.comparison and self.comparison.to_json()
        return {"first": self.first, "second": self.second, "more_diverse": self.higher, "comparison": comparison}

    def __str__(self) -> str:
        return f"{self.first} against {self.second}: {self.comparison or 'not comparable, different rulers'}"


def compare_pairs(scorecards: Mapping[str, Scorecard], alpha: float = 0.05) -> list[PairComparison]:
    """Compares every pair at level `alpha` over the number of pairs, so that all together err at `alpha` (Bonferroni).

    For runs whose size was fixed beforehand; one that stopped at a decision has its own comparison.
    """
    pairs = list(itertools.combinations(scorecards, 2))
    compared = []
    for first, second in pairs:
        a, b = scorecards[first], scorecards[second]
        comparison = compare(a, b, alpha=alpha / len(pairs)) if a.ruler == b.ruler else None
        compared.append(PairComparison(first=first, second=second, comparison=comparison))
    return compared


@dataclass(frozen=True, kw_only=True, eq=False)
class Draws:
    """Scores of several draws: each figure's mean over draws with the t interval of that mean, and the scorecards."""

    effective_clusters: Estimate
    cluster_score: Estimate
    scorecards: tuple[Scorecard, ...]

    def to_json(self) -> dict[str, Any]:
        """The two figures, and the hashes of the scorecards in order."""
        figures = {name: getattr(self, name).to_json() for name in ("effective_clusters", "cluster_score")}
        return figures | {"scorecards": [scorecard.content_hash for scorecard in self.scorecards]}


class DrawnCorpus:
    """A random sample of `size` documents of a corpus, drawn once and held in memory."""

    def __init__(self, corpus: SampledCorpus, *, size: int, seed: int):
        self.name = f"{getattr(corpus, 'name', 'corpus')} (a draw of {size:,})"
        self._documents = list(corpus.sample(size, seed=seed))
        self._fingerprint = content_hash([corpus.fingerprint(), size, seed])

    def __len__(self) -> int:
        return len(self._documents)

    def sample(self, size: int, *, seed: int) -> Sequence[Any]:
        """Documents of the draw, without replacement."""
        chosen = choose(random.Random(seed), min(size, len(self)), len(self))
        return [self._documents[row] for row in chosen]

    def fingerprint(self) -> str:
        """Hash of the corpus's fingerprint, the size and the seed."""
        return self._fingerprint


async def score_draws_async(
    corpus: SampledCorpus, judge: Judge, config: AgentConfig, *, draws: int = 10, draw_size: int = 1_000_000
) -> Draws:
    """Draws `draw_size` documents, proposes criteria and scores them, `draws` times with different seeds.

    A random sample of a random draw is a random sample of the corpus. So a draw is made only where it is smaller than
    the documents that a scoring shows; a larger one would only take memory.

    Raises:
      InputError: fewer than 2 draws, a draw too small for a grouping, or as `score_corpus`.
    """
    if draws < 2:
        raise InputError(f"draws: {draws} has no spread; give at least 2")
    scorecards = []
    for number in range(draws):
        seed = child_seed(config.seed, "draw", number)
        shown = config.groupings * (config.samples_per_grouping or max(CANDIDATES))
        drawn = DrawnCorpus(corpus, size=draw_size, seed=seed) if draw_size < shown else corpus
        scorecards.append(await score_corpus_async(drawn, judge, replace(config, seed=seed)))
    return Draws(
        effective_clusters=across_draws([scorecard.effective_clusters.value for scorecard in scorecards]),
        cluster_score=across_draws([scorecard.cluster_score.value for scorecard in scorecards]),
        scorecards=tuple(scorecards),
    )


score_draws = blocking(score_draws_async)


Undecided = Callable[[Mapping[str, Scorecard]], Collection[str]]
"""From the scorecards so far to the names of the corpora on which a decision is still open."""


async def score_in_looks_async(
    corpora: Mapping[str, SampledCorpus],
    judge: Judge,
    config: AgentConfig,
    undecided: Undecided,
    *,
    looks: int = LOOKS,
    groupings_paths: Mapping[str, str | os.PathLike] | None = None,
) -> dict[str, Scorecard]:
    """Scores corpora by one judge and the same criteria in up to `looks` steps; decided ones take no further step.

    Args:
      undecided: called after every look with all scorecards; their `look` sets the level of comparisons.
      looks: planned looks, equally spaced up to `config.groupings` groupings of a corpus.
      groupings_paths: as for `score_corpora`.

    Raises:
      InputError: as `score_corpora`.
    """
    config, proposed = await prepared(list(corpora.values()), judge, config)
    with contextlib.ExitStack() as stack:
        scorers: dict[str, CorpusScorer] = {}
        for name, corpus in corpora.items():
            lines = stack.enter_context(writing_lines((groupings_paths or {}).get(name)))
            scorers[name] = CorpusScorer(corpus, judge, config, proposed, lines=lines)
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
    """Scores two corpora until it is decided which is more diverse, at most `config.groupings` groupings each.

    The error rate `alpha` holds over all looks together. `groupings_paths` are the files for the partitions of a and b.
    """

    def undecided(scorecards: Mapping[str, Scorecard]) -> Collection[str]:
        return () if compare(scorecards["a"], scorecards["b"], alpha=alpha).decided else scorecards

    paths = {name: path for name, path in zip("ab", groupings_paths, strict=True) if path is not None}
    scorecards = await score_in_looks_async(
        {"a": a, "b": b}, judge, config, undecided, looks=looks, groupings_paths=paths
    )
    return compare(scorecards["a"], scorecards["b"], alpha=alpha), scorecards["a"], scorecards["b"]


score_until_decided = blocking(score_until_decided_async)

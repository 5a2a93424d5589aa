"""Corpus-level figures from several independent draws of a corpus: the paper's 10 draws of 1,000,000 texts, sizes
settable.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
import random
from typing import Any

from diversity_jax.cluster_agent.config import AgentConfig
from diversity_jax.cluster_agent.estimators import Estimate, across_draws
from diversity_jax.cluster_agent.sampling import Drawable
from diversity_jax.cluster_agent.score import run, score_corpus_async
from diversity_jax.cluster_agent.scorecard import Scorecard
from diversity_jax.cluster_agent.text_cleaning import child_seed, choose
from diversity_jax.cluster_agent.types import Judge
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import content_hash


@dataclass(frozen=True, kw_only=True, eq=False)
class Draws:
    """Scores of several draws: each figure's mean over draws with the t interval of that mean, and the scorecards
    themselves.
    """

    effective_clusters: Estimate
    cluster_score: Estimate
    scorecards: tuple[Scorecard, ...]

    def to_json(self) -> dict[str, Any]:
        """The two figures, and the hashes of the scorecards in order."""
        figures = {name: getattr(self, name).to_json() for name in ("effective_clusters", "cluster_score")}
        return figures | {"scorecards": [card.content_hash for card in self.scorecards]}


class DrawnCorpus:
    """`size` documents of a corpus, drawn once. Held whole, so keep it for draws that are no larger than what is shown
    of them.
    """

    def __init__(self, corpus: Drawable, *, size: int, seed: int):
        self.name = f"{getattr(corpus, 'name', 'corpus')} (a draw of {size:,})"
        self._documents = list(corpus.sample(size, seed=seed))
        self._fingerprint = content_hash([corpus.fingerprint(), size, seed])

    def __len__(self) -> int:
        return len(self._documents)

    def sample(self, size: int, *, seed: int) -> Sequence[Any]:
        """Without replacement, from the draw."""
        chosen = choose(random.Random(seed), min(size, len(self)), len(self))
        return [self._documents[place] for place in chosen]

    def fingerprint(self) -> str:
        """Of the corpus, the size and the seed."""
        return self._fingerprint


async def score_draws_async(
    corpus: Drawable, judge: Judge, config: AgentConfig, *, draws: int = 10, draw_size: int = 1_000_000
) -> Draws:
    """Draws `draw_size` documents, proposes criteria and scores, `draws` times with seeds of their own.

    A random sample of a random draw is a random sample of the corpus. So a draw is held only where it is smaller than
    what a scoring shows of it; a larger one would change nothing but memory.

    Raises:
      InputError: fewer than 2 draws, a draw too small for a grouping, or as `score_corpus`.
    """
    if draws < 2:
        raise InputError(f"draws: {draws} has no spread; give at least 2")
    cards = []
    for number in range(draws):
        seed = child_seed(config.seed, "draw", number)
        shown = config.groupings * config.samples_per_grouping
        drawn = DrawnCorpus(corpus, size=draw_size, seed=seed) if draw_size < shown else corpus
        cards.append(await score_corpus_async(drawn, judge, replace(config, seed=seed)))
    return Draws(
        effective_clusters=across_draws([card.effective_clusters.value for card in cards]),
        cluster_score=across_draws([card.cluster_score.value for card in cards]),
        scorecards=tuple(cards),
    )


def score_draws(
    corpus: Drawable, judge: Judge, config: AgentConfig, *, draws: int = 10, draw_size: int = 1_000_000
) -> Draws:
    """`score_draws_async` for ordinary code."""
    return run(score_draws_async(corpus, judge, config, draws=draws, draw_size=draw_size), judge)

"""Clusters the documents written so far: by their words, without a model, or by the cluster-agent's judge.

By words: the vectors and the threshold of the offline judge. A document joins the cluster whose members are most
similar to it, or starts a new one. It is a baseline that recognises the subjects of English texts.

By a judge: groupings of documents, half of one arm and half of the collection, under criteria proposed from the first
round.
"""

import asyncio
from collections.abc import Sequence
import contextlib
import dataclasses
from pathlib import Path
import random
from types import SimpleNamespace
from typing import Any

import numpy as np

from diversity_jax.cluster_agent import AgentConfig, Criteria, Judge, open_judge, propose_criteria
from diversity_jax.cluster_agent.canaries import plant
from diversity_jax.cluster_agent.cluster import JudgedGrouping, judge_grouping
from diversity_jax.cluster_agent.embedding_judge import adapted
from diversity_jax.cluster_agent.ruler import default_ruler
from diversity_jax.cluster_agent.sampling import PlannedGrouping
from diversity_jax.cluster_agent.text_cleaning import child_seed, clean_text, random_ids
from diversity_jax.cluster_agent.types import Sample, entered
from diversity_jax.core.files import content_hash
from diversity_jax.synthesis.config import SynthesisConfig
from diversity_jax.synthesis.steering import ArmOverlap

_FEWEST_GROUPINGS = 4
_FEWEST_CROWDED = 10  # documents; a smaller cluster is never crowded


class WordClusters:
    """Clusters by word vectors.

    Attributes:
      labels: cluster of every document so far.
      unread: number of documents without a vector, since they are not in English; each is a cluster of its own.
    """

    def __init__(self) -> None:
        self._ruler = default_ruler()
        self._words = 0  # read of each document, chosen by the first ones
        self._sums, self._sizes = np.zeros((256, 0), np.float32), np.zeros(256)
        self.labels: list[int] = []
        self.unread = 0

    def extend(self, texts: Sequence[str]) -> None:
        """Assigns further documents, in order."""
        if not texts:
            return
        self._words = self._words or self._ruler.reading_length(texts)
        vectors = self._ruler.embed(texts, self._words)
        self.unread += int((~vectors.any(axis=1)).sum())
        self.labels += [self._join(vector) for vector in vectors]

    def _join(self, vector: np.ndarray) -> int:
        """Adds a unit vector to the cluster most similar to it on average, or to a new one where none is similar."""
        count = int((self._sizes > 0).sum())
        if count:
            similar = self._sums[:count] @ vector / self._sizes[:count]
            best = int(similar.argmax())
            if similar[best] > self._ruler.thresholds[self._words]:
                self._sums[best] += vector
                self._sizes[best] += 1
                return best
        if not self._sums.size:
            self._sums = np.zeros((len(self._sizes), len(vector)), np.float32)
        if count == len(self._sums):
            self._sums = np.concatenate([self._sums, np.zeros_like(self._sums)])
            self._sizes = np.concatenate([self._sizes, np.zeros_like(self._sizes)])
        self._sums[count], self._sizes[count] = vector, 1
        return count


class JudgedClusters:
    """The overlap of arms by a judge: groupings of K samples, half of an arm and half of the collection.

    Args:
      judge: open.
      criteria: one or more sets, which groupings use in turn.
      config: of the cluster-agent.

    Attributes:
      dollars: spent so far.
    """

    def __init__(self, judge: Judge, criteria: Criteria, config: AgentConfig):
        self._judge, self._criteria, self._config = judge, criteria, config
        self.dollars = 0.0

    async def overlap(
        self, arm_texts: Sequence[str], all_texts: Sequence[str], *, look: str, groupings: int, dollars: float
    ) -> ArmOverlap | None:
        """The overlap of an arm from new groupings; None where too few are usable.

        Args:
          look: name of the look, which seeds the draws.
          dollars: cost of a document of the arm.

        Raises:
          RunEnded: no further call can succeed.
        """
        half = self._config.samples_per_grouping // 2
        if half < 2 or len(arm_texts) < half or len(all_texts) < half:
            return None
        planned = [self._plan(arm_texts, all_texts, half, look, number) for number in range(groupings)]
        judged = await asyncio.gather(
            *(judge_grouping(grouping, self._judge, self._criteria, self._config) for grouping in planned)
        )
        self.dollars += sum(grouping.usage.cost_usd for grouping in judged)
        shares = np.array([_pair_shares(grouping, half) for grouping in judged if grouping.dropped is None])
        if len(shares) < _FEWEST_GROUPINGS:
            return None
        shared, own, existing = shares.T
        return ArmOverlap(
            shared=shared,
            own=own,
            existing=existing,
            documents=len(all_texts),
            arm_documents=len(arm_texts),
            dollars=dollars,
        )

    def _plan(
        self, arm_texts: Sequence[str], all_texts: Sequence[str], half: int, look: str, number: int
    ) -> PlannedGrouping:
        index = child_seed(self._config.seed, look, number)
        draw = random.Random(index)
        texts = [("arm", text) for text in draw.sample(arm_texts, half)]
        texts += [("collection", text) for text in draw.sample(all_texts, half)]
        draw.shuffle(texts)
        ids = random_ids(draw, 2 * half + 2)
        samples = tuple(
            Sample(sample_id=sample_id, text=clean_text(text, self._config.max_characters), document=side)
            for sample_id, (side, text) in zip(ids, texts, strict=False)
        )
        canary = None
        if draw.random() < self._config.canary_share:
            samples, canary = plant(samples, ids[2 * half :], draw)
        return PlannedGrouping(
            index=index, criteria_set=number % len(self._criteria.sets), samples=samples, canary=canary
        )


def _pair_shares(grouping: JudgedGrouping, half: int) -> tuple[float, float, float]:
    """Shares of pairs (arm with collection, arm with arm, collection with collection) that lie in one cluster.

    Samples of an invalid cluster count as singletons.
    """
    side = {sample.sample_id: sample.document for sample in grouping.planned.samples}
    across = own = existing = 0
    for cluster in grouping.clusters:
        if cluster.valid:
            sides = [side.get(sample_id) for sample_id in cluster.sample_ids]
            arm, collection = sides.count("arm"), sides.count("collection")
            across += arm * collection
            own += arm * (arm - 1) // 2
            existing += collection * (collection - 1) // 2
    pairs = half * (half - 1) / 2
    return across / half**2, own / pairs, existing / pairs


def crowded(labels: np.ndarray, factor: float) -> np.ndarray:
    """Clusters of more than `factor` times the mean size, and of more than 10 documents, the largest first."""
    counts = np.bincount(labels[labels >= 0])
    if not counts.any():
        return np.zeros(0, int)
    limit = max(factor * counts[counts > 0].mean(), _FEWEST_CROWDED)
    by_size = np.argsort(-counts, kind="stable")
    return by_size[counts[by_size] > limit]


def thin(labels: np.ndarray) -> np.ndarray:
    """Clusters of one document, the newest first: int [clusters]."""
    return np.flatnonzero(np.bincount(labels[labels >= 0]) == 1)[::-1]


class _Texts:
    """Texts as a corpus that criteria are proposed from."""

    def __init__(self, texts: Sequence[str]):
        self._texts = texts

    def sample(self, size: int, *, seed: int) -> list[Any]:
        """Without replacement; all where there are no more."""
        chosen = random.Random(seed).sample(range(len(self._texts)), min(size, len(self._texts)))
        return [SimpleNamespace(id=str(number), text=self._texts[number]) for number in chosen]

    def fingerprint(self) -> str:
        """Hash of all texts."""
        return content_hash(list(self._texts))


async def open_clusters(
    config: SynthesisConfig, texts: Sequence[str], stack: contextlib.AsyncExitStack
) -> JudgedClusters:
    """Opens the judge of a configuration, which `stack` closes, and has it propose criteria from the texts.

    Raises:
      InputError: an unknown judge, a missing key, or no criteria.
    """
    settings = dataclasses.replace(config, engine=dataclasses.replace(config.engine, progress="off"))
    judge = await stack.enter_async_context(entered(open_judge(settings, Path(config.cache_path))))
    proposed = await propose_criteria([_Texts(texts)], judge, config.agent)
    return JudgedClusters(judge, proposed.criteria, adapted(judge, config.agent))

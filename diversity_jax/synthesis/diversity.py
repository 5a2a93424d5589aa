"""What has been written so far, in clusters: by words, for free; or by the cluster-agent's judge, in groupings of old
and new together.

By words: the offline judge's space and threshold, fitted to the first documents. A document joins the nearest cluster
whose mean lies within the threshold, or begins one of its own; so every document has a number, and evidence is exact
for what stands. It is a baseline that sees what texts are about as far as their words show it.

The cluster-agent as the steering's measure: a judge, and criteria proposed from what has been written.
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

from diversity_jax.cluster_agent import (
    AgentConfig,
    Criteria,
    Judge,
    OfflineJudge,
    judge_kind,
    open_judge,
    propose_criteria,
)
from diversity_jax.cluster_agent.canaries import plant
from diversity_jax.cluster_agent.cluster import JudgedGrouping, judge_grouping
from diversity_jax.cluster_agent.sampling import PlannedGrouping
from diversity_jax.cluster_agent.text_cleaning import child_seed, clean_text, random_ids
from diversity_jax.cluster_agent.types import Sample, entered
from diversity_jax.core.files import content_hash
from diversity_jax.synthesis.config import SynthesisConfig
from diversity_jax.synthesis.steering import Evidence

_FEWEST_TO_FIT = 50
_FITTED_TO = 2000


class WordClusters:
    """Clusters by words. `labels` is the cluster of every document so far: -1 where there are too few documents to
    tell; `fitted_to` is how many documents their space was fitted to.

    The space is fitted again whenever there are twice as many documents, up to 2,000, and all are placed anew: a space
    fitted to the first hundred alone keeps apart what later ones show to belong together.
    """

    def __init__(self, *, seed: int):
        self._seed = seed
        self._judge: OfflineJudge | None = None
        self._kept: list[str] = []
        self.fitted_to = 0
        self._start()

    def _start(self) -> None:
        self._sums = np.zeros((0, 0), np.float32)
        self._count = 0
        self.labels: list[int] = []

    def extend(self, texts: Sequence[str]) -> None:
        """Takes documents in, in order. Equal texts that come in equal parts get equal labels."""
        if self.fitted_to >= _FITTED_TO:
            self.labels += [self._join(self._judge.embed(text)) for text in texts]
            return
        self._kept += texts
        if len(self._kept) < _FEWEST_TO_FIT:
            self.labels += [-1] * len(texts)
            return
        if len(self._kept) >= 2 * self.fitted_to:
            self._judge = OfflineJudge(self._kept[:_FITTED_TO], seed=self._seed)
            self.fitted_to = len(self._kept)
            self._start()
            texts = self._kept
        self.labels += [self._join(self._judge.embed(text)) for text in texts]
        if self.fitted_to >= _FITTED_TO:
            self._kept = []

    def _join(self, vector: np.ndarray) -> int:
        """The cluster of a unit vector, a new one where none is near; the cluster's sum moves."""
        if not self._sums.size:
            self._sums = np.zeros((256, len(vector)), np.float32)
        if self._count:
            known = self._sums[: self._count]
            similar = known @ vector / np.linalg.norm(known, axis=1).clip(1e-6)
            best = int(similar.argmax())
            if 1 - similar[best] <= self._judge.threshold:
                self._sums[best] += vector
                return best
        if self._count == len(self._sums):
            self._sums = np.concatenate([self._sums, np.zeros_like(self._sums)])
        self._sums[self._count] = vector
        self._count += 1
        return self._count - 1


class JudgedClusters:
    """Evidence by a judge: groupings of K samples, half of an arm and half of what stands.

    Args:
      judge: entered where it needs to be.
      criteria: one or more sets; groupings take them in turn.
      config: of the cluster-agent.
    """

    def __init__(self, judge: Judge, criteria: Criteria, config: AgentConfig):
        self._judge, self._criteria, self._config = judge, criteria, config
        self.dollars = 0.0
        self.dropped = 0
        self.groupings = 0

    async def evidence(
        self,
        arm_texts: Sequence[str],
        standing_texts: Sequence[str],
        *,
        look: str,
        groupings: int,
        documents: int,
        dollars: float,
    ) -> Evidence | None:
        """Evidence on an arm from new groupings; None where too few are usable.

        Raises:
          RunEnded: no further call can succeed.
        """
        half = self._config.samples_per_grouping // 2
        if half < 2 or len(arm_texts) < half or len(standing_texts) < half:
            return None
        planned = [self._plan(arm_texts, standing_texts, half, look, number) for number in range(groupings)]
        judged = await asyncio.gather(
            *(judge_grouping(one, self._judge, self._criteria, self._config) for one in planned)
        )
        self.groupings += len(judged)
        self.dropped += sum(one.dropped is not None for one in judged)
        self.dollars += sum(one.usage.cost_usd for one in judged)
        rows = np.array([_pair_shares(one, half) for one in judged if one.dropped is None]).reshape(-1, 3)
        if len(rows) < 4:
            return None
        return Evidence(
            shared=rows[:, 0],
            own=rows[:, 1],
            standing=rows[:, 2],
            documents=documents,
            arm_documents=len(arm_texts),
            dollars=dollars,
        )

    def _plan(
        self, arm_texts: Sequence[str], standing_texts: Sequence[str], half: int, look: str, number: int
    ) -> PlannedGrouping:
        index = child_seed(self._config.seed, look, number)
        draw = random.Random(index)
        chosen = [("arm", text) for text in draw.sample(arm_texts, half)] + [
            ("standing", text) for text in draw.sample(standing_texts, half)
        ]
        draw.shuffle(chosen)
        ids = random_ids(draw, 2 * half + 2)
        cut = [(side, clean_text(text, self._config.max_characters)) for side, text in chosen]
        samples = tuple(
            Sample(sample_id=i, text=text, document=side) for i, (side, text) in zip(ids, cut, strict=False)
        )
        canary = None
        if draw.random() < self._config.canary_share:
            samples, canary = plant(samples, ids[2 * half :], draw)
        return PlannedGrouping(
            index=index, criteria_set=number % len(self._criteria.sets), samples=samples, canary=canary
        )


def _pair_shares(grouped: JudgedGrouping, half: int) -> tuple[float, float, float]:
    """Shares of pairs (arm with standing, arm with arm, standing with standing) that one cluster holds; samples of an
    invalid one are alone."""
    side = {sample.sample_id: sample.document for sample in grouped.planned.samples}
    across = own = standing = 0
    for cluster in grouped.clusters:
        if cluster.valid:
            arm = sum(side.get(one) == "arm" for one in cluster.sample_ids)
            rest = sum(side.get(one) == "standing" for one in cluster.sample_ids)
            across, own, standing = across + arm * rest, own + arm * (arm - 1) // 2, standing + rest * (rest - 1) // 2
    pairs = half * (half - 1) / 2
    return across / half**2, own / pairs, standing / pairs


def crowded(labels: np.ndarray, factor: float, fewest: int = 10) -> np.ndarray:
    """Clusters whose share is more than `factor` times the mean, the largest first: int [clusters]."""
    counts = np.bincount(labels[labels >= 0]) if (labels >= 0).any() else np.zeros(0, int)
    present = counts[counts > 0]
    if not len(present):
        return np.zeros(0, int)
    limit = max(factor * present.mean(), fewest)
    return np.array([cluster for cluster in np.argsort(-counts, kind="stable") if counts[cluster] > limit], int)


def thin(labels: np.ndarray) -> np.ndarray:
    """Clusters of one document, the newest first: int [clusters]."""
    counts = np.bincount(labels[labels >= 0]) if (labels >= 0).any() else np.zeros(0, int)
    return np.flatnonzero(counts == 1)[::-1]


class _Texts:
    """Texts as a corpus that can be drawn from."""

    name = "documents so far"

    def __init__(self, texts: Sequence[str]):
        self._texts = texts

    def __len__(self) -> int:
        return len(self._texts)

    def sample(self, size: int, *, seed: int) -> list[Any]:
        """Without replacement, all where there are no more."""
        places = random.Random(seed).sample(range(len(self)), min(size, len(self)))
        return [SimpleNamespace(id=str(place), text=self._texts[place]) for place in places]

    def fingerprint(self) -> str:
        """Of all texts."""
        return content_hash(list(self._texts))


async def open_clusters(
    config: SynthesisConfig, texts: Sequence[str], stack: contextlib.AsyncExitStack
) -> JudgedClusters:
    """Enters the judge of a configuration and lets it propose criteria from the texts at hand.

    Raises:
      InputError: an unknown judge, a missing key, or no criteria.
    """
    kind = judge_kind(config.judge)
    if kind.fit:
        judge = kind.fit(list(texts), config.seed)
    else:
        settings = dataclasses.replace(config, engine=dataclasses.replace(config.engine, progress="off"))
        judge = open_judge(settings, (), Path(config.output_dir) / "ledger.sqlite")
        await stack.enter_async_context(entered(judge))
    proposed = await propose_criteria([_Texts(texts)], judge, config.agent)
    return JudgedClusters(judge, proposed.criteria, config.agent)

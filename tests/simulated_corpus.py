"""Judges, corpora and groupings with known truth, to test estimates and defences with."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
import random
from typing import Any

import numpy as np

from diversity_jax.cluster_agent.groupings import Groupings
from diversity_jax.cluster_agent.text_cleaning import child_seed
from diversity_jax.cluster_agent.types import Cluster, JudgeAnswer, Task
from diversity_jax.core.files import content_hash


def count_pairs(labels: np.ndarray) -> np.ndarray:
    """Equal pairs in each row of `labels` [..., K]."""
    ordered = np.sort(labels, axis=-1)
    shifts = range(1, labels.shape[-1])
    return np.sum([(ordered[..., shift:] == ordered[..., :-shift]).sum(axis=-1) for shift in shifts], axis=0)


def count_triples(labels: np.ndarray) -> np.ndarray:
    """Triples of equal values in each row of `labels` [..., K]."""
    ordered = np.sort(labels, axis=-1)
    first, k = np.zeros(ordered.shape, np.int64), labels.shape[-1]
    for column in range(1, k):
        same = ordered[..., column] == ordered[..., column - 1]
        first[..., column] = np.where(same, first[..., column - 1] + 1, 0)  # equal values before this one
    return (first * (first - 1) // 2).sum(axis=-1)


def count_clusters(labels: np.ndarray) -> np.ndarray:
    """Different values in each row of `labels` [..., K]."""
    ordered = np.sort(labels, axis=-1)
    return 1 + (ordered[..., 1:] != ordered[..., :-1]).sum(axis=-1)


def simulate_groupings(
    shares: np.ndarray | list[np.ndarray], *, samples_per_grouping: int, groupings: int, generator: np.random.Generator
) -> Groupings:
    """Groupings of a corpus whose clusters have the given shares, by a judge that makes no mistake.

    Args:
      shares: [C] summing to 1, or one such array for each criteria set, which then alternate.
      samples_per_grouping: K; groupings: N; generator: of all draws.
    """
    sets = shares if isinstance(shares, list) else [shares]
    which = np.arange(groupings) % len(sets)
    labels = np.empty((groupings, samples_per_grouping), np.int32)
    for number, share_vector in enumerate(sets):
        rows = which == number
        labels[rows] = draw_labels(share_vector, (int(rows.sum()), samples_per_grouping), generator)
    return groupings_of_labels(labels, sets=len(sets))


def draw_rows(documents: int, count: int, k: int, generator: np.random.Generator) -> np.ndarray:
    """[count, K] rows of so many documents, different ones within each grouping."""
    rows = generator.integers(0, documents, (count, k))
    while True:
        order = np.argsort(rows, axis=1, kind="stable")
        ordered = np.take_along_axis(rows, order, axis=1)
        again = np.zeros(rows.shape, bool)
        np.put_along_axis(again[:, :], order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
        if not again.any():
            return rows
        rows[again] = generator.integers(0, documents, int(again.sum()))


def groupings_of_labels(labels: np.ndarray, *, sets: int = 1) -> Groupings:
    """Groupings whose samples have these labels [N, K], by a judge that makes no mistake."""
    count, k = labels.shape
    return Groupings(
        samples_per_grouping=k,
        criteria_set=np.arange(count) % sets,
        clusters=count_clusters(labels),
        kept=np.full(count, k),
        pairs=count_pairs(labels),
        triples=count_triples(labels),
    )


def draw_labels(shares: np.ndarray, shape: int | tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    """Clusters of documents drawn from a population whose clusters have the given shares."""
    return np.searchsorted(np.cumsum(shares)[:-1], generator.random(shape), side="right")


def misplace(labels: np.ndarray, rate: float, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A judge that puts a share of the samples [N, K] with a random other one of their grouping: claimed labels, and
    whether each sample is in its place.
    """
    count, k = labels.shape
    others = (np.arange(k) + generator.integers(1, k, (count, k))) % k
    moved = generator.random((count, k)) < rate
    claimed = np.where(moved, np.take_along_axis(labels, others, axis=1), labels)
    return claimed, claimed == labels


def misplaced_groupings(claimed_labels: np.ndarray, placed: np.ndarray, weight: np.ndarray) -> Groupings:
    """Groupings with these claimed labels [N, K] and, where they were verified, samples out of place."""
    verified = weight[:, None] > 0
    alone = claimed_labels.max() + 1 + np.arange(claimed_labels.shape[1])
    claimed = groupings_of_labels(claimed_labels)
    counted = groupings_of_labels(np.where(verified & ~placed, alone, claimed_labels))
    return Groupings(
        **{name: getattr(counted, name) for name in ("samples_per_grouping", "criteria_set", "clusters", "kept")},
        pairs=counted.pairs,
        triples=counted.triples,
        claimed_clusters=claimed.clusters,
        claimed_pairs=claimed.pairs,
        weight=weight,
    )


def even_shares(clusters: int) -> np.ndarray:
    """[clusters], all alike."""
    return np.full(clusters, 1.0 / clusters)


def one_heavy_cluster(documents: int) -> np.ndarray:
    """[2001], one cluster of 50 among so many documents and 2,000 small ones."""
    heavy = 50 / documents
    return np.array([heavy] + [(1 - heavy) / 2000] * 2000)


def shares_off_by(clusters: int, relative: float) -> np.ndarray:
    """Shares with sum p^2 = (1 + relative) / clusters: one of them made larger, or more of them."""
    theta = max(1 + relative, 0.2) / clusters
    rest = max(clusters, int(np.ceil(1 / theta))) - 1
    # One share x, the others alike: x^2 + (1 - x)^2 / rest = theta.
    x = (1 + np.sqrt(max(0.0, 1 - (1 + rest) * (1 - theta * rest)))) / (1 + rest)
    return np.array([x] + [(1 - x) / rest] * rest)


def zipf_shares(effective: float, exponent: float = 0.75) -> np.ndarray:
    """Shares proportional to rank ** -exponent, of as many clusters as give `effective` effective ones, nearly."""

    def shares(count: int) -> np.ndarray:
        weights = np.arange(1, count + 1) ** -exponent
        return weights / weights.sum()

    low, high = 1, 2
    while 1 / np.square(shares(high)).sum() < effective:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if 1 / np.square(shares(middle)).sum() < effective else (low, middle)
    return shares(high)


# Shares of the clusters that D documents are drawn from, by D.
POPULATIONS: Mapping[str, Callable[[int], np.ndarray]] = {
    "20, even": lambda documents: even_shares(20),
    "20, Zipf": lambda documents: zipf_shares(20),
    "one cluster of 50": one_heavy_cluster,
}


class LabelJudge:
    """A judge that knows every text's label: the oracle that the whole pipeline is checked with.

    Args:
      label_of: label of a text as the judge is shown it (cleaned and cut), or a mapping from text to label; a text that
        is not in the mapping is like itself only.
      obeys: what a text orders: "split", "merge", "invalid" or None.
      obeyed_share: share of the groupings with an order that follow it; where texts order different things, the first
        by name.
      seed: of which groupings follow.
    """

    label = "labels (oracle)"
    prompt_version = "labels-1"

    def __init__(
        self,
        label_of: Callable[[str], Any] | Mapping[str, Any],
        *,
        obeys: Callable[[str], str | None] = lambda text: None,
        obeyed_share: float = 0.5,
        seed: int = 0,
    ):
        self._label_of = label_of if callable(label_of) else lambda text: label_of.get(text, text)
        self._obeys = obeys
        self._obeyed_share = obeyed_share
        self._seed = seed

    @property
    def identity(self) -> dict[str, Any]:
        """Empty: two such judges with the same labels agree."""
        return {}

    def expect(self, calls: int) -> None:
        """Nothing to prepare."""

    async def ask(self, task: Task) -> JudgeAnswer:
        """Answers any stage."""
        if task.stage == "cluster_samples":
            return JudgeAnswer(value={"clusters": self._clusters(task)})
        if task.stage == "verify_clusters":
            text_of = {sample.sample_id: sample.text for sample in task.samples}
            checked = [self._check(task, n, cluster, text_of) for n, cluster in enumerate(task.clusters, start=1)]
            return JudgeAnswer(value={"validation": checked})
        items = [{"name": "label", "definition": "the known label", "guidance": "equal labels belong together"}]
        return JudgeAnswer(value={"metadata": items, "metrics": items})

    def _check(self, task: Task, number: int, cluster: Cluster, text_of: Mapping[str, str]) -> dict[str, Any]:
        if self._order(task) == "invalid":
            return {"cluster": number, "valid": 0}
        labels = {sample_id: self._label_of(text_of[sample_id]) for sample_id in cluster.sample_ids}
        usual, _ = Counter(labels.values()).most_common(1)[0]
        misplaced = [sample_id for sample_id, label in labels.items() if label != usual]
        return {"cluster": number, "valid": int(not misplaced), "misplaced": misplaced}

    def _order(self, task: Task) -> str | None:
        orders = {order for sample in task.samples if (order := self._obeys(sample.text))}
        follow = orders and random.Random(child_seed(self._seed, task.replicate)).random() < self._obeyed_share
        return min(orders) if follow else None

    def _clusters(self, task: Task) -> list[dict[str, Any]]:
        groups: dict[Any, list[str]] = {}
        order = self._order(task)
        for sample in task.samples:
            label = (
                {"split": sample.sample_id, "merge": 0}.get(order or "")
                if order in ("split", "merge")
                else self._label_of(sample.text)
            )
            groups.setdefault(label, []).append(sample.sample_id)
        return [{"cluster": number, "sample_ids": ids} for number, ids in enumerate(groups.values(), start=1)]


class ChangedJudge(LabelJudge):
    """A label judge whose answers a test changes to `change(task, answer)`, and that come after a random delay where
    a generator of delays is given.

    Attributes:
      tasks: all that was asked, in order.
    """

    def __init__(
        self,
        label_of: Callable[[str], Any],
        change: Callable[[Task, JudgeAnswer], JudgeAnswer] = lambda task, answer: answer,
        delay: random.Random | None = None,
    ):
        super().__init__(label_of)
        self.tasks: list[Task] = []
        self._change, self._delay = change, delay

    async def ask(self, task: Task) -> JudgeAnswer:
        """The changed answer."""
        self.tasks.append(task)
        if self._delay:
            await asyncio.sleep(self._delay.random() * 0.01)
        return self._change(task, await super().ask(task))


@dataclass(frozen=True, kw_only=True)
class LabelledDocument:
    """A document of a corpus that is made in memory."""

    id: str
    text: str


class LabelledCorpus:
    """`documents` texts "topic C document I ..." whose topics have the given `shares`, drawn anew from `seed`."""

    def __init__(self, shares: np.ndarray, *, documents: int = 100_000, seed: int = 0):
        self.name = f"{len(shares)} topics"
        generator = np.random.default_rng(seed)
        self.topics = np.searchsorted(np.cumsum(shares)[:-1], generator.random(documents), side="right")
        self._seed = seed

    @staticmethod
    def label_of(text: str) -> str:
        """The topic of one of its texts, or the text itself where it is none of them."""
        words = text.split(" ", 2)
        return words[1] if words[0] == "topic" and len(words) > 2 else text

    def __len__(self) -> int:
        return len(self.topics)

    def sample(self, size: int, *, seed: int) -> list[LabelledDocument]:
        """Without replacement, all where there are no more."""
        chosen = np.random.default_rng((self._seed, seed)).permutation(len(self))[:size]
        return [LabelledDocument(id=str(i), text=f"topic {self.topics[i]} document {i} of this corpus") for i in chosen]

    def fingerprint(self) -> str:
        """Of all topics in order."""
        return content_hash(self.topics.tolist())


def even_corpus(topics: int, documents: int = 20_000, seed: int = 0) -> LabelledCorpus:
    """A corpus of equally common topics."""
    return LabelledCorpus(even_shares(topics), documents=documents, seed=seed)


class ListCorpus:
    """Given texts, sampled without replacement."""

    def __init__(self, texts: Iterable[str], name: str = "texts"):
        self.texts, self.name = list(texts), name

    def __len__(self) -> int:
        return len(self.texts)

    def sample(self, size: int, *, seed: int) -> list[LabelledDocument]:
        """All texts, in a random order, where there are no more."""
        chosen = random.Random(seed).sample(range(len(self)), min(size, len(self)))
        return [LabelledDocument(id=str(row), text=self.texts[row]) for row in chosen]

    def fingerprint(self) -> str:
        """Of the texts in order."""
        return content_hash(self.texts)

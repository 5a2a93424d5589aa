"""After each round: measures documents, stops arms or changes their shares, avoids subjects, adds topics."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
import contextlib
import dataclasses
import itertools
import logging
from typing import Any

import numpy as np

from diversity_jax.cluster_agent.types import RunEnded
from diversity_jax.core.errors import InputError
from diversity_jax.core.formats import counted, of_unit
from diversity_jax.synthesis.arms import Cell, GenerationGrid
from diversity_jax.synthesis.config import SynthesisConfig
from diversity_jax.synthesis.diversity import JudgedClusters, WordClusters, crowded, open_clusters, thin
from diversity_jax.synthesis.generate_round import RoundResult
from diversity_jax.synthesis.steering import ArmDecision, ArmOverlap, Steering, effective_clusters, overlap_of_labels
from diversity_jax.synthesis.store import Store
from diversity_jax.synthesis.topic_deduplication import normalised
from diversity_jax.synthesis.topic_expansion import TopicExpander
from diversity_jax.synthesis.topics import Topic

_logger = logging.getLogger(__name__)
_MEASURED_UNSTEERED = 500  # documents of a round that are clustered, for the page only, where nothing is steered
_TOPICS_PER_PARENT = 4  # requested below a topic
_PARENT_CANDIDATES = 4  # thin clusters searched for parents, per new topic
# A topic of at least so many documents is covered when this share of them lies in crowded clusters.
_COVERED_SHARE, _COVERED_DOCUMENTS = 0.8, 3
_MOST_UNREAD = 0.05  # share of documents that are not in English


class Feedback:
    """Measures rounds and decides on the next one.

    Args:
      expander: requests new topics.
      stack: closes the judge.

    Attributes:
      avoid: subjects of crowded clusters, to be named in prompts.
    """

    def __init__(
        self, config: SynthesisConfig, grid: GenerationGrid, expander: TopicExpander, stack: contextlib.AsyncExitStack
    ):
        self._config, self._grid, self._expander, self._stack = config, grid, expander, stack
        self._arms = grid.arms
        self._is_steered = bool(config.steering.arms)
        self._steering = Steering(list(self._arms), config.steering, seed=config.seed)
        self._clusters = WordClusters()
        self._judged: JudgedClusters | None = None
        self._texts: list[str] = []  # of all documents, where a judge measures
        self._first_texts = 0  # number of texts of the first round, from which every process proposes criteria
        self._finished: set[str] = set()  # arms whose grid is done
        self._document_arms: list[int] = []  # number of the arm of every document measured
        self._document_topics: list[int] = []  # number of the topic of every document measured
        self._arm_numbers = {name: number for number, name in enumerate(self._arms)}
        self._topic_numbers = {topic.slash_path: number for number, topic in enumerate(grid.topics)}
        self._covered: set[int] = set()
        self._documents: Counter[str] = Counter()
        self._dollars: defaultdict[str, float] = defaultdict(float)
        self._warned = False
        self.avoid: list[str] = []

    async def restore(self, store: Store) -> None:
        """Restores the rounds of earlier processes."""
        for summary in store.rounds:
            self._add_topics(Topic(tuple(new["path"]), tuple(new["keywords"])) for new in summary["new_topics"])
            self._count(summary["arm_documents"], summary["dollars_by_arm"])
            self._steering.restore([ArmDecision(**decision) for decision in summary["verdicts"]], summary["gains"])
        for _, documents in itertools.groupby(store.documents(), key=lambda document: document["round"]):
            await self._measure(list(documents))
        self._update_avoided()

    def shares(self, round_number: int) -> dict[str, float]:
        """Shares of the next dollars for arms that continue."""
        if self._is_steered:
            return self._steering.shares(round_number)
        live = self._steering.live
        return {arm: 1 / len(live) for arm in live}

    def dollars_each(self) -> dict[str, float]:
        """The cost of a document of each arm so far; the mean of all arms where it has none yet."""
        if not self._is_steered:
            return dict.fromkeys(self._arms, 1.0)
        known = {arm: self._dollars[arm] / max(self._documents[arm], 1) for arm in self._arms if self._dollars[arm]}
        mean = sum(known.values()) / len(known) if known else 1.0
        return {arm: known.get(arm, mean) for arm in self._arms}

    def stop_arms_without_generator(self, stopped: Mapping[str, str]) -> None:
        for arm in self._arms.values():
            if all(label in stopped for label in ([arm.generator] if arm.generator else self._grid.generators)):
                self._steering.stop(arm.name, "its generator is stopped")

    def finish_arm(self, arm: str) -> None:
        """Stops an arm whose grid is complete."""
        self._steering.stop(arm, "its grid is done")
        self._finished.add(arm)

    def is_wanted(self, cell: Cell) -> bool:
        """Whether a pending cell is still to be written: its arm was not stopped by steering."""
        return cell.arm not in self._steering.stopped or cell.arm in self._finished

    def is_covered(self, cell: Cell) -> bool:
        """Whether a new cell is skipped, because nearly all documents on its topic lie in crowded clusters."""
        return cell.topic in self._covered

    async def measure_round(self, result: RoundResult, number: int) -> tuple[list[Cell], dict[str, Any]]:
        """Measures a round that is about to be committed, and decides on the next one.

        Returns:
          Cells of new topics, and fields of the round's summary.
        """
        counts = Counter(document["arm"] for document in result.documents)
        self._count(counts, result.dollars)
        await self._measure(result.documents)
        decisions = await self._look(number) if self._is_steered else []
        for decision in decisions:
            if decision.stopped:
                _logger.info("arm %s is stopped: %s", decision.arm, decision.reason)
        self._update_avoided()
        dollars_before, first_new = self._expander.dollars, len(self._grid.topics)
        topics = await self._new_topics(number) if self._is_steered and result.ended is None else []
        self._add_topics(topics)
        cells = [
            Cell(arm=arm, topic=first_new + offset, generation=0)
            for offset in range(len(topics))
            for arm in self._steering.live
        ]
        labels = np.array(self._clusters.labels, np.int64)
        return cells, {
            "arm_documents": dict(counts),
            "verdicts": [dataclasses.asdict(decision) for decision in decisions],
            "gains": {arm: [gain.value, gain.error, gain.freedom] for arm, gain in self._steering.gains.items()},
            "arms_stopped": dict(self._steering.stopped),
            "shares": self.shares(number + 1) if self._steering.live else {},
            "effective_clusters": effective_clusters(labels),
            "measured": len(labels),
            "avoid": self.avoid,
            "topics_covered": len(self._covered),
            "new_topics": [{"path": list(topic.path), "keywords": list(topic.keywords)} for topic in topics],
            "sown_dollars": self._expander.dollars - dollars_before,
            "judge_dollars": self._judged.dollars if self._judged else 0.0,
        }

    def round_line(self, result: RoundResult, documents: int) -> str:
        """A line about a round; `documents` counts those of all rounds."""
        outcomes = sum(result.outcomes.values(), Counter[str]())
        flaws = (f"{count} {reason}" for reason, count in outcomes.most_common() if reason != "accepted")
        parts = [f"{counted(len(result.documents), 'document')} ({documents:,} in all)", f"${result.paid:.4f}", *flaws]
        if self._clusters.labels:
            clusters = f"{effective_clusters(np.array(self._clusters.labels)):.3g}"
            parts.append(f"{clusters} {of_unit(clusters, 'effective clusters')} by words")
        return ", ".join(parts)

    def _count(self, documents: Mapping[str, int], dollars: Mapping[str, float]) -> None:
        self._documents.update(documents)
        for arm, spent in dollars.items():
            self._dollars[arm] += spent

    async def _measure(self, documents: Sequence[Mapping[str, Any]]) -> None:
        """Assigns a round's documents to clusters."""
        if not self._is_steered:
            documents = documents[:: max(1, len(documents) // _MEASURED_UNSTEERED)]
        texts = ["\n".join(passage["text"] for passage in document["passages"]) for document in documents]
        self._document_arms += [self._arm_numbers[document["arm"]] for document in documents]
        self._document_topics += [self._topic_numbers[document["topic"]] for document in documents]
        if self._config.steering.metric == "judge":
            self._texts += [text[: self._config.agent.max_characters] for text in texts]
            self._first_texts = self._first_texts or len(self._texts)
        await asyncio.to_thread(self._clusters.extend, texts)

    async def _look(self, number: int) -> list[ArmDecision]:
        labels, arms = np.array(self._clusters.labels, np.int64), np.array(self._document_arms)
        live = self._steering.live
        if not len(labels) or not self._can_read():
            return []
        added = max(1, self._config.grid.documents_per_round // max(1, len(live)))
        prices, overlaps = self.dollars_each(), {}
        for arm in live:
            is_arm = arms == self._arm_numbers[arm]
            if is_arm.sum() < self._config.steering.min_documents:
                continue
            if self._config.steering.metric == "words":
                overlaps[arm] = overlap_of_labels(labels, is_arm, prices[arm])
            elif judged := await self._judge(arm, np.flatnonzero(is_arm), prices[arm], number):
                overlaps[arm] = judged
        return self._steering.look(overlaps, added)

    def _can_read(self) -> bool:
        """Whether clusters by words are meaningful for these documents; warns once where they are not."""
        unread = self._clusters.unread / len(self._clusters.labels)
        if self._config.steering.metric != "words" or unread <= _MOST_UNREAD:
            return True
        if not self._warned:
            _logger.warning(
                "steering.metric=words reads English, and %.0f %% of the documents are not: nothing is steered; "
                "set steering.metric=judge",
                100 * unread,
            )
        self._warned = True
        return False

    async def _judge(self, arm: str, documents: np.ndarray, dollars: float, number: int) -> ArmOverlap | None:
        config = self._config
        try:
            if self._judged is None:
                self._judged = await open_clusters(config, self._texts[: self._first_texts], self._stack)
            return await self._judged.overlap(
                [self._texts[document] for document in documents.tolist()],
                self._texts,
                look=f"{arm} {number}",
                groupings=config.steering.groupings_per_look,
                dollars=dollars,
            )
        except RunEnded as ended:
            raise InputError(
                f"steering: the judge {config.judge} gives no further answer ({ended}); raise the budget or use words"
            ) from None

    def _update_avoided(self) -> None:
        """Updates subjects of crowded clusters and covered topics; documents of stopped arms do not count."""
        factor = self._config.steering.over_represented
        self.avoid, self._covered = [], set()
        if factor is None or not self._is_steered:
            return
        counted = np.isin(self._document_arms, [self._arm_numbers[arm] for arm in self._steering.live])
        labels = np.array(self._clusters.labels, np.int64)[counted]
        topics = np.array(self._document_topics, np.int64)[counted]
        clusters = crowded(labels, factor)
        if not len(clusters):
            return
        names = [
            self._grid.topics[Counter(topics[labels == cluster].tolist()).most_common(1)[0][0]].path[-1]
            for cluster in clusters
        ]
        self.avoid = list(dict.fromkeys(names))[: self._config.steering.avoided]
        total = np.bincount(topics)
        in_crowded = np.bincount(topics[np.isin(labels, clusters)], minlength=len(total))
        is_covered = (total >= _COVERED_DOCUMENTS) & (in_crowded >= _COVERED_SHARE * total)
        self._covered = set(np.flatnonzero(is_covered).tolist())

    async def _new_topics(self, number: int) -> list[Topic]:
        """Topics below those of thin clusters, without known ones."""
        count = self._config.steering.new_seeds
        if not count or not self._steering.live:
            return []
        labels = np.array(self._clusters.labels, np.int64)
        thin_clusters = thin(labels)[: _PARENT_CANDIDATES * count]
        parents = dict.fromkeys(self._document_topics[int(np.argmax(labels == cluster))] for cluster in thin_clusters)
        paths = [self._grid.topics[parent].path for parent in list(parents)[: -(-count // _TOPICS_PER_PARENT)]]
        answers = await asyncio.gather(
            *(self._expander.expand(path, _TOPICS_PER_PARENT, replicate=number) for path in paths)
        )
        known = {normalised(topic.path) for topic in self._grid.topics}
        topics = {normalised(topic.path): topic for children in answers for topic in children}
        return [topic for key, topic in topics.items() if key not in known][:count]

    def _add_topics(self, topics: Iterable[Topic]) -> None:
        for topic in topics:
            self._topic_numbers[topic.slash_path] = len(self._grid.topics)
            self._grid.topics.append(topic)

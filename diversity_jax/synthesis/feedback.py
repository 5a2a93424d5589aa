"""What happens between two rounds: what was written is measured, arms are stopped or given more, subjects avoided, new
seeds sown.
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
import contextlib
import dataclasses
from dataclasses import dataclass
import itertools
import logging
from typing import Any

import numpy as np

from diversity_jax.cluster_agent.types import RunEnded
from diversity_jax.core.errors import InputError
from diversity_jax.synthesis.arms import Arm, Cell, Material
from diversity_jax.synthesis.config import SynthesisConfig
from diversity_jax.synthesis.diversity import WordClusters, crowded, open_clusters, thin
from diversity_jax.synthesis.generate_round import Produced
from diversity_jax.synthesis.near_duplicates import PLACES
from diversity_jax.synthesis.steering import Evidence, Steering, Verdict, effective_clusters, evidence_of_labels
from diversity_jax.synthesis.store import Store
from diversity_jax.synthesis.topic_deduplication import normalised
from diversity_jax.synthesis.topic_expansion import Grower
from diversity_jax.synthesis.topics import Topic

_logger = logging.getLogger(__name__)
_MEASURED_UNSTEERED = 500  # documents of a round that are clustered for the page where nothing is steered by them
_COVERED_DOCUMENTS, _COVERED_SHARE = 3, 0.8


@dataclass(kw_only=True)
class Said:
    """What a look led to: cells to be written next, and what the round's summary says of it."""

    new_cells: list[Cell]
    summary: dict[str, Any]


class Loop:
    """Measures rounds and decides what comes next.

    Args:
      grower: asked for new seeds.
      stack: where a judge is entered, if there is one.
    """

    def __init__(
        self,
        config: SynthesisConfig,
        material: Material,
        arms: Sequence[Arm],
        grower: Grower,
        stack: contextlib.AsyncExitStack,
    ):
        self._config, self._material, self._grower, self._stack = config, material, grower, stack
        self._arms = {arm.name: arm for arm in arms}
        self._steered = bool(config.steering.arms)
        self._steering = Steering(list(self._arms), config.steering, seed=config.seed)
        self._clusters = WordClusters(seed=config.seed)
        self._judged = None
        self._texts: list[str] = []
        self._first_texts = 0  # of the first round: what a judge's criteria are proposed from, in every process
        self._done: dict[str, str] = {}
        self._owners: list[int] = []  # arm of every document measured
        self._topics: list[int] = []  # topic of every document measured
        self._ends: list[int] = []  # how many were measured after each round
        self._number = {topic.slash_path: place for place, topic in enumerate(material.topics)}
        self._covered: set[int] = set()
        self.avoid: list[str] = []
        self._documents: Counter[str] = Counter()
        self._dollars: defaultdict[str, float] = defaultdict(float)

    async def restore(self, store: Store, owners: np.ndarray) -> None:
        """Takes up the rounds of earlier processes, `owners` being the arm of every document."""
        for summary in store.rounds:
            self._add_topics([Topic(tuple(one["path"]), tuple(one["keywords"])) for one in summary["new_topics"]])
            self._count(summary["arm_documents"], summary["dollars_by_arm"])
            self._steering.restore([Verdict(**verdict) for verdict in summary["verdicts"]], summary["gains"])
        rounds = itertools.groupby(
            zip(store.documents(), owners.tolist(), strict=True), key=lambda pair: pair[0]["round"]
        )
        for number, pairs in rounds:
            documents, arms = zip(*pairs, strict=True)
            await self._take(documents, arms, number)
        self._close_rounds(len(store.rounds))
        self._decide_avoided()

    def shares(self, round_number: int) -> dict[str, float]:
        """Shares of the next dollars for arms that go on."""
        if self._steered:
            return self._steering.shares(round_number)
        live = self._steering.live
        return {arm: 1 / len(live) for arm in live}

    def dollars_each(self) -> dict[str, float]:
        """What a document of each arm has cost so far; the mean of all where there is none yet."""
        known = {arm: self._dollars[arm] / max(self._documents[arm], 1) for arm in self._arms if self._dollars[arm]}
        mean = sum(known.values()) / len(known) if known else 1.0
        if not self._steered:
            return dict.fromkeys(self._arms, 1.0)
        return {arm: known.get(arm, mean) for arm in self._arms}

    def retire_unfillable(self, stopped: Mapping[str, str], material: Material) -> None:
        """Stops arms for which no generator is left."""
        for arm in self._arms.values():
            labels = [arm.generator] if arm.generator else list(material.generators)
            if all(label in stopped for label in labels):
                self._steering.stop(arm.name, "its generator is stopped")

    def finish(self, arm: str) -> None:
        """Notes that an arm's grid is at its end."""
        self._steering.stop(arm, "its grid is done")
        self._done[arm] = "its grid is done"

    def wants(self, cell: Cell) -> bool:
        """Whether a cell left over is still to be written: its arm has not been stopped for what it writes."""
        return cell.arm not in self._steering.stopped or cell.arm in self._done

    def skips(self, cell: Cell) -> bool:
        """Whether a new cell is passed over, because what its topic gives is written often enough."""
        return cell.topic in self._covered

    async def after(self, done: Produced, number: int) -> Said:
        """Measures a round that is about to be committed, and decides."""
        counts = Counter(document["arm"] for document in done.documents)
        self._count(counts, done.dollars)
        fitted_before = self._clusters.fitted_to
        await self._take(done.documents, done.arms, number)
        verdicts = await self._look(number) if self._steered else []
        for verdict in verdicts:
            if verdict.stopped:
                _logger.info("arm %s is stopped: %s", verdict.arm, verdict.reason)
        self._decide_avoided()
        sown_before = self._grower.account.dollars
        cells, topics = await self._sow(number) if self._steered and done.ended is None else ([], [])
        labels = self._labels
        summary = {
            "arm_documents": dict(counts),
            "verdicts": [dataclasses.asdict(verdict) for verdict in verdicts],
            "gains": {arm: [gain.value, gain.error, gain.freedom] for arm, gain in self._steering.gains.items()},
            "arms_stopped": dict(self._steering.stopped),
            "shares": self.shares(number + 1) if self._steering.live else {},
            "effective_clusters": effective_clusters(labels[labels >= 0]),
            "measured": int((labels >= 0).sum()),
            # Clusters of another space: earlier rounds are measured again by the same ruler.
            "curve": self._curve() if self._clusters.fitted_to != fitted_before else None,
            "avoid": self.avoid,
            "topics_covered": len(self._covered),
            "new_topics": [{"path": list(topic.path), "keywords": list(topic.keywords)} for topic in topics],
            "sown_dollars": self._grower.account.dollars - sown_before,
            "judge_dollars": self._judged.dollars if self._judged else 0.0,
        }
        return Said(new_cells=cells, summary=summary)

    def arrays(self, done: Produced) -> dict[str, np.ndarray]:
        """What is kept of a round beside its records."""
        return {
            "signatures": np.array(done.signatures, np.uint32).reshape(-1, PLACES),
            "arms": np.array(done.arms, np.int32),
        }

    def line(self, done: Produced, made: int) -> str:
        """A round in a line."""
        total = Counter()
        for counts in done.outcomes.values():
            total.update(counts)
        flaws = ", ".join(f"{count} {reason}" for reason, count in total.most_common() if reason != "accepted")
        labels = self._labels
        said = f"{len(done.documents)} documents ({made:,} in all), ${done.paid:.4f}"
        said += f", {flaws}" if flaws else ""
        known = labels[labels >= 0]
        return f"{said}, {effective_clusters(known):.3g} effective clusters by words" if len(known) else said

    @property
    def _labels(self) -> np.ndarray:
        return np.array(self._clusters.labels, np.int64)

    def _count(self, documents: Mapping[str, int], dollars: Mapping[str, float]) -> None:
        self._documents.update(documents)
        for arm, spent in dollars.items():
            self._dollars[arm] += spent

    def _curve(self) -> list[float]:
        """Effective clusters after every round so far, all by the present clusters."""
        labels = self._labels
        return [effective_clusters(labels[:end][labels[:end] >= 0]) for end in self._ends]

    def _close_rounds(self, number: int) -> None:
        """Notes that rounds before `number` are measured."""
        self._ends += [len(self._owners)] * (number - len(self._ends))

    async def _take(self, documents: Sequence[Mapping[str, Any]], arms: Sequence[int], number: int) -> None:
        """Puts a round's documents into clusters."""
        self._close_rounds(number)
        step = 1 if self._steered else max(1, len(documents) // _MEASURED_UNSTEERED)
        chosen = range(0, len(documents), step)
        texts = ["\n".join(passage["text"] for passage in documents[place]["passages"]) for place in chosen]
        self._owners += [int(arms[place]) for place in chosen]
        self._topics += [self._number[documents[place]["topic"]] for place in chosen]
        if self._config.steering.metric == "judge":
            self._texts += [text[: self._config.agent.max_characters] for text in texts]
            self._first_texts = self._first_texts or len(self._texts)
        await asyncio.to_thread(self._clusters.extend, texts)
        self._close_rounds(number + 1)

    async def _look(self, number: int) -> list[Verdict]:
        labels, owners = self._labels, np.array(self._owners)
        if not len(labels) or (labels < 0).any():
            return []
        added = max(1, self._config.grid.documents_per_round // max(1, len(self._steering.live)))
        prices, evidence = self.dollars_each(), {}
        for place, arm in enumerate(self._arms):
            is_arm = owners == place
            if arm not in self._steering.live or is_arm.sum() < self._config.steering.min_documents:
                continue
            if self._config.steering.metric == "words":
                evidence[arm] = evidence_of_labels(labels, is_arm, prices[arm])
            elif (
                found := await self._judge(arm, np.flatnonzero(is_arm), len(labels), prices[arm], number)
            ) is not None:
                evidence[arm] = found
        return self._steering.look(evidence, added)

    async def _judge(
        self, arm: str, places: np.ndarray, documents: int, dollars: float, number: int
    ) -> Evidence | None:
        config = self._config
        try:
            if self._judged is None:
                self._judged = await open_clusters(config, self._texts[: self._first_texts], self._stack)
            return await self._judged.evidence(
                [self._texts[place] for place in places.tolist()],
                self._texts,
                look=f"{arm} {number}",
                groupings=config.steering.groupings_per_look,
                documents=documents,
                dollars=dollars,
            )
        except RunEnded as ended:
            raise InputError(
                f"steering: the judge {config.judge} gives no further answer ({ended}); raise the budget or use words"
            ) from None

    def _decide_avoided(self) -> None:
        """Subjects of crowded clusters, and topics whose documents nearly all lie in such."""
        factor, labels = self._config.steering.over_represented, self._labels
        self.avoid, self._covered = [], set()
        if factor is None or not self._steered or not len(labels):
            return
        going_on = np.isin(
            self._owners, [place for place, arm in enumerate(self._arms) if arm not in self._steering.stopped]
        )
        labels, topics = (
            labels[going_on],
            np.array(self._topics)[going_on],
        )  # what a stopped arm wrote is no fault of its topics
        found = crowded(labels, factor)
        if not len(found):
            return
        inside = np.isin(labels, found)
        names = [
            self._material.topics[Counter(topics[labels == cluster].tolist()).most_common(1)[0][0]].path[-1]
            for cluster in found
        ]
        self.avoid = list(dict.fromkeys(names))[: self._config.steering.avoided]
        total, crowded_ones = np.bincount(topics), np.bincount(topics[inside], minlength=int(topics.max()) + 1)
        covered = (total >= _COVERED_DOCUMENTS) & (crowded_ones >= _COVERED_SHARE * total)
        self._covered = set(np.flatnonzero(covered).tolist())

    async def _sow(self, number: int) -> tuple[list[Cell], list[Topic]]:
        """New topics below those of thin clusters, each written once by every arm that goes on."""
        wanted, live = self._config.steering.new_seeds, self._steering.live
        if not wanted or not live:
            return [], []
        topics, labels = np.array(self._topics), self._labels
        parents = list(
            dict.fromkeys(int(topics[np.flatnonzero(labels == cluster)[0]]) for cluster in thin(labels)[: 4 * wanted])
        )
        each = 4
        chosen = parents[: -(-wanted // each)]
        paths = [self._material.topics[place].path for place in chosen]
        asked = await asyncio.gather(*(self._grower.expand(path, (), each, replicate=number) for path in paths))
        known = {normalised(topic.path) for topic in self._material.topics}
        found = {normalised(topic.path): topic for grown in asked for topic in grown}
        fresh = [topic for key, topic in found.items() if key not in known][:wanted]
        first = len(self._material.topics)
        self._add_topics(fresh)
        return [Cell(arm=arm, topic=first + place, generation=0) for place in range(len(fresh)) for arm in live], fresh

    def _add_topics(self, topics: Sequence[Topic]) -> None:
        for topic in topics:
            self._number[topic.slash_path] = len(self._material.topics)
            self._material.topics.append(topic)

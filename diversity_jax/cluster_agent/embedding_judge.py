"""A judge without a language model: groups texts by the similarity of their vectors under a ruler, that is, vectors of
texts with thresholds of similarity, both fixed before any corpus is read.

It estimates the share of pairs of documents whose similarity passes the ruler's threshold at the reading length.
Average linkage with a threshold would make that depend on K: with more samples, fewer pairs are together. So the merges
of a grouping stop where as many pairs are together as pass the threshold; where that is between two merges, at random,
so that the expected number is exact. Copies merge first.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
import dataclasses
import functools
import re
from typing import Any
import zlib

import numpy as np

from diversity_jax.cluster_agent.config import AgentConfig
from diversity_jax.cluster_agent.criteria import Criteria
from diversity_jax.cluster_agent.ruler import (
    OTHER_LANGUAGE,
    READING_LENGTHS,
    Ruler,
    VectorCache,
    default_ruler,
    is_function_word,
    refusal,
)
from diversity_jax.cluster_agent.types import OFFLINE_LABEL, Cluster, CriteriaSet, Criterion, JudgeAnswer, Sample, Task
from diversity_jax.core.errors import InputError
from diversity_jax.core.words import first_words, words

VERSION = "embedding-1"

_WARNED_FOREIGN, _MOST_FOREIGN = 0.01, 0.05  # share of documents that a ruler cannot read: for a remark, refused
_SENTENCE_END = re.compile(r"[.!?\u2026][\"'\u201d\u2019)]*\s*$")
_JOINED_CHARACTERS = 400  # as many as are read for a text's language
_REMEDY = (
    "take an embedder that tells them apart, such as judge=embedding:st:sentence-transformers/LaBSE "
    "(pip install sentence-transformers) or judge=embedding:openai:text-embedding-3-small, or a language model"
)
_SHARED_WORDS = 5  # named in a reason
_SUBJECT = Criterion(name="Subject", definition="What the words at the beginning of a text are about")
# Settings for embedding judges, whose errors are those of their vectors (docs/judges.md): they propose no criteria,
# compare two texts alike whatever others are shown, put copies together by construction, and obey no instructions.
_SETTINGS: Mapping[str, Any] = {
    "verify": False,
    "canary_share": 0.0,
    "recheck_share": 0.0,
    "criteria_sets": 1,
    "correct_judge_error": False,
    "control_variate": False,
}


class EmbeddingJudge:
    """Groups texts by a ruler; deterministic, and independent of the corpus.

    Attributes:
      ruler: the vectors and thresholds (see `Ruler`).
      criteria: always the same.
    """

    prompt_version = VERSION
    criteria = Criteria(sets=(CriteriaSet(metadata=(_SUBJECT,)),), origin="judge")

    def __init__(self, ruler: Ruler | None = None, *, label: str = OFFLINE_LABEL):
        self.ruler, self.label = ruler or default_ruler(), label
        self._cache = VectorCache(self.ruler)
        self._one_thread: list[Any] = []

    async def __aenter__(self) -> "EmbeddingJudge":
        """Limits matrix products to one thread, since further ones busy-wait between thousands of small products."""
        from threadpoolctl import threadpool_limits

        self._one_thread.append(threadpool_limits(1, user_api="blas"))
        return self

    async def __aexit__(self, *error: object) -> None:
        self._one_thread.pop().restore_original_limits()

    @property
    def identity(self) -> Mapping[str, Any]:
        return self.ruler.identity

    def expect(self, calls: int) -> None:
        """Does nothing."""

    def read_corpus(self, name: str, texts: Sequence[str], asked: int | None) -> tuple[int, list[str]]:
        """The number of words to read of each document of a corpus, and remarks for the scorecard.

        Args:
          texts: of some or all of its documents.
          asked: the number in the settings; None for `Ruler.reading_length`.

        Raises:
          InputError: the ruler cannot read these texts.
        """
        languages = list(map(self.ruler.foreign, texts))
        # Sentences of a few words are recognised only together.
        english = [text for text, language in zip(texts, languages, strict=True) if not language]
        short = _joined(english)
        of_short = Counter(filter(None, map(self.ruler.foreign, short)))
        foreign = Counter(filter(None, languages))
        shares = ", ".join(f"{what} {count / len(texts):.1%}" for what, count in foreign.most_common(3))
        if foreign.total() > _MOST_FOREIGN * len(texts):
            share = foreign.total() / len(texts)
            what = f"{self.ruler.name} reads English, and {share:.0%} of the documents of {name} are not ({shares})"
            raise InputError(f"judge {self.label}: {what}; {_REMEDY}")
        remarks = []
        if of_short.total() > _MOST_FOREIGN * len(short):
            language = of_short.most_common(1)[0][0]
            what = f"{self.ruler.name} reads English, and short documents of {name} are {language}"
            # Lists of names and terms look like another language; sentences do not.
            sentences = sum(bool(_SENTENCE_END.search(text)) for text in english)
            if language != OTHER_LANGUAGE or sentences > len(english) / 2:
                raise InputError(f"judge {self.label}: {what}; {_REMEDY}")
            remarks.append(f"{what}, or names and terms that it hardly knows: its figures may say little of them")
        if why := refusal(self.ruler, texts):
            raise InputError(f"judge {self.label}: {self.ruler.name} cannot read {name}: {why}; {_REMEDY}")
        if foreign.total() >= _WARNED_FOREIGN * len(texts):
            remarks.append(
                f"not read by {self.ruler.name}: {shares}; these documents count as different from all but copies"
            )
        length = asked or self.ruler.reading_length(texts)
        if asked and asked > self.ruler.reading_length(texts):
            remarks.append(f"more than a tenth of the documents have fewer than agent.reading_words={asked} words")
        self._vectors(texts, length)
        return length, remarks

    async def ask(self, task: Task) -> JudgeAnswer:
        """Answers a task; for the stages that propose criteria, always with the same."""
        if task.stage == "cluster_samples":
            return JudgeAnswer(value=self._cluster_samples(task))
        if task.stage == "verify_clusters":
            return JudgeAnswer(value=self._verify_clusters(task))
        return JudgeAnswer(value=self.criteria.sets[0].to_json())

    def counts_at_lengths(self, texts: Sequence[str], words: int) -> dict[int, tuple[int, int]]:
        """For every reading length below `words`: how many pairs of texts are alike, and how many pairs of these pairs
        have a text in common.
        """
        vectors = self._vectors(texts, words)
        lengths = READING_LENGTHS[: vectors.shape[1] - 1]
        if not lengths:
            return {}
        similarities = (_similarities(vectors[:, column], texts) for column in range(len(lengths)))
        pairs = zip(similarities, lengths, strict=True)
        degrees = np.stack([similar > self.ruler.thresholds[length] for similar, length in pairs]).sum(axis=2) - 1
        alike, joined = degrees.sum(axis=1) // 2, (degrees * (degrees - 1) // 2).sum(axis=1)
        return dict(zip(lengths, zip(alike.tolist(), joined.tolist(), strict=True), strict=True))

    def _vectors(self, texts: Sequence[str], words: int) -> np.ndarray:
        """Vectors float32 [n, lengths up to `words`, d]; stored ones are reused."""
        return self._cache.embed_at(texts, tuple(length for length in READING_LENGTHS if length <= words))

    def _cluster_samples(self, task: Task) -> Mapping[str, Any]:
        words = task.reading_words or READING_LENGTHS[-1]
        texts = [sample.text for sample in task.samples]
        similarities = _similarities(self._vectors(texts, words)[:, -1], texts)
        chance = zlib.crc32(" ".join(sample.sample_id for sample in task.samples).encode()) / 2**32
        groups = partition(similarities, self.ruler.thresholds[words], chance)
        clusters = [[task.samples[row] for row in rows] for rows in groups]
        return {"clusters": [_described(number, members, words) for number, members in enumerate(clusters, 1)]}

    def _verify_clusters(self, task: Task) -> Mapping[str, Any]:
        """Calls a sample misplaced that is like no other of its cluster."""
        words = task.reading_words or READING_LENGTHS[-1]
        text_of = {sample.sample_id: sample.text for sample in task.samples}

        def verdict(number: int, cluster: Cluster) -> dict[str, Any]:
            texts = [text_of[sample_id] for sample_id in cluster.sample_ids]
            alike = _similarities(self._vectors(texts, words)[:, -1], texts) > self.ruler.thresholds[words]
            alone = np.flatnonzero(alike.sum(axis=1) < 2) if len(texts) > 1 else ()
            misplaced = [cluster.sample_ids[row] for row in alone]
            reason = f"like no other of the cluster: {', '.join(misplaced)}" if misplaced else ""
            return {"cluster": number, "valid": int(not misplaced), "misplaced": misplaced, "reasoning": reason}

        return {"validation": [verdict(number, cluster) for number, cluster in enumerate(task.clusters, 1)]}


def _joined(texts: Sequence[str]) -> list[str]:
    """Neighbouring short texts joined to `_JOINED_CHARACTERS`; longer ones are left out."""
    joined = [""]
    for text in texts:
        if len(joined[-1]) >= _JOINED_CHARACTERS:
            joined.append("")
        if len(text) < _JOINED_CHARACTERS:
            joined[-1] += f" {text}"
    return joined


def _similarities(vectors: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """Cosines [n, n] of unit vectors, 1 on the diagonal; for texts with a zero vector 1 with copies and 0 otherwise."""
    similarities = vectors @ vectors.T
    if not similarities.diagonal().all():
        for row in np.flatnonzero(~vectors.any(axis=1)):
            similarities[row] = similarities[:, row] = [text == texts[int(row)] for text in texts]
    similarities.ravel()[:: len(texts) + 1] = 1.0  # the diagonal
    return similarities


def partition(similarities: np.ndarray, threshold: float, chance: float) -> list[list[int]]:
    """Clusters of the rows of a similarity matrix [n, n], with as many pairs together as pass the threshold.

    Clusters are merged by average linkage (Sokal and Michener 1958). Where the number of pairs is between two merges,
    the second is made with the probability that gives this number on average.

    Args:
      chance: uniform random number in [0, 1) for that.
    """
    count = len(similarities)
    wanted = (int((similarities > threshold).sum()) - int((similarities.diagonal() > threshold).sum())) // 2
    groups = [[row] for row in range(count)]
    # Few merges are made, so the nearest pair is searched for each time. SciPy would compute all merges, and takes
    # longer to import than 1,000 groupings take here.
    distances = (1 - similarities).astype(float)
    np.fill_diagonal(distances, np.inf)
    together = 0
    while together < wanted:
        first, second = sorted(divmod(int(distances.argmin()), count))
        own, other = len(groups[first]), len(groups[second])
        if together + chance * own * other >= wanted:
            break
        groups[first] += groups[second]
        groups[second] = []
        joined = (own * distances[first] + other * distances[second]) / (own + other)
        distances[first] = distances[:, first] = joined
        distances[second] = distances[:, second] = np.inf
        distances[first, first] = np.inf
        together += own * other
    return sorted(sorted(rows) for rows in groups if rows)


def _described(number: int, members: Sequence[Sample], length: int) -> dict[str, Any]:
    """A cluster of an answer, with shared words of its texts as the reason."""
    reason = ""
    if len(members) > 1:
        counts = Counter(word for sample in members for word in _content_words(sample.text, length))
        common = sorted((word for word, count in counts.items() if count > 1), key=lambda word: (-counts[word], word))
        reason = f"share the words {', '.join(common[:_SHARED_WORDS])}" if common else "words of like meaning"
    return {
        "cluster": number,
        "sample_ids": [sample.sample_id for sample in members],
        "uniqueness_reasoning": reason,
        "cluster_metadata": [],
        "cluster_metrics": [],
    }


@functools.lru_cache(10_000)
def _content_words(text: str, length: int) -> frozenset[str]:
    return frozenset(word for word in words(first_words(text, length)) if len(word) > 2 and not is_function_word(word))


def adapted(judge: Any, config: AgentConfig) -> AgentConfig:
    """The settings; for an embedding judge with those of `_SETTINGS`."""
    if not isinstance(judge, EmbeddingJudge):
        return config
    return dataclasses.replace(config, **_SETTINGS)


class CorpusReading:
    """An embedding judge's reading length for one corpus, and counts at smaller lengths.

    Attributes:
      words: words read of each document; 0 before `choose`.
      remarks: for the scorecard's warnings.
    """

    def __init__(self, judge: EmbeddingJudge):
        self._judge = judge
        self._counts: dict[int, list[tuple[int, int]]] = {}
        self.words = 0
        self.remarks: list[str] = []

    async def choose(self, name: str, texts: Sequence[str], config: AgentConfig) -> int:
        """Sets and returns the words to read of each document; `EmbeddingJudge.read_corpus` in another thread."""
        read = self._judge.read_corpus
        self.words, self.remarks = await asyncio.to_thread(read, name, texts, config.reading_words)
        return self.words

    def enter(self, texts: Sequence[str]) -> None:
        """Adds `counts_at_lengths` of one grouping."""
        for length, counts in self._judge.counts_at_lengths(texts, self.words).items():
            self._counts.setdefault(length, []).append(counts)

    def fields(self) -> dict[str, Any]:
        """`reading_words`, `ruler_identity` and `series_at_length` of a scorecard."""
        at_length = {
            str(length): {"pairs": [pairs for pairs, _ in counts], "paths": [paths for _, paths in counts]}
            for length, counts in self._counts.items()
        }
        identity = dict(self._judge.identity)
        return {"reading_words": self.words, "ruler_identity": identity, "series_at_length": at_length}

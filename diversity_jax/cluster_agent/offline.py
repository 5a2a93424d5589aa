"""A judge without a language model, by word statistics: a baseline, not a stand-in for the paper's judge.

Texts are weighted words (TF-IDF) in a latent space (truncated SVD), grouped by average linkage under a distance
threshold. It sees what texts are about as far as their words show it, and nothing of style, quality or reasoning.

Space and threshold are fitted to a seeded sample of the texts at hand, so figures compare only between corpora scored
with ONE judge that was fitted to all of them.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import functools
import math
import re
from typing import Any
import zlib

import numpy as np

from diversity_jax.cluster_agent.sampling import draw_texts
from diversity_jax.cluster_agent.text_cleaning import child_seed
from diversity_jax.cluster_agent.types import Cluster, CriteriaSet, JudgeAnswer, Sample, SampledCorpus, Task
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import content_hash

LABEL = "offline (no LLM)"
VERSION = "offline-2"

_CHARACTERS = 1500  # read of a text: a topic shows early, and reading is most of the time
_DIMENSIONS = 200
_TERMS = 20000
_COMMON_WEIGHT = 0.1  # of a word that is in every text; more would let function words decide
_FARTHEST = 1.25  # times the threshold: the largest distance of two members of a valid cluster
_EMPHASIS = 1.2  # of the dimensions that a criteria set names
_HALVES_ALIKE = 0.98  # share of texts whose two halves have to be within the threshold
_OF_USUAL_DISTANCE = 0.55  # the threshold's limit, of the median distance of two texts
_LEAST_THRESHOLD = 0.05
_CALIBRATION_TEXTS = 600
_CACHE_TEXTS = 20000
# Of a text's weight that the space explains at least in ordinary text (measured: 2 % to 30 %). A text of words that the
# space does not know would otherwise be judged by its few common words, and such texts would all look alike.
_LEAST_EXPLAINED = 0.02
_HASHED = 256  # dimensions in which such texts are compared word by word
_WORD = re.compile(r"\w+")
_CJK = re.compile("[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")

_METRICS = [
    {"name": name, "definition": definition, "levels": levels.split(", ")}
    for name, definition, levels in (
        ("Length", "How long the text is", "a line, short, middling, long, very long"),
        (
            "Vocabulary",
            "How little the text repeats its words",
            "repeats itself, narrow, middling, wide, hardly repeats a word",
        ),
        ("Word length", "How long its words are", "very short, short, middling, long, very long"),
    )
]


@dataclass(frozen=True, kw_only=True, eq=False)
class _TextFeatures:
    """Unit `vector` [dimensions + _HASHED] of a text (zero without a word), its weightiest words, its `_METRICS`."""

    vector: np.ndarray
    words: tuple[str, ...]
    figures: tuple[float, float, float]


def _words(text: str) -> list[str]:
    text = text[:_CHARACTERS].lower()
    if _CJK.search(text):
        text = _CJK.sub(r" \g<0> ", text)
    return _WORD.findall(text)


def _hashed(counts: Mapping[str, int], weights: np.ndarray) -> np.ndarray:
    """Unit vector [_HASHED] of weighted words, each at an index and with a sign that its hash decides."""
    vector = np.zeros(_HASHED, np.float32)
    codes = np.array([zlib.crc32(word.encode()) for word in counts], np.int64)
    np.add.at(vector, codes % _HASHED, np.where(codes & 0x10000, weights, -weights))
    return vector / max(float(np.linalg.norm(vector)), 1e-6)


class OfflineJudge:
    """Groups texts by their words; deterministic, free, and the same for every corpus scored with one instance."""

    label = LABEL
    prompt_version = VERSION

    def __init__(self, texts: Sequence[str], *, seed: int = 0):
        """Fits space and threshold to `texts`: a sample of ALL the corpora to be compared.

        Raises:
          InputError: fewer than 4 texts, or no words in them.
        """
        if len(texts) < 4:
            raise InputError(f"offline judge: {len(texts)} texts are too few to fit to; give at least 4")
        self.seed = seed
        self._fitted_to = content_hash([VERSION, seed, sorted(content_hash(text) for text in texts)])
        self._fit(texts)
        self._read = functools.lru_cache(_CACHE_TEXTS)(self._compute)
        self._last: tuple[Any, Any, np.ndarray] | None = None
        self._quintiles = np.quantile([self._read(text).figures for text in texts], (0.2, 0.4, 0.6, 0.8), axis=0)
        self.threshold = self._calibrate(texts)

    @classmethod
    def fit(
        cls, corpora: Sequence[SampledCorpus], *, seed: int = 0, documents: int = 2000, max_characters: int = 2000
    ) -> "OfflineJudge":
        """Fits to `documents` texts drawn in equal parts from the corpora."""
        texts: list[str] = []
        each = max(4, documents // max(len(corpora), 1))
        for number, corpus in enumerate(corpora):
            drawn, _ = draw_texts(corpus, each, child_seed(seed, "ruler", number), max_characters)
            texts += [text for _, text in drawn]
        return cls(texts, seed=seed)

    @property
    def identity(self) -> dict[str, Any]:
        """Hash of the texts that space and threshold were fitted to."""
        return {"fitted_to": self._fitted_to}

    def expect(self, calls: int) -> None:
        """Nothing to prepare."""

    async def ask(self, task: Task) -> JudgeAnswer:
        """Answers any stage at once."""
        return JudgeAnswer(value=getattr(self, f"_{task.stage}")(task))

    def embed(self, text: str) -> np.ndarray:
        """Unit vector of a text, zero without a word; texts within `threshold` in cosine distance count as alike."""
        return self._read(text).vector

    def _fit(self, texts: Sequence[str]) -> None:
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer
        from threadpoolctl import threadpool_limits

        # Words of one text only are of no use for grouping, unless there are hardly any texts.
        least = 2 if len(texts) > 50 else 1
        vectorizer = TfidfVectorizer(
            analyzer=_words, sublinear_tf=True, min_df=least, max_features=_TERMS, dtype=np.float32
        )
        try:
            vectorizer.fit(texts)
        except ValueError:
            raise InputError("offline judge: no word is in two of the texts; it groups by words alone") from None
        vectorizer.idf_ = vectorizer.idf_ - 1 + _COMMON_WEIGHT
        weights = vectorizer.transform(texts)
        self._term_index = {term: int(index) for term, index in vectorizer.vocabulary_.items()}
        self._terms = vectorizer.get_feature_names_out()
        # The last entry is the weight of a word that is not known: that of the rarest known one.
        self._idf = np.append(vectorizer.idf_, vectorizer.idf_.max()).astype(np.float32)
        dimensions = min(_DIMENSIONS, min(weights.shape) - 1)
        if dimensions < 1:
            raise InputError("offline judge: the texts share a single word; it groups by words and cannot judge these")
        # On one thread: the matrices are small, and threads that wait for each other on a busy machine took ten times
        # as long.
        with threadpool_limits(1), np.errstate(invalid="ignore"):
            svd = TruncatedSVD(dimensions, n_iter=2, random_state=self.seed).fit(weights)
        self._space = np.ascontiguousarray(svd.components_.T.astype(np.float32))
        tops = np.argsort(-np.abs(svd.components_), axis=1)[:, :3]
        self._themes = [" ".join(self._terms[index] for index in top) for top in tops]
        self._theme_index = {name: number for number, name in reversed(list(enumerate(self._themes)))}

    def _compute(self, text: str) -> _TextFeatures:
        words = _words(text)
        counts = Counter(words)
        letters = sum(map(len, words))
        figures = (float(len(text)), len(counts) / max(len(words), 1), letters / max(len(words), 1))
        index = np.array([self._term_index.get(word, -1) for word in counts], np.int64)
        weights = (1 + np.log(np.array(list(counts.values()), np.float32))) * self._idf[index]
        known = index >= 0
        latent = weights[known] @ self._space[index[known]]
        vector = np.zeros(len(latent) + _HASHED, np.float32)
        norm, total = float(np.linalg.norm(latent)), float(np.linalg.norm(weights))
        explained = min(1.0, (norm / total) ** 2 / _LEAST_EXPLAINED) if total else 0.0
        if explained > 0:
            vector[: len(latent)] = math.sqrt(explained) / norm * latent
        if explained < 1 and total:
            vector[len(latent) :] = math.sqrt(1 - explained) * _hashed(counts, weights)
        top = tuple(self._terms[i] for i in index[np.argsort(-weights, kind="stable")[:12]] if i >= 0)[:8]
        return _TextFeatures(vector=vector, words=top, figures=figures)

    def _calibrate(self, texts: Sequence[str]) -> float:
        """The distance under which texts belong together, from pairs whose relation is known.

        The halves of one text belong together: nearly all of them have to. Most pairs of two texts do not; about half
        their usual distance is the limit, which decides where texts are so short that halves share no word.
        """
        chosen = [text for text in texts if len(text) >= 200][:_CALIBRATION_TEXTS] or list(texts[:_CALIBRATION_TEXTS])
        halves = [text[:_CHARACTERS].split() for text in chosen]
        first = np.stack([self._compute(" ".join(words[: len(words) // 2])).vector for words in halves])
        second = np.stack([self._compute(" ".join(words[len(words) // 2 :])).vector for words in halves])
        some = np.stack([self._read(text).vector for text in texts[:: max(1, len(texts) // _CALIBRATION_TEXTS)]])
        alike = float(np.quantile(1 - (first * second).sum(1), _HALVES_ALIKE))
        apart = float(np.median(1 - (some * np.roll(some, len(some) // 2, axis=0)).sum(1)))
        return max(_LEAST_THRESHOLD, min(alike, _OF_USUAL_DISTANCE * apart))

    def _distances(self, samples: Sequence[Sample], criteria: CriteriaSet) -> np.ndarray:
        """Cosine distances [n, n], the criteria's own themes weighing more; 0 or 1 for texts without a word."""
        if self._last and self._last[0] is samples and self._last[1] is criteria:
            return self._last[2]
        vectors = np.stack([self._read(sample.text).vector for sample in samples])
        themes = [self._theme_index[m.name] for m in criteria.metadata if m.name in self._theme_index]
        if themes:
            vectors = vectors.copy()
            vectors[:, themes] *= _EMPHASIS
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
        distances = np.clip(1.0 - vectors @ vectors.T, 0.0, 2.0)
        for row in np.flatnonzero(~vectors.any(axis=1)):
            distances[row] = distances[:, row] = [float(sample.text != samples[int(row)].text) for sample in samples]
        np.fill_diagonal(distances, 0.0)
        self._last = (samples, criteria, distances)
        return distances

    def _propose_criteria(self, task: Task) -> Mapping[str, Any]:
        # What the shown texts differ in, not what they have in common.
        spread = np.stack([self._read(sample.text).vector for sample in task.samples]).std(axis=0)[: len(self._themes)]
        themes = [self._themes[number] for number in np.argsort(-spread, kind="stable")[:4]]
        metadata = [{"name": name, "definition": f"How much a text is about: {name}"} for name in themes]
        return {"metadata": metadata, "metrics": _METRICS}

    def _summarize_metadata(self, task: Task) -> Mapping[str, Any]:
        chosen = task.proposals[: task.criteria_count]
        return {"metadata": [{"name": name, "definition": (definitions or ("",))[0]} for name, definitions in chosen]}

    def _summarize_metrics(self, task: Task) -> Mapping[str, Any]:
        known = {metric["name"]: metric for metric in _METRICS}
        return {"metrics": [known[name] for name, _ in task.proposals if name in known][: task.criteria_count]}

    def _define_criteria(self, task: Task) -> Mapping[str, Any]:
        names, ignored = [m.name for m in task.criteria.metadata], "For description only; it does not decide."
        metadata = [{"name": name, "guidance": f"Texts that differ in {name} belong apart."} for name in names]
        return {"metadata": metadata, "metrics": [{"name": m.name, "guidance": ignored} for m in task.criteria.metrics]}

    def _cluster_samples(self, task: Task) -> Mapping[str, Any]:
        from scipy.cluster.hierarchy import average, fcluster

        distances = self._distances(task.samples, task.criteria)
        upper = distances[np.triu_indices(len(distances), 1)]
        labels = fcluster(average(upper), self.threshold, "distance") if len(distances) > 1 else np.ones(1, int)
        groups: dict[int, list[Sample]] = {}
        for label, sample in zip(labels, task.samples, strict=True):
            groups.setdefault(int(label), []).append(sample)
        return {"clusters": [self._describe(number, members) for number, members in enumerate(groups.values(), 1)]}

    def _describe(self, number: int, members: Sequence[Sample]) -> dict[str, Any]:
        features = [self._read(sample.text) for sample in members]
        reason = "alone"
        if len(features) > 1:
            counts = Counter(word for text in features for word in text.words)
            shared = [word for word, count in counts.most_common(5) if count > 1]
            reason = f"share the words {', '.join(shared)}" if shared else "near in the space of words"
        steps = (self._quintiles < np.array(features[0].figures)).sum(axis=0) + 1
        metrics = [{"name": metric["name"], "score": int(step)} for metric, step in zip(_METRICS, steps, strict=True)]
        return {
            "cluster": number,
            "sample_ids": [sample.sample_id for sample in members],
            "uniqueness_reasoning": reason,
            "cluster_metadata": [{"name": "words", "value": ", ".join(features[0].words[:4])}],
            "cluster_metrics": metrics,
        }

    def _verify_clusters(self, task: Task) -> Mapping[str, Any]:
        """Checks by another rule: no two members may be far apart, which average linkage allows along a chain."""
        row_of = {sample.sample_id: row for row, sample in enumerate(task.samples)}
        distances = self._distances(task.samples, task.criteria)
        limit = _FARTHEST * self.threshold

        def verdict(number: int, cluster: Cluster) -> dict[str, Any]:
            if len(cluster.sample_ids) == 1:
                return {"cluster": number, "valid": 1, "reasoning": ""}
            rows = [row_of[sample_id] for sample_id in cluster.sample_ids]
            farthest = float(distances[np.ix_(rows, rows)].max())
            reason = f"farthest pair {farthest:.2f}, limit {limit:.2f}"
            return {"cluster": number, "valid": int(farthest <= limit), "reasoning": reason}

        return {"validation": [verdict(number, cluster) for number, cluster in enumerate(task.clusters, 1)]}

"""The control variate of one corpus: what a fixed ruler sees of its groupings, and of all its pairs."""

import asyncio
from typing import Any

from diversity_jax.cluster_agent import control_variate
from diversity_jax.cluster_agent.config import AgentConfig
from diversity_jax.cluster_agent.ruler import default_ruler
from diversity_jax.cluster_agent.sampling import PlannedGrouping, draw_texts, drawn_samples
from diversity_jax.cluster_agent.text_cleaning import child_seed
from diversity_jax.cluster_agent.types import SampledCorpus

_WORDS = 100  # read of a text: more hardly changes what the similarities explain of a judge, and takes time


class RulerFeatures:
    """Features of the groupings of a corpus, and their means over all its pairs.

    Raises:
      InputError: the ruler's vectors are not installed.
    """

    def __init__(self, corpus: SampledCorpus, config: AgentConfig):
        self._corpus, self._config, self._ruler = corpus, config, default_ruler()
        self._of_the_corpus: dict[str, Any] | None = None

    def of(self, planned: PlannedGrouping) -> list[float]:
        """Features [F] of one grouping's drawn samples."""
        texts = [sample.text for sample in drawn_samples(planned)]
        return control_variate.features(self._ruler.embed(texts, _WORDS)).tolist()

    async def of_the_corpus(self, documents: int | None) -> dict[str, Any]:
        """`feature_means` and `feature_means_covariance` of `Groupings`, computed once, in another thread."""
        if self._of_the_corpus is None:
            means, covariance = await asyncio.to_thread(self._read, documents)
            self._of_the_corpus = {"feature_means": means, "feature_means_covariance": covariance}
        return self._of_the_corpus

    def _read(self, documents: int | None) -> tuple[Any, Any]:
        seed, most = child_seed(self._config.seed, "control variate"), control_variate.EXACT_DOCUMENTS
        texts, drawn = draw_texts(self._corpus, most, seed, self._config.max_characters)
        vectors = self._ruler.embed([text for _, text in texts], _WORDS)
        # Of a stream whose length is not known, what was drawn is a part of something far larger.
        whole = documents if documents is not None else drawn if drawn < most else 1000 * drawn
        return control_variate.corpus_means(vectors, whole if whole > drawn else None)

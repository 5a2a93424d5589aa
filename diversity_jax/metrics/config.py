"""How the baseline metrics are measured."""

from dataclasses import dataclass

from diversity_jax.core.errors import InputError
from diversity_jax.metrics.text import FORMS

EMBEDDERS = ("tfidf", "st", "openai", "llama")


@dataclass(frozen=True, kw_only=True)
class MetricsConfig:
    """How the baseline metrics are measured; all corpora of a run by the same settings.

    Attributes:
      draws: samples that each figure is measured on; its interval comes from their spread. 1 gives figures without
        intervals.
      draw_documents: documents of a draw, at most; by default half of the smallest corpus. The paper: 10 draws of
        1,000,000.
      pool_documents: a corpus of at most so many is read once and drawn from in memory; a larger one is sampled anew
        for every draw.
      control: measure each figure a second time with the length held equal: documents of at least `control_words`
        words, cut to so many, and the same number of them from every corpus.
      control_words: None takes the largest number that half the documents of every corpus have, at most 256.
      dependence: measure also smaller draws and shorter documents, to print how much each figure moves with them.
      words: form of words for repetition and n-gram diversity: `written`, `folded` or `pieces` (see `metrics.words`).
      pairs: of documents, drawn for ROUGE-L and self-BLEU in every draw.
      embedder: `tfidf`, `st:NAME_OR_PATH`, `openai:MODEL` or `llama:FOLDER`.
      embedder_base_url: of an OpenAI-compatible server, such as http://127.0.0.1:8000/v1.
      embedder_dollars_per_million_tokens, max_dollars: price of the embeddings endpoint, and what may be spent on it.
      dimensions: of the TF-IDF space.
      clusters: of K-means; None for one per ten documents, at most 10,000.
      model, larger_model: causal models for perplexity and, with both, its gap: a training run, an import, a Hugging
        Face folder or name.
      vocabulary: tokenizer of `model`s and `llama:` embedders that are our own (default: what their folder names), and
        of the token count.
      context_tokens, stride_tokens: window of perplexity over long documents, and its step; None for the model's own
        and half of it.
      compatible: also the figures of the `diversity` package, to the digits it prints.
      runner: of Apache Beam (DirectRunner, DataflowRunner, FlinkRunner, SparkRunner, ...): measure the lexical metrics
        that merge over workers on the WHOLE corpus instead of on draws; see `metrics.whole`.
      runner_options: for Beam, such as ("--project=P", "--region=R", "--temp_location=gs://B/tmp").
      threads: that split, sort and compress at once; None for as many as there are cores.
      seed: of every draw.
    """

    draws: int = 10
    draw_documents: int | None = None
    pool_documents: int = 200_000
    control: bool = True
    control_words: int | None = None
    dependence: bool = True
    words: str = "written"
    pairs: int = 2000
    embedder: str = "tfidf"
    embedder_base_url: str | None = None
    embedder_dollars_per_million_tokens: float = 0.0
    max_dollars: float | None = None
    dimensions: int = 256
    clusters: int | None = None
    model: str | None = None
    larger_model: str | None = None
    vocabulary: str | None = None
    context_tokens: int | None = None
    stride_tokens: int | None = None
    compatible: bool = False
    runner: str | None = None
    runner_options: tuple[str, ...] = ()
    threads: int | None = None
    seed: int = 0

    def __post_init__(self):
        for name in ("draws", "pool_documents", "pairs", "dimensions"):
            if getattr(self, name) < 1:
                raise InputError(f"baseline.{name}={getattr(self, name)}: expected at least 1")
        for name in ("draw_documents", "control_words", "clusters", "context_tokens", "stride_tokens", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"baseline.{name}={value}: expected at least 1, or None")
        if self.words not in FORMS:
            raise InputError(f"baseline.words={self.words!r}: choose one of {', '.join(FORMS)}")
        kind, _, name = self.embedder.partition(":")
        if kind not in EMBEDDERS or (kind != "tfidf") != bool(name):
            raise InputError(
                f"baseline.embedder={self.embedder!r}: choose tfidf, st:NAME_OR_PATH, openai:MODEL or llama:FOLDER"
            )
        if self.larger_model and not self.model:
            raise InputError("baseline.larger_model is set and baseline.model is not; the gap needs both")
        for name in ("embedder_dollars_per_million_tokens", "max_dollars"):
            if (getattr(self, name) or 0) < 0:
                raise InputError(f"baseline.{name}={getattr(self, name)}: expected 0 or more")

"""What the baseline metrics are, and how they are measured."""

from dataclasses import dataclass

from diversity_jax.core.errors import InputError
from diversity_jax.metrics.embedders import KINDS
from diversity_jax.metrics.text import FORMS


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One figure of a scorecard.

    Attributes:
      title: as tables write it.
      group: `lexical`, `embedding` or `perplexity`.
      stage: what is computed in one go with it, and timed.
      sign: 1 where more means more diverse, -1 where less does, 0 where the figure says nothing of diversity by itself.
      note: what it is, in a few words.
    """

    title: str
    group: str
    stage: str
    sign: int
    note: str


def _lexical(title: str, stage: str, sign: int, note: str) -> Metric:
    return Metric(title=title, group="lexical", stage=stage, sign=sign, note=note)


METRICS = {
    "context_length_words": _lexical("Context length, words", "context_length", 0, "mean words of a document"),
    "context_length_tokens": _lexical(
        "Context length, tokens", "context_length", 0, "mean tokens of a document under baseline.vocabulary"
    ),
    "self_repetition": _lexical(
        "Self-repetition", "self_repetition", -1, "log of 1 + repeats of 4-grams in other documents"
    ),
    "ngram_diversity_1": _lexical("1-gram diversity", "ngram_diversity", 1, "different words over all words, pooled"),
    "ngram_diversity_2": _lexical("2-gram diversity", "ngram_diversity", 1, "different over all 2-grams, pooled"),
    "ngram_diversity_3": _lexical("3-gram diversity", "ngram_diversity", 1, "different over all 3-grams, pooled"),
    "ngram_diversity_4": _lexical("4-gram diversity", "ngram_diversity", 1, "different over all 4-grams, pooled"),
    "ngram_diversity": _lexical("N-gram diversity, n = 1 to 4", "ngram_diversity", 1, "the four above, added up"),
    "compression_ratio_gzip": _lexical(
        "Compression ratio, gzip", "gzip", -1, "bytes over gzip bytes; sees 32 KiB back"
    ),
    "compression_ratio_xz": _lexical("Compression ratio, xz", "xz", -1, "bytes over xz bytes; sees 8 MiB back"),
    "compression_ratio_zstd": _lexical(
        "Compression ratio, zstd", "zstd", -1, "bytes over zstd bytes; sees 128 MiB back"
    ),
    "type_token_ratio": _lexical(
        "Type-token ratio", "type_token_ratio", 1, "different words over words, mean over documents"
    ),
    "mtld": _lexical("MTLD", "mtld", 1, "mean run of words with a type-token ratio above 0.72"),
    "self_bleu": _lexical(
        "Self-BLEU, pairs", "self_bleu", -1, "BLEU-4 of a document against another, over random pairs"
    ),
    "rouge_l": _lexical("ROUGE-L, pairs", "rouge_l", -1, "longest common subsequence F1, over random pairs"),
    "vendi_1": Metric(
        title="Vendi score, order 1", group="embedding", stage="vendi", sign=1, note="effective unlike documents"
    ),
    "vendi_2": Metric(
        title="Vendi score, order 2",
        group="embedding",
        stage="vendi",
        sign=1,
        note="the same, dominated by large groups",
    ),
    "mean_pairwise_distance": Metric(
        title="Mean pairwise distance", group="embedding", stage="distance", sign=1, note="1 - cosine, over all pairs"
    ),
    "kmeans_effective_clusters": Metric(
        title="K-means effective clusters",
        group="embedding",
        stage="kmeans",
        sign=1,
        note="how evenly clusters fitted to all corpora fill",
    ),
    "perplexity": Metric(
        title="Perplexity", group="perplexity", stage="perplexity", sign=1, note="under baseline.model"
    ),
    "bits_per_byte": Metric(
        title="Bits per byte", group="perplexity", stage="perplexity", sign=1, note="under baseline.model"
    ),
    "perplexity_gap": Metric(
        title="Perplexity gap",
        group="perplexity",
        stage="perplexity",
        sign=1,
        note="between baseline.model and baseline.larger_model",
    ),
}
GROUPS = ("lexical", "embedding", "perplexity")


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
        if kind not in KINDS or (kind != "tfidf") != bool(name):
            raise InputError(
                f"baseline.embedder={self.embedder!r}: choose tfidf, st:NAME_OR_PATH, openai:MODEL or llama:FOLDER"
            )
        if self.larger_model and not self.model:
            raise InputError("baseline.larger_model is set and baseline.model is not; the gap needs both")
        for name in ("embedder_dollars_per_million_tokens", "max_dollars"):
            if (getattr(self, name) or 0) < 0:
                raise InputError(f"baseline.{name}={getattr(self, name)}: expected 0 or more")


def chosen_metrics(asked: str, config: MetricsConfig) -> tuple[str, ...]:
    """Names of the metrics that `--config.metrics=...` asks for, in the order of `METRICS`.

    Args:
      asked: `all`, or names joined by commas: of metrics, of groups (`lexical`, `embedding`, `perplexity`) or of stages
        (`overlap`, ...). `all` leaves out what needs a model or a tokenizer that is not named.

    Raises:
      InputError: an unknown name, or a metric that needs a model or tokenizer that is not named.
    """
    missing = {
        "context_length_tokens": None if config.vocabulary else "baseline.vocabulary, such as a tokenizer.json",
        "perplexity": None if config.model else "baseline.model",
        "bits_per_byte": None if config.model else "baseline.model",
        "perplexity_gap": None if config.larger_model else "baseline.model and baseline.larger_model",
    }
    found = set()
    for word in filter(None, (word.strip() for word in asked.split(","))):
        names = [name for name, metric in METRICS.items() if word in ("all", name, metric.group, metric.stage)]
        if not names:
            raise InputError(
                f"metrics={word}: is unknown; choose all, {', '.join(GROUPS)}, or some of {', '.join(METRICS)}"
            )
        usable = [name for name in names if not missing.get(name)]
        if not usable:
            raise InputError(f"metrics={word}: needs {missing[names[0]]}; set it, or leave {word} out")
        found |= set(usable)
    return tuple(name for name in METRICS if name in found)

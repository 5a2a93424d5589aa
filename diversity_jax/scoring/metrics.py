"""Baseline metrics of a scoring run: opens the models that they need, and measures."""

from collections.abc import Callable, Mapping, Sequence
import functools
import logging
from pathlib import Path

import numpy as np

from diversity_jax import embedders
from diversity_jax.cluster_agent import judge_kind
from diversity_jax.core.errors import InputError
from diversity_jax.corpus import Corpus, open_corpus
from diversity_jax.embedders import Embedder, vocabulary_of
from diversity_jax.metrics import METRICS, MetricsConfig, MetricsReport, Tools, chosen_metrics, measure
from diversity_jax.metrics.beam import measure_all
from diversity_jax.metrics.perplexity import CausalModel, JaxLlama, TransformersModel, is_own_llama
from diversity_jax.scoring.config import ScoreConfig, named_corpora
from diversity_jax.tokenizers.files import run_text_ids
from diversity_jax.tokenizers.tokenizer import load_tokenizer

log = logging.getLogger(__name__)


def measure_corpora(
    config: ScoreConfig, corpora: Mapping[str, Corpus], folders: Mapping[str, Path]
) -> dict[str, MetricsReport]:
    """Measures what `config.metrics` asks for.

    Without a judge each corpus's figures are written to its `scorecard.json`; their cost always to `metrics_cost.json`.
    """
    names = chosen_metrics(config.metrics, config.baseline)
    if config.baseline.runner is None:
        measured = measure(corpora, names, config.baseline, open_tools(names, config.baseline, Path(config.output_dir)))
    else:
        measured, scratch = {}, _shared_folder(config)
        for name, corpus in named_corpora(config).items():
            opener = functools.partial(open_corpus, corpus)
            measured[name] = measure_all(opener, name, names, config.baseline, scratch)
    for name, report in measured.items():
        if judge_kind(config.judge).open is None:
            report.save(folders[name] / "scorecard.json")
        report.save_cost(folders[name] / "metrics_cost.json")
        for metric, figure in report.metrics.items():
            ends = "" if figure.low is None else f" [{figure.low:.4g}, {figure.high:.4g}]"
            log.info("%s: %-26s %.4g%s", name, metric, figure.value, ends)
        for warning in report.warnings:
            log.warning("%s: %s", name, warning)
    return measured


def _shared_folder(config: ScoreConfig) -> str:
    """A folder that workers of a Beam runner share: its `--temp_location`, or on one machine the run's folder."""
    named = (option.partition("=") for option in config.baseline.runner_options)
    return next((value for name, _, value in named if name == "--temp_location"), config.output_dir)


def open_tools(names: tuple[str, ...], config: MetricsConfig, output_dir: Path) -> Tools:
    """Models, tokenizers and servers that the chosen metrics need.

    Raises:
      InputError: one cannot be opened.
    """
    groups = {METRICS[name].group for name in names}
    embedder = model = larger = None
    count: Callable[[Sequence[str]], np.ndarray] | None = None
    if "embedding" in groups:
        embedder = open_embedder(config, output_dir / "embeddings")
    # `chosen_metrics` checks that the models and the vocabulary are set where a metric needs them.
    if "perplexity" in groups:
        model = open_model(str(config.model), config)
        larger = open_model(str(config.larger_model), config) if "perplexity_gap" in names else None
    if "context_length_tokens" in names:
        encode = load_tokenizer(str(config.vocabulary)).encode_batch

        def count(texts: Sequence[str]) -> np.ndarray:
            parts = [encode(texts[start : start + 1024])[1] for start in range(0, len(texts), 1024)]
            return np.concatenate(parts)

    return Tools(embedder=embedder, model=model, larger_model=larger, count_tokens=count)


def open_embedder(config: MetricsConfig, cache: Path) -> Embedder | None:
    """The embedder that a configuration names; None for TF-IDF, which is fitted to the corpora later."""
    if config.embedder == "tfidf":
        return None
    return embedders.open_embedder(
        config.embedder,
        base_url=config.embedder_base_url,
        cache=cache,
        dollars_per_million_tokens=config.embedder_dollars_per_million_tokens,
        max_dollars=config.max_dollars,
        vocabulary=config.vocabulary,
        context_tokens=config.context_tokens,
    )


def open_model(name: str, config: MetricsConfig) -> CausalModel:
    """A causal model: `JaxLlama` for our checkpoints and Llamas in Hugging Face's format, transformers for others."""
    if is_own_llama(name):
        tokenizer, trained = load_tokenizer(vocabulary_of(name, config.vocabulary)), run_text_ids(Path(name))
        if trained == ():
            raise InputError(
                f"model {name}: nothing began a document in its training, so its first token is not predicted"
            )
        adds_bos = tokenizer.adds_bos and not (Path(name) / "run.json").exists()
        default = tokenizer.bos_id if adds_bos and tokenizer.bos_id is not None else tokenizer.end_of_text_id
        first = trained[0] if trained else default
        return JaxLlama(name, tokenizer.encode_batch, first, context_tokens=config.context_tokens)
    return TransformersModel(name, context_tokens=config.context_tokens)

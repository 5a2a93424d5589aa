"""The baselines that the cluster-agent is compared with: lexical, embedding and perplexity metrics, exact and fast."""

# Metrics register themselves when their module is imported; this order is that of tables and pages.
from diversity_jax.metrics import lexical, pairwise, embedding, perplexity  # isort: skip

from diversity_jax.metrics.measure import Tools, measure
from diversity_jax.metrics.registry import METRICS, Metric, MetricsConfig, chosen_metrics
from diversity_jax.metrics.report import Figure, MetricsReport, difference

__all__ = [
    "METRICS",
    "Figure",
    "Metric",
    "MetricsConfig",
    "MetricsReport",
    "Tools",
    "chosen_metrics",
    "difference",
    "embedding",
    "lexical",
    "measure",
    "pairwise",
    "perplexity",
]

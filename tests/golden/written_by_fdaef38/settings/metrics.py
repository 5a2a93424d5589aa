"""Baseline metrics of one corpus, without a judge."""

from dataclasses import replace

from configs import metrics


def get_config():
    names = "self_repetition,ngram_diversity,compression_ratio_gzip,mtld"
    return replace(metrics.get_config(), metrics=names, corpus="text/varied.jsonl.gz", output_dir="metrics")

"""Judging models: benchmarks through lm-evaluation-harness, held-out text, generation."""

"""Judging models: benchmarks through lm-evaluation-harness, held-out text, generation and a server. Heavy modules load where they are used."""
